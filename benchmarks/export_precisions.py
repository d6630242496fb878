"""What each precision of an export costs in labels: three networks on CamVid val, ONNX Runtime, CPU.

For each network and precision: whether it passed its gates, how many pixels have the float32 network's class (mean,
worst golden frame, near boundaries), mIoU over the common 11 classes before and after, the file's size, and for int8
the time it takes of fp32's. What fails a gate is not exported; its row says what the export said. Golden frames are
spread over CamVid train, and the ranges of int8 and the means of fp16 come from 32 others of it; val is only scored.

EfficientViT-B0 has its published Cityscapes weights. The other two are trained here, briefly, on CamVid train: good
enough for a network whose labels mean something, and no more::

    cdga train camvid_day_dusk_source_only --source camvid:PATH --target camvid:PATH weights=FILE source_split=train \
        translate=none imgsz=192,256 batch=2 iters=600 precision=bf16 flip=true candidates=0 score.data=none \
        --name deeplab
    cdga train streets_source_only --source camvid:PATH --target camvid:PATH model=lraspp_mobilenet_v3 translate=none \
        imgsz=192,256 batch=8 iters=1500 flip=true candidates=0 score.data=none --name lraspp

    python -m benchmarks.export_precisions --weights efficientvit_seg_b0_cityscapes.pt --checkpoint runs/train/deeplab \
        --checkpoint runs/train/lraspp --camvid PATH --json benchmarks/results/export_precisions.json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.protocol import Record, environment
from cdga_export.export import Exported, ExportOptions, export_checkpoint, export_weights
from cdga_export.pace import relative_time
from cdga_sdk.atomic import write_text
from cdga_sdk.backends.onnx_runtime import OnnxRuntimeBackend
from cdga_sdk.bundle import PRECISIONS, Bundle, Precision
from cdga_sdk.errors import GateError
from cdga_train.checkpoint import load_checkpoint

CITY_MODEL: Final = "efficientvit_b0"
CITY_SIZES_HW: Final = ((352, 480), (704, 960))

Export = Callable[[Path, ExportOptions], Exported]


def main(arguments: Sequence[str] | None = None) -> None:
    """Export every precision of every network, score what passed, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, action="append", default=[])
    parser.add_argument("--camvid", type=Path, required=True)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args(arguments)
    data = f"camvid:{options.camvid}"
    rows: list[Record] = []
    for size_hw in CITY_SIZES_HW:
        export = partial(_published, options.weights, size_hw)
        rows += rows_of(export, data, {"model": CITY_MODEL, "weights": "published, Cityscapes", "imgsz_hw": size_hw})
    for place in options.checkpoint:
        config = load_checkpoint(place).config
        facts: Record = {"model": config.model, "weights": f"CamVid, {config.iters} iterations"}
        rows += rows_of(partial(export_checkpoint, place), data, facts | {"imgsz_hw": config.imgsz})
    # Where the reader keeps the data is nobody's business, so the command names none.
    command = ["--weights", options.weights.name, "--camvid", "PATH", "--json", "PATH"]
    command[2:2] = [word for place in options.checkpoint for word in ("--checkpoint", place.name)]
    report: Record = {
        "what": "CamVid val, common 11 classes; agreement and time in shares, mIoU in percent",
        **environment("benchmarks.export_precisions", command, ("onnx", "onnxruntime-gpu"), torch.device("cpu")),
        "rows": rows,
    }
    _print(rows)
    text = json.dumps(report, indent=1) + "\n"
    if options.json is None:
        sys.stdout.write(text)
    else:
        write_text(options.json, text)


def _published(weights: Path, imgsz_hw: tuple[int, int], output: Path, options: ExportOptions) -> Exported:
    return export_weights(weights, CITY_MODEL, imgsz_hw, output, options)


def rows_of(export: Export, data: str, facts: Record) -> list[Record]:
    """A row for each precision of one network at one size.

    Args:
        export: Writes the bundle to the path that it is given.
        data: Where golden, calibration and scored frames come from.
        facts: What each row begins with.
    """
    rows: list[Record] = []
    for precision in PRECISIONS:
        row: Record = facts | {"precision": precision}
        with tempfile.TemporaryDirectory() as folder:
            try:
                rows.append(row | exported(export, data, precision, Path(folder) / "city.cdga"))
            except GateError as error:
                rows.append(row | {"passed": False, "refused": error.what})
    return rows


def exported(export: Export, data: str, precision: Precision, bundle: Path) -> Record:
    """What one precision gives.

    Raises:
        GateError: It did not pass.
    """
    options = ExportOptions(precisions=(precision,), golden=data, score=data, score_classes="common11", quiet=False)
    done = export(bundle, options)
    report = done.parity[precision]
    assert report.labels is not None, "labels were given"
    return {
        "passed": True,
        "arithmetic": report.arithmetic,
        "agreement": round(report.agreement, 6),
        "worst_frame_agreement": round(report.worst_agreement, 6),
        "boundary_agreement": round(report.boundary_agreement, 6),
        "image_in_agreement": None if report.image_agreement is None else round(report.image_agreement, 6),
        "miou_fp32": round(report.labels.miou_fp32, 2),
        "miou": round(report.labels.miou, 2),
        "size_bytes": len(done.bundle.graph(precision)),
        "time_of_fp32": round(time_of_fp32(done.bundle, precision), 3) if precision == "int8" else None,
    }


def time_of_fp32(bundle: Bundle, precision: Precision) -> float:
    """Time over that of the float32 graph, in pairs, on the golden frames."""
    frames = [np.ascontiguousarray(f.image_bgr[np.newaxis, :, :, ::-1]) for f in bundle.golden_frames()]
    candidate, baseline = (OnnxRuntimeBackend(bundle.graph(p), device="cpu") for p in (precision, "fp32"))
    return relative_time(candidate, baseline, frames)


def _print(rows: Sequence[Record]) -> None:
    columns = ("model", "imgsz_hw", "precision", "worst_frame_agreement", "miou", "size_bytes", "time_of_fp32")
    table = Table(title="Precisions of one export", title_justify="left")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(str(row.get(column, "-")) for column in columns))
    Console(stderr=True).print(table)


if __name__ == "__main__":
    main()
