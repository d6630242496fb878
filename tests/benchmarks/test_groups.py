"""Figures of groups at their known values."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.groups import figures


def one_hot(ids: list[int], number: int) -> torch.Tensor:
    """(number, 1, N)."""
    return torch.eye(number)[ids].T[:, None]


def test_groups_that_are_the_classes_tell_them() -> None:
    classes = one_hot([0, 1, 2, 2], 3)
    assert figures(classes, one_hot([1, 0, 3, 3], 4)) == pytest.approx((1, 0, 1))


def test_undecided_groups_tell_nothing() -> None:
    assert figures(one_hot([0, 1, 2, 2], 3), torch.full((4, 1, 4), 0.25)) == pytest.approx((0.25, 1, 0), abs=1e-6)


def test_decided_groups_may_tell_nothing_either() -> None:
    assert figures(one_hot([0, 1, 0, 1], 2), one_hot([0, 0, 1, 1], 2)) == pytest.approx((1, 0, 0), abs=1e-6)


def test_half_of_the_class_by_hand() -> None:
    # Two groups, four equal classes, two in each: a group tells log 2 of log 4.
    assert figures(one_hot([0, 1, 2, 3], 4), one_hot([0, 0, 1, 1], 2))[2] == pytest.approx(math.log(2) / math.log(4))


def test_one_class_has_nothing_to_tell() -> None:
    assert figures(one_hot([1, 1], 3), one_hot([0, 1], 2))[2] == 0
