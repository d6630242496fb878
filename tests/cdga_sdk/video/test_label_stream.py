"""Label streams: maps and times come back exactly, and whatever is damaged is said to be."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from cdga_sdk import LabelFrame, read_labels
from cdga_sdk.errors import InputError, ResourceError, UsageError
from cdga_sdk.image import read_label
from cdga_sdk.preprocess import resize_label
from cdga_sdk.result import SegResult
from cdga_sdk.segmenter import Segmenter
from cdga_sdk.video.label_stream import LabelSink
from cdga_sdk.video.pipeline import VideoOptions, segment_images, segment_video
from cdga_sdk.video.run_folder import RunSummary
from cdga_sdk.video.source import VideoSource

Clip = Callable[..., Path]
FullDisk = Callable[[int], contextlib.AbstractContextManager[None]]
Labels = NDArray[np.uint8]
ROOT = Path(__file__).parents[3]
TICK = Fraction(1, 25)


def street(index: int, size_wh: tuple[int, int] = (60, 40)) -> Labels:
    """Flat, as label maps are, with an ignored box that moves, and a patch of noise."""
    width, height = size_wh
    label = np.zeros((height, width), np.uint8)
    label[height // 2 :] = 1
    label[height // 8 : height // 3, 3 * index % width :][:, :9] = 255
    noise = np.random.default_rng(index).integers(0, 256, (height // 8, width // 4), dtype=np.uint8)
    label[-noise.shape[0] :, : noise.shape[1]] = noise
    return label


def sink_at(path: Path, size_wh: tuple[int, int] = (60, 40), **options: Any) -> LabelSink:
    wanted: dict[str, Any] = {"size_wh": size_wh, "rate": Fraction(25), "time_base": TICK}
    return LabelSink(path, **(wanted | options))


def write(path: Path, labels: Sequence[Labels], pts: Iterable[int] | None = None, **options: Any) -> LabelSink:
    with sink_at(path, labels[0].shape[::-1], **options) as sink:
        for label, tick in zip(labels, range(len(labels)) if pts is None else pts, strict=True):
            sink.write(label, tick)
    return sink


def until_broken(path: Path) -> tuple[list[LabelFrame], InputError | None]:
    frames: list[LabelFrame] = []
    broken = None
    try:
        for frame in read_labels(path):
            frames.append(frame)  # noqa: PERF402 - those before the error are wanted
    except InputError as error:
        broken = error
    assert broken is None or (broken.where == str(path) and "\n" not in str(broken))
    return frames, broken


def is_beginning(frames: Sequence[LabelFrame], labels: Sequence[Labels], pts: Sequence[int]) -> bool:
    assert len(frames) <= len(labels)
    return all(
        np.array_equal(f.label_HW, label) and f.pts == tick for f, label, tick in zip(frames, labels, pts, strict=False)
    )


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# What comes back


@pytest.mark.parametrize("shape_hw", [(2, 2), (2, 9), (3, 5), (49, 65), (16, 16), (481, 641)])
def test_every_id_comes_back_at_every_size(tmp_path: Path, shape_hw: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    labels = [rng.integers(0, 256, shape_hw, dtype=np.uint8)]
    labels += [np.full(shape_hw, 255, np.uint8), np.zeros(shape_hw, np.uint8)]
    labels += [np.resize(np.arange(256, dtype=np.uint8), shape_hw), np.where(labels[0] < 99, 255, 0).astype(np.uint8)]
    write(tmp_path / "labels.nut", labels)
    frames = list(read_labels(tmp_path / "labels.nut"))
    assert len(frames) == len(labels)
    for index, (frame, label) in enumerate(zip(frames, labels, strict=True)):
        np.testing.assert_array_equal(frame.label_HW, label)
        assert frame.label_HW.dtype == np.uint8
        assert (frame.index, frame.pts, frame.time_base) == (index, index, TICK)


VFR = [100, 133, 167, 200, 400, 401, 1000, 5000, 90000, 90001]


@pytest.mark.parametrize("start", [0, -133, 2**33])
@pytest.mark.parametrize(
    "time_base",
    [Fraction(1, 25), Fraction(1001, 30000), Fraction(1, 90000), Fraction(1, 1000), Fraction(7, 3), Fraction(1, 10**9)],
)
def test_times_are_the_source_s(tmp_path: Path, time_base: Fraction, start: int) -> None:
    pts = [tick - 100 + start for tick in VFR]
    write(tmp_path / "labels.nut", [street(0)] * len(pts), pts, time_base=time_base)
    frames = list(read_labels(tmp_path / "labels.nut"))
    assert [f.pts for f in frames] == pts
    assert {f.time_base for f in frames} == {time_base}
    assert [f.time_s for f in frames] == [float(tick * time_base) for tick in pts]


def test_maps_are_the_caller_s_own(tmp_path: Path) -> None:
    write(tmp_path / "labels.nut", [street(i) for i in range(3)])
    kept = []
    for frame in read_labels(tmp_path / "labels.nut"):
        frame.label_HW[0, 0] = 77
        kept.append(frame.label_HW)
    assert len({id(label) for label in kept}) == 3
    assert all(label[0, 0] == 77 and np.array_equal(label[1:], street(i)[1:]) for i, label in enumerate(kept))


def test_any_array_in_memory_is_taken(tmp_path: Path) -> None:
    wide = np.random.default_rng(0).integers(0, 256, (80, 120), dtype=np.uint8)
    views = [wide[::2, ::2], wide[::-2, ::-2], wide.T[:60, :40].T]
    views[1].flags.writeable = False
    write(tmp_path / "labels.nut", views)
    for frame, view in zip(read_labels(tmp_path / "labels.nut"), views, strict=True):
        np.testing.assert_array_equal(frame.label_HW, view)


def test_other_sizes_are_scaled_without_new_ids_and_counted(tmp_path: Path) -> None:
    labels = [street(0), street(1, (120, 80)), street(2, (31, 17)), street(3)]
    sink = write(tmp_path / "labels.nut", labels)
    assert sink.resized_frames == 2
    for frame, label in zip(read_labels(tmp_path / "labels.nut"), labels, strict=True):
        np.testing.assert_array_equal(frame.label_HW, resize_label(label, (40, 60)))
        assert set(np.unique(frame.label_HW)) <= set(np.unique(label))


def test_other_programs_can_read_it(tmp_path: Path) -> None:
    labels = [street(i) for i in range(5)]
    write(tmp_path / "labels.nut", labels, [0, 1, 2, 7, 8])
    with av.open(str(tmp_path / "labels.nut")) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        assert all(p.is_keyframe for p in packets)
        assert (container.format.name, container.streams.video[0].codec_context.name) == ("nut", "ffv1")
        frames = [f for p in packets for f in p.decode()]
    for frame, label, tick in zip(frames, labels, [0, 1, 2, 7, 8], strict=True):
        assert isinstance(frame, av.VideoFrame)
        assert (frame.format.name, Fraction(frame.time or 0).limit_denominator(1000)) == ("gray", tick * TICK)
        np.testing.assert_array_equal(frame.to_ndarray(), label)


def test_needs_no_torch(tmp_path: Path) -> None:
    write(tmp_path / "labels.nut", [street(0)])
    code = (
        "import sys\nsys.modules['torch'] = sys.modules['onnxruntime'] = None\n"
        "from cdga_sdk import read_labels\nprint(sum(1 for _ in read_labels(sys.argv[1])))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "labels.nut")]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "1\n"


# What is on the disk


def test_final_file_is_alone(tmp_path: Path) -> None:
    (tmp_path / "labels.nut").write_bytes(b"the older file")
    (tmp_path / "labels.partial.nut").write_bytes(b"of an older run")
    with sink_at(tmp_path / "labels.nut") as sink:
        sink.write(street(0), 0)
        assert (tmp_path / "labels.nut").read_bytes() == b"the older file"
    assert names(tmp_path) == ["labels.nut"]
    assert (sink.path, sink.frames_written) == (tmp_path / "labels.nut", 1)
    assert len(list(read_labels(sink.path))) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
@pytest.mark.parametrize("first", [0, -7])
def test_interrupted_write_is_readable_and_named_partial(
    tmp_path: Path, error: type[BaseException], first: int
) -> None:
    labels = [street(i) for i in range(9)]
    (tmp_path / "labels.nut").write_bytes(b"the older file")
    with pytest.raises(error), sink_at(tmp_path / "labels.nut") as sink:  # noqa: PT012 - the loop is what is interrupted
        for tick, label in enumerate(labels, first):
            sink.write(label, tick)
        raise error
    assert names(tmp_path) == ["labels.nut", "labels.partial.nut"]
    assert (tmp_path / "labels.nut").read_bytes() == b"the older file"
    frames = list(read_labels(sink.path))
    assert len(frames) == 9
    assert is_beginning(frames, labels, range(first, first + 9))


@pytest.mark.parametrize("error", [None, ValueError])
def test_no_map_leaves_nothing(tmp_path: Path, error: type[BaseException] | None) -> None:
    with contextlib.suppress(ValueError), sink_at(tmp_path / "labels.nut"):
        if error is not None:
            raise error
    assert names(tmp_path) == []


def test_killed_process_leaves_every_map(tmp_path: Path) -> None:
    script = (
        "import sys, os, signal, numpy as np\nfrom fractions import Fraction\n"
        "from cdga_sdk.video.label_stream import LabelSink\n"
        "sink = LabelSink(sys.argv[1], size_wh=(64, 48), rate=Fraction(25), time_base=Fraction(1, 25)).__enter__()\n"
        "for i in range(20):\n"
        "    sink.write(np.full((48, 64), i, np.uint8), i)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "labels.nut")], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert names(tmp_path) == ["labels.partial.nut"]
    frames, error = until_broken(tmp_path / "labels.partial.nut")
    assert [int(f.label_HW.min()) for f in frames] == [int(f.label_HW.max()) for f in frames] == list(range(20))
    assert error is not None
    assert "cut off behind 20 label maps while it was written" in error.what


def test_disk_full_while_writing(tmp_path: Path, full_disk_after: FullDisk) -> None:
    noise = [np.random.default_rng(i).integers(0, 256, (48, 64), dtype=np.uint8) for i in range(100)]
    (tmp_path / "labels.nut").write_bytes(b"the older file")
    raises = pytest.raises(ResourceError, match="the labels cannot be written")
    with raises as caught, full_disk_after(50_000):
        write(tmp_path / "labels.nut", noise)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == ["labels.nut", "labels.partial.nut"]
    assert (tmp_path / "labels.nut").read_bytes() == b"the older file"
    frames, _ = until_broken(tmp_path / "labels.partial.nut")
    assert 10 <= len(frames) < 20
    assert is_beginning(frames, noise, range(100))


def test_disk_full_while_publishing(tmp_path: Path, full_disk_after: FullDisk) -> None:
    labels = [street(i) for i in range(10)]
    with sink_at(tmp_path / "labels.nut") as sink:
        for tick, label in enumerate(labels):
            sink.write(label, tick)
        sink._close_partial()
        size = sink._partial.stat().st_size
        with pytest.raises(ResourceError, match=r"kept in labels\.partial\.nut"), full_disk_after(size // 2):
            sink._publish()
        assert names(tmp_path) == ["labels.partial.nut"]
        assert len(list(read_labels(sink.path))) == 10


def test_no_file_stays_open(tmp_path: Path) -> None:
    path = tmp_path / "labels.nut"
    write(path, [street(0)] * 5)
    cut = tmp_path / "cut.nut"
    cut.write_bytes(path.read_bytes()[:-900])
    until_broken(cut)
    before = len(list(Path("/proc/self/fd").iterdir()))
    reading = read_labels(path)
    next(reading)
    reading.close()  # type: ignore[attr-defined]
    for _ in range(3):
        until_broken(cut)
        write(path, [street(0)], [-4])
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# Damage


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[Labels], list[int]]:
    """A whole file, its maps and their times."""
    path = tmp_path_factory.mktemp("eight") / "labels.nut"
    labels, pts = [street(i) for i in range(8)], [-4, 1, 2, 5, 6, 7, 30, 31]
    write(path, labels, pts, time_base=Fraction(1001, 30000))
    return path.read_bytes(), labels, pts


def packets_of(data: bytes, folder: Path) -> list[tuple[int, int]]:
    """Start and end of each picture in the file."""
    (folder / "whole.nut").write_bytes(data)
    with av.open(str(folder / "whole.nut")) as container:
        found = [(data.index(bytes(p)), p.size) for p in container.demux(video=0) if p.size]
    return [(start, start + size) for start, size in found]


def test_a_flipped_bit_anywhere_never_gives_a_wrong_map(
    tmp_path: Path, eight: tuple[bytes, list[Labels], list[int]]
) -> None:
    data, labels, pts = eight
    packets = packets_of(data, tmp_path)
    path = tmp_path / "flipped.nut"
    bits = np.random.default_rng(0).integers(0, 8, len(data))
    for place in range(0, len(data), 5):
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(bits[place])
        path.write_bytes(flipped)
        frames, error = until_broken(path)
        assert is_beginning(frames, labels, pts), place
        assert (error is not None) or len(frames) == 8, place
        hit = [index for index, (start, end) in enumerate(packets) if start <= place < end]
        if hit:  # exactly those before it are there
            assert error is not None, place
            assert len(frames) == hit[0], place
            assert f"damaged behind {hit[0]} label maps" in error.what


def test_what_a_disk_lost_is_not_taken_for_labels(tmp_path: Path, eight: tuple[bytes, list[Labels], list[int]]) -> None:
    data, labels, pts = eight
    path = tmp_path / "zeros.nut"
    for index, (start, end) in enumerate(packets_of(data, tmp_path)):
        for first, last in ((start, end), (start, (start + end) // 2), (end - 16, end)):
            path.write_bytes(data[:first] + bytes(last - first) + data[last:])
            frames, error = until_broken(path)
            assert len(frames) == index
            assert is_beginning(frames, labels, pts)
            assert error is not None


def test_a_file_cut_anywhere_gives_what_is_whole(tmp_path: Path, eight: tuple[bytes, list[Labels], list[int]]) -> None:
    """Also where the cut lies between two slices of a picture, each with a good checksum."""
    data, labels, pts = eight
    packets = packets_of(data, tmp_path)
    slice_ends = []
    for start, end in packets:
        while end > start:
            slice_ends.append(end)
            end -= int.from_bytes(data[end - 8 : end - 5], "big") + 8
    assert len(slice_ends) == 4 * 8
    path = tmp_path / "cut.nut"
    for length in sorted({*range(0, len(data), 7), *slice_ends, *(end - 1 for end in slice_ends)}):
        path.write_bytes(data[:length])
        frames, error = until_broken(path)
        assert is_beginning(frames, labels, pts), length
        assert len(frames) == sum(end <= length for _, end in packets), length
        assert (error is not None) or len(frames) == 8, length


@pytest.mark.parametrize("lost", [0, 3, 7])
def test_a_map_that_is_not_there_is_missed(tmp_path: Path, lost: int) -> None:
    write(tmp_path / "labels.nut", [street(i) for i in range(8)])
    forge(tmp_path / "labels.nut", tmp_path / "forged.nut", lambda index, pts: None if index == lost else pts)
    frames, error = until_broken(tmp_path / "forged.nut")
    assert len(frames) == 7
    assert error is not None
    assert "7 of 8 label maps can be read" in error.what


@pytest.mark.parametrize(
    ("times", "count", "reason"),
    [
        ([0, 1, 3, 4], 4, "the times of its label maps are damaged"),
        ([1, 2, 3, 4], 4, "the times of its label maps are damaged"),
        ([0, 1.5, 2, 3], 1, "damaged behind 1 label maps"),
    ],
)
def test_a_wrong_time_is_noticed(tmp_path: Path, times: list[float], count: int, reason: str) -> None:
    write(tmp_path / "labels.nut", [street(i) for i in range(4)])
    ticks = 2**11  # of the file for one of ours: 1/25 s is too coarse for FFmpeg's NUT, which halves it until it is not
    forge(tmp_path / "labels.nut", tmp_path / "forged.nut", lambda index, _: round(times[index] * ticks))
    frames, error = until_broken(tmp_path / "forged.nut")
    assert len(frames) == count
    assert error is not None
    assert reason in error.what


def forge(source: Path, target: Path, pts_of: Callable[[int, int], int | None]) -> None:
    """Copy a label stream with its header as it is, but packets at other times; None leaves one out."""
    with av.open(str(source)) as reader, av.open(str(target), "w", format="nut") as writer:
        writer.metadata.update(reader.metadata)
        stream = reader.streams.video[0]
        copy = writer.add_stream_from_template(stream, opaque=True)
        for index, packet in enumerate(p for p in reader.demux(stream) if p.size):
            assert packet.pts is not None
            pts = pts_of(index, packet.pts)
            if pts is not None:
                packet.pts = packet.dts = pts
                packet.stream = copy
                writer.mux(packet)


# What is no label stream


def nut(path: Path, codec: str = "ffv1", metadata: dict[str, str] | None = None) -> None:
    with av.open(str(path), "w", format="nut") as container:
        container.metadata.update(metadata or {})
        stream = container.add_stream(codec, rate=25)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "gray" if codec == "ffv1" else "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((48, 64), np.uint8), format="gray")
        frame.pts = 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_what_is_no_label_stream(tmp_path: Path) -> None:
    (tmp_path / "text.nut").write_text("hello")
    (tmp_path / "empty.nut").touch()
    (tmp_path / "folder.nut").mkdir()
    nut(tmp_path / "other.nut")
    nut(tmp_path / "later.nut", metadata={"cdga_labels": f"2 1/25 0 {zlib.crc32(b'2 1/25 0'):08x}"})
    for name, reason in (
        ("missing.nut", "there is no such file"),
        ("text.nut", "found text, not a label stream"),
        ("empty.nut", "the file is empty"),
        ("folder.nut", "found a directory"),
        ("other.nut", "not a label stream, or its header is damaged"),
        ("later.nut", "this is version 2 of label streams"),
    ):
        frames, error = until_broken(tmp_path / name)
        assert not frames
        assert error is not None
        assert reason in error.what


def test_a_video_source_refuses_it(tmp_path: Path) -> None:
    write(tmp_path / "labels.nut", [street(0)])
    with pytest.raises(InputError, match="found a NUT file, not a video"), VideoSource(tmp_path / "labels.nut"):
        pass


# Arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "labels.mkv"}, "must end in .nut"),
        ({"size_wh": (1, 4)}, "size_wh"),
        ({"size_wh": (4, 1)}, "size_wh"),
        ({"rate": Fraction(0)}, "rate"),
        ({"time_base": Fraction(0)}, "time_base"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    wanted: dict[str, Any] = {"path": "labels.nut", "size_wh": (64, 48), "rate": Fraction(25), "time_base": TICK}
    with pytest.raises(UsageError, match=message):
        LabelSink(**(wanted | options))


@pytest.mark.parametrize("first", [3, -3])
def test_pts_must_increase(tmp_path: Path, first: int) -> None:
    with pytest.raises(UsageError, match=f"pts {first} is not later"), sink_at(tmp_path / "labels.nut") as sink:  # noqa: PT012
        sink.write(street(0), first)
        sink.write(street(1), first)


@pytest.mark.parametrize(
    "label", [np.zeros((40, 60, 3), np.uint8), np.zeros((40, 60), np.int64), np.zeros((0, 60), np.uint8)]
)
def test_array_that_is_no_label_map(tmp_path: Path, label: NDArray[Any]) -> None:
    with pytest.raises(UsageError, match="wanted"), sink_at(tmp_path / "labels.nut") as sink:
        sink.write(label, 0)


# Runs


def run(segmenter: Segmenter, source: Path, folder: Path, **options: Any) -> RunSummary:
    wanted: dict[str, Any] = {"save": ("labels", "masks", "json"), "options": VideoOptions()}
    return segment_video(segmenter, source, folder, **(wanted | options))


def test_run_s_labels_are_its_masks_at_the_source_s_times(segmenter: Segmenter, clip: Clip, tmp_path: Path) -> None:
    pts = [100, 133, 167, 200, 400, 600, 601, 1000]
    ride = clip("ride.mkv", pts=pts, time_base=Fraction(1, 1000), size_wh=(66, 50))
    summary = run(segmenter, ride, tmp_path / "run", options=VideoOptions(vid_stride=3))
    assert summary.outputs == ["labels.nut", "masks", "stats.jsonl", "summary.json"]
    frames = list(read_labels(tmp_path / "run/labels.nut"))
    stats = [json.loads(line) for line in (tmp_path / "run/stats.jsonl").read_text().splitlines()]
    assert [f.pts for f in frames] == [100, 200, 601]
    assert [f.time_s for f in frames] == [s["time_s"] for s in stats]
    for frame, mask in zip(frames, sorted((tmp_path / "run/masks").iterdir()), strict=True):
        np.testing.assert_array_equal(frame.label_HW, read_label(mask))


def test_process_video_takes_labels(segmenter: Segmenter, ride: Path, tmp_path: Path) -> None:
    results: list[SegResult] = []
    segmenter.process_video(ride, tmp_path / "own.mp4", save=("video", "labels"), on_frame=results.append)
    assert names(tmp_path) == ["own", "own.mp4"]
    for frame, result in zip(read_labels(tmp_path / "own/labels.nut"), results, strict=True):
        np.testing.assert_array_equal(frame.label_HW, result.mask)
        assert (frame.index, frame.time_s) == (result.frame, result.time_s)


def test_source_that_changes_its_size(segmenter: Segmenter, clip: Clip, tmp_path: Path) -> None:
    parts = [clip("a.ts", num_frames=5), clip("b.ts", num_frames=4, size_wh=(32, 32))]
    (tmp_path / "joined.ts").write_bytes(b"".join(p.read_bytes() for p in parts))
    results: list[SegResult] = []
    run(segmenter, tmp_path / "joined.ts", tmp_path / "run", save=("labels",), on_frame=results.append)
    assert {r.mask.shape for r in results} == {(48, 64), (32, 32)}
    for frame, result in zip(read_labels(tmp_path / "run/labels.nut"), results, strict=True):
        np.testing.assert_array_equal(frame.label_HW, resize_label(result.mask, (48, 64)))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("mine")])
def test_stopped_run_keeps_its_labels(segmenter: Segmenter, ride: Path, tmp_path: Path, error: BaseException) -> None:
    masks: list[Labels] = []

    def on_frame(result: SegResult) -> None:
        if result.frame == 7:
            raise error
        masks.append(result.mask)

    with pytest.raises(type(error)):
        run(segmenter, ride, tmp_path, save=("video", "labels"), on_frame=on_frame)
    assert names(tmp_path) == ["labels.partial.nut", "overlay.partial.mp4"]
    frames = list(read_labels(tmp_path / "labels.partial.nut"))
    assert len(frames) == 7
    assert is_beginning(frames, masks, [f.pts for f in frames])


def test_a_video_too_small_for_labels_is_its_own_fault(segmenter: Segmenter, clip: Clip, tmp_path: Path) -> None:
    path = clip("dot.mkv", codec="ffv1", size_wh=(1, 1), num_frames=2)
    with pytest.raises(InputError, match=r"dot.mkv: its frames are 1x1; 'labels' wants 2x2 or more; save masks"):
        run(segmenter, path, tmp_path / "run")
    assert names(tmp_path) == ["dot.mkv"]


def test_images_make_no_label_stream(segmenter: Segmenter, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="these are images; save masks instead"):
        segment_images(segmenter, [tmp_path / "a.png"], tmp_path / "run", save=("labels", "json"))
    assert names(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="the labels cannot be written"), sink_at(tmp_path / "labels.nut"):
        pass
    tmp_path.chmod(0o700)
