"""EfficientViT-Seg-B0, the real-time network: 0.7 M parameters, logits at stride 8.

Source: Cai et al., "EfficientViT: Multi-Scale Linear Attention for High-Resolution Dense Prediction", ICCV 2023
(arXiv 2205.14756). The backbone is timm's; the head is built from the paper and the shapes of the published weights.

Legend: B batch, C channels, H and W the height and width of the tensor at hand.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdga_sdk.errors import InputError, MissingExtraError, ModelError

try:
    import timm
    from timm.models.efficientvit_mit import ConvNormAct, LiteMLA, MBConv, ResidualBlock
except ImportError as error:
    raise MissingExtraError("timm", "train") from error

__all__ = ["ATTENTION_EPS", "EfficientViTSeg", "published_state"]

# Added to the attention's denominator, which is 0 where a pixel's query is silent. The published 1e-15 is dropped by
# torch's dynamo exporter (its optimiser takes an addend below 1e-8 for 0), and the graph then gives 0/0 = NaN on real
# frames. Against 1e-15 this one moved 4 of 9.5 million CamVid labels; the smallest non-zero denominator was 5.5e-5.
ATTENTION_EPS: Final = 1e-6

_STAGE_WIDTHS: Final = (32, 64, 128)  # of B0 at strides 8, 16 and 32
_HEAD_WIDTH: Final = 32
_HEAD_EXPAND: Final = 4
_NAMED: Final = 3  # keys that an error names before it counts the rest

_RENAMES: Final[tuple[tuple[re.Pattern[str], str], ...]] = tuple(
    (re.compile(published), ours)
    for published, ours in (
        (r"^backbone\.input_stem\.op_list\.0\.", "backbone.stem_in_conv."),
        (r"^backbone\.input_stem\.op_list\.1\.", "backbone.stem_res0."),
        (r"^backbone\.stages\.(\d)\.op_list\.", r"backbone.stages_\1.blocks."),
        (r"^head\.input_ops\.([01])\.op_list\.0\.", r"head.project.\1."),
        (r"^head\.input_ops\.2\.", "head.project.2."),
        (r"^head\.middle\.op_list\.0\.", "head.refine."),
        (r"^head\.output_ops\.0\.op_list\.0\.", "head.expand."),
        (r"^head\.output_ops\.0\.op_list\.1\.conv\.", "head.classify."),
    )
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


class EfficientViTSeg(nn.Module):
    """EfficientViT-Seg-B0 with random weights; ``load_state_dict(published_state(...))`` gives it the published ones.

    Attributes:
        output_stride: Image pixels per logit, along each side.
        size_multiple: Both sides of the image must be multiples of it.
    """

    output_stride: ClassVar[int] = 8
    size_multiple: ClassVar[int] = 32

    def __init__(self, num_classes: int = 19) -> None:
        super().__init__()
        self.backbone = timm.create_model(
            "efficientvit_b0", pretrained=False, features_only=True, out_indices=(1, 2, 3)
        )
        for module in self.backbone.modules():
            if isinstance(module, LiteMLA):
                module.eps = ATTENTION_EPS
        self.head = _SegHead(num_classes)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Class scores of a batch of images.

        Args:
            image_BCHW: (B, 3, H, W) float32, RGB in [0, 1] less the ImageNet mean, over the ImageNet deviation;
                H and W multiples of ``size_multiple``.

        Returns:
            (B, num_classes, H / 8, W / 8), logits before the softmax; of the autocast type where autocast is on.

        Raises:
            InputError: A side is not a multiple of ``size_multiple``.
        """
        self._check_size(image_BCHW)
        logits_BCHW: Tensor = self.head(self.backbone(image_BCHW))
        return logits_BCHW

    def _check_size(self, image_BCHW: Tensor) -> None:
        if torch.onnx.is_in_onnx_export():  # a traced size is a tensor, and would be frozen into the graph
            return
        height, width = image_BCHW.shape[-2:]
        if height % self.size_multiple or width % self.size_multiple:
            raise InputError(
                f"an image of {width}x{height} (width x height) does not fit the network",
                fix=f"resize both sides to multiples of {self.size_multiple}",
            )


def published_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published weights of EfficientViT-Seg-B0 (19 Cityscapes classes) under the names used here.

    Args:
        state: The mapping under the key ``state_dict`` of the published file; its tensors are not copied.

    Returns:
        A state for ``EfficientViTSeg(19).load_state_dict``: each published tensor once, each of ours filled.

    Raises:
        ModelError: A tensor is missing, unknown, or of another shape.
    """
    with torch.device("meta"):
        wanted = EfficientViTSeg().state_dict()
    renamed = {_our_name(name) or name: tensor for name, tensor in state.items()}
    problems = [f"'{name}' is missing" for name in wanted if name not in renamed]
    problems += [f"'{name}' is unknown" for name in state if _our_name(name) not in wanted]
    problems += [
        f"'{name}' has shape {tuple(tensor.shape)}, wanted {tuple(wanted[name].shape)}"
        for name, tensor in renamed.items()
        if name in wanted and tensor.shape != wanted[name].shape
    ]
    if problems:
        more = f" and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
        raise ModelError(
            f"these are not the published weights of EfficientViT-Seg-B0: {', '.join(problems[:_NAMED])}{more}",
            fix="give the mapping under 'state_dict' of efficientvit_seg_b0_cityscapes.pt",
        )
    assert len(renamed) == len(state)  # two published names never share one of ours
    return renamed


def _our_name(published: str) -> str | None:
    """The name here of a published tensor; None where no rule knows it."""
    for pattern, ours in _RENAMES:
        name, count = pattern.subn(ours, published)
        if count:
            return name
    return None
