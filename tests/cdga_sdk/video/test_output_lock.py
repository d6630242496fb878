"""Two runs at one place: the second is refused, the first loses nothing, and no lock is left in the folder."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cdga_sdk.cli import run
from cdga_sdk.errors import UsageError
from cdga_sdk.image import write_png
from cdga_sdk.result import SegResult
from cdga_sdk.segmenter import Segmenter
from cdga_sdk.video import output_lock
from cdga_sdk.video.label_stream import read_labels
from cdga_sdk.video.output_lock import alone_at
from cdga_sdk.video.run_folder import SaveWhat
from cdga_sdk.video.sink import probe

BUSY = "another process writes here; wait for it, or choose another output"
SAVES: tuple[SaveWhat, ...] = ("video", "labels", "json")


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def in_mid_run(act: Callable[[], object]) -> Callable[[SegResult], None]:
    def on_frame(result: SegResult) -> None:
        if result.frame == 5:
            act()

    return on_frame


def refused(act: Callable[[], object]) -> Callable[[], None]:
    def attempt() -> None:
        with pytest.raises(UsageError, match=BUSY) as caught:
            act()
        assert caught.value.exit_code == 2

    return attempt


def test_a_second_run_into_a_folder_leaves_the_first_alone(segmenter: Segmenter, ride: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    @refused
    def second() -> None:
        segmenter.process_video(ride, out, save=SAVES, exist_ok=True)

    summary = segmenter.process_video(ride, out, save=SAVES, on_frame=in_mid_run(second))
    assert (summary.status, summary.frames) == ("done", 12)
    assert names(out) == ["labels.nut", "overlay.mp4", "stats.jsonl", "summary.json"]
    stats = [json.loads(line)["frame"] for line in (out / "stats.jsonl").read_text().splitlines()]
    assert stats == list(range(12))
    assert (len(list(read_labels(out / "labels.nut"))), probe(out / "overlay.mp4").num_frames) == (12, 12)


@pytest.mark.parametrize("other", ["own.mp4", "own.MP4"])
def test_so_it_is_with_an_overlay_of_its_own(segmenter: Segmenter, ride: Path, tmp_path: Path, other: str) -> None:
    """In a folder that others may use."""

    @refused
    def second() -> None:
        segmenter.process_video(ride, tmp_path / other, save=("video",), exist_ok=True)

    def others() -> None:
        second()
        segmenter.process_video(ride, tmp_path / "third.mp4", save=("video",))

    summary = segmenter.process_video(ride, tmp_path / "own.mp4", save=("video",), on_frame=in_mid_run(others))
    assert (summary.status, summary.frames) == ("done", 12)
    assert names(tmp_path) == ["own.mp4", "third.mp4"]


def test_an_overlay_inside_the_folder_of_another_run(segmenter: Segmenter, ride: Path, tmp_path: Path) -> None:
    @refused
    def second() -> None:
        segmenter.process_video(ride, tmp_path / "out/overlay.mp4", save=("video",), exist_ok=True)

    summary = segmenter.process_video(ride, tmp_path / "out", on_frame=in_mid_run(second))
    assert (summary.status, summary.frames) == ("done", 12)


def test_images_and_a_new_folder_that_is_not_needed(segmenter: Segmenter, ride: Path, tmp_path: Path) -> None:
    with alone_at(tmp_path / "own.mp4"):
        refused(lambda: segmenter.process_video(ride, tmp_path / "own.mp4"))()
        assert not (tmp_path / "own").exists()
    (tmp_path / "out").mkdir()
    write_png(tmp_path / "a.png", next(segmenter.stream(ride)).mask)
    with alone_at(tmp_path / "out"):
        assert run(["segment", str(tmp_path / "a.png"), "-o", str(tmp_path / "out"), "--exist-ok"]) == 2
        assert names(tmp_path / "out") == [".cdga.lock"]
    assert names(tmp_path) == ["a.png"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("mine")])
def test_a_run_that_ends_early_leaves_no_lock(
    segmenter: Segmenter, ride: Path, tmp_path: Path, error: BaseException
) -> None:
    def stop() -> None:
        raise error

    with pytest.raises(type(error)):
        segmenter.process_video(ride, tmp_path / "own.mp4", on_frame=in_mid_run(stop))
    assert names(tmp_path) == ["own.partial.mp4", "own/stats.partial.jsonl", "own/summary.json"]
    with alone_at(tmp_path / "own"), alone_at(tmp_path / "own.mp4"):
        pass


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    code = (
        "import os, signal; from pathlib import Path; from cdga_sdk.video.output_lock import alone_at\n"
        f"with alone_at(Path({str(tmp_path)!r})): print(flush=True); input(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        refused(lambda: alone_at(tmp_path).__enter__())()
        other.communicate("\n", timeout=60)
    assert names(tmp_path) == [".cdga.lock"]
    with alone_at(tmp_path):
        refused(lambda: alone_at(tmp_path).__enter__())()
    assert names(tmp_path) == []


def test_many_threads_are_alone_one_after_the_other(tmp_path: Path) -> None:
    inside, together, times = 0, 0, 0

    def work() -> None:
        nonlocal inside, together, times
        for _ in range(200):
            try:
                with alone_at(tmp_path):
                    inside += 1
                    together = max(together, inside)
                    times += 1
                    inside -= 1
            except UsageError:
                continue

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == 1
    assert times > 0
    assert names(tmp_path) == []


def test_where_there_are_no_locks_it_goes_on(
    segmenter: Segmenter, ride: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a/.cdga.lock").mkdir(parents=True)  # as little to be opened as in a folder that is not one's own
    assert segmenter.process_video(ride, tmp_path / "a", save=("json",)).status == "done"

    def unsupported(descriptor: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(output_lock, "_lock", unsupported)
    assert segmenter.process_video(ride, tmp_path / "b", save=("json",)).status == "done"
    assert names(tmp_path / "b") == ["stats.jsonl", "summary.json"]


def test_an_earlier_run_is_kept_unless_told(segmenter: Segmenter, ride: Path, tmp_path: Path) -> None:
    segmenter.process_video(ride, tmp_path / "out", save=("masks",))
    with pytest.raises(UsageError, match=r"holds an earlier run \(masks\); .* exist_ok=True"):
        segmenter.process_video(ride, tmp_path / "out", save=("masks", "json"))
    segmenter.process_video(ride, tmp_path / "out", save=("masks", "json"), exist_ok=True)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"masks", "stats.jsonl", "summary.json"}
    for name in ("own.mp4", "other.partial.mp4"):
        (tmp_path / name).touch()
        with pytest.raises(UsageError, match=f"{name}: already exists"):
            segmenter.process_video(ride, tmp_path / name.replace(".partial", ""))
    assert {p.name for p in tmp_path.iterdir()} == {"out", "own.mp4", "other.partial.mp4"}
    segmenter.process_video(ride, tmp_path / "own.mp4", save=("video",), exist_ok=True)
    assert probe(tmp_path / "own.mp4").num_frames == 12
