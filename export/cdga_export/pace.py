"""How fast one graph is against another, side by side."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median
from typing import Final

from cdga_sdk.backends.base import Backend
from cdga_sdk.preprocess import UInt8Array

__all__ = ["WORTH_IT", "relative_time"]

WORTH_IT: Final = 0.95
"""A graph that takes more of the float32 graph's time is not worth what it loses."""

_ROUNDS: Final = 3


def relative_time(candidate: Backend, baseline: Backend, frames_1HWC: Sequence[UInt8Array]) -> float:
    """The candidate's time over the baseline's: the median over pairs that ran one right after the other.

    Args:
        candidate: What is judged.
        baseline: What it is held against.
        frames_1HWC: (1, H, W, 3) uint8 RGB frames of their size, at least one; each gives three pairs.
    """
    for backend in (candidate, baseline):
        backend.infer(frames_1HWC[0])
    ratios = [_seconds(candidate, f) / _seconds(baseline, f) for _ in range(_ROUNDS) for f in frames_1HWC]
    return median(ratios)


def _seconds(backend: Backend, frame_1HWC: UInt8Array) -> float:
    started = time.perf_counter()
    backend.infer(frame_1HWC)
    return time.perf_counter() - started
