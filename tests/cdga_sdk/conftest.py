"""What the tests of the SDK share: an open segmenter, a clip, and a disk that runs full."""

from __future__ import annotations

import contextlib
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cdga_sdk.opencv import cv2
from cdga_sdk.segmenter import Segmenter
from cdga_sdk.video.sink import VideoSink


def street(index: int, size_wh: tuple[int, int] = (128, 64)) -> NDArray[np.uint8]:
    """A smooth coloured (H, W, 3) picture that differs from index to index."""
    coarse = np.random.default_rng(index).integers(0, 256, (4, 8, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, size_wh, interpolation=cv2.INTER_CUBIC), np.uint8)


def make_ride(path: Path, num_frames: int, size_wh: tuple[int, int] = (128, 64)) -> Path:
    """An H.264 clip of 25 frames per second."""
    pictures = [street(i, size_wh) for i in range(min(num_frames, 10))]
    with VideoSink(
        path, size_wh=size_wh, rate=Fraction(25), time_base=Fraction(1, 25), crf=30, preset="ultrafast"
    ) as sink:
        for tick in range(num_frames):
            sink.write(pictures[tick % len(pictures)], tick)
    return path


@pytest.fixture
def picture() -> Callable[..., NDArray[np.uint8]]:
    """``picture(index, size_wh)``."""
    return street


@pytest.fixture(scope="session")
def ride(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of 12 frames of 128x64 at 25 fps; read only."""
    return make_ride(tmp_path_factory.mktemp("ride") / "ride.mp4", 12)


@pytest.fixture(scope="session")
def long_ride(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of 3000 frames, too long to be segmented before a signal arrives; read only."""
    return make_ride(tmp_path_factory.mktemp("long_ride") / "long.mp4", 3000, (64, 48))


@pytest.fixture(scope="session")
def segmenter(tiny_bundle: Path) -> Iterator[Segmenter]:
    """ONNX Runtime on one thread, open for the whole session."""
    with Segmenter(tiny_bundle, backend="onnxruntime", device="cpu", threads=1) as opened:
        yield opened


@pytest.fixture
def own_bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle that the test may damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "own.cdga"))


@pytest.fixture
def full_disk_after() -> Callable[[int], contextlib.AbstractContextManager[None]]:
    """Context manager: no file of this process may grow beyond so many bytes (EFBIG stands in for a full disk)."""

    @contextlib.contextmanager
    def limited(num_bytes: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, handler)

    return limited
