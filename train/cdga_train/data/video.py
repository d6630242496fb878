"""A video as an unlabelled target: frames spread evenly over it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cdga_sdk.errors import InputError
from cdga_sdk.preprocess import UInt8Array, resize_image
from cdga_sdk.video.source import VideoSource
from cdga_train.data.base import Sample

__all__ = ["VideoDataset", "VideoReport", "check_video"]


class VideoDataset:
    """Frames of one video, decoded once and kept in memory.

    Args:
        place: The video file.
        size_hw: Frames are resized to this; None keeps them as they are.
        max_frames: Keep at most this many, evenly spread; 1000 frames of 256x512 take 0.4 GB. Of a video that has as
            many, at least half of them are kept.

    Raises:
        InputError: Not a video that can be decoded.
    """

    is_labelled = False

    def __init__(self, place: str, size_hw: tuple[int, int] | None, *, max_frames: int = 1000) -> None:
        self._stem = Path(place).stem
        self._size_hw = size_hw
        self._max_frames = max_frames
        self._frames: list[tuple[int, UInt8Array]] = []
        stride = 1
        with VideoSource(place) as source:
            for frame in source:
                if frame.index % stride:
                    continue
                image_bgr = frame.image_bgr if size_hw is None else resize_image(frame.image_bgr, size_hw)
                self._frames.append((frame.index, image_bgr))
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


@dataclass(frozen=True, kw_only=True)
class VideoReport:
    """What a video holds.

    Attributes:
        frames: Those that can be decoded.
        damaged_frames: Those of them that are damaged or concealed.
        lost_packets: Parts of the stream that gave no frame.
        seconds: From the first frame to the last.
        image_sizes_wh: How many frames have each (width, height).
    """

    frames: int
    damaged_frames: int
    lost_packets: int
    seconds: float
    image_sizes_wh: dict[tuple[int, int], int]


def check_video(place: str, on_frame: Callable[[int], None] = lambda _: None) -> VideoReport:
    """Decode a whole video, as training will.

    Args:
        place: The video file.
        on_frame: Called with the number of frames done.

    Raises:
        InputError: Not a video that can be decoded.
    """
    frames = damaged = 0
    times: list[float] = []
    sizes: Counter[tuple[int, int]] = Counter()
    with VideoSource(place) as source:
        for frame in source:
            frames, damaged = frames + 1, damaged + frame.is_corrupt
            times = [*times[:1], frame.time_s]
            sizes[frame.image_bgr.shape[1], frame.image_bgr.shape[0]] += 1
            on_frame(frames)
        lost = source.corrupt_packets
    return VideoReport(
        frames=frames,
        damaged_frames=damaged,
        lost_packets=lost,
        seconds=times[-1] - times[0],
        image_sizes_wh=dict(sizes),
    )
