"""Steadier masks of a video: class probabilities averaged over time, each carried along to where it has moved.

A network judges every frame anew, so that masks flicker where it is unsure. docs/decisions/0017-smoothing.md

Axes: C classes, h and w the head's size, G and K the sides of the small grey picture that motion is found in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from cdga_sdk import tail
from cdga_sdk.errors import UsageError
from cdga_sdk.opencv import cv2
from cdga_sdk.prediction import FromLogits, Prediction
from cdga_sdk.preprocess import UInt8Array, resize_image
from cdga_sdk.tail import Float32Array

__all__ = ["Smoother", "check_share"]

GREY_PER_HEAD: Final = 4  # sides; the flow itself is found at half of them
SMALLEST_GREY: Final = 16  # the flow's patches have 8 pixels
SAME_SCENE: Final = 0.8
"""Least correlation of the picture before, carried along, with the present one."""
DOUBT: Final = 0.6
"""Standard deviations that a place may differ from what was carried there until that counts for 1 / e of its share."""
LEAST: Final = 1e-34  # its logarithm is above -80, which `cdga_sdk.tail` takes its faster way for

Number = TypeVar("Number", np.uint8, np.float32)


def check_share(share: float | None) -> None:
    """Refuse a share that is none.

    Raises:
        UsageError: Not above 0 and up to 1; None passes.
    """
    if share is not None and not 0.0 < share <= 1.0:
        raise UsageError(
            f"smooth is {share}, wanted above 0 and up to 1", fix="0.5 is a good start; leave it out for none"
        )


@dataclass(frozen=True, eq=False)
class _Before:
    """What is kept of the frame before.

    Attributes:
        grey_GK: Its picture.
        mean_Chw: The running mean of class probabilities.
    """

    grey_GK: UInt8Array
    mean_Chw: Float32Array


class Smoother:
    """The running mean of one stream's class probabilities, ``share * now + (1 - share) * before``.

    Optical flow carries what was before along. Where the picture shows that it does not belong there, it counts for
    less, and after a cut not at all. Holds one frame; frames come in order, from one thread at a time.

    Args:
        share: Of the present frame, above 0 and up to 1, which smooths nothing.

    Raises:
        UsageError: ``share`` is out of range.
    """

    def __init__(self, share: float) -> None:
        check_share(share)
        self.share = share
        self._before: _Before | None = None
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        self._flow.setFinestScale(1)

    def smoothed(self, image_bgr: UInt8Array, prediction: Prediction) -> FromLogits:
        """The prediction of the stream's next frame, averaged with those before it.

        Args:
            image_bgr: The frame, (H, W, 3) uint8 of any size; the network's own saves resizing.
            prediction: Of this one frame; it is not changed.

        Returns:
            Labels and confidence by the bundle's rule from the logarithm of the mean, at the head's size.

        Raises:
            UsageError: The runtime gave labels and no logits.
        """
        if not isinstance(prediction, FromLogits):
            raise UsageError("smoothing needs a network's logits, got labels", fix="use the backend openvino on a CPU")
        assert len(prediction.mask_NHW) == 1, prediction.mask_NHW.shape
        now_Chw, size_hw = _softmax(prediction.logits_NChw[0]), prediction.mask_NHW.shape[1:]
        grey_GK = _grey(image_bgr, now_Chw.shape[1:], size_hw)
        carried = None if self._before is None else self._carried(self._before, grey_GK)
        if carried is None:
            self._before = _Before(grey_GK, now_Chw)
            return prediction
        before_Chw, trust_hw = carried
        mean_Chw = now_Chw + (before_Chw - now_Chw) * (np.float32(1 - self.share) * trust_hw)
        self._before = _Before(grey_GK, mean_Chw)
        logits_Chw = np.log(np.maximum(mean_Chw, np.float32(LEAST)))
        return FromLogits(tail.labels(logits_Chw, size_hw)[np.newaxis], logits_Chw[np.newaxis])

    def _carried(self, before: _Before, grey_GK: UInt8Array) -> tuple[Float32Array, Float32Array] | None:
        """What was before at its present place, (C, h, w), and how far to trust it, (h, w) 0 to 1; None after a cut."""
        still_GK2 = np.zeros((*grey_GK.shape, 2), np.float32)
        flow_GK2 = np.asarray(self._flow.calc(grey_GK, before.grey_GK, still_GK2), np.float32)
        now_GK, then_GK = _standard(grey_GK), _standard(_moved(before.grey_GK[np.newaxis], flow_GK2)[0])
        if not float((now_GK * then_GK).mean()) >= SAME_SCENE:
            return None
        height, width = before.mean_Chw.shape[1:]
        reduced = (width, height)
        per_pixel = np.array([width / grey_GK.shape[1], height / grey_GK.shape[0]], np.float32)
        flow_hw2 = np.asarray(cv2.resize(flow_GK2, reduced, interpolation=cv2.INTER_AREA), np.float32) * per_pixel
        doubt_hw = cv2.resize(np.abs(now_GK - then_GK), reduced, interpolation=cv2.INTER_AREA) / np.float32(DOUBT)
        before_Chw = np.maximum(_moved(before.mean_Chw, flow_hw2), 0)  # cubic weights are negative here and there
        return before_Chw / before_Chw.sum(axis=0), np.asarray(np.exp(-doubt_hw * doubt_hw), np.float32)


def _grey(image_bgr: UInt8Array, head_hw: tuple[int, ...], size_hw: tuple[int, ...]) -> UInt8Array:
    """The small grey picture, made of what the network saw."""
    height, width = (max(SMALLEST_GREY, min(GREY_PER_HEAD * h, side)) for h, side in zip(head_hw, size_hw, strict=True))
    seen_HW = cv2.cvtColor(resize_image(image_bgr, (size_hw[0], size_hw[1])), cv2.COLOR_BGR2GRAY)
    return np.asarray(cv2.resize(seen_HW, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def _standard(grey_GK: UInt8Array) -> Float32Array:
    """Mean 0 and deviation 1, so that another exposure makes no difference; a flat picture is 0 all over."""
    mean, deviation = grey_GK.mean(), max(1.0, float(grey_GK.std()))
    return ((grey_GK - np.float32(mean)) / np.float32(deviation)).astype(np.float32)


def _moved(planes_NHW: npt.NDArray[Number], flow_HW2: Float32Array) -> npt.NDArray[Number]:
    """Each pixel fetched from where the flow says that it was. Bicubic: bilinear blurs a little more in every frame."""
    height, width = flow_HW2.shape[:2]
    x_HW = np.arange(width, dtype=np.float32) + flow_HW2[:, :, 0]
    y_HW = np.arange(height, dtype=np.float32)[:, np.newaxis] + flow_HW2[:, :, 1]
    maps = cv2.convertMaps(x_HW, y_HW, cv2.CV_16SC2)  # once for all planes
    moved_NHW = np.empty_like(planes_NHW)
    for plane_HW, moved_HW in zip(planes_NHW, moved_NHW, strict=True):
        moved_HW[:] = cv2.remap(plane_HW, *maps, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return moved_NHW


def _softmax(logits_Chw: Float32Array) -> Float32Array:
    exp_Chw = np.exp(logits_Chw - logits_Chw.max(axis=0))
    return np.asarray(exp_Chw / exp_Chw.sum(axis=0), np.float32)
