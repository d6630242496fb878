"""A video as an unlabelled target, from clips written here."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from cdga_sdk.errors import InputError
from cdga_train.data.video import VideoDataset


def clip(path: Path, num_frames: int) -> Path:
    """A lossless clip of 48x32 in which frame ``i`` is grey ``10 * i``."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=Fraction(25))
        stream.width, stream.height, stream.pix_fmt = 48, 32, "bgr0"
        for i in range(num_frames):
            image = np.full((32, 48, 3), 10 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("num_frames", "max_frames", "kept"),
    [
        (5, 1000, [0, 1, 2, 3, 4]),
        (5, 5, [0, 1, 2, 3, 4]),
        (6, 5, [0, 2, 4]),
        (11, 5, [0, 4, 8]),  # thinned to every 2nd, then to every 4th
        (24, 2, [0, 16]),
    ],
)
def test_frames_are_spread_evenly(tmp_path: Path, num_frames: int, max_frames: int, kept: list[int]) -> None:
    data = VideoDataset(str(clip(tmp_path / "ride.mkv", num_frames)), (32, 48), max_frames=max_frames)
    assert [data[i].name for i in range(len(data))] == [f"ride_{i:06d}" for i in kept]
    assert [int(data[i].image_bgr[0, 0, 0]) for i in range(len(data))] == [10 * i for i in kept]
    assert len(data) <= max_frames


def test_frames_take_the_networks_size_and_no_label(tmp_path: Path) -> None:
    data = VideoDataset(str(clip(tmp_path / "ride.mkv", 2)), (16, 20))
    assert not data.is_labelled
    assert data[1].image_bgr.shape == (16, 20, 3)
    assert data[1].label is None


def test_not_a_video(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("no video")
    for file in ("a.mp4", "absent.mp4"):
        with pytest.raises(InputError):
            VideoDataset(str(tmp_path / file), (32, 48))


def test_the_dashcam_clip(dashcam: Path) -> None:
    data = VideoDataset(str(dashcam), (64, 128), max_frames=100)
    assert len(data) == 56  # 221 frames, every 4th
    assert data[55].name == "solidWhiteRight_000220"
    assert data[0].image_bgr.shape == (64, 128, 3)
