"""``cdga export``: from words on the command line to a bundle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import typer

from cdga_export.about import read_about
from cdga_export.export import Exported, ExportOptions, export_checkpoint, export_weights
from cdga_export.extra import parse_outputs
from cdga_export.pace import WORTH_IT, relative_time
from cdga_export.parity import ParityReport, openvino_line
from cdga_sdk.bundle import PRECISIONS, Bundle, Precision
from cdga_sdk.errors import CdgaError, UsageError, counted
from cdga_sdk.precision import computes_bf16, open_precision

__all__ = ["parse_imgsz", "parse_precisions", "run_export"]


def run_export(
    checkpoint: str | None,
    output: Path | None,
    *,
    weights: str | None,
    model: str | None,
    imgsz: str | None,
    precision: str,
    golden: str | None,
    calib: str | None,
    score: str | None,
    score_classes: str | None,
    about: Path | None,
    outputs: str,
    dynamic_size: bool,
    overwrite: bool,
    quiet: bool,
) -> Exported:
    """Export and report.

    Raises:
        UsageError: Flags that are missing or do not go together.
        CdgaError: As `export_checkpoint` does.
    """
    if output is None:
        raise UsageError("no output given", fix="pass -o model.cdga")
    precisions = parse_precisions(precision)
    if score is None and score_classes is not None:
        raise UsageError("--classes goes with --score")
    if calib is not None and not set(precisions) - {"fp32"}:
        raise UsageError("--calib sets other precisions than fp32", fix="name some, e.g. --precision fp16,int8")
    options = ExportOptions(
        precisions=precisions,
        golden=golden,
        calib=calib,
        score=score,
        score_classes=score_classes or "19",
        about=None if about is None else read_about(about),
        outputs=parse_outputs(outputs),
        dynamic_size=dynamic_size,
        overwrite=overwrite,
        quiet=quiet,
    )
    if (checkpoint is None) == (weights is None):
        raise UsageError("wanted either a CHECKPOINT or --weights", fix="e.g. cdga export runs/train/x -o model.cdga")
    if checkpoint is not None:
        if model is not None:
            raise UsageError("--model goes with --weights; a checkpoint knows its own")
        size_hw = None if imgsz is None else parse_imgsz(imgsz)
        done = export_checkpoint(checkpoint, output, options, imgsz_hw=size_hw)
    else:
        if model is None or imgsz is None:
            raise UsageError("--weights needs --model and --imgsz", fix="e.g. --model efficientvit_b0 --imgsz 512,1024")
        assert weights is not None, "one of both is given"
        done = export_weights(weights, model, parse_imgsz(imgsz), output, options)
    if not quiet:
        for line in _lines(done):
            typer.echo(line, err=True)
    return done


def _lines(done: Exported) -> Iterator[str]:
    for precision, report in done.parity.items():
        yield _line(report)
        if report.openvino is not None:
            yield f"{precision}: {openvino_line(report.openvino)}"
    yield from _pace_lines(done.bundle)
    yield str(done.bundle.path)


def _line(report: ParityReport) -> str:
    extra = f"; {report.arithmetic}" if report.arithmetic else ""
    if report.labels is not None:
        extra += f"; mIoU {report.labels.miou:.2f} on {report.labels.data}"
    return (
        f"{report.candidate} = {report.reference} on {100 * report.agreement:.4f} % of pixels of "
        f"{counted(len(report.frames), 'golden frames')}, worst {100 * report.worst_agreement:.4f} %{extra}"
    )


def _pace_lines(bundle: Bundle) -> Iterator[str]:
    """Whether the precisions for CPUs pay on this machine."""
    for precision in ("int8", "bf16"):
        if precision not in bundle.graphs:
            continue
        if precision == "bf16" and not computes_bf16():
            yield "bf16 cannot be timed here: OpenVINO is not installed, or this CPU has no bf16"
            continue
        try:
            yield _pace_line(bundle, precision)
        except CdgaError as error:  # the bundle is complete all the same
            yield f"{precision} cannot be timed here: {error}"


def _pace_line(bundle: Bundle, precision: str) -> str:
    """Each graph in the runtime that would run it, which need not be the same."""
    frames = [np.ascontiguousarray(f.image_bgr[np.newaxis, :, :, ::-1]) for f in bundle.golden_frames()]
    fp32, other = (open_precision(bundle, p, device="cpu").backend for p in ("fp32", precision))
    ratio = relative_time(other, fp32, frames)
    time = f"{ratio:.2f} of fp32's time here, {other.name} against {fp32.name}"
    return f"{precision} takes {time}" if ratio < WORTH_IT else f"{precision} is not worth it: it takes {time}"


def parse_precisions(text: str) -> tuple[Precision, ...]:
    """``"fp16,int8"`` as precisions; fp32 may be named, and is always made.

    Raises:
        UsageError: An unknown word.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    unknown = [word for word in words if word not in PRECISIONS]
    if unknown:
        raise UsageError(f"unknown precision '{unknown[0]}'", fix=f"use some of {','.join(PRECISIONS)}")
    return tuple(p for p in PRECISIONS if p in words)


def parse_imgsz(text: str) -> tuple[int, int]:
    """``"512,1024"`` as (height, width), as training has it.

    Raises:
        UsageError: Not two positive whole numbers; ``480x352`` too, which elsewhere means width first.
    """
    parts = text.split(",")
    if not all(p.strip().isdecimal() and int(p) > 0 for p in parts) or len(parts) != 2:
        raise UsageError(f"imgsz is '{text}', wanted H,W", fix="e.g. --imgsz 512,1024")
    return int(parts[0]), int(parts[1])
