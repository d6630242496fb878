"""Video files in: named, opened with a forced demuxer, decoded packet by packet, upright, with honest timing.

Legend: ``pts`` are ticks of ``time_base`` seconds; images are ``(H, W, 3)`` uint8 in BGR order.
"""

from __future__ import annotations

import math
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import av
from av.codec.context import ThreadType

from cdga_sdk.errors import InputError, UsageError
from cdga_sdk.video.stages import BUSY_S
from cdga_sdk.video.upright import Upright
from cdga_sdk.video.yuv_overlay import BT709, ColorTags, Picture

if TYPE_CHECKING:
    import numpy as np
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream
    from numpy.typing import NDArray

__all__ = [
    "MAX_PIXELS",
    "NUT",
    "Frame",
    "VideoSource",
    "check_range",
    "is_video_file",
    "open_container",
    "sniff",
    "video_stream",
]

_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".mkv", ".webm", ".avi"}
    | {".ts", ".m2ts", ".mts", ".mpg", ".mpeg", ".vob", ".flv"}
)

# What the first bytes say, and the one FFmpeg demuxer that may read it: FFmpeg's own guess also knows
# play lists and scripts, which name other files.
_DEMUXERS = {
    "MP4 or MOV": "mp4",
    "Matroska or WebM": "matroska",
    "AVI": "avi",
    "MPEG-TS": "mpegts",
    "MPEG-PS": "mpeg",
    "FLV": "flv",
}
_INDEXED = frozenset({"mp4", "matroska"})  # seeking lands on a keyframe at or before the target

NUT = "a NUT file"  # by `sniff`; no video, but what label maps are kept in

_MP4_BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"moof", b"free", b"skip", b"wide", b"pnot", b"styp", b"sidx"})
_IMAGE_BRANDS = frozenset({b"heic", b"heix", b"heif", b"mif1", b"avif"})
_MAGIC = (
    (b"\x1aE\xdf\xa3", "Matroska or WebM"),
    (b"FLV\x01", "FLV"),
    (b"nut/multimedia container\x00", NUT),
    (b"\x00\x00\x01\xba", "MPEG-PS"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"GIF8", "a GIF image"),
    (b"BM", "a BMP image"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"%PDF-", "a PDF document"),
    (b"\x7fELF", "a program"),
    (b"OggS", "an Ogg file"),
    (b"ID3", "an MP3 file"),
)
_SCRIPTS = (("ffconcat", "ffconcat text"), ("#EXTM3U", "m3u8 text"), ("v=0", "SDP text"), ("<", "XML or HTML text"))
_SPECIAL_FILES = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)

_HEAD_BYTES = 4096
MAX_PIXELS = 2**26  # 8192 x 8192: a forged header cannot ask for more memory than this
_MAX_READ_ERRORS = 64  # in a row, before the rest of a file is given up
_MAX_LEADING_PACKETS = 1000  # without one decoded frame, before a stream is refused
_RESTART_S = 1  # pts that fall back further than this mean that the recorder's clock was restarted


def is_video_file(path: str | Path) -> bool:
    """Say by its extension alone whether ``path`` is a file to pick out of a folder as a video."""
    path = Path(path)
    return path.suffix.lower() in _SUFFIXES and path.is_file()


def sniff(path: str | Path) -> str:
    """Name what ``path`` is by its type and first bytes, for people: "MP4 or MOV", "text", "a FIFO", "empty".

    Never opens anything but a regular file, so that a FIFO or a device cannot block.

    Raises:
        InputError: the file is missing or may not be read.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
        for is_type, name in _SPECIAL_FILES:
            if is_type(mode):
                return name
        with path.open("rb") as file:
            return _kind_of(file.read(_HEAD_BYTES))
    except FileNotFoundError as error:
        raise InputError("there is no such file", where=path, fix="check the name") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"the file cannot be read ({reason})", where=path) from error


def _kind_of(head: bytes) -> str:
    if not head:
        return "empty"
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head[:4] == b"RIFF":
        return {b"AVI ": "AVI", b"WAVE": "a WAV file", b"WEBP": "a WebP image"}.get(head[8:12], "an unknown RIFF file")
    if head[4:8] in _MP4_BOXES:
        return "a HEIF image" if head[4:8] == b"ftyp" and head[8:12] in _IMAGE_BRANDS else "MP4 or MOV"
    if _is_transport_stream(head):
        return "MPEG-TS"
    return _kind_of_text(head) or "unknown binary data"


def _is_transport_stream(head: bytes) -> bool:
    """Look for the sync byte 0x47 at five packets in a row: 188 bytes, 192 (Blu-ray, cameras) or 204 (broadcast)."""
    return any(
        len(head) > offset + 4 * size and all(head[offset + k * size] == 0x47 for k in range(5))
        for size, offset in ((188, 0), (192, 4), (204, 0))
    )


def _kind_of_text(head: bytes) -> str | None:
    try:
        text = head[:-3].decode("utf-8-sig") if len(head) == _HEAD_BYTES else head.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    if any(c < " " and c not in "\t\n\r\f" for c in text):
        return None
    start = text.lstrip()
    return next((name for prefix, name in _SCRIPTS if start.startswith(prefix)), "text")


def open_container(path: str | Path) -> InputContainer:
    """Open a local video file with the one demuxer that its first bytes name; the caller closes it.

    The file's own text can name no other file, address or protocol: only ``file`` is allowed, and the
    path is made absolute, so that no name is read as an address.

    Raises:
        InputError: the file is missing, unreadable, not a regular file, empty, not a video, or broken.
    """
    path = Path(path)
    kind = sniff(path)
    if kind not in _DEMUXERS:
        found = "the file is empty" if kind == "empty" else f"found {kind}, not a video"
        raise InputError(found, where=path, fix="give a video file: MP4, MOV, MKV, WebM, AVI, MPEG-TS, MPEG-PS or FLV")
    options = {"protocol_whitelist": "file", "max_pixels": str(MAX_PIXELS)}
    try:
        container = av.open(str(path.absolute()), format=_DEMUXERS[kind], options=options, metadata_errors="replace")
    except (av.FFmpegError, ValueError) as error:
        raise _broken(path, kind, getattr(error, "strerror", None) or str(error)) from error
    if not container.streams:
        container.close()
        raise _broken(path, kind, "no streams in it")
    return container


def _broken(path: Path, kind: str, reason: str) -> InputError:
    if kind == "MP4 or MOV" and not _has_index(path):
        return InputError(
            "this MP4 was cut off before its index (moov) was written",
            where=path,
            fix="copy it again from the camera, or rebuild the index with untrunc and an intact clip of that camera",
        )
    return InputError(f"this {kind} file cannot be opened ({reason})", where=path, fix="try: ffprobe on the file")


def _has_index(path: Path) -> bool:
    """Walk the top-level boxes of an MP4 and look for ``moov`` (ISO/IEC 14496-12, 4.2)."""
    end = path.stat().st_size
    with path.open("rb") as file:
        while file.tell() + 8 <= end:
            start = file.tell()
            header = file.read(8)
            size = int.from_bytes(header[:4], "big")
            if header[4:] == b"moov":
                return start + size <= end
            if size == 1:
                size = int.from_bytes(file.read(8), "big")
            if size < 8:  # 0: the box runs to the end of the file; 2 to 7: broken
                return False
            file.seek(start + size)
    return False


def video_stream(container: InputContainer, path: str | Path) -> VideoStream:
    """Pick the best video stream that is not a cover picture and that can be decoded.

    Raises:
        InputError: there is none; the message names what there is.
    """
    attached = av.stream.Disposition.attached_pic
    streams = [s for s in container.streams.video if not s.disposition & attached]
    if not streams:
        others = ", ".join(s.type if s.codec_context is None else s.codec_context.name for s in container.streams)
        raise InputError(f"there is no video stream in it (found: {others or 'nothing'})", where=path)
    decodable = [s for s in streams if s.codec_context is not None]
    if not decodable:
        raise InputError(
            "no decoder for its codec", where=path, fix="convert it: ffmpeg -i FILE -c:v libx264 -crf 18 converted.mp4"
        )
    best = container.streams.best("video")
    return next((s for s in decodable if s is best), decodable[0])


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


class _Decoder:
    """One open file and its best video stream, read packet by packet; damage is skipped and counted.

    Args:
        path: the video file.
        threads: ``AUTO`` is fastest; ``SLICE`` has no frames in flight.
        counts_after_pts: refused packets that are shown no later than this are not counted.
    """

    def __init__(self, path: Path, threads: ThreadType, counts_after_pts: float = -math.inf) -> None:
        self.path, self.corrupt_packets = path, 0
        self._threads, self._counts_after_pts = threads, counts_after_pts
        self._in_flight = 0
        self.container: InputContainer | None = open_container(path)
        try:
            self.stream = video_stream(self.container, path)
        except BaseException:
            self.close()
            raise
        self.stream.thread_type = threads
        self.stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}

    def close(self) -> None:
        """Close the file; iterators that are still held end at their next step. May be called twice."""
        container, self.container = self.container, None
        if container is not None:
            container.close()

    def seek(self, pts: int) -> bool:
        """Go to a keyframe at or before ``pts``; False where the file cannot be sought in."""
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
        again = _Decoder(self.path, ThreadType.SLICE, after)
        try:
            if last_pts is not None and not again.seek(last_pts):
                return
            for frame in again.frames():
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
        overlay_tags: colours to write an overlay in: those of the first frame's ``picture``, BT.709 where it has none.
        num_frames_hint: frames that the container claims, by its duration where it has no count; may be wrong.
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
        self.corrupt_frames = self.size_changes = 0
        self._vid_stride, self._start_s, self._end_s, self._max_frames = vid_stride, start_s, end_s, max_frames
        self._clock = _Clock(1, 1)
        self._decoder: _Decoder | None = None
        self._iterator: Iterator[Frame] | None = None
        self._in_use = threading.Lock()

    def __enter__(self) -> Self:
        self._decoder = decoder = _Decoder(self.path, ThreadType.AUTO)
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

    def _open(self, decoder: _Decoder) -> None:
        stream = decoder.stream
        assert stream.time_base is not None
        self.time_base: Fraction = stream.time_base
        self.average_rate: Fraction = stream.average_rate or stream.guessed_rate or Fraction(25)
        self.codec: str = stream.codec_context.name
        self.num_frames_hint: int | None = self._claimed_frames(decoder)
        step = max(1, round(1 / (self.average_rate * self.time_base)))
        self._clock = _Clock(step, round(_RESTART_S / self.time_base))
        self._decoded = decoder.frames()
        self._first = self._first_frame()
        self._upright = Upright(self._first)
        self._shape_hw = self._upright.shape_hw(self._first)
        picture = self._upright.picture(self._first)
        self.overlay_tags: ColorTags = BT709 if picture is None else picture.tags

    def _claimed_frames(self, decoder: _Decoder) -> int | None:
        if decoder.stream.frames:
            return decoder.stream.frames
        duration = decoder.container.duration if decoder.container is not None else None
        return round(Fraction(duration, av.time_base) * self.average_rate) if duration else None

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
            if end_pts is not None and pts >= end_pts:
                return
            if start_pts is None or pts >= start_pts:
                yield frame, pts

    def _pts_after(self, seconds: float | None) -> int | None:
        if seconds is None or self._first.pts is None:
            return None
        exact_s = Fraction(seconds).limit_denominator(1_000_000)  # 0.8 is meant, not the float beside it
        return self._first.pts + math.ceil(exact_s / self.time_base)

    def _from(self, start_pts: int | None) -> Iterator[VideoFrame]:
        """Seek where an index makes that exact; elsewhere decode and drop, which is slow but misses nothing."""
        decoder = self._decoder
        assert decoder is not None
        if start_pts is None or decoder.container is None or decoder.container.format.name not in _INDEXED:
            return chain([self._first], self._decoded)
        return decoder.frames() if decoder.seek(start_pts) else chain([self._first], self._decoded)


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
    wrong = (
        (vid_stride < 1, f"vid_stride is {vid_stride}; it must be 1 or more"),
        (start_s is not None and not 0 <= start_s < math.inf, f"start_s is {start_s}; it must be 0 or more"),
        (end_s is not None and not (start_s or 0) < end_s, f"end_s is {end_s}; it must be later than start_s"),
        (max_frames is not None and max_frames < 1, f"max_frames is {max_frames}; it must be 1 or more"),
    )
    for is_wrong, message in wrong:
        if is_wrong:
            raise UsageError(message)
