"""The training step: its variants are what their names say, and the committed figures follow from their samples."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.protocol import paired_ratio
from benchmarks.train_step import config_of, random_batch, step
from cdga_train.state import TrainingState

RESULTS = Path(__file__).parents[2] / "benchmarks/results/train_step.json"
OPTIONS = Namespace(model="efficientvit_b0", source_hw=(64, 96), target_hw=(64, 64), align="input")


@pytest.fixture(scope="module")
def results() -> Any:
    return json.loads(RESULTS.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("variant", "groups", "precision", "is_compiled"),
    [("K1", 1, "fp32", False), ("K8-bf16", 8, "bf16", False), ("K16-bf16-compiled", 16, "bf16", True)],
)
def test_a_variants_name_is_its_configuration(variant: str, groups: int, precision: str, is_compiled: bool) -> None:
    config = config_of(variant, OPTIONS)
    assert (config.num_groups, config.precision, config.compile) == (groups, precision, is_compiled)
    assert (config.source_size, config.imgsz) == ((64, 96), (64, 64))


def test_a_step_trains_and_repeats() -> None:
    state = TrainingState.new(config_of("K2", OPTIONS), torch.device("cpu"))
    before = state.fingerprint()
    for _ in range(2):
        step(state, random_batch((64, 96), (64, 64)))
        assert state.iteration == 0
    assert state.fingerprint() != before
    assert state.is_finite()


def test_committed_ratios_follow_from_the_committed_samples(results: Any) -> None:
    for name, samples in results["times"].items():
        again = paired_ratio(samples["wall_s"], results["times"]["K1"]["wall_s"]).record()
        assert results["of_K1"][name] == pytest.approx(again, rel=1e-3), name
    assert 0.97 <= results["of_K1"]["K1 again"]["median"] <= 1.03
    assert len(results["times"]["K8"]["wall_s"]) >= 9
