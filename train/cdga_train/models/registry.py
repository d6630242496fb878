"""Segmentation networks by name. Each maps (B, 3, H, W) normalised RGB to (B, C, h, w) logits at its own stride."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

import torch
from torch import Tensor

from cdga_sdk.errors import UsageError, did_you_mean
from cdga_sdk.labels import CITYSCAPES_NAMES
from cdga_train.models import deeplabv2, efficientvit, lite0, lraspp
from cdga_train.models.base import SegmentationNetwork
from cdga_train.models.deeplabv2 import DeepLabV2
from cdga_train.models.efficientvit import EfficientViTSeg
from cdga_train.models.lite0 import Lite0FPN
from cdga_train.models.lraspp import LRASPPMobileNetV3
from cdga_train.models.published import PublishedNames, renamed_state

__all__ = ["NETWORKS", "NetworkSpec", "network_spec"]


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """How a network is built and how weights published elsewhere are renamed onto it.

    Attributes:
        build: Takes the number of classes; random weights, nothing is downloaded.
        published: The names of the published tensors.
        imagenet_file: Finds ImageNet weights in an installed package; None where no package brings them.
        size_multiple: Both sides of the input must be multiples of this.
        output_stride: Image pixels per logit, along each side.
        is_deterministic_on_cuda: Whether torch has a deterministic gradient of every layer there.
    """

    build: Callable[[int], SegmentationNetwork]
    published: PublishedNames
    size_multiple: int
    output_stride: int
    imagenet_file: Callable[[], Path] | None = None
    is_deterministic_on_cuda: bool = True

    def published_state(
        self, state: Mapping[str, Tensor], num_classes: int = len(CITYSCAPES_NAMES)
    ) -> dict[str, Tensor]:
        """A published state under the names of ``build(num_classes)``: all of them, or all those of its backbone.

        Half-precision tensors become float32. What a name does not tell cannot be checked: weights of the caffe family
        fit the v1.5 variant of DeepLab and the reverse, and so do classes of another order or meaning.

        Raises:
            ModelError: A tensor is missing, unknown, of another shape, or not of finite numbers.
        """
        with torch.device("meta"):
            wanted = self.build(num_classes).state_dict()
        return renamed_state(self.published, state, wanted)

    def load_published(
        self, network: SegmentationNetwork, state: Mapping[str, Tensor]
    ) -> Literal["network", "backbone"]:
        """Give ``network``, which this spec built, a published state; see `published_state`.

        Returns:
            What was loaded. After ``"backbone"`` the head has the random weights that it had.

        Raises:
            ModelError: As `published_state`; the network is unchanged.
        """
        renamed = self.published_state(state, network.num_classes)
        missing, unknown = network.load_state_dict(renamed, strict=False)
        assert not unknown, unknown
        assert all(name.startswith("head.") for name in missing), missing
        return "backbone" if missing else "network"


def _deeplab(depth: deeplabv2.Depth, *, caffe_strides: bool) -> NetworkSpec:
    return NetworkSpec(
        build=partial(DeepLabV2, depth=depth, caffe_strides=caffe_strides),
        published=deeplabv2.PUBLISHED[depth],
        size_multiple=DeepLabV2.size_multiple,
        output_stride=DeepLabV2.output_stride,
    )


NETWORKS: Final[Mapping[str, NetworkSpec]] = MappingProxyType(
    {
        "deeplabv2_resnet101": _deeplab(101, caffe_strides=False),
        "deeplabv2_resnet50": _deeplab(50, caffe_strides=False),
        "deeplabv2_resnet101_caffe": _deeplab(101, caffe_strides=True),
        "deeplabv2_resnet50_caffe": _deeplab(50, caffe_strides=True),
        "lraspp_mobilenet_v3": NetworkSpec(
            build=LRASPPMobileNetV3,
            published=lraspp.PUBLISHED,
            size_multiple=LRASPPMobileNetV3.size_multiple,
            output_stride=LRASPPMobileNetV3.output_stride,
        ),
        "lite0_fpn": NetworkSpec(
            build=Lite0FPN,
            published=lite0.PUBLISHED,
            imagenet_file=lite0.imagenet_file,
            size_multiple=Lite0FPN.size_multiple,
            output_stride=Lite0FPN.output_stride,
        ),
        "efficientvit_b0": NetworkSpec(
            build=EfficientViTSeg,
            published=efficientvit.PUBLISHED,
            size_multiple=EfficientViTSeg.size_multiple,
            output_stride=EfficientViTSeg.output_stride,
            is_deterministic_on_cuda=False,
        ),
    }
)


def network_spec(name: str, imgsz_hw: tuple[int, int], *, where: str = "imgsz") -> NetworkSpec:
    """The network called ``name``, checked to take inputs of ``imgsz_hw``, which the key ``where`` has set.

    Raises:
        UsageError: No such network, or a size that it does not take.
    """
    if name not in NETWORKS:
        raise UsageError(f"unknown model '{name}'", fix=did_you_mean(name, NETWORKS))
    spec = NETWORKS[name]
    step = spec.size_multiple
    if any(side % step or side < step for side in imgsz_hw):
        height, width = (max(step, round(side / step) * step) for side in imgsz_hw)
        raise UsageError(
            f"{name} takes sides that are multiples of {step}, got {imgsz_hw[0]},{imgsz_hw[1]}",
            where=where,
            fix=f"use {height},{width} (height,width)",
        )
    return spec
