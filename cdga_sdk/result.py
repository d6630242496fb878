"""What the segmenter says of one frame."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypedDict

import numpy as np

from cdga_sdk.errors import UsageError
from cdga_sdk.image import write_png
from cdga_sdk.labels import IGNORE, train_id_of
from cdga_sdk.opencv import cv2
from cdga_sdk.overlay import Palette, draw_overlay
from cdga_sdk.prediction import FrameConfidence
from cdga_sdk.preprocess import UInt8Array

__all__ = ["ClassStat", "Polygon", "Rle", "SegResult"]

_EXACT_IN_FLOAT32: Final = 2**24


class ClassStat(TypedDict):
    """One class in one frame: pixels, share of the frame (0 to 1), mean confidence (0 to 1), box (x, y, w, h)."""

    pixels: int
    share: float
    mean_confidence: float
    box_xywh: tuple[int, int, int, int]


class Rle(TypedDict):
    """COCO's uncompressed run lengths of one class: column-major, starting with the number of zeros."""

    category_id: int
    name: str
    size: tuple[int, int]
    counts: list[int]


class Polygon(TypedDict):
    """One outer contour of one class: (x, y) pixel corners."""

    category_id: int
    name: str
    points_xy: list[tuple[int, int]]


@dataclass(frozen=True, kw_only=True, eq=False)
class SegResult:
    """The segmentation of one frame, at the frame's own size.

    Attributes:
        mask: (H, W) uint8 Cityscapes train ids; 255 where ignored (below ``conf``, or a class not asked for).
        sureness: Gives `confidence` and `mean_confidence`.
        image_bgr: (H, W, 3) uint8, the frame itself.
        names: Class name by train id.
        palette_rgb: Colour by train id.
        source: File the frame came from; empty for an array.
        frame: Index within the source, from 0.
        time_s: Presentation time in the source, seconds; None for a still image.
        speed_ms: Milliseconds per stage: ``preprocess``, ``inference``, ``postprocess``.
    """

    mask: UInt8Array
    sureness: FrameConfidence = field(repr=False)
    image_bgr: UInt8Array = field(repr=False)
    names: Sequence[str]
    palette_rgb: Palette = field(repr=False)
    source: str = ""
    frame: int = 0
    time_s: float | None = None
    speed_ms: Mapping[str, float] = field(default_factory=dict)

    @property
    def orig_shape(self) -> tuple[int, int]:
        """Height and width of the frame, pixels."""
        height, width = self.mask.shape
        return height, width

    @property
    def confidence(self) -> UInt8Array:
        """(H, W) uint8, probability of the class that the network chose, times 255; computed at the first use."""
        return self.sureness.pixels

    @property
    def mean_confidence(self) -> float:
        """Of the network's input every 8th pixel of every 8th row, 0 to 1; does not compute `confidence`."""
        return self.sureness.mean

    @property
    def probability(self) -> np.typing.NDArray[np.float32]:
        """``confidence`` as (H, W) float32 in 0 to 1."""
        return self.confidence.astype(np.float32) / np.float32(255)

    def is_class(self, *classes: int | str) -> np.typing.NDArray[np.bool_]:
        """(H, W) bool: the pixels of the given classes, each a name ("road") or a train id (0).

        Raises:
            UsageError: No such class.
        """
        return np.isin(self.mask, [train_id_of(c, self.names) for c in classes])

    def plot(self, alpha: float = 0.5) -> UInt8Array:
        """The frame with class colours over it, (H, W, 3) uint8 BGR; ``alpha`` is their opacity, 0 to 1.

        Raises:
            UsageError: ``alpha`` is out of range.
        """
        if not 0.0 <= alpha <= 1.0:
            raise UsageError(f"alpha is {alpha}, wanted 0 to 1")
        return draw_overlay(self.image_bgr, self.mask, self.palette_rgb, alpha=alpha)

    def shares(self) -> dict[str, float]:
        """The share of the frame that each present class covers, 0 to 1, largest first."""
        counts = _counts(self.mask)
        present = [i for i in np.argsort(-counts, kind="stable") if counts[i] and i < len(self.names)]
        return {self.names[i]: float(counts[i] / self.mask.size) for i in present}

    def stats(self) -> dict[str, ClassStat]:
        """Pixels, share, mean confidence and bounding box of each present class."""
        return {self.names[i]: self._stat(i) for i in self._present()}

    def to_png(self, path: str | Path) -> None:
        """Write the mask as a greyscale PNG of train ids, atomically.

        Raises:
            ResourceError: The disk is full.
            UsageError: The place cannot be written to.
        """
        write_png(Path(path), self.mask)

    def to_rle(self) -> list[Rle]:
        """COCO stuff run lengths, one entry per present class."""
        return [
            Rle(category_id=i, name=self.names[i], size=self.orig_shape, counts=_run_lengths(self.mask == i))
            for i in self._present()
        ]

    def to_polygons(self, min_area_px: float = 64.0, tolerance_px: float = 1.0) -> list[Polygon]:
        """Outer contours of each class, simplified; regions of fewer pixels, holes counted, are left out."""
        return [
            Polygon(category_id=i, name=self.names[i], points_xy=points)
            for i in self._present()
            for points in _contours(self.mask == i, min_area_px, tolerance_px)
        ]

    def to_json(self) -> str:
        """One line of JSON: source, frame, time, size, statistics and speed; no pixels."""
        record = {
            "source": self.source,
            "frame": self.frame,
            "time_s": self.time_s,
            "shape_hw": self.orig_shape,
            "classes": self.stats(),
            "speed_ms": {k: round(v, 3) for k, v in self.speed_ms.items()},
        }
        return json.dumps(record)

    def _present(self) -> list[int]:
        return [int(i) for i in np.unique(self.mask) if i != IGNORE and i < len(self.names)]

    def _stat(self, train_id: int) -> ClassStat:
        of_class = self.mask == train_id
        x, y, w, h = cv2.boundingRect(of_class.astype(np.uint8))
        pixels = int(np.count_nonzero(of_class))
        return ClassStat(
            pixels=pixels,
            share=pixels / self.mask.size,
            mean_confidence=float(self.confidence[of_class].mean()) / 255,
            box_xywh=(x, y, w, h),
        )


def _counts(mask_HW: UInt8Array) -> np.typing.NDArray[np.int64]:
    """Pixels of each of the 256 values."""
    if mask_HW.size > _EXACT_IN_FLOAT32:
        return np.bincount(mask_HW.ravel(), minlength=256)
    histogram = cv2.calcHist([mask_HW], [0], None, [256], [0, 256])  # a fraction of bincount's time
    return np.asarray(histogram, np.int64).ravel()


def _run_lengths(of_class_HW: np.typing.NDArray[np.bool_]) -> list[int]:
    flat = of_class_HW.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate(([0], changes, [flat.size]))
    runs: list[int] = np.diff(edges).tolist()
    return [0, *runs] if flat[0] else runs


def _contours(
    of_class_HW: np.typing.NDArray[np.bool_], min_area_px: float, tolerance_px: float
) -> list[list[tuple[int, int]]]:
    found, _ = cv2.findContours(of_class_HW.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    kept = [
        cv2.approxPolyDP(c, tolerance_px, closed=True)
        for c in found
        if _pixels_within(np.asarray(c, np.int32)) >= min_area_px
    ]
    return [[(int(x), int(y)) for x, y in c.reshape(-1, 2)] for c in kept if len(c) >= 3]


def _pixels_within(contour_N12: np.typing.NDArray[np.int32]) -> float:
    """Pixels on and inside a contour through the outermost pixels' centres, by Pick's theorem."""
    corners = contour_N12.reshape(-1, 2)
    steps = np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1)  # a side is straight or at 45 degrees
    return float(cv2.contourArea(contour_N12) + steps.sum() / 2 + 1)
