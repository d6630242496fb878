"""Palette PNGs give their indices, at every bit depth, and a damaged one is still refused."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdga_sdk.errors import InputError
from cdga_sdk.image import read_label, read_stored, write_png
from cdga_sdk.palette_png import grey_from_palette, is_palette_png
from cdga_sdk.preprocess import UInt8Array


def palette_png(ids: UInt8Array, colours: int, **options: object) -> bytes:
    """A palette PNG as Pillow writes it: 1, 2, 4 or 8 bits, whatever the palette needs."""
    image = Image.new("P", (ids.shape[1], ids.shape[0]))
    image.frombytes(ids.tobytes())
    image.putpalette([(91 * i + 40 * c) % 256 for i in range(colours) for c in range(3)])
    stream = io.BytesIO()
    image.save(stream, "PNG", **options)
    return stream.getvalue()


@pytest.mark.parametrize(("colours", "depth"), [(2, 1), (4, 2), (16, 4), (35, 8), (256, 8)])
@pytest.mark.parametrize("shape_hw", [(1, 1), (7, 9), (48, 100)])
def test_indices_at_every_depth(tmp_path: Path, colours: int, depth: int, shape_hw: tuple[int, int]) -> None:
    ids = np.random.default_rng(depth).integers(0, colours, shape_hw).astype(np.uint8)
    data = palette_png(ids, colours)
    assert data[24] == depth
    (tmp_path / "a.png").write_bytes(data)
    np.testing.assert_array_equal(read_label(tmp_path / "a.png"), ids)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_grey_levels_at_every_depth(tmp_path: Path, depth: int) -> None:
    levels = np.random.default_rng(depth).integers(0, 2**depth, (7, 16)).astype(np.uint16)
    stored = levels.astype(">u2").view(np.uint8).reshape(7, 2, 16) if depth == 16 else levels.astype(np.uint8)
    bits = np.unpackbits(stored.reshape(7, -1, 1), axis=2)[:, :, -min(depth, 8) :].reshape(7, -1)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in bits)
    header = struct.pack(">IIBBBBB", 16, 7, depth, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    png = b"".join(struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + png)
    np.testing.assert_array_equal(read_stored(tmp_path / "a.png"), levels)


def test_transparency_and_other_chunks_change_nothing(tmp_path: Path) -> None:
    ids = np.arange(256, dtype=np.uint8).reshape(16, 16)
    data = palette_png(ids, 256, transparency=7, dpi=(300, 300))
    assert b"tRNS" in data
    (tmp_path / "a.png").write_bytes(data)
    np.testing.assert_array_equal(read_label(tmp_path / "a.png"), ids)


def test_other_images_are_no_palettes(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", np.zeros((2, 2, 3), np.uint8))
    assert not is_palette_png((tmp_path / "a.png").read_bytes())
    assert not is_palette_png(b"")
    assert not is_palette_png(b"\x89PNG\r\n\x1a\n")
    assert read_stored(tmp_path / "a.png").shape == (2, 2, 3)


def test_damage_is_refused(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 35, (40, 50)).astype(np.uint8)
    good = palette_png(ids, 35)
    begin = good.index(b"IDAT")
    for cut in (20, 30, begin, begin + 20, len(good) - 30):
        (tmp_path / "a.png").write_bytes(good[:cut])
        with pytest.raises(InputError):
            read_label(tmp_path / "a.png")
    for at in range(begin + 10, len(good) - 30, 97):
        (tmp_path / "a.png").write_bytes(good[:at] + bytes([good[at] ^ 16]) + good[at + 1 :])
        with pytest.raises(InputError):
            read_label(tmp_path / "a.png")


def test_a_wrong_header_checksum_is_not_mended() -> None:
    good = palette_png(np.zeros((4, 4), np.uint8), 2)
    wrong = good[:16] + struct.pack(">I", 5) + good[20:]  # another width
    grey, scale = grey_from_palette(wrong)
    assert scale == 1
    assert grey[:33] == wrong[:33]
    mended, _ = grey_from_palette(good)
    assert mended[25] == 0
    assert struct.unpack(">I", mended[29:33])[0] == zlib.crc32(mended[12:29])


def test_a_bomb_is_refused_unopened(tmp_path: Path) -> None:
    good = palette_png(np.zeros((4, 4), np.uint8), 2)
    header = good[12:16] + struct.pack(">II", 40_000, 40_000) + good[24:29]
    (tmp_path / "a.png").write_bytes(good[:12] + header + struct.pack(">I", zlib.crc32(header)) + good[33:])
    with pytest.raises(InputError, match="40000x40000 pixels is too large"):
        read_label(tmp_path / "a.png")
