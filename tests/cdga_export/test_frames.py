"""Frames that an export is judged on and set by: at whose size they are, and that no frame is both."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from cdga_export.frames import NUM_CALIB, NUM_GOLDEN, calibration_frames, golden_frames
from cdga_sdk.errors import InputError, UsageError
from cdga_sdk.image import write_png
from cdga_train.data.streets import render_frame

HW = (64, 128)


@pytest.fixture(scope="module")
def ride(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 frames, all different, of another size than the network's."""
    path, image_rgb = tmp_path_factory.mktemp("clip") / "ride.mkv", render_frame(seed=0, size_wh=(192, 96)).image_rgb
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=Fraction(25))
        stream.width, stream.height, stream.pix_fmt = 192, 96, "bgr0"
        for number in range(60):
            moved = np.roll(image_rgb, 3 * number, axis=1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(moved, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_golden_frames_of_a_video_keep_its_size(ride: Path) -> None:
    frames = golden_frames(f"video:{ride}", HW)
    assert len(frames) == NUM_GOLDEN
    assert {frame.image_bgr.shape for frame in frames} == {(96, 192, 3)}
    assert {frame.frame_rgb.shape for frame in frames} == {(*HW, 3)}


def test_no_frame_is_golden_and_calibrates_whatever_the_video_is_called(ride: Path, tmp_path: Path) -> None:
    link = tmp_path / "other name.mkv"
    link.symlink_to(ride)
    golden = golden_frames(f"video:{ride}", HW)
    judged = {frame.frame_rgb.tobytes() for frame in golden}
    for place in (ride, link, ride.parent / "." / ".." / ride.parent.name / ride.name):
        seen = calibration_frames(f"video:{place}", golden, HW)
        assert NUM_CALIB // 2 < len(seen) <= NUM_CALIB
        assert not judged & {frame.frame_rgb.tobytes() for frame in seen}


def test_data_that_are_all_golden_leave_none(tmp_path: Path) -> None:
    write_png(tmp_path / "images/a.png", np.random.default_rng(0).integers(0, 256, (*HW, 3), np.uint8))
    golden = golden_frames(f"folder:{tmp_path}", HW)
    with pytest.raises(InputError, match="all of its frames are golden"):
        calibration_frames(f"folder:{tmp_path}", golden, HW)


def test_an_empty_word_is_no_data() -> None:
    with pytest.raises(UsageError, match="unknown data ''"):
        calibration_frames("", [], HW)
