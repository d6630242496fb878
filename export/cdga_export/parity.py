"""Parity: does an exported graph say what the trained network says?

Judged on real frames, never on noise: a graph that is right on noise has been seen to give NaN on real frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np

from cdga_sdk.bundle import Precision
from cdga_sdk.errors import GateError
from cdga_sdk.opencv import cv2
from cdga_sdk.overlay import Palette, color_map_bgr
from cdga_sdk.preprocess import UInt8Array

__all__ = ["MIN_AGREEMENT", "FrameParity", "ParityReport", "compare", "refuse_below_gate", "side_by_side"]

MIN_AGREEMENT: Final[Mapping[Precision, float]] = MappingProxyType(
    {"fp32": 0.9999, "fp16": 0.999, "int8": 0.99, "int8-trt": 0.99}
)
"""The gates: the share of pixels with the same class that every frame must reach."""

BOUNDARY_PX: Final = 3

Infer = Callable[[UInt8Array], tuple[UInt8Array, UInt8Array]]


@dataclass(frozen=True, kw_only=True)
class FrameParity:
    """One frame.

    Attributes:
        name: Of the frame.
        agreement: Share of pixels with the same class.
        boundary_agreement: The same within three pixels of where the reference's class changes; 1 where it never does.
        max_confidence_difference: The largest, of 255.
        reference_classes: Classes that the reference sees.
    """

    name: str
    agreement: float
    boundary_agreement: float
    max_confidence_difference: int
    reference_classes: int


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """Reference against candidate over all frames.

    Attributes:
        reference: What is believed, e.g. ``torch 2.11.0 fp32``.
        candidate: What is judged, e.g. ``onnxruntime cpu fp16``.
        min_agreement: The gate.
        agreement: Share of equal pixels over all frames.
        boundary_agreement: The same near the reference's class boundaries, a mean over frames.
        class_agreement: By the name of each class that either sees: intersection over union of the two's pixels.
        worst_frame: Name of the frame with the lowest agreement.
        frames: Each frame's figures.
        faults: What makes the report fail; empty when the gate is passed.
    """

    reference: str
    candidate: str
    min_agreement: float
    agreement: float
    boundary_agreement: float
    class_agreement: dict[str, float]
    worst_frame: str
    frames: tuple[FrameParity, ...]
    faults: tuple[str, ...]

    def as_dict(self) -> dict[str, object]:
        """Plain values that JSON can hold."""
        return asdict(self)


def compare(
    frames_rgb: Sequence[tuple[str, UInt8Array]],
    reference: Infer,
    candidate: Infer,
    *,
    names: Sequence[str],
    reference_name: str,
    candidate_name: str,
    min_agreement: float,
) -> ParityReport:
    """Run both on every frame, one at a time.

    Args:
        frames_rgb: Names and (H, W, 3) uint8 RGB frames of the network's size, at least one.
        reference: Maps (N, H, W, 3) frames to mask and confidence.
        candidate: The same, to be judged.
        names: Class names by train id.
        reference_name: For the report.
        candidate_name: For the report.
        min_agreement: Smallest share of equal pixels that every frame must reach.
    """
    pixels = np.zeros(256 * 256, np.int64)
    rows = []
    for name, frame in frames_rgb:
        mask, conf = (found[0] for found in reference(frame[np.newaxis]))
        found_mask, found_conf = (found[0] for found in candidate(frame[np.newaxis]))
        rows.append(_frame(name, mask, found_mask, conf, found_conf))
        pixels += np.bincount((256 * mask.astype(np.int64) + found_mask).ravel(), minlength=pixels.size)
    worst = min(rows, key=lambda row: row.agreement)
    return ParityReport(
        reference=reference_name,
        candidate=candidate_name,
        min_agreement=min_agreement,
        agreement=float(np.mean([row.agreement for row in rows])),
        boundary_agreement=float(np.mean([row.boundary_agreement for row in rows])),
        class_agreement=_class_agreement(pixels.reshape(256, 256), names),
        worst_frame=worst.name,
        frames=tuple(rows),
        faults=tuple(_faults(rows, worst, min_agreement)),
    )


def refuse_below_gate(report: ParityReport, picture: Path | None = None) -> None:
    """Stop the export of a graph that is not proven.

    Args:
        report: Of one graph.
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
        fix=f"no bundle was written{f'; see {picture}' if picture else ''}; leave that precision out, or give --calib",
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


def _frame(name: str, mask: UInt8Array, found: UInt8Array, conf: UInt8Array, found_conf: UInt8Array) -> FrameParity:
    is_equal = mask == found
    near = _near_boundary(mask)
    return FrameParity(
        name=name,
        agreement=float(is_equal.mean()),
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


def _faults(rows: Sequence[FrameParity], worst: FrameParity, min_agreement: float) -> list[str]:
    faults = []
    if worst.agreement < min_agreement:
        faults.append(
            f"agreement {100 * worst.agreement:.3f} % on frame {worst.name}, wanted {100 * min_agreement:.2f} %"
        )
    if all(row.reference_classes == 1 for row in rows):
        faults.append("the network gives one class everywhere on every frame: it is untrained, or its weights are NaN")
    return faults
