"""What averaging a run's weights over its iterations is worth: the average against the last iterate, of the same run.

Both lie in ``last.safetensors`` of a run with ``average_power``; both are scored on CamVid, whose labels no such run
has seen, at one input size. The committed figures are made by::

    cdga train footage_cdga --target video:solidWhiteRight.mp4 --name average_1 rounds=1 seed=1   # and 2
    cdga train footage_cdga --target video:solidWhiteRight.mp4 --name default rounds=1 iters=2000
    cdga train footage_cdga --target video:solidWhiteRight.mp4 --name long rounds=1 iters=4000
    python -m benchmarks.averaging runs/train/average_1 runs/train/average_2 runs/train/default runs/train/long \
        --camvid PATH --json benchmarks/results/averaging.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch

from benchmarks.default_model import record_of, scores_at
from benchmarks.protocol import Record, environment
from cdga_sdk.atomic import write_text
from cdga_sdk.errors import UsageError
from cdga_train.checkpoint import Checkpoint, load_checkpoint
from cdga_train.data.spec import open_labelled
from cdga_train.manifest import read_run
from cdga_train.rounds import round_folders
from cdga_train.run_layout import LAST

SIZE_HW: Final = (384, 672)
SPLITS: Final = ("day_train", "val")


def main(arguments: Sequence[str] | None = None) -> None:
    """Score both networks of every run, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="+")
    parser.add_argument("--camvid", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args(arguments)
    checkpoints = {run.name: averaged(run) for run in options.run}  # all are there before one is scored
    command = [*checkpoints, "--camvid", "PATH", "--json", "PATH"]
    report: Record = {
        "what": "a run's averaged network and its last iterate on CamVid, 11 classes: mIoU and IoU, percent",
        **environment("benchmarks.averaging", command, ("torch",), torch.device("cpu")),
        "imgsz_hw": SIZE_HW,
        "runs": [{"name": name, **row(checkpoint, options.camvid)} for name, checkpoint in checkpoints.items()],
    }
    write_text(options.json, json.dumps(report, indent=1) + "\n")


def averaged(run: Path) -> Checkpoint:
    """The last state of a run that averages.

    Raises:
        UsageError: It does not.
    """
    checkpoint = load_checkpoint(round_folders(read_run(run), run)[-1] / LAST)
    if checkpoint.config.average_power is None:
        raise UsageError("keeps no average of its weights", where=run, fix="train with average_power=3")
    return checkpoint


def row(checkpoint: Checkpoint, camvid: Path) -> Record:
    """The settings that matter, and both networks' scores on both splits."""
    config = checkpoint.config
    return {
        "seed": config.seed,
        "iterations": checkpoint.iteration,
        "average_power": config.average_power,
        "splits": {
            split: {
                name: record_of(scores_at(state, SIZE_HW, open_labelled(f"camvid:{camvid}", split, SIZE_HW)))
                for name, state in (("average", checkpoint), ("iterate", checkpoint.of_iterate()))
            }
            for split in SPLITS
        },
    }


if __name__ == "__main__":
    main()
