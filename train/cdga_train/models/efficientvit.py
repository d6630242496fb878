"""EfficientViT-Seg-B0, the real-time network: 0.7 M parameters, logits at stride 8.

Source: Cai et al., "EfficientViT: Multi-Scale Linear Attention for High-Resolution Dense Prediction", ICCV 2023
(arXiv 2205.14756). The backbone is timm's; the head is built from the paper and the shapes of the published weights.

Legend: B batch, C channels, H and W the height and width of the tensor at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final

from torch import Tensor, nn
from torch.nn import functional as F

from cdga_sdk.errors import MissingExtraError
from cdga_train.models.base import SegmentationNetwork
from cdga_train.models.published import PublishedNames

try:
    import timm
    from timm.models.efficientvit_mit import ConvNormAct, LiteMLA, MBConv, ResidualBlock
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


class _SegHead(nn.Module):
    """Projects features at strides 8, 16 and 32 to one width, sums them at stride 8, refines and classifies."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.project = nn.ModuleList(ConvNormAct(c, _HEAD_WIDTH, 1, act_layer=None) for c in reversed(_STAGE_WIDTHS))
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
        merged_BCHW = _upsample(stride32, 4) + _upsample(stride16, 2) + stride8
        logits_BCHW: Tensor = self.classify(self.expand(self.refine(merged_BCHW)))
        return logits_BCHW


def _upsample(x_BCHW: Tensor, factor: int) -> Tensor:
    return F.interpolate(x_BCHW, scale_factor=float(factor), mode="bicubic", align_corners=False)


class EfficientViTSeg(SegmentationNetwork):
    """EfficientViT-Seg-B0 with random weights.

    Args:
        num_classes: At least 1.
    """

    output_stride: ClassVar[int] = 8
    size_multiple: ClassVar[int] = 32

    def __init__(self, num_classes: int = 19) -> None:
        backbone = timm.create_model("efficientvit_b0", pretrained=False, features_only=True, out_indices=(1, 2, 3))
        for module in backbone.modules():
            if isinstance(module, LiteMLA):
                module.eps = ATTENTION_EPS
        super().__init__(backbone, _SegHead(num_classes), num_classes)
