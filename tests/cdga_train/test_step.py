"""One iteration's losses: who gets a gradient from which, and at which resolution."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from cdga_train import losses
from cdga_train.config import LossWeights, TrainConfig
from cdga_train.models.discriminator import GroupDiscriminator
from cdga_train.models.grouping import GroupingNetwork
from cdga_train.step import (
    Adaptation,
    CdgaNetworks,
    Grouped,
    TensorBatch,
    adaptation_losses,
    discriminator_loss,
    segmentation_loss,
)

CLASSES, GROUPS, HEIGHT, WIDTH = 4, 3, 64, 128
CONFIG = TrainConfig(num_groups=GROUPS, losses=LossWeights(tau=0.0))


@pytest.fixture
def networks() -> CdgaNetworks:
    torch.manual_seed(0)
    return CdgaNetworks(
        network=nn.Conv2d(3, CLASSES, 8, stride=4, padding=2),
        grouping=GroupingNetwork(CLASSES, GROUPS),
        discriminator=GroupDiscriminator(CLASSES),
    )


@pytest.fixture
def batch() -> TensorBatch:
    generator = torch.Generator().manual_seed(1)
    source, target = (torch.randn(2, 3, HEIGHT, WIDTH, generator=generator) for _ in range(2))
    label = torch.randint(0, CLASSES, (2, HEIGHT, WIDTH), generator=generator)
    return TensorBatch(source_B3HW=source, label_BHW=label, target_B3HW=target)


def adapt(networks: CdgaNetworks, batch: TensorBatch, config: TrainConfig = CONFIG) -> Adaptation:
    networks.discriminator.requires_grad_(requires_grad=False)
    _, logits_BChw = segmentation_loss(networks.network, batch)
    return adaptation_losses(networks, batch, logits_BChw, config)


def backward(loss: Tensor) -> None:
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped


def has_gradient(module: nn.Module) -> bool:
    return any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in module.parameters())


def test_segmentation_loss_upsamples_and_returns_the_heads_logits(networks: CdgaNetworks, batch: TensorBatch) -> None:
    loss, logits_BChw = segmentation_loss(networks.network, batch)
    assert logits_BChw.shape == (2, CLASSES, 16, 32)
    upsampled = nn.Upsample((HEIGHT, WIDTH), mode="bilinear")(logits_BChw)
    torch.testing.assert_close(loss, nn.functional.cross_entropy(upsampled, batch.label_BHW))


@pytest.mark.parametrize(("resolution", "size_hw"), [("input", (HEIGHT, WIDTH)), ("head", (16, 32))])
def test_align_resolution_sets_what_c_and_d_see(
    networks: CdgaNetworks, batch: TensorBatch, resolution: str, size_hw: tuple[int, int]
) -> None:
    config = replace(CONFIG, align_resolution="input" if resolution == "input" else "head")
    found = adapt(networks, batch, config)
    for domain in (found.source, found.target):
        assert domain.prob_BCHW.shape == (2, CLASSES, *size_hw)
        assert domain.group_BKHW.shape == (2, GROUPS, *size_hw)
        assert domain.q_BKC.shape == (2, GROUPS, CLASSES)
        torch.testing.assert_close(domain.prob_BCHW.sum(1), torch.ones(2, *size_hw))
        torch.testing.assert_close(domain.q_BKC.sum((1, 2)), torch.ones(2))


def test_group_normalise_reaches_q(networks: CdgaNetworks, batch: TensorBatch) -> None:
    found = adapt(networks, batch, replace(CONFIG, losses=LossWeights(group_normalise=True)))
    torch.testing.assert_close(found.source.q_BKC.sum(2), torch.ones(2, GROUPS))


def test_losses_are_those_of_the_paper_on_both_domains(networks: CdgaNetworks, batch: TensorBatch) -> None:
    found = adapt(networks, batch)
    source, target = found.source, found.target
    scores = networks.discriminator(target.prob_BCHW, target.group_BKHW, target.q_BKC)
    # -sum_k log D on the target: the mean over images and positions, the sum over groups
    cadv = -torch.nn.functional.logsigmoid(scores).mean((0, 2, 3)).sum()
    torch.testing.assert_close(found.values["cadv"], cadv)
    torch.testing.assert_close(found.values["co"], (source.q_BKC - target.q_BKC).square().sum((1, 2)).mean())
    orth = losses.orthogonality(source.q_BKC) + losses.orthogonality(target.q_BKC)
    torch.testing.assert_close(found.values["orth"], orth)
    peaks = (target.group_BKHW[:, :, None] * target.prob_BCHW[:, None]).flatten(3).amax(3)
    torch.testing.assert_close(found.values["cl"], -peaks.log().sum((1, 2)).mean())  # tau = 0: all are present


def test_g_and_c_learn_from_the_losses_and_d_does_not(networks: CdgaNetworks, batch: TensorBatch) -> None:
    before = {k: v.clone() for k, v in networks.discriminator.state_dict().items()}
    backward(adapt(networks, batch).weighted_sum())
    assert has_gradient(networks.network)
    assert has_gradient(networks.grouping)
    assert all(p.grad is None for p in networks.discriminator.parameters())
    assert all(bool((v == before[k]).all()) for k, v in networks.discriminator.state_dict().items())


@pytest.mark.parametrize("name", ["co", "orth", "cadv", "cl"])
def test_each_loss_alone_reaches_g(networks: CdgaNetworks, batch: TensorBatch, name: str) -> None:
    backward(adapt(networks, batch).values[name])
    assert has_gradient(networks.network)
    assert has_gradient(networks.grouping)
    assert all(p.grad is None for p in networks.discriminator.parameters())


def test_ds_loss_reaches_d_alone(networks: CdgaNetworks, batch: TensorBatch) -> None:
    found = adapt(networks, batch)
    networks.discriminator.requires_grad_(requires_grad=True)
    source, target = found.source.detached(), found.target.detached()
    for kept, detached in zip(vars(found.source).values(), vars(source).values(), strict=True):
        assert kept.requires_grad
        assert not detached.requires_grad
        assert bool((kept == detached).all())
    backward(discriminator_loss(networks.discriminator, source, target))
    assert has_gradient(networks.discriminator)
    assert all(p.grad is None for m in (networks.network, networks.grouping) for p in m.parameters())


def test_a_blind_d_costs_log_2_a_group(networks: CdgaNetworks, batch: TensorBatch) -> None:
    last = networks.discriminator.rest[-1]
    assert isinstance(last, nn.Conv2d)
    nn.init.zeros_(last.weight)
    assert last.bias is not None
    nn.init.zeros_(last.bias)
    found = adapt(networks, batch)
    loss = discriminator_loss(networks.discriminator, found.source.detached(), found.target.detached())
    assert float(loss) == pytest.approx(GROUPS * math.log(2), rel=1e-6)
    assert float(found.values["cadv"].detach()) == pytest.approx(GROUPS * math.log(2), rel=1e-6)


@pytest.mark.parametrize("bias", [3.0, -3.0])
def test_ds_loss_by_hand_for_a_d_of_one_opinion(networks: CdgaNetworks, batch: TensorBatch, bias: float) -> None:
    last = networks.discriminator.rest[-1]
    assert isinstance(last, nn.Conv2d)
    nn.init.zeros_(last.weight)
    assert last.bias is not None
    nn.init.constant_(last.bias, bias)
    found = adapt(networks, batch)
    says_source = -math.log(1 / (1 + math.exp(-bias)))
    says_target = -math.log(1 - 1 / (1 + math.exp(-bias)))
    loss = discriminator_loss(networks.discriminator, found.source.detached(), found.target.detached())
    assert float(loss) == pytest.approx(GROUPS * 0.5 * (says_source + says_target), rel=1e-5)
    assert float(found.values["cadv"].detach()) == pytest.approx(GROUPS * says_source, rel=1e-5)


def scalar_adaptation(weights: dict[str, float]) -> tuple[Adaptation, dict[str, Tensor]]:
    values = {name: torch.tensor(float(i), requires_grad=True) for i, name in enumerate(weights, start=1)}
    group = torch.tensor([0.75, 0.25]).view(1, 2, 1, 1)
    domain = Grouped(prob_BCHW=torch.ones(1, 1, 1, 1), group_BKHW=group, q_BKC=torch.ones(1, 2, 1))
    return Adaptation(values=values, weights=weights, source=domain, target=domain), values


def test_weighted_sum_leaves_out_weight_zero() -> None:
    found, values = scalar_adaptation({"co": 0.5, "orth": 0.0, "cadv": 2.0, "cl": 0.25})
    total = found.weighted_sum()
    assert float(total.detach()) == 0.5 * 1 + 2.0 * 3 + 0.25 * 4
    backward(total)
    assert {name: None if v.grad is None else float(v.grad) for name, v in values.items()} == {
        "co": 0.5,
        "orth": None,
        "cadv": 2.0,
        "cl": 0.25,
    }


def test_a_loss_of_weight_zero_cannot_poison_the_sum() -> None:
    found, values = scalar_adaptation({"co": 1.0, "orth": 0.0})
    found.values["orth"] = values["orth"] * float("nan")
    assert float(found.weighted_sum().detach()) == 1.0


def test_all_weights_zero_is_a_zero_without_gradient() -> None:
    total = scalar_adaptation({"co": 0.0, "orth": 0.0})[0].weighted_sum()
    assert float(total) == 0.0
    assert not total.requires_grad


def test_weights_come_from_the_configuration(networks: CdgaNetworks, batch: TensorBatch) -> None:
    weights = LossWeights(semantic_consistency=1, orthogonality=2, adversarial=3, class_equivalence=4)
    found = adapt(networks, batch, replace(CONFIG, losses=weights))
    assert found.weights == {"co": 1, "orth": 2, "cadv": 3, "cl": 4}


def test_watched_values_are_detached_with_the_entropy_of_the_mean_group() -> None:
    watched = scalar_adaptation({"co": 1.0})[0].watched()
    assert not any(v.requires_grad for v in watched.values())
    assert float(watched["group_entropy"]) == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
