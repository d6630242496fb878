"""Frames that nobody counted and that no damaged packet tells of: missed by the times of those that there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["Gaps", "is_large"]

_LARGE_SHARE: Final = 0.02
_LARGE_FRAMES: Final = 2


def is_large(missing: int, expected: int) -> bool:
    """Whether so many frames are more than an encoder leaves out, or than refer to what was cut away before them."""
    return missing > max(_LARGE_FRAMES, _LARGE_SHARE * expected)


@dataclass(kw_only=True)
class Gaps:
    """Watches the times of a stream's frames for a leap, and holds them against what the header claims.

    Attributes:
        step: Usual ticks from one frame to the next.
        claimed: Frames by the header, or by its duration and rate; None where it says neither.
        end_pts: Where the video stream itself ends, ticks; None where only the sound's end may be known.
    """

    step: int
    claimed: int | None = None
    end_pts: int | None = None
    _frames: int = 0
    _last: int = 0
    _leap: int = 0
    _longest: int = 0

    def see(self, pts: int, duration: int | None) -> None:
        """The next frame, and the ticks that the container says it is shown for."""
        if self._frames:
            self._leap = max(self._leap, pts - self._last)
        self._longest = max(self._longest, duration or 0)
        self._frames, self._last = self._frames + 1, pts

    def missing(self) -> int:
        """About how many frames are missing, once all have been seen; 0 where the times do not bear out the claim.

        The claim alone proves nothing: the rate may vary, and the sound may last longer. At least half of what is short
        has to lie in one leap, or before the end; a leap that the container has a frame last for is none.
        """
        short = (self.claimed or 0) - self._frames
        if self.claimed is None or not self._frames or not is_large(short, self.claimed):
            return 0
        within = 0 if self._longest > self._leap // 2 else self._steps(self._leap)
        at_end = 0 if self.end_pts is None else self._steps(self.end_pts - self._last)
        return short if 2 * (within + at_end) >= short else 0

    def _steps(self, ticks: int) -> int:
        """Frames that would fit between two that are so far apart."""
        return max(0, round(ticks / self.step) - 1)
