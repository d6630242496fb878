"""The average of the weights: its formula, what a run keeps of it, and what reads it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from cdga_sdk.errors import ModelError, UsageError
from cdga_train.averaging import average_in, newest_share
from cdga_train.checkpoint import load_checkpoint
from cdga_train.config import TrainConfig
from cdga_train.loop import iterate
from cdga_train.panels import GroupedNetwork, fused_network
from cdga_train.predict import predict_prob
from cdga_train.run_layout import LAST, candidate_file
from cdga_train.state import TrainingState, build_network
from tests.cdga_train.test_flags import CPU, SMALL, Blocks, batches_of
from tests.cdga_train.test_loop import FLOOR, fingerprint, folder_in, train

AVERAGED = replace(FLOOR, iters=6, candidates=2, average_power=3.0)


@pytest.mark.parametrize("power", [0.0, 1.0, 3.0])
def test_weights_of_the_iterates_grow_with_their_number(power: float) -> None:
    average, iterate_ = nn.Linear(1, 1), nn.Linear(1, 1)
    values = torch.randn(50, generator=torch.Generator().manual_seed(0)).tolist()
    for t, value in enumerate(values, start=1):
        nn.init.constant_(iterate_.weight, value)
        average_in(average, iterate_, newest_share(t, power))
    expected = sum((t ** (power + 1) - (t - 1) ** (power + 1)) * v for t, v in enumerate(values, start=1))
    assert average.weight.item() == pytest.approx(expected / 50 ** (power + 1), abs=1e-5)
    if power == 0:
        assert average.weight.item() == pytest.approx(sum(values) / len(values), abs=1e-5)


def test_the_mean_age_of_the_iterates_is_what_is_said() -> None:
    iters, power = 2000, 3.0
    kept, shares = 1.0, []
    for t in range(iters, 0, -1):
        shares.append(kept * newest_share(t, power))
        kept *= 1 - newest_share(t, power)
    assert sum(shares) == pytest.approx(1)
    mean_age = sum(share * age for age, share in enumerate(shares))
    assert mean_age / iters == pytest.approx(1 / (power + 2), abs=1e-3)


def test_every_weight_and_statistic_is_averaged_and_training_sees_none_of_it() -> None:
    plain, averaged = TrainingState.new(SMALL, CPU), TrainingState.new(replace(SMALL, average_power=0.0), CPU)
    seen = []
    for i in range(3):
        for state in (plain, averaged):
            iterate(state, batches_of(SMALL)[i])
        seen.append({name: value.clone() for name, value in plain.networks.network.state_dict().items()})
    for name, value in averaged.networks.network.state_dict().items():
        assert torch.equal(value, seen[-1][name]), name
    for name, value in averaged.candidate().part("network").items():
        stacked = torch.stack([state[name] for state in seen])
        expected = stacked.double().mean(0) if value.is_floating_point() else stacked[-1]
        torch.testing.assert_close(value.double(), expected.double(), rtol=1e-4, atol=1e-6, msg=name)


def test_resume_is_bit_for_bit_with_the_average(tmp_path: Path) -> None:
    whole, halves = folder_in(tmp_path, "whole"), folder_in(tmp_path, "halves")
    config = replace(AVERAGED, optim=replace(AVERAGED.optim, poly_iters=6))
    first = train(replace(config, iters=3), halves)
    train(config, halves, resume_from=load_checkpoint(first))
    train(config, whole)
    assert fingerprint(whole / LAST) == fingerprint(halves / LAST)


def test_the_average_is_what_a_run_gives(tmp_path: Path) -> None:
    plain, averaged = (folder_in(tmp_path, name) for name in ("plain", "averaged"))
    train(replace(AVERAGED, average_power=None), plain)
    last = load_checkpoint(train(AVERAGED, averaged))
    candidate = load_checkpoint(candidate_file(averaged, 6))
    given = build_network(last).state_dict()
    for name, value in candidate.part("network").items():
        assert torch.equal(value, given[name]), name
    assert not candidate.part("iterate")
    iterate_ = build_network(last.of_iterate()).state_dict()
    for name, value in load_checkpoint(plain / LAST).of_iterate().part("network").items():
        assert torch.equal(value, iterate_[name]), name
    assert any(not torch.equal(value, iterate_[name]) for name, value in given.items())


def test_groups_are_those_of_the_iterate_that_c_was_trained_with() -> None:
    state, image_bgr = TrainingState.new(replace(SMALL, average_power=0.0), CPU), Blocks(seed=1)[0].image_bgr
    for i in range(2):
        iterate(state, batches_of(SMALL)[i])
    checkpoint = state.checkpoint()
    prob_Chw, _ = GroupedNetwork(checkpoint)(image_bgr)
    of_iterate, of_average = (
        predict_prob(fused_network(one, CPU), image_bgr) for one in (checkpoint.of_iterate(), checkpoint)
    )
    assert torch.equal(prob_Chw, of_iterate)
    assert not torch.equal(prob_Chw, of_average)


def test_whole_weights_that_are_given_stay_a_candidate_as_they_are(tmp_path: Path) -> None:
    first, second = folder_in(tmp_path, "first"), folder_in(tmp_path, "second")
    given = train(AVERAGED, first)
    train(replace(AVERAGED, weights=str(given), iters=2), second)
    kept, expected = load_checkpoint(candidate_file(second, 0)), load_checkpoint(given).part("network")
    for name, value in kept.part("network").items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("before", [None, 3.0])
def test_a_run_goes_on_with_or_without_an_average_as_it_began(before: float | None, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(train(replace(AVERAGED, average_power=before), tmp_path))
    after = replace(AVERAGED, average_power=3.0 if before is None else None)
    with pytest.raises(ModelError, match=r"average of its iterates; resume with the same average_power"):
        TrainingState.resumed(checkpoint, after, CPU)


def test_an_average_that_is_no_number_is_never_saved() -> None:
    state = TrainingState.new(replace(SMALL, average_power=3.0), CPU)
    assert state.is_finite()
    assert state.average is not None
    nn.init.constant_(next(state.average.parameters()), float("nan"))
    assert not state.is_finite()


@pytest.mark.parametrize("power", [-1.0, float("inf"), float("nan")])
def test_other_powers_are_refused(power: float) -> None:
    with pytest.raises(UsageError, match="average_power"):
        TrainConfig(average_power=power)
