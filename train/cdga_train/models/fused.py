"""The network with everything around it: what is exported, and what checkpoints are scored with.

Axes: N frames, H and W the network's input size, C classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdga_sdk.preprocess import Preprocess

__all__ = ["FusedNetwork", "Normalise", "classified"]


class Normalise(nn.Module):
    """uint8 RGB frames (N, H, W, 3) to float32 (N, 3, H, W), normalised as the network was trained.

    A module, so that mean and deviation are on the device before the first frame: each copy there waits for it.
    """

    mean_1311: Tensor
    std_1311: Tensor

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__()
        for name, values in (("mean_1311", preprocess.mean), ("std_1311", preprocess.std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1) * 255, persistent=False)

    def forward(self, frame_NHWC: Tensor) -> Tensor:
        """Normalise frames."""
        # Cast first: TensorRT rejects a uint8 tensor that goes straight into a transpose.
        image_NCHW = frame_NHWC.to(torch.float32).permute(0, 3, 1, 2)
        return (image_NCHW - self.mean_1311) / self.std_1311


class FusedNetwork(nn.Module):
    """uint8 RGB frame at network size in, uint8 class map and uint8 confidence out.

    Args:
        network: A segmentation network of `cdga_train.models.registry`; put into eval mode.
        preprocess: Size and normalisation.
    """

    def __init__(self, network: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.network = network
        self.normalise = Normalise(preprocess)
        self.preprocess = preprocess
        self.eval()

    def forward(self, frame_NHWC: Tensor) -> tuple[Tensor, Tensor]:
        """Segment frames.

        Args:
            frame_NHWC: (N, H, W, 3) uint8 RGB, H and W the network's size.

        Returns:
            mask (N, H, W) uint8: argmax of the logits upsampled bilinearly to H x W.
            conf (N, H, W) uint8: softmax probability of that class, times 255, rounded.
        """
        return classified(self.network(self.normalise(frame_NHWC)), self.preprocess.imgsz_hw)


def classified(logits_NChw: Tensor, size_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The class and its probability at ``size_hw`` from logits at any size; see `FusedNetwork.forward`."""
    logits_NCHW = F.interpolate(logits_NChw.float(), size=size_hw, mode="bilinear", align_corners=False)
    top_N1HW, mask_N1HW = logits_NCHW.max(dim=1, keepdim=True)
    # The softmax at its own maximum: one exponential per logit and one division per pixel, not per class.
    conf_NHW = 255 / (logits_NCHW - top_N1HW).exp().sum(dim=1)
    return mask_N1HW[:, 0].to(torch.uint8), conf_NHW.round().to(torch.uint8)
