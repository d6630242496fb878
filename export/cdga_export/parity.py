"""Parity: does an exported graph say what the trained network says?

Judged on real frames, never on noise: a graph that is right on noise has been seen to give NaN on real frames.

Network and preprocessing are told apart. *Frame in*: both get the same resized uint8 frame, and what differs is the
graph; this has the gate. *Image in*: the graph gets the image as this project resizes it (OpenCV, whole numbers), the
network gets it as torch does (in floating point, never rounded), and what differs more is the resizing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np

from cdga_export.frames import Frame
from cdga_sdk.bundle import Precision
from cdga_sdk.errors import GateError
from cdga_sdk.opencv import cv2
from cdga_sdk.overlay import Palette, color_map_bgr
from cdga_sdk.prediction import Prediction
from cdga_sdk.preprocess import UInt8Array

__all__ = [
    "MAX_MIOU_LOSS",
    "MIN_AGREEMENT",
    "FrameParity",
    "LabelParity",
    "ParityReport",
    "Reference",
    "compare",
    "openvino_line",
    "refuse_below_gate",
    "side_by_side",
    "with_labels",
]

MIN_AGREEMENT: Final[Mapping[Precision, float]] = MappingProxyType(
    {"fp32": 0.9999, "fp16": 0.999, "bf16": 0.999, "int8": 0.99, "int8-trt": 0.99}
)
"""The gates: the share of pixels with the same class that every frame must reach."""

MAX_MIOU_LOSS: Final = 0.3
"""The gate where labels are given: mIoU that a graph may have less than the float32 graph, in percentage points."""

BOUNDARY_PX: Final = 3

Infer = Callable[[UInt8Array], Prediction]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What the trained network says of a frame; all (H, W) uint8.

    Attributes:
        frame: The frame.
        mask: Its classes, frame in.
        conf: Their probabilities times 255.
        image_mask: Its classes, image in; None where the image already has the network's size.
    """

    frame: Frame
    mask: UInt8Array
    conf: UInt8Array
    image_mask: UInt8Array | None


@dataclass(frozen=True, kw_only=True)
class FrameParity:
    """One frame.

    Attributes:
        name: Of the frame.
        agreement: Share of pixels with the same class, frame in.
        image_agreement: The same, image in; no gate. None where nothing was resized.
        boundary_agreement: The same within three pixels of where the reference's class changes; 1 where it never does.
        max_confidence_difference: The largest, of 255.
        reference_classes: Classes that the reference sees.
    """

    name: str
    agreement: float
    image_agreement: float | None
    boundary_agreement: float
    max_confidence_difference: int
    reference_classes: int


@dataclass(frozen=True, kw_only=True)
class LabelParity:
    """Scores on labelled footage, percent.

    Attributes:
        data: What was scored, e.g. ``camvid:PATH val, common11 classes``.
        frames: How many.
        miou_fp32: Of the float32 graph.
        miou: Of the graph that is judged.
    """

    data: str
    frames: int
    miou_fp32: float
    miou: float

    @property
    def loss(self) -> float:
        """Percentage points of mIoU that it has less."""
        return self.miou_fp32 - self.miou


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """Reference against candidate over all frames.

    Attributes:
        reference: What is believed, e.g. ``torch 2.11.0 fp32``.
        candidate: What is judged, e.g. ``onnxruntime cpu fp16``.
        min_agreement: The gate.
        agreement: Share of equal pixels over all frames, frame in.
        image_agreement: The same, image in, over the frames that were resized; None where none was.
        batch_agreement: The smallest share of a frame's pixels that are in a batch as they were when it ran alone.
        boundary_agreement: The same near the reference's class boundaries, a mean over frames.
        class_agreement: By the name of each class that either sees: intersection over union of the two's pixels.
        worst_frame: Name of the frame with the lowest agreement.
        frames: Each frame's figures.
        faults: What makes the report fail; empty when the gate is passed.
        labels: Scores on labelled footage, where it was given.
        arithmetic: What is in which precision, where that is not all.
        openvino: Of an int8 graph: OpenVINO's report, whose faults refuse nothing, or why it could not be asked.
    """

    reference: str
    candidate: str
    min_agreement: float
    agreement: float
    image_agreement: float | None
    batch_agreement: float
    boundary_agreement: float
    class_agreement: dict[str, float]
    worst_frame: str
    frames: tuple[FrameParity, ...]
    faults: tuple[str, ...]
    labels: LabelParity | None = None
    arithmetic: str | None = None
    openvino: ParityReport | str | None = None

    @property
    def is_constant(self) -> bool:
        """Whether the trained network itself gives one class everywhere."""
        return all(frame.reference_classes == 1 for frame in self.frames)

    @property
    def worst_agreement(self) -> float:
        """That of the worst frame."""
        return min(frame.agreement for frame in self.frames)

    def as_dict(self) -> dict[str, object]:
        """Plain values that JSON can hold."""
        return asdict(self)


def compare(
    references: Sequence[Reference],
    candidate: Infer,
    *,
    names: Sequence[str],
    reference_name: str,
    candidate_name: str,
    min_agreement: float,
    batch: int,
    arithmetic: str | None = None,
) -> tuple[ParityReport, list[UInt8Array]]:
    """Run a graph on every frame, one at a time, and then on a batch.

    Args:
        references: What the trained network says, of at least one frame.
        candidate: Says of (N, H, W, 3) uint8 RGB frames what they show.
        names: Class names by train id.
        reference_name: For the report.
        candidate_name: For the report.
        min_agreement: Smallest share of equal pixels that every frame must reach.
        batch: Size of that batch, of the frames in turn.
        arithmetic: For the report.

    Returns:
        The report, and the graph's mask of every frame.
    """
    pixels = np.zeros(256 * 256, np.int64)
    rows, masks = [], []
    for reference in references:
        found = candidate(reference.frame.frame_rgb[np.newaxis])
        found_mask = found.mask_NHW[0]
        rows.append(_frame(reference, found_mask, found.confidence(0)))
        masks.append(found_mask)
        pixels += np.bincount((256 * reference.mask.astype(np.int64) + found_mask).ravel(), minlength=pixels.size)
    turns = [i % len(references) for i in range(batch)]
    batched = candidate(np.stack([references[i].frame.frame_rgb for i in turns])).mask_NHW
    batch_agreement = min(float((one == masks[i]).mean()) for one, i in zip(batched, turns, strict=True))
    worst = min(rows, key=lambda row: row.agreement)
    resized = [row.image_agreement for row in rows if row.image_agreement is not None]
    report = ParityReport(
        reference=reference_name,
        candidate=candidate_name,
        min_agreement=min_agreement,
        agreement=float(np.mean([row.agreement for row in rows])),
        image_agreement=float(np.mean(resized)) if resized else None,
        batch_agreement=batch_agreement,
        boundary_agreement=float(np.mean([row.boundary_agreement for row in rows])),
        class_agreement=_class_agreement(pixels.reshape(256, 256), names),
        worst_frame=worst.name,
        frames=tuple(rows),
        faults=tuple(_faults(rows, worst, batch_agreement, min_agreement)),
        arithmetic=arithmetic,
    )
    return report, masks


def with_labels(report: ParityReport, labels: LabelParity) -> ParityReport:
    """The report with a score, which must not be lower than the float32 graph's by more than `MAX_MIOU_LOSS`."""
    faults = report.faults
    if not labels.loss <= MAX_MIOU_LOSS:
        faults += (
            f"mIoU {labels.miou:.2f} on {labels.data}, wanted at least {labels.miou_fp32 - MAX_MIOU_LOSS:.2f} "
            f"(fp32 has {labels.miou_fp32:.2f})",
        )
    return replace(report, labels=labels, faults=faults)


def openvino_line(openvino: ParityReport | str) -> str:
    """What OpenVINO makes of an int8 graph that ONNX Runtime is proven with, in one line."""
    if isinstance(openvino, str):
        return f"for ONNX Runtime only: OpenVINO could not be asked ({openvino})"
    if openvino.faults:
        return f"for ONNX Runtime only: in OpenVINO {'; '.join(openvino.faults)}"
    score = f", mIoU {openvino.labels.miou:.2f}" if openvino.labels else ""
    return (
        f"proven in OpenVINO too: {100 * openvino.agreement:.4f} % of pixels, "
        f"worst frame {100 * openvino.worst_agreement:.4f} %{score}"
    )


def refuse_below_gate(report: ParityReport, advice: str, picture: Path | None = None) -> None:
    """Stop the export of a graph that is not proven.

    Args:
        report: Of one graph.
        advice: What to do.
        picture: Where the worst frame is shown, for the message.

    Raises:
        GateError: The report has faults; the classes that differ most are named.
    """
    if not report.faults:
        return
    least = sorted(report.class_agreement.items(), key=lambda item: item[1])[:3]
    classes = ", ".join(f"{name} {100 * share:.1f} %" for name, share in least)
    raise GateError(
        f"{report.candidate} differs from {report.reference}: {'; '.join(report.faults)}; least alike: {classes}",
        fix=f"no bundle was written{f'; see {picture}' if picture else ''}; {advice}",
    )


def side_by_side(frame_rgb: UInt8Array, mask: UInt8Array, found: UInt8Array, palette_rgb: Palette) -> UInt8Array:
    """Frame, reference's mask, candidate's mask, and white where they differ: (H, 4 W, 3) uint8 BGR."""
    differs = np.where(mask != found, np.uint8(255), np.uint8(0))
    pictures = (
        frame_rgb[:, :, ::-1],
        color_map_bgr(mask, palette_rgb),
        color_map_bgr(found, palette_rgb),
        np.repeat(differs[:, :, np.newaxis], 3, axis=2),
    )
    return np.ascontiguousarray(np.hstack(pictures))


def _frame(reference: Reference, found: UInt8Array, found_conf: UInt8Array) -> FrameParity:
    mask, conf, image_mask = reference.mask, reference.conf, reference.image_mask
    is_equal = mask == found
    near = _near_boundary(mask)
    return FrameParity(
        name=reference.frame.name,
        agreement=float(is_equal.mean()),
        image_agreement=None if image_mask is None else float((image_mask == found).mean()),
        boundary_agreement=float(is_equal[near].mean()) if near.any() else 1.0,
        max_confidence_difference=int(np.abs(conf.astype(int) - found_conf.astype(int)).max()),
        reference_classes=int(np.unique(mask).size),
    )


def _near_boundary(mask: UInt8Array) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    kernel = np.ones((2 * BOUNDARY_PX + 1, 2 * BOUNDARY_PX + 1), np.uint8)
    return np.asarray(cv2.dilate(mask, kernel) != cv2.erode(mask, kernel))


def _class_agreement(pixels: np.ndarray[tuple[int, int], np.dtype[np.int64]], names: Sequence[str]) -> dict[str, float]:
    both = pixels.diagonal()
    either = pixels.sum(axis=0) + pixels.sum(axis=1) - both
    return {name: round(float(both[i] / either[i]), 6) for i, name in enumerate(names) if either[i]}


def _faults(rows: Sequence[FrameParity], worst: FrameParity, batch_agreement: float, min_agreement: float) -> list[str]:
    faults = []
    if worst.agreement < min_agreement:
        faults.append(
            f"agreement {100 * worst.agreement:.3f} % on frame {worst.name}, wanted {100 * min_agreement:.2f} %"
        )
    if batch_agreement < min_agreement:
        faults.append(
            f"in a batch a frame keeps {100 * batch_agreement:.3f} % of the classes it has alone, "
            f"wanted {100 * min_agreement:.2f} %"
        )
    if all(row.reference_classes == 1 for row in rows):
        faults.append("the network gives one class everywhere on every frame: it is untrained, or its weights are NaN")
    return faults
