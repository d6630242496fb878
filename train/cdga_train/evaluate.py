"""Scores of anything that maps a frame to a mask, on a labelled data set. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cdga_sdk.labels import ClassSet
from cdga_sdk.metrics import ConfusionMatrix, Scores
from cdga_sdk.preprocess import UInt8Array
from cdga_train.data.base import Dataset

__all__ = ["count", "evaluate"]


def evaluate(
    predict: Callable[[UInt8Array], UInt8Array],
    dataset: Dataset,
    classes: ClassSet,
    *,
    on_frame: Callable[[int], None] = lambda _: None,
) -> Scores:
    """Score masks against labels at the labels' own size, in one confusion matrix.

    Args:
        predict: Maps an (H, W, 3) uint8 BGR image to an (H, W) uint8 mask of train ids.
        dataset: Labelled samples.
        classes: What the score is stated over.
        on_frame: Called with the number of frames done.
    """
    return count(predict, dataset, classes, on_frame=on_frame).scores()


def count(
    predict: Callable[[UInt8Array], UInt8Array],
    dataset: Dataset,
    classes: ClassSet,
    *,
    on_frame: Callable[[int], None] = lambda _: None,
) -> ConfusionMatrix:
    """As `evaluate`, but the counts themselves: those over 19 classes give the scores of every class set."""
    matrix = ConfusionMatrix(classes)
    for image_bgr, label in _pairs(dataset):
        matrix.add(predict(image_bgr), label)
        on_frame(matrix.frames)
    return matrix


def _pairs(dataset: Dataset) -> Iterator[tuple[UInt8Array, UInt8Array]]:
    for index in range(len(dataset)):
        sample = dataset[index]
        assert sample.label is not None, "evaluate needs a labelled data set"
        yield sample.image_bgr, sample.label
