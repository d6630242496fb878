"""The benchmark of D: its two variants are one function, and its committed figures follow from their samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.discriminator import CLASSES, Inputs, Settings, forward_backward, peak_of
from benchmarks.protocol import paired_ratio

RESULTS = Path(__file__).parents[2] / "benchmarks/results/discriminator.json"


@pytest.fixture(scope="module")
def results() -> Any:
    return json.loads(RESULTS.read_text(encoding="utf-8"))["folded_against_explicit"]


def test_both_variants_give_the_same_logits_and_gradients() -> None:
    inputs = Inputs.random((64, 32), 3, torch.device("cpu"))
    folded, explicit = (forward_backward(name, inputs) for name in ("folded", "explicit"))
    assert folded[0].shape == (1, 3, 1, 2)
    assert len(folded) == 1 + 2 + 10
    for one, other in zip(folded, explicit, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * float(other.abs().max()))


def test_the_explicit_variant_holds_at_least_the_outer_product_and_its_gradient() -> None:
    settings = Settings(device="cpu", threads=1, rounds=1, warm_up=0, size_wh=(128, 64), num_groups=2)
    assert peak_of("explicit", settings) >= 2 * (2 * CLASSES**2 * 64 * 128 * 4)


def test_committed_ratios_follow_from_the_committed_samples(results: Any) -> None:
    times, peaks = results["times"], results["peak_bytes"]
    for key, numerator, denominator in (
        ("time_ratio", times["explicit"]["wall_s"], times["folded"]["wall_s"]),
        ("cpu_time_ratio", times["explicit"]["cpu_s"], times["folded"]["cpu_s"]),
        ("null_ratio", times["folded again"]["wall_s"], times["folded"]["wall_s"]),
        ("peak_memory_ratio", peaks["explicit"], peaks["folded"]),
    ):
        again = paired_ratio(numerator, denominator).record()
        assert results[key] == pytest.approx(again, rel=1e-3), key


def test_committed_figures_are_valid_and_reach_the_goals(results: Any) -> None:
    assert 0.97 <= results["null_ratio"]["median"] <= 1.03
    assert results["largest_relative_difference"] <= 1e-4
    assert len(results["times"]["folded"]["wall_s"]) >= 9
    assert results["time_ratio"]["low"] >= 3
    assert results["peak_memory_ratio"]["low"] >= 5
