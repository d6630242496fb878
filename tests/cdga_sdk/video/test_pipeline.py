"""Run folders: what lies in them after a good end, a bad one, and a broken one."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from cdga_sdk.errors import DegradedError, InputError, ResourceError, Terminated, UsageError
from cdga_sdk.image import read_image_bgr, read_label, write_png
from cdga_sdk.overlay import draw_overlay
from cdga_sdk.result import SegResult
from cdga_sdk.segmenter import Segmenter
from cdga_sdk.video.label_stream import read_labels
from cdga_sdk.video.live import LiveSource
from cdga_sdk.video.pipeline import VideoOptions, segment_images, segment_video
from cdga_sdk.video.run_folder import (
    Percentiles,
    RunFolder,
    RunPlan,
    RunSummary,
    SaveWhat,
    SourceCounts,
    parse_save,
    raise_if_degraded,
)
from cdga_sdk.video.sink import probe
from cdga_sdk.video.source import VideoSource

Clip = Callable[..., Path]
Picture = Callable[..., NDArray[np.uint8]]
FullDisk = Callable[[int], AbstractContextManager[None]]
EVERYTHING: tuple[SaveWhat, ...] = ("video", "masks", "conf", "json")


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(segmenter: Segmenter, source: Path, folder: Path, **options: Any) -> RunSummary:
    wanted: dict[str, Any] = {"save": ("video", "json"), "options": VideoOptions()}
    return segment_video(segmenter, source, folder, **(wanted | options))


def frames_of(path: Path) -> list[NDArray[np.uint8]]:
    with VideoSource(path) as frames:
        return [f.image_bgr for f in frames]


def stop_after(count: int, error: BaseException) -> Callable[[SegResult], None]:
    def on_frame(result: SegResult) -> None:
        if result.frame == count:
            raise error

    return on_frame


def test_video_run_folder(segmenter: Segmenter, ride: Path, tmp_path: Path) -> None:
    summary = run(segmenter, ride, tmp_path / "run", save=EVERYTHING)
    each = [f"ride_{i:06d}.png" for i in range(12)]
    assert names(tmp_path / "run") == sorted(
        ["overlay.mp4", "stats.jsonl", "summary.json", *(f"{d}/{n}" for d in ("masks", "conf") for n in each)]
    )
    assert summary.status == "done"
    assert summary.outputs == ["conf", "masks", "overlay.mp4", "stats.jsonl", "summary.json"]
    assert json.loads((tmp_path / "run/summary.json").read_text())["outputs"] == summary.outputs
    info = probe(tmp_path / "run/overlay.mp4")
    assert (info.num_frames, info.average_rate, info.size_wh) == (12, Fraction(25), (128, 64))
    assert info.duration_s == pytest.approx(12 / 25)


def test_masks_confidences_and_overlay_are_the_results(segmenter: Segmenter, ride: Path, tmp_path: Path) -> None:
    results: list[SegResult] = []
    options = VideoOptions(alpha=0.7, crf=10)
    run(segmenter, ride, tmp_path, save=EVERYTHING, options=options, on_frame=results.append)
    for index, (result, shown) in enumerate(zip(results, frames_of(tmp_path / "overlay.mp4"), strict=True)):
        np.testing.assert_array_equal(read_label(tmp_path / f"masks/ride_{index:06d}.png"), result.mask)
        np.testing.assert_array_equal(read_label(tmp_path / f"conf/ride_{index:06d}.png"), result.confidence)
        wanted = draw_overlay(result.image_bgr, result.mask, alpha=0.7)
        assert np.abs(shown.astype(int) - wanted).mean() < 12


def test_stats_and_summary(segmenter: Segmenter, ride: Path, tmp_path: Path) -> None:
    results: list[SegResult] = []
    summary = run(segmenter, ride, tmp_path, on_frame=results.append)
    stats = lines(tmp_path / "stats.jsonl")
    assert [s["frame"] for s in stats] == list(range(12))
    for line, result in zip(stats, results, strict=True):
        assert line["source"] == str(ride)
        assert line["time_s"] == pytest.approx(result.time_s)
        assert line["share"] == pytest.approx(result.shares(), abs=1e-5)
        assert line["mean_confidence"] == pytest.approx(result.probability.mean(), abs=1e-3)
        assert list(line["ms"]) == ["decode", "preprocess", "inference", "postprocess", "write"]
    record = json.loads((tmp_path / "summary.json").read_text())
    assert record["status"] == "done"
    assert (record["frames"], record["expected_frames"]) == (12, 12)
    assert record["lost"] == {"corrupt_packets": 0, "corrupt_frames": 0, "missing_frames": 0}
    assert record["mended"] == {"repaired_pts": 0, "size_changes": 0, "resized_frames": 0}
    assert (record["backend"], record["model"]) == (segmenter.backend_name, segmenter.model_id)
    assert record["precision"] == segmenter.precision == "fp32"
    assert record["backend_choice"] == [asdict(candidate) for candidate in segmenter.backend_choice]
    assert [c["name"] for c in record["backend_choice"] if c["taken"]] == ["onnxruntime cpu"]
    assert record["fps"] == pytest.approx(12 / record["wall_s"], rel=0.01)
    assert list(record["mean_share"]) == list(segmenter.names)
    assert sum(record["mean_share"].values()) == pytest.approx(1, abs=1e-3)
    first = segmenter.names[0]
    assert record["mean_share"][first] == pytest.approx(np.mean([r.shares().get(first, 0) for r in results]), abs=1e-5)
    assert record["mean_confidence"] == pytest.approx(np.mean([r.probability.mean() for r in results]), abs=1e-3)
    assert record["stage_ms_p50"].keys() == record["stage_ms_p95"].keys()
    assert summary.line().startswith(f"12 frames in {summary.wall_s:.1f} s ({summary.fps:.1f} fps; decode ")
    assert summary.line().endswith(f"onnxruntime cpu fp32) · {tmp_path}")


def test_part_of_a_video_expects_nothing(segmenter: Segmenter, ride: Path, tmp_path: Path) -> None:
    summary = run(segmenter, ride, tmp_path, options=VideoOptions(vid_stride=3))
    assert (summary.frames, summary.expected_frames, summary.status) == (4, None, "done")
    info = probe(tmp_path / "overlay.mp4")
    assert (info.num_frames, info.average_rate) == (4, Fraction(25, 3))
    assert run(segmenter, ride, tmp_path / "b", options=VideoOptions(max_frames=2)).frames == 2


def test_overlay_starts_at_zero_and_says_when_that_was(segmenter: Segmenter, clip: Clip, tmp_path: Path) -> None:
    """What else tells of times keeps those of the source."""
    path = clip("late.mkv", pts=list(range(5000, 10_000, 200)), time_base=Fraction(1, 1000), rate=Fraction(5))
    options = VideoOptions(start_s=2, end_s=3)
    summary = run(segmenter, path, tmp_path / "run", save=("video", "labels", "json"), options=options)
    times = [7.0, 7.2, 7.4, 7.6, 7.8]
    assert [line["time_s"] for line in lines(tmp_path / "run/stats.jsonl")] == times
    assert [frame.time_s for frame in read_labels(tmp_path / "run/labels.nut")] == times
    with VideoSource(tmp_path / "run/overlay.mp4") as frames:
        assert [f.time_s for f in frames] == pytest.approx([t - 7 for t in times])
    record = json.loads((tmp_path / "run/summary.json").read_text())
    assert record["overlay_start_s"] == summary.overlay_start_s == 7.0
    assert run(segmenter, path, tmp_path / "b", save=("json",)).overlay_start_s is None


def test_a_rate_of_long_numbers_and_a_large_stride(segmenter: Segmenter, clip: Clip, tmp_path: Path) -> None:
    times = [0, 3003, 6007, 9001, 27_000_301]  # on average 450000 / 27003901 frames a second
    source = clip("odd.mp4", time_base=Fraction(1, 90_000), pts=times)
    run(segmenter, source, tmp_path / "run", save=("video", "labels"), options=VideoOptions(vid_stride=101))
    assert names(tmp_path / "run") == ["labels.nut", "overlay.mp4"]
    assert probe(tmp_path / "run/overlay.mp4").num_frames == 1


@pytest.mark.parametrize(("rotation", "ratio"), [(None, Fraction(4, 3)), (90, Fraction(3, 4))])
def test_overlay_has_the_pixels_shape(
    segmenter: Segmenter, clip: Clip, tmp_path: Path, rotation: float | None, ratio: Fraction
) -> None:
    path = clip("tall.mp4", num_frames=3, sample_aspect_ratio=Fraction(4, 3), rotation=rotation)
    with pytest.raises(KeyboardInterrupt):
        run(segmenter, path, tmp_path / "run", on_frame=stop_after(2, KeyboardInterrupt()))
    run(segmenter, path, tmp_path / "whole")
    for video in ("run/overlay.partial.mp4", "whole/overlay.mp4"):
        with av.open(str(tmp_path / video)) as container:
            stream = container.streams.video[0]
            assert stream.sample_aspect_ratio == stream.codec_context.sample_aspect_ratio == ratio


def test_saving_nothing_but_masks(segmenter: Segmenter, ride: Path, tmp_path: Path) -> None:
    run(segmenter, ride, tmp_path, save=("masks",))
    assert [p.name for p in tmp_path.iterdir()] == ["masks"]


def test_overlay_beside_the_folder(segmenter: Segmenter, ride: Path, tmp_path: Path) -> None:
    summary = run(segmenter, ride, tmp_path / "run", video_path=tmp_path / "own.mp4")
    assert names(tmp_path) == ["own.mp4", "run/stats.jsonl", "run/summary.json"]
    assert summary.outputs == [str(tmp_path / "own.mp4"), "stats.jsonl", "summary.json"]
    assert all(Path(summary.folder, output).exists() for output in summary.outputs)
    assert summary.line().endswith(f" · {tmp_path / 'own.mp4'}, {tmp_path / 'run'}")


def test_an_overlay_alone_needs_no_folder(segmenter: Segmenter, ride: Path, tmp_path: Path) -> None:
    summary = segmenter.process_video(ride, tmp_path / "own.mp4", save=("video",))
    assert [p.name for p in tmp_path.iterdir()] == ["own.mp4"]
    assert (summary.folder, summary.outputs) == (str(tmp_path), ["own.mp4"])
    assert summary.line().endswith(f" · {tmp_path / 'own.mp4'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no frame lies in the range"):
        run(
            segmenter,
            ride,
            tmp_path / "run",
            save=("video",),
            video_path=tmp_path / "empty/own.mp4",
            options=VideoOptions(start_s=100),
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "own.mp4"]  # it was there before, and is somebody's


def test_an_overlay_makes_the_folders_that_it_lies_in(segmenter: Segmenter, ride: Path, tmp_path: Path) -> None:
    segmenter.process_video(ride, tmp_path / "new/deep/own.mp4", save=("video",))
    segmenter.process_video(ride, tmp_path / "new/other/own.mp4", options=VideoOptions(vid_stride=1_000_000))
    found = ["new/deep/own.mp4", "new/other/own.mp4", "new/other/own/stats.jsonl", "new/other/own/summary.json"]
    assert names(tmp_path) == found
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot write"):
        segmenter.process_video(ride, tmp_path / "file/own.mp4", save=("video",))


@pytest.mark.parametrize(
    ("name", "save", "reason"),
    [
        ("out.avi", ("video",), "outputs are a folder or NAME.mp4, and this ends in .avi; name .*out.mp4, or a folder"),
        ("out.PNG", ("masks",), "this ends in .PNG"),
        ("labels.nut", ("labels",), "this ends in .nut"),
        ("out.mp4", ("masks", "json"), "names a video, which is not to be saved"),
        ("file", ("json",), "is a file, not a folder"),
    ],
)
def test_outputs_of_other_kinds(
    segmenter: Segmenter, ride: Path, tmp_path: Path, name: str, save: tuple[Any, ...], reason: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=reason):
        segmenter.process_video(ride, tmp_path / name, save=save)
    assert names(tmp_path) == ["file"]


def test_outputs_are_what_this_run_has_written(segmenter: Segmenter, ride: Path, tmp_path: Path) -> None:
    for name in ("notes.txt", "overlay.mp4", "labels.partial.nut"):
        (tmp_path / name).touch()
    (tmp_path / "conf").mkdir()
    summary = run(segmenter, ride, tmp_path, save=("masks", "json"))
    assert summary.outputs == ["masks", "stats.jsonl", "summary.json"]
    assert run(segmenter, ride, tmp_path, save=("video",)).outputs == ["overlay.mp4"]


def test_what_a_source_mended_is_told(segmenter: Segmenter, clip: Clip, tmp_path: Path) -> None:
    parts = [clip("a.ts", num_frames=5), clip("b.ts", num_frames=4, size_wh=(32, 32))]
    (tmp_path / "joined.ts").write_bytes(b"".join(p.read_bytes() for p in parts))
    summary = run(segmenter, tmp_path / "joined.ts", tmp_path / "run")
    assert summary.mended == {"repaired_pts": 4, "size_changes": 1, "resized_frames": 4}
    assert (summary.status, sum(summary.lost.values())) == ("done", 0)
    summary = run(segmenter, tmp_path / "joined.ts", tmp_path / "masks", save=("masks", "json"))
    assert summary.mended == {"repaired_pts": 4, "size_changes": 1}


@pytest.mark.parametrize(
    "name", ["own.mp4", "own.partial.mp4", "own.partial.whole.mp4", "run/labels.partial.nut", "linked.mp4"]
)
def test_the_input_is_kept(segmenter: Segmenter, ride: Path, tmp_path: Path, name: str) -> None:
    """Also where it has the name of what an interrupted run leaves, or another name of the same file has."""
    source = tmp_path / name
    source.parent.mkdir(exist_ok=True)
    source.write_bytes(ride.read_bytes())
    if name == "linked.mp4":
        (tmp_path / "own.partial.mp4").hardlink_to(source)
    before = names(tmp_path)
    with pytest.raises(UsageError, match=r"over its own input.*choose another output"):
        run(segmenter, source, tmp_path / "run", save=("video", "labels"), video_path=tmp_path / "own.mp4")
    assert names(tmp_path) == before
    assert source.read_bytes() == ride.read_bytes()


def test_range_without_frames(segmenter: Segmenter, ride: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no frame lies in the range"):
        run(segmenter, ride, tmp_path, options=VideoOptions(start_s=100))
    assert not {"overlay.mp4", "stats.jsonl", "summary.json"} & set(names(tmp_path))
    (tmp_path / "run").mkdir(parents=True)
    (tmp_path / "run/stats.partial.jsonl").touch()  # of another run, which is none of this one's business
    with pytest.raises(InputError, match="no frame lies in the range"):
        run(segmenter, ride, tmp_path / "run", save=("masks",), options=VideoOptions(start_s=100))
    assert names(tmp_path) == ["run/stats.partial.jsonl"]


@pytest.mark.parametrize(
    ("name", "options"), [("cut.mp4", {"movflags": "faststart"}), ("cut.mkv", {}), ("cut.avi", {"codec": "mjpeg"})]
)
def test_cut_video_is_finished_and_said_to_be_short(
    segmenter: Segmenter, clip: Clip, tmp_path: Path, name: str, options: dict[str, str]
) -> None:
    whole = clip(f"whole_{name}", num_frames=60, **options)
    cut = tmp_path / name
    cut.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * 0.6)])
    summary = run(segmenter, cut, tmp_path / "run")
    assert 25 <= summary.frames < 60
    assert probe(tmp_path / "run/overlay.mp4").num_frames == summary.frames
    assert len(lines(tmp_path / "run/stats.jsonl")) == summary.frames
    assert summary.status == "degraded"
    assert sum(summary.lost.values()) > 0
    if summary.lost["missing_frames"]:
        assert summary.expected_frames is not None
        assert summary.frames + summary.lost["missing_frames"] == summary.expected_frames == 60
    with pytest.raises(DegradedError, match=r"finished, but \d+ (missing|corrupt) (frame|packet)s?") as caught:
        raise_if_degraded(summary)
    assert caught.value.exit_code == 4


def with_longer_sound(clip: Clip, name: str) -> Path:
    """Of 20 frames, 0.8 s, with 3 s of sound."""
    rate = 16_000
    path = clip("silent.mp4", num_frames=20)
    with av.open(str(path)) as reader, av.open(str(path.with_name(name)), "w") as writer:
        video = writer.add_stream_from_template(reader.streams.video[0])
        audio = writer.add_stream("aac", rate=rate)
        for packet in reader.demux(reader.streams.video[0]):
            if packet.dts is not None:
                packet.stream = video
                writer.mux(packet)
        for start in range(0, 3 * rate, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            writer.mux(audio.encode(frame))
        writer.mux(audio.encode(None))
    return path.with_name(name)


def with_slow_end(clip: Clip, name: str) -> Path:
    """20 frames, half of them at 25 fps, half at 5."""
    codec = "mpeg4" if name.endswith(".avi") else "libx264"
    pts = [*range(10), *range(10, 60, 5)]
    return clip(name, codec=codec, pts=pts)


def with_dropped_frames(clip: Clip, name: str) -> Path:
    """20 frames of 23: an AVI has empty chunks in their place, and counts them."""
    return clip(name, codec="mjpeg", pts=[tick for tick in range(23) if tick not in {5, 6, 11}])


def with_edit_list(clip: Clip, name: str) -> Path:
    """Of 60 frames, of which the first 40 are hidden, as cutting without encoding again does it."""
    path = clip("long.mp4", num_frames=60, options={"g": "60", "keyint_min": "60"})
    options = {"avoid_negative_ts": "disabled"}
    with av.open(str(path)) as reader, av.open(str(path.with_name(name)), "w", options=options) as writer:
        copy = writer.add_stream_from_template(reader.streams.video[0])
        for packet in reader.demux(reader.streams.video[0]):
            if packet.pts is not None and packet.dts is not None:
                packet.pts, packet.dts = packet.pts - 40 * 512, packet.dts - 40 * 512
                packet.stream = copy
                writer.mux(packet)
    return path.with_name(name)


FRAGMENTED = "empty_moov+frag_keyframe+default_base_moof"


def with_pause_in_fragments(clip: Clip, name: str) -> Path:
    """20 frames, with 4 s between two of them, which the file says that the earlier one lasts."""
    return clip(name, movflags=FRAGMENTED, pts=[*range(10), *range(110, 120)])


def without_fragments(data: bytes) -> bytes:
    """An MP4 in fragments without a third of them."""
    starts = [i - 4 for i in range(len(data)) if data.startswith(b"moof", i)]
    return data[: starts[len(starts) // 3]] + data[starts[2 * len(starts) // 3] :]


@pytest.mark.parametrize(
    ("name", "options", "damaged"),
    [
        ("a.mp4", {"movflags": FRAGMENTED}, without_fragments),
        ("a.flv", {}, lambda data: data[: int(len(data) * 0.3)] + data[int(len(data) * 0.6) :]),
        ("a.flv", {}, lambda data: data[: int(len(data) * 0.6)]),
    ],
)
def test_a_gap_in_a_container_without_a_count_is_told_by_the_times(
    segmenter: Segmenter, clip: Clip, tmp_path: Path, name: str, options: dict[str, str], damaged: Callable[..., bytes]
) -> None:
    path = clip(name, num_frames=60, **options)
    path.write_bytes(damaged(path.read_bytes()))
    summary = run(segmenter, path, tmp_path / "run", save=("json",))
    assert (summary.status, summary.expected_frames) == ("degraded", None)
    assert summary.frames + summary.lost["missing_frames"] == pytest.approx(60, abs=3)
    part = run(segmenter, path, tmp_path / "part", save=("json",), options=VideoOptions(max_frames=30))
    assert part.lost["missing_frames"] == 0


@pytest.mark.parametrize(
    ("made", "name", "expected"),
    [
        (with_longer_sound, "a.mkv", None),
        (with_longer_sound, "a.ts", None),
        (with_longer_sound, "a.mp4", 20),
        (with_slow_end, "a.mkv", None),
        (with_slow_end, "a.ts", None),
        (with_slow_end, "a.mp4", 20),
        (with_slow_end, "a.avi", 20),
        (with_dropped_frames, "a.avi", 20),
        (with_longer_sound, "a.flv", None),
        (with_slow_end, "a.flv", None),
        (with_pause_in_fragments, "a.mp4", None),
        (with_edit_list, "a.mp4", 20),
    ],
)
def test_a_healthy_video_misses_nothing(
    segmenter: Segmenter, clip: Clip, tmp_path: Path, made: Callable[..., Path], name: str, expected: int | None
) -> None:
    summary = run(segmenter, made(clip, name), tmp_path / "run", save=("json",))
    assert (summary.frames, summary.expected_frames, summary.status) == (20, expected, "done")


def test_damage_within_a_video_is_counted(segmenter: Segmenter, clip: Clip, tmp_path: Path) -> None:
    path = clip("ride.ts", num_frames=60)
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    for place in rng.integers(len(data) // 3, len(data) // 2, 60):
        data[place] ^= 0xFF
    path.write_bytes(data)
    summary = run(segmenter, path, tmp_path / "run")
    assert summary.status == "degraded"
    assert summary.lost["corrupt_packets"] + summary.lost["corrupt_frames"] > 0
    assert json.loads((tmp_path / "run/summary.json").read_text())["lost"] == summary.lost


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("mine")])
def test_a_stopped_run_tells_what_was_lost_until_then(
    segmenter: Segmenter, clip: Clip, tmp_path: Path, error: BaseException
) -> None:
    path = clip("ride.ts", num_frames=60)
    data = bytearray(path.read_bytes())
    data[len(data) // 4 : len(data) // 3] = bytes(len(data) // 3 - len(data) // 4)
    path.write_bytes(data)
    with pytest.raises(type(error)):
        run(segmenter, path, tmp_path / "run", on_frame=stop_after(35, error))
    lost = json.loads((tmp_path / "run/summary.json").read_text())["lost"]
    assert lost["corrupt_packets"] + lost["corrupt_frames"] > 0
    assert lost["missing_frames"] == 0  # what is behind the end of this run is not lost


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyboardInterrupt(), "interrupted"),
        (Terminated(), "interrupted"),
        (ValueError("mine"), "failed"),
        (OSError(errno.EIO, "mine"), "failed"),
    ],
)
def test_stopped_run_keeps_what_was_made(
    segmenter: Segmenter, ride: Path, tmp_path: Path, error: BaseException, status: str
) -> None:
    with pytest.raises(type(error)) as caught:
        run(segmenter, ride, tmp_path, save=EVERYTHING, on_frame=stop_after(7, error))
    assert caught.value is error
    top = sorted(p.name for p in tmp_path.iterdir())
    assert top == ["conf", "masks", "overlay.partial.mp4", "stats.partial.jsonl", "summary.json"]
    assert len(frames_of(tmp_path / "overlay.partial.mp4")) == 7
    assert len(lines(tmp_path / "stats.partial.jsonl")) == 7
    assert len(names(tmp_path / "masks")) == 7
    record = json.loads((tmp_path / "summary.json").read_text())
    assert (record["status"], record["frames"], record["outputs"]) == (status, 7, top)


def test_second_run_replaces_the_partial_files(segmenter: Segmenter, ride: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(segmenter, ride, tmp_path, on_frame=stop_after(3, KeyboardInterrupt()))
    run(segmenter, ride, tmp_path)
    assert names(tmp_path) == ["overlay.mp4", "stats.jsonl", "summary.json"]
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "done"


def test_stopped_before_the_first_frame(segmenter: Segmenter, ride: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(segmenter, ride, tmp_path, on_frame=stop_after(0, KeyboardInterrupt()))
    assert names(tmp_path) == []


@pytest.mark.parametrize("start_s", [1e9, 1e8])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_a_start_far_behind_the_end(
    segmenter: Segmenter, clip: Clip, tmp_path: Path, name: str, start_s: float
) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(InputError, match="no frame lies in the range"):
        run(segmenter, clip(name, num_frames=5), tmp_path / "run", options=VideoOptions(start_s=start_s))
    assert not any((tmp_path / "run").iterdir())


def test_full_disk(segmenter: Segmenter, clip: Clip, tmp_path: Path, full_disk_after: FullDisk) -> None:
    path = clip("ride.mp4", num_frames=40, size_wh=(320, 240))
    with full_disk_after(60_000), pytest.raises(ResourceError) as caught:
        run(segmenter, path, tmp_path / "run", options=VideoOptions(crf=1))
    assert caught.value.exit_code == 6
    assert "overlay.mp4" not in names(tmp_path / "run")
    assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "failed"


def test_full_disk_for_a_mask(segmenter: Segmenter, ride: Path, tmp_path: Path, full_disk_after: FullDisk) -> None:
    with full_disk_after(20), pytest.raises(ResourceError):
        run(segmenter, ride, tmp_path / "run", save=("masks",))
    assert names(tmp_path / "run") == []


def test_folder_that_cannot_be_made(segmenter: Segmenter, ride: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot write"):
        run(segmenter, ride, tmp_path / "file" / "run")
    (tmp_path / "run/stats.partial.jsonl").mkdir(parents=True)
    with pytest.raises(UsageError, match="Is a directory"):
        run(segmenter, ride, tmp_path / "run")


def test_what_is_no_video(segmenter: Segmenter, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("hello")
    with pytest.raises(InputError, match="found text"):
        run(segmenter, tmp_path / "text.mp4", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def photos(tmp_path: Path, picture: Picture) -> list[Path]:
    paths = [tmp_path / "in" / f"{n}.png" for n in ("a", "b", "c")]
    for index, path in enumerate(paths):
        write_png(path, picture(index, (100 + index, 60)))
    return paths


def test_image_run_folder(segmenter: Segmenter, photos: list[Path], tmp_path: Path) -> None:
    summary = segment_images(segmenter, photos, tmp_path / "run", save=EVERYTHING, alpha=0.25)
    each = [f"{d}/{n}.{s}" for d, s in (("overlay", "jpg"), ("masks", "png"), ("conf", "png")) for n in "abc"]
    assert names(tmp_path / "run") == sorted([*each, "stats.jsonl", "summary.json"])
    assert (summary.status, summary.frames, summary.expected_frames) == ("done", 3, 3)
    assert (summary.outputs, summary.mended) == (["conf", "masks", "overlay", "stats.jsonl", "summary.json"], {})
    assert summary.source == str(tmp_path / "in")
    for path in photos:
        result = segmenter(path)
        np.testing.assert_array_equal(read_label(tmp_path / f"run/masks/{path.stem}.png"), result.mask)
        np.testing.assert_array_equal(read_label(tmp_path / f"run/conf/{path.stem}.png"), result.confidence)
        shown = read_image_bgr(tmp_path / f"run/overlay/{path.stem}.jpg")
        assert np.abs(shown.astype(int) - result.plot(0.25)).mean() < 12
    stats = lines(tmp_path / "run/stats.jsonl")
    assert [(s["source"], s["frame"], s["time_s"]) for s in stats] == [(str(p), i, None) for i, p in enumerate(photos)]


def test_images_of_equal_stems_do_not_meet(segmenter: Segmenter, picture: Picture, tmp_path: Path) -> None:
    paths = [tmp_path / d for d in ("x/a.png", "x/a.bmp.png", "x/a_bmp.png", "y/a.png", "y/a.bmp.png", "z/a.png")]
    for index, path in enumerate(paths):
        write_png(path, picture(index))
    segment_images(segmenter, paths, tmp_path / "run", save=("masks",))
    written = names(tmp_path / "run/masks")
    assert len(written) == 6
    assert {"a.png", "a.bmp.png", "a_bmp.png", "a_png.png"} <= set(written)


def test_one_image_is_its_own_source(segmenter: Segmenter, photos: list[Path], tmp_path: Path) -> None:
    seen: list[SegResult] = []
    summary = segment_images(segmenter, photos[:1], tmp_path / "run", save=("json",), on_frame=seen.append)
    assert summary.source == str(photos[0])
    assert len(seen) == 1


def test_bad_image_among_good_ones(segmenter: Segmenter, photos: list[Path], tmp_path: Path) -> None:
    photos[1].write_bytes(photos[1].read_bytes()[:200])
    summary = segment_images(segmenter, photos, tmp_path / "run", save=("masks", "json"))
    assert (summary.status, summary.frames, summary.lost) == ("degraded", 2, {"unreadable_images": 1})
    assert names(tmp_path / "run/masks") == ["a.png", "c.png"]
    without = replace(summary, outputs=["masks"])
    with pytest.raises(DegradedError, match=r"finished, but 1 unreadable image$"):
        raise_if_degraded(without)
    assert lines(tmp_path / "run/stats.jsonl")[1] == {
        "source": str(photos[1]),
        "error": "not an image that can be decoded",
    }
    with pytest.raises(DegradedError, match=r"finished, but 1 unreadable image; see summary\.json"):
        raise_if_degraded(summary)


def test_an_image_too_large_for_a_jpeg(segmenter: Segmenter, photos: list[Path], tmp_path: Path) -> None:
    write_png(photos[1], np.zeros((2, 65_501, 3), np.uint8))
    summary = segment_images(segmenter, photos, tmp_path / "run", save=("video", "json"))
    assert (summary.frames, summary.lost) == (2, {"unreadable_images": 1})
    error = lines(tmp_path / "run/stats.jsonl")[1]["error"]
    assert error == "it has 65501x2 pixels; an overlay has 65500 a side at most"
    assert segment_images(segmenter, photos, tmp_path / "masks", save=("masks",)).frames == 3


def test_a_video_too_large_for_an_overlay(segmenter: Segmenter, clip: Clip, tmp_path: Path) -> None:
    source = clip("wide.avi", codec="ffv1", num_frames=1, size_wh=(16_386, 2))
    with pytest.raises(InputError, match="its frames are 16386x2; an overlay has 16384 a side at most"):
        run(segmenter, source, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert run(segmenter, source, tmp_path / "run", save=("masks",)).frames == 1


def test_only_bad_images(segmenter: Segmenter, photos: list[Path], tmp_path: Path) -> None:
    for path in photos:
        path.write_bytes(b"no image")
    with pytest.raises(InputError) as caught:
        segment_images(segmenter, photos, tmp_path / "run", save=EVERYTHING)
    assert caught.value.where == str(photos[0])
    assert names(tmp_path / "run") in ([], ["stats.partial.jsonl"])


def test_a_source_that_cannot_count_leaves_no_file_open(segmenter: Segmenter, tmp_path: Path) -> None:
    def broken(written: int, is_whole: bool) -> SourceCounts:
        raise RuntimeError("no counts")

    plan = RunPlan(folder=tmp_path, save=("json",), source="a")

    def write(outputs: RunFolder, error: Exception | None) -> None:
        with outputs:
            outputs.write(segmenter(np.zeros((64, 128, 3), np.uint8)), "a", 0.0, 0.5)
            if error is not None:
                raise error

    for error, name in ((ValueError("mine"), "stats.partial.jsonl"), (None, "stats.jsonl")):
        outputs = RunFolder(plan, segmenter, broken)
        with pytest.raises((ValueError, RuntimeError), match="mine" if error else "no counts"):
            write(outputs, error)
        assert outputs.summary.status == "failed"
        assert len(lines(tmp_path / name)) == 1


def test_only_what_is_written_may_not_be_the_input(segmenter: Segmenter, ride: Path, tmp_path: Path) -> None:
    run(segmenter, ride, tmp_path, save=("video",))
    overlay = tmp_path / "overlay.mp4"
    assert run(segmenter, overlay, tmp_path, save=("masks",)).outputs == ["masks"]
    with pytest.raises(UsageError, match="would write over its own input"):
        run(segmenter, overlay, tmp_path, save=("video", "masks"))


@pytest.mark.parametrize("kind", [VideoSource, LiveSource])
def test_a_source_that_is_not_open_is_refused(
    segmenter: Segmenter, tmp_path: Path, kind: type[VideoSource | LiveSource]
) -> None:
    source = kind("rtsp://127.0.0.1:9/x")
    with pytest.raises(UsageError, match="the source is not open; open it first"):
        segment_video(segmenter, source, tmp_path / "run", save=("json",), options=VideoOptions())
    assert not (tmp_path / "run").exists()


def test_good_run_is_not_degraded(segmenter: Segmenter, ride: Path, tmp_path: Path) -> None:
    raise_if_degraded(run(segmenter, ride, tmp_path))


@pytest.mark.parametrize(
    ("text", "save"),
    [("video,json", ("video", "json")), (" masks , conf,masks", ("masks", "conf")), ("json,video", ("video", "json"))],
)
def test_parse_save(text: str, save: tuple[str, ...]) -> None:
    assert parse_save(text) == save


def test_parse_save_refuses_other_words() -> None:
    with pytest.raises(UsageError, match="--save: cannot save 'mask'; use any of video,masks,labels,conf,json"):
        parse_save("video,mask")
    with pytest.raises(UsageError, match="--save: nothing to save; use any of video,masks,labels,conf,json"):
        parse_save(" , ")


@pytest.mark.parametrize(
    ("save", "reason"),
    [
        (("mask",), "cannot save 'mask'; use any of video,masks,labels,conf,json"),
        (("masks", "Video"), "cannot save 'Video'"),
        (("masks", 1), "cannot save '1'"),
        ("video", r"save is one text, 'video'; give words, as in \('video',\)"),
        ((), "nothing to save"),
    ],
)
def test_other_words_to_save_are_refused(
    segmenter: Segmenter, ride: Path, photos: list[Path], tmp_path: Path, save: Any, reason: str
) -> None:
    ways: list[Callable[[], object]] = [
        lambda: segmenter.process_video(ride, tmp_path / "run", save=save),
        lambda: segment_images(segmenter, photos, tmp_path / "run", save=save),
    ]
    for way in ways:
        with pytest.raises(UsageError, match=reason):
            way()
    assert not (tmp_path / "run").exists()


def test_words_to_save_may_be_a_list_in_any_order(segmenter: Segmenter, ride: Path, tmp_path: Path) -> None:
    run(segmenter, ride, tmp_path / "run", save=["json", "masks", "json"], options=VideoOptions(max_frames=1))
    assert names(tmp_path / "run") == ["masks/ride_000000.png", "stats.jsonl", "summary.json"]


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_is_a_share(alpha: float) -> None:
    with pytest.raises(UsageError, match="wanted 0 to 1"):
        VideoOptions(alpha=alpha)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"start_s": 5, "end_s": 3}, "end_s is 3; it must be later than start_s"),
        ({"end_s": float("inf")}, "end_s is inf; it must be later than start_s, and finite"),
        ({"end_s": float("nan")}, "end_s is nan"),
        ({"start_s": float("inf")}, "start_s is inf; it must be 0 or more, and finite"),
        ({"vid_stride": 0}, "vid_stride is 0; it must be 1 to 1000000"),
        ({"max_frames": 0}, "max_frames is 0; it must be 1 to 1000000000"),
        ({"vid_stride": 10**23}, "it must be 1 to 1000000"),
        ({"max_frames": 10**23}, "it must be 1 to 1000000000"),
        ({"start_s": 1e15}, r"start_s is 1000000000000000.0 and .* each must be 1e\+09 or less"),
        ({"start_s": 1e300}, "or less"),
        ({"crf": 52}, "crf is 52; it must be 0 to 51"),
        ({"preset": "warp"}, "preset is 'warp'; it must be one of ultrafast, "),
    ],
)
def test_options_out_of_range_are_refused_where_they_are_given(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        VideoOptions(**options)


def test_percentiles_are_within_two_percent() -> None:
    times = Percentiles()
    assert times.at(0.5) == 0
    values = np.random.default_rng(0).lognormal(1, 1, 5000)
    for value in values:
        times.add(float(value))
    for share in (0.5, 0.95):
        assert times.at(share) == pytest.approx(float(np.quantile(values, share)), rel=0.02)
    times.add(0.0)
    times.add(1e30)
    assert times.at(1.0) > 1e6


def test_empty_summary() -> None:
    assert RunSummary(status="done", source="a", folder="b", frames=0).fps == 0
