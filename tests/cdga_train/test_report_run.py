"""Reports of real runs, read back and held against the runs' own files."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cdga_sdk.cli import run
from cdga_sdk.image import write_png
from cdga_sdk.labels import CITYSCAPES_NAMES
from cdga_train.checkpoint import load_checkpoint
from cdga_train.config import ScoreConfig, TrainConfig, load_config
from cdga_train.curves import read_metrics
from cdga_train.data.street_frames import StreetsDataset
from cdga_train.manifest import read_run, write_manifest
from cdga_train.panels import GroupedNetwork, group_palette_rgb, group_shares
from cdga_train.presets import PRESETS
from cdga_train.reproduce import reproduce_command
from cdga_train.rounds import train_run
from tests.html_page import ParsedPage, decoded


def street_folder(root: Path, world: str) -> Path:
    data = StreetsDataset(world, "train", (64, 128))
    for i in range(3):
        sample = data[i]
        assert sample.label is not None
        write_png(root / "images" / f"{world}{i}.png", sample.image_bgr)
        write_png(root / "labels" / f"{world}{i}.png", sample.label)
    return root


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """day/ and dusk/, three labelled frames each."""
    root = tmp_path_factory.mktemp("streets")
    for world in ("day", "dusk"):
        street_folder(root / world, world)
    return root


def trained(folder: Path, streets: Path, *words: str) -> Path:
    overrides = [
        f"source=folder:{streets / 'day'}",
        f"target=folder:{streets / 'dusk'}",
        f"score.data=folder:{streets / 'dusk'}",
        "imgsz=64,128",
        "align_resolution=input",
        "num_groups=3",
        "batch=1",
        "iters=4",
        "log_every=1",
        "save_every=2",
        "candidates=2",
        *words,
    ]
    config = load_config(PRESETS["streets_cdga"](), None, overrides)
    write_manifest(folder, config)
    train_run(config, folder)
    return folder


@pytest.fixture(scope="module")
def two_rounds(streets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("two_rounds"), streets, "rounds=2")


@pytest.fixture
def tiny(tiny_run: Path, streets: Path, tmp_path: Path) -> Path:
    """A copy of `tiny_run` that may be damaged, scored on few frames."""
    folder = tmp_path / "tiny"
    shutil.copytree(tiny_run, folder)
    change(folder, score=ScoreConfig(data=f"folder:{streets / 'dusk'}", classes="common11"))
    return folder


def change(folder: Path, **values: object) -> TrainConfig:
    config = replace(read_run(folder), **values)  # type: ignore[arg-type]  # whatever the fields are
    write_manifest(folder, config)
    return config


def report(folder: Path, *flags: str) -> ParsedPage:
    assert run(["report", str(folder), "--frames", "2", "--device", "cpu", *flags]) == 0
    return ParsedPage((folder / "report.html").read_text(encoding="utf-8"))


def test_every_number_of_two_rounds_is_the_runs_own(
    two_rounds: Path, streets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parsed = report(two_rounds, "--oracle")
    assert capsys.readouterr().err.splitlines() == [f"report of {two_rounds} · {two_rounds / 'report.html'}"]
    facts = parsed.tables[0].by_first()
    assert facts["arm"] == ["cdga, 3 groups, aligned at input"]
    assert facts["iterations logged"] == ["4 of 4 and 4 of 4"]
    assert f"torch {torch.__version__.partition('+')[0]}" in facts["versions"][0]
    assert reproduce_command(read_run(two_rounds)) in parsed.text
    for key, shown in (("seg", (0, 1)), ("ssl", (1,)), ("orth", (0, 1)), ("group_entropy", (0, 1)), ("d", (0, 1))):
        logs = [read_metrics(two_rounds / name / "metrics.jsonl") for name in ("round1", "round2")]
        last = " and ".join(f"{logs[i].series(key)[-1][1]:.4g}" for i in shown)
        (caption,) = [c for c in parsed.captions if f"({key})" in c]
        assert f"last {last}" in caption
    for name in ("round1", "round2"):
        record = json.loads((two_rounds / name / "selection.json").read_text())
        table = parsed.table(f"round {name[-1]}: rule label_free")
        assert table.column("iteration") == [str(c["iteration"]) for c in record["candidates"]] == ["2", "4"]
        for column, key in (("infomax", "infomax"), ("SND", "snd"), ("mirror agreement", "mirror_agreement")):
            assert table.column(column) == [f"{c[key]:.4f}" for c in record["candidates"]]
        assert table.column("chosen") == [
            "chosen" * (c["iteration"] == record["iteration"]) for c in record["candidates"]
        ]
    labels = json.loads((two_rounds / "pseudo_labels/pseudo_labels.json").read_text())
    rows = parsed.table("Pseudo-labels by class").by_first()
    for name in CITYSCAPES_NAMES:
        assert rows[name][0] == f"{labels['classes'][name]['threshold']:.3f}"


def test_scores_are_those_of_evaluate(two_rounds: Path, streets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parsed = report(two_rounds, "--oracle")
    capsys.readouterr()
    column = parsed.table("IoU, percent").by_first()
    for number, classes in enumerate(("19", "16", "13")):
        command = ["evaluate", str(two_rounds), "--data", f"folder:{streets / 'dusk'}", "--json"]
        assert run([*command, "--device", "cpu", "--classes", classes]) == 0
        record = json.loads(capsys.readouterr().out)
        assert column["mIoU"][number] == f"{record['miou']:.2f}"
        assert column["road"][number] == ("-" if record["iou"]["road"] is None else f"{record['iou']['road']:.1f}")
    chosen = parsed.table("round 2")
    oracle = dict(zip(chosen.column("chosen"), chosen.column("oracle mIoU, 19 classes"), strict=True))
    assert oracle["chosen"] == column["mIoU"][0]  # the checkpoint that is shown is the one that was chosen


def test_groups_are_those_of_the_last_state_of_the_round(two_rounds: Path, streets: Path) -> None:
    parsed = report(two_rounds)
    checkpoint = load_checkpoint(two_rounds / "round2/last.safetensors")
    network = GroupedNetwork(checkpoint)
    data = StreetsDataset("dusk", "train", (64, 128))
    shares = group_shares([network.groups(data[i].image_bgr) for i in (0, 2)], checkpoint.names)
    table = parsed.table("Groups")
    assert table.column("target images: pixels") == [f"{100 * s.share:.1f} %" for s in shares]
    assert table.column("target images: classes by Q") == [
        ", ".join(f"{name} {100 * part:.0f} %" for name, part in s.top) for s in shares
    ]
    (first, *_) = [image for image in parsed.images if image["alt"] == "dusk0, groups"]
    palette = np.array(group_palette_rgb(3))[:, ::-1]
    np.testing.assert_array_equal(decoded(first), palette[network.groups(data[0].image_bgr).map_hw])
    truth = [image["alt"] for image in parsed.images if "scoring only" in image["alt"]]
    assert truth == ["dusk0, ground truth (scoring only)", "dusk2, ground truth (scoring only)"]
    assert [image["alt"] for image in parsed.images if "day" in image["alt"] and "image" in image["alt"]] == [
        "day0, image",
        "day2, image",
    ]


def test_the_oracle_is_only_counted_when_asked_for(two_rounds: Path) -> None:
    parsed = report(two_rounds)
    assert "oracle mIoU, 19 classes" not in parsed.table("round 1").rows[0]
    assert f"cdga report {two_rounds} --oracle" in parsed.text


def test_nothing_on_the_page_is_fetched(two_rounds: Path) -> None:
    parsed = report(two_rounds)
    fetched = [
        v for _, name, v in parsed.attributes if name in {"src", "href", "srcset", "data", "action", "xlink:href"}
    ]
    assert fetched
    assert all(value.startswith(("data:image/", "#")) for value in fetched)
    assert not parsed.tags & {"script", "link", "iframe", "object", "base", "form"}
    assert "url(" not in (two_rounds / "report.html").read_text()


def test_a_run_without_a_choice_shows_its_last(tiny: Path) -> None:
    parsed = report(tiny, "--oracle")
    facts = parsed.tables[0].by_first()
    assert facts["shown"] == [
        "last.safetensors of the run, iteration 12: the last; candidates=1 keeps nothing to choose from"
    ]
    assert "vehicle" in parsed.table("IoU over the common 11").by_first()
    assert len(parsed.table("Confusion").rows) == 12
    assert parsed.table("the run: candidates").rows[0] == ["iteration", "oracle mIoU, common11 classes"]
    assert parsed.table("the run: candidates").column("iteration") == ["12"]


def test_any_image_and_any_name(tiny: Path, streets: Path, tmp_path: Path) -> None:
    image = (streets / "day/images/day1.png").read_bytes()
    names = [b"<img src=x onerror=alert(1)>.png", b"\"'&amp;.png", b"ride\xff\n.png", "\u202egnp.\u00e9.png".encode()]
    flags = []
    for name in names:
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
        path.write_bytes(image)
        flags += ["--image", str(path)]
    parsed = report(tiny, *flags)
    assert parsed.captions[parsed.captions.index("<img src=x onerror=alert(1)>.png") + 1] == "prediction"
    assert {"\"'&amp;.png", "ride .png", "gnp.\u00e9.png"} <= set(parsed.captions)
    assert not [name for _, name, _ in parsed.attributes if name.startswith("on")]
    assert "images given: pixels" in parsed.table("Groups").rows[0]


def test_hostile_words_in_the_runs_own_files_stay_text(tiny: Path) -> None:
    record = json.loads((tiny / "run.json").read_text())
    record["machine"] = record["python"] = "</td><script>alert(1)</script>"
    record["packages"] = {"<b>": "<i>"}
    record["config"]["weights"] = "</title><script>"
    (tiny / "run.json").write_text(json.dumps(record))
    with (tiny / "metrics.jsonl").open("a") as log:
        log.write('{"iteration": 13, "<script>": 1.0, "seg": 1.0}\n')
    parsed = report(tiny)
    assert not parsed.tags & {"script", "b", "i"}
    assert parsed.tables[0].by_first()["machine"] == ["</td><script>alert(1)</script>"]


def test_a_run_without_any_checkpoint_yet(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in tiny.rglob("*.safetensors"):
        file.unlink()
    with (tiny / "metrics.jsonl").open("a") as log:
        log.write('{"iteration": 16, "se\n{"iteration": 17')
    parsed = report(tiny)
    why = "no checkpoint yet (no last.safetensors in this folder)"
    assert parsed.tables[0].by_first()["shown"] == [why]
    assert f"Pictures and scores missing: {why}" in parsed.text
    assert "Damaged lines in the log of the run, left out (1): 4" in parsed.text
    assert not parsed.images
    first, last = capsys.readouterr().err.splitlines()
    assert first == f"pictures and scores missing: {why}"
    assert last == f"report of {tiny} · {tiny / 'report.html'}"


def test_a_run_of_two_rounds_that_is_in_its_first(two_rounds: Path, tmp_path: Path) -> None:
    folder = tmp_path / "growing"
    shutil.copytree(two_rounds, folder)
    for place in ("round2", "pseudo_labels"):
        shutil.rmtree(folder / place)
    (folder / "round1/selection.json").unlink()
    parsed = report(folder)
    facts = parsed.tables[0].by_first()
    assert facts["iterations logged"] == ["4 of 4 and 0 of 4"]
    assert facts["shown"] == [
        "last.safetensors of round 1, iteration 4: the last; nothing is chosen before the round is finished"
    ]
    assert "The log of round 2 holds nothing yet." in parsed.text
    assert "None yet: they are made when round 1 is finished." in parsed.text


def test_missing_data_leave_the_rest(tiny: Path, streets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(tiny, score=ScoreConfig(data="folder:gone"), source=f"folder:{streets / 'absent'}")
    parsed = report(tiny, "--image", str(streets / "day/images/day1.png"))
    assert "day1.png" in parsed.captions
    assert "target images missing: gone" in parsed.text
    assert "source images missing:" in parsed.text
    assert "scores missing: gone" in parsed.text
    err = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in err[:-1]] == [
        "target images missing",
        "source images missing",
        "scores missing",
    ]
    assert "Oracle mIoU of the run missing: gone" in report(tiny, "--oracle").text


def test_a_run_without_score_data_shows_its_unlabelled_target(tiny: Path, streets: Path) -> None:
    change(tiny, score=ScoreConfig(), target=f"folder:{streets / 'dusk'}")
    parsed = report(tiny, "--oracle")
    assert "nothing is scored" in parsed.text
    assert "dusk0" in parsed.captions
    assert "ground truth (scoring only)" not in parsed.captions


def test_damaged_files_are_told_of(two_rounds: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(two_rounds, folder)
    (folder / "round2/selection.json").write_text('{"rule": "label_free", "iteration": 4}')
    (folder / "pseudo_labels/pseudo_labels.json").write_text('{"kept": "much"}')
    (folder / "round2/last.safetensors").write_bytes(b"cut")
    parsed = report(folder)
    assert "choice of round 2 missing" in parsed.text
    assert "pseudo-label statistics missing" in parsed.text
    assert "round 1: rule label_free" in [table.caption for table in parsed.tables]
    assert (
        "Groups: each pixel's most probable one, by G and C at iteration 2" in parsed.text
    )  # previous.safetensors, of the second save but last
    (folder / "round2/previous.safetensors").unlink()
    parsed = report(folder)
    assert "Group maps missing" in parsed.text
    assert "prediction" in parsed.captions
    assert "groups" not in parsed.captions


def test_a_damaged_choice_falls_back_to_the_newest_state(two_rounds: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(two_rounds, folder)
    for file in (folder / "round2/checkpoints").iterdir():
        file.write_bytes(b"x" * 100)
    shown = report(folder).tables[0].by_first()["shown"][0]
    assert shown.startswith("the newest training state of round 2, iteration 4: ")
    (folder / "round2/last.safetensors").write_bytes(b"x")
    (folder / "round2/previous.safetensors").write_bytes(b"x")
    parsed = report(folder)
    assert "Pictures and scores missing" in parsed.text


def test_other_arms_have_no_groups(streets: Path, tmp_path: Path) -> None:
    folder = tmp_path / "alone"
    folder.mkdir()
    trained(folder, streets, "arm=source_only", "iters=2")
    parsed = report(folder, "--oracle")
    assert "groups" not in parsed.captions
    assert not [c for c in parsed.captions if "(orth)" in c]
    assert "nothing chosen; this arm looks at no target image" in parsed.text
    facts = parsed.tables[0].by_first()
    assert (facts["arm"], facts["images a step"]) == (["source_only"], ["1 of the source in each process"])
    assert parsed.table("the run: candidates").column("iteration") == ["1", "2"]


def test_output_goes_where_it_is_asked_for(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "my page.HTM"
    assert run(["report", str(tiny), "-o", str(output), "--frames", "1", "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    ParsedPage(output.read_text())
    assert not (tiny / "report.html").exists()
    assert [path.name for path in output.parent.iterdir()] == ["my page.HTM"]


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["-o", "run.json"], 2, "the report is a page of HTML; name it NAME.html"),
        (["-o", "report"], 2, "name it NAME.html"),
        (["--image", "absent.png"], 3, "absent.png: no such file"),
        (["--image", "."], 3, "not a regular file"),
        (["--frames", "0"], 2, "frames"),
        (["--frames", "1000000"], 2, "frames"),
        (["--device", "gpu"], 2, "unknown device 'gpu'"),
    ],
)
def test_command_lines_that_are_refused(
    tiny: Path, flags: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["report", str(tiny), *flags]) == code
    assert message in capsys.readouterr().err
    assert not (tiny / "report.html").exists()


def test_what_is_not_a_run(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", tmp_path / "absent", tiny / "run.json"):
        assert run(["report", str(place)]) == 3
        assert "no run.json in this folder" in capsys.readouterr().err
    (tiny / "run.json").write_text("{}")
    assert run(["report", str(tiny)]) == 5
    assert "the run's description is damaged" in capsys.readouterr().err


def test_an_older_page_is_kept_when_the_new_one_cannot_be_made(tiny: Path) -> None:
    report(tiny)
    before = (tiny / "report.html").read_bytes()
    assert run(["report", str(tiny), "--image", "absent.png"]) == 3
    assert (tiny / "report.html").read_bytes() == before
