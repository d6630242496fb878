"""From words on the command line to runs: how sources are sorted, and where their outputs go."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cdga_sdk.errors import DegradedError, InputError, InterruptedRunError, UsageError
from cdga_sdk.image import write_png
from cdga_sdk.prediction import PredictedFrame
from cdga_sdk.segment_run import SegmentRequest, Work, find_work, plan_work
from cdga_sdk.segment_run import run_segment as run_planned
from cdga_sdk.segmenter import Segmenter
from cdga_sdk.video.pipeline import VideoOptions
from tests.cdga_sdk.test_progress import terminal

Picture = Callable[..., NDArray[np.uint8]]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ride: Path, picture: Picture) -> Path:
    """A working folder with ``media``: two clips, two images and a text."""
    monkeypatch.chdir(tmp_path)
    media = tmp_path / "media"
    media.mkdir()
    for name in ("b.mp4", "c.MP4"):
        shutil.copy(ride, media / name)
    for index, name in enumerate(("a.png", "d.png")):
        write_png(media / name, picture(index))
    (media / "notes.txt").write_text("notes")
    return tmp_path


def request(*sources: str, **changes: Any) -> SegmentRequest:
    made: dict[str, Any] = {
        "sources": sources,
        "output": None,
        "save": ("video", "json"),
        "project": None if changes.get("output") else Path("runs"),
        "name": None,
        "exist_ok": False,
        "options": VideoOptions(),
    }
    return SegmentRequest(**(made | changes))


def run_segment(segmenter: Segmenter, wanted: SegmentRequest) -> None:
    run_planned(segmenter, wanted, plan_work(wanted))


def everything(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_folder_gives_its_images_as_one_run_and_each_video(place: Path) -> None:
    media = Path("media")
    assert find_work(["media"]) == [
        Work(name="media", images=(media / "a.png", media / "d.png")),
        Work(name="b", video=media / "b.mp4"),
        Work(name="c", video=media / "c.MP4"),
    ]
    os.chdir("media")
    assert [w.name for w in find_work(["."])] == ["media", "b", "c"]


def test_files_and_globs(place: Path) -> None:
    media = Path("media")
    assert find_work(["media/a.png"]) == [Work(name="a", images=(media / "a.png",))]
    assert find_work(["media/b.mp4"]) == [Work(name="b", video=media / "b.mp4")]
    assert find_work(["media/*.png"]) == [Work(name="media", images=(media / "a.png", media / "d.png"))]
    assert [w.name for w in find_work([str(place / "media/*.mp4"), "**/a.png"])] == ["b", "a"]


def test_a_name_that_says_nothing_is_left_to_the_decoder(place: Path) -> None:
    assert find_work(["media/notes.txt"]) == [Work(name="notes", video=Path("media/notes.txt"))]


def test_a_name_with_brackets_is_a_name_first(place: Path) -> None:
    (place / "media/a.png").rename(place / "media/[ab].png")
    assert find_work(["media/[ab].png"]) == [Work(name="[ab]", images=(Path("media/[ab].png"),))]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("none.mp4", "no such file or folder"),
        ("media/*.webm", "nothing matches"),
        ("em*/", r"only folders match; give 'em\*/\*' for what lies in them"),
        ("empty", "no images and no videos"),
    ],
)
def test_nothing_to_segment(place: Path, source: str, reason: str) -> None:
    (place / "empty").mkdir()
    with pytest.raises(InputError, match=reason) as caught:
        find_work([source])
    assert caught.value.where == source


def test_a_folder_of_folders_names_the_glob(place: Path) -> None:
    (place / "outer").mkdir()
    (place / "media").rename(place / "outer/media")
    with pytest.raises(InputError, match=r"give 'outer/\*\*/\*' for what lies in them"):
        find_work(["outer"])
    assert find_work(["outer/**/*"])


def test_each_source_gets_a_run(segmenter: Segmenter, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_segment(segmenter, request("media"))
    assert everything(place / "runs") == [
        "b/overlay.mp4",
        "b/stats.jsonl",
        "b/summary.json",
        "c/overlay.mp4",
        "c/stats.jsonl",
        "c/summary.json",
        "media/overlay/a.jpg",
        "media/overlay/d.jpg",
        "media/stats.jsonl",
        "media/summary.json",
    ]
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split(" · ")[1] for line in err.splitlines()] == ["runs/media", "runs/b", "runs/c"]


def test_labels_of_images_are_refused_before_anything_is_made(segmenter: Segmenter, place: Path) -> None:
    with pytest.raises(UsageError, match="save masks instead"):
        run_segment(segmenter, request("media/b.mp4", "media/a.png", save=("labels",)))
    assert not (place / "runs").exists()


def test_runs_are_numbered_unless_told(segmenter: Segmenter, place: Path) -> None:
    for _ in range(2):
        run_segment(segmenter, request("media/a.png", quiet=True))
    assert sorted(p.name for p in Path("runs").iterdir()) == ["a", "a2"]
    run_segment(segmenter, request("media/a.png", exist_ok=True, name="a", quiet=True))
    run_segment(segmenter, request("media/a.png", name="mine", quiet=True))
    assert sorted(p.name for p in Path("runs").iterdir()) == ["a", "a2", "mine"]


def test_output_names_a_folder(segmenter: Segmenter, place: Path) -> None:
    run_segment(segmenter, request("media/b.mp4", output=Path("out/here"), quiet=True))
    assert everything(place / "out") == ["here/overlay.mp4", "here/stats.jsonl", "here/summary.json"]
    assert not Path("runs").exists()


def test_output_names_a_video(segmenter: Segmenter, place: Path) -> None:
    wanted = request("media/b.mp4", output=Path("own.mp4"), quiet=True)
    run_segment(segmenter, wanted)
    assert everything(place / "own") == ["stats.jsonl", "summary.json"]
    assert not Path("runs").exists()
    first = Path("own.mp4").read_bytes()
    with pytest.raises(UsageError, match="already exists"):
        run_segment(segmenter, wanted)
    assert Path("own.mp4").read_bytes() == first
    run_segment(segmenter, request("media/b.mp4", output=Path("own.mp4"), exist_ok=True, quiet=True))


@pytest.mark.parametrize("save", [("masks",), ("video",), ("labels",), ("conf",), ("json",)])
def test_a_folder_that_holds_any_run_is_refused(segmenter: Segmenter, place: Path, save: tuple[Any, ...]) -> None:
    run_segment(segmenter, request("media/b.mp4", output=Path("out"), save=save, quiet=True))
    before = {p: p.read_bytes() for p in Path("out").rglob("*") if p.is_file()}
    for again in (save, ("video", "masks", "labels", "conf", "json")):
        wanted = request("media/c.MP4", output=Path("out"), save=again, quiet=True)
        with pytest.raises(UsageError, match=r"out: holds an earlier run .*; choose another -o, or pass --exist-ok"):
            plan_work(wanted)
    assert {p: p.read_bytes() for p in Path("out").rglob("*") if p.is_file()} == before
    run_segment(segmenter, request("media/c.MP4", output=Path("out"), exist_ok=True, quiet=True))


def test_what_an_interrupted_run_left_is_not_written_over(place: Path) -> None:
    for name in ("stats.partial.jsonl", "overlay.partial.mp4", "labels.partial.nut", "overlay.partial.whole.mp4"):
        folder = place / f"{name} in it"
        folder.mkdir()
        (folder / name).touch()
        with pytest.raises(UsageError, match=f"holds an earlier run .{name}"):
            plan_work(request("media/b.mp4", output=folder))
    Path("own.partial.mp4").touch()
    with pytest.raises(UsageError, match=r"own\.partial\.mp4: already exists"):
        plan_work(request("media/b.mp4", output=Path("own.mp4")))
    Path("mine").mkdir()
    Path("mine/summary.json").touch()
    with pytest.raises(UsageError, match=r"mine: holds an earlier run .summary\.json"):
        plan_work(request("media/b.mp4", output=Path("mine.mp4")))
    plan_work(request("media/b.mp4", output=Path("mine.mp4"), save=("video",)))


def test_a_folder_that_holds_other_things_is_taken(segmenter: Segmenter, place: Path) -> None:
    Path("out").mkdir()
    for name in ("notes.txt", "overlay.txt", "my.partial.mp4", "summary.old.json"):
        Path("out", name).write_text("mine")
    run_segment(segmenter, request("media/b.mp4", output=Path("out"), save=("json",), quiet=True))
    assert len(everything(Path("out"))) == 6


def test_a_folder_with_what_the_run_does_not_write_is_taken(place: Path) -> None:
    for name in ("masks", "conf"):
        Path("out", name).mkdir(parents=True)
    plan_work(request("media/b.mp4", output=Path("out"), save=("video", "json")))
    for source, save, refused in (
        ("media/b.mp4", ("masks", "json"), "masks"),
        ("media/a.png", ("video", "conf"), "conf"),
    ):
        with pytest.raises(UsageError, match=rf"holds an earlier run \({refused}\)"):
            plan_work(request(source, output=Path("out"), save=save))


@pytest.mark.parametrize("output", ["media/b.mp4", "media/../media/b.mp4", "out"])
def test_the_source_is_no_output(place: Path, output: str) -> None:
    Path("out").mkdir()
    source = shutil.copy("media/b.mp4", "out/overlay.mp4") if output == "out" else "media/b.mp4"
    with pytest.raises(UsageError, match="would write over its own input"):
        plan_work(request(source, output=Path(output), exist_ok=True))
    plan_work(request(source, output=Path("out"), exist_ok=True, save=("masks",)))


@pytest.mark.parametrize("place_of", [{"output": Path("out")}, {"project": Path(), "name": "out"}])
def test_images_are_not_written_over(segmenter: Segmenter, place: Path, place_of: dict[str, Any]) -> None:
    Path("out").mkdir()
    shutil.copytree("media", "out/masks")
    before = Path("out/masks/a.png").read_bytes()
    with pytest.raises(UsageError, match="out/masks: would write among its own images"):
        run_segment(segmenter, request("out/masks/*.png", save=("masks",), exist_ok=True, **place_of))
    assert Path("out/masks/a.png").read_bytes() == before
    assert everything(place / "out") == sorted(f"masks/{p.name}" for p in Path("media").iterdir())
    run_segment(segmenter, request("out/masks/a.png", save=("conf",), exist_ok=True, quiet=True, **place_of))


@pytest.mark.parametrize("was_there", [True, False])
@pytest.mark.parametrize("place_of", [{"output": Path("out")}, {"project": Path(), "name": "out", "exist_ok": True}])
def test_an_empty_folder_is_left_where_it_was(
    segmenter: Segmenter, place: Path, place_of: dict[str, Any], was_there: bool
) -> None:
    if was_there:
        Path("out").mkdir()
    late = VideoOptions(start_s=100)
    with pytest.raises(InputError, match="no frame lies in the range"):
        run_segment(segmenter, request("media/b.mp4", options=late, quiet=True, **place_of))
    assert Path("out").exists() == was_there
    assert not was_there or not any(Path("out").iterdir())


def test_an_overlay_alone_makes_no_run_folder(
    segmenter: Segmenter, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_segment(segmenter, request("media/b.mp4", output=Path("own.mp4"), save=("video",)))
    assert sorted(p.name for p in place.iterdir()) == ["media", "own.mp4"]
    assert capsys.readouterr().err.endswith(" · own.mp4\n")


def test_output_that_does_not_fit(segmenter: Segmenter, place: Path) -> None:
    with pytest.raises(UsageError, match="--output names one place, got 3 sources"):
        run_segment(segmenter, request("media", output=Path("out")))
    with pytest.raises(UsageError, match=r"-o NAME\.mp4 is for a video"):
        run_segment(segmenter, request("media/a.png", output=Path("out.mp4")))
    for flag in ({"project": Path("p")}, {"name": "n"}):
        with pytest.raises(UsageError, match="and --output both say where the run goes"):
            run_segment(segmenter, request("media/b.mp4", output=Path("out"), **flag))
    assert [p.name for p in place.iterdir()] == ["media"]


def test_images_that_a_shell_has_listed_are_told_how_to_be_one_run(place: Path) -> None:
    with pytest.raises(UsageError, match="--output names one place, got 2 sources; give their folder, or quote"):
        plan_work(request("media/a.png", "media/d.png", output=Path("out")))


def test_output_may_be_here(segmenter: Segmenter, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "here").mkdir()
    monkeypatch.chdir(place / "here")
    run_segment(segmenter, request("../media/a.png", output=Path(), save=("json",), quiet=True))
    assert everything(place / "here") == ["stats.jsonl", "summary.json"]


@pytest.mark.parametrize(
    ("source", "given", "reason"),
    [
        ("media/a.png", "start", "--start is of a video, and these are images"),
        ("media", "vid_stride", "--vid-stride is of a video"),
        ("media/*.png", "max_frames", "--max-frames is of a video"),
        ("media/a.png", "live", "--live is of a video"),
        ("media/a.png", "quality", "--quality is of a video"),
        ("media/b.mp4", "live", "--live is of a live source, and this is none"),
        ("media/b.mp4", "reconnect", "--reconnect is of a live source"),
    ],
)
def test_options_without_an_effect(place: Path, source: str, given: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        plan_work(request(source, given=frozenset({given})))


@pytest.mark.parametrize("given", ["alpha", "quality"])
def test_options_of_an_overlay_that_is_not_saved(place: Path, given: str) -> None:
    changes: dict[str, Any] = {"given": frozenset({given}), "save": ("masks", "json")}
    with pytest.raises(UsageError, match=f"--{given} is of the overlay, which --save leaves out; leave it out"):
        plan_work(request("media/b.mp4", **changes))


def test_options_with_an_effect(place: Path) -> None:
    assert len(plan_work(request("media", given=frozenset({"quality", "alpha", "name"})))) == 3


def test_names_are_the_same_again_for_several_sources(segmenter: Segmenter, place: Path) -> None:
    (place / "more").mkdir()
    shutil.copy("media/b.mp4", "more/b.mp4")
    for _ in range(2):
        run_segment(segmenter, request("media/a.png", "media/b.mp4", "more/b.mp4", exist_ok=True, quiet=True))
    assert sorted(p.name for p in Path("runs").iterdir()) == ["a", "b", "b2"]
    sources = [json.loads(Path("runs", name, "summary.json").read_text())["source"] for name in ("b", "b2")]
    assert sources == ["media/b.mp4", "more/b.mp4"]
    for _ in range(2):
        run_segment(segmenter, request("media/a.png", "media/d.png", name="mine", exist_ok=True, quiet=True))
    assert sorted(p.name for p in Path("runs").iterdir()) == ["a", "b", "b2", "mine", "mine2"]


@pytest.mark.parametrize("flags", [{}, {"quiet": True}, {"as_json": True}])
def test_a_bad_video_among_good_ones(
    segmenter: Segmenter, place: Path, capsys: pytest.CaptureFixture[str], flags: dict[str, bool]
) -> None:
    Path("media/b.mp4").write_bytes(Path("media/b.mp4").read_bytes()[:300])  # as a recorder that lost its power
    with pytest.raises(DegradedError, match="1 of 3 sources could not be segmented") as caught:
        run_segment(segmenter, request("media", **flags))
    assert caught.value.exit_code == 4
    assert sorted(p.name for p in Path("runs").iterdir()) == ["c", "media"]
    skipped = [line for line in capsys.readouterr().err.splitlines() if line.startswith("skipped: media/b.mp4: ")]
    assert len(skipped) == 1


def test_all_losses_of_several_sources_are_told(
    segmenter: Segmenter, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        shutil.copytree("media", name, ignore=shutil.ignore_patterns("*.mp4", "*.MP4"))
        Path(name, "a.png").write_bytes(b"no image")
    Path("media/b.mp4").write_text("no video")
    reason = "1 of 4 sources could not be segmented, 2 of 4 sources lost something; see .* with 'skipped' or 'degraded'"
    with pytest.raises(DegradedError, match=reason):
        run_segment(segmenter, request("media/b.mp4", "one", "media/d.png", "two", save=("json",), quiet=True))
    told = [" ".join(line.split()[:2]) for line in capsys.readouterr().err.splitlines()]
    assert told == ["skipped: media/b.mp4:", "degraded: one:", "degraded: two:"]


def test_only_bad_videos(segmenter: Segmenter, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("b.mp4", "c.MP4"):
        Path("media", name).write_text("no video")
    with pytest.raises(InputError, match="none of the 2 sources could be segmented"):
        run_segment(segmenter, request("media/b.mp4", "media/c.MP4"))
    assert len(capsys.readouterr().err.splitlines()) == 2
    assert not Path("runs").exists()


def test_hidden_files_of_a_folder_are_passed_by(place: Path) -> None:
    for name in ("._b.mp4", "._a.png", ".hidden.png"):
        Path("media", name).write_bytes(b"\x00\x05\x16\x07Mac OS X")
    assert [w.name for w in find_work(["media"])] == ["media", "b", "c"]
    assert [len(w.images) for w in find_work(["media"])] == [2, 0, 0]
    assert [w.video for w in find_work(["media/._b.mp4"])] == [Path("media/._b.mp4")]


@pytest.mark.parametrize(
    ("options", "frames"),
    [
        ({}, 12),
        ({"vid_stride": 5}, 3),
        ({"start_s": 0.2}, 7),
        ({"start_s": 0.2, "end_s": 0.4}, 5),
        ({"end_s": 9, "vid_stride": 2, "max_frames": 4}, 4),
    ],
)
def test_the_bar_is_as_long_as_the_run(segmenter: Segmenter, place: Path, options: dict[str, Any], frames: int) -> None:
    with terminal() as shown:
        run_segment(segmenter, request("media/b.mp4", save=("json",), options=VideoOptions(**options)))
        assert f"{frames}/{frames}" in shown()


def test_bad_source_leaves_no_folder(segmenter: Segmenter, place: Path) -> None:
    with pytest.raises(InputError, match="found text, not a video"):
        run_segment(segmenter, request("media/notes.txt"))
    assert not Path("runs").exists()


def test_json_is_all_that_stdout_carries(segmenter: Segmenter, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_segment(segmenter, request("media", as_json=True))
    out, err = capsys.readouterr()
    assert err == ""
    records = [json.loads(line) for line in out.splitlines()]
    assert [r["frames"] for r in records] == [2, 12, 12]
    assert [r["folder"] for r in records] == ["runs/media", "runs/b", "runs/c"]
    assert all(r["fps"] > 0 for r in records)


@pytest.mark.parametrize(
    ("frames", "flags", "line"),
    [
        (3, {"output": Path("own.mp4"), "save": ("video",)}, "own.partial.mp4: interrupted; what was finished is kept"),
        (3, {"output": Path("own.mp4")}, "own.partial.mp4, own: interrupted; what was finished is kept"),
        (3, {}, "runs/b: interrupted; what was finished is kept"),
        (0, {}, "interrupted before anything was written"),
    ],
)
def test_an_interruption_says_where_things_are(
    segmenter: Segmenter, place: Path, frames: int, flags: dict[str, Any], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, predict = iter(range(frames)), segmenter.predict

    def until_interrupted(image_bgr: NDArray[np.uint8]) -> PredictedFrame:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return predict(image_bgr)

    monkeypatch.setattr(segmenter, "predict", until_interrupted)
    with pytest.raises(InterruptedRunError) as caught:
        run_segment(segmenter, request("media/b.mp4", quiet=True, **flags))
    assert str(caught.value) == line
    assert caught.value.exit_code == 130
    for kept in (caught.value.where or "").split(", "):
        assert Path(kept).exists()


def test_one_frame_is_told_of_as_one(segmenter: Segmenter, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_segment(segmenter, request("media/a.png"))
    assert capsys.readouterr().err.startswith("1 frame in ")


def test_losses_are_said_after_all_is_done(
    segmenter: Segmenter, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "media/a.png").write_bytes(b"no image")
    with pytest.raises(DegradedError, match="1 unreadable image;"):
        run_segment(segmenter, request("media"))
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_names_cannot_speak_to_the_terminal(
    segmenter: Segmenter, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "media/b.mp4").rename(place / "media/red\x1b[31m\nnext.mp4")
    run_segment(segmenter, request(*map(str, (place / "media").glob("red*"))))
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert len(err.splitlines()) == 1


def test_names_that_are_no_text(segmenter: Segmenter, place: Path) -> None:
    name = os.fsdecode(b"caf\xe9 %03d.png")
    (place / "media/a.png").rename(place / "media" / name)
    run_segment(segmenter, request(f"media/{name}", save=("video", "masks", "conf", "json")))
    folder = Path("runs") / Path(name).stem
    assert (folder / "masks" / name).is_file()
    assert json.loads((folder / "summary.json").read_text())["source"] == f"media/{name}"


@pytest.mark.parametrize("name", ["東" * 80 + ".mp4", "a" * 230 + ".mp4", "-x.mp4", "a b.mp4"])
def test_long_and_odd_names_of_videos(segmenter: Segmenter, place: Path, name: str) -> None:
    (place / "media/b.mp4").rename(place / "media" / name)
    wanted = request(f"media/{name}", save=("video", "masks", "json"), options=VideoOptions(max_frames=2), quiet=True)
    run_segment(segmenter, wanted)
    assert len(everything(place / "runs")) == 5
