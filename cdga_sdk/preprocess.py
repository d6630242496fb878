"""What happens to an image before the network sees it: one routine and one set of numbers for the whole project.

Training, evaluation, the SDK and the exporter all resize with `resize_image`; the normalisation constants travel in
the checkpoint and end inside the exported graph, whose input is the resized uint8 RGB image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from cdga_sdk.errors import ResourceError
from cdga_sdk.opencv import cv2

__all__ = ["RESIZE_RULE", "Preprocess", "UInt8Array", "resize_image", "resize_label"]

UInt8Array = npt.NDArray[np.uint8]

RESIZE_RULE: Final = "cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)"


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """The network's input: size and normalisation of an RGB image.

    Attributes:
        imgsz_hw: Height and width that the network sees, pixels.
        mean: Per-channel mean of RGB in [0, 1]; by default ImageNet's.
        std: Per-channel standard deviation of RGB in [0, 1]; by default ImageNet's.
    """

    imgsz_hw: tuple[int, int]
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


def resize_image(image_HWC: UInt8Array, size_hw: tuple[int, int]) -> UInt8Array:
    """Bilinear resize of an (H, W, C) or (H, W) uint8 image to ``size_hw``; returned as it is where the size fits.

    Raises:
        ResourceError: The memory does not suffice for an image of that size.
    """
    return _resized(image_HWC, size_hw, cv2.INTER_LINEAR)


def resize_label(label_HW: UInt8Array, size_hw: tuple[int, int]) -> UInt8Array:
    """Nearest-neighbour resize (pixel centres aligned) of an (H, W) uint8 label map to ``size_hw``.

    Raises:
        ResourceError: As `resize_image`.
    """
    return _resized(label_HW, size_hw, cv2.INTER_NEAREST_EXACT)


def _resized(image: UInt8Array, size_hw: tuple[int, int], interpolation: int) -> UInt8Array:
    if image.shape[:2] == size_hw:
        return image
    height, width = size_hw
    try:
        return np.asarray(cv2.resize(image, (width, height), interpolation=interpolation), np.uint8)
    except cv2.error as error:
        if error.code != cv2.Error.StsNoMem:
            raise
        raise ResourceError(f"no memory for an image of {width}x{height}", fix="use a smaller imgsz") from error
