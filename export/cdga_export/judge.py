"""Each graph before its judge: run as its users will run it, held against the trained network."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch

from cdga_export.parity import (
    MIN_AGREEMENT,
    LabelParity,
    ParityReport,
    Reference,
    compare,
    refuse_below_gate,
    side_by_side,
    with_labels,
)
from cdga_export.rounded import with_rounding
from cdga_export.to_onnx import checked_bytes, onnx_of
from cdga_sdk.backends.base import Backend
from cdga_sdk.backends.choice import open_backend
from cdga_sdk.backends.onnx_runtime import OnnxRuntimeBackend
from cdga_sdk.bundle import Precision
from cdga_sdk.errors import CdgaError, InputError, one_line
from cdga_sdk.image import write_png
from cdga_sdk.labels import CITYSCAPES_NAMES, CITYSCAPES_PALETTE_RGB, ClassSet
from cdga_sdk.precision import computes_bf16
from cdga_sdk.preprocess import UInt8Array, resize_image, resize_label
from cdga_sdk.progress import progress_bar
from cdga_train.data.base import Dataset
from cdga_train.evaluate import evaluate

__all__ = ["MAX_BATCH", "Judge", "Labels", "Verdict"]

MAX_BATCH: Final = 8
"""Frames of the batch that a graph is proven with, golden ones in turn."""


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Labelled footage that no precision may lose much on.

    Attributes:
        data: Samples with labels.
        classes: What the score is stated over.
        title: Says both, for reports.
    """

    data: Dataset
    classes: ClassSet
    title: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """On a graph.

    Attributes:
        report: The figures.
        worst_bgr: A picture of the worst frame, (H, 4 W, 3) uint8.
    """

    report: ParityReport
    worst_bgr: UInt8Array


class Judge:
    """Holds graphs against what the trained network said, and against the float32 graph where there are labels.

    Args:
        references: What the trained network said.
        fp32: The float32 graph, which is judged first.
        labels: Labelled footage, if there is any.
        output: The bundle's place: beside it goes a picture of what is refused.
        quiet: No progress bars.

    Raises:
        GateError: The float32 graph differs too much.
        InputError: No pixel of the labelled footage counts.
    """

    def __init__(
        self, references: Sequence[Reference], fp32: bytes, labels: Labels | None, output: Path, *, quiet: bool = True
    ) -> None:
        self._references = references
        self._labels = labels
        self._output = output
        self._quiet = quiet
        self._miou_fp32: float | None = None
        backend = OnnxRuntimeBackend(fp32, device="cpu")
        self.fp32 = self._admitted("fp32", backend, None)
        if labels is not None:
            self._miou_fp32 = self._miou(labels, backend, "fp32")
            if not np.isfinite(self._miou_fp32):
                raise InputError("no labelled pixel of these classes: there is nothing to score", where=labels.title)
            self.fp32 = Verdict(
                report=with_labels(self.fp32.report, self._label_parity(labels, self._miou_fp32)),
                worst_bgr=self.fp32.worst_bgr,
            )

    def proven(self, precision: Precision, graph: bytes, arithmetic: str | None = None) -> Verdict:
        """The verdict on a graph of another precision; on one in int8 OpenVINO's too, which refuses nothing.

        Args:
            precision: Of the graph.
            graph: An ONNX file.
            arithmetic: What is in that precision, where that is not all.

        Raises:
            GateError: The graph differs too much.
        """
        verdict = self._admitted(precision, _judged(precision, graph), arithmetic)
        if precision != "int8":
            return verdict
        return replace(verdict, report=replace(verdict.report, openvino=self._in_openvino(graph, arithmetic)))

    def _in_openvino(self, graph: bytes, arithmetic: str | None) -> ParityReport | str:
        """The report on an int8 graph in OpenVINO, or why there is none."""
        try:
            backend = open_backend(graph, precision="int8", backend="openvino", device="cpu")
            return self._verdict("int8", backend, arithmetic).report
        except Exception as error:  # noqa: BLE001 - a broken installation raises anything; the export goes on
            return one_line(error) or type(error).__name__

    def _admitted(self, precision: Precision, backend: Backend, arithmetic: str | None) -> Verdict:
        verdict = self._verdict(precision, backend, arithmetic)
        self._refuse(verdict, precision)
        return verdict

    def _verdict(self, precision: Precision, backend: Backend, arithmetic: str | None) -> Verdict:
        report, masks = compare(
            self._references,
            backend.infer,
            names=CITYSCAPES_NAMES,
            reference_name=f"torch {torch.__version__.partition('+')[0]} fp32",
            candidate_name=backend.name,
            min_agreement=MIN_AGREEMENT[precision],
            batch=MAX_BATCH,
            arithmetic=arithmetic,
        )
        if self._labels is not None and self._miou_fp32 is not None and not report.faults:
            found = self._miou(self._labels, backend, precision)
            report = with_labels(report, self._label_parity(self._labels, found))
        worst = [told.frame.name for told in self._references].index(report.worst_frame)
        told = self._references[worst]
        worst_bgr = side_by_side(told.frame.frame_rgb, told.mask, masks[worst], CITYSCAPES_PALETTE_RGB)
        return Verdict(report=report, worst_bgr=worst_bgr)

    def _refuse(self, verdict: Verdict, precision: Precision) -> None:
        report = verdict.report
        picture = self._output.with_name(f"{self._output.name}.refused.{precision}.png")
        if not report.faults:
            with suppress(OSError):  # an earlier export's
                picture.unlink(missing_ok=True)
            return
        advice = _advice(report, precision)
        if report.is_constant:  # there is nothing to see
            refuse_below_gate(report, advice)
        try:
            write_png(picture, verdict.worst_bgr)
        except CdgaError:  # a place that cannot be written to: the refusal matters more
            refuse_below_gate(report, advice)
        refuse_below_gate(report, advice, picture)

    def _miou(self, labels: Labels, backend: Backend, precision: Precision) -> float:
        imgsz_hw = self._references[0].mask.shape

        def mask_of(image_bgr: UInt8Array) -> UInt8Array:
            frame_rgb = np.ascontiguousarray(resize_image(image_bgr, imgsz_hw)[:, :, ::-1])
            return resize_label(backend.infer(frame_rgb[np.newaxis]).mask_NHW[0], image_bgr.shape[:2])

        with progress_bar(f"score {precision}", len(labels.data), quiet=self._quiet) as advance:
            return evaluate(mask_of, labels.data, labels.classes, on_frame=advance).miou

    def _label_parity(self, labels: Labels, miou: float) -> LabelParity:
        assert self._miou_fp32 is not None, "the float32 graph is scored first"
        return LabelParity(data=labels.title, frames=len(labels.data), miou_fp32=self._miou_fp32, miou=miou)


def _judged(precision: Precision, graph: bytes) -> Backend:
    """A graph as its users will run it; where this CPU lacks the arithmetic, with all of its roundings."""
    if precision == "bf16" and computes_bf16():
        from cdga_sdk.backends.openvino_cpu import OpenVinoBackend

        return OpenVinoBackend(graph, precision=precision)
    if precision in {"fp16", "bf16"}:  # CPU kernels compute it in float32: what rounding does would not show
        rounded = checked_bytes(with_rounding(onnx_of(graph)))
        return OnnxRuntimeBackend(rounded, device="cpu", precision=f"{precision} (rounded)")
    return OnnxRuntimeBackend(graph, device="cpu", precision=precision)


def _advice(report: ParityReport, precision: Precision) -> str:
    if report.is_constant:
        return "train it longer, or export an older checkpoint"
    if precision == "fp32":
        return "try other --golden frames; if they differ too, report it with that picture and the versions in use"
    return f"leave {precision} out, or give --calib with footage like that to be segmented"
