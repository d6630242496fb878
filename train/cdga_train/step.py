"""One iteration's losses: no backward, no optimiser, no logging.

Axes: B images of a domain, C classes, K groups, H x W the input's pixels, h x w those of the head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdga_train import losses
from cdga_train.config import TrainConfig
from cdga_train.models.discriminator import GroupDiscriminator
from cdga_train.models.grouping import GroupingNetwork

__all__ = [
    "Adaptation",
    "CdgaNetworks",
    "Grouped",
    "TensorBatch",
    "adaptation_losses",
    "discriminator_loss",
    "segmentation_loss",
]


@dataclass(frozen=True, kw_only=True)
class TensorBatch:
    """A batch on the device: normalised float32 images and int64 labels."""

    source_B3HW: Tensor
    label_BHW: Tensor
    target_B3HW: Tensor | None


@dataclass(frozen=True, kw_only=True)
class CdgaNetworks:
    """G, and what only training needs: C and D."""

    network: nn.Module
    grouping: GroupingNetwork
    discriminator: GroupDiscriminator


@dataclass(frozen=True, kw_only=True)
class Grouped:
    """One domain's probabilities P, group maps H and class distributions Q of the groups."""

    prob_BCHW: Tensor
    group_BKHW: Tensor
    q_BKC: Tensor

    def detached(self) -> Grouped:
        """The same values without their graph."""
        return Grouped(
            prob_BCHW=self.prob_BCHW.detach(), group_BKHW=self.group_BKHW.detach(), q_BKC=self.q_BKC.detach()
        )


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """The unweighted losses that G and C minimise beside L_seg, and what they were made of.

    Attributes:
        values: ``co``, ``orth``, ``cadv`` (the flipped-label term on the target) and ``cl``: scalars.
        weights: One weight per loss.
        source: The source domain's groups, with their graph.
        target: The target domain's.
    """

    values: dict[str, Tensor]
    weights: dict[str, float]
    source: Grouped
    target: Grouped

    def weighted_sum(self) -> Tensor:
        """The scalar to add to L_seg. A loss of weight 0 is left out of the graph."""
        terms = [weight * self.values[name] for name, weight in self.weights.items() if weight]
        return torch.stack(terms).sum() if terms else torch.zeros_like(self.values["co"])

    def watched(self) -> dict[str, Tensor]:
        """The losses, and the entropy of the mean group assignment: log K when all groups are used, 0 when one is."""
        mean_K = self.target.group_BKHW.detach().mean(dim=(0, 2, 3))
        entropy = -(mean_K * mean_K.clamp_min(1e-8).log()).sum()
        return {**{k: v.detach() for k, v in self.values.items()}, "group_entropy": entropy}


def segmentation_loss(network: nn.Module, batch: TensorBatch) -> tuple[Tensor, Tensor]:
    """L_seg on the source, and the source's head-resolution logits (B, C, h, w)."""
    logits_BChw = network(batch.source_B3HW)
    return losses.segmentation(_upsampled(logits_BChw, batch.source_B3HW), batch.label_BHW), logits_BChw


def adaptation_losses(
    networks: CdgaNetworks, batch: TensorBatch, source_logits_BChw: Tensor, config: TrainConfig
) -> Adaptation:
    """The losses of Kim et al. 2021, eq. 1-5, as G and C see them.

    The adversarial term is the flipped-label one on the target. D must be frozen by the caller.
    """
    assert batch.target_B3HW is not None
    source = _grouped(networks, source_logits_BChw, batch.source_B3HW, config)
    target = _grouped(networks, networks.network(batch.target_B3HW), batch.target_B3HW, config)
    m_source_BKC = losses.group_peak(source.prob_BCHW, source.group_BKHW)
    m_target_BKC = losses.group_peak(target.prob_BCHW, target.group_BKHW)
    fooled_BKhw = networks.discriminator(target.prob_BCHW, target.group_BKHW, target.q_BKC)
    return Adaptation(
        values={
            "co": losses.semantic_consistency(source.q_BKC, target.q_BKC),
            "orth": losses.orthogonality(source.q_BKC) + losses.orthogonality(target.q_BKC),
            "cadv": losses.adversarial(fooled_BKhw, is_source=True),
            "cl": losses.class_equivalence(m_source_BKC, m_target_BKC, config.losses.tau),
        },
        weights={
            "co": config.losses.semantic_consistency,
            "orth": config.losses.orthogonality,
            "cadv": config.losses.adversarial,
            "cl": config.losses.class_equivalence,
        },
        source=source,
        target=target,
    )


def discriminator_loss(discriminator: GroupDiscriminator, source: Grouped, target: Grouped) -> Tensor:
    """What D minimises: its cross-entropy on both domains, half a weight each (sum over K groups).

    ``source`` and ``target`` must be detached, so that this sends no gradient to G or C.
    """
    real_BKhw = discriminator(source.prob_BCHW, source.group_BKHW, source.q_BKC)
    fake_BKhw = discriminator(target.prob_BCHW, target.group_BKHW, target.q_BKC)
    return 0.5 * (losses.adversarial(real_BKhw, is_source=True) + losses.adversarial(fake_BKhw, is_source=False))


def _grouped(networks: CdgaNetworks, logits_BChw: Tensor, image_B3HW: Tensor, config: TrainConfig) -> Grouped:
    if config.align_resolution == "input":
        logits_BChw = _upsampled(logits_BChw, image_B3HW)
    prob_BCHW = logits_BChw.float().softmax(dim=1)
    group_BKHW = networks.grouping(prob_BCHW)
    q_BKC = losses.group_distribution(prob_BCHW, group_BKHW, group_normalise=config.losses.group_normalise)
    return Grouped(prob_BCHW=prob_BCHW, group_BKHW=group_BKHW, q_BKC=q_BKC)


def _upsampled(logits_BChw: Tensor, image_B3HW: Tensor) -> Tensor:
    return F.interpolate(logits_BChw.float(), size=image_B3HW.shape[2:], mode="bilinear", align_corners=False)
