"""VideoSink: timing, colours, sizes, and what is on the disk after every way to stop."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, VideoReformatter
from numpy.typing import NDArray

from cdga_sdk.errors import InputError, ResourceError, UsageError
from cdga_sdk.video.sink import VideoInfo, VideoSink, probe
from cdga_sdk.video.source import VideoSource
from cdga_sdk.video.yuv_overlay import BT709

Clip = Callable[..., Path]
Image = NDArray[np.uint8]
FullDisk = Callable[[int], contextlib.AbstractContextManager[None]]
TICK = Fraction(1, 25)


def picture(index: int, size_wh: tuple[int, int] = (64, 48)) -> Image:
    return np.random.default_rng(index).integers(0, 256, (size_wh[1], size_wh[0], 3), dtype=np.uint8)


def sink_at(path: Path, size_wh: tuple[int, int] = (64, 48), **options: Any) -> VideoSink:
    wanted: dict[str, Any] = {"size_wh": size_wh, "rate": Fraction(25), "time_base": TICK}
    return VideoSink(path, **(wanted | options))


def write(path: Path, pts: list[int], **options: Any) -> VideoSink:
    with sink_at(path, **options) as sink:
        for index, tick in enumerate(pts):
            sink.write(picture(index, sink.size_wh), tick)
    return sink


def decoded(path: Path) -> tuple[list[Fraction], list[Image]]:
    """Presentation times in seconds and BGR images, by PyAV alone."""
    times: list[Fraction] = []
    images: list[Image] = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            assert frame.pts is not None
            assert frame.time_base is not None
            times.append(frame.pts * frame.time_base)
            images.append(np.asarray(frame.to_ndarray(format="bgr24"), np.uint8))
    return times, images


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# Timing


@pytest.mark.parametrize(
    ("rate", "time_base", "pts"),
    [
        (Fraction(25), Fraction(1, 25), list(range(30))),
        (Fraction(25), Fraction(1, 12800), list(range(0, 512 * 30, 512))),
        (Fraction(30000, 1001), Fraction(1001, 30000), list(range(40))),
        (Fraction(30000, 1001), Fraction(1, 90000), list(range(126000, 126000 + 3003 * 40, 3003))),
    ],
)
def test_constant_rate_is_exact(tmp_path: Path, rate: Fraction, time_base: Fraction, pts: list[int]) -> None:
    path = tmp_path / "out.mp4"
    write(path, pts, rate=rate, time_base=time_base)
    assert decoded(path)[0] == [(tick - pts[0]) * time_base for tick in pts]
    info = probe(path)
    assert (info.average_rate, info.num_frames) == (rate, len(pts))
    assert info.duration_s == pytest.approx(len(pts) / rate)


def test_variable_rate_is_exact(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    pts = [100, 133, 167, 200, 400, 600, 800, 1000, 1033, 1034, 1090, 5000, 5033]
    write(path, pts, rate=Fraction(30), time_base=Fraction(1, 1000))
    assert decoded(path)[0] == [Fraction(tick - 100, 1000) for tick in pts]
    assert probe(path).num_frames == len(pts)


@pytest.mark.parametrize(
    ("time_base", "pts", "times_s"),
    [
        (Fraction(1, 10**9), [5, 40_000_005, 3_000_000_005, 3_000_000_006], [0, 0.04, 3, 3.000_000_1]),
        (Fraction(1, 10**7), [0, 2**31 - 2, 2**32 - 4], [0, 214.7483646, 429.4967292]),
        (Fraction(1, 90_000), [0, 3 * 10**9, 3 * 10**9 + 3000], [0, (2**31 - 2) / 90_000, 3 * 10**9 / 90_000 + 1 / 30]),
    ],
)
def test_steps_that_are_long_in_ticks(
    tmp_path: Path, time_base: Fraction, pts: list[int], times_s: list[float]
) -> None:
    path = tmp_path / "out.mp4"
    write(path, pts, time_base=time_base)
    assert [float(time) for time in decoded(path)[0]] == pytest.approx(times_s, abs=1e-9)


@pytest.mark.parametrize("first", [-40, 0, 20_000, 40_000_000])
def test_clock_starts_at_zero(tmp_path: Path, first: int) -> None:
    """An MP4 that starts later is as much longer, and empty until then."""
    path = tmp_path / "out.mp4"
    sink = write(path, [first, first + 20, first + 40, first + 110], time_base=Fraction(1, 1000))
    assert sink.start_s == first / 1000
    assert decoded(path)[0] == [Fraction(t, 1000) for t in (0, 20, 40, 110)]
    with av.open(str(path)) as container:
        assert container.start_time == 0
        assert 0.11 <= (container.duration or 0) / av.time_base <= 0.2


def test_clock_of_a_partial_file_starts_at_zero(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), sink_at(tmp_path / "out.mp4") as sink:  # noqa: PT012 - the loop is stopped
        for tick in range(1000, 1020):
            sink.write(picture(tick), tick)
        raise KeyboardInterrupt
    assert decoded(sink.path)[0] == [tick * TICK for tick in range(20)]


def test_keyframe_at_least_every_two_seconds(tmp_path: Path) -> None:
    """Also where the real rate is far below the nominal one."""
    path = tmp_path / "out.mp4"
    write(path, list(range(0, 20000, 500)), rate=Fraction(30), time_base=Fraction(1, 1000))
    with av.open(str(path)) as container:
        keys_s = [float((p.pts or 0) * p.time_base) for p in container.demux(video=0) if p.size and p.is_keyframe]
    assert max(np.diff(keys_s)) <= 2


def test_source_to_sink_and_back(tmp_path: Path, clip: Clip) -> None:
    pts = [0, 40, 70, 90, 250, 251]
    with VideoSource(clip("in.mkv", pts=pts, time_base=Fraction(1, 1000))) as source:
        path = tmp_path / "out.mp4"
        with VideoSink(path, size_wh=source.size_wh, rate=source.average_rate, time_base=source.time_base) as sink:
            for frame in source:
                sink.write(frame.image_bgr, frame.pts)
    with VideoSource(path) as copy:
        assert [f.pts for f in copy] == pts


# Pictures


@pytest.mark.parametrize(
    "colour_bgr",
    [(0, 0, 0), (255, 255, 255), (0, 0, 255), (0, 255, 0), (255, 0, 0), (128, 64, 128), (10, 200, 120)],
)
def test_flat_colours_come_back(tmp_path: Path, colour_bgr: tuple[int, int, int]) -> None:
    path = tmp_path / "flat.mp4"
    with sink_at(path) as sink:
        sink.write(np.full((48, 64, 3), colour_bgr, np.uint8), 0)
    image = decoded(path)[1][0].astype(int)
    assert np.abs(image - colour_bgr).max() <= 4
    with av.open(str(path)) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.colorspace, codec.color_range, codec.color_primaries, codec.color_trc) == (1, 1, 1, 1)


def test_luma_is_bt709_limited() -> None:
    """Pure green by the equations of BT.709: Y = 16 + 219 * 0.7152 = 173; BT.601 would give 145."""
    sink = VideoSink("x.mp4", size_wh=(16, 16), rate=Fraction(25), time_base=TICK)
    sink._to_yuv = VideoReformatter()
    yuv = sink._frame(np.full((16, 16, 3), (0, 255, 0), np.uint8)).to_ndarray()
    assert abs(int(yuv[:16].mean()) - 173) <= 1


@pytest.mark.parametrize(
    ("size_wh", "padded_wh"), [((65, 49), (66, 50)), ((1, 1), (2, 2)), ((64, 33), (64, 34)), ((33, 32), (34, 32))]
)
def test_odd_sizes_are_padded(tmp_path: Path, size_wh: tuple[int, int], padded_wh: tuple[int, int]) -> None:
    path = tmp_path / "odd.mp4"
    with sink_at(path, size_wh) as sink:
        sink.write(np.full((size_wh[1], size_wh[0], 3), 90, np.uint8), 0)
    assert sink.padded_wh == padded_wh == probe(path).size_wh
    assert np.abs(decoded(path)[1][0].astype(int) - 90).max() <= 4


def test_other_sizes_are_scaled_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "mixed.mp4"
    with sink_at(path, (65, 49)) as sink:
        for tick, shape in enumerate([(49, 65, 3), (98, 130, 3), (20, 20, 3)]):
            sink.write(np.full(shape, 50 * (tick + 1), np.uint8), tick)
    assert sink.resized_frames == 2
    assert [round(image.mean() / 50) for image in decoded(path)[1]] == [1, 2, 3]


def test_strided_views_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "view.mp4"
    wide = np.full((96, 128, 3), 70, np.uint8)
    with sink_at(path) as sink:
        sink.write(wide[::2, ::2], 0)
    assert np.abs(decoded(path)[1][0].astype(int) - 70).max() <= 4


# What is on the disk


def test_final_file_is_faststart_and_alone(tmp_path: Path) -> None:
    sink = write(tmp_path / "out.mp4", list(range(30)))
    assert names(tmp_path) == ["out.mp4"]
    assert sink.path == tmp_path / "out.mp4"
    assert sink.frames_written == 30
    data = (tmp_path / "out.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    assert b"moof" not in data
    assert probe(sink.path) == VideoInfo(
        size_wh=(64, 48), average_rate=Fraction(25), num_frames=30, duration_s=1.2, codec="h264", pix_fmt="yuv420p"
    )


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
def test_interrupted_write_is_playable_and_named_partial(tmp_path: Path, error: type[BaseException]) -> None:
    final = tmp_path / "out.mp4"
    final.write_bytes(b"the older file")
    with pytest.raises(error), sink_at(final) as sink:  # noqa: PT012 - the loop is what is interrupted
        for tick in range(20):
            sink.write(picture(tick), tick)
        raise error
    assert sink.path == tmp_path / "out.partial.mp4"
    assert len(decoded(sink.path)[0]) == 20
    assert final.read_bytes() == b"the older file"
    assert names(tmp_path) == ["out.mp4", "out.partial.mp4"]


def test_older_file_is_replaced_on_success_only(tmp_path: Path) -> None:
    final = tmp_path / "out.mp4"
    final.write_bytes(b"the older file")
    with sink_at(final) as sink:
        sink.write(picture(0), 0)
        assert final.read_bytes() == b"the older file"
    assert probe(final).num_frames == 1


def test_a_file_system_that_cannot_flush_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Network and FUSE file systems among them: the file has its name by then."""
    flush = os.fsync

    def flush_files(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", flush_files)
    assert write(tmp_path / "out.mp4", [0, 1]).path == tmp_path / "out.mp4"
    assert names(tmp_path) == ["out.mp4"]


@pytest.mark.parametrize("error", [None, ValueError])
def test_no_frame_leaves_nothing(tmp_path: Path, error: type[BaseException] | None) -> None:
    try:
        with sink_at(tmp_path / "out.mp4"):
            if error is not None:
                raise error
    except ValueError:
        pass
    assert names(tmp_path) == []


def test_killed_process_leaves_a_playable_partial(tmp_path: Path) -> None:
    """kill -9 after 120 frames: at most the last keyframe interval (2 s, 50 frames) and the encoder's own are lost."""
    script = (
        "import sys, os, signal, numpy as np\nfrom fractions import Fraction\n"
        "from cdga_sdk.video.sink import VideoSink\n"
        "sink = VideoSink(sys.argv[1], size_wh=(64, 48), rate=Fraction(25), time_base=Fraction(1, 25)).__enter__()\n"
        "for i in range(120):\n"
        "    sink.write(np.random.default_rng(i).integers(0, 256, (48, 64, 3), dtype=np.uint8), i)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "out.mp4")], cwd=root, check=False)
    assert done.returncode == -signal.SIGKILL
    assert names(tmp_path) == ["out.partial.mp4"]
    assert len(decoded(tmp_path / "out.partial.mp4")[0]) >= 50


def test_disk_full_while_writing(tmp_path: Path, full_disk_after: FullDisk) -> None:
    final = tmp_path / "out.mp4"
    final.write_bytes(b"the older file")
    raises = pytest.raises(ResourceError, match="cannot be written")
    with raises as caught, full_disk_after(200_000), sink_at(final, crf=1) as sink:
        for tick in range(1000):
            sink.write(picture(tick), tick)
    assert "\n" not in str(caught.value)
    assert final.read_bytes() == b"the older file"
    assert names(tmp_path) == ["out.mp4", "out.partial.mp4"]
    assert len(decoded_until_broken(sink.path)) > 0


def test_disk_full_while_closing(tmp_path: Path, full_disk_after: FullDisk) -> None:
    """The last fragment is written when the encoder has nothing more; its loss is told of by counting."""
    raises = pytest.raises(ResourceError, match=r"its last \d+ frames did not reach .* kept in out\.partial\.mp4")
    with raises, full_disk_after(20_000), sink_at(tmp_path / "out.mp4", crf=1) as sink:
        for tick in range(20):
            sink.write(picture(tick), tick)
        assert sink.path.stat().st_size < 20_000
    assert names(tmp_path) == ["out.partial.mp4"]


def test_disk_full_within_the_last_packet(tmp_path: Path, full_disk_after: FullDisk) -> None:
    """A part of it can be read back, so that the packets' number alone tells of nothing."""
    size = _size_of_partial(tmp_path / "whole.mp4")
    with pytest.raises(ResourceError, match="its last 1 frame did not reach"), full_disk_after(size - 1000):
        _size_of_partial(tmp_path / "out.mp4")
    assert names(tmp_path) == ["out.partial.mp4", "whole.mp4"]


def _size_of_partial(path: Path) -> int:
    with sink_at(path, crf=1) as sink:
        for tick in range(10):
            sink.write(picture(tick), tick)
        sink._close_partial()
        return sink.path.stat().st_size


def test_disk_full_while_publishing(tmp_path: Path, full_disk_after: FullDisk) -> None:
    with sink_at(tmp_path / "out.mp4") as sink:
        for tick in range(30):
            sink.write(picture(tick), tick)
        sink._close_partial()
        size = sink._partial.stat().st_size
        with pytest.raises(ResourceError, match=r"kept in out\.partial\.mp4"), full_disk_after(size // 2):
            sink._publish()
        assert names(tmp_path) == ["out.partial.mp4"]
        assert len(decoded(sink.path)[0]) == 30


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"), sink_at(tmp_path / "absent" / "out.mp4"):
        pass


def test_file_in_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError), sink_at(tmp_path / "file" / "out.mp4"):
        pass


def test_folder_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "out.mp4").mkdir()
    with pytest.raises(UsageError, match="folder of that name"), sink_at(tmp_path / "out.mp4"):
        pass
    assert names(tmp_path) == ["out.mp4"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError), sink_at(tmp_path / "out.mp4"):
        pass
    tmp_path.chmod(0o700)


def test_sink_leaks_no_file(tmp_path: Path) -> None:
    write(tmp_path / "warm.mp4", [0])
    before = sum(1 for _ in Path("/proc/self/fd").iterdir())
    for tick in range(3):
        write(tmp_path / f"{tick}.mp4", [0, 1])
        with pytest.raises(ValueError, match="stop"), sink_at(tmp_path / "x.mp4") as sink:  # noqa: PT012
            sink.write(picture(0), 0)
            raise ValueError("stop")
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) == before


# Arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "out.avi"}, "must end in .mp4"),
        ({"size_wh": (0, 4)}, "size_wh"),
        ({"size_wh": (16_386, 4)}, "size_wh is .*; both must be 1 to 16384"),
        ({"rate": Fraction(0)}, "rate"),
        ({"time_base": Fraction(0)}, "time_base"),
        ({"crf": 52}, "crf"),
        ({"preset": "warp"}, "preset"),
        ({"sample_aspect_ratio": Fraction(0)}, "sample_aspect_ratio"),
        ({"tags": replace(BT709, range=ColorRange.JPEG)}, "wanted limited range"),
        ({"tags": replace(BT709, matrix=9)}, "matrix"),
        ({"tags": replace(BT709, primaries=0)}, "reserved"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    wanted: dict[str, Any] = {"path": "out.mp4", "size_wh": (64, 48), "rate": Fraction(25), "time_base": TICK} | options
    with pytest.raises(UsageError, match=message):
        VideoSink(**wanted)


def test_pts_must_increase(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="pts 3 is not later than 3"), sink_at(tmp_path / "out.mp4") as sink:  # noqa: PT012
        sink.write(picture(0), 3)
        sink.write(picture(1), 3)


@pytest.mark.parametrize("image", [np.zeros((48, 64), np.uint8), np.zeros((48, 64, 3), np.float32)])
def test_array_that_is_no_image(tmp_path: Path, image: NDArray[Any]) -> None:
    with pytest.raises(UsageError, match="wanted"), sink_at(tmp_path / "out.mp4") as sink:
        sink.write(image, 0)


def test_probe_refuses_text(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("hello")
    with pytest.raises(InputError, match="found text"):
        probe(tmp_path / "a.mp4")


def decoded_until_broken(path: Path) -> list[int]:
    """Frames of a file that a full disk cut off."""
    with VideoSource(path) as source:
        return [f.pts for f in source]
