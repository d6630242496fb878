"""A video as an unlabelled target: frames spread evenly over it."""

from __future__ import annotations

from pathlib import Path

from cdga_sdk.errors import InputError
from cdga_sdk.preprocess import UInt8Array, resize_image
from cdga_sdk.video.source import VideoSource
from cdga_train.data.base import Sample

__all__ = ["VideoDataset"]


class VideoDataset:
    """Frames of one video, decoded once and kept in memory at the network's size.

    Args:
        place: The video file.
        size_hw: Frames are resized to this.
        max_frames: Keep at most this many, evenly spread; 1000 frames of 256x512 take 0.4 GB.

    Raises:
        InputError: Not a video that can be decoded.
    """

    is_labelled = False

    def __init__(self, place: str, size_hw: tuple[int, int], *, max_frames: int = 1000) -> None:
        self._stem = Path(place).stem
        self._size_hw = size_hw
        self._max_frames = max_frames
        self._frames: list[tuple[int, UInt8Array]] = []
        stride = 1
        with VideoSource(place) as source:
            for frame in source:
                if frame.index % stride:
                    continue
                self._frames.append((frame.index, resize_image(frame.image_bgr, size_hw)))
                if len(self._frames) > max_frames:  # the length is not known beforehand: thin out and go on
                    self._frames = self._frames[::2]
                    stride *= 2
        if not self._frames:
            raise InputError("video has no frames", where=place)
        stat = Path(place).stat()
        self._file = f"{Path(place).name!a} {stat.st_size} {stat.st_mtime_ns}"

    def __len__(self) -> int:
        return len(self._frames)

    def identity(self) -> str:
        """The file's name, size and time of change, and which frames of it are kept at which size."""
        return f"video {self._file} {self._size_hw} {self._max_frames}"

    def __getitem__(self, index: int) -> Sample:
        number, image_bgr = self._frames[index]
        return Sample(name=f"{self._stem}_{number:06d}", image_bgr=image_bgr, label=None)
