"""Width and height that an image file states, told from its headers: nothing is decoded, and no memory is taken."""

from __future__ import annotations

import struct
from typing import Final

__all__ = ["JPEG", "stated_size_wh", "walk_jpeg"]

JPEG: Final = b"\xff\xd8\xff"
_JPEG_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_BARE: Final = frozenset({0x00, 0x01, 0xFF, *range(0xD0, 0xD9)})  # no length follows; 0 and 0xFF are no markers
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257
_TIFF_NUMBERS: Final = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 16: "Q", 17: "q"}


def stated_size_wh(data: bytes) -> tuple[int, int]:
    """Width and height of a PNG, JPEG, WebP, BMP or TIFF, pixels; (0, 0) of anything else, or of less than its head."""
    try:
        if data[:8] == b"\x89PNG\r\n\x1a\n":
            width, height = struct.unpack_from(">II", data, 16)
            return width, height
        if data[:3] == JPEG:
            return walk_jpeg(data)[1]
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp(data)
        if data[:2] == b"BM":
            return _bmp(data)
        if data[:2] in {b"II", b"MM"}:
            return _tiff(data)
    except struct.error:
        pass
    return 0, 0


def walk_jpeg(data: bytes) -> tuple[int, tuple[int, int]]:
    """Where a JPEG's scan begins (or its headers break off), and its width and height (ITU-T T.81, B.1 and B.2)."""
    at, size_wh = 2, (0, 0)
    while (at := data.find(b"\xff", at)) >= 0 and at + 9 <= len(data):  # bytes between segments are passed over
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            size_wh = (width, height)
        if marker == 0xDA:
            break
        at += 1 if marker in _JPEG_BARE else 2 + length
    return at, size_wh


def _webp(data: bytes) -> tuple[int, int]:
    """By its first chunk (RFC 9649, section 2.5 to 2.7)."""
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _bmp(data: bytes) -> tuple[int, int]:
    """The oldest header has 16 bits a side; in the others a negative height means rows from the top."""
    (header_bytes,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if header_bytes == 12 else "<ii", data, 18)
    return abs(width), abs(height)


def _tiff(data: bytes) -> tuple[int, int]:
    """By the first directory (TIFF 6.0, section 2; with 64-bit offsets where the version is 43)."""
    order = "<" if data[:2] == b"II" else ">"
    (version,) = struct.unpack_from(f"{order}H", data, 2)
    is_big = version == 43
    (at,) = struct.unpack_from(f"{order}{'Q' if is_big else 'I'}", data, 8 if is_big else 4)
    (entries,) = struct.unpack_from(f"{order}{'Q' if is_big else 'H'}", data, at)
    at, entry_bytes = (at + 8, 20) if is_big else (at + 2, 12)
    found = {_TIFF_WIDTH: 0, _TIFF_HEIGHT: 0}
    for place in range(at, at + entry_bytes * min(entries, len(data)), entry_bytes):
        tag, kind = struct.unpack_from(f"{order}HH", data, place)
        if tag in found and not found[tag] and kind in _TIFF_NUMBERS:  # of two entries the first holds
            (found[tag],) = struct.unpack_from(order + _TIFF_NUMBERS[kind], data, place + (12 if is_big else 8))
        if all(found.values()):
            break
    return found[_TIFF_WIDTH], found[_TIFF_HEIGHT]
