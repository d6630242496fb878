"""The threaded pipeline when something breaks, when somebody is in a hurry, and over ten thousand frames."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from cdga_sdk.result import SegResult
from cdga_sdk.segmenter import Segmenter
from cdga_sdk.video import run_folder, yuv_overlay
from cdga_sdk.video.pipeline import VideoOptions, segment_video
from cdga_sdk.video.run_folder import RunSummary
from cdga_sdk.video.sink import VideoSink, probe
from cdga_sdk.video.source import Frame, VideoSource
from cdga_sdk.video.yuv_overlay import Picture

STOPPED_WITHIN_S = 2.0
ROOT = Path(__file__).parents[3]


class PlantedError(Exception):
    """None that the code knows."""


def run(segmenter: Any, source: Path, folder: Path, **options: Any) -> RunSummary:
    wanted: dict[str, Any] = {"save": ("video", "json"), "options": VideoOptions()}
    return segment_video(segmenter, source, folder, **(wanted | options))


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.fixture
def nothing_left(segmenter: Segmenter, ride: Path, tmp_path: Path) -> Iterator[None]:
    """After the test there are as many threads and open files as before it."""
    run(segmenter, ride, tmp_path / "warm")  # runtimes and libraries keep what they open once
    gc.collect()
    before = threading.active_count(), open_files()
    yield
    deadline_s = time.monotonic() + 5
    while (now := (threading.active_count(), open_files())) > before and time.monotonic() < deadline_s:
        gc.collect()
        time.sleep(0.05)
    assert now == before


def break_decoding(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    whole = VideoSource.__iter__

    def broken(self: VideoSource) -> Iterator[Frame]:
        for frame in whole(self):
            if frame.index == at:
                raise PlantedError("decode")
            yield frame

    monkeypatch.setattr(VideoSource, "__iter__", broken)


def break_segmenting(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    whole = Segmenter.finish

    def broken(self: Segmenter, *values: Any, **words: Any) -> SegResult:
        if words["frame"] == at:
            raise PlantedError("segment")
        return whole(self, *values, **words)

    monkeypatch.setattr(Segmenter, "finish", broken)


def break_drawing(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    whole, frames = yuv_overlay.draw_overlay_yuv, count()

    def broken(*values: Any, **words: Any) -> Picture:
        if next(frames) == at:
            raise PlantedError("draw")
        return whole(*values, **words)

    monkeypatch.setattr(run_folder, "draw_overlay_yuv", broken)


def break_encoding(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    whole = VideoSink.write_picture

    def broken(self: VideoSink, picture: Picture, pts: int) -> None:
        if self.frames_written == at:
            raise PlantedError("encode")
        whole(self, picture, pts)

    monkeypatch.setattr(VideoSink, "write_picture", broken)


@pytest.mark.parametrize("at", [0, 1, 7])
@pytest.mark.parametrize("broken", [break_decoding, break_segmenting, break_drawing, break_encoding])
@pytest.mark.usefixtures("nothing_left")
def test_an_error_of_any_stage_arrives_and_what_was_made_plays(
    broken: Callable[[pytest.MonkeyPatch, int], None],
    at: int,
    segmenter: Segmenter,
    ride: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken(monkeypatch, at)
    clock = time.monotonic()
    with pytest.raises(PlantedError):
        run(segmenter, ride, tmp_path / "run")
    assert time.monotonic() - clock < STOPPED_WITHIN_S
    monkeypatch.undo()
    assert not (tmp_path / "run/overlay.mp4").exists()
    partial = tmp_path / "run/overlay.partial.mp4"
    assert partial.exists() == (at > 0)
    if at:
        assert '"status": "failed"' in (tmp_path / "run/summary.json").read_text()
        assert probe(partial).num_frames == at
    run(segmenter, ride, tmp_path / "run")
    assert probe(tmp_path / "run/overlay.mp4").num_frames == 12


@contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """As Ctrl-C does, wherever the main thread is by then."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    handler = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


@pytest.mark.signals
@pytest.mark.usefixtures("nothing_left")
def test_an_interruption_at_any_moment(segmenter: Segmenter, long_ride: Path, tmp_path: Path) -> None:
    moments = random.Random(0)
    for number in range(12):
        folder = tmp_path / f"run{number}"
        after_s = moments.uniform(0.001, 0.4)
        clock = time.monotonic()
        with pytest.raises(KeyboardInterrupt), interrupted_after(after_s):
            run(segmenter, long_ride, folder)
        assert time.monotonic() - clock < after_s + STOPPED_WITHIN_S
        assert not (folder / "overlay.mp4").exists()
        partial = folder / "overlay.partial.mp4"
        if partial.exists():
            with VideoSource(partial) as frames:
                assert sum(1 for _ in frames) == probe(partial).num_frames > 0
            assert '"status": "interrupted"' in (folder / "summary.json").read_text()


def test_a_slow_network_holds_the_source_back(
    segmenter: Segmenter, long_ride: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []
    whole = VideoSource.__iter__

    def counted(self: VideoSource) -> Iterator[Frame]:
        for frame in whole(self):
            decoded.append(frame.index)
            yield frame

    monkeypatch.setattr(VideoSource, "__iter__", counted)
    ahead = []

    def slow(result: SegResult) -> None:
        time.sleep(0.02)
        ahead.append(len(decoded) - result.frame - 1)

    run(segmenter, long_ride, tmp_path / "run", options=VideoOptions(max_frames=20), on_frame=slow)
    assert max(ahead) <= 4
    assert ahead[10] >= 1


SLOPE = """
import gc, sys
from pathlib import Path
import numpy as np
from cdga_sdk.segmenter import Segmenter
from cdga_sdk.video.pipeline import VideoOptions, segment_video

def held_bytes():
    gc.collect()
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])

bundle, clip, folder, frames, leak = sys.argv[1:]
kept, held, at = [], [], []
def on_frame(result):
    if leak == "leak":
        kept.append(bytes(200))
    if result.frame % 250 == 0:
        held.append(held_bytes())
        at.append(result.frame)
with Segmenter(bundle, backend="onnxruntime", device="cpu", threads=1) as segmenter:
    summary = segment_video(
        segmenter, Path(clip), Path(folder), save=("video", "json"),
        options=VideoOptions(preset="ultrafast", max_frames=int(frames)), on_frame=on_frame,
    )
settled = len(held) // 3
early, late = (np.median(one) for one in (held[settled:2 * settled], held[2 * settled:]))
span = np.mean(at[2 * settled:]) - np.mean(at[settled:2 * settled])
print(summary.frames, (late - early) / span)
"""


@pytest.fixture(scope="module")
def ten_thousand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of 10,000 frames of 32x16."""
    path = tmp_path_factory.mktemp("ten_thousand") / "long.mp4"
    picture = np.random.default_rng(0).integers(0, 256, (16, 32, 3), dtype=np.uint8)
    with VideoSink(
        path, size_wh=(32, 16), rate=Fraction(25), time_base=Fraction(1, 25), crf=40, preset="ultrafast"
    ) as sink:
        for tick in range(10_000):
            sink.write(picture, tick)
    return path


@pytest.mark.parametrize(("num_frames", "leak"), [(10_000, ""), (3_000, "leak")])
def test_memory_does_not_grow_with_the_length(
    tiny_bundle: Path, ten_thousand: Path, tmp_path: Path, num_frames: int, leak: str
) -> None:
    arguments = [str(tiny_bundle), str(ten_thousand), str(tmp_path / "run"), str(num_frames), leak]
    done = subprocess.run(
        [sys.executable, "-c", SLOPE, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if not k.startswith("COV")},
    )
    frames, bytes_per_frame = done.stdout.split()
    assert int(frames) == num_frames
    assert (float(bytes_per_frame) <= 50) == (leak == "")


def test_what_another_thread_is_inside_of_stays_open(ride: Path, tmp_path: Path) -> None:
    """Closing it would crash the thread when it comes back."""
    with VideoSource(ride) as source:
        decoder = source._decoder
        assert decoder is not None
        with source._in_use:
            source.close()
        assert decoder.container is not None
    assert decoder.container is None
    rate = Fraction(25)
    with VideoSink(tmp_path / "a.mp4", size_wh=(32, 16), rate=rate, time_base=1 / rate) as sink:
        sink.write(np.zeros((16, 32, 3), np.uint8), 0)
        with sink._in_use:
            sink._close_quietly()
        sink.write(np.zeros((16, 32, 3), np.uint8), 1)
    assert probe(tmp_path / "a.mp4").num_frames == 2
