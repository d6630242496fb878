"""Images in and out: what is refused, and what a pixel becomes."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as Pillow

from cdga_sdk.errors import InputError
from cdga_sdk.image import decode_png, is_image_file, list_images, read_image_bgr, read_label, write_png
from cdga_sdk.image_size import stated_size_wh
from cdga_sdk.opencv import cv2

Image = NDArray[np.uint8]


def smooth(size_wh: tuple[int, int] = (96, 64)) -> Image:
    coarse = np.random.default_rng(1).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, size_wh, interpolation=cv2.INTER_CUBIC), np.uint8)


def encoded(suffix: str, image: NDArray[np.integer[Any]], *options: int) -> bytes:
    done, data = cv2.imencode(suffix, image, list(options))
    assert done
    return data.tobytes()


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_bomb(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = png_chunk(b"IDAT", zlib.compress(bytes(1_000_000)))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + rows + png_chunk(b"IEND", b"")


def jpeg_with_app1(jpeg: bytes, body: bytes) -> bytes:
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".PNG"])
def test_lossless_formats_keep_every_pixel(tmp_path: Path, suffix: str) -> None:
    image = smooth()
    path = put(tmp_path / f"a{suffix}", encoded(suffix.lower(), image))
    np.testing.assert_array_equal(read_image_bgr(path), image)


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_lossy_formats_come_close(tmp_path: Path, suffix: str) -> None:
    read = read_image_bgr(put(tmp_path / f"a{suffix}", encoded(suffix, smooth())))
    assert np.abs(read.astype(int) - smooth()).mean() < 4


def test_channels_are_blue_green_red(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    pixel = zlib.compress(b"\x00\x01\x02\x03")  # filter 0, then R, G, B
    data = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", pixel) + png_chunk(b"IEND", b"")
    assert read_image_bgr(put(tmp_path / "a.png", data)).tolist() == [[[3, 2, 1]]]


def test_grey_alpha_and_16_bit_become_colour(tmp_path: Path) -> None:
    grey = smooth()[:, :, 0]
    read = read_image_bgr(put(tmp_path / "grey.png", encoded(".png", grey)))
    np.testing.assert_array_equal(read, np.dstack([grey] * 3))
    with_alpha = np.dstack([smooth(), np.full(grey.shape, 9, np.uint8)])
    np.testing.assert_array_equal(read_image_bgr(put(tmp_path / "alpha.png", encoded(".png", with_alpha))), smooth())
    deep = smooth().astype(np.uint16) * 257
    np.testing.assert_array_equal(read_image_bgr(put(tmp_path / "deep.png", encoded(".png", deep))), smooth())


def test_exif_turn_is_applied(tmp_path: Path) -> None:
    # Orientation 6: the top of the scene lies at the right side of what is stored.
    tiff = b"MM\x00*\x00\x00\x00\x08" + struct.pack(">HHHIHHI", 1, 0x0112, 3, 1, 6, 0, 0)
    plain = encoded(".jpg", smooth((96, 64)))
    turned = read_image_bgr(put(tmp_path / "a.jpg", jpeg_with_app1(plain, b"Exif\x00\x00" + tiff)))
    upright = np.rot90(read_image_bgr(put(tmp_path / "b.jpg", plain)), -1)
    np.testing.assert_array_equal(turned, upright)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tiff", ".bmp"])
def test_cut_files_are_refused(tmp_path: Path, suffix: str) -> None:
    data = encoded(suffix, smooth())
    for share in (0.02, 0.1, 0.5, 0.9, 0.99):
        path = put(tmp_path / f"cut{suffix}", data[: int(len(data) * share)])
        with pytest.raises(InputError) as caught:
            read_image_bgr(path)
        assert caught.value.where == str(path)


def test_cut_progressive_jpeg_is_refused(tmp_path: Path) -> None:
    data = encoded(".jpg", smooth(), cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    assert read_image_bgr(put(tmp_path / "a.jpg", data)).shape == (64, 96, 3)
    with pytest.raises(InputError, match="cut short"):
        read_image_bgr(put(tmp_path / "b.jpg", data[:-40]))


def test_thumbnail_does_not_hide_that_a_jpeg_is_cut(tmp_path: Path) -> None:
    # The end marker of the small picture in the header is not the end of the large one.
    data = jpeg_with_app1(encoded(".jpg", smooth()), b"Exif\x00\x00" + encoded(".jpg", smooth((16, 8))))
    assert read_image_bgr(put(tmp_path / "a.jpg", data)).shape == (64, 96, 3)
    with pytest.raises(InputError, match="cut short"):
        read_image_bgr(put(tmp_path / "b.jpg", data[: len(data) * 3 // 4]))


def test_what_cameras_append_behind_a_jpeg_is_tolerated(tmp_path: Path) -> None:
    data = encoded(".jpg", smooth())
    read = read_image_bgr(put(tmp_path / "a.jpg", data + bytes(100_000)))
    np.testing.assert_array_equal(read, read_image_bgr(put(tmp_path / "b.jpg", data)))


@pytest.mark.parametrize("size", [(20_000, 20_000), (2**31 - 1, 1), (65_535, 65_535)])
def test_png_bomb_is_refused_before_memory_is_taken(tmp_path: Path, size: tuple[int, int]) -> None:
    path = put(tmp_path / "bomb.png", png_bomb(*size))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=f"{size[0]}x{size[1]} pixels is too large"):
            read_image_bgr(path)
        with pytest.raises(InputError, match="pixels is too large"):
            decode_png(path.read_bytes(), path)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def big_tiff(image: Image) -> bytes:
    stream = io.BytesIO()
    Pillow.fromarray(image).save(stream, "TIFF", big_tiff=True)
    return stream.getvalue()


LOSSY, LOSSLESS = (cv2.IMWRITE_WEBP_QUALITY, 80), (cv2.IMWRITE_WEBP_QUALITY, 101)
WHOLE = {
    "png": encoded(".png", smooth()),
    "jpg": encoded(".jpg", smooth()),
    "bmp": encoded(".bmp", smooth()),
    "tif": encoded(".tif", smooth()),
    "big tif": big_tiff(smooth()),
    "webp": encoded(".webp", smooth(), *LOSSY),
    "lossless webp": encoded(".webp", smooth(), *LOSSLESS),
    "webp with alpha": encoded(".webp", np.dstack([smooth(), smooth()[..., 0]]), *LOSSY),
}


@pytest.mark.parametrize("name", WHOLE)
def test_the_size_is_told_from_the_header_alone(name: str) -> None:
    assert stated_size_wh(WHOLE[name]) == (96, 64)
    for cut in range(200):
        assert stated_size_wh(WHOLE[name][:cut]) in {(0, 0), (96, 64), (1, 64), (1, 1), (96, 1)}


@pytest.mark.parametrize("name", ["bmp", "tif", "big tif", "webp", "lossless webp", "webp with alpha"])
def test_bombs_of_other_formats_are_refused(tmp_path: Path, name: str) -> None:
    data = bytearray(WHOLE[name])
    if name == "bmp":
        data[18:26] = struct.pack("<ii", 16_000, -16_000)
    elif name == "webp":
        data[26:30] = struct.pack("<HH", 16_000, 16_000)
    elif name == "lossless webp":
        data[21:25] = struct.pack("<I", struct.unpack("<I", data[21:25])[0] >> 28 << 28 | 15_999 << 14 | 15_999)
    elif name == "webp with alpha":
        data[24:30] = (15_999).to_bytes(3, "little") * 2
    else:
        for side, tag in ((96, 256), (64, 257)):
            for kind, count in ((3, "H"), (4, "I")):
                for length in "IQ":  # of a TIFF and of a big one
                    old = struct.pack(f"<HH{length}{count}", tag, kind, 1, side)
                    data = data.replace(old, struct.pack(f"<HH{length}{count}", tag, kind, 1, 16_000))
    with pytest.raises(InputError, match="16000x16000 pixels is too large"):
        read_image_bgr(put(tmp_path / "bomb", bytes(data)))


def test_jpeg_bomb_is_refused(tmp_path: Path) -> None:
    data = bytearray(encoded(".jpg", smooth()))
    frame_header = data.index(b"\xff\xc0")
    data[frame_header + 5 : frame_header + 9] = struct.pack(">HH", 20_000, 20_000)
    with pytest.raises(InputError, match="20000x20000 pixels is too large"):
        read_image_bgr(put(tmp_path / "bomb.jpg", bytes(data)))


def test_bytes_between_the_segments_of_a_jpeg_hide_no_bomb(tmp_path: Path) -> None:
    data = encoded(".jpg", smooth())
    data = data[:20] + b"\xff\x00\xff\xd0\x00" + data[20:]
    assert data[2:4] == b"\xff\xe0"  # 16 bytes long, so what was put in lies behind it
    assert read_image_bgr(put(tmp_path / "a.jpg", data)).shape == (64, 96, 3)
    assert stated_size_wh(data) == (96, 64)


def test_of_two_widths_in_a_tiff_the_first_holds_as_for_decoders() -> None:
    entries = [(256, 9, 1, 16_000), (256, 3, 1, 1), (257, 4, 1, 16_000)]
    header = b"II*\x00" + struct.pack("<IH", 8, len(entries))
    assert stated_size_wh(header + b"".join(struct.pack("<HHII", *entry) for entry in entries)) == (16_000, 16_000)


def test_formats_whose_size_is_not_looked_at_are_refused(tmp_path: Path) -> None:
    screen = b"GIF89a" + struct.pack("<HHBBB", 300, 200, 0xF0, 0, 0) + b"\x00\x00\x00\xff\xff\xff"
    gif = screen + b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00;"
    for data in (gif, encoded(".ppm", smooth())):
        with pytest.raises(InputError, match="wanted a PNG, JPEG, WebP, BMP or TIFF"):
            read_image_bgr(put(tmp_path / "a.png", data))


@pytest.mark.parametrize(
    "data", [b"hello", b"\xff\xd8\xff\xd9", b"\xff\xd8\xff\xe0\x00", b"\x89PNG\r\n\x1a\n", bytes(500)]
)
def test_what_is_no_image_is_refused(tmp_path: Path, data: bytes) -> None:
    for suffix in (".png", ".jpg"):
        with pytest.raises(InputError, match=r"not an image|cut short"):
            read_image_bgr(put(tmp_path / f"a{suffix}", data))


def test_missing_empty_and_special_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.png")
    for name, reason in {"no.png": "no such file", ".": "not a regular file", "fifo.png": "not a regular file"}.items():
        with pytest.raises(InputError, match=reason):
            read_image_bgr(tmp_path / name)
    with pytest.raises(InputError, match="file is empty"):
        read_image_bgr(put(tmp_path / "empty.png", b""))
    with pytest.raises(InputError, match=r"cannot read \(Input/output error\)"):
        read_image_bgr(Path("/proc/self/mem"))


def test_labels_are_read_as_stored(tmp_path: Path) -> None:
    label = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(read_label(put(tmp_path / "a.png", encoded(".png", label))), label)


@pytest.mark.parametrize(
    ("label", "found"),
    [
        (np.zeros((4, 5), np.uint16), r"shape \(4, 5\) and type uint16"),
        (np.zeros((4, 5, 3), np.uint8), r"shape \(4, 5, 3\) and type uint8"),
        (np.zeros((4, 5, 4), np.uint8), r"shape \(4, 5, 4\)"),
    ],
)
def test_labels_of_other_kinds_are_refused(tmp_path: Path, label: NDArray[np.integer[Any]], found: str) -> None:
    with pytest.raises(InputError, match=found):
        read_label(put(tmp_path / "a.png", encoded(".png", label)))


def test_png_round_trip(tmp_path: Path) -> None:
    for image in (smooth(), smooth()[:, :, 0], np.zeros((1, 1), np.uint8)):
        write_png(tmp_path / "made" / "a.png", image)
        stored = cv2.imread(str(tmp_path / "made/a.png"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(stored, image)
    assert [p.name for p in (tmp_path / "made").iterdir()] == ["a.png"]


def test_list_images(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "c.txt", "d.webp", "._b.png", ".d.webp"):
        put(tmp_path / name, b"x")
    (tmp_path / "e.png").mkdir()
    assert [p.name for p in list_images(tmp_path)] == ["a.JPG", "b.png", "d.webp"]
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"no images in this folder; wanted \.bmp, \.jpeg"):
        list_images(tmp_path / "none")
    with pytest.raises(InputError, match="no such folder"):
        list_images(tmp_path / "b.png")


def test_is_image_file() -> None:
    assert all(is_image_file(Path(n)) for n in ("a.png", "b.JPEG", "c.tif"))
    assert not any(is_image_file(Path(n)) for n in ("a.mp4", "png", "a.png.txt"))
