"""Video files in: upright frames with honest timing.

Legend: ``pts`` are ticks of ``time_base`` seconds; images are ``(H, W, 3)`` uint8 in BGR order.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from av.codec.context import ThreadType

from cdga_sdk.errors import InputError, UsageError
from cdga_sdk.video.container import claimed_frames, claims_by_time, expected_frames, rate_of
from cdga_sdk.video.decoder import Decoder
from cdga_sdk.video.gaps import Gaps
from cdga_sdk.video.stages import BUSY_S
from cdga_sdk.video.upright import Upright
from cdga_sdk.video.yuv_overlay import BT709, ColorTags, Picture

if TYPE_CHECKING:
    import numpy as np
    from av.video.frame import VideoFrame
    from numpy.typing import NDArray

__all__ = ["Frame", "VideoSource", "check_range"]

_INDEXED = frozenset({"mp4", "matroska"})  # seeking lands on a keyframe
_MAX_S = 1e9  # 30 years: its ticks fit in FFmpeg's 64 bits
_RESTART_S = 1  # pts that fall back further than this mean that the recorder's clock was restarted


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """One upright frame of a video.

    Attributes:
        image_bgr: ``(H, W, 3)`` uint8, BGR, contiguous and writable.
        index: number of decoded frames of the chosen range before this one (strides count the skipped ones).
        pts: presentation time in ticks of ``time_base``, strictly increasing over a source.
        time_base: seconds of one tick.
        is_corrupt: the decoder or the container marks it as damaged or concealed.
        picture: as it was decoded, where an overlay can be drawn on that; keeps the decoder's memory, so that copies
            and pickles are without it.
    """

    image_bgr: NDArray[np.uint8]
    index: int
    pts: int
    time_base: Fraction
    is_corrupt: bool = False
    picture: Picture | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"picture": None}

    @property
    def time_s(self) -> float:
        """Presentation time in seconds, on the clock of the stream."""
        return float(self.pts * self.time_base)


class _Clock:
    """Mends presentation times so that they strictly increase, and counts what was changed."""

    def __init__(self, step: int, restart: int) -> None:
        self.repaired = 0
        self._step = step
        self._restart = restart
        self._shift = 0
        self._last: int | None = None

    def mend(self, pts: int | None, following: int | None) -> int:
        """Keep ``pts`` where it can be kept; ``following`` is the time of the next frame, where it is known.

        A missing one, and a lone leap that the next frame takes back, follow the last by the nominal step; one
        that stands still or slips back follows by one tick; after a fall of more than the restart threshold the
        rest of the stream is shifted as a whole.
        """
        mended = self._mended(pts, following)
        self.repaired += mended != pts
        self._last = mended
        return mended

    def _mended(self, pts: int | None, following: int | None) -> int:
        if self._last is None:
            return 0 if pts is None else pts
        if pts is None:
            return self._last + self._step
        shifted = pts + self._shift
        leaps = shifted > self._last + self._restart
        if leaps and following is not None and self._last < following + self._shift < shifted:
            return self._last + self._step
        if shifted > self._last:
            return shifted
        if self._last - shifted <= self._restart:
            return self._last + 1
        self._shift += self._last + self._step - shifted
        return self._last + self._step


class VideoSource:
    """One video file as a stream of upright BGR frames; a context manager that can be iterated once.

    Memory is flat: nothing but the frame in hand and the decoder's own few pictures is held. Damaged packets
    are skipped and counted, and decoding goes on at the next packet that can be decoded.

    Args:
        path: a regular file: MP4/MOV, Matroska/WebM, AVI, MPEG-TS, MPEG-PS or FLV.
        vid_stride: yield every n-th frame, >= 1.
        start_s: skip what is shown earlier than this many seconds after the first frame, >= 0.
        end_s: stop at this many seconds after the first frame (exclusive).
        max_frames: yield at most this many frames.

    Raises:
        UsageError: an option is out of range, or the source is iterated twice.
        InputError: on enter, when the file is missing or refused, or when not one frame can be decoded.

    Attributes:
        corrupt_frames: yielded frames that the decoder marks as damaged.
        size_changes: how often the size of the yielded frames changed in mid-stream.
        average_rate: frames per second, as the container gives it (25 where it is silent).
        time_base: seconds of one tick of ``pts``.
        codec: name of the decoder, such as ``h264``.
        sample_aspect_ratio: width by height of a pixel as it is shown, upright; 1 where the file does not say.
        overlay_tags: colours to write an overlay in: those of the first frame's ``picture``, BT.709 where it has none.
        num_frames_hint: frames that the container claims, by its duration and rate where it has no count; for progress.
        num_frames_expected: frames that an MP4, MOV or AVI shows by its index, without those that an edit list hides.
            Of a Matroska or AVI file that was cut short the hint. None otherwise: nobody knows.
        skipped_frames: frames that an FLV or a fragmented MP4, read from beginning to end, lacks by its duration and
            rate, where times leap by about that much; 0 otherwise. A lone long pause in an FLV looks the same.
            Other containers tell of gaps by their index or by damaged packets.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        vid_stride: int = 1,
        start_s: float | None = None,
        end_s: float | None = None,
        max_frames: int | None = None,
    ) -> None:
        check_range(vid_stride, start_s, end_s, max_frames)
        self.path = Path(path)
        self.corrupt_frames = self.size_changes = self.skipped_frames = 0
        self._vid_stride, self._start_s, self._end_s, self._max_frames = vid_stride, start_s, end_s, max_frames
        self._clock = _Clock(1, 1)
        self._gaps = Gaps(step=1)
        self._decoder: Decoder | None = None
        self._iterator: Iterator[Frame] | None = None
        self._in_use = threading.Lock()

    def __enter__(self) -> Self:
        self._decoder = decoder = Decoder(self.path, ThreadType.AUTO)
        try:
            self._open(decoder)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; an iterator that is still held ends at its next step. May be called twice.

        It stays open where another thread is inside FFmpeg and does not come back: to what was freed, it would crash.
        """
        if self._decoder is not None and self._in_use.acquire(timeout=BUSY_S):
            try:
                self._decoder.close()
            finally:
                self._in_use.release()

    @property
    def is_open(self) -> bool:
        """It was entered, and is not closed."""
        return self._decoder is not None and self._decoder.container is not None

    def _open(self, decoder: Decoder) -> None:
        stream = decoder.stream
        assert stream.time_base is not None
        self.time_base: Fraction = stream.time_base
        self.average_rate: Fraction = rate_of(stream)
        self.codec: str = stream.codec_context.name
        assert decoder.container is not None
        expected = expected_frames(decoder.container, stream, self.path)
        self.num_frames_expected: int | None = expected
        self.num_frames_hint: int | None = expected or claimed_frames(decoder.container, stream)
        step = max(1, round(1 / (self.average_rate * self.time_base)))
        self._clock = _Clock(step, round(_RESTART_S / self.time_base))
        self._decoded = decoder.frames()
        self._first = self._first_frame()
        claimed, length = claims_by_time(decoder.container, stream)
        end_pts = None if length is None or self._first.pts is None else self._first.pts + length
        self._gaps = Gaps(step=step, claimed=claimed, end_pts=end_pts)
        self._upright = Upright(self._first)
        self._shape_hw = self._upright.shape_hw(self._first)
        self.sample_aspect_ratio: Fraction = self._upright.sample_aspect_ratio(stream)
        picture = self._upright.picture(self._first)
        self.overlay_tags: ColorTags = BT709 if picture is None else picture.tags

    def _first_frame(self) -> VideoFrame:
        frame = next(self._decoded, None)
        if frame is None:
            raise InputError(
                f"not one frame of its {self.codec} stream can be decoded",
                where=self.path,
                fix="try: ffmpeg -i FILE -c:v libx264 -crf 18 converted.mp4",
            )
        return frame

    @property
    def size_wh(self) -> tuple[int, int]:
        """Width and height of the first frame, upright."""
        height, width = self._shape_hw
        return width, height

    @property
    def corrupt_packets(self) -> int:
        """Packets that the container or the decoder marked or refused so far, and failed reads."""
        return self._decoder.corrupt_packets if self._decoder is not None else 0

    @property
    def repaired_pts(self) -> int:
        """Frames whose presentation time had to be changed so far."""
        return self._clock.repaired

    def __iter__(self) -> Iterator[Frame]:
        assert self._decoder is not None, "use it as: with VideoSource(path) as source"
        if self._iterator is not None:
            raise UsageError("a video source can be read once", where=self.path, fix="open it again")
        self._iterator = self._one_by_one(self._frames())
        return self._iterator

    def _one_by_one(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        while True:
            with self._in_use:
                frame = next(frames, None)
            if frame is None:
                return
            yield frame

    def _frames(self) -> Iterator[Frame]:
        strided = islice(enumerate(self._in_range()), 0, None, self._vid_stride)
        for index, (frame, pts) in islice(strided, self._max_frames):
            yield self._finished(frame, index, pts)
            if self._decoder is None or self._decoder.container is None:  # closed while the caller held this iterator
                return

    def _finished(self, frame: VideoFrame, index: int, pts: int) -> Frame:
        shape_hw = self._upright.shape_hw(frame)
        self.size_changes += shape_hw != self._shape_hw
        self._shape_hw = shape_hw
        self.corrupt_frames += frame.is_corrupt
        return Frame(
            image_bgr=self._upright(frame),
            index=index,
            pts=pts,
            time_base=self.time_base,
            is_corrupt=frame.is_corrupt,
            picture=self._upright.picture(frame),
        )

    def _in_range(self) -> Iterator[tuple[VideoFrame, int]]:
        start_pts, end_pts = self._pts_after(self._start_s), self._pts_after(self._end_s)
        for frame, following in _with_next(self._from(start_pts)):
            pts = self._clock.mend(frame.pts, following.pts if following is not None else None)
            self._gaps.see(pts, frame.duration)
            if end_pts is not None and pts >= end_pts:
                return
            if start_pts is None or pts >= start_pts:
                yield frame, pts
        if self._start_s is None:
            self.skipped_frames = self._gaps.missing()

    def _pts_after(self, seconds: float | None) -> int | None:
        if seconds is None or self._first.pts is None:
            return None
        exact_s = Fraction(seconds).limit_denominator(1_000_000)  # 0.8 is meant, not the float beside it
        return self._first.pts + math.ceil(exact_s / self.time_base)

    def _from(self, start_pts: int | None) -> Iterator[VideoFrame]:
        """Seek where an index makes that exact; elsewhere decode and drop, which is slow but misses nothing."""
        decoder = self._decoder
        assert decoder is not None
        first_pts = self._first.pts
        if start_pts is None or first_pts is None or start_pts <= first_pts:
            return chain([self._first], self._decoded)
        if decoder.container is None or decoder.container.format.name not in _INDEXED:
            return chain([self._first], self._decoded)
        return decoder.frames_from(start_pts)


def _with_next(frames: Iterator[VideoFrame]) -> Iterator[tuple[VideoFrame, VideoFrame | None]]:
    held = next(frames, None)
    for following in frames:
        assert held is not None
        yield held, following
        held = following
    if held is not None:
        yield held, None


def check_range(vid_stride: int, start_s: float | None, end_s: float | None, max_frames: int | None) -> None:
    """Raise a UsageError for an option of a source that is out of range."""
    # The bounds are far beyond any use, and within what FFmpeg's integers hold.
    wrong = (
        (not 1 <= vid_stride <= 1_000_000, f"vid_stride is {vid_stride}; it must be 1 to 1000000"),
        (
            start_s is not None and not 0 <= start_s < math.inf,
            f"start_s is {start_s}; it must be 0 or more, and finite",
        ),
        (
            end_s is not None and not (start_s or 0) < end_s < math.inf,
            f"end_s is {end_s}; it must be later than start_s, and finite",
        ),
        (
            max(start_s or 0, end_s or 0) > _MAX_S,
            f"start_s is {start_s} and end_s is {end_s}; each must be {_MAX_S:g} or less",
        ),
        (
            max_frames is not None and not 1 <= max_frames <= 10**9,
            f"max_frames is {max_frames}; it must be 1 to 1000000000",
        ),
    )
    for is_wrong, message in wrong:
        if is_wrong:
            raise UsageError(message)
