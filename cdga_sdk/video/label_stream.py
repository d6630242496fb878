"""The label maps of a whole video in one file, lossless: FFV1 in NUT, ``labels.nut``.

Every label map comes back as it was given, at the very tick it was given for, or not at all: see ``_is_intact`` for
the maps and ``_Header`` for their number and times. Any FFmpeg can show the file.

Legend: ``pts`` are ticks of ``time_base`` seconds; label maps are ``(H, W)`` uint8 class ids, 255 ignored.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Final

import av
import numpy as np
from av.codec.context import ThreadType

from cdga_sdk.errors import InputError, UsageError
from cdga_sdk.preprocess import UInt8Array, resize_label
from cdga_sdk.video.container import MAX_PIXELS, NUT, sniff
from cdga_sdk.video.partial import PartialVideo

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

__all__ = ["LabelFrame", "LabelSink", "read_labels"]

_SLICES: Final = 4  # of a picture; fixed, so that one that is lost is missed
# Golomb-Rice codes with run lengths: label maps are flat, and take far fewer bytes than by the arithmetic coder.
_CODEC: Final = {"level": "3", "coder": "0", "context": "0", "slicecrc": "1", "slices": str(_SLICES)}
_GROWING: Final = {"flush_packets": "1"}
_KEY: Final = "cdga_labels"
_VERSION: Final = "1"
_WANTED: Final = "give a labels.nut of cdga segment --save labels"
_BITS_REVERSED: Final = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_INDEX_START: Final = b"NX\xdd\x67\x2f\x23\xe6\x4e"


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelFrame:
    """One label map of a video.

    Attributes:
        label_HW: ``(H, W)`` uint8 class ids, 255 ignored; the caller's own.
        index: number of label maps before this one in the file.
        pts: presentation time in ticks of ``time_base``, as the source's frame has it; strictly increasing.
        time_base: seconds of one tick, the source's.
    """

    label_HW: UInt8Array
    index: int
    pts: int
    time_base: Fraction

    @property
    def time_s(self) -> float:
        """Presentation time in seconds, on the clock of the source's stream."""
        return float(self.pts * self.time_base)


class LabelSink(PartialVideo):
    """Writes label maps to one lossless ``.nut``, which grows as ``NAME.partial.nut``; a context manager.

    Every picture stands alone, with checksums of its own. After a ``kill -9`` the growing file can be read up to its
    last whole picture.

    Args:
        path: the final file; its name ends in ``.nut``. Replaced on success only.
        size_wh: width and height of the label maps.
        rate: nominal frames per second; only a hint for players.
        time_base: seconds of one tick of ``pts``.

    Raises:
        UsageError: a bad argument, or a folder that is missing or not writable.
        ResourceError: the disk is full or failing.

    Attributes:
        path: the file that there is: the final name after success, the ``.partial.nut`` name otherwise.
        frames_written: label maps taken so far.
        resized_frames: those that came in another size than announced and were scaled to it by nearest neighbour.
    """

    def __init__(self, path: str | Path, *, size_wh: tuple[int, int], rate: Fraction, time_base: Fraction) -> None:
        _check_arguments(Path(path), size_wh, rate, time_base)
        super().__init__(Path(path), what="the labels", container="nut", options=_GROWING, time_base=time_base)
        self.size_wh = size_wh
        self.resized_frames = 0
        self._rate = rate
        self._shift = 0
        self._times = _Times()

    def _add_stream(self, container: OutputContainer) -> VideoStream:
        container.metadata.update(_Header(time_base=self._time_base, shift=self._shift).metadata())
        stream = container.add_stream("ffv1", rate=self._rate, options=dict(_CODEC))
        stream.width, stream.height = self.size_wh
        stream.pix_fmt = "gray"
        stream.time_base = self._time_base
        stream.codec_context.time_base = self._time_base
        stream.codec_context.gop_size = 1
        return stream

    def write(self, label_HW: UInt8Array, pts: int) -> None:
        """Encode one label map.

        Args:
            label_HW: ``(H, W)`` uint8; of another size than announced it is scaled by nearest neighbour and counted.
            pts: presentation time in ticks of ``time_base``; later than that of the one before. May be negative.

        Raises:
            UsageError: the array is no such map, or ``pts`` does not increase.
            ResourceError: the disk is full or failing.
        """
        if label_HW.ndim != 2 or label_HW.dtype != np.uint8 or not label_HW.size:
            raise UsageError(f"got an array {label_HW.shape} of {label_HW.dtype}; wanted (H, W) of uint8")
        if pts < 0 and not self.frames_written:
            self._start_at(pts)
        with self._writing(pts):
            frame = av.VideoFrame.from_ndarray(self._sized(label_HW), format="gray")
            frame.pts, frame.time_base = pts + self._shift, self._time_base
            self._mux(self._stream.encode(frame))
        self._times.add(pts)

    def _start_at(self, first_pts: int) -> None:
        """Begin again with all times shifted: NUT has no negative ones."""
        self._shift = -first_pts
        self._close_partial()
        self._open()

    def _sized(self, label_HW: UInt8Array) -> UInt8Array:
        width, height = self.size_wh
        self.resized_frames += label_HW.shape != (height, width)
        return np.ascontiguousarray(resize_label(np.ascontiguousarray(label_HW), (height, width)))

    def _copy_to(self, whole: Path) -> None:
        header = _Header(
            time_base=self._time_base, shift=self._shift, frames=self.frames_written, times_crc32=self._times.crc32
        )
        with (
            av.open(str(self._partial.absolute()), format="nut") as reader,
            av.open(str(whole.absolute()), "w", format="nut") as writer,
        ):
            writer.metadata.update(header.metadata())
            stream = reader.streams.video[0]
            copy = writer.add_stream_from_template(stream, opaque=True)
            for packet in reader.demux(stream):
                if packet.size:
                    packet.stream = copy
                    writer.mux(packet)


def _check_arguments(path: Path, size_wh: tuple[int, int], rate: Fraction, time_base: Fraction) -> None:
    wrong = (
        (path.suffix.lower() != ".nut", f"the labels' name ends in '{path.suffix}'; it must end in .nut"),
        (min(size_wh) < 2, f"size_wh is {size_wh}; both must be 2 or more"),
        (rate <= 0, f"rate is {rate}; it must be above 0"),
        (time_base <= 0, f"time_base is {time_base}; it must be above 0"),
    )
    for is_wrong, message in wrong:
        if is_wrong:
            raise UsageError(message, where=path)


class _Times:
    """How many presentation times there were, the last of them, and a checksum of all."""

    def __init__(self) -> None:
        self.count = self.crc32 = 0
        self.last: int | None = None

    def add(self, pts: int) -> None:
        """Count one more."""
        self.count += 1
        self.crc32 = zlib.crc32(struct.pack("<q", pts), self.crc32)
        self.last = pts


@dataclass(frozen=True, kw_only=True)
class _Header:
    """What the file says of itself, in packets that NUT guards by checksums.

    NUT does not guard the few bytes before each picture, which say how long it is and when it is shown, and demuxers
    step over what they cannot read. So a whole file says how many pictures there are, and the checksum of their times.

    Attributes:
        time_base: of ``pts``; the file's own ticks may be whole parts of it.
        shift: ticks that were added to every ``pts``.
        frames: None while the file grows.
        times_crc32: None while the file grows.
    """

    time_base: Fraction
    shift: int
    frames: int | None = None
    times_crc32: int | None = None

    def metadata(self) -> dict[str, str]:
        """As it is written, with a checksum of its own: FFmpeg does not insist on NUT's."""
        counts = () if self.frames is None else (self.frames, self.times_crc32)
        text = " ".join(str(value) for value in (_VERSION, self.time_base, self.shift, *counts))
        return {_KEY: f"{text} {zlib.crc32(text.encode()):08x}"}

    @classmethod
    def of(cls, container: InputContainer, path: Path) -> _Header:
        """Read it, or raise InputError."""
        text, _, checksum = container.metadata.get(_KEY, "").rpartition(" ")
        if f"{zlib.crc32(text.encode()):08x}" != checksum:
            raise InputError("not a label stream, or its header is damaged", where=path, fix=_WANTED)
        version, *values = text.split(" ")
        if version != _VERSION:
            raise InputError(
                f"this is version {version} of label streams", where=path, fix="read it with the release that wrote it"
            )
        frames, times_crc32 = (int(values[2]), int(values[3])) if values[2:] else (None, None)
        return cls(time_base=Fraction(values[0]), shift=int(values[1]), frames=frames, times_crc32=times_crc32)


def read_labels(path: str | Path) -> Iterator[LabelFrame]:
    """Yield the label maps that ``cdga segment --save labels`` wrote, one by one; memory does not grow.

    A damaged or cut-off file yields the maps before the damage, and then an error. No map is ever yielded that differs
    from the one that was written. Damage to the few bytes between two maps may show at the end of the file only.

    Args:
        path: a ``labels.nut``, or the ``labels.partial.nut`` of a run that was stopped.

    Raises:
        InputError: the file is missing, no label stream, damaged or cut off.
    """
    path = Path(path)
    with _opened(path) as container:
        header = _Header.of(container, path)
        stream = _only_stream(container, path)
        times = _Times()
        try:
            for packet in container.demux(stream):
                if packet.size:  # the last one is empty
                    label_HW, pts = _label(packet, stream), _source_pts(packet, header)
                    if label_HW is None or pts is None or (times.last is not None and pts <= times.last):
                        raise _damaged(path, times.count)
                    yield LabelFrame(label_HW=label_HW, index=times.count, pts=pts, time_base=header.time_base)
                    times.add(pts)
        except (av.FFmpegError, IndexError) as error:
            raise _damaged(path, times.count) from error
    _check_end(path, header, times)


def _opened(path: Path) -> InputContainer:
    kind = sniff(path)
    if kind != NUT:
        found = "the file is empty" if kind == "empty" else f"found {kind}, not a label stream"
        raise InputError(found, where=path, fix=_WANTED)
    options = {"protocol_whitelist": "file", "max_pixels": str(MAX_PIXELS)}
    try:
        return av.open(str(path.absolute()), format="nut", options=options, metadata_errors="replace")
    except (av.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"this label stream cannot be opened ({reason})", where=path) from error


def _only_stream(container: InputContainer, path: Path) -> VideoStream:
    streams = container.streams.video
    codec = streams[0].codec_context if len(streams) == 1 else None
    if codec is None or codec.name != "ffv1":
        raise InputError("not one stream of label maps in it, or its header is damaged", where=path)
    streams[0].thread_type = ThreadType.SLICE  # none in flight: a packet in, its label map out
    codec.options = {"max_pixels": str(MAX_PIXELS)}
    return streams[0]


def _label(packet: Packet[VideoStream], stream: VideoStream) -> UInt8Array | None:
    """The label map of a packet; None where that is damaged."""
    if packet.is_corrupt or not _is_intact(bytes(packet)):
        return None
    frames = stream.decode(packet)
    if len(frames) != 1 or frames[0].format.name != "gray":
        return None
    return np.array(frames[0].to_ndarray(), np.uint8)


def _is_intact(packet: bytes) -> bool:
    """Whether the slices of an FFV1 packet tile it, and their checksums hold.

    FFmpeg's decoder looks at the checksums too, but only logs what it finds and gives the wrong picture out, whatever
    its ``err_detect`` says. A slice and its checksum leave a remainder of 0 (RFC 9043, 4.9.3), and so do all slices in
    a row. That CRC takes the highest bit first; zlib's takes the lowest, and inverts its register before and after.
    """
    end, slices = len(packet), 0
    while end >= 8:  # a slice's last 8 bytes are its size without them (3), an error status (1) and its checksum (4)
        end -= int.from_bytes(packet[end - 8 : end - 5], "big") + 8
        slices += 1
    # Their number too: a packet cut between two slices, and zeros that a disk gives for lost bytes, have remainder 0.
    is_tiled = end == 0 and slices == _SLICES
    return is_tiled and zlib.crc32(packet.translate(_BITS_REVERSED), 0xFFFFFFFF) == 0xFFFFFFFF


def _source_pts(packet: Packet[VideoStream], header: _Header) -> int | None:
    """In the source's ticks; None where it lies between two of them."""
    if packet.pts is None:
        return None
    ticks = packet.pts * packet.time_base / header.time_base
    return int(ticks) - header.shift if ticks.denominator == 1 else None


def _damaged(path: Path, count: int) -> InputError:
    return InputError(f"damaged behind {count} label maps", where=path, fix="segment the video again")


def _check_end(path: Path, header: _Header, times: _Times) -> None:
    if header.frames is None:
        if not _ends_with_index(path):
            raise InputError(
                f"cut off behind {times.count} label maps while it was written", where=path, fix="segment it again"
            )
    elif times.count != header.frames:
        raise InputError(
            f"cut off or damaged: {times.count} of {header.frames} label maps can be read",
            where=path,
            fix="segment the video again",
        )
    elif times.crc32 != header.times_crc32:
        raise InputError(
            "the times of its label maps are damaged; the maps are whole", where=path, fix="segment the video again"
        )


def _ends_with_index(path: Path) -> bool:
    """Whether the file was closed: NUT's index comes last, and its last 12 bytes are its length and a checksum."""
    with path.open("rb") as file:
        length = file.seek(0, os.SEEK_END)
        file.seek(max(0, length - 12))
        index_length = int.from_bytes(file.read(8), "big")
        file.seek(max(0, length - index_length))
        return file.read(8) == _INDEX_START
