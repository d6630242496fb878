"""The command line: exit codes, one line per error, and what signals and closed pipes do."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cdga_sdk import __version__
from cdga_sdk.cli import run
from cdga_sdk.image import read_label, write_png
from cdga_sdk.video.sink import probe
from cdga_sdk.video.source import VideoSource

Picture = Callable[..., NDArray[np.uint8]]
Captured = pytest.CaptureFixture[str]
COMMAND = (sys.executable, "-m", "cdga_sdk")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every command runs in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CDGA_DEBUG", "")
    return tmp_path


@pytest.fixture
def cdga(tiny_bundle: Path) -> Callable[..., int]:
    """``cdga("ride.mp4", ...)``: ``segment`` with the tiny model on one thread."""
    fixed = ["--model", str(tiny_bundle), "--backend", "onnxruntime", "--device", "cpu", "--threads", "1"]
    return lambda *words: run(["segment", *map(str, words), *fixed])


def refused(code: int, words: list[str], capsys: Captured) -> str:
    """Run a command that must fail: the code, nothing on stdout, one line on stderr, no run folder."""
    assert run(words) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error["), err
    assert err.count("\n") == 1, err
    assert err.endswith("\n")
    assert not Path("runs").exists()
    return err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--frobnicate"], "No such option: --frobnicate"),
        (["segmnt"], "segmnt"),
        (["segment"], "Missing argument"),
        (["segment", "a.mp4", "--modle", "x"], "--model"),
        (["segment", "a.mp4", "--model", "x", "--alpha", "much"], "--alpha"),
        (["segment", "a.mp4", "--model", "x", "--alpha", "2"], "alpha is 2.0, wanted 0 to 1"),
        (["segment", "a.mp4", "--model", "x", "--vid-stride", "0"], "--vid-stride"),
        (["segment", "a.mp4", "--model", "x", "--threads", "0"], "--threads"),
        (["segment", "a.mp4", "--model", "x", "--threads", "100000"], "--threads"),
        (["segment", "a.mp4", "--model", "x", "--save", "video,mask"], "cannot save 'mask'"),
        (["segment", "a.mp4", "--model", "x", "--save", ","], "nothing to save"),
        (["segment", "a.mp4", "--model", "x", "--classes", ""], "--classes: no class to keep"),
        (["segment", "a.mp4", "--model", "x", "--start", "5", "--end", "3"], "it must be later than start_s"),
        (["segment", "a.mp4", "--model", "x", "--end", "inf"], "end_s is inf"),
        (["segment", ""], "a source is an empty text"),
        (["segment", "a.mp4", "-o", ""], "is an empty text"),
        (["segment", "a.mp4", "--vid-stride", "99999999999999999999999"], "it must be 1 to 1000000"),
        (["evaluate", "x.cdga"], "--data"),
        (["evaluate", "x.cdga", "--data", "camvid:x", "--classes", "12"], "unknown class set '12'"),
        (["info"], "Missing argument"),
    ],
)
def test_wrong_words(words: list[str], reason: str, capsys: Captured) -> None:
    err = refused(2, words, capsys)
    assert err.startswith("error[E-USAGE]: ")
    assert reason in err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--classes", "roads"], "did you mean 'road'"),
        (["--classes", "99"], "unknown class '99'"),
        (["--backend", "tf"], "unknown backend 'tf'"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--conf", "7"], "conf is 7.0, wanted 0 to 1"),
        (["-o", "out", "b.mp4"], "--output names one place"),
        (["--name", "a/b"], "not a plain folder name"),
        (["--name", ""], "'' is not a plain folder name"),
    ],
)
def test_wrong_values(words: list[str], reason: str, tiny_bundle: Path, ride: Path, capsys: Captured) -> None:
    shutil.copy(ride, "b.mp4")
    assert reason in refused(2, ["segment", str(ride), "--model", str(tiny_bundle), *words], capsys)


@pytest.mark.parametrize(("words", "named"), [([], "segment"), (["--debug"], "segment"), (["data"], "check")])
def test_no_words_show_help(words: list[str], named: str, capsys: Captured) -> None:
    assert run(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Usage: ")
    assert any(line.split()[:1] == [named] for line in err.splitlines())


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_names_every_command(flag: str, capsys: Captured) -> None:
    assert run([flag]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert all(word in out for word in ("train", "export", "segment", "evaluate", "info", "doctor"))
    assert "Exit codes: 0 done; 2" in out
    assert "cdga --debug COMMAND" in out
    for command in (["segment"], ["data", "check"]):
        assert run([*command, flag]) == 0
        assert " ".join(command) in capsys.readouterr().out


def test_version(capsys: Captured) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr() == (f"cdga-sdk {__version__}\n", "")


def test_bad_inputs(tiny_bundle: Path, capsys: Captured) -> None:
    Path("empty.mp4").touch()
    Path("text.mp4").write_text("no video")
    Path("folder").mkdir()
    Path("folder/notes.txt").write_text("notes")
    os.mkfifo("fifo.mp4")
    reasons = {
        "none.mp4": "no such file",
        "empty.mp4": "the file is empty",
        "text.mp4": "found text, not a video",
        "folder": "no images and no videos in this folder",
        "*.webm": "nothing matches",
        "fifo.mp4": "FIFO",
    }
    for source, reason in reasons.items():
        err = refused(3, ["segment", source, "--model", str(tiny_bundle)], capsys)
        assert reason in err
        assert source in err


LONG = 300 * "x"  # longer than any file system takes


@pytest.mark.parametrize(
    "words",
    [
        ["segment", f"{LONG}.mp4"],
        ["segment", f"{LONG}.png"],
        ["info", LONG],
        ["info", f"{LONG}/x.cdga"],
        ["verify", f"{LONG}.cdga"],
        ["bench", f"{LONG}.cdga"],
    ],
)
def test_names_that_no_file_system_takes(words: list[str], capsys: Captured) -> None:
    assert LONG in refused(3, words, capsys)


def test_model_that_is_missing_or_damaged(own_bundle: Path, ride: Path, capsys: Captured) -> None:
    assert "no such model" in refused(3, ["segment", str(ride), "--model", "none.cdga"], capsys)
    with (own_bundle / "model.onnx").open("r+b") as graph:
        graph.seek(1000)
        graph.write(b"\xff\x00\xff\x00")
    for words in (["segment", str(ride), "--model", str(own_bundle)], ["info", str(own_bundle)]):
        err = refused(5, words, capsys)
        assert err.startswith("error[E-INTEGRITY]")
        assert "model.onnx" in err


def test_video(cdga: Callable[..., int], ride: Path, capsys: Captured) -> None:
    assert cdga(ride) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("12 frames in ")
    assert err.endswith("runs/segment/ride\n")
    info = probe("runs/segment/ride/overlay.mp4")
    assert (info.num_frames, info.average_rate) == (12, Fraction(25))
    assert cdga(ride, "--quiet") == 0
    assert capsys.readouterr() == ("", "")
    assert Path("runs/segment/ride2").is_dir()


def test_save_masks_and_confidence(cdga: Callable[..., int], ride: Path) -> None:
    words = ("--save", "masks,conf", "--classes", "road, 13", "--project", "p", "--name", "n", "--vid-stride", "4")
    assert cdga(ride, *words) == 0
    assert sorted(p.name for p in Path("p/n").iterdir()) == ["conf", "masks"]
    masks = sorted(Path("p/n/masks").iterdir())
    assert [m.name for m in masks] == ["ride_000000.png", "ride_000004.png", "ride_000008.png"]
    assert all(set(np.unique(read_label(m))) <= {0, 13, 255} for m in masks)


def test_range_in_seconds(cdga: Callable[..., int], ride: Path) -> None:
    assert cdga(ride, "--start", "0.2", "--max-frames", "3", "-o", "out") == 0
    lines = [json.loads(line) for line in Path("out/stats.jsonl").read_text().splitlines()]
    assert [line["time_s"] for line in lines] == pytest.approx([0.2, 0.24, 0.28])


def test_output_file(cdga: Callable[..., int], ride: Path, capsys: Captured) -> None:
    assert cdga(ride, "-o", "out.mp4", "--alpha", "0") == 0
    assert probe("out.mp4").num_frames == 12
    before = Path("out.mp4").read_bytes()
    capsys.readouterr()
    assert cdga(ride, "-o", "out.mp4") == 2
    assert "already exists" in capsys.readouterr().err
    assert Path("out.mp4").read_bytes() == before
    assert cdga(ride, "-o", "out.mp4", "--exist-ok", "--alpha", "1") == 0
    assert Path("out.mp4").read_bytes() != before


@pytest.mark.parametrize("words", [("--live", "freshest"), ("--reconnect", "60"), ("--alpha=0.5", "--save=masks")])
def test_a_default_that_is_given_is_refused_too(
    cdga: Callable[..., int], ride: Path, capsys: Captured, words: tuple[str, ...]
) -> None:
    assert cdga(ride, *words) == 2
    assert words[0].partition("=")[0] + " is of " in capsys.readouterr().err


def test_input_is_never_written_over(cdga: Callable[..., int], ride: Path, capsys: Captured) -> None:
    shutil.copy(ride, "own.mp4")
    assert cdga("own.mp4", "-o", "own.mp4", "--exist-ok") == 2
    assert "over its own input" in capsys.readouterr().err
    assert Path("own.mp4").read_bytes() == ride.read_bytes()


def test_json(cdga: Callable[..., int], ride: Path, picture: Picture, capsys: Captured) -> None:
    write_png(Path("a.png"), picture(0))
    assert cdga(ride, "a.png", "--json") == 0
    out, err = capsys.readouterr()
    assert err == ""
    video, image = (json.loads(line) for line in out.splitlines())
    assert (video["status"], video["frames"], image["frames"]) == ("done", 12, 1)


def test_folder_and_glob_of_images(cdga: Callable[..., int], picture: Picture) -> None:
    for index, name in enumerate("abc"):
        write_png(Path(f"in/{name}.png"), picture(index))
    assert cdga("in", "--save", "masks,json") == 0
    assert cdga("in/[ab].png", "--save", "masks") == 0
    assert sorted(p.name for p in Path("runs/segment/in/masks").iterdir()) == ["a.png", "b.png", "c.png"]
    assert sorted(p.name for p in Path("runs/segment/in2/masks").iterdir()) == ["a.png", "b.png"]


def test_lost_images_are_exit_code_4(cdga: Callable[..., int], picture: Picture, capfd: Captured) -> None:
    write_png(Path("in/a.png"), picture(0))
    Path("in/b.png").write_bytes(b"no image")
    assert cdga("in") == 4
    assert "error[E-DEGRADED]: in: finished, but 1 unreadable image;" in capfd.readouterr().err
    assert json.loads(Path("runs/segment/in/summary.json").read_text())["status"] == "degraded"
    assert cdga("in/b.png") == 3


def test_a_video_without_an_index_does_not_end_the_others(
    cdga: Callable[..., int], ride: Path, capsys: Captured
) -> None:
    for name in ("in/a.mp4", "in/b.mp4", "in/c.mp4"):
        Path(name).parent.mkdir(exist_ok=True)
        shutil.copy(ride, name)
    Path("in/b.mp4").write_bytes(ride.read_bytes()[:300])
    assert cdga("in", "--save", "json") == 4
    assert sorted(p.name for p in Path("runs/segment").iterdir()) == ["a", "c"]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" ")[0] for line in lines] == ["12", "skipped:", "12", "error[E-DEGRADED]:"]


def test_cut_video_is_exit_code_4(cdga: Callable[..., int], long_ride: Path, capsys: Captured) -> None:
    Path("cut.mp4").write_bytes(long_ride.read_bytes()[: long_ride.stat().st_size // 10])
    assert cdga("cut.mp4", "--save", "json") == 4
    assert "missing frames" in capsys.readouterr().err


def test_info(tiny_bundle: Path, tiny_run: Path, capsys: Captured) -> None:
    assert run(["info", str(tiny_bundle)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "64,128 (height,width)" in out
    assert run(["info", str(tiny_bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "bundle"
    assert run(["info", str(tiny_run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "checkpoint"
    assert run(["info", "none.cdga"]) == 3


def test_info_is_one_line_per_fact(own_bundle: Path, capsys: Captured) -> None:
    odd = own_bundle.rename(own_bundle.with_name("odd\n\x1b[31m.cdga"))
    assert run(["info", str(odd)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert all("  " in line for line in out.splitlines())


@pytest.fixture
def labelled(picture: Picture) -> str:
    """A labelled folder of two frames that are all road."""
    for index, name in enumerate("ab"):
        write_png(Path(f"data/images/{name}.png"), picture(index))
        write_png(Path(f"data/labels/{name}.png"), np.zeros((64, 128), np.uint8))
    return "folder:data"


def test_evaluate(own_bundle: Path, labelled: str, capsys: Captured) -> None:
    Path("x[").mkdir()
    own_bundle.rename("x[/b].cdga")
    words = ["evaluate", "x[/b].cdga", "--data", labelled, "--backend", "onnxruntime", "--classes", "common11"]
    assert run([*words, "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    record = json.loads(out)
    assert (record["frames"], record["classes"], record["backend"]) == (2, "common11", "onnxruntime cpu fp32")
    assert 0 <= record["accuracy"] <= 100
    assert set(record["iou"]) >= {"road", "two_wheeler"}
    assert run([*words, "--min-miou", "0"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "pixel accuracy" in err
    assert "x[/b].cdga on folder:data" in err
    assert run([*words, "--quiet", "--min-miou", "100"]) == 7
    assert capsys.readouterr().err.startswith("error[E-GATE]: mIoU ")
    for name in "ab":
        write_png(Path(f"data/labels/{name}.png"), np.full((64, 128), 255, np.uint8))
    assert run([*words, "--json"]) == 0
    record = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert (record["miou"], record["accuracy"], record["iou"]["road"]) == (None, None, None)


def test_train_and_export_reach_their_packages(tiny_run: Path, capsys: Captured) -> None:
    assert run(["train", "no_such_preset"]) in {2, 3}
    assert run(["export", str(tiny_run)]) in {0, 2}
    assert run(["export", "none", "-o", "out.cdga"]) == 3
    assert "Traceback" not in capsys.readouterr().err


def test_debug_shows_the_traceback(capsys: Captured) -> None:
    assert run(["--debug", "info", "none.cdga"]) == 3
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("error[E-INPUT]")


def test_our_own_bugs_are_one_line_too(tiny_bundle: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    # No known input makes a bug: a command that has one is put in.
    def broken(path: Path) -> dict[str, object]:
        raise failures.pop()

    monkeypatch.setattr("cdga_sdk.info.describe", broken)
    failures: list[Exception] = [MemoryError(), ZeroDivisionError("two\nlines")]
    assert "internal error (ZeroDivisionError: two lines)" in refused(1, ["info", "x.cdga"], capsys)
    assert "error[E-RESOURCE]: out of memory" in refused(6, ["info", "x.cdga"], capsys)


def start(*words: str, **options: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *words], stdout=options.get("stdout", subprocess.PIPE), stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)])
def test_signals_finalise_what_was_made(tiny_bundle: Path, long_ride: Path, number: signal.Signals, code: int) -> None:
    stats = Path("out/stats.partial.jsonl")
    words = ("--model", str(tiny_bundle), "--backend", "onnxruntime", "--threads", "1", "-o", "out")
    with start("segment", str(long_ride), *words) as process:
        deadline = time.monotonic() + 30
        while not (stats.exists() and stats.stat().st_size) and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        sent = time.monotonic()
        out, err = process.communicate(timeout=10)
        assert time.monotonic() - sent < 2
    assert process.returncode == code
    assert out == ""
    word = "interrupted" if number == signal.SIGINT else "terminated"
    assert err == f"error[E-INTERRUPTED]: out: {word}; what was finished is kept\n"
    assert sorted(p.name for p in Path("out").iterdir()) == [
        "overlay.partial.mp4",
        "stats.partial.jsonl",
        "summary.json",
    ]
    summary = json.loads(Path("out/summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert 0 < summary["frames"] < 3000
    with VideoSource("out/overlay.partial.mp4") as frames:
        # The few packets in hand when the signal arrives may be lost, or one frame not yet be counted.
        assert summary["frames"] - 5 <= sum(1 for _ in frames) <= summary["frames"] + 1


def test_hanging_up_is_ignored_under_nohup() -> None:
    code = (
        "import signal; from cdga_sdk import cli; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "try: cli.main()\n"
        "finally: print(*(signal.getsignal(n) == signal.SIG_IGN for n in (signal.SIGHUP, signal.SIGTERM)))"
    )
    done = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True, timeout=20)
    assert done.stdout.splitlines()[1:] == ["True False"], done.stderr


def test_ctrl_c_while_the_command_line_loads(tmp_path: Path) -> None:
    Path("typer.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT); raise ImportError('went on')")
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [*COMMAND, "--version"], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=20
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


DYING = """
import os, signal

class SessionOptions:
    pass

def get_available_providers():
    return ["CPUExecutionProvider"]

def InferenceSession(*words, **options):
    os.kill(os.getpid(), signal.SIGTERM)
    raise RuntimeError("not reached")
"""


@pytest.mark.parametrize(
    ("library", "code", "words"),
    [
        ("openvino", "import os, signal; os.kill(os.getpid(), signal.SIGTERM)", ["segment"]),
        ("onnxruntime", DYING, ["segment", "--backend", "onnxruntime"]),
        ("openvino", "import os, signal; os.kill(os.getpid(), signal.SIGTERM)", ["bench"]),
    ],
)
def test_a_signal_while_a_runtime_opens_is_no_failure_of_the_runtime(
    library: str, code: str, words: list[str], tiny_bundle: Path, picture: Picture
) -> None:
    write_png(Path("a.png"), picture(0))
    Path("planted", library).mkdir(parents=True)
    Path("planted", library, "__init__.py").write_text(code)
    path = os.pathsep.join(filter(None, (str(Path("planted").absolute()), os.environ.get("PYTHONPATH"))))
    given = ["a.png", "--model", str(tiny_bundle)] if words[0] == "segment" else [str(tiny_bundle), "--rounds", "5"]
    done = subprocess.run(
        [*COMMAND, *words, *given], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=60
    )
    told = "before anything was written" if words[0] == "segment" else "what was finished is kept"
    assert re.fullmatch(rf"error\[E-INTERRUPTED\]: terminated;? {told}\n", done.stderr)
    assert (done.returncode, done.stdout) == (143, "")
    assert not Path("runs").exists()


def test_bad_image_is_one_line(tiny_bundle: Path) -> None:
    Path("a.tiff").write_bytes(b"II*\x00\xff\xff\x00\x00" + bytes(50))  # OpenCV would say a line of its own
    with start("segment", "a.tiff", "--model", str(tiny_bundle), "--backend", "onnxruntime") as process:
        err = process.communicate(timeout=20)[1]
    wanted = "wanted a PNG, JPEG, WebP, BMP or TIFF; check the file, or remove it"
    assert err == f"error[E-INPUT]: a.tiff: not an image that can be decoded; {wanted}\n"
    assert process.returncode == 3


@pytest.mark.parametrize("words", [("info",), ("info", "--json"), ("--version",)])
def test_closed_stdout_is_quiet(tiny_bundle: Path, words: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    model = (str(tiny_bundle),) if words[0] == "info" else ()
    with start(*words, *model, stdout=writer) as process:
        os.close(writer)
        assert process.communicate(timeout=20)[1] == ""
    assert process.returncode == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a disk that is always full")
@pytest.mark.parametrize("words", [("info", "--json"), ("--help",)])
def test_a_full_disk_behind_stdout(tiny_bundle: Path, words: tuple[str, ...]) -> None:
    model = (str(tiny_bundle),) if words[0] == "info" else ()
    with Path("/dev/full").open("w") as full, start(*words, *model, stdout=full.fileno()) as process:
        err = process.communicate(timeout=20)[1]
    assert process.returncode == 6
    assert err.startswith("error[E-RESOURCE]: output: cannot write (No space left on device)")
    assert err.count("\n") == 1


@pytest.mark.parametrize(("words", "code"), [(("info", "none.cdga"), 3), (("segmnt",), 2)])
@pytest.mark.parametrize("debug", [(), ("--debug",)])
def test_nobody_reads_stderr(words: tuple[str, ...], code: int, debug: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*COMMAND, *debug, *words], stdout=subprocess.PIPE, stderr=writer, timeout=20)
    os.close(writer)
    assert (done.returncode, done.stdout) == (code, b"")


@pytest.mark.skipif(os.name != "posix", reason="a POSIX shell closes the streams")
@pytest.mark.parametrize(("words", "code"), [("--version", 0), ("info none.cdga", 3)])
@pytest.mark.parametrize("closed", ["1", "2"])
def test_started_without_a_stream(words: str, code: int, closed: str) -> None:
    command = f"{sys.executable} -m cdga_sdk {words} {closed}>&-"
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, timeout=20)
    assert done.returncode == code, done.stderr


@pytest.mark.parametrize(
    "words",
    [["train"], ["export", "run", "-o", "m.cdga"], ["info", "./run"], ["evaluate", "./run", "--data", "streets:day"]],
)
def test_without_torch_a_command_names_the_extra(words: list[str], tmp_path: Path) -> None:
    # As in a base install: an interpreter in which torch cannot be found.
    code = "import sys; sys.modules['torch'] = None; from cdga_sdk.cli import run; sys.exit(run(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "error[E-EXTRA]: 'torch' is needed here; pip install 'cdga-sdk[train]'\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "ends_by_itself"), [("live-source", False), ("somebody else's", True)])
def test_a_thread_left_in_native_code_cannot_crash_the_end(name: str, ends_by_itself: bool) -> None:
    code = (
        "import atexit, sys, threading, time; from cdga_sdk.cli import _leave;"
        "atexit.register(print, 'at exit'); print('told');"
        f"threading.Thread(target=time.sleep, args=(60,), name={name!r}, daemon=True).start(); _leave(3)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 3
    assert done.stdout.splitlines() == ["told", *["at exit"] * ends_by_itself]
