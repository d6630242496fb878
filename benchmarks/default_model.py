"""Make the bundle that lies in the package, from a finished run, and say what it scores.

The run and the committed bundle and figures are made by::

    cdga train footage_cdga --target video:solidWhiteRight.mp4 --name default rounds=1 iters=2000
    python -m benchmarks.default_model runs/train/default --camvid PATH --output cdga_sdk/models/default.cdga \
        --compare two_times_1000_streets_all.cdga --compare two_times_2000_streets_all.cdga \
        --compare two_times_2000_streets_year.cdga --compare one_time_4000_streets_year.cdga \
        --json benchmarks/results/default_model.json

CamVid's day frames choose: the input size is the one at which they score best, and where several runs were tried, the
one that scores best there was taken; ``--compare`` writes down what the others have. The labels of its validation clip
choose nothing. The golden frames are drawn: the package holds nobody's pictures.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import torch

from benchmarks.protocol import Record, environment
from cdga_export.export import ExportOptions, export_checkpoint
from cdga_sdk import Segmenter
from cdga_sdk.atomic import write_text
from cdga_sdk.bundle import About
from cdga_sdk.image import write_png
from cdga_sdk.labels import CLASS_SETS
from cdga_sdk.metrics import Scores
from cdga_train.checkpoint import Checkpoint, load_checkpoint
from cdga_train.curves import read_metrics
from cdga_train.data.base import Dataset
from cdga_train.data.spec import open_labelled
from cdga_train.data.streets import render_frame
from cdga_train.evaluate import evaluate
from cdga_train.models.fused import FusedNetwork
from cdga_train.predict import predict_mask
from cdga_train.run_layout import find_checkpoint
from cdga_train.state import build_network

SIZES_HW: Final = ((288, 512), (384, 672))  # larger ones take a CPU too long for a default
GOLDEN_SEEDS: Final = (0, 1, 2, 5)
GOLDEN_SHRINK: Final = 2  # they are drawn at half the size, for the package has to stay small
ABOUT: Final = About(
    trained_on="labelled frames of CDGA SDK's procedural world (streets:year), from ImageNet weights",
    adapted_to="one clip of a Californian motorway by day, unlabelled (Udacity CarND, solidWhiteRight.mp4, MIT)",
    licence="Apache-2.0; begun from EfficientNet-Lite0's weights (Apache-2.0), whose ImageNet is for research",
    limits="No real label trained it; CamVid's day frames chose among five runs. Night, rain, rail, and people near "
    "by are weak. Not for driving decisions.",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Choose the size, export, score, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--camvid", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--compare", type=Path, action="append", default=[], help="another bundle; may be repeated")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args(arguments)
    state = load_checkpoint(find_checkpoint(options.run))
    day = open_labelled(f"camvid:{options.camvid}", "day_train", SIZES_HW[0])
    by_size = {size_hw: round(scores_at(state, size_hw, day).miou, 2) for size_hw in SIZES_HW}
    best_hw = max(by_size, key=lambda size_hw: by_size[size_hw])
    with tempfile.TemporaryDirectory() as folder:
        draw_golden(Path(folder), best_hw)
        exported = ExportOptions(
            golden=f"folder:{folder}",
            score=f"camvid:{options.camvid}",
            score_classes="common11",
            about=ABOUT,
            overwrite=True,
        )
        export_checkpoint(options.run, options.output, exported, imgsz_hw=best_hw)
    compared = [word for bundle in options.compare for word in ("--compare", bundle.name)]
    command = [options.run.name, "--camvid", "PATH", "--output", "PATH", *compared, "--json", "PATH"]
    report: Record = {
        "what": "the model in the package: mIoU and IoU, percent",
        **environment("benchmarks.default_model", command, ("torch", "onnxruntime-gpu"), torch.device("cpu")),
        "iterations": state.iteration,
        "trained_minutes": {log.parent.name: round(trained_s(log) / 60, 1) for log in logs_of(options.run)},
        "by_size": {f"{width}x{height}": miou for (height, width), miou in by_size.items()},
        "imgsz_hw": best_hw,
        "camvid_day_train_common11": {
            bundle.stem: record_of(camvid_scores(bundle, options.camvid, "day_train"))
            for bundle in (options.output, *options.compare)
        },
        "camvid_val_common11": record_of(camvid_scores(options.output, options.camvid, "val")),
    }
    write_text(options.json, json.dumps(report, indent=1) + "\n")


def scores_at(state: Checkpoint, size_hw: tuple[int, int], dataset: Dataset) -> Scores:
    """Over the common 11 classes, of the network at an input size."""
    fused = FusedNetwork(build_network(state), replace(state.preprocess, imgsz_hw=size_hw)).eval()
    return evaluate(lambda image_bgr: predict_mask(fused, image_bgr), dataset, CLASS_SETS["common11"])


def logs_of(run: Path) -> list[Path]:
    """The logs of its rounds, in order."""
    return sorted(run.rglob("metrics.jsonl"))


def trained_s(log: Path) -> float:
    """Seconds of all iterations of a round, at their logged rates."""
    metrics = read_metrics(log)
    total_s, done = 0.0, 0
    for iteration, row in zip(metrics.iterations, metrics.rows, strict=True):
        rate = row["it_per_s"]
        assert rate, (log, iteration)
        total_s += (iteration - done) / rate
        done = iteration
    return total_s


def draw_golden(folder: Path, size_hw: tuple[int, int]) -> None:
    """Frames of the procedural world by day, as ``images/streets_day_SEED.png``."""
    for seed in GOLDEN_SEEDS:
        frame = render_frame(seed=seed, size_wh=(size_hw[1] // GOLDEN_SHRINK, size_hw[0] // GOLDEN_SHRINK))
        write_png(folder / "images" / f"streets_day_{seed}.png", np.ascontiguousarray(frame.image_rgb[:, :, ::-1]))


def camvid_scores(bundle: Path, camvid: Path, split: str) -> Scores:
    """Of the bundle on a split of CamVid."""
    with Segmenter(bundle, backend="onnxruntime", device="cpu") as segmenter:
        dataset = open_labelled(f"camvid:{camvid}", split, segmenter.imgsz)
        return evaluate(lambda image_bgr: segmenter.segment(image_bgr).mask, dataset, CLASS_SETS["common11"])


def record_of(scores: Scores) -> Record:
    """The scores as JSON has them, percent; classes that neither labels nor predictions have are left out."""
    return {
        "miou": round(scores.miou, 2),
        "accuracy": round(scores.accuracy, 2),
        "frames": scores.frames,
        "iou": {name: round(value, 2) for name, value in scores.iou.items() if value == value},
    }


if __name__ == "__main__":
    main()
