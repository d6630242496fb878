"""Samples at the network's size, kept in memory and, where a folder is given, on the disk for the next run.

Decoding and shrinking a 2048x1024 PNG costs tens of milliseconds; a kept one costs one or two.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import zlib
from pathlib import Path
from threading import Lock
from typing import Final

import numpy as np

from cdga_sdk.atomic import write_bytes
from cdga_sdk.errors import CdgaError
from cdga_sdk.opencv import cv2
from cdga_sdk.preprocess import RESIZE_RULE, UInt8Array, resize_image, resize_label
from cdga_train.data.base import Dataset, Sample

__all__ = ["RamBudget", "ResizedSamples"]

_FORMAT: Final = "1"
_TAIL: Final = struct.Struct("<II")  # bytes of the name before it; crc32 of everything before the crc32
RESERVE_BYTES: Final = 2 * 2**30  # left free on the disk: a cache must not be what a checkpoint cannot be written for


class RamBudget:
    """Bytes that samples kept in memory may take, over all data sets of a run."""

    def __init__(self, limit_bytes: float) -> None:
        self._left = limit_bytes
        self._lock = Lock()

    def take(self, size: int) -> bool:
        """Whether ``size`` bytes more may be kept."""
        with self._lock:
            fits = size <= self._left
            self._left -= size if fits else 0
        return fits


class ResizedSamples:
    """``samples[i]`` is ``dataset[i]`` with image and label at ``size_hw``; arrays are read-only. Thread-safe.

    On the disk each sample is ``disk/KEY/000123.npy``: uint8 (H, W, 4), BGR and label ((H, W, 3) where unlabelled),
    then its name and a checksum. KEY stands for everything that decides the content, so that a changed data set or
    size gets files of its own; a file that is damaged in any way is made anew. The folder may be deleted at any time.
    1024x512 takes 2.1 MB a sample.

    Args:
        dataset: What is resized.
        size_hw: Height and width of the network's input.
        ram: Shared by all data sets of a run; samples that do not fit are read again each time.
        disk: Folder of the caches of all runs, or None.
    """

    def __init__(self, dataset: Dataset, size_hw: tuple[int, int], *, ram: RamBudget, disk: Path | None = None) -> None:
        self._dataset = dataset
        self._size_hw = size_hw
        self._ram = ram
        self._folder = None if disk is None else disk / _key(dataset, size_hw)
        self._is_writing = self._folder is not None
        self._kept: dict[int, Sample] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Sample:
        if index in self._kept:
            return self._kept[index]
        sample = self._from_disk(index) or self._made(index)
        with self._lock:  # another thread may have made it meanwhile: count it once
            if index not in self._kept and self._ram.take(_num_bytes(sample)):
                self._kept[index] = sample
            return self._kept.get(index, sample)

    @property
    def is_writing(self) -> bool:
        """Whether samples still go to the disk: false without a folder, and from the first failed write on."""
        return self._is_writing

    def _made(self, index: int) -> Sample:
        sample = self._dataset[index]
        label = None if sample.label is None else _frozen(resize_label(sample.label, self._size_hw))
        image_bgr = _frozen(resize_image(sample.image_bgr, self._size_hw))
        sample = Sample(name=sample.name, image_bgr=image_bgr, label=label)
        if self._folder is not None and self._is_writing:
            self._write(_file(self._folder, index), _packed(sample))
        return sample

    def _from_disk(self, index: int) -> Sample | None:
        if self._folder is None:
            return None
        try:
            data = _file(self._folder, index).read_bytes()
        except OSError:
            return None
        return _unpacked(data, self._size_hw, is_labelled=self._dataset.is_labelled)

    def _write(self, file: Path, data: bytes) -> None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(file.parent).free < RESERVE_BYTES + len(data):
                self._is_writing = False
            else:
                write_bytes(file, data, durable=False)
        except (CdgaError, OSError):  # a full or read-only disk costs time, not the run
            self._is_writing = False


def _key(dataset: Dataset, size_hw: tuple[int, int]) -> str:
    facts = {
        "format": _FORMAT,
        "data": dataset.identity(),
        "is_labelled": dataset.is_labelled,
        "size_hw": size_hw,
        "image": RESIZE_RULE,
        "label": "nearest, pixel centres aligned",
        "opencv": cv2.__version__,
        "numpy": np.__version__,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _file(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.npy"


def _num_bytes(sample: Sample) -> int:
    return sample.image_bgr.nbytes + (0 if sample.label is None else sample.label.nbytes)


def _frozen(array: UInt8Array) -> UInt8Array:
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


def _npy_header(shape: tuple[int, int, int]) -> bytes:
    """The first bytes of a .npy file of uint8 (NumPy's format 1.0): the data begin at a multiple of 64."""
    words = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}"
    words += " " * (-(10 + len(words) + 1) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(words)) + words.encode()


def _packed(sample: Sample) -> bytes:
    planes = sample.image_bgr if sample.label is None else np.dstack([sample.image_bgr, sample.label])
    height, width, channels = planes.shape
    name = sample.name.encode("utf-8", "surrogateescape")
    data = _npy_header((height, width, channels)) + planes.tobytes() + name + struct.pack("<I", len(name))
    return data + struct.pack("<I", zlib.crc32(data))


def _unpacked(data: bytes, size_hw: tuple[int, int], *, is_labelled: bool) -> Sample | None:
    """The sample that `_packed` made ``data`` of; None where one byte is not as it was."""
    shape = (*size_hw, 3 + is_labelled)
    header = _npy_header(shape)
    end = len(header) + int(np.prod(shape))
    if len(data) < end + _TAIL.size or not data.startswith(header):
        return None
    name_bytes, checksum = _TAIL.unpack(data[-_TAIL.size :])
    if len(data) != end + name_bytes + _TAIL.size or zlib.crc32(memoryview(data)[:-4]) != checksum:
        return None
    planes = np.frombuffer(data, np.uint8, count=end - len(header), offset=len(header)).reshape(shape)
    return Sample(
        name=data[end : end + name_bytes].decode("utf-8", "surrogateescape"),
        image_bgr=_frozen(planes[:, :, :3]),
        label=_frozen(planes[:, :, 3]) if is_labelled else None,
    )
