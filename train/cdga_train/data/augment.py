"""Changes of an image that keep its meaning: a random zoom for both domains, light and colour for the source alone.

A procedural world has fewer lights, lenses and sizes of things than the real one; a network that has seen them changed
at random leans on them less (domain randomisation: Tobin et al., IROS 2017, arXiv 1703.06907).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from cdga_sdk.opencv import cv2
from cdga_sdk.preprocess import UInt8Array
from cdga_train.data.base import Sample

__all__ = ["recoloured", "zoomed"]

_SMALLEST: Final = 0.5  # of a side: twice as near
_BLUR_SHARE: Final = 0.3
_NOISE_SHARE: Final = 0.3


def zoomed(sample: Sample, rng: np.random.Generator) -> Sample:
    """A window of 0.5 to 1 of each side, anywhere, enlarged to the whole: bilinear, and nearest for the label."""
    height, width = sample.image_bgr.shape[:2]
    share = float(rng.uniform(_SMALLEST, 1))
    rows, columns = max(1, round(share * height)), max(1, round(share * width))
    top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
    window = np.s_[top : top + rows, left : left + columns]
    image = cv2.resize(sample.image_bgr[window], (width, height), interpolation=cv2.INTER_LINEAR)
    label = None
    if sample.label is not None:
        nearest = cv2.resize(sample.label[window], (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        label = np.asarray(nearest, np.uint8)
    return replace(sample, image_bgr=np.asarray(image, np.uint8), label=label)


def recoloured(image_HWC: UInt8Array, rng: np.random.Generator) -> UInt8Array:
    """Another light and camera: gain, gamma, balance of the channels, saturation, and at times blur and noise.

    Args:
        image_HWC: (H, W, 3) uint8.
        rng: All chance.

    Returns:
        (H, W, 3) uint8.
    """
    gamma, gain = float(np.exp(rng.normal(0, 0.25))), float(np.exp(rng.normal(0, 0.2)))
    balance_3 = np.exp(rng.normal(0, 0.08, 3))
    saturation = float(rng.uniform(0.4, 1.4))
    levels = (np.arange(256) / 255.0) ** gamma * gain
    tables_256x3 = np.clip(levels[:, None] * balance_3 * 255, 0, 255).astype(np.uint8)
    image = np.asarray(cv2.LUT(image_HWC, tables_256x3[:, None, :]), np.uint8)
    grey_HW = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)
    grey_HWC = np.repeat(grey_HW[:, :, None], 3, axis=2)
    image = np.asarray(cv2.addWeighted(image, saturation, grey_HWC, 1 - saturation, 0), np.uint8)
    if rng.random() < _BLUR_SHARE:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.4, 1.2))), np.uint8)
    if rng.random() < _NOISE_SHARE:
        noise_HWC = rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(2, 10))
        image = np.clip(image + noise_HWC, 0, 255).astype(np.uint8)
    return image
