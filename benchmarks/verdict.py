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
    python -m benchmarks.verdict runs/study/*-*-* runs/study/strong_start --json benchmarks/results/verdict.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from benchmarks.protocol import Record, environment
from cdga_sdk.atomic import write_text
from cdga_train.checkpoint import SELECTION
from cdga_train.manifest import read_run
from cdga_train.selection import CandidateScores, choose


def main(arguments: Sequence[str] | None = None) -> None:
    """Judge every run of every study, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, nargs="+")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args(arguments)
    names = [study.name for study in options.study]
    report: Record = {
        "what": "weights given, kept or left without labels; mIoU in percent; infomax_gain over them and its error",
        **environment("benchmarks.verdict", [*names, "--json", "PATH"], ("torch",), torch.device("cpu")),
        "runs": [row for study in options.study for row in rows_of(study)],
    }
    write_text(options.json, json.dumps(report, indent=1) + "\n")


def rows_of(study: Path) -> list[Record]:
    """A row for every run of a study."""
    record = json.loads((study / "study.json").read_text(encoding="utf-8"))
    return [_row(study, record["classes"], run) for run in record["runs"]]


def _row(study: Path, classes: str, run: Mapping[str, Any]) -> Record:
    folder = study / f"{run['arm']}-seed{run['seed']}"
    config = read_run(folder)
    candidates = TypeAdapter(list[CandidateScores]).validate_python(
        json.loads((folder / SELECTION).read_text(encoding="utf-8"))["candidates"]
    )
    (given,) = (one for one in candidates if one.is_given)
    trained = choose([one for one in candidates if not one.is_given])
    is_left = choose(candidates) is trained
    assert trained.infomax_gain is not None, folder
    assert trained.infomax_gain_error is not None, folder
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
        "infomax_gain": round(trained.infomax_gain, 5),
        "infomax_gain_error": round(trained.infomax_gain_error, 5),
        "mirror_gain": round(trained.mirror_agreement - given.mirror_agreement, 5),
        "is_left": is_left,
        "is_right": is_left == (gained > 0),
    }


if __name__ == "__main__":
    main()
