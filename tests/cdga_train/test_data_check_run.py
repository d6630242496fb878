"""``cdga data check``: exit codes, the table, the JSON, and one line of error however much is wrong."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from cdga_sdk.cli import run
from cdga_sdk.image import write_png
from cdga_sdk.video.sink import VideoSink
from tests.published_layouts import make_camvid_segnet, make_cityscapes, make_gta5

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that folds no line, and errors without tracebacks."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("CDGA_DEBUG", "")


def test_a_clean_data_set(tmp_path: Path, capsys: Captured) -> None:
    make_cityscapes(tmp_path)
    assert run(["data", "check", f"cityscapes:{tmp_path}"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "3 of 3 frames checked" in err
    assert "image sizes: 96x48 (3)" in err
    assert "no image shared with split 'val'" in err
    assert "road" in err
    assert "error" not in err


def test_quiet_says_nothing_of_a_clean_data_set(tmp_path: Path, capsys: Captured) -> None:
    make_gta5(tmp_path)
    assert run(["data", "check", f"gta5:{tmp_path}", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_problems_are_listed_capped_and_counted_in_one_line(tmp_path: Path, capsys: Captured) -> None:
    for number in range(30):
        write_png(tmp_path / f"images/{number:02d}.png", np.full((2, 3, 3), number, np.uint8))
        write_png(tmp_path / f"labels/{number:02d}.png", np.full((2, 3), 99 if number >= 5 else 0, np.uint8))
    assert run(["data", "check", f"folder:{tmp_path}"]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert "unknown ids: 25" in lines
    assert sum("99 (6 pixels)" in line for line in lines) == 20
    assert "... and 5 more (all of them: --json)" in lines
    assert lines[-1] == (
        f"error[E-INPUT]: folder:{tmp_path}: 25 problems in split 'train': 25 unknown ids; "
        "mend the files, or name the good frames in a list (SPLIT.txt)"
    )


def test_json_holds_everything(tmp_path: Path, capsys: Captured) -> None:
    make_gta5(tmp_path, 2)
    (tmp_path / "labels/00002.png").unlink()
    assert run(["data", "check", f"gta5:{tmp_path}", "--json"]) == 3
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    record = json.loads(out)
    assert record["data"] == f"gta5:{tmp_path}"
    assert (record["split"], record["frames"], record["checked"], record["labelled"]) == ("train", 2, 2, True)
    assert record["image_sizes"] == {"96x48": 2}
    assert record["problem_counts"] == {"missing label": 1}
    assert record["problems"] == [{"kind": "missing label", "where": "labels/00002.png", "what": "no file"}]
    assert sum(i["pixels"] for i in record["ids"]) == 96 * 48
    assert (record["compared_with"], record["not_compared"]) == ([], {})


def test_leaks_from_other_splits_are_looked_for_unasked(tmp_path: Path, capsys: Captured) -> None:
    make_camvid_segnet(tmp_path)
    shutil.copyfile(tmp_path / "val/0001TP_000402.png", tmp_path / "train/0001TP_000400.png")
    for split in ("train", "val"):
        assert run(["data", "check", f"camvid:{tmp_path}", "--split", split, "--quiet"]) == 3
        assert "1 problem in split" in capsys.readouterr().err
    (tmp_path / "val.txt").write_text("\n")  # a broken list of another split is not this one's fault
    shutil.rmtree(tmp_path / "test")
    assert run(["data", "check", f"camvid:{tmp_path}", "--quiet"]) == 0


def test_leaks_from_another_data_set(tmp_path: Path, capsys: Captured) -> None:
    make_gta5(tmp_path / "a")
    make_gta5(tmp_path / "b", 4)
    words = ["data", "check", f"gta5:{tmp_path / 'a'}", "--against", f"gta5:{tmp_path / 'b'}"]
    assert run([*words, "--against-split", "train", "--json"]) == 3
    record = json.loads(capsys.readouterr().out)
    assert record["problem_counts"] == {"leaked image": 3}
    assert record["compared_with"] == [f"gta5:{tmp_path / 'b'} train"]
    assert run(words) == 3  # it has no split val, which was asked for
    assert "no split 'val'" in capsys.readouterr().err


def test_what_was_not_compared_is_told(tmp_path: Path, capsys: Captured) -> None:
    make_camvid_segnet(tmp_path)
    with (tmp_path / "val.txt").open("a") as stream:
        stream.write("gone.png\n")
    words = ["data", "check", f"camvid:{tmp_path}"]
    assert run(words) == 0
    lines = capsys.readouterr().err.splitlines()
    assert "no image shared with split 'test', split 'val'" in lines
    assert "1 image not compared with split 'val': missing, or cannot be read" in lines
    assert run([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["not_compared"] == {"split 'val'": 1}


def test_no_image_is_shared_is_said_of_all_frames_whatever_the_limit(tmp_path: Path, capsys: Captured) -> None:
    make_camvid_segnet(tmp_path, {"train": 3, "val": 1})
    words = ["data", "check", f"camvid:{tmp_path}", "--limit", "1"]
    assert run(words) == 0
    assert "no image shared with split 'val'" in capsys.readouterr().err
    shutil.copyfile(tmp_path / "val/0001TP_000403.png", tmp_path / "train/0001TP_000402.png")  # the last, not opened
    assert run(words) == 3
    err = capsys.readouterr().err
    assert "1 of 3 frames checked" in err
    assert "no image shared" not in err
    assert "train/0001TP_000402.png: same bytes as val/0001TP_000403.png of split 'val'" in err


def test_limit(tmp_path: Path, capsys: Captured) -> None:
    make_gta5(tmp_path)
    assert run(["data", "check", f"gta5:{tmp_path}", "--limit", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["checked"] == 2


def test_a_video_is_decoded_to_its_end(tmp_path: Path, capsys: Captured) -> None:
    rate, ride = Fraction(25), tmp_path / "ride.mp4"
    with VideoSink(ride, size_wh=(96, 48), rate=rate, time_base=1 / rate) as sink:
        for index in range(26):
            sink.write(np.full((48, 96, 3), 9 * index, np.uint8), index)
    assert run(["data", "check", f"video:{ride}"]) == 0
    assert capsys.readouterr().err.splitlines() == [
        f"video:{ride}: 26 frames, 1.0 s",
        "image sizes: 96x48 (26)",
        "no labels: a target, not a source",
    ]
    assert run(["data", "check", f"video:{ride}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "data": f"video:{ride}", "labelled": False, "frames": 26, "damaged_frames": 0, "lost_packets": 0,
        "seconds": 1.0, "image_sizes": {"96x48": 26},
    }  # fmt: skip


def test_a_damaged_video_is_told(tmp_path: Path, capsys: Captured) -> None:
    rate, ride, rng = Fraction(25), tmp_path / "ride.mp4", np.random.default_rng(0)
    with VideoSink(ride, size_wh=(96, 48), rate=rate, time_base=1 / rate) as sink:
        for index in range(12):
            sink.write(rng.integers(0, 256, (48, 96, 3), np.uint8), index)
    data = bytearray(ride.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4000] = bytes(4000)
    ride.write_bytes(data)
    assert run(["data", "check", f"video:{ride}", "--quiet"]) == 3
    assert " frames damaged, " in capsys.readouterr().err


def test_names_cannot_forge_lines(tmp_path: Path, capsys: Captured) -> None:
    write_png(tmp_path / "images/a\nerror[E-BUG]: [red]x.png", np.zeros((2, 3, 3), np.uint8))
    write_png(tmp_path / "labels/b.png", np.zeros((2, 3), np.uint8))
    assert run(["data", "check", f"folder:{tmp_path}"]) == 3
    err = capsys.readouterr().err
    assert "labels/a error[E-BUG]: [red]x.png: no file" in err
    assert sum(line.startswith("error[") for line in err.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["streets:day"], 2, "not made of image files"),
        (["video:absent.mp4"], 3, "absent.mp4"),
        (["video:absent.mp4", "--limit", "3"], 2, "--against and --limit are for data sets of image files"),
        (["streets"], 2, "write one of streets:day, "),
        (["gta5"], 2, "unknown data 'gta5'"),
        (["gta5:absent"], 3, "no such folder"),
        (["gta5:" + "A" * 300], 3, "File name too long"),
        (["A" * 300], 2, "unknown data"),
        (["gta5:absent", "--limit", "0"], 2, "--limit"),
        ([], 2, "Missing argument"),
    ],
)
def test_wrong_words(words: list[str], code: int, message: str, capsys: Captured) -> None:
    assert run(["data", "check", *words]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
