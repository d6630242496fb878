"""The default model: whatever bundle lies in the package, what is promised of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import cdga_sdk
from cdga_sdk import Segmenter
from cdga_sdk.bundle import Bundle
from cdga_sdk.cli import run
from cdga_sdk.models.catalogue import default_bundle

PACKAGE = Path(cdga_sdk.__file__).parent
MOST_BYTES = 8_000_000
ABSOLUTE = re.compile(r"[\s\"'`:=(](?:/[\w.-]+){2,}|\b[A-Z]:\\")  # somebody's folder: of no use, and nobody's business
# What an installation that was packed without its data would be.
BARE = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import cdga_sdk
assert cdga_sdk.__file__.startswith(sys.path[0]), cdga_sdk.__file__
from cdga_sdk.cli import run
sys.exit(run(sys.argv[1:]))
"""
# As in a base install on a machine without a network.
ALONE = """
import socket, sys

def refuse(*_, **__):
    raise AssertionError("the network was asked for")

sys.modules["torch"] = None
socket.getaddrinfo = socket.create_connection = refuse
from cdga_sdk.cli import run
sys.exit(run(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.open(default_bundle())


def test_it_says_what_it_is(bundle: Bundle) -> None:
    about = bundle.manifest.about
    assert about is not None
    card = (bundle.path / "CARD.md").read_text(encoding="utf-8")
    assert f"Trained on: {about.trained_on}" in card
    assert f"Licence: {about.licence}" in card


def test_it_tells_its_score(bundle: Bundle) -> None:
    parity = bundle.parity["fp32"]
    assert isinstance(parity, dict)
    labels = parity["labels"]
    assert labels["data"].startswith("camvid:")
    assert labels["data"].endswith(" val, common11 classes")
    card = (bundle.path / "CARD.md").read_text(encoding="utf-8")
    assert f"fp32: mIoU {labels['miou']:.2f} on {labels['frames']} frames of {labels['data']}" in card


def test_the_score_is_true(bundle: Bundle, camvid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parity = bundle.parity["fp32"]
    assert isinstance(parity, dict)
    words = ["--data", f"camvid:{camvid}", "--classes", "common11", "--backend", "onnxruntime", "--json"]
    assert run(["evaluate", "default", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["frames"] == parity["labels"]["frames"]
    assert found["miou"] == pytest.approx(parity["labels"]["miou"], abs=0.05)


def test_it_is_small_and_holds_nothing_of_others(bundle: Bundle) -> None:
    files = [bundle.path / name for name in bundle.hashes]
    assert sum(file.stat().st_size for file in files) <= MOST_BYTES
    assert all("streets_" in frame.name for frame in bundle.golden_frames()), "drawn, not somebody's pictures"
    texts = [file.read_text(encoding="utf-8") for file in files if file.suffix in {".md", ".json", ".py", ".pbtxt"}]
    assert not [text for text in texts if ABSOLUTE.search(text)]


def test_its_golden_frames_come_out_as_trained(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", "default", "--backend", "onnxruntime", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["agreement"]) == len(Bundle.open(default_bundle()).golden_frames())


@pytest.mark.parametrize("words", [["--quiet"], []])
def test_a_video_needs_no_model_no_torch_and_no_network(words: list[str], ride: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CDGA_")}
    command = [sys.executable, "-c", ALONE, "segment", str(ride), "-o", "out", "--threads", "1", *words]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/overlay.mp4").is_file()
    if words:
        assert done.stderr == ""
        return
    about = Bundle.open(default_bundle()).manifest.about
    assert about is not None
    model, frames = done.stderr.splitlines()
    assert model.startswith("model: default (")
    assert model.endswith(f"trained on {about.trained_on}); give --model for your own")
    assert frames.startswith("12 frames in ")


def test_a_segmenter_without_arguments(bundle: Bundle) -> None:
    with Segmenter(backend="onnxruntime", device="cpu", threads=1) as segmenter:
        assert segmenter.bundle.sha256 == bundle.sha256


def test_a_folder_of_that_name_is_a_path(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "default").symlink_to(tiny_bundle)
    monkeypatch.chdir(tmp_path)
    tiny, default = Bundle.open(tiny_bundle).sha256, Bundle.open(default_bundle()).sha256
    for model, sha256 in ((Path("default"), tiny), ("./default", tiny), ("default", default)):
        with Segmenter(model, backend="onnxruntime", device="cpu", threads=1) as segmenter:
            assert segmenter.bundle.sha256 == sha256


def test_a_folder_of_a_name_is_a_path_for_every_command(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("default").symlink_to(tiny_bundle)
    tiny = Bundle.open(tiny_bundle)
    names = [frame.name for frame in tiny.golden_frames()]
    for kind, ending in (("images", ".png"), ("labels", ".mask.png")):
        Path(f"data/{kind}/val").mkdir(parents=True)
        for name in names:
            shutil.copy(tiny_bundle / f"golden/{name}{ending}", f"data/{kind}/val/{name}.png")

    def told(*words: str) -> dict[str, Any]:
        assert run([*words, "--json"]) in {0, 4}, capsys.readouterr().err
        record: dict[str, Any] = json.loads(capsys.readouterr().out)
        return record

    on_cpu = ("--backend", "onnxruntime", "--device", "cpu")
    model = f"default {tiny.sha256[:12]}"
    assert told("segment", "data/images/val", "--model", "./default", *on_cpu)["model"] == model
    assert told("bench", "./default", *on_cpu, "--rounds", "5", "--threads", "1")["model"] == model
    assert told("info", "./default")["sha256"] == tiny.sha256
    assert list(told("verify", "./default", *on_cpu)["agreement"]) == names
    assert told("doctor", "--model", "./default")["trial"]["imgsz_hw"] == [64, 128]
    assert told("evaluate", "./default", "--data", "folder:data", *on_cpu)["accuracy"] > 99.9


def test_an_installation_without_it(tmp_path: Path) -> None:
    bare = shutil.copytree(PACKAGE, tmp_path / "cdga_sdk", ignore=shutil.ignore_patterns("*.cdga", "__pycache__"))
    assert not (bare / "models/default.cdga").exists()
    (tmp_path / "ride.mp4").touch()
    command = [sys.executable, "-c", BARE, str(tmp_path), "segment", str(tmp_path / "ride.mp4")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3, done.stderr
    told = "default.cdga: this installation has no default model; give --model model.cdga or a name ("
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
