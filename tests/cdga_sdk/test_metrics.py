"""Scores against confusion matrices counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from cdga_sdk.labels import class_set
from cdga_sdk.metrics import ConfusionMatrix, Scores


def row(*ids: int) -> NDArray[np.uint8]:
    return np.array([ids], np.uint8)


def score(mask: NDArray[np.uint8], label: NDArray[np.uint8], classes: str = "19") -> Scores:
    matrix = ConfusionMatrix(class_set(classes))
    matrix.add(mask, label)
    return matrix.scores()


def test_by_hand() -> None:
    # road: TP 2, FN 1 (called car), FP 1 -> 2/4; car: TP 1, FP 1, FN 0 -> 1/2; sky: TP 0, FN 1 -> 0/1
    scores = score(row(0, 0, 13, 13, 0), row(0, 0, 0, 13, 10))
    assert scores.iou["road"] == 50
    assert scores.iou["car"] == 50
    assert scores.iou["sky"] == 0
    assert scores.miou == pytest.approx(100 / 3)
    assert scores.accuracy == 60
    assert scores.frames == 1


def test_perfect() -> None:
    everything = np.arange(19, dtype=np.uint8).reshape(1, 19)
    scores = score(everything, everything)
    assert (scores.miou, scores.accuracy) == (100, 100)
    assert set(scores.iou.values()) == {100}


def test_ignored_label_counts_nowhere() -> None:
    # The car called on an ignored pixel is no false positive.
    scores = score(row(0, 13, 13), row(0, 255, 13))
    assert (scores.iou["road"], scores.iou["car"], scores.miou, scores.accuracy) == (100, 100, 100, 100)


def test_ignored_prediction_is_a_miss_and_no_hit() -> None:
    # road: TP 1, FN 1 -> 1/2; nobody gets a false positive.
    scores = score(row(0, 255, 13), row(0, 0, 13))
    assert (scores.iou["road"], scores.iou["car"]) == (50, 100)
    assert scores.miou == 75
    assert scores.accuracy == pytest.approx(200 / 3)


def test_ids_outside_the_set_are_as_ignored() -> None:
    assert score(row(0, 40, 13), row(0, 0, 77)).iou["road"] == 50


def test_class_that_never_occurs_stays_out_of_the_mean() -> None:
    scores = score(row(0, 0), row(0, 0))
    assert scores.miou == 100
    assert math.isnan(scores.iou["train"])
    # One wrong call for it, and it occurs: IoU 0.
    assert score(row(0, 16), row(0, 0)).iou["train"] == 0


def test_nothing_counted() -> None:
    scores = ConfusionMatrix(class_set("19")).scores()
    assert math.isnan(scores.miou)
    assert math.isnan(scores.accuracy)
    assert scores.frames == 0
    assert math.isnan(score(row(0, 1), row(255, 255)).miou)


@pytest.mark.parametrize(("classes", "miou"), [("19", 200 / 4), ("16", 200 / 3), ("13", 100 / 2)])
def test_subsets_score_less_and_confuse_the_same(classes: str, miou: float) -> None:
    # truck is called car: car has a false positive in every set, truck's own 0 enters only the mean of 19;
    # wall is right: 100 in 19 and 16. road: 100. car: TP 0, FP 1 -> 0.
    scores = score(row(0, 3, 13), row(0, 3, 14), classes)
    assert scores.iou["car"] == 0
    assert scores.iou["road"] == 100
    assert ("truck" in scores.iou) == (classes == "19")
    assert ("wall" in scores.iou) == (classes != "13")
    assert scores.miou == pytest.approx(miou)


def test_accuracy_of_a_subset_is_over_all_labelled_pixels() -> None:
    assert score(row(0, 13), row(0, 14), "13").accuracy == 50


def test_common11_merges_before_counting() -> None:
    # car for truck and wall for building are right there; terrain for road is wrong.
    scores = score(row(13, 3, 9, 0), row(14, 2, 0, 0), "common11")
    assert (scores.iou["vehicle"], scores.iou["building"]) == (100, 100)
    assert (scores.iou["road"], scores.iou["vegetation"]) == (50, 0)
    assert scores.miou == 62.5


def test_frames_add_up_and_are_not_averaged() -> None:
    matrix = ConfusionMatrix(class_set("19"))
    matrix.add(row(0), row(0))
    matrix.add(row(0, 0, 0), row(1, 1, 0))
    scores = matrix.scores()
    assert (scores.iou["road"], scores.iou["sidewalk"], scores.frames) == (50, 0, 2)


def test_agrees_with_set_arithmetic() -> None:
    rng = np.random.default_rng(5)
    label = rng.choice(np.array([*range(19), 255], np.uint8), (40, 60))
    mask = np.where(rng.random((40, 60)) < 0.6, label, rng.choice(np.array([*range(19), 255], np.uint8), (40, 60)))
    scores = score(mask, label)
    valid = label != 255
    for index, value in enumerate(scores.iou.values()):
        both = ((mask == index) & (label == index) & valid).sum()
        either = (((mask == index) | (label == index)) & valid).sum()
        assert value == pytest.approx(100 * both / either)


@pytest.mark.parametrize("classes", ["19", "16", "13", "common11"])
def test_one_matrix_is_read_for_every_class_set(classes: str) -> None:
    rng = np.random.default_rng(7)
    everything = np.array([*range(19), 40, 255], np.uint8)
    label = rng.choice(everything, (40, 60))
    mask = np.where(rng.random((40, 60)) < 0.5, label, rng.choice(everything, (40, 60)))
    matrix = ConfusionMatrix(class_set("19"))
    matrix.add(mask, label)
    assert matrix.scores_over(class_set(classes)) == score(mask, label, classes)
    assert matrix.scores() == score(mask, label)


def test_merged_classes_cannot_be_split_again() -> None:
    matrix = ConfusionMatrix(class_set("common11"))
    matrix.add(row(0, 13), row(0, 14))
    assert matrix.scores_over(class_set("common11")).miou == 100
    with pytest.raises(AssertionError, match="cannot be split"):
        matrix.scores_over(class_set("19"))


def test_sizes_must_fit() -> None:
    with pytest.raises(AssertionError):
        score(row(0, 0), row(0))
