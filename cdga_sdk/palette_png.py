"""PNGs as maps of stored numbers: decoders give a palette's colours, and spread grey levels of fewer than 8 bits."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Final

__all__ = ["grey_from_palette", "grey_spread", "is_palette_png"]

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_PALETTE: Final = 3
_GREY: Final = 0
_SPREAD: Final = {1: 255, 2: 85, 4: 17}  # by bits: what makes 255 of the highest level
_HEADER: Final = struct.Struct(">IIBBBBB")  # width, height, bit depth, colour type, compression, filter, interlace


def is_palette_png(data: bytes) -> bool:
    """Whether ``data`` begins as a PNG of colour type 3 does."""
    return data[:8] == _SIGNATURE and data[12:16] == b"IHDR" and data[25:26] == bytes([_PALETTE])


def grey_spread(data: bytes) -> int:
    """What a decoder multiplies the levels of a grey PNG of 1, 2 or 4 bits by; 1 for all other images."""
    is_grey = data[:8] == _SIGNATURE and data[12:16] == b"IHDR" and data[25:26] == bytes([_GREY])
    return _SPREAD.get(data[24], 1) if is_grey else 1


def grey_from_palette(data: bytes) -> tuple[bytes, int]:
    """The same PNG with its palette taken away, and what a decoder multiplies the indices by.

    Indices and grey levels are packed alike (PNG specification, section 7.2), so that only the header is rewritten;
    levels of 1, 2 or 4 bits are spread over 0 to 255 by decoders: 255, 85 or 17 times the index, exactly.

    Args:
        data: A palette PNG. A damaged one comes out as damaged as it was: the pixels' checksums are kept.
    """
    assert is_palette_png(data)
    parts, scale = [_SIGNATURE], 1
    for kind, chunk in _chunks(data):
        if kind == b"IHDR" and len(chunk) == 12 + _HEADER.size and _checksum(chunk) == chunk[-4:]:
            width, height, depth, _, *rest = _HEADER.unpack(chunk[8:-4])
            scale = _SPREAD.get(depth, 1)
            grey = chunk[:8] + _HEADER.pack(width, height, depth, 0, *rest)
            parts.append(grey + _checksum(grey + bytes(4)))
        elif kind in {b"IHDR", b"IDAT", b"IEND"}:
            parts.append(chunk)
    return b"".join(parts), scale


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and bytes (length, kind, content, checksum) of every chunk; the last may be cut short."""
    at = len(_SIGNATURE)
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : at + 8], data[at:end]
        at = end


def _checksum(chunk: bytes) -> bytes:
    return struct.pack(">I", zlib.crc32(chunk[4:-4]))
