"""Segmentation scores from one confusion matrix. IoU = TP / (TP + FP + FN), Everingham et al. 2010."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cdga_sdk.labels import ClassSet
from cdga_sdk.preprocess import UInt8Array

__all__ = ["ConfusionMatrix", "Scores"]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a confusion matrix says, in percent.

    Attributes:
        miou: Mean IoU over the scored classes that occur in labels or predictions; NaN when there is none.
        accuracy: Share of labelled pixels whose class is right.
        iou: IoU per class name; NaN for a class that occurs nowhere.
        frames: Number of label maps counted.
    """

    miou: float
    accuracy: float
    iou: dict[str, float]
    frames: int


class ConfusionMatrix:
    """Counts predictions against labels over one class set.

    A pixel counts when its label is in the class set. A prediction outside the set (255 included) counts as
    wrong: it is a miss of the labelled class and a hit of none.
    """

    def __init__(self, classes: ClassSet) -> None:
        self.classes = classes
        self.frames = 0
        num_classes = len(classes.names)
        self._table = classes.table
        self._counts: npt.NDArray[np.int64] = np.zeros((num_classes, num_classes + 1), np.int64)

    def add(self, mask_HW: UInt8Array, label_HW: UInt8Array) -> None:
        """Count one frame. Both are (H, W) uint8 train ids of the same size, 255 ignored in the label."""
        assert mask_HW.shape == label_HW.shape, (mask_HW.shape, label_HW.shape)
        rows, columns = self._counts.shape
        label = self._table[label_HW].astype(np.int64)
        predicted = np.minimum(self._table[mask_HW], columns - 1)
        counted = label < rows
        pairs = label[counted] * columns + predicted[counted]
        self._counts += np.bincount(pairs, minlength=rows * columns).reshape(rows, columns)
        self.frames += 1

    def scores(self) -> Scores:
        """The scores of everything counted so far."""
        return self.scores_over(self.classes)

    def scores_over(self, classes: ClassSet) -> Scores:
        """The same counts read for another class set: one pass gives the columns of 19, 16 and 13 classes.

        Equal to counting over ``classes`` from the start.

        Args:
            classes: The matrix's own set, or, where each of its classes is one train id, any set.
        """
        return _scores(self.counts_over(classes), classes, self.frames)

    def counts_over(self, classes: ClassSet) -> npt.NDArray[np.int64]:
        """(R, R + 1) pixels: labels by predictions, the last column for predictions outside ``classes``."""
        if classes.groups == self.classes.groups:
            return self._counts.copy()
        assert all(len(group) == 1 for group in self.classes.groups), f"{self.classes.name} cannot be split again"
        rows = len(classes.names)
        into = np.minimum(classes.table[[group[0] for group in self.classes.groups]], rows).astype(np.int64)
        merged: npt.NDArray[np.int64] = np.zeros((rows + 1, rows + 1), np.int64)
        np.add.at(merged, (into[:, np.newaxis], np.append(into, rows)[np.newaxis]), self._counts)
        return merged[:rows]


def _scores(counts: npt.NDArray[np.int64], classes: ClassSet, frames: int) -> Scores:
    hits = np.diag(counts).astype(np.float64)
    labelled = counts.sum(axis=1)
    predicted = counts.sum(axis=0)[:-1]
    union = labelled + predicted - hits
    iou = np.divide(100 * hits, union, out=np.full_like(hits, np.nan), where=union > 0)
    scored = iou[list(classes.scored)]
    total = int(labelled.sum())
    return Scores(
        miou=float(np.nanmean(scored)) if np.isfinite(scored).any() else float("nan"),
        accuracy=100 * float(hits.sum()) / total if total else float("nan"),
        iou={classes.names[i]: float(iou[i]) for i in classes.scored},
        frames=frames,
    )
