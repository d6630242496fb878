"""Is the choice without labels right to keep weights that were given, or to leave them? Runs of studies, and labels.

Every run began with the weights of a whole network. What the rule says (`cdga_train.selection`) is held against labels:
leaving what was given is right where the candidate that would be taken instead has the higher mIoU.

The rule was made from the first two cases, in which a network of the procedural world meets a domain that it does not
know, or has learnt already, and after study C had shown that the rule before it was wrong. The others were trained
afterwards, and changed nothing::

    B="model=lite0_fpn imgsz=128,256 batch=4 augment=true optim.lr=5e-4 optim.head_lr_factor=4 score.data=none"
    for D in day dusk all; do
        cdga train streets_source_only --source streets:$D --target streets:dusk weights=imagenet iters=250 \
            candidates=0 $B --name base_$D
    done
    A="model=lite0_fpn imgsz=128,256 batch=4 augment=true optim.lr=5e-5 iters=200 candidates=4"
    study() { cdga study streets --arms cdga --seeds 0 --source streets:$2 --target streets:$3 $A \
        weights=runs/train/base_$1/last.safetensors --name $1-$2-$3; }
    study day day dusk; study dusk day dusk; study all day rain; study day day fog
    cdga study day_dusk --arms source_only --seeds 0 --source camvid:PATH --target camvid:PATH --name day_source
    cdga study day_dusk --arms cdga --seeds 0 --source camvid:PATH --target camvid:PATH --name weak_start iters=400 \
        weights=runs/study/day_source/source_only-seed0 optim.lr=5e-5 optim.head_lr_factor=1
    cdga study strong_start --arms cdga --seeds 0,1,2 --target camvid:PATH weights=efficientvit_seg_b0_cityscapes.pt
    cdga study strong_start --arms cdga --seeds 0 --target camvid:PATH weights=efficientvit_seg_b0_cityscapes.pt \
        target_split=dusk_train score.split=dusk_train --name strong_start_dusk
    python -m benchmarks.verdict runs/study/{day-day-dusk,dusk-day-dusk,all-day-rain,day-day-fog} \
        runs/study/{strong_start,weak_start,strong_start_dusk} --json benchmarks/results/verdict.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.protocol import Record, environment
from cdga_sdk.atomic import write_text
from cdga_train.manifest import read_run
from cdga_train.rounds import round_folders
from cdga_train.run_layout import SELECTION
from cdga_train.selection import choose, read_selection


def main(arguments: Sequence[str] | None = None) -> None:
    """Judge every run of every study, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, nargs="+")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args(arguments)
    names = [study.name for study in options.study]
    report: Record = {
        "what": "weights given, kept or left without labels; mIoU in percent; infomax gained over them",
        **environment("benchmarks.verdict", [*names, "--json", "PATH"], ("torch",), torch.device("cpu")),
        "runs": [row for study in options.study for row in rows_of(study)],
    }
    write_text(options.json, json.dumps(report, indent=1) + "\n")


def rows_of(study: Path) -> list[Record]:
    """A row for every run of a study."""
    record = json.loads((study / "study.json").read_text(encoding="utf-8"))
    return [_row(study, run) for run in record["runs"]]


def _row(study: Path, run: Mapping[str, Any]) -> Record:
    folder = study / f"{run['arm']}-seed{run['seed']}"
    config = read_run(folder)
    candidates = read_selection(round_folders(config, folder)[-1] / SELECTION)
    assert candidates is not None, folder
    (given,) = (one for one in candidates if one.is_given)
    trained = choose([one for one in candidates if not one.is_given])
    is_left = choose(candidates) is trained
    gain, error = trained.infomax_gain, trained.infomax_gain_error
    assert gain is not None, folder
    classes = config.score.classes
    miou = {checkpoint["iteration"]: checkpoint["miou"][classes] for checkpoint in run["checkpoints"]}
    gained = miou[trained.iteration] - miou[given.iteration]
    return {
        "case": study.name,
        "seed": run["seed"],
        "model": config.model,
        "source": config.source,
        "classes": classes,
        "given_miou": round(miou[given.iteration], 2),
        "trained_miou": round(miou[trained.iteration], 2),
        "trained_iteration": trained.iteration,
        "infomax_gain": round(gain, 5),
        "infomax_gain_in_errors": round(gain / error, 2) if error else None,
        "mirror_gain": round(trained.mirror_agreement - given.mirror_agreement, 5),
        "is_left": is_left,
        "is_right": is_left == (gained > 0),
    }


if __name__ == "__main__":
    main()
