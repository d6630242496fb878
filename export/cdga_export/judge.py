"""Each graph before its judge: run as its users will run it, held against the trained network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
from cdga_sdk.backends.onnx_runtime import OnnxRuntimeBackend
from cdga_sdk.bundle import Precision
from cdga_sdk.image import write_png
from cdga_sdk.labels import CITYSCAPES_NAMES, CITYSCAPES_PALETTE_RGB, ClassSet
from cdga_sdk.preprocess import UInt8Array, resize_image, resize_label
from cdga_train.data.base import Dataset
from cdga_train.evaluate import evaluate

__all__ = ["Judge", "Labels"]


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


class Judge:
    """Holds graphs against what the trained network said, and against the float32 graph where there are labels.

    Args:
        references: What the trained network said.
        labels: Labelled footage, if there is any.
    """

    def __init__(self, references: Sequence[Reference], labels: Labels | None) -> None:
        self.references = references
        self._labels = labels
        self._miou_fp32 = float("nan")

    def proven(
        self, precision: Precision, graph: bytes, arithmetic: str | None = None, picture: Path | None = None
    ) -> tuple[ParityReport, UInt8Array]:
        """The report of a graph that passed, and a picture of its worst frame.

        Args:
            precision: Of the graph; fp32 comes first.
            graph: An ONNX file.
            arithmetic: What is in that precision, where that is not all.
            picture: Where the worst frame is shown if the graph is refused.

        Raises:
            GateError: The graph differs too much.
        """
        backend = OnnxRuntimeBackend(graph, device="cpu")
        report = compare(
            self.references,
            backend.infer,
            names=CITYSCAPES_NAMES,
            reference_name=f"torch {torch.__version__.partition('+')[0]} fp32",
            candidate_name=f"onnxruntime cpu {precision}",
            min_agreement=MIN_AGREEMENT[precision],
            arithmetic=arithmetic,
        )
        worst_bgr = self._worst(report, backend)
        if self._labels is not None and not report.faults:
            report = with_labels(report, self._scored(self._labels, precision, backend))
        if report.faults and picture is not None:
            write_png(picture, worst_bgr)
        refuse_below_gate(report, picture)
        return report, worst_bgr

    def _worst(self, report: ParityReport, backend: OnnxRuntimeBackend) -> UInt8Array:
        told = next(r for r in self.references if r.frame.name == report.worst_frame)
        found_1HW, _ = backend.infer(told.frame.frame_rgb[np.newaxis])
        return side_by_side(told.frame.frame_rgb, told.mask, found_1HW[0], CITYSCAPES_PALETTE_RGB)

    def _scored(self, labels: Labels, precision: Precision, backend: OnnxRuntimeBackend) -> LabelParity:
        imgsz_hw = self.references[0].mask.shape

        def mask_of(image_bgr: UInt8Array) -> UInt8Array:
            frame_rgb = np.ascontiguousarray(resize_image(image_bgr, imgsz_hw)[:, :, ::-1])
            return resize_label(backend.infer(frame_rgb[np.newaxis])[0][0], image_bgr.shape[:2])

        miou = evaluate(mask_of, labels.data, labels.classes).miou
        if precision == "fp32":
            self._miou_fp32 = miou
        return LabelParity(data=labels.title, frames=len(labels.data), miou_fp32=self._miou_fp32, miou=miou)
