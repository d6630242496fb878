"""How much of an arm's score is BatchNorm's statistics? The runs of a study, and the same with the target's own.

For the last checkpoint of every run of a study: its score as it is, and after the running mean and variance of every
BatchNorm were estimated anew on target images alone (AdaBN, Li et al. 2016, arXiv 1603.04779); no weight changes, no
label is looked at. Of ``source_only`` the second is the AdaBN arm; of arms that forward both domains in training, whose
running statistics are a mixture of the two, it tells what the mixture costs. The committed figures are made by::

    python -m benchmarks.target_statistics runs/study/day_dusk --json benchmarks/results/statistics_day_dusk.json
    python -m benchmarks.target_statistics runs/study/streets_camvid \
        --json benchmarks/results/statistics_streets_camvid.json
    python -m benchmarks.target_statistics runs/study/two_rounds \
        --json benchmarks/results/statistics_streets_camvid_two_rounds.json
    python -m benchmarks.target_statistics runs/study/changed \
        --json benchmarks/results/statistics_day_dusk_changed.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import nn

from benchmarks.protocol import Record, environment
from cdga_sdk.atomic import write_text
from cdga_sdk.labels import CLASS_SETS
from cdga_sdk.preprocess import resize_image
from cdga_train.checkpoint import Checkpoint, load_checkpoint
from cdga_train.data.base import Dataset
from cdga_train.data.spec import open_labelled, open_unlabelled
from cdga_train.evaluate import evaluate
from cdga_train.manifest import read_run
from cdga_train.models.fused import FusedNetwork
from cdga_train.predict import predict_mask
from cdga_train.rounds import round_folders
from cdga_train.run_layout import LAST
from cdga_train.selection import evenly_spaced
from cdga_train.state import build_network

NUM_IMAGES: Final = 64
BATCH: Final = 8


def main(arguments: Sequence[str] | None = None) -> None:
    """Score every run twice, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args(arguments)
    report: Record = {
        "what": "mIoU, percent, of the last checkpoints as they are and with the target's BatchNorm statistics",
        **environment(
            "benchmarks.target_statistics", [options.study.name, "--json", "PATH"], ("torch",), torch.device("cpu")
        ),
        "target_images": NUM_IMAGES,
        "runs": [scored_run(folder) for folder in finished_runs(options.study)],
    }
    write_text(options.json, json.dumps(report, indent=1) + "\n")


def finished_runs(study: Path) -> list[Path]:
    """The folders of the runs that the study's table has, by arm and seed."""
    record = json.loads((study / "study.json").read_text(encoding="utf-8"))
    return [study / f"{run['arm']}-seed{run['seed']}" for run in record["runs"]]


def scored_run(folder: Path) -> Record:
    """Both scores of one run's last round."""
    config = read_run(folder)
    state = load_checkpoint(round_folders(config, folder)[-1] / LAST)
    assert config.target is not None, folder
    assert config.score.data is not None, folder
    target = open_unlabelled(config.target, config.target_split, config.imgsz)
    labelled = open_labelled(config.score.data, config.score.split, config.imgsz)
    fused = FusedNetwork(build_network(state), state.preprocess)
    as_trained = _miou(state, fused, labelled)
    take_statistics(fused, target)
    arm, _, seed = folder.name.rpartition("-seed")
    return {
        "arm": arm,
        "seed": int(seed),
        "as_trained": round(as_trained, 2),
        "with_targets": round(_miou(state, fused, labelled), 2),
    }


def take_statistics(fused: FusedNetwork, dataset: Dataset) -> None:
    """Give every BatchNorm the mean and variance that it sees over images of ``dataset``; nothing else changes."""
    norms = [m for m in fused.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
        norm.train()
    numbers = evenly_spaced(len(dataset), NUM_IMAGES)
    with torch.inference_mode():
        for start in range(0, len(numbers), BATCH):
            images = [
                resize_image(dataset[i].image_bgr, fused.preprocess.imgsz_hw) for i in numbers[start : start + BATCH]
            ]
            fused(torch.from_numpy(np.stack(images)[..., ::-1].copy()))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    fused.eval()


def _miou(state: Checkpoint, fused: FusedNetwork, labelled: Dataset) -> float:
    classes = CLASS_SETS[state.config.score.classes]
    return evaluate(lambda image_bgr: predict_mask(fused, image_bgr), labelled, classes).miou


if __name__ == "__main__":
    main()
