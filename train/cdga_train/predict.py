"""Masks straight from a checkpoint, by torch: for scoring before export, and as the reference of the parity gate."""

from __future__ import annotations

import numpy as np
import torch

from cdga_sdk.opencv import cv2
from cdga_sdk.preprocess import UInt8Array, resize_image, resize_label
from cdga_train.models.fused import FusedNetwork

__all__ = ["predict_frames", "predict_mask"]


def predict_frames(fused: FusedNetwork, frames_NHWC: UInt8Array) -> tuple[UInt8Array, UInt8Array]:
    """Run RGB frames of the network's size: mask and confidence, both (N, H, W) uint8."""
    with torch.inference_mode():
        mask_NHW, conf_NHW = fused(torch.from_numpy(np.ascontiguousarray(frames_NHWC)))
    return mask_NHW.numpy(), conf_NHW.numpy()


def predict_mask(fused: FusedNetwork, image_bgr: UInt8Array) -> UInt8Array:
    """The mask of one (H, W, 3) BGR image at its own size, made exactly as `cdga_sdk.Segmenter` makes it."""
    frame_rgb = cv2.cvtColor(resize_image(image_bgr, fused.preprocess.imgsz_hw), cv2.COLOR_BGR2RGB)
    mask_NHW, _ = predict_frames(fused, np.asarray(frame_rgb, np.uint8)[np.newaxis])
    height, width = image_bgr.shape[:2]
    return resize_label(mask_NHW[0], (height, width))
