"""Real frames: some that an export is judged on, others that it is set by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from cdga_sdk.errors import InputError
from cdga_sdk.preprocess import UInt8Array, resize_image
from cdga_train.data.base import Dataset
from cdga_train.data.spec import open_unlabelled, video_of
from cdga_train.data.streets import DOMAINS, render_frame
from cdga_train.data.video import VideoDataset

__all__ = ["NUM_CALIB", "NUM_GOLDEN", "Frame", "calibration_frames", "golden_frames"]

NUM_GOLDEN: Final = 8
NUM_CALIB: Final = 32


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A frame twice.

    Attributes:
        name: As it can stand in a file name.
        image_bgr: (any height, any width, 3) uint8, as it was read.
        frame_rgb: (H, W, 3) uint8, as the network takes it.
    """

    name: str
    image_bgr: UInt8Array
    frame_rgb: UInt8Array


def golden_frames(golden: str | None, imgsz_hw: tuple[int, int]) -> list[Frame]:
    """Frames spread over the data ``golden``, at their own size, or of every domain of the streets."""
    if golden is None:
        return _streets(range(NUM_GOLDEN), imgsz_hw)
    split = "val" if golden.startswith("streets:") else "train"
    data = _opened(golden, split, imgsz_hw, video_hw=None, wanted=NUM_GOLDEN)
    return _frames_of(data, _spread(range(len(data)), NUM_GOLDEN), imgsz_hw)


def calibration_frames(spec: str | None, golden: Sequence[Frame], imgsz_hw: tuple[int, int]) -> list[Frame]:
    """Frames spread over the data ``spec`` without the ``golden`` ones, whatever these were called there.

    Tuning and judging stay apart. Without a ``spec`` they are drawn streets.

    Raises:
        InputError: All frames of the data are golden.
    """
    if spec is None:
        return _streets(range(NUM_GOLDEN, NUM_GOLDEN + NUM_CALIB), imgsz_hw)
    wanted = NUM_CALIB + len(golden)
    data = _opened(spec, "train", imgsz_hw, video_hw=imgsz_hw, wanted=wanted)
    judged = {frame.frame_rgb.tobytes() for frame in golden}
    looked_at = _frames_of(data, _spread(range(len(data)), wanted), imgsz_hw)
    others = [frame for frame in looked_at if frame.frame_rgb.tobytes() not in judged]
    if not others:
        raise InputError(
            "all of its frames are golden: none is left to calibrate on",
            where=spec,
            fix="give --calib with other footage",
        )
    return [others[place] for place in _spread(range(len(others)), NUM_CALIB)]


def _streets(seeds: range, imgsz_hw: tuple[int, int]) -> list[Frame]:
    size_wh = (imgsz_hw[1], imgsz_hw[0])
    frames = []
    for seed in seeds:
        domain = DOMAINS[seed % len(DOMAINS)]
        drawn = render_frame(seed=seed, domain=domain, size_wh=size_wh)
        frames.append(_frame(f"streets_{domain}_{seed}", np.ascontiguousarray(drawn.image_rgb[:, :, ::-1]), imgsz_hw))
    return frames


def _opened(
    spec: str, split: str, imgsz_hw: tuple[int, int], *, video_hw: tuple[int, int] | None, wanted: int
) -> Dataset:
    """The data; of a video, at ``video_hw``, ``wanted`` frames where it has as many, and at most twice that."""
    video = video_of(spec)
    if video is None:
        return open_unlabelled(spec, split, imgsz_hw)
    return VideoDataset(video, video_hw, max_frames=2 * wanted)


def _frames_of(data: Dataset, numbers: Sequence[int], imgsz_hw: tuple[int, int]) -> list[Frame]:
    samples = (data[number] for number in numbers)
    return [_frame(f"{i:02d}_{_plain(s.name)}", s.image_bgr, imgsz_hw) for i, s in enumerate(samples)]


def _frame(name: str, image_bgr: UInt8Array, imgsz_hw: tuple[int, int]) -> Frame:
    frame_rgb = np.ascontiguousarray(resize_image(image_bgr, imgsz_hw)[:, :, ::-1])
    return Frame(name=name, image_bgr=image_bgr, frame_rgb=frame_rgb)


def _plain(name: str) -> str:
    """``name`` as it can stand in a file name and in SHA256SUMS: letters, digits, ``_`` and ``-``, not too many."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in name[:80])


def _spread(numbers: range, wanted: int) -> list[int]:
    places = np.linspace(0, len(numbers) - 1, min(len(numbers), wanted))
    return [numbers[int(place)] for place in places]
