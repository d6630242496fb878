"""One iteration's losses: who gets a gradient from which, and at which resolution."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from cdga_train import losses
from cdga_train.config import LossWeights, TrainConfig
from cdga_train.models.base import SegmentationNetwork
from cdga_train.models.discriminator import GroupDiscriminator, OutputDiscriminator
from cdga_train.models.grouping import GroupingNetwork
from cdga_train.step import (
    Adaptation,
    Networks,
    TensorBatch,
    adaptation_losses,
    discriminator_loss,
    segmentation_loss,
)

CLASSES, GROUPS, HEIGHT, WIDTH = 4, 3, 64, 128
CONFIG = TrainConfig(num_groups=GROUPS, losses=LossWeights(tau=0.0))
BASELINE = TrainConfig(arm="baseline")


class TwoLayers(SegmentationNetwork):
    output_stride: ClassVar[int] = 4
    size_multiple: ClassVar[int] = 4

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 6, 8, stride=4, padding=2), nn.Conv2d(6, CLASSES, 1), CLASSES)


@pytest.fixture
def networks() -> Networks:
    torch.manual_seed(0)
    return Networks(
        network=TwoLayers(), grouping=GroupingNetwork(CLASSES, GROUPS), discriminator=GroupDiscriminator(CLASSES)
    )


@pytest.fixture
def baseline() -> Networks:
    torch.manual_seed(0)
    return Networks(network=TwoLayers(), discriminator=OutputDiscriminator(CLASSES))


@pytest.fixture
def batch() -> TensorBatch:
    generator = torch.Generator().manual_seed(1)
    source, target = (torch.randn(2, 3, HEIGHT, WIDTH, generator=generator) for _ in range(2))
    label = torch.randint(0, CLASSES, (2, HEIGHT, WIDTH), generator=generator)
    return TensorBatch(source_B3HW=source, label_BHW=label, target_B3HW=target)


def adapt(networks: Networks, batch: TensorBatch, config: TrainConfig = CONFIG) -> Adaptation:
    freeze(networks, is_frozen=True)
    _, logits = segmentation_loss(networks.network, batch)
    return adaptation_losses(networks, batch, logits, config)


def freeze(networks: Networks, *, is_frozen: bool) -> None:
    networks.parts()["discriminator"].requires_grad_(requires_grad=not is_frozen)


def last_layer(networks: Networks) -> nn.Conv2d:
    assert networks.discriminator is not None
    last = networks.discriminator.rest[-1]
    assert isinstance(last, nn.Conv2d)
    return last


def discriminators_loss(networks: Networks, found: Adaptation) -> Tensor:
    assert networks.discriminator is not None
    return discriminator_loss(networks.discriminator, found.source_view, found.target_view)


def backward(loss: Tensor) -> None:
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped


def has_gradient(module: nn.Module) -> bool:
    return any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in module.parameters())


def test_segmentation_loss_upsamples_and_returns_the_heads_logits(networks: Networks, batch: TensorBatch) -> None:
    loss, logits = segmentation_loss(networks.network, batch)
    assert logits.head_BChw.shape == (2, CLASSES, 16, 32)
    upsampled = nn.Upsample((HEIGHT, WIDTH), mode="bilinear")(logits.head_BChw)
    torch.testing.assert_close(logits.upsampled, upsampled)
    torch.testing.assert_close(loss, nn.functional.cross_entropy(upsampled, batch.label_BHW))


@pytest.mark.parametrize(("resolution", "size_hw"), [("input", (HEIGHT, WIDTH)), ("head", (16, 32))])
def test_align_resolution_sets_what_c_and_d_see(
    networks: Networks, batch: TensorBatch, resolution: str, size_hw: tuple[int, int]
) -> None:
    config = replace(CONFIG, align_resolution="input" if resolution == "input" else "head")
    found = adapt(networks, batch, config)
    for prob_BCHW, group_BKHW, q_BKC in (found.source_view, found.target_view):
        assert prob_BCHW.shape == (2, CLASSES, *size_hw)
        assert group_BKHW.shape == (2, GROUPS, *size_hw)
        assert q_BKC.shape == (2, GROUPS, CLASSES)
        torch.testing.assert_close(prob_BCHW.sum(1), torch.ones(2, *size_hw))
        torch.testing.assert_close(group_BKHW.sum(1), torch.ones(2, *size_hw))
        torch.testing.assert_close(q_BKC.sum((1, 2)), torch.ones(2))


def test_group_normalise_reaches_q(networks: Networks, batch: TensorBatch) -> None:
    found = adapt(networks, batch, replace(CONFIG, losses=LossWeights(group_normalise=True)))
    torch.testing.assert_close(found.source_view[2].sum(2), torch.ones(2, GROUPS))


def test_losses_are_those_of_the_paper_on_both_domains(networks: Networks, batch: TensorBatch) -> None:
    found = adapt(networks, batch)
    _, _, q_source_BKC = found.source_view
    prob_BCHW, group_BKHW, q_target_BKC = found.target_view
    scores = networks.parts()["discriminator"](prob_BCHW, group_BKHW, q_target_BKC)
    # -sum_k log D on the target: the mean over images and positions, the sum over groups
    cadv = -torch.nn.functional.logsigmoid(scores).mean((0, 2, 3)).sum()
    torch.testing.assert_close(found.values["cadv"], cadv)
    torch.testing.assert_close(found.values["co"], (q_source_BKC - q_target_BKC).square().sum((1, 2)).mean())
    orth = losses.orthogonality(q_source_BKC) + losses.orthogonality(q_target_BKC)
    torch.testing.assert_close(found.values["orth"], orth)
    peaks = (group_BKHW[:, :, None] * prob_BCHW[:, None]).flatten(3).amax(3)
    torch.testing.assert_close(found.values["cl"], -peaks.log().sum((1, 2)).mean())  # tau = 0: all are present


def test_g_and_c_learn_from_the_losses_and_d_does_not(networks: Networks, batch: TensorBatch) -> None:
    parts = networks.parts()
    before = {k: v.clone() for k, v in parts["discriminator"].state_dict().items()}
    backward(adapt(networks, batch).weighted_sum())
    assert has_gradient(parts["network"])
    assert has_gradient(parts["grouping"])
    assert all(p.grad is None for p in parts["discriminator"].parameters())
    assert all(bool((v == before[k]).all()) for k, v in parts["discriminator"].state_dict().items())


@pytest.mark.parametrize("name", ["co", "orth", "cadv", "cl"])
def test_each_loss_alone_reaches_g(networks: Networks, batch: TensorBatch, name: str) -> None:
    backward(adapt(networks, batch).values[name])
    assert has_gradient(networks.parts()["network"])
    assert has_gradient(networks.parts()["grouping"])
    assert all(p.grad is None for p in networks.parts()["discriminator"].parameters())


def test_ds_loss_reaches_d_alone(networks: Networks, batch: TensorBatch) -> None:
    found = adapt(networks, batch)
    freeze(networks, is_frozen=False)
    assert all(tensor.requires_grad for tensor in (*found.source_view, *found.target_view))
    backward(discriminators_loss(networks, found))
    parts = networks.parts()
    assert has_gradient(parts["discriminator"])
    assert all(p.grad is None for name in ("network", "grouping") for p in parts[name].parameters())


def test_a_blind_d_costs_log_2_a_group(networks: Networks, batch: TensorBatch) -> None:
    last = last_layer(networks)
    nn.init.zeros_(last.weight)
    assert last.bias is not None
    nn.init.zeros_(last.bias)
    found = adapt(networks, batch)
    loss = discriminators_loss(networks, found)
    assert float(loss) == pytest.approx(GROUPS * math.log(2), rel=1e-6)
    assert float(found.values["cadv"].detach()) == pytest.approx(GROUPS * math.log(2), rel=1e-6)


@pytest.mark.parametrize("bias", [3.0, -3.0])
def test_ds_loss_by_hand_for_a_d_of_one_opinion(networks: Networks, batch: TensorBatch, bias: float) -> None:
    last = last_layer(networks)
    nn.init.zeros_(last.weight)
    assert last.bias is not None
    nn.init.constant_(last.bias, bias)
    found = adapt(networks, batch)
    says_source = -math.log(1 / (1 + math.exp(-bias)))
    says_target = -math.log(1 - 1 / (1 + math.exp(-bias)))
    loss = discriminators_loss(networks, found)
    assert float(loss) == pytest.approx(GROUPS * 0.5 * (says_source + says_target), rel=1e-5)
    assert float(found.values["cadv"].detach()) == pytest.approx(GROUPS * says_source, rel=1e-5)


def scalar_adaptation(weights: dict[str, float]) -> tuple[Adaptation, dict[str, Tensor]]:
    values = {name: torch.tensor(float(i), requires_grad=True) for i, name in enumerate(weights, start=1)}
    return Adaptation(values=dict(values), weights=weights, source_view=(), target_view=(), watched={}), values


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


def test_weights_come_from_the_configuration(networks: Networks, batch: TensorBatch) -> None:
    weights = LossWeights(semantic_consistency=1, orthogonality=2, adversarial=3, class_equivalence=4)
    found = adapt(networks, batch, replace(CONFIG, losses=weights))
    assert found.weights == {"co": 1, "orth": 2, "cadv": 3, "cl": 4}


def test_logged_values_are_detached_with_the_entropy_of_the_mean_group(networks: Networks, batch: TensorBatch) -> None:
    found = adapt(networks, batch)
    logged = found.logged()
    assert set(logged) == {"co", "orth", "cadv", "cl", "group_entropy"}
    assert not any(v.requires_grad for v in logged.values())
    mean_K = found.target_view[1].detach().double().mean((0, 2, 3)).tolist()
    assert float(logged["group_entropy"]) == pytest.approx(-sum(p * math.log(p) for p in mean_K), rel=1e-5)
    assert float(logged["group_entropy"]) <= math.log(GROUPS) + 1e-6


def test_parts_are_those_that_an_arm_has(networks: Networks, baseline: Networks) -> None:
    assert set(networks.parts()) == {"network", "grouping", "discriminator"}
    assert set(baseline.parts()) == {"network", "discriminator"}
    assert set(Networks(network=TwoLayers()).parts()) == {"network"}


def test_the_baselines_step_by_hand(baseline: Networks, batch: TensorBatch) -> None:
    found = adapt(baseline, batch, replace(BASELINE, losses=LossWeights(adversarial=0.5)))
    assert (set(found.values), found.weights, found.watched) == ({"adv"}, {"adv": 0.5}, {})
    assert batch.target_B3HW is not None
    logits_BChw = baseline.network(batch.target_B3HW)
    prob_BCHW = nn.functional.interpolate(logits_BChw, (HEIGHT, WIDTH), mode="bilinear").softmax(1)
    (seen_BCHW,) = found.target_view
    torch.testing.assert_close(seen_BCHW, prob_BCHW)
    discriminator = baseline.parts()["discriminator"]
    target_B1hw, source_B1hw = (
        torch.sigmoid(discriminator(view[0])) for view in (found.target_view, found.source_view)
    )
    torch.testing.assert_close(found.values["adv"], -target_B1hw.log().mean())  # "it is a source"
    torch.testing.assert_close(found.weighted_sum(), 0.5 * found.values["adv"])
    by_hand = -0.5 * (source_B1hw.log().mean() + (1 - target_B1hw).log().mean())
    torch.testing.assert_close(discriminators_loss(baseline, found), by_hand)


def test_the_baselines_d_learns_from_its_own_loss_alone(baseline: Networks, batch: TensorBatch) -> None:
    found = adapt(baseline, batch, BASELINE)
    backward(found.weighted_sum())
    assert has_gradient(baseline.network)
    assert all(p.grad is None for p in baseline.parts()["discriminator"].parameters())
    kept = [p.grad.clone() for p in baseline.network.parameters() if p.grad is not None]
    freeze(baseline, is_frozen=False)
    backward(discriminators_loss(baseline, found))
    assert has_gradient(baseline.parts()["discriminator"])
    now = [p.grad for p in baseline.network.parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(kept, now, strict=True))


@pytest.mark.parametrize("arm", ["baseline", "cdga"])
def test_both_domains_may_be_flipped(networks: Networks, baseline: Networks, batch: TensorBatch, arm: str) -> None:
    parts, config, name = (networks, CONFIG, "cadv") if arm == "cdga" else (baseline, BASELINE, "adv")
    target_only = adapt(parts, batch, config).values[name]
    found = adapt(parts, batch, replace(config, losses=LossWeights(tau=0.0, adversarial_domains="both")))
    scores_BKhw = parts.parts()["discriminator"](*found.source_view)
    # -sum_k log(1 - D) on the source: D is to call it a target
    source_term = -torch.log(1 - torch.sigmoid(scores_BKhw)).mean((0, 2, 3)).sum()
    torch.testing.assert_close(found.values[name], target_only + source_term)


@pytest.mark.parametrize("detach_q", [True, False])
def test_detach_q_stops_the_adversarial_gradient_through_q(
    networks: Networks, batch: TensorBatch, detach_q: bool
) -> None:
    parts = replace(networks, discriminator=GroupDiscriminator(CLASSES, detach_q=detach_q))
    found = adapt(parts, batch)
    (gradient,) = torch.autograd.grad(found.values["cadv"], found.target_view[2], allow_unused=True)
    assert (gradient is None) == detach_q
    if gradient is not None:
        assert float(gradient.abs().sum()) > 0


@pytest.mark.parametrize("arm", ["baseline", "cdga"])
def test_pseudo_labels_add_the_targets_cross_entropy(
    networks: Networks, baseline: Networks, batch: TensorBatch, arm: str
) -> None:
    parts, config = (networks, CONFIG) if arm == "cdga" else (baseline, BASELINE)
    plain = adapt(parts, batch, config)
    assert "ssl" not in plain.values
    pseudo_BHW = torch.randint(0, CLASSES, (2, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(2))
    pseudo_BHW[:, 20:] = 255
    labelled = replace(batch, target_label_BHW=pseudo_BHW)
    found = adapt(parts, labelled, replace(config, losses=replace(config.losses, pseudo_label=0.25)))
    assert batch.target_B3HW is not None
    upsampled = nn.Upsample((HEIGHT, WIDTH), mode="bilinear")(parts.network(batch.target_B3HW))[:, :, :20]
    torch.testing.assert_close(found.values["ssl"], nn.functional.cross_entropy(upsampled, pseudo_BHW[:, :20]))
    torch.testing.assert_close(found.weighted_sum(), plain.weighted_sum() + 0.25 * found.values["ssl"])
    ignored = replace(batch, target_label_BHW=torch.full_like(pseudo_BHW, 255))
    assert float(adapt(parts, ignored, config).values["ssl"].detach()) == 0.0


def test_domains_may_be_of_different_sizes(networks: Networks, batch: TensorBatch) -> None:
    assert batch.target_B3HW is not None
    smaller = replace(batch, target_B3HW=batch.target_B3HW[:, :, :48, :80])
    found = adapt(networks, smaller)
    assert found.source_view[0].shape[2:] == (HEIGHT, WIDTH)
    assert found.target_view[0].shape[2:] == (48, 80)
    backward(found.weighted_sum())
    assert has_gradient(networks.network)


def test_upsampling_happens_once(networks: Networks, batch: TensorBatch) -> None:
    _, logits = segmentation_loss(networks.network, batch)
    assert logits.upsampled is logits.upsampled
