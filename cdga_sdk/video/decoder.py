"""The frames of a video file, decoded packet by packet; damage is skipped and counted."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import av
from av.codec.context import ThreadType

from cdga_sdk.video.container import MAX_PIXELS, open_container, video_stream

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

__all__ = ["Decoder"]

_MAX_READ_ERRORS = 64  # in a row, before the rest of a file is given up
_MAX_LEADING_PACKETS = 1000  # without one decoded frame, before a stream is refused
_STEP_BACK_S = 1  # at first, where seeking landed too late; doubled each time


class Decoder:
    """One open file and its best video stream, read packet by packet; damage is skipped and counted.

    Args:
        path: the video file.
        threads: ``AUTO`` is fastest; ``SLICE`` has no frames in flight.
        counts_after_pts: refused packets that are shown no later than this are not counted.
    """

    def __init__(self, path: Path, threads: ThreadType, counts_after_pts: float = -math.inf) -> None:
        self.path, self.corrupt_packets = path, 0
        self._threads, self._counts_after_pts = threads, counts_after_pts
        self.container: InputContainer | None = None
        self._open()

    def _open(self) -> None:
        self._in_flight = 0
        self.container = open_container(self.path)
        try:
            self.stream = video_stream(self.container, self.path)
        except BaseException:
            self.close()
            raise
        self.stream.thread_type = self._threads
        self.stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}

    def close(self) -> None:
        """Close the file; iterators that are still held end at their next step. May be called twice."""
        container, self.container = self.container, None
        if container is not None:
            container.close()

    def frames_from(self, pts: int) -> Iterator[VideoFrame]:
        """Yield every frame from one that is shown at ``pts`` or earlier; from the beginning where none is found.

        FFmpeg looks for a keyframe by decoding times, and with B-frames that one may be shown too late.
        """
        assert self.stream.time_base is not None
        start_pts, counted = self.stream.start_time or 0, self.corrupt_packets
        back, step = 0, math.ceil(_STEP_BACK_S / self.stream.time_base)
        while (not back or pts - back >= start_pts) and self._seek(pts - back):
            frames = self.frames()
            first = next(frames, None)
            if first is not None and (first.pts is None or first.pts <= pts):
                return chain([first], frames)
            self.corrupt_packets = counted  # those of this try are met again
            back = 2 * back or step
        self.close()
        self._open()
        return self.frames()

    def _seek(self, pts: int) -> bool:
        assert self.container is not None
        self._in_flight = 0
        try:
            self.container.seek(pts, stream=self.stream)
        except av.FFmpegError:
            return False
        return True

    def frames(self) -> Iterator[VideoFrame]:
        """Yield every frame that can be decoded, from here to the end."""
        last_pts: int | None = None
        counted = self.corrupt_packets
        fruitless: int | None = 0  # packets before the first frame
        for packet in self._packets():
            for frame in self._frames_of(packet):
                fruitless, last_pts, counted = None, frame.pts, self.corrupt_packets
                yield frame
            if fruitless is not None:
                fruitless += 1
                if fruitless > _MAX_LEADING_PACKETS:
                    return
        if self._in_flight and self._threads is ThreadType.AUTO and self.container is not None:
            self.corrupt_packets = counted  # those behind the last frame are met again
            yield from self._tail(last_pts)

    def _tail(self, last_pts: int | None) -> Iterator[VideoFrame]:
        """Decode the end once more with no frames in flight.

        PyAV ends a draining decoder at its first error, with up to one good frame per thread behind it.
        """
        after = -math.inf if last_pts is None else last_pts
        again = Decoder(self.path, ThreadType.SLICE, after)
        try:
            for frame in again.frames() if last_pts is None else again.frames_from(last_pts):
                if frame.pts is not None and frame.pts > after:
                    yield frame
                if self.container is None:
                    return
        finally:
            self.corrupt_packets += again.corrupt_packets
            again.close()

    def _frames_of(self, packet: Packet[VideoStream] | None) -> list[VideoFrame]:
        self._in_flight += packet is not None
        try:
            frames = self.stream.decode(packet)
        except av.FFmpegError:
            if packet is not None:
                self._in_flight -= 1
                self._count(packet)
            return []
        self._in_flight -= len(frames)
        if packet is not None and packet.is_corrupt:
            self._count(packet)
        return frames

    def _count(self, packet: Packet[VideoStream]) -> None:
        self.corrupt_packets += packet.pts is None or packet.pts > self._counts_after_pts

    def _packets(self) -> Iterator[Packet[VideoStream] | None]:
        """Yield the packets of the stream, read on after a failed read, and end with None (drain the decoder)."""
        failures = 0
        while failures <= _MAX_READ_ERRORS and self.container is not None:
            try:
                for packet in self.container.demux(self.stream):
                    failures = 0
                    if packet.size:  # an empty packet would end the decoder
                        yield packet
                    if self.container is None:  # closed while the caller held this iterator
                        return
                break
            except av.FFmpegError:
                failures += 1
                self.corrupt_packets += 1
            except IndexError:  # PyAV, at the end of a file in which a stream began midway
                break
        yield None
