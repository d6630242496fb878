"""Measuring: ratios of known samples, and what makes one worth saying."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from cdga_sdk.measure import Ratio, in_rounds, load, paired_ratio


def test_the_ratio_of_proportional_samples_is_exact() -> None:
    denominator = [1.0, 7.0, 3.0, 0.5, 2.0]
    ratio = paired_ratio([3 * value for value in denominator], denominator)
    assert (ratio.median, ratio.low, ratio.high) == (3, 3, 3)
    assert not ratio.is_null


def test_rounds_are_paired_so_that_a_slow_one_cancels_out() -> None:
    # Unpaired, the medians are 20 and 2; round by round, 2 to 1.
    assert paired_ratio([2.0, 20.0, 40.0], [1.0, 10.0, 20.0]).median == 2


def test_the_interval_is_that_of_the_median_by_hand() -> None:
    # A resample of two rounds is (1, 1), (1, 3), (3, 1) or (3, 3): its median is 1, 2 or 3, 1 and 3 a quarter each.
    assert paired_ratio([1.0, 3.0], [1.0, 1.0]) == Ratio(median=2, low=1, high=3)
    # Half the rounds 1, half 3, one between: few resamples have just that one in the middle, the others 1 or 3.
    wide = paired_ratio([1.0] * 50 + [2.0] + [3.0] * 50, [1.0] * 101)
    assert wide == Ratio(median=2, low=1, high=3)


def test_one_outlier_in_many_rounds_moves_neither_median_nor_interval() -> None:
    ratio = paired_ratio([1.0] * 30 + [100.0], [1.0] * 31)
    assert (ratio.median, ratio.low, ratio.high) == (1, 1, 1)


def test_an_interval_narrows_with_more_rounds() -> None:
    generator = np.random.default_rng(0)
    few, many = (paired_ratio(list(generator.uniform(0.9, 1.1, n)), [1.0] * n) for n in (9, 900))
    assert many.low > few.low
    assert many.high < few.high
    assert many.is_null


@pytest.mark.parametrize(
    ("median", "is_null"), [(0.969, False), (0.97, True), (1.0, True), (1.03, True), (1.04, False)]
)
def test_a_null_pair_may_differ_by_three_percent(median: float, is_null: bool) -> None:
    assert Ratio(median=median, low=0, high=9).is_null is is_null


@pytest.mark.parametrize(("numerator", "denominator"), [([], []), ([1.0], [1.0, 2.0])])
def test_samples_that_do_not_pair_are_a_broken_invariant(numerator: list[float], denominator: list[float]) -> None:
    with pytest.raises(AssertionError):
        paired_ratio(numerator, denominator)


@pytest.mark.parametrize(("low", "high", "is_resolved"), [(1.91, 2.09, True), (1.82, 2.0, True), (1.8, 2.1, False)])
def test_a_ratio_is_resolved_within_five_percent_of_it(low: float, high: float, is_resolved: bool) -> None:
    assert Ratio(median=2, low=low, high=high).is_resolved is is_resolved


def test_what_variants_return_is_kept_by_round_without_the_warm_up() -> None:
    counters = {"a": iter(range(100)), "b": iter(range(100, 200))}
    runs: list[None] = []
    samples = in_rounds(
        {name: partial(next, counter) for name, counter in counters.items()},
        rounds=2,
        warm_up=1,
        on_run=lambda: runs.append(None),
    )
    assert samples == {"a": [1, 2], "b": [101, 102]}
    assert len(runs) == 6


def test_load_has_numbers_where_the_machine_tells_them() -> None:
    assert isinstance(load()["load_1min"], float)
    if Path("/proc/pressure/cpu").is_file():
        assert isinstance(load()["waiting_for_cpu_percent"], float)
    for none in ("/proc/self/mem", "/proc/absent"):  # the first is there and cannot be read
        assert load(pressure=Path(none))["waiting_for_cpu_percent"] is None


def test_a_ratio_has_four_digits_in_json_and_two_decimals_for_the_reader() -> None:
    ratio = Ratio(median=3.14159, low=2.99999, high=12.3456)
    assert ratio.record() == {"median": 3.142, "low": 3.0, "high": 12.35}
    assert str(ratio) == "3.14 [3.00, 12.35]"
