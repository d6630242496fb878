"""Small clips made with PyAV alone, so that neither the source nor the sink makes what the other is tested on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

ClipMaker = Callable[..., Path]


def grey_of(index: int) -> int:
    """Brightness that tells frame ``index`` of a clip apart from its neighbours."""
    return 30 + index * 5 % 200


def picture(index: int, size_wh: tuple[int, int]) -> NDArray[np.uint8]:
    """A noisy picture whose mean brightness is about ``grey_of(index)``; noise makes every packet worth corrupting."""
    noise = np.random.default_rng(index).integers(-20, 21, (size_wh[1], size_wh[0], 3))
    return np.asarray(np.clip(grey_of(index) + noise, 0, 255), dtype=np.uint8)


def make_clip(
    path: Path,
    *,
    num_frames: int = 30,
    size_wh: tuple[int, int] = (64, 48),
    rate: Fraction = Fraction(25),
    time_base: Fraction | None = None,
    pts: Sequence[int] | None = None,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    movflags: str = "",
    b_frames: int = 0,
    rotation: float | None = None,
    hflip: bool = False,
    sample_aspect_ratio: Fraction | None = None,
    pictures: Sequence[NDArray[np.uint8]] | None = None,
) -> Path:
    """Encode frames with a keyframe every 10, in the container that the name asks for."""
    time_base = 1 / rate if time_base is None else time_base
    pts = list(range(num_frames)) if pts is None else pts
    pictures = pictures or [picture(i, size_wh) for i in range(len(pts))]
    with av.open(str(path), "w", options={"movflags": movflags} if movflags else {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = *size_wh, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.time_base = time_base
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = 10, b_frames
        if sample_aspect_ratio is not None:
            stream.codec_context.sample_aspect_ratio = sample_aspect_ratio
        if rotation is not None:
            stream.set_display_rotation(rotation, hflip=hflip)
        for tick, image in zip(pts, pictures, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="bgr24")
            frame.pts, frame.time_base = tick, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture
def clip(tmp_path: Path) -> ClipMaker:
    """``clip("name.mp4", **options)`` makes a clip in the test's own folder."""
    return lambda name, **options: make_clip(tmp_path / name, **options)
