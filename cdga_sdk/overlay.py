"""Class colours over a frame."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from cdga_sdk.labels import CITYSCAPES_PALETTE_RGB
from cdga_sdk.opencv import cv2
from cdga_sdk.preprocess import UInt8Array

__all__ = ["Palette", "color_map_bgr", "draw_overlay"]

Palette = Sequence[tuple[int, int, int]]


@lru_cache(maxsize=8)
def _table_bgr(palette_rgb: tuple[tuple[int, int, int], ...]) -> UInt8Array:
    table = np.zeros((256, 1, 3), np.uint8)
    table[: len(palette_rgb), 0] = np.asarray(palette_rgb, np.uint8)[:, ::-1]
    return table


def color_map_bgr(mask_HW: UInt8Array, palette_rgb: Palette = CITYSCAPES_PALETTE_RGB) -> UInt8Array:
    """Paint an (H, W) uint8 class map as (H, W, 3) uint8 BGR; ids outside the palette (255 too) are black."""
    # applyColorMap is one table look-up per pixel in native code: far cheaper than palette[mask].
    return np.asarray(cv2.applyColorMap(mask_HW, _table_bgr(tuple(palette_rgb))), np.uint8)


def draw_overlay(
    image_bgr: UInt8Array,
    mask_HW: UInt8Array,
    palette_rgb: Palette = CITYSCAPES_PALETTE_RGB,
    *,
    alpha: float = 0.5,
) -> UInt8Array:
    """Blend class colours over a frame of the same height and width.

    Args:
        image_bgr: (H, W, 3) uint8.
        mask_HW: (H, W) uint8 class ids.
        palette_rgb: One colour per class id.
        alpha: Opacity of the colours, 0 to 1.

    Returns:
        A new (H, W, 3) uint8 BGR image.
    """
    assert image_bgr.shape[:2] == mask_HW.shape, (image_bgr.shape, mask_HW.shape)
    colors = color_map_bgr(mask_HW, palette_rgb)
    return np.asarray(cv2.addWeighted(colors, alpha, image_bgr, 1 - alpha, 0.0, dst=colors), np.uint8)
