"""Images on disk: read strictly, written atomically."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from cdga_sdk.atomic import write_bytes
from cdga_sdk.errors import InputError
from cdga_sdk.image_size import JPEG, stated_size_wh, walk_jpeg
from cdga_sdk.opencv import cv2
from cdga_sdk.palette_png import grey_from_palette, grey_spread, is_palette_png
from cdga_sdk.preprocess import UInt8Array

__all__ = [
    "IMAGE_SUFFIXES",
    "decode_png",
    "is_image_file",
    "list_images",
    "read_image_bgr",
    "read_label",
    "read_stored",
    "write_png",
]

IMAGE_SUFFIXES: Final = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
_MAX_PIXELS: Final = 150_000_000


def is_image_file(path: Path) -> bool:
    """Whether the name ends as a still image's does."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def list_images(folder: Path) -> list[Path]:
    """The images directly inside ``folder``, sorted by name, without hidden files (macOS's ``._*``).

    Raises:
        InputError: No such folder, or no image in it.
    """
    if not folder.is_dir():
        raise InputError("no such folder", where=folder)
    images = sorted(p for p in folder.iterdir() if is_image_file(p) and p.is_file() and not p.name.startswith("."))
    if not images:
        raise InputError("no images in this folder", where=folder, fix=f"wanted {', '.join(sorted(IMAGE_SUFFIXES))}")
    return images


def read_image_bgr(path: Path) -> UInt8Array:
    """Read an image as (H, W, 3) uint8 BGR, upright by its EXIF tag.

    Raises:
        InputError: Missing, empty, not an image, cut short, or absurdly large.
    """
    return np.asarray(_decode(path, _read_checked(path), cv2.IMREAD_COLOR), np.uint8)


def read_stored(path: Path) -> npt.NDArray[np.uint8 | np.uint16]:
    """Read an image as it is stored: (H, W) or (H, W, C), 8 or 16 bits, colours as BGR, a palette PNG as its indices.

    Raises:
        InputError: As `read_image_bgr` does.
    """
    data = _read_checked(path)
    if not is_palette_png(data):
        stored, spread = _decode(path, data, cv2.IMREAD_UNCHANGED), grey_spread(data)
        return stored if spread == 1 else np.asarray(stored // spread)
    grey, scale = grey_from_palette(data)
    return np.asarray(_decode(path, grey, cv2.IMREAD_UNCHANGED) // scale)


def read_label(path: Path) -> UInt8Array:
    """Read a label map as (H, W) uint8 ids, exactly as stored; of a palette PNG the indices.

    Raises:
        InputError: Unreadable, or not a single-channel 8-bit image.
    """
    label = read_stored(path)
    if label.ndim != 2 or label.dtype != np.uint8:
        raise InputError(
            f"label image has shape {label.shape} and type {label.dtype}, wanted one 8-bit channel of class ids",
            where=path,
            fix="save labels as 8-bit greyscale PNG, one class id per pixel",
        )
    return np.asarray(label, np.uint8)


def write_png(path: Path, image: UInt8Array) -> None:
    """Write a PNG atomically, at the fastest compression (masks are flat: a level more costs time and saves little)."""
    done, data = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    assert done, f"PNG encoder refused an array of shape {image.shape}"
    write_bytes(path, data.tobytes(), durable=False)


def decode_png(data: bytes, where: Path) -> UInt8Array:
    """What `write_png` was given, from the file's bytes; ``where`` names it in errors.

    Raises:
        InputError: Not an image of 8 bits, or absurdly large.
    """
    _refuse_bomb(where, data)
    image = _decode(where, data, cv2.IMREAD_UNCHANGED)
    if image.dtype != np.uint8:
        raise InputError(f"image of type {image.dtype}, wanted 8 bits", where=where)
    return np.asarray(image, np.uint8)


def _read_checked(path: Path) -> bytes:
    data = _read_bytes(path)
    _refuse_cut_jpeg(path, data)
    _refuse_bomb(path, data)
    return data


def _decode(path: Path, data: bytes, flags: int) -> npt.NDArray[np.uint8 | np.uint16]:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        image = None
    if image is None:
        raise InputError("not an image that can be decoded", where=path, fix="check the file, or remove it")
    return np.asarray(image)


def _read_bytes(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise InputError("no such file" if not path.exists() else "not a regular file", where=path)
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read ({error.strerror})", where=path) from error
    if not data:
        raise InputError("file is empty", where=path)
    return data


def _refuse_cut_jpeg(path: Path, data: bytes) -> None:
    # OpenCV fills the missing part of a truncated JPEG with grey and reports success.
    # The search starts behind the headers: a thumbnail in them has an end marker of its own.
    if data[:3] == JPEG and b"\xff\xd9" not in data[walk_jpeg(data)[0] :]:
        raise InputError("JPEG is cut short (no end marker)", where=path, fix="copy the file again")


def _refuse_bomb(path: Path, data: bytes) -> None:
    width, height = stated_size_wh(data)
    if width <= 0 or height <= 0:  # GIF and others that OpenCV reads too: how much memory they take is not known before
        fix = "wanted a PNG, JPEG, WebP, BMP or TIFF; check the file, or remove it"
        raise InputError("not an image that can be decoded", where=path, fix=fix)
    if width * height > _MAX_PIXELS:
        raise InputError(f"image of {width}x{height} pixels is too large", where=path)
