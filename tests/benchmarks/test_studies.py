"""What the page of results says of a study follows from its runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.markdown import results
from benchmarks.studies import differences, interval, scores, standard_error


@pytest.fixture
def study() -> Any:
    return results("camvid_day_dusk_short")


def test_scores_are_by_seed_and_way(study: Any) -> None:
    runs = {(run["arm"], run["seed"]): run for run in study["runs"]}
    assert scores(study, "cdga", "last") == {seed: runs["cdga", seed]["last"] for seed in (0, 1)}
    assert scores(study, "cdga", "label-free") != scores(study, "cdga", "oracle")
    assert scores(study, "absent", "last") == {}


def test_differences_are_taken_seed_by_seed(study: Any) -> None:
    own, other = scores(study, "cdga", "last"), scores(study, "baseline", "last")
    assert differences(study, "cdga", "baseline", "last") == [own[seed] - other[seed] for seed in (0, 1)]
    study["runs"] = [run for run in study["runs"] if (run["arm"], run["seed"]) != ("cdga", 0)]
    assert differences(study, "cdga", "baseline", "last") == [own[1] - other[1]]


def test_the_interval_is_students() -> None:
    low, high = interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5))


def test_the_standard_error_is_of_both_arms() -> None:
    assert standard_error([1.0, 3.0], [10.0, 10.0]) == pytest.approx(1.0)
    assert standard_error([1.0, 3.0], [4.0, 8.0]) == pytest.approx(np.sqrt(1 + 4))
