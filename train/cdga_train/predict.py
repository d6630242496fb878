"""Masks and probabilities straight from a checkpoint, by torch: for scoring, labelling and the parity gate.

Inputs move to the network's own device. Axes: N frames, C classes, H and W the network's input size, h and w that of
its head.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cdga_sdk.errors import ModelError
from cdga_sdk.opencv import cv2
from cdga_sdk.preprocess import UInt8Array, resize_image, resize_label
from cdga_train.models.fused import FusedNetwork

__all__ = [
    "predict_frames",
    "predict_head_prob",
    "predict_mask",
    "predict_mask_published",
    "predict_mask_resized_by_torch",
    "predict_prob",
    "predictor",
    "upsampled_argmax",
]


def predictor(fused: FusedNetwork, protocol: str) -> Callable[[UInt8Array], UInt8Array]:
    """`predict_mask_published` of a network for the protocol ``published``, else its `predict_mask`."""
    return partial(predict_mask_published if protocol == "published" else predict_mask, fused)


def predict_frames(fused: FusedNetwork, frames_NHWC: UInt8Array) -> tuple[UInt8Array, UInt8Array]:
    """Run RGB frames of the network's size: mask and confidence, both (N, H, W) uint8."""
    with torch.inference_mode():
        mask_NHW, conf_NHW = fused(torch.from_numpy(np.ascontiguousarray(frames_NHWC)).to(_device(fused)))
    return mask_NHW.cpu().numpy(), conf_NHW.cpu().numpy()


def predict_mask(fused: FusedNetwork, image_bgr: UInt8Array) -> UInt8Array:
    """The mask of one (H, W, 3) BGR image at its own size, made exactly as `cdga_sdk.Segmenter` makes it."""
    mask_NHW, _ = predict_frames(fused, _frame_rgb(fused, image_bgr)[np.newaxis])
    height, width = image_bgr.shape[:2]
    return resize_label(mask_NHW[0], (height, width))


def predict_mask_resized_by_torch(fused: FusedNetwork, image_bgr: UInt8Array) -> UInt8Array:
    """The mask at the network's size of one BGR image that torch resized, in floating point and never rounded.

    `predict_mask` resizes with OpenCV to whole numbers, as everything here does; this is the ruler for that.
    """
    image_HWC = torch.from_numpy(np.ascontiguousarray(image_bgr[:, :, ::-1])).to(_device(fused)).float()
    with torch.inference_mode():
        frame_1CHW = F.interpolate(
            image_HWC.permute(2, 0, 1)[None], size=fused.preprocess.imgsz_hw, mode="bilinear", align_corners=False
        )
        mask_1HW, _ = fused(frame_1CHW.permute(0, 2, 3, 1))
    return np.asarray(mask_1HW[0].cpu().numpy(), np.uint8)


def predict_prob(fused: FusedNetwork, image_bgr: UInt8Array) -> Tensor:
    """P of Kim et al. 2021: the softmax of the logits upsampled bilinearly to the network's input size.

    Args:
        fused: The network.
        image_bgr: (any height, any width, 3) uint8 BGR.

    Returns:
        (C, H, W) float32 on the network's device; 0 to 1, summing to 1 over C. 40 MB for 19 classes of 1024x512.

    Raises:
        ModelError: The network gives NaN.
    """
    with torch.inference_mode():
        logits_1CHW = F.interpolate(
            _head_logits(fused, image_bgr), size=fused.preprocess.imgsz_hw, mode="bilinear", align_corners=False
        )
        return _finite_softmax(logits_1CHW)


def predict_head_prob(fused: FusedNetwork, image_bgr: UInt8Array) -> Tensor:
    """The softmax at the head's own resolution: (C, h, w) float32 on the network's device. Else as `predict_prob`."""
    with torch.inference_mode():
        return _finite_softmax(_head_logits(fused, image_bgr))


def predict_mask_published(fused: FusedNetwork, image_bgr: UInt8Array) -> UInt8Array:
    """The mask of one BGR image at its own size by the published protocol: probabilities are upsampled, then argmax.

    `predict_mask` takes the argmax at the network's size and repeats pixels instead, which is what a bundle does.
    The image goes to the network's size as everywhere in this project, bilinearly; the papers use bicubic.

    Source: Li et al. 2019 (BDL); the numbers of Kim et al. 2021, table 1, are stated in it.

    Raises:
        ModelError: The network gives NaN.
    """
    height, width = image_bgr.shape[:2]
    return upsampled_argmax(predict_prob(fused, image_bgr), (height, width)).cpu().numpy()


def upsampled_argmax(prob_CHW: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """The class of the largest probability after bilinear upsampling to ``size_hw``; the first of equal ones.

    Class by class, so that three planes of the full size are held and not all: 25 MB instead of 159 MB for 19 classes
    of 2048x1024.

    Returns:
        ``size_hw`` uint8, on the device of ``prob_CHW``.
    """
    with torch.inference_mode():
        best_HW = torch.full(size_hw, -1.0, device=prob_CHW.device)
        mask_HW = torch.zeros(size_hw, dtype=torch.uint8, device=prob_CHW.device)
        for class_id, prob_HW in enumerate(prob_CHW):
            plane_11HW = F.interpolate(prob_HW[None, None], size=size_hw, mode="bilinear", align_corners=False)
            mask_HW.masked_fill_(plane_11HW[0, 0] > best_HW, class_id)
            torch.maximum(best_HW, plane_11HW[0, 0], out=best_HW)
    return mask_HW


def _device(fused: FusedNetwork) -> torch.device:
    return next((parameter.device for parameter in fused.parameters()), torch.device("cpu"))


def _frame_rgb(fused: FusedNetwork, image_bgr: UInt8Array) -> UInt8Array:
    return np.asarray(cv2.cvtColor(resize_image(image_bgr, fused.preprocess.imgsz_hw), cv2.COLOR_BGR2RGB), np.uint8)


def _head_logits(fused: FusedNetwork, image_bgr: UInt8Array) -> Tensor:
    frame_NHWC = torch.from_numpy(_frame_rgb(fused, image_bgr)[np.newaxis]).to(_device(fused))
    logits_1Chw: Tensor = fused.network(fused.normalise(frame_NHWC))
    return logits_1Chw.float()


def _finite_softmax(logits_1CHW: Tensor) -> Tensor:
    prob_CHW = logits_1CHW.softmax(dim=1)[0]
    if not bool(prob_CHW.sum().isfinite()):
        raise ModelError("the network gives NaN or infinity", fix="use an older checkpoint")
    return prob_CHW
