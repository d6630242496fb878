"""What each precision of an export costs in labels: published EfficientViT-B0 weights on CamVid val, ONNX Runtime, CPU.

For each input size and precision: whether it passed its gate, how many pixels have the float32 network's class (mean,
worst golden frame, near boundaries), mIoU over the common 11 classes before and after, and the file's size. What fails
its gate is not exported; its row says what the export said. Golden frames are spread over CamVid train, and the ranges
of int8 and the means of fp16 come from 32 others of it; val is only scored. The committed figures are made by::

    python -m benchmarks.export_precisions --weights efficientvit_seg_b0_cityscapes.pt --camvid PATH \
        --json benchmarks/results/export_precisions.json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.protocol import Record, environment
from cdga_export.export import ExportOptions, export_weights
from cdga_sdk.atomic import write_text
from cdga_sdk.bundle import PRECISIONS, Precision
from cdga_sdk.errors import GateError
from cdga_sdk.hashes import file_sha256
from cdga_sdk.labels import CLASS_SETS
from cdga_train.evaluate_run import run_evaluate

MODEL: Final = "efficientvit_b0"
SIZES_HW: Final = ((352, 480), (704, 960))


def main(arguments: Sequence[str] | None = None) -> None:
    """Export every precision at both sizes, score what passed, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--camvid", type=Path, required=True)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args(arguments)
    data = f"camvid:{options.camvid}"
    rows = [row for size_hw in SIZES_HW for row in rows_of(options.weights, data, size_hw)]
    # Where the reader keeps the data is nobody's business, so the command names none.
    command = ["--weights", options.weights.name, "--camvid", "PATH", "--json", "PATH"]
    report: Record = {
        "what": "CamVid val, common 11 classes; agreement in shares, mIoU in percent",
        **environment("benchmarks.export_precisions", command, ("onnx", "onnxruntime-gpu"), torch.device("cpu")),
        "model": MODEL,
        "weights_sha256": file_sha256(options.weights),
        "rows": rows,
    }
    _print(rows)
    text = json.dumps(report, indent=1) + "\n"
    if options.json is None:
        sys.stdout.write(text)
    else:
        write_text(options.json, text)


def rows_of(weights: Path, data: str, imgsz_hw: tuple[int, int]) -> list[Record]:
    """A row for each precision at one size of the network's input."""
    rows: list[Record] = []
    for precision in PRECISIONS:
        row: Record = {"imgsz_hw": imgsz_hw, "precision": precision}
        with tempfile.TemporaryDirectory() as folder:
            try:
                rows.append(row | exported(weights, data, imgsz_hw, precision, Path(folder) / "city.cdga"))
            except GateError as error:
                rows.append(row | {"passed": False, "refused": error.what})
    return rows


def exported(weights: Path, data: str, imgsz_hw: tuple[int, int], precision: Precision, bundle: Path) -> Record:
    """What one precision gives.

    Raises:
        GateError: It did not pass.
    """
    done = export_weights(weights, MODEL, imgsz_hw, bundle, ExportOptions(precisions=(precision,), golden=data))
    report = done.parity[precision]
    scores, _ = run_evaluate(
        str(bundle),
        data,
        "val",
        CLASS_SETS["common11"],
        backend="onnxruntime",
        device="cpu",
        quiet=True,
        precision=precision,
    )
    return {
        "passed": True,
        "agreement": round(report.agreement, 6),
        "worst_frame_agreement": round(min(frame.agreement for frame in report.frames), 6),
        "boundary_agreement": round(report.boundary_agreement, 6),
        "miou": round(scores.miou, 2),
        "accuracy": round(scores.accuracy, 2),
        "size_bytes": len(done.bundle.graph(precision)),
    }


def _print(rows: Sequence[Record]) -> None:
    columns = ("imgsz_hw", "precision", "passed", "agreement", "worst_frame_agreement", "miou", "size_bytes")
    table = Table(title="Precisions of one export", title_justify="left")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(str(row.get(column, "-")) for column in columns))
    Console(stderr=True).print(table)


if __name__ == "__main__":
    main()
