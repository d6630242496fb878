"""The examples and the README's commands, run as a reader would run them."""

from __future__ import annotations

import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from cdga_sdk import Segmenter
from cdga_sdk.video.sink import VideoSink
from cdga_train.data.streets import render_clip

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def ride(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ride") / "ride.mp4"
    rate = Fraction(25)
    with VideoSink(path, size_wh=(192, 96), rate=rate, time_base=1 / rate) as sink:
        for index, frame in enumerate(render_clip(seed=5, num_frames=8, size_wh=(192, 96))):
            sink.write(np.ascontiguousarray(frame.image_rgb[:, :, ::-1]), index)
    return path


def python(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_free_space(ride: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    done = python(ROOT / "examples/free_space.py", ride, tiny_bundle, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"road +\d+\.\d%", done.stdout)) == 8


@pytest.mark.parametrize("example", ["free_space", "adapt_to_clip"])
def test_an_example_without_its_arguments(example: str, tmp_path: Path) -> None:
    done = python(ROOT / f"examples/{example}.py", "--help", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"usage: python examples/{example}.py VIDEO BUNDLE")
    assert done.stderr.count("\n") == 1


def test_adapt_to_clip(ride: Path, tmp_path: Path) -> None:
    small = ["iters=12", "imgsz=64,128", "batch=2", "num_groups=2", "align_resolution=input"]
    done = python(ROOT / "examples/adapt_to_clip.py", ride, "adapted.cdga", *small, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with Segmenter(tmp_path / "adapted.cdga") as segmenter:
        assert segmenter.manifest.provenance.target == f"video:{ride.name}"
