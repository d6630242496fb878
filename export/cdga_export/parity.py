"""Parity: does the exported graph say what the trained network says?

Judged on real frames, never on noise: a graph that is right on noise has been seen to give NaN on real frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from cdga_sdk.errors import GateError
from cdga_sdk.preprocess import UInt8Array

__all__ = ["FP32_MIN_AGREEMENT", "FrameParity", "ParityReport", "compare", "refuse_below_gate"]

FP32_MIN_AGREEMENT = 0.9999

Infer = Callable[[UInt8Array], tuple[UInt8Array, UInt8Array]]


@dataclass(frozen=True, kw_only=True)
class FrameParity:
    """One frame: share of pixels with the same class, largest difference of confidence (of 255), classes present."""

    name: str
    agreement: float
    max_confidence_difference: int
    reference_classes: int


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """Reference against candidate over all frames.

    Attributes:
        reference: What is believed, e.g. ``torch 2.11.0 fp32``.
        candidate: What is judged, e.g. ``onnxruntime cpu fp32``.
        min_agreement: The gate.
        agreement: Share of equal pixels over all frames.
        worst_frame: Name of the frame with the lowest agreement.
        frames: Each frame's figures.
        faults: What makes the report fail; empty when the gate is passed.
    """

    reference: str
    candidate: str
    min_agreement: float
    agreement: float
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
    reference_name: str,
    candidate_name: str,
    min_agreement: float,
) -> tuple[ParityReport, list[UInt8Array]]:
    """Run both on every frame, one at a time.

    Args:
        frames_rgb: Names and (H, W, 3) uint8 RGB frames of the network's size.
        reference: Maps (N, H, W, 3) frames to mask and confidence.
        candidate: The same, to be judged.
        reference_name: For the report.
        candidate_name: For the report.
        min_agreement: Smallest share of equal pixels that every frame must reach.

    Returns:
        The report, and the reference's mask of each frame.
    """
    rows, masks = [], []
    for name, frame in frames_rgb:
        mask, conf = reference(frame[np.newaxis])
        found_mask, found_conf = candidate(frame[np.newaxis])
        rows.append(
            FrameParity(
                name=name,
                agreement=float((mask == found_mask).mean()),
                max_confidence_difference=int(np.abs(conf.astype(int) - found_conf.astype(int)).max()),
                reference_classes=int(np.unique(mask).size),
            )
        )
        masks.append(mask[0])
    worst = min(rows, key=lambda row: row.agreement)
    report = ParityReport(
        reference=reference_name,
        candidate=candidate_name,
        min_agreement=min_agreement,
        agreement=float(np.mean([row.agreement for row in rows])),
        worst_frame=worst.name,
        frames=tuple(rows),
        faults=tuple(_faults(rows, worst, min_agreement)),
    )
    return report, masks


def refuse_below_gate(report: ParityReport) -> None:
    """Stop the export of a graph that is not proven.

    Raises:
        GateError: The report has faults.
    """
    if report.faults:
        raise GateError(
            f"{report.candidate} differs from {report.reference}: {'; '.join(report.faults)}",
            fix="nothing was written; train longer, or report it with the checkpoint's model name",
        )


def _faults(rows: Sequence[FrameParity], worst: FrameParity, min_agreement: float) -> list[str]:
    faults = []
    if worst.agreement < min_agreement:
        faults.append(
            f"agreement {100 * worst.agreement:.3f} % on frame {worst.name}, wanted {100 * min_agreement:.2f} %"
        )
    if all(row.reference_classes == 1 for row in rows):
        faults.append("the network gives one class everywhere on every frame: it is untrained, or its weights are NaN")
    return faults
