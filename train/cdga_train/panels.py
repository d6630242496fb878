"""What networks see in an image: classes, confidence, and the groups of the grouping network C.

Axes: C classes, K groups, H x W the network's input size, h x w where C sees the probabilities.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cdga_sdk.errors import ModelError
from cdga_sdk.preprocess import UInt8Array
from cdga_train import losses
from cdga_train.checkpoint import Checkpoint
from cdga_train.data.base import Sample
from cdga_train.models.fused import FusedNetwork
from cdga_train.models.grouping import GroupingNetwork
from cdga_train.predict import predict_head_prob, predict_prob
from cdga_train.state import build_network, load_weights

__all__ = [
    "GroupShare",
    "GroupedNetwork",
    "Groups",
    "Look",
    "fused_network",
    "group_palette_rgb",
    "group_shares",
    "look_at",
]

Float64Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Groups:
    """How C groups one image.

    Attributes:
        map_hw: (h, w) int64: each pixel's most probable group.
        share_K: Share of the pixels in each group of ``map_hw``; sums to 1.
        q_KC: Q of Kim et al. 2021: mean over pixels of group times class probability; sums to 1 over K and C.
    """

    map_hw: IntArray
    share_K: Float64Array
    q_KC: Float64Array


@dataclass(frozen=True, kw_only=True)
class Look:
    """One image as networks see it.

    Attributes:
        sample: The image, its name and, where it has one, its label.
        mask_HW: uint8 train ids at the network's size.
        confidence_HW: uint8, the probability of that class times 255.
        groups: None where there is no grouping network.
    """

    sample: Sample
    mask_HW: UInt8Array
    confidence_HW: UInt8Array
    groups: Groups | None


@dataclass(frozen=True, kw_only=True)
class GroupShare:
    """A group in several images.

    Attributes:
        share: Share of all pixels, 0 to 1.
        top: The classes with the largest part of the group's Q, and that part, 0 to 1; the largest first.
    """

    share: float
    top: tuple[tuple[str, float], ...]


class GroupedNetwork:
    """G and C of one training state, in eval mode: what gives an image its group maps.

    Both must come from the same iterate, for C was trained on the P of its own G: no average of G's. C's BatchNorm uses
    its running statistics, which mix both domains, where a training step uses those of the batch.

    Args:
        checkpoint: A whole training state of the cdga arm.
        device: Where the networks run.

    Raises:
        ModelError: There is no grouping network in it, or its tensors do not fit.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device = _CPU) -> None:
        state = checkpoint.part("grouping")
        if not state:
            raise ModelError(
                f"holds no grouping network (arm {checkpoint.config.arm}, iteration {checkpoint.iteration})",
                fix="name last.safetensors of a run with arm=cdga; candidates keep the segmentation network alone",
            )
        grouping = GroupingNetwork(len(checkpoint.names), checkpoint.config.num_groups)
        load_weights(grouping, state, "the checkpoint's grouping network")
        self.iteration = checkpoint.iteration
        self.names = checkpoint.names
        self.num_groups = grouping.num_groups
        self._fused = fused_network(checkpoint.of_iterate(), device)
        self._grouping = grouping.to(device).eval()
        self._predict = predict_prob if checkpoint.config.align_resolution == "input" else predict_head_prob

    def __call__(self, image_bgr: UInt8Array) -> tuple[Tensor, Tensor]:
        """P, (C, h, w), and the group maps H, (K, h, w), of an (H, W, 3) uint8 BGR image of any size.

        Kim et al. 2021, Fig. 3, shows H of one source and one target image: a group should cover the same classes in
        both. float32 in [0, 1], summing to 1 over C or K, at the resolution where the run aligned.
        """
        with torch.inference_mode():
            prob_Chw = self._predict(self._fused, image_bgr)
            group_1Khw: Tensor = self._grouping(prob_Chw[None])
        return prob_Chw, group_1Khw[0]

    def groups(self, image_bgr: UInt8Array) -> Groups:
        """The group maps of an image, summed up."""
        prob_Chw, group_Khw = self(image_bgr)
        map_hw = group_Khw.argmax(dim=0).cpu().numpy()
        counts_K = np.bincount(map_hw.ravel(), minlength=self.num_groups)
        q_1KC = losses.group_distribution(prob_Chw[None], group_Khw[None])
        return Groups(
            map_hw=map_hw,
            share_K=np.asarray(counts_K / map_hw.size, np.float64),
            q_KC=q_1KC[0].cpu().numpy().astype(np.float64),
        )


def fused_network(checkpoint: Checkpoint, device: torch.device) -> FusedNetwork:
    """G of a checkpoint, ready for images, on ``device``."""
    return FusedNetwork(build_network(checkpoint), checkpoint.preprocess).to(device)


def look_at(sample: Sample, fused: FusedNetwork, grouped: GroupedNetwork | None) -> Look:
    """What ``fused`` predicts for a sample, and how ``grouped`` groups it.

    Raises:
        ModelError: A network gives NaN.
    """
    prob_HW, mask_HW = predict_prob(fused, sample.image_bgr).max(dim=0)
    return Look(
        sample=sample,
        mask_HW=mask_HW.byte().cpu().numpy(),
        confidence_HW=(255 * prob_HW).round().byte().cpu().numpy(),
        groups=None if grouped is None else grouped.groups(sample.image_bgr),
    )


def group_shares(groups: Sequence[Groups], names: Sequence[str], *, num_top: int = 3) -> list[GroupShare]:
    """Each group over several images, an equal weight each: its share of the pixels, and its classes by Q.

    Args:
        groups: At least one, of one network.
        names: Class names, C of them.
        num_top: So many classes at most; those without any part are left out.
    """
    share_K = np.mean([g.share_K for g in groups], axis=0)
    q_KC = np.mean([g.q_KC for g in groups], axis=0)
    part_KC = q_KC / np.maximum(q_KC.sum(axis=1, keepdims=True), 1e-12)
    shares = []
    for share, part_C in zip(share_K, part_KC, strict=True):
        best = np.argsort(-part_C, kind="stable")[:num_top]
        top = tuple((names[c], float(part_C[c])) for c in best if part_C[c] > 0)
        shares.append(GroupShare(share=float(share), top=top))
    return shares


def group_palette_rgb(num_groups: int) -> tuple[tuple[int, int, int], ...]:
    """A colour for each group: hues evenly spread, neighbours light and dark in turn."""
    looks = ((0.55, 0.95), (0.9, 0.7))  # saturation and value
    colours = []
    for k in range(num_groups):
        red, green, blue = colorsys.hsv_to_rgb(k / num_groups, *looks[k % 2])
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    return tuple(colours)
