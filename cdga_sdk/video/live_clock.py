"""The times of a live source's frames, over all its connections, on one line."""

from __future__ import annotations

from fractions import Fraction
from typing import Final

__all__ = ["TIME_BASE", "LiveClock", "ticks"]

TIME_BASE: Final = Fraction(1, 90_000)
"""Seconds of one tick: MPEG's, and exact for milliseconds too."""

_RESTART_S: Final = 1  # back by more than this: the camera's clock was set anew
_LEAP_S: Final = 60  # ahead of what has passed here by more than this: likewise


def ticks(seconds: float) -> int:
    """The same time in ticks."""
    return round(seconds / TIME_BASE)


class LiveClock:
    """Puts the times of frames, over all connections, on one line: 0 at the first frame, strictly increasing.

    Within a connection the camera's clock counts. Where it begins anew, and after a loss, a frame lies as much later as
    has passed here.

    Args:
        step_s: Nominal seconds between frames.

    Attributes:
        repaired: Frames within a connection whose time had to be changed.
    """

    def __init__(self, step_s: float) -> None:
        self.repaired = 0
        self._step = max(1, ticks(step_s))
        self._is_anchored = False
        self._started_s: float | None = None
        self._offset = self._last = self._last_arrival = 0

    def restart(self) -> None:
        """The next frame is of another connection: its clock says nothing of the one before."""
        self._is_anchored = False

    def place(self, pts: int | None, now_s: float) -> int:
        """Ticks of 1/90000 s since the first frame, for a frame that came at ``now_s`` (monotonic).

        Args:
            pts: The camera's own time in the same ticks; None where it has none.
            now_s: When the frame came, seconds.
        """
        if self._started_s is None:
            self._started_s, self._last = now_s, -self._step
        arrival = ticks(now_s - self._started_s)
        placed = self._placed(pts, arrival)
        self._last, self._last_arrival = placed, arrival
        return placed

    def _placed(self, pts: int | None, arrival: int) -> int:
        if pts is None:
            return max(arrival, self._last + 1)
        placed = pts + self._offset
        latest = self._last + (arrival - self._last_arrival) + ticks(_LEAP_S)
        restarted = not self._last - ticks(_RESTART_S) <= placed <= latest
        self.repaired += self._is_anchored and (restarted or placed <= self._last)
        if restarted or not self._is_anchored:
            placed = max(arrival, self._last + self._step)
            self._offset, self._is_anchored = placed - pts, True
        return max(placed, self._last + 1)
