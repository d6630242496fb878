"""Cameras and streams in: read and decoded on a thread, connected again after a loss, on one line of time.

Every wait has an end: opening, reading, the pause before another try, and the caller's wait for a frame. A thread that
is stuck inside FFmpeg or a driver is left behind, and does not keep the process from ending.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal, Self, get_args

from cdga_sdk.errors import InputError, UsageError
from cdga_sdk.video.address import LiveAddress, live_address, place_of
from cdga_sdk.video.connection import Connection
from cdga_sdk.video.live_clock import TIME_BASE, LiveClock, ticks
from cdga_sdk.video.source import Frame, check_range
from cdga_sdk.video.stages import LIVE, POLL_S, STOP_S
from cdga_sdk.video.upright import Upright
from cdga_sdk.video.yuv_overlay import BT709, ColorTags

if TYPE_CHECKING:
    from fractions import Fraction

    from av.video.frame import VideoFrame

__all__ = ["RECONNECT_S", "LiveMode", "LiveSource", "check_live"]

LiveMode = Literal["freshest", "every-frame"]

RECONNECT_S: Final = 60.0
"""Seconds without a frame after which a source is given up."""

_OPEN_S: Final = 10.0  # for an answer, and once more for what the streams are
_STALL_S: Final = 10.0  # without a frame, before a connection is given up
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 5.0  # before another try; doubled each time
_WAITING_FRAMES: Final = 4  # of every-frame mode, before the reader waits


def check_live(mode: str, reconnect_s: float) -> None:
    """Raise a UsageError for an option that is out of range."""
    if mode not in get_args(LiveMode):
        raise UsageError(f"live is '{mode}'", fix=f"use one of {', '.join(get_args(LiveMode))}")
    if not reconnect_s >= 0:
        raise UsageError(f"reconnect_s is {reconnect_s}; it must be 0 or more")


@dataclass(frozen=True, eq=False)
class _Arrived:
    frame: VideoFrame
    upright: Upright
    index: int
    pts: int
    decode_ms: float


class _Waiting:
    """Decoded frames between the reader and the caller.

    Attributes:
        dropped: Frames whose place a newer one took.
        keeps_newest: One frame waits, and a newer one takes its place; otherwise the reader waits.
    """

    def __init__(self) -> None:
        self.dropped = 0
        self.keeps_newest = True
        self._frames: deque[_Arrived] = deque()
        self._changed = threading.Condition()
        self._has_ended = False

    def put(self, frame: _Arrived) -> None:
        """Add a frame; nothing once it has ended."""
        with self._changed:
            while len(self._frames) >= _WAITING_FRAMES and not self.keeps_newest and not self._has_ended:
                self._changed.wait()
            if self._has_ended:
                return
            if self.keeps_newest and self._frames:
                self._frames.clear()
                self.dropped += 1
            self._frames.append(frame)
            self._changed.notify_all()

    def get(self) -> _Arrived | None:
        """The next frame; None where none came in `POLL_S`."""
        with self._changed:
            if not self._frames and not self._has_ended:
                self._changed.wait(POLL_S)
            if not self._frames:
                return None
            self._changed.notify_all()
            return self._frames.popleft()

    def end(self) -> None:
        """Nothing comes after this."""
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    def is_over(self) -> bool:
        """Nothing waits, and nothing will come."""
        with self._changed:
            return self._has_ended and not self._frames


class LiveSource:
    """A camera or a stream as upright BGR frames; a context manager that can be iterated once.

    Frames are read and decoded on a thread from the moment of entering. A lost source is connected again, after
    pauses that double up to five seconds, until ``reconnect_s`` have passed without a frame. What has an end of its own
    (a recording behind an address) is read frame by frame, whatever ``mode`` says, and ends there.

    Args:
        source: An address or a camera; see `live_address`.
        mode: ``freshest`` gives the newest frame and drops those that came while the caller was busy; ``every-frame``
            gives all, and lets the sender wait.
        reconnect_s: Seconds without a frame before the source is given up; 0 gives up at the first loss.
        vid_stride: Yield every n-th frame, >= 1.
        start_s: Skip what is earlier than this many seconds after the first frame, >= 0.
        end_s: Stop at this many seconds after the first frame (exclusive).
        max_frames: Yield at most this many frames.

    Raises:
        UsageError: An option is out of range, ``source`` is none, or it is entered or iterated twice.
        InputError: On enter, when it cannot be opened or gives no picture.

    Attributes:
        address: What it is, and what may be shown of it.
        corrupt_frames: Yielded frames that the decoder marks as damaged.
        corrupt_packets: Packets within a connection that were marked or refused so far.
        size_changes: How often the size of the yielded frames changed.
        reconnects: How often it was lost and came back.
        is_lost: It was given up, and all frames that had come were yielded.
        is_stopped: `stop` or `close` was called.
        size_wh: Width and height of the first frame, upright.
        average_rate: Frames per second that the first connection announced (25 where it was silent).
        time_base: Seconds of one tick of ``pts``, which is 0 at the first frame that was decoded.
        codec: Name of the decoder.
        sample_aspect_ratio: Width by height of a pixel as it is shown, upright; 1 where nothing is said of it.
        overlay_tags: Colours to write an overlay in; see `VideoSource`.
        num_frames_hint: None: nobody knows.
        num_frames_expected: The same.
        skipped_frames: 0, as nobody knows.
    """

    time_base: Final = TIME_BASE
    num_frames_hint: Final = None
    num_frames_expected: Final = None
    skipped_frames: Final = 0

    def __init__(
        self,
        source: str | LiveAddress,
        *,
        mode: LiveMode = "freshest",
        reconnect_s: float = RECONNECT_S,
        vid_stride: int = 1,
        start_s: float | None = None,
        end_s: float | None = None,
        max_frames: int | None = None,
    ) -> None:
        check_range(vid_stride, start_s, end_s, max_frames)
        check_live(mode, reconnect_s)
        address = live_address(source) if isinstance(source, str) else source
        if address is None:
            raise UsageError("neither an address nor a camera", where=place_of(source), fix="e.g. rtsp://, /dev/video0")
        self.address = address
        self.corrupt_frames = self.corrupt_packets = self.size_changes = self.reconnects = 0
        self.is_lost = self._is_given_up = False
        self._mode, self._reconnect_s = mode, reconnect_s
        self._stall_s = min(_STALL_S, reconnect_s / 2) or _STALL_S  # half the time is left to come back in
        self._vid_stride, self._start, self._max_frames = vid_stride, ticks(start_s or 0), max_frames
        self._end = math.inf if end_s is None else ticks(end_s)
        self.average_rate: Fraction
        self.codec: str
        self._clock: LiveClock
        self.sample_aspect_ratio: Fraction
        self.overlay_tags: ColorTags
        self._first_hw: tuple[int, int]
        self._last_hw: tuple[int, int]
        self._waiting = _Waiting()
        self._error: BaseException | None = None
        self._decoded = self._in_range = 0
        self._last_s = 0.0
        self._is_open = threading.Event()
        self.is_stopped = False  # no event: a signal handler must not wait for its lock
        self._thread = threading.Thread(target=self._read, name=LIVE, daemon=True)
        self._is_iterated = False

    def __enter__(self) -> Self:
        if self.is_stopped or self._thread.ident is not None:
            raise UsageError("a live source can be opened once", where=self.address.place, fix="make a new one")
        deadline_s = time.monotonic() + 2 * _OPEN_S
        self._thread.start()
        try:
            while not self._is_open.wait(POLL_S):
                if self._error is not None:
                    raise self._error
                if time.monotonic() > deadline_s:
                    raise self._refusal(f"no picture in {2 * _OPEN_S:.3g} s")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_open(self) -> bool:
        """It was entered, and a first frame came."""
        return self._is_open.is_set()

    def stop(self) -> None:
        """End the iteration at its next step. May be called from any thread and from a signal handler."""
        self.is_stopped = True

    def close(self) -> None:
        """Hang up; a reader that does not come back in `STOP_S` is left behind. May be called twice."""
        self.is_stopped = True
        self._waiting.end()
        if self._thread.ident is not None:  # None before the thread has begun
            self._thread.join(STOP_S)

    @property
    def size_wh(self) -> tuple[int, int]:
        """Width and height of the first frame, upright."""
        height, width = self._first_hw
        return width, height

    @property
    def repaired_pts(self) -> int:
        """Frames within a connection whose presentation time had to be changed so far."""
        return self._clock.repaired

    @property
    def dropped_frames(self) -> int:
        """Decoded frames that were wanted, but had to make room for newer ones."""
        return self._waiting.dropped

    def __iter__(self) -> Iterator[Frame]:
        return (frame for frame, _ in self.timed())

    def timed(self) -> Iterator[tuple[Frame, float]]:
        """Each frame and the milliseconds that decoding took, without the wait for it; in place of iterating."""
        assert self._is_open.is_set(), "use it as: with LiveSource(address) as source"
        if self._is_iterated:
            raise UsageError("a live source can be read once", where=self.address.place, fix="open it again")
        self._is_iterated = True
        return self._timed()

    def _timed(self) -> Iterator[tuple[Frame, float]]:
        for count, arrived in enumerate(self._arrived(), 1):
            if count == self._max_frames:
                self._waiting.end()  # what comes while this one is at work is not wanted, and so not dropped
            clock = time.perf_counter()
            frame = self._finished(arrived)
            yield frame, arrived.decode_ms + 1e3 * (time.perf_counter() - clock)
            if count == self._max_frames:
                return

    def _arrived(self) -> Iterator[_Arrived]:
        while not self.is_stopped:
            arrived = self._waiting.get()
            if arrived is not None:
                yield arrived
            elif self._waiting.is_over():
                if self._error is not None:
                    raise self._error
                self.is_lost = self._is_given_up
                return
            elif time.monotonic() > self._last_s + self._reconnect_s + 2 * _OPEN_S:  # the reader is stuck
                self.is_lost = True
                return

    def _finished(self, arrived: _Arrived) -> Frame:
        shape_hw = arrived.upright.shape_hw(arrived.frame)
        self.size_changes += shape_hw != self._last_hw
        self._last_hw = shape_hw
        is_corrupt = arrived.frame.is_corrupt
        self.corrupt_frames += is_corrupt
        return Frame(
            image_bgr=arrived.upright(arrived.frame),
            index=arrived.index,
            pts=arrived.pts,
            time_base=self.time_base,
            is_corrupt=is_corrupt,
            picture=arrived.upright.picture(arrived.frame),
        )

    def _refusal(self, reason: str) -> InputError:
        return InputError(reason, where=self.address.place, fix="check the address, and that the source is on")

    # The rest runs on the reader's thread.

    def _read(self) -> None:
        try:
            self._read_until_lost()
        except BaseException as error:  # noqa: BLE001 - the caller gets it
            self._error = error
        finally:
            self._waiting.end()

    def _read_until_lost(self) -> None:
        pause_s, left_s = _FIRST_PAUSE_S, _OPEN_S
        while not self.is_stopped:
            before = self._decoded
            if self._read_connection(min(_OPEN_S, max(1.0, left_s))):
                return
            pause_s = pause_s if self._decoded == before else _FIRST_PAUSE_S
            left_s = self._last_s + self._reconnect_s - time.monotonic()
            if left_s <= 0:
                self._is_given_up = True
                return
            self._pause(min(pause_s, left_s))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _pause(self, seconds: float) -> None:
        end_s = time.monotonic() + seconds
        while not self.is_stopped and (left_s := end_s - time.monotonic()) > 0:
            time.sleep(min(POLL_S, left_s))

    def _read_connection(self, open_s: float) -> bool:
        """Read until nothing more is wanted, True, or the connection is lost, False."""
        has_end = False
        try:
            with closing(Connection(self.address, open_s, self._stall_s)) as connection:
                has_end = connection.has_end
                if not self._take_all(connection):
                    return True
            reason = "it ended before its first picture"
        except InputError as error:
            reason = error.what
            self._is_given_up = has_end and self._decoded > 0  # to connect again would be to begin again
        if not self._decoded:
            raise self._refusal(reason)
        return has_end

    def _take_all(self, connection: Connection) -> bool:
        """Take the frames of a connection; False when no more are wanted."""
        upright: Upright | None = None
        damaged = self.corrupt_packets
        for frame, decode_ms in connection.frames():
            if self.is_stopped:
                return False
            if upright is None:
                upright = Upright(frame)
                self._begin(connection, upright, frame)
            self.corrupt_packets = damaged + connection.corrupt_packets
            pts = self._clock.place(connection.ticks_of(frame), time.monotonic())
            self._decoded += 1
            if pts >= self._end:
                return False
            self._take(frame, upright, pts, decode_ms)
        return True

    def _begin(self, connection: Connection, upright: Upright, frame: VideoFrame) -> None:
        if self._decoded:
            self.reconnects += 1
            self._clock.restart()
            return
        self.average_rate, self.codec = connection.rate, connection.stream.codec_context.name
        self._clock = LiveClock(float(1 / self.average_rate))
        self._first_hw = self._last_hw = upright.shape_hw(frame)
        self.sample_aspect_ratio = upright.sample_aspect_ratio(connection.stream)
        picture = upright.picture(frame)
        self.overlay_tags = BT709 if picture is None else picture.tags
        self._waiting.keeps_newest = self._mode == "freshest" and not connection.has_end

    def _take(self, frame: VideoFrame, upright: Upright, pts: int, decode_ms: float) -> None:
        if pts >= self._start:
            if self._in_range % self._vid_stride == 0:
                self._waiting.put(_Arrived(frame, upright, self._in_range, pts, decode_ms))
            self._in_range += 1
        self._last_s = time.monotonic()
        self._is_open.set()
