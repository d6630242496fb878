"""DeepLab-v2, the network of the paper's tables: a ResNet at output stride 8 and one classifier of four dilations.

Source: Chen et al., "DeepLab: Semantic Image Segmentation with Deep Convolutional Nets, Atrous Convolution, and Fully
Connected CRFs", TPAMI 2018 (arXiv 1606.00915); single level, as in Kim et al. 2021. The ResNet is torchvision's.

Legend: B batch, C channels or classes, H x W image pixels, h x w = H/8 x W/8 positions of features and logits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Final, Literal

import torch
from torch import Tensor, nn

from cdga_sdk.errors import MissingExtraError
from cdga_train.models.base import SegmentationNetwork
from cdga_train.models.published import PublishedNames

try:
    from torchvision.models import ResNet, resnet50, resnet101
except ImportError as error:
    raise MissingExtraError("torchvision", "train") from error

__all__ = ["PUBLISHED", "DeepLabV2"]

Depth = Literal[50, 101]

_DILATIONS: Final = (6, 12, 18, 24)
_FEATURES: Final = 2048
_WEIGHT_STD: Final = 0.01

PUBLISHED: Final[Mapping[Depth, PublishedNames]] = MappingProxyType(
    {
        depth: PublishedNames(
            of=f"ResNet-{depth}",
            fix=f"give a state of torchvision's resnet{depth}, or one of the caffe family under the same names",
            renames=((r"(conv1|bn1|layer[1-4])\.", r"backbone.\1."),),
            left_out=r"fc\.(weight|bias)",
        )
        for depth in (50, 101)
    }
)


class _AsppClassifier(nn.Module):
    """Atrous spatial pyramid pooling: the sum of four 3x3 convolutions of dilation 6, 12, 18 and 24.

    Weights are drawn from normal(0, 0.01), biases are 0.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv2d(_FEATURES, num_classes, 3, padding=dilation, dilation=dilation) for dilation in _DILATIONS
        )
        for name, parameter in self.branches.named_parameters():
            if name.endswith("weight"):
                nn.init.normal_(parameter, std=_WEIGHT_STD)
            else:
                nn.init.zeros_(parameter)

    def forward(self, feature_BChw: Tensor) -> Tensor:
        """Logits (B, num_classes, h, w) from features (B, 2048, h, w)."""
        return torch.stack([branch(feature_BChw) for branch in self.branches]).sum(0)


class DeepLabV2(SegmentationNetwork):
    """DeepLab-v2 with random weights.

    layer3 and layer4 of the ResNet have dilation 2 and 4 in place of their stride, which leaves the features of the
    strided network as they are and computes those between them. Where the stride sat decides what the first block of
    each does, and so which published weights fit. **Names and shapes are the same in both families: weights of the
    one load into the other without a word, and work worse.**

    Unlike DeepLab's own the pooling rounds down, not up, so that H x W pixels give H/8 x W/8 logits, not one more.

    Args:
        num_classes: At least 1.
        depth: Layers of the ResNet: 50, or 101 as in the paper.
        caffe_strides: The stride sits on a block's first convolution (1x1): the original ResNet, the "caffe" family,
            from which DeepLab starts. Otherwise on the second (3x3): torchvision's, "v1.5".
    """

    output_stride: ClassVar[int] = 8
    size_multiple: ClassVar[int] = 8

    def __init__(self, num_classes: int, *, depth: Depth, caffe_strides: bool) -> None:
        build = resnet50 if depth == 50 else resnet101
        resnet = build(weights=None, replace_stride_with_dilation=[False, True, True])
        if caffe_strides:
            _move_strides(resnet)
        layers = OrderedDict((name, layer) for name, layer in resnet.named_children() if name not in {"avgpool", "fc"})
        super().__init__(nn.Sequential(layers), _AsppClassifier(num_classes), num_classes)


def _move_strides(resnet: ResNet) -> None:
    """Turn a dilated ResNet v1.5 into one whose strides sat on the 1x1 convolutions.

    After a strided 1x1 the 3x3 sees the coarser grid, and so has its own stage's dilation; torchvision gives it the
    dilation of the stage before, for its 3x3 sees the finer one.
    """
    first = resnet.layer2[0]
    first.conv1.stride, first.conv2.stride = first.conv2.stride, first.conv1.stride
    for layer in (resnet.layer3, resnet.layer4):
        first, second = layer[0].conv2, layer[1].conv2
        first.dilation, first.padding = second.dilation, second.padding
