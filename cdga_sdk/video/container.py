"""Video files: named by their first bytes, opened with a forced demuxer, their best video stream, what they claim."""

from __future__ import annotations

import stat
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av

from cdga_sdk.errors import InputError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

__all__ = [
    "MAX_PIXELS",
    "NUT",
    "VIDEO_SUFFIXES",
    "claimed_frames",
    "claims_by_time",
    "expected_frames",
    "is_video_file",
    "open_container",
    "rate_of",
    "sniff",
    "video_stream",
]

VIDEO_SUFFIXES = frozenset(
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

NUT = "a NUT file"  # by `sniff`; no video, but what label maps are kept in

_MP4_BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"moof", b"free", b"skip", b"wide", b"pnot", b"styp", b"sidx"})
_IMAGE_BRANDS = frozenset({b"heic", b"heix", b"heif", b"mif1", b"avif"})
_EBML, _SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"
_MAGIC = (
    (_EBML, "Matroska or WebM"),
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


def is_video_file(path: str | Path) -> bool:
    """Say by its extension alone whether ``path`` is a file to pick out of a folder as a video."""
    path = Path(path)
    return path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()


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


def _is_cut_short(path: Path) -> bool:
    """Whether a Matroska or AVI file ends before its first bytes say that it does (RFC 8794, 4 and 5)."""
    end = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if head[:4] == b"RIFF":
        return end < 8 + int.from_bytes(head[4:8], "little")
    if head[:4] != _EBML:
        return False
    length, start = _ebml_size(head, 4)
    segment = start + (length or 0)
    if head[segment : segment + 4] != _SEGMENT:
        return False
    length, start = _ebml_size(head, segment + 4)
    return length is not None and end < start + length


def _ebml_size(data: bytes, start: int) -> tuple[int | None, int]:
    """The length that stands at ``start``, None where it is not known, and where what it measures begins."""
    width = 9 - data[start : start + 1].ljust(1, b"\0")[0].bit_length()
    bits = int.from_bytes(data[start : start + width], "big") & ((1 << 7 * width) - 1)
    return (None if bits == (1 << 7 * width) - 1 else bits), start + width


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


def expected_frames(container: InputContainer, stream: VideoStream, path: Path) -> int | None:
    """See ``num_frames_expected`` of `VideoSource`."""
    name, index = container.format.name, stream.index_entries
    if name != "mp4" and _is_cut_short(path):
        return claimed_frames(container, stream)
    is_whole = name == "mp4" or (name == "avi" and len(index) and index[-1].timestamp >= stream.frames - 1)
    if not stream.frames or not is_whole:  # fragments of an MP4 have no common index
        return None
    return sum(entry.size > 0 and not entry.is_discard for entry in index)


def claimed_frames(container: InputContainer, stream: VideoStream) -> int | None:
    """Their number in the header, or a guess: the sound may last longer, and the rate may be none of the video's."""
    if stream.frames or not container.duration:
        return stream.frames or None
    return round(Fraction(container.duration, av.time_base) * rate_of(stream))


def claims_by_time(container: InputContainer, stream: VideoStream) -> tuple[int | None, int | None]:
    """Of an FLV or a fragmented MP4: frames by duration and rate, and the ticks from the first to the stream's own end.

    None for what is not known, and both of other containers: they have a count, mark what is damaged, or hold rates
    that vary, with no way to tell a pause from a loss.
    """
    name = container.format.name
    if name != "flv" and (name != "mp4" or stream.frames):
        return None, None
    length = stream.duration
    if length is None and container.duration and len(container.streams) == 1:
        assert stream.time_base is not None
        length = round(Fraction(container.duration, av.time_base) / stream.time_base)
    return claimed_frames(container, stream), length


def rate_of(stream: VideoStream) -> Fraction:
    """Frames per second, as the container gives it; 25 where it is silent."""
    return stream.average_rate or stream.guessed_rate or Fraction(25)
