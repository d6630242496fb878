"""Live sources from the command line and in an application: what lies in the folder, how a run ends, what is hidden."""

from __future__ import annotations

import inspect
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cdga_sdk.cli import run, segment
from cdga_sdk.errors import InputError, UsageError
from cdga_sdk.result import SegResult
from cdga_sdk.segment_run import Work, find_work
from cdga_sdk.segmenter import Segmenter
from cdga_sdk.video.live import RECONNECT_S, LiveSource
from cdga_sdk.video.pipeline import VideoOptions
from cdga_sdk.video.sink import probe
from cdga_sdk.video.source import VideoSource
from tests.live_server import HOLD, HTTP_STREAM, LiveServer, closed_port, paced, packets_of_ts, ts

Captured = pytest.CaptureFixture[str]
SECRETS = ("s3cr3t", "t0k3n")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every command runs in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CDGA_DEBUG", "")
    return tmp_path


@pytest.fixture
def words(tiny_bundle: Path) -> list[str]:
    """The tiny model on one thread."""
    return ["--model", str(tiny_bundle), "--backend", "onnxruntime", "--device", "cpu", "--threads", "1"]


@pytest.fixture
def cdga(words: list[str]) -> Callable[..., int]:
    """``cdga("tcp://...", ...)``: ``segment`` in this process."""
    return lambda *more: run(["segment", *map(str, more), *words])


def summary_of(folder: str | Path) -> dict[str, Any]:
    record = json.loads((Path(folder) / "summary.json").read_text())
    assert isinstance(record, dict)
    return record


def stats_of(folder: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(folder) / "stats.jsonl").read_text().splitlines()]


def names(folder: str | Path) -> list[str]:
    return sorted(p.name for p in Path(folder).iterdir())


def test_a_stream_that_is_lost_for_good_is_exit_code_4(cdga: Callable[..., int], capsys: Captured) -> None:
    with LiveServer([ts(10)], [ts(10, size_wh=(96, 48), first=10)]) as server:
        assert cdga(server.url, "--live", "every-frame", "--reconnect", "1", "-o", "out") == 4
    err = capsys.readouterr().err
    assert "20 frames, 1 reconnect in " in err
    assert f"error[E-DEGRADED]: {server.url}: finished, but 1 lost source; see summary.json" in err
    assert names("out") == ["overlay.mp4", "stats.jsonl", "summary.json"]
    summary = summary_of("out")
    assert (summary["status"], summary["frames"], summary["expected_frames"]) == ("degraded", 20, None)
    assert (summary["reconnects"], summary["dropped_frames"]) == (1, 0)
    assert summary["lost"] == {"corrupt_packets": 0, "corrupt_frames": 0, "lost_source": 1}
    assert summary["mended"] == {"repaired_pts": 0, "size_changes": 1, "resized_frames": 10}
    info = probe("out/overlay.mp4")
    assert (info.num_frames, info.size_wh) == (20, (64, 48))  # what comes in another size is scaled
    times = [line["time_s"] for line in stats_of("out")]
    assert times == sorted(set(times))
    with VideoSource("out/overlay.mp4") as frames:
        assert [f.time_s for f in frames] == pytest.approx(times, abs=1e-4)


def test_frames_that_came_meanwhile_are_dropped_and_counted(cdga: Callable[..., int], capsys: Captured) -> None:
    with LiveServer(paced(packets_of_ts(200, size_wh=(640, 480)), 0.002)) as server:
        assert cdga(server.url, "--reconnect", "0", "-o", "out", "--save", "json") == 4
    summary = summary_of("out")
    assert summary["dropped_frames"] > 0
    assert summary["frames"] + summary["dropped_frames"] == 200
    assert f", {summary['dropped_frames']} dropped in " in capsys.readouterr().err
    assert stats_of("out")[-1]["frame"] == 199
    assert all(0 < line["ms"]["decode"] < 60 for line in stats_of("out"))  # without the wait for the frame


def test_a_slow_run_is_at_the_freshest_frame(segmenter: Segmenter, place: Path) -> None:
    """No stage ahead of the network keeps old frames: what is segmented next has just come."""
    began_s = 0.0
    late_s: list[float] = []

    def on_frame(result: SegResult) -> None:
        nonlocal began_s
        assert result.time_s is not None
        began_s = began_s or time.monotonic()
        late_s.append(time.monotonic() - began_s - result.time_s)
        time.sleep(0.2)

    options = VideoOptions(max_frames=8)
    with LiveServer([*paced(packets_of_ts(60), 0.04), HOLD]) as server:
        summary = segmenter.process_video(server.url, place / "run", save=("json",), options=options, on_frame=on_frame)
    assert (summary.status, summary.frames) == ("done", 8)
    assert max(late_s) - min(late_s) < 0.3  # behind a queue of three it would be 0.6


def test_the_number_of_frames_ends_a_run_well(cdga: Callable[..., int]) -> None:
    with LiveServer([ts(60), HOLD]) as server:
        assert cdga(server.url, "--live", "every-frame", "--max-frames", "5", "--name", "mine", "--quiet") == 0
    assert (summary_of("runs/segment/mine")["status"], summary_of("runs/segment/mine")["frames"]) == ("done", 5)
    with LiveServer([ts(60), HOLD]) as server:
        assert cdga(server.url, "--live", "every-frame", "--end", "0.4", "-o", "out.mp4", "--quiet") == 0
    assert probe("out.mp4").num_frames == 10
    assert summary_of("out")["frames"] == 10


def test_nobody_there_leaves_nothing(cdga: Callable[..., int], capsys: Captured) -> None:
    with closed_port() as port:
        assert cdga(f"tcp://127.0.0.1:{port}") == 3
        assert cdga(f"tcp://127.0.0.1:{port}", "-o", "out.mp4") == 3
    assert cdga("camera:987") == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert "connection refused" in err
    assert "/dev/video987: no such file or directory" in err
    assert err.count("\n") == 3
    assert names(".") == []


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["tcp://127.0.0.1:9", "tcp://127.0.0.1:9"], "a live source goes alone, got 2 sources"),
        (["tcp://127.0.0.1:9", "--live", "sometimes"], "'sometimes' is not one of 'freshest', 'every-frame'"),
        (["tcp://127.0.0.1:9", "--reconnect", "-1"], "greater than or equal to 0"),
        (["tcp://127.0.0.1:9", "--reconnect", "nan"], "greater than or equal to 0"),
    ],
)
def test_wrong_words(cdga: Callable[..., int], capsys: Captured, more: list[str], reason: str) -> None:
    assert cdga(*more) == 2
    assert reason in capsys.readouterr().err
    assert names(".") == []


def test_the_command_line_waits_as_long_as_the_library() -> None:
    assert inspect.signature(segment).parameters["reconnect"].default == RECONNECT_S == VideoOptions().reconnect_s


def test_other_addresses_are_refused(cdga: Callable[..., int], capsys: Captured) -> None:
    assert cdga("ftp://user:s3cr3t@host/ride.mp4") == 3
    err = capsys.readouterr().err
    assert err.startswith("error[E-INPUT]: ftp://***@host/ride.mp4: addresses of this kind are not read; use rtsp, ")


def test_how_live_sources_are_sorted() -> None:
    streams = find_work(["rtsp://user:s3cr3t@cam/front?t0k3n", "/dev/video0"])
    assert [(w.name, w.video, w.images) for w in streams] == [("cam_front", None, ()), ("video0", None, ())]
    assert not any(secret in repr(streams) for secret in SECRETS)
    assert Work(name="a", video=Path("a.mp4")).live is None


def test_no_secret_is_shown_or_written(
    cdga: Callable[..., int], words: list[str], place: Path, capfd: Captured
) -> None:
    with LiveServer([HTTP_STREAM + ts(8)], is_http=True) as server:
        url = f"http://user:s3cr3t@127.0.0.1:{server.port}/live/cam?key=t0k3n"
        assert cdga(url, "--save", "video,masks,conf,json", "--reconnect", "0", "--json", "--live", "every-frame") == 4
        assert b"key=t0k3n" in server.requests[0]
    assert run(["--debug", "segment", url, "--model", "none.cdga"]) != 0
    for more in (["--debug"], []):  # by now nobody is there
        assert run([*more, "segment", url, *words]) == 3
    shown = f"http://***@127.0.0.1:{server.port}/live/cam?***"
    folder = place / f"runs/segment/127.0.0.1_{server.port}_live_cam"
    assert summary_of(folder)["source"] == shown
    assert {line["source"] for line in stats_of(folder)} == {shown}
    assert len(names(folder / "masks")) == 8
    assert names(folder / "masks")[0] == f"127.0.0.1_{server.port}_live_cam_000000.png"
    out, err = capfd.readouterr()
    assert json.loads(out)["source"] == shown
    assert shown in err
    written = [str(p.relative_to(place)).encode() + p.read_bytes() for p in place.rglob("*") if p.is_file()]
    assert len(written) >= 19
    for secret in SECRETS:
        assert not any(secret.encode() in data for data in written)
        assert secret not in out + err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_well(words: list[str], number: signal.Signals) -> None:
    """Also while nothing comes and the reader waits in FFmpeg."""
    with LiveServer([ts(60), *paced([ts(1)], HOLD)]) as server:
        stats = Path("out/stats.partial.jsonl")
        command = [sys.executable, "-m", "cdga_sdk", "segment", server.url, "-o", "out", "--live", "every-frame"]
        with subprocess.Popen([*command, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            try:
                deadline_s = time.monotonic() + 30
                while not (stats.exists() and stats.stat().st_size) and time.monotonic() < deadline_s:
                    assert process.poll() is None
                    time.sleep(0.02)
                time.sleep(0.5)
                process.send_signal(number)
                sent_s = time.monotonic()
                out, err = process.communicate(timeout=15)
            finally:
                process.kill()
    assert process.returncode == 0, err
    assert time.monotonic() - sent_s < 6
    assert (out, err.count("\n")) == ("", 1), err
    assert names("out") == ["overlay.mp4", "stats.jsonl", "summary.json"]
    summary = summary_of("out")
    assert (summary["status"], summary["lost"]["lost_source"]) == ("done", 0)
    assert 0 < summary["frames"] <= 61
    assert len(stats_of("out")) == summary["frames"]
    with VideoSource("out/overlay.mp4") as frames:
        assert sum(1 for _ in frames) == summary["frames"]


def test_a_signal_before_the_first_frame_is_an_interruption(words: list[str]) -> None:
    with LiveServer([HOLD]) as server:
        command = [sys.executable, "-m", "cdga_sdk", "segment", server.url, *words]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            try:
                deadline_s = time.monotonic() + 30
                while not server.connections and time.monotonic() < deadline_s:
                    assert process.poll() is None
                    time.sleep(0.02)
                process.send_signal(signal.SIGINT)
                _, err = process.communicate(timeout=10)
            finally:
                process.kill()
    assert process.returncode == 130
    assert err == "error[E-INTERRUPTED]: interrupted; what was finished is kept\n"
    assert names(".") == []


def test_in_an_application(segmenter: Segmenter, place: Path) -> None:
    with LiveServer([ts(8)]) as server:
        results = segmenter.stream(server.url, live="every-frame", reconnect_s=0)
        taken = [next(results) for _ in range(8)]
        assert [(r.source, r.frame) for r in taken] == [(server.url, i) for i in range(8)]
        with pytest.raises(InputError, match="lost and did not come back"):
            next(results)
    with LiveServer([ts(8), HOLD]) as server:
        assert len(list(segmenter.stream(server.url, live="every-frame", max_frames=3))) == 3
    with pytest.raises(UsageError, match="live is 'sometimes'"):
        next(segmenter.stream("tcp://127.0.0.1:9", live="sometimes"))  # type: ignore[arg-type]
    with closed_port() as port, pytest.raises(InputError, match="connection refused"):
        segmenter.process_video(f"tcp://127.0.0.1:{port}", place / "run")
    assert not (place / "run").exists()


def test_an_application_ends_its_own_source(segmenter: Segmenter, place: Path) -> None:
    with LiveServer([ts(40), HOLD]) as server, LiveSource(server.url, mode="every-frame") as source:

        def on_frame(result: SegResult) -> None:
            if result.frame == 4:
                source.stop()

        summary = segmenter.process_video(source, place / "run", on_frame=on_frame)
        assert source.is_stopped
    assert (summary.status, summary.frames, summary.source) == ("done", 5, server.url)
    assert names(place / "run") == ["overlay.mp4", "stats.jsonl", "summary.json"]
