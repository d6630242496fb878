"""One forward pass's losses: no backward, no optimiser, no logging.

Axes: B images of a domain, C classes, K groups, H x W the input's pixels, h x w those of the head. The two domains may
have inputs of different sizes: everything that couples them is (B, K, C).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdga_train import losses
from cdga_train.config import TrainConfig
from cdga_train.models.base import SegmentationNetwork
from cdga_train.models.discriminator import GroupDiscriminator, OutputDiscriminator
from cdga_train.models.grouping import GroupingNetwork

__all__ = [
    "Adaptation",
    "Logits",
    "Networks",
    "TensorBatch",
    "adaptation_losses",
    "discriminator_loss",
    "segmentation_loss",
]


@dataclass(frozen=True, kw_only=True)
class TensorBatch:
    """A batch on the device: normalised float32 images and int64 labels.

    Attributes:
        source_B3HW: Source images.
        label_BHW: Their labels, 255 ignored.
        target_B3HW: Target images, of their own size; None where the arm sees none.
        target_label_BHW: Pseudo-labels of the target, 255 ignored; None in round 1.
    """

    source_B3HW: Tensor
    label_BHW: Tensor
    target_B3HW: Tensor | None = None
    target_label_BHW: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Networks:
    """G, and what only training needs: D, and C in the CDGA arm."""

    network: SegmentationNetwork
    grouping: GroupingNetwork | None = None
    discriminator: GroupDiscriminator | OutputDiscriminator | None = None

    def parts(self) -> dict[str, nn.Module]:
        """Those that there are, by the names they have in a checkpoint."""
        named = {"network": self.network, "grouping": self.grouping, "discriminator": self.discriminator}
        return {name: module for name, module in named.items() if module is not None}


@dataclass(frozen=True, kw_only=True)
class Logits:
    """G's output for an input of ``size_hw``."""

    head_BChw: Tensor
    size_hw: tuple[int, int]

    @cached_property
    def upsampled(self) -> Tensor:
        """(B, C, H, W) float32, at the input's size; made once, and only where it is asked for."""
        return F.interpolate(self.head_BChw.float(), size=self.size_hw, mode="bilinear", align_corners=False)

    def probabilities(self, config: TrainConfig) -> Tensor:
        """P: (B, C, H, W), or (B, C, h, w), float32, at the resolution where C and D see it."""
        logits = self.upsampled if config.align_resolution == "input" else self.head_BChw
        return logits.float().softmax(dim=1)


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """The unweighted losses that G and C minimise beside L_seg, and what D gets of each domain.

    Attributes:
        values: Scalars: ``adv`` (baseline); ``co``, ``orth``, ``cadv`` and ``cl`` (CDGA); ``ssl`` in round 2. At an
            adversarial weight of 0 there is no ``adv`` or ``cadv``: D, the most costly part by far, is left alone.
        weights: One weight per loss.
        source_view: The discriminator's arguments for the source domain, with their graph.
        target_view: Those for the target.
        watched: Further values for the log, without a graph.
    """

    values: dict[str, Tensor]
    weights: dict[str, float]
    source_view: tuple[Tensor, ...]
    target_view: tuple[Tensor, ...]
    watched: dict[str, Tensor]

    def weighted_sum(self) -> Tensor:
        """The scalar to add to L_seg. A loss of weight 0 is left out of the graph."""
        terms = [self.weights[name] * value for name, value in self.values.items() if self.weights[name]]
        return torch.stack(terms).sum() if terms else torch.tensor(0.0)

    def logged(self) -> dict[str, Tensor]:
        """Every value for the log, detached."""
        return {name: value.detach() for name, value in {**self.values, **self.watched}.items()}


def segmentation_loss(network: nn.Module, batch: TensorBatch) -> tuple[Tensor, Logits]:
    """L_seg on the source, and the source's logits."""
    logits = _logits(network, batch.source_B3HW)
    return losses.segmentation(logits.upsampled, batch.label_BHW), logits


def adaptation_losses(networks: Networks, batch: TensorBatch, source: Logits, config: TrainConfig) -> Adaptation:
    """The losses beside L_seg, as G and C see them. D must be frozen by the caller.

    The adversarial term is the flipped-label one on the target (as in BDL, Li et al. 2019), or on both domains if the
    configuration says so.
    """
    assert batch.target_B3HW is not None
    target = _logits(networks.network, batch.target_B3HW)
    of_arm = _cdga if config.arm == "cdga" else _baseline
    adaptation = of_arm(networks, source.probabilities(config), target.probabilities(config), config)
    if batch.target_label_BHW is None:
        return adaptation
    loss_ssl = losses.segmentation(target.upsampled, batch.target_label_BHW)
    return replace(
        adaptation,
        values={**adaptation.values, "ssl": loss_ssl},
        weights={**adaptation.weights, "ssl": config.losses.pseudo_label},
    )


def discriminator_loss(
    discriminator: nn.Module, source_view: tuple[Tensor, ...], target_view: tuple[Tensor, ...]
) -> Tensor:
    """What D minimises: its cross-entropy on both domains, half a weight each (sum over K groups).

    Detaches what it is given, so that this sends no gradient to G or C.
    """
    real_BKhw = discriminator(*(tensor.detach() for tensor in source_view))
    fake_BKhw = discriminator(*(tensor.detach() for tensor in target_view))
    return 0.5 * (losses.adversarial(real_BKhw, is_source=True) + losses.adversarial(fake_BKhw, is_source=False))


def _cdga(networks: Networks, source_BCHW: Tensor, target_BCHW: Tensor, config: TrainConfig) -> Adaptation:
    """Kim et al. 2021, eq. 1-5."""
    assert networks.grouping is not None
    weights = config.losses
    group_source_BKHW, group_target_BKHW = networks.grouping(source_BCHW), networks.grouping(target_BCHW)
    q_source_BKC, q_target_BKC = (
        losses.group_distribution(prob_BCHW, group_BKHW, group_normalise=weights.group_normalise)
        for prob_BCHW, group_BKHW in ((source_BCHW, group_source_BKHW), (target_BCHW, group_target_BKHW))
    )
    m_source_BKC = losses.group_peak(source_BCHW, group_source_BKHW)
    m_target_BKC = losses.group_peak(target_BCHW, group_target_BKHW)
    source_view = (source_BCHW, group_source_BKHW, q_source_BKC)
    target_view = (target_BCHW, group_target_BKHW, q_target_BKC)
    return Adaptation(
        values={
            "co": losses.semantic_consistency(q_source_BKC, q_target_BKC),
            "orth": losses.orthogonality(q_source_BKC) + losses.orthogonality(q_target_BKC),
            **_flipped("cadv", networks, source_view, target_view, config),
            "cl": losses.class_equivalence(m_source_BKC, m_target_BKC, weights.tau),
        },
        weights={
            "co": weights.semantic_consistency,
            "orth": weights.orthogonality,
            "cadv": weights.adversarial,
            "cl": weights.class_equivalence,
        },
        source_view=source_view,
        target_view=target_view,
        watched={"group_entropy": _entropy_of_mean(group_target_BKHW.detach())},
    )


def _baseline(networks: Networks, source_BCHW: Tensor, target_BCHW: Tensor, config: TrainConfig) -> Adaptation:
    """One discriminator on P as a whole (Tsai et al. 2018, as in BDL, Li et al. 2019)."""
    source_view, target_view = (source_BCHW,), (target_BCHW,)
    return Adaptation(
        values=_flipped("adv", networks, source_view, target_view, config),
        weights={"adv": config.losses.adversarial},
        source_view=source_view,
        target_view=target_view,
        watched={},
    )


def _flipped(
    name: str, networks: Networks, source_view: tuple[Tensor, ...], target_view: tuple[Tensor, ...], config: TrainConfig
) -> dict[str, Tensor]:
    """The adversarial loss of G and C by its name: D's cross-entropy with the wrong label. Nothing at weight 0."""
    assert networks.discriminator is not None
    if not config.losses.adversarial:
        return {}
    loss = losses.adversarial(networks.discriminator(*target_view), is_source=True)
    if config.losses.adversarial_domains == "both":
        loss = loss + losses.adversarial(networks.discriminator(*source_view), is_source=False)
    return {name: loss}


def _entropy_of_mean(group_BKHW: Tensor) -> Tensor:
    """Entropy of the mean group assignment: log K when all groups are used, 0 when one is."""
    mean_K = group_BKHW.mean(dim=(0, 2, 3))
    return -(mean_K * mean_K.clamp_min(1e-8).log()).sum()


def _logits(network: nn.Module, image_B3HW: Tensor) -> Logits:
    height, width = image_B3HW.shape[2:]
    return Logits(head_BChw=network(image_B3HW), size_hw=(height, width))
