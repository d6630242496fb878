"""EfficientViT-Seg-B0, the real-time network: 0.7 M parameters, logits at stride 8.

Source: Cai et al., "EfficientViT: Multi-Scale Linear Attention for High-Resolution Dense Prediction", ICCV 2023
(arXiv 2205.14756). The backbone is timm's; the head is built from the paper and the shapes of the published weights.

Legend: B batch, C channels, H and W the height and width of the tensor at hand; G heads of attention, D channels of
each, T those of query, key and value together, P pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdga_sdk.errors import MissingExtraError
from cdga_train.models.base import SegmentationNetwork
from cdga_train.models.published import PublishedNames

try:
    import timm
    from timm.models.efficientvit_mit import ConvNormAct, EfficientVitBlock, LiteMLA, MBConv, ResidualBlock
except ImportError as error:
    raise MissingExtraError("timm", "train") from error

__all__ = ["ATTENTION_EPS", "PUBLISHED", "EfficientViTSeg"]

# Added to the attention's denominator, which is 0 where a pixel's query is silent. The published 1e-15 is dropped by
# torch's dynamo exporter (its optimiser takes an addend below 1e-8 for 0), and the graph then gives 0/0 = NaN on real
# frames. Against 1e-15 this one moved 4 of 9.5 million CamVid labels; the smallest non-zero denominator was 5.5e-5.
ATTENTION_EPS: Final = 1e-6

_STAGE_WIDTHS: Final = (32, 64, 128)  # of B0 at strides 8, 16 and 32
_HEAD_WIDTH: Final = 32
_HEAD_EXPAND: Final = 4

PUBLISHED: Final = PublishedNames(
    of="EfficientViT-Seg-B0",
    fix="give the mapping under 'state_dict' of efficientvit_seg_b0_cityscapes.pt",
    renames=(
        (r"backbone\.input_stem\.op_list\.0\.", "backbone.stem_in_conv."),
        (r"backbone\.input_stem\.op_list\.1\.", "backbone.stem_res0."),
        (r"backbone\.stages\.(\d)\.op_list\.", r"backbone.stages_\1.blocks."),
        (r"head\.input_ops\.([01])\.op_list\.0\.", r"head.project.\1."),
        (r"head\.input_ops\.2\.", "head.project.2."),
        (r"head\.middle\.op_list\.0\.", "head.refine."),
        (r"head\.output_ops\.0\.op_list\.0\.", "head.expand."),
        (r"head\.output_ops\.0\.op_list\.1\.conv\.", "head.classify."),
    ),
)


class _LinearAttention(nn.Module):
    """Section 3.1 of the paper by timm's layers, with channels before pixels throughout.

    timm computes each pixel's row, q (kᵀ v); this is its transpose, (v kᵀ) q, for which nothing need be transposed. The
    heads of one scale know nothing of the other's, so only what comes out is joined. On CPUs both cost time.

    Args:
        attention: Its layers are taken over, under their names.
    """

    def __init__(self, attention: LiteMLA) -> None:
        super().__init__()
        self.qkv = attention.qkv
        self.aggreg = attention.aggreg
        self.proj = attention.proj
        self.dim: int = attention.dim

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """For every pixel the mean of all values, weighted by how its query meets their keys; (B, C, H, W)."""
        qkv_BCHW = self.qkv(x_BCHW)
        scales = [qkv_BCHW, *(aggregate(qkv_BCHW) for aggregate in self.aggreg)]
        out_BCHW: Tensor = self.proj(torch.cat([self._attend(scale_BCHW) for scale_BCHW in scales], dim=1))
        return out_BCHW

    def _attend(self, qkv_BCHW: Tensor) -> Tensor:
        batch, _, height, width = qkv_BCHW.shape
        qkv_BGTP = qkv_BCHW.reshape(batch, -1, 3 * self.dim, height * width)
        q_BGDP, k_BGDP, v_BGDP = torch.split(qkv_BGTP, self.dim, dim=2)
        with torch.autocast(qkv_BCHW.device.type, enabled=False):  # sums over all pixels pass the largest float16
            mean_BGDP = _weighted_mean(q_BGDP.relu().float(), k_BGDP.relu().float(), v_BGDP.float())
        return mean_BGDP.to(qkv_BCHW.dtype).reshape(batch, -1, height, width)


def _weighted_mean(q_BGDP: Tensor, k_BGDP: Tensor, v_BGDP: Tensor) -> Tensor:
    """sum_j (k_j . q_i) v_j / sum_j (k_j . q_i) for every pixel i of P, of the same shape."""
    # One product for both sums: TensorRT for RTX 1.7 fails, or crashes, on a product of a single row.
    of_values_BGDD, of_ones_BG1D = v_BGDP @ k_BGDP.transpose(-1, -2), k_BGDP.sum(-1).unsqueeze(-2)
    sums_BGDP = torch.cat([of_values_BGDD, of_ones_BG1D], dim=-2) @ q_BGDP
    return sums_BGDP[..., :-1, :] / (sums_BGDP[..., -1:, :] + ATTENTION_EPS)


class _Upsample(nn.Module):
    """Bicubic, in float32: a transposed convolution along each axis, with what bicubic makes of a single one.

    The same sums of products as `F.interpolate`'s, in layers that every runtime has fast kernels for.

    Args:
        channels: Of the input and the output.
        factor: Even.
    """

    response_C1K1: Tensor

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        line_115 = torch.tensor([[[0.0, 0.0, 1.0, 0.0, 0.0]]])
        resized_11K1 = F.interpolate(
            line_115.unsqueeze(-1), scale_factor=[float(factor), 1.0], mode="bicubic", align_corners=False
        )
        reached_11K1 = resized_11K1[:, :, factor // 2 : factor // 2 + 4 * factor]
        self.register_buffer("response_C1K1", reached_11K1.repeat(channels, 1, 1, 1), persistent=False)
        self.channels = channels
        self.factor = factor

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, factor H, factor W) float32."""
        factor, crop = self.factor, 7 * self.factor // 2
        with torch.autocast(x_BCHW.device.type, enabled=False):
            padded_BCHW = _with_border(x_BCHW.float())
            tall_BCHW = F.conv_transpose2d(
                padded_BCHW, self.response_C1K1, stride=(factor, 1), padding=(crop, 0), groups=self.channels
            )
            return F.conv_transpose2d(
                tall_BCHW, self.response_C1K1.mT, stride=(1, factor), padding=(0, crop), groups=self.channels
            )


def _with_border(x_BCHW: Tensor) -> Tensor:
    """The outermost rows and columns twice more on each side: (B, C, H + 4, W + 4)."""
    # F.pad(mode="replicate") does this too; torch.compile of torch 2.11 fails on its gradient in channels_last.
    tall_BCHW = torch.cat([*[x_BCHW[:, :, :1]] * 2, x_BCHW, *[x_BCHW[:, :, -1:]] * 2], dim=2)
    return torch.cat([*[tall_BCHW[..., :1]] * 2, tall_BCHW, *[tall_BCHW[..., -1:]] * 2], dim=3)


class _SegHead(nn.Module):
    """Projects features at strides 8, 16 and 32 to one width, sums them at stride 8, refines and classifies."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.project = nn.ModuleList(ConvNormAct(c, _HEAD_WIDTH, 1, act_layer=None) for c in reversed(_STAGE_WIDTHS))
        self.upsample_4 = _Upsample(_HEAD_WIDTH, 4)
        self.upsample_2 = _Upsample(_HEAD_WIDTH, 2)
        block = MBConv(
            _HEAD_WIDTH, _HEAD_WIDTH, expand_ratio=_HEAD_EXPAND, act_layer=(nn.Hardswish, nn.Hardswish, None)
        )
        self.refine = ResidualBlock(block, nn.Identity())
        self.expand = ConvNormAct(_HEAD_WIDTH, _HEAD_WIDTH * _HEAD_EXPAND, 1, act_layer=nn.Hardswish)
        self.classify = nn.Conv2d(_HEAD_WIDTH * _HEAD_EXPAND, num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Logits (B, num_classes, H, W) from features (B, C, H, W), (B, C, H/2, W/2) and (B, C, H/4, W/4)."""
        stride32, stride16, stride8 = (
            project(x_BCHW) for project, x_BCHW in zip(self.project, reversed(features), strict=True)
        )
        merged_BCHW = self.upsample_4(stride32) + self.upsample_2(stride16) + stride8
        logits_BCHW: Tensor = self.classify(self.expand(self.refine(merged_BCHW)))
        return logits_BCHW


class EfficientViTSeg(SegmentationNetwork):
    """EfficientViT-Seg-B0 with random weights.

    Args:
        num_classes: At least 1.
    """

    output_stride: ClassVar[int] = 8
    size_multiple: ClassVar[int] = 32

    def __init__(self, num_classes: int = 19) -> None:
        backbone = timm.create_model("efficientvit_b0", pretrained=False, features_only=True, out_indices=(1, 2, 3))
        for module in list(backbone.modules()):
            if isinstance(module, EfficientVitBlock):
                attention = module.context_module.main
                assert isinstance(attention, LiteMLA), type(attention)
                module.context_module.main = _LinearAttention(attention)
        super().__init__(backbone, _SegHead(num_classes), num_classes)
