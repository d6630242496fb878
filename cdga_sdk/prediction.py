"""What a network says of frames: their classes, and how sure it is where somebody asks.

On a CPU the confidence of every pixel can cost more than the classes do, and most who segment video never look at it.
So it is computed at the first question.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cdga_sdk import tail
from cdga_sdk.preprocess import UInt8Array, resize_image
from cdga_sdk.tail import SAMPLE_EVERY, Float32Array

__all__ = ["FrameConfidence", "FromLogits", "Known", "PredictedFrame", "Prediction"]


@dataclass(frozen=True, eq=False)
class Prediction(ABC):
    """N frames at the network's size; the caller's to keep, and threads may share it.

    Attributes:
        mask_NHW: (N, H, W) uint8 train ids.
    """

    mask_NHW: UInt8Array

    @abstractmethod
    def confidence(self, number: int) -> UInt8Array:
        """Probability of the class of each pixel of one frame, (H, W) uint8, times 255."""

    @abstractmethod
    def mean_confidence(self, number: int) -> float:
        """Its mean over every 8th pixel of every 8th row (from the 5th of each), 0 to 1."""


@dataclass(frozen=True, eq=False)
class Known(Prediction):
    """From a runtime that gives both.

    Attributes:
        conf_NHW: (N, H, W) uint8, probability times 255.
    """

    conf_NHW: UInt8Array

    def confidence(self, number: int) -> UInt8Array:
        """See `Prediction`."""
        return np.asarray(self.conf_NHW[number])

    def mean_confidence(self, number: int) -> float:
        """See `Prediction`; of rounded probabilities."""
        sampled = np.s_[SAMPLE_EVERY // 2 :: SAMPLE_EVERY]
        return float(self.conf_NHW[number, sampled, sampled].mean()) / 255


@dataclass(frozen=True, eq=False)
class FromLogits(Prediction):
    """From a runtime that stops at the logits.

    Attributes:
        logits_NChw: (N, C, h, w) float32 of the head's size.
    """

    logits_NChw: Float32Array

    def confidence(self, number: int) -> UInt8Array:
        """See `Prediction`."""
        return tail.confidence(self.logits_NChw[number], self._size_hw)

    def mean_confidence(self, number: int) -> float:
        """See `Prediction`."""
        return tail.mean_confidence(self.logits_NChw[number], self._size_hw)

    @property
    def _size_hw(self) -> tuple[int, int]:
        _, height, width = self.mask_NHW.shape
        return height, width


@dataclass(frozen=True, eq=False)
class FrameConfidence:
    """How sure a network is of one frame.

    Attributes:
        prediction: That the frame is part of.
        number: Of the frame in it.
        size_hw: Height and width of the frame itself, pixels.
    """

    prediction: Prediction
    number: int
    size_hw: tuple[int, int]

    @cached_property
    def pixels(self) -> UInt8Array:
        """At the frame's own size, (H, W) uint8, probability times 255."""
        return resize_image(self.prediction.confidence(self.number), self.size_hw)

    @cached_property
    def mean(self) -> float:
        """See `Prediction.mean_confidence`."""
        return self.prediction.mean_confidence(self.number)


@dataclass(frozen=True, eq=False, kw_only=True)
class PredictedFrame:
    """A frame on its way to a result: the network has seen it, nothing else is made of it yet.

    Attributes:
        image_bgr: (H, W, 3) uint8, the frame itself.
        seen_bgr: The same at the network's size.
        prediction: Of this one frame.
        speed_ms: Milliseconds so far: ``preprocess``, ``inference``.
    """

    image_bgr: UInt8Array
    seen_bgr: UInt8Array
    prediction: Prediction
    speed_ms: Mapping[str, float]
