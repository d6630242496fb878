"""From the head's logits to the labels and confidences that a bundle promises, exactly, on the CPU.

The rule (`cdga_sdk.bundle.MASK_RULE`) upsamples every class to every pixel. Nearly all of that work is decided before
it starts: bilinear weights are convex, so between four head pixels of one class no other class can win. Only cells
with corners of different classes are interpolated, and in each only the classes that can win there.

Axes: C classes, h and w the head's size, H and W the size wanted. A cell is the square between four neighbouring head
pixels; the borders are half cells whose corners repeat the last head pixel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from cdga_sdk.errors import ModelError
from cdga_sdk.opencv import cv2
from cdga_sdk.preprocess import UInt8Array

__all__ = ["SAMPLE_EVERY", "Float32Array", "confidence", "labels", "mean_confidence"]

Float32Array = npt.NDArray[np.float32]
_Index = npt.NDArray[np.intp]
_Bools = npt.NDArray[np.bool_]

LARGEST_LOGIT: Final = 1e30  # sums and differences of such logits stay finite
LOWEST_EXPONENT: Final = -80.0  # exp of it is far from float32's denormals
SAMPLE_EVERY: Final = 8
"""Rows and columns from one pixel of a frame's mean confidence to the next."""
BLOCK_PIXELS: Final = 1 << 16  # interpolated at once: some 300 kB, which a core's own cache holds


def labels(logits_Chw: Float32Array, size_hw: tuple[int, int]) -> UInt8Array:
    """The argmax over classes of the logits upsampled bilinearly (half-pixel centres, edges repeated).

    Of equal logits the first class wins. Where the two best differ by no more than float32's rounding, either may.

    Args:
        logits_Chw: (C, h, w) float32, at most 255 classes.
        size_hw: H and W, of any ratio to h and w.

    Returns:
        (H, W) uint8.

    Raises:
        ModelError: A logit is NaN, infinite or beyond 1e30.
    """
    logits_Chw = _checked(logits_Chw)
    grid = _grid(logits_Chw.shape[1:], size_hw)
    winner_4n = _argmax(logits_Chw).ravel()[grid.corner_4n]
    mask_HW = grid.filled(winner_4n[0])
    mixed = np.flatnonzero((winner_4n != winner_4n[0]).any(axis=0))
    for start in range(0, len(mixed), grid.block):
        cells = mixed[start : start + grid.block]
        candidate_Cm = _candidates(logits_Chw, grid.corner_4n.take(cells, axis=1), winner_4n.take(cells, axis=1))
        # Most candidates first, so that the cells which have one more are always a slice.
        order = np.argsort(-candidate_Cm.sum(axis=0), kind="stable")
        inside = _labels_inside(logits_Chw, grid, cells[order], candidate_Cm.take(order, axis=1))
        mask_HW.reshape(-1)[grid.pixels(cells[order])] = inside
    return mask_HW


def confidence(logits_Chw: Float32Array, size_hw: tuple[int, int]) -> UInt8Array:
    """The softmax probability of the class that `labels` gives, of the upsampled logits, times 255, rounded.

    That class has the largest logit, so its probability is the largest and the labels are not needed.

    Args:
        logits_Chw: (C, h, w) float32.
        size_hw: H and W, of any ratio to h and w.

    Returns:
        (H, W) uint8, within 1 of the exactly rounded value.

    Raises:
        ModelError: A logit is NaN, infinite or beyond 1e30.
    """
    logits_Chw = _checked(logits_Chw)
    grid = _grid(logits_Chw.shape[1:], size_hw)
    conf_HW = np.empty(size_hw, np.uint8)
    # Largest logit 0 at every head pixel: the softmax is the same, and no exponential can overflow.
    for row, conf_RP in _bands(logits_Chw - logits_Chw.max(axis=0), grid):
        np.divide(255, conf_RP, out=conf_RP)
        np.rint(conf_RP, out=conf_RP)
        conf_HW[row : row + len(conf_RP)] = conf_RP.astype(np.uint8).take(grid.columns.place, axis=1)
    return conf_HW


def mean_confidence(logits_Chw: Float32Array, size_hw: tuple[int, int]) -> float:
    """The mean of what `confidence` gives, not rounded, over every 8th pixel of every 8th row, 1 / C to 1.

    The first of them is the 5th pixel of the 5th row. For statistics: it costs a small part of what all pixels cost.

    Args:
        logits_Chw: (C, h, w) float32.
        size_hw: H and W, at least 5 each.

    Raises:
        ModelError: A logit is NaN, infinite or beyond 1e30.
    """
    logits_Chw = _checked(logits_Chw)
    (y0, y1, v_Y), (x0, x1, u_X) = (_sampled(h, size) for h, size in zip(logits_Chw.shape[1:], size_hw, strict=True))
    upper_CYw = logits_Chw.take(y0, axis=1)
    row_CYw = upper_CYw + (logits_Chw.take(y1, axis=1) - upper_CYw) * v_Y[:, np.newaxis]
    left_CYX = row_CYw.take(x0, axis=2)
    logits_CYX = left_CYX + (row_CYw.take(x1, axis=2) - left_CYX) * u_X
    sum_YX = np.exp(logits_CYX - logits_CYX.max(axis=0)).sum(axis=0)
    return float(np.reciprocal(sum_YX).mean(dtype=np.float64))


@lru_cache(maxsize=16)
def _sampled(head: int, size: int) -> tuple[_Index, _Index, Float32Array]:
    """For every 8th of ``size`` pixels the head pixels on both sides, and the weight of the second."""
    assert size > SAMPLE_EVERY // 2, size
    position = (np.arange(SAMPLE_EVERY // 2, size, SAMPLE_EVERY) + 0.5) * (head / size) - 0.5
    position = np.clip(position, 0, head - 1)
    low = position.astype(np.intp)
    return low, np.minimum(low + 1, head - 1), (position - low).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """Where the pixels of one axis lie between the head's: n cells hold a pixel, the fullest of them s.

    Attributes:
        low_n: The head pixel below each cell.
        high_n: The head pixel above it.
        count_n: Pixels in each cell.
        pixel_sn: Those pixels; a cell with fewer than s names its last one again.
        weight_sn: Weight of the head pixel above, for each pixel.
        place: (size,) where ``pixel_sn.ravel()`` has each pixel.
    """

    low_n: _Index
    high_n: _Index
    count_n: _Index
    pixel_sn: _Index
    weight_sn: Float32Array
    place: _Index

    @classmethod
    def between(cls, head: int, size: int) -> _Axis:
        """``size`` pixels over ``head`` ones, centres at halves."""
        position = (np.arange(size) + 0.5) * (head / size) - 0.5
        cell_n, first_n, count_n = np.unique(np.floor(position).astype(np.intp), return_index=True, return_counts=True)
        pixel_sn = first_n + np.minimum(np.arange(count_n.max())[:, np.newaxis], count_n - 1)
        place = np.empty(size, np.intp)
        place[pixel_sn] = np.arange(pixel_sn.size).reshape(pixel_sn.shape)
        return cls(
            low_n=np.maximum(cell_n, 0),
            high_n=np.minimum(cell_n + 1, head - 1),
            count_n=count_n,
            pixel_sn=pixel_sn,
            weight_sn=(position[pixel_sn] - cell_n).astype(np.float32),
            place=place,
        )


@dataclass(frozen=True, kw_only=True)
class _Grid:
    """The cells of one pair of sizes, numbered row by row.

    Attributes:
        rows: The vertical axis.
        columns: The horizontal axis.
        corner_4n: Flat head pixel at the corners of each cell: above left, above right, below left, below right.
        step: Head pixels from one row of pixels to the next.
    """

    rows: _Axis
    columns: _Axis
    corner_4n: _Index
    step: float

    @property
    def block(self) -> int:
        """How many cells to interpolate at once."""
        return max(1, BLOCK_PIXELS // (len(self.rows.weight_sn) * len(self.columns.weight_sn)))

    def filled(self, label_n: UInt8Array) -> UInt8Array:
        """(H, W): every cell filled with its label."""
        label = label_n.reshape(len(self.rows.low_n), len(self.columns.low_n))
        # Columns first: rows are then copied whole, several times faster.
        return label.repeat(self.columns.count_n, axis=1).repeat(self.rows.count_n, axis=0)

    def pixels(self, cells: _Index) -> _Index:
        """The flat pixels of m cells, (rows, columns, m)."""
        y, x = np.divmod(cells, len(self.columns.low_n))
        first_sm = self.rows.pixel_sn.take(y, axis=1) * len(self.columns.place)
        return first_sm[:, np.newaxis] + self.columns.pixel_sn.take(x, axis=1)

    def weights(self, cells: _Index) -> tuple[Float32Array, Float32Array]:
        """For the pixels of m cells the weights of the corners below, (rows, 1, m), and right, (columns, m)."""
        y, x = np.divmod(cells, len(self.columns.low_n))
        # take, not brackets: their result lies in memory the other way round, which made everything after it slow.
        return self.rows.weight_sn.take(y, axis=1)[:, np.newaxis], self.columns.weight_sn.take(x, axis=1)


@lru_cache(maxsize=8)
def _grid(head_hw: tuple[int, int], size_hw: tuple[int, int]) -> _Grid:
    rows, columns = (_Axis.between(head, size) for head, size in zip(head_hw, size_hw, strict=True))
    corners = [
        np.add.outer(y_n * head_hw[1], x_n).ravel()
        for y_n in (rows.low_n, rows.high_n)
        for x_n in (columns.low_n, columns.high_n)
    ]
    return _Grid(rows=rows, columns=columns, corner_4n=np.stack(corners), step=head_hw[0] / size_hw[0])


def _checked(logits_Chw: Float32Array) -> Float32Array:
    assert logits_Chw.ndim == 3, logits_Chw.shape
    assert 1 <= len(logits_Chw) <= 255, logits_Chw.shape
    logits_Chw = np.ascontiguousarray(logits_Chw, np.float32)
    lowest, largest = logits_Chw.min(), logits_Chw.max()
    if not (lowest >= -LARGEST_LOGIT and largest <= LARGEST_LOGIT):  # not of NaN either
        raise ModelError(
            f"the network's logits run from {lowest} to {largest}, wanted numbers within {LARGEST_LOGIT:.0e}",
            fix="run it in fp32, or export an older checkpoint",
        )
    return logits_Chw


def _argmax(logits_Chw: Float32Array) -> UInt8Array:
    """The first of the best classes, (h, w). numpy's along the first axis takes three times as long."""
    best_hw, winner_hw = logits_Chw[0].copy(), np.zeros(logits_Chw.shape[1:], np.uint8)
    for label, logit_hw in enumerate(logits_Chw[1:], start=1):
        np.copyto(winner_hw, np.uint8(label), where=logit_hw > best_hw)
        np.maximum(best_hw, logit_hw, out=best_hw)
    return winner_hw


def _candidates(logits_Chw: Float32Array, corner_4m: _Index, winner_4m: UInt8Array) -> _Bools:
    """Which classes can win inside each of m cells, (C, m).

    The mean of the four corners' winners is nowhere above the best logit, and bilinear like every logit. A class below
    that mean at all four corners is below it everywhere between them. The winner of a corner never is.
    """
    logits_Cp = logits_Chw.reshape(len(logits_Chw), -1)
    winner_44m = logits_Cp.take(winner_4m[:, np.newaxis] * np.intp(logits_Cp.shape[1]) + corner_4m)
    # In pairs: so the mean never rounds to above its largest term, and no winner is lost.
    mean_4m = ((winner_44m[0] + winner_44m[1]) + (winner_44m[2] + winner_44m[3])) * np.float32(0.25)
    reaches_C4m: _Bools = logits_Cp.take(corner_4m, axis=1) >= mean_4m
    # Faster than any(axis=1), whose inner loops are four long.
    return reaches_C4m[:, 0] | reaches_C4m[:, 1] | reaches_C4m[:, 2] | reaches_C4m[:, 3]


def _labels_inside(logits_Chw: Float32Array, grid: _Grid, cells: _Index, candidate_Cm: _Bools) -> UInt8Array:
    """The labels of the pixels of m cells, (rows, columns, m); cells with more candidates come first."""
    head = logits_Chw[0].size
    below, right = grid.weights(cells)
    corner_4m = grid.corner_4n.take(cells, axis=1)
    (first, *others) = _by_rank(candidate_Cm)
    best = _interpolated(logits_Chw.take(first * head + corner_4m), below, right)
    label = np.empty(best.shape, np.uint8)
    label[:] = first
    for classes in others:
        part = np.s_[..., : len(classes)]
        logit = _interpolated(logits_Chw.take(classes * head + corner_4m[part]), below[part], right[part])
        # 255 where the class wins. Classes ascend, so a maximum writes it; np.where takes many times as long.
        wins = -(logit > best[part]).view(np.uint8)
        np.maximum(label[part], wins & classes.astype(np.uint8), out=label[part])
        np.maximum(best[part], logit, out=best[part])
    return label


def _by_rank(candidate_Cm: _Bools) -> list[_Index]:
    """The first candidate of each cell, then the second of those that have one, and so on, in order of class."""
    count_m = candidate_Cm.sum(axis=0)
    _, classes = np.nonzero(candidate_Cm.T)
    rank = np.arange(len(classes)) - np.repeat(np.cumsum(count_m) - count_m, count_m)
    return [classes[rank == number] for number in range(count_m.max())]


def _interpolated(corner_4m: Float32Array, below: Float32Array, right: Float32Array) -> Float32Array:
    """Bilinear between the corners of m cells, (rows, columns, m). Cells last: numpy's inner loops are long then."""
    upper = corner_4m[0] + (corner_4m[1] - corner_4m[0]) * right
    lower = corner_4m[2] + (corner_4m[3] - corner_4m[2]) * right
    inside: Float32Array = (lower - upper) * below
    inside += upper
    return inside


def _bands(below_Chw: Float32Array, grid: _Grid) -> Iterator[tuple[int, Float32Array]]:
    """For each row of cells its first row of pixels, and the sum of exp(logit - best logit) in its R rows.

    Args:
        below_Chw: Logits less the best one of their head pixel.
        grid: The cells.

    Yields:
        Sums (R, P), P at the places of the horizontal axis; one buffer, overwritten by the next.
    """
    rows, columns = grid.rows, grid.columns
    exponentials = _by_products if below_Chw.min() >= LOWEST_EXPONENT else _by_exponents
    # Every head row is the lower one of a pair, then the upper one of the next.
    widened = lru_cache(maxsize=2)(lambda y: _widened(below_Chw[:, y], columns))
    sum_RP = np.empty((len(rows.weight_sn), columns.pixel_sn.size), np.float32)
    row = 0
    for low, high, weight_s, count in zip(rows.low_n, rows.high_n, rows.weight_sn.T, rows.count_n, strict=True):
        upper_CP = widened(low)
        for number, exp_CP in enumerate(exponentials(upper_CP, widened(high) - upper_CP, weight_s[:count], grid.step)):
            exp_CP.sum(axis=0, out=sum_RP[number])
            sum_RP[number] /= exp_CP.max(axis=0)
        yield row, sum_RP[:count]
        row += count


def _widened(row_Cw: Float32Array, columns: _Axis) -> Float32Array:
    """One head row at every pixel of the horizontal axis, (C, P)."""
    left_Cn = row_Cw.take(columns.low_n, axis=1)
    row_Csn = (row_Cw.take(columns.high_n, axis=1) - left_Cn)[:, np.newaxis] * columns.weight_sn
    row_Csn += left_Cn[:, np.newaxis]
    return row_Csn.reshape(len(row_Cw), -1)


def _by_products(
    upper_CP: Float32Array, slope_CP: Float32Array, weight_s: Float32Array, step: float
) -> Iterator[Float32Array]:
    """exp of the logits of each row: from one row to the next every one is multiplied by the same number."""
    exp_CP, factor_CP = _exp(upper_CP + slope_CP * weight_s[0]), _exp(slope_CP * np.float32(step))
    yield exp_CP
    for _ in weight_s[1:]:
        exp_CP *= factor_CP
        yield exp_CP


def _by_exponents(
    upper_CP: Float32Array, slope_CP: Float32Array, weight_s: Float32Array, step: float
) -> Iterator[Float32Array]:
    """The same for logits so far apart that float32 lacks the range: less the best logit, one exponential for each."""
    del step
    for weight in weight_s:
        logit_CP = upper_CP + slope_CP * weight
        yield _exp(logit_CP - logit_CP.max(axis=0))


def _exp(exponent_CP: Float32Array) -> Float32Array:
    """OpenCV's, more than twice as fast as numpy's."""
    return np.asarray(cv2.exp(exponent_CP), np.float32)
