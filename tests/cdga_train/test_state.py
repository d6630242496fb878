"""The training state: schedule by hand, every tensor through a checkpoint, and what does not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from cdga_sdk.errors import ModelError, ResourceError, UsageError
from cdga_train.checkpoint import load_checkpoint, save_checkpoint
from cdga_train.config import OptimConfig, TrainConfig
from cdga_train.state import TrainingState, build_network, choose_device, load_weights

CPU = torch.device("cpu")
SMALL = TrainConfig(imgsz=(64, 64), num_groups=2, iters=100)


def rates(state: TrainingState) -> dict[str, float]:
    state.set_learning_rates()
    return {name: optimiser.param_groups[0]["lr"] for name, optimiser in state.optimisers.items()}


def shaken(state: TrainingState) -> TrainingState:
    """One optimiser step on made-up gradients, and BatchNorm statistics that are not the initial ones."""
    torch.manual_seed(7)
    for module in state.networks.parts().values():
        for parameter in module.parameters():
            parameter.grad = torch.randn_like(parameter)
        for buffer in module.buffers():
            buffer += 3
    for optimiser in state.optimisers.values():
        optimiser.step()
    state.iteration += 1
    return state


def test_poly_schedule_by_hand() -> None:
    state = TrainingState.new(replace(SMALL, optim=OptimConfig(lr=0.1, poly_power=2.0)), CPU)
    for iteration, factor in ((0, 1.0), (10, 0.81), (50, 0.25), (100, 0.0), (150, 0.0)):
        state.iteration = iteration
        expected = {"network": 0.1 * factor, "grouping": 1e-3 * factor, "discriminator": 1e-4 * factor}
        assert rates(state) == pytest.approx(expected, abs=1e-12)


def test_the_papers_schedule_stops_before_its_end() -> None:
    optim = OptimConfig(poly_iters=250_000)
    state = TrainingState.new(replace(SMALL, iters=120_000, optim=optim), CPU)
    state.iteration = 120_000
    assert rates(state)["network"] == pytest.approx(2.5e-4 * 0.52**0.9, rel=1e-12)


def test_optimisers_are_the_papers() -> None:
    optimisers = TrainingState.new(SMALL, CPU).optimisers
    assert {name: type(o).__name__ for name, o in optimisers.items()} == {
        "network": "SGD",
        "grouping": "SGD",
        "discriminator": "Adam",
    }
    assert optimisers["discriminator"].param_groups[0]["betas"] == (0.9, 0.99)
    for name in ("network", "grouping"):
        group = optimisers[name].param_groups[0]
        assert (group["momentum"], group["weight_decay"]) == (0.9, 5e-4)
    only = TrainingState.new(replace(SMALL, arm="source_only", optim=OptimConfig(name="adamw")), CPU).optimisers
    assert {name: type(o).__name__ for name, o in only.items()} == {"network": "AdamW"}


def test_every_parameter_is_in_its_optimiser() -> None:
    state = TrainingState.new(SMALL, CPU)
    assert list(state.networks.parts()) == ["network", "grouping", "discriminator"]
    for name, module in state.networks.parts().items():
        held = {id(p) for group in state.optimisers[name].param_groups for p in group["params"]}
        assert held == {id(p) for p in module.parameters()}


def test_seed_decides_the_start() -> None:
    first, same, other = (TrainingState.new(replace(SMALL, seed=seed), CPU).fingerprint() for seed in (0, 0, 1))
    assert first == same
    assert first != other


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("arm", ["source_only", "cdga"])
def test_resume_loads_every_tensor(tmp_path: Path, arm: str, name: str) -> None:
    optim = OptimConfig(name="sgd" if name == "sgd" else "adamw")
    config = replace(SMALL, arm="cdga" if arm == "cdga" else "source_only", optim=optim)
    state = shaken(TrainingState.new(config, CPU))
    save_checkpoint(tmp_path / "a.safetensors", state.checkpoint())
    # Another seed: nothing may come from the new start.
    resumed = TrainingState.resumed(load_checkpoint(tmp_path / "a.safetensors"), replace(config, seed=9), CPU)
    assert resumed.iteration == 1
    assert resumed.fingerprint() == state.fingerprint()
    assert resumed.fingerprint() != TrainingState.new(config, CPU).fingerprint()
    kept, found = state.checkpoint().tensors, resumed.checkpoint().tensors
    assert kept.keys() == found.keys()
    parts = {"/".join(k.split("/")[: 2 if k.startswith("optim") else 1]) for k in kept}
    extra = {"grouping", "discriminator", "optim/grouping", "optim/discriminator"} if arm == "cdga" else set()
    assert parts == {"network", "optim/network", *extra}


def test_fingerprint_sees_one_bit_of_any_tensor() -> None:
    state = shaken(TrainingState.new(SMALL, CPU))
    before = state.fingerprint()
    assert state.networks.discriminator is not None
    for tensor in (
        state.networks.discriminator.first.bias,
        dict(state.networks.network.named_buffers())["backbone.stem_in_conv.norm.running_mean"],
        next(iter(state.optimisers["discriminator"].state.values()))["exp_avg"],
    ):
        assert tensor is not None
        flat = tensor.detach().view(-1)
        old = flat[0].clone()
        flat[0] = torch.nextafter(old, torch.tensor(9.0))
        assert state.fingerprint() != before
        flat[0] = old
    assert state.fingerprint() == before


def test_is_finite_looks_at_all_that_is_saved() -> None:
    state = shaken(TrainingState.new(SMALL, CPU))
    assert state.is_finite()
    tensors = state.checkpoint().tensors
    for name in (
        "network/head.classify.bias",
        "network/backbone.stem_in_conv.norm.running_var",
        "grouping/layers.0.weight",
        "discriminator/first.weight",
        "optim/network/0/momentum_buffer",
        "optim/discriminator/0/exp_avg_sq",
    ):
        first = tensors[name].detach()
        while first.ndim:  # by views alone: some weights are channels-last
            first = first[0]
        old = first.clone()
        for bad in (float("nan"), float("inf")):
            first.fill_(bad)
            assert not state.is_finite(), name
        first.copy_(old)
    assert state.is_finite()


@pytest.mark.parametrize(("before", "after"), [("sgd", "adamw"), ("adamw", "sgd")])
def test_another_optimiser_is_refused(before: str, after: str) -> None:
    def config(name: str) -> TrainConfig:
        optim = OptimConfig(name="sgd" if name == "sgd" else "adamw")
        return replace(SMALL, arm="source_only", optim=optim)

    checkpoint = shaken(TrainingState.new(config(before), CPU)).checkpoint()
    with pytest.raises(ModelError, match=r"optimiser does not fit; resume with the same optim\.name"):
        TrainingState.resumed(checkpoint, config(after), CPU)


@pytest.mark.parametrize(
    ("change", "message"), [({"num_groups": 3}, "checkpoint's grouping"), ({"arm": "cdga"}, "checkpoint's grouping")]
)
def test_configuration_that_does_not_fit_the_checkpoint(change: dict[str, object], message: str) -> None:
    config = SMALL if "num_groups" in change else replace(SMALL, arm="source_only")
    checkpoint = TrainingState.new(config, CPU).checkpoint()
    with pytest.raises(ModelError, match=f"{message} does not fit"):
        TrainingState.resumed(checkpoint, replace(config, **change), CPU)  # type: ignore[arg-type]  # either change


def test_build_network_is_the_saved_one_in_eval_mode() -> None:
    state = shaken(TrainingState.new(SMALL, CPU))
    network = build_network(state.checkpoint())
    assert not network.training
    for (name, found), kept in zip(
        network.state_dict().items(), state.networks.network.state_dict().values(), strict=True
    ):
        assert bool((found == kept).all()), name


def test_load_weights_is_strict() -> None:
    layer = nn.Linear(2, 1)
    with pytest.raises(ModelError, match=r"x\.pt does not fit"):
        load_weights(layer, {"weight": torch.zeros(1, 2)}, "x.pt")
    with pytest.raises(ModelError, match="does not fit"):
        load_weights(layer, {"weight": torch.zeros(2, 2), "bias": torch.zeros(1)}, "x.pt")


def test_published_weights_are_loaded(city_weights: Path) -> None:
    state = TrainingState.new(replace(SMALL, weights=str(city_weights)), CPU)
    published = torch.load(city_weights, weights_only=True)
    published = published.get("state_dict", published)
    total = sum(float(v.double().sum()) for v in published.values())
    found = state.networks.network.state_dict().values()
    assert sum(float(v.double().sum()) for v in found) == pytest.approx(total, rel=1e-9)


def test_devices() -> None:
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("gpu", "cuda:x", "", "meta", "mps"):
        with pytest.raises(UsageError, match="use auto, cpu, cuda or cuda:N"):
            choose_device(name)


@pytest.mark.parametrize("name", ["cuda:99", "99"])
def test_a_gpu_that_is_not_there(name: str) -> None:
    with pytest.raises(ResourceError, match="cuda:99 was asked for"):
        choose_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_gpu_at_all() -> None:
    with pytest.raises(ResourceError, match="use device=cpu"):
        choose_device("cuda")
