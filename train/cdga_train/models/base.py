"""What every segmentation network is: a backbone, a head, and logits on a coarser grid than the image's."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from cdga_sdk.errors import InputError

__all__ = ["SegmentationNetwork"]


class SegmentationNetwork(nn.Module):
    """A backbone that makes features of an image, and a head that makes class scores of them.

    Every parameter belongs to one of the two, so that an optimiser can give the head a learning rate of its own.

    Attributes:
        output_stride: Image pixels per logit, along each side.
        size_multiple: Both sides of the image must be multiples of it.
        num_classes: Channels of the logits.
        backbone: Image to features; the head's business alone what they look like.
        head: Features to logits.
    """

    output_stride: ClassVar[int]
    size_multiple: ClassVar[int]

    def __init__(self, backbone: nn.Module, head: nn.Module, num_classes: int) -> None:
        assert num_classes >= 1, num_classes
        super().__init__()
        self.num_classes = num_classes
        self.backbone = backbone
        self.head = head

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Class scores of a batch of images.

        Args:
            image_BCHW: (B, 3, H, W) float32, RGB in [0, 1] less the ImageNet mean, over the ImageNet deviation;
                H and W multiples of ``size_multiple``.

        Returns:
            (B, num_classes, H / output_stride, W / output_stride), logits before the softmax; of the autocast type
            where autocast is on.

        Raises:
            InputError: A side is not a multiple of ``size_multiple``.
        """
        self._check_size(image_BCHW)
        logits_BChw: Tensor = self.head(self.backbone(image_BCHW))
        return logits_BChw

    def _check_size(self, image_BCHW: Tensor) -> None:
        if torch.onnx.is_in_onnx_export():  # a traced size is a tensor, and would be frozen into the graph
            return
        height, width = image_BCHW.shape[-2:]
        if any(side % self.size_multiple or side < self.size_multiple for side in (height, width)):
            raise InputError(
                f"an image of {width}x{height} (width x height) does not fit the network",
                fix=f"resize both sides to multiples of {self.size_multiple}",
            )
