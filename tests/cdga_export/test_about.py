"""What a bundle says of itself beside what is measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cdga_sdk.bundle import About, Bundle
from cdga_sdk.cli import run
from cdga_sdk.image import write_png
from cdga_sdk.info import describe

STATED = """
trained_on = "streets by day"
adapted_to = "streets at dusk"
licence = "Apache-2.0"
limits = "Good for nothing yet."
"""


def export(tiny_run: Path, about: str, *words: str) -> int:
    Path("about.toml").write_text(about, encoding="utf-8")
    return run(["export", str(tiny_run), "-o", "a.cdga", "--about", "about.toml", *words, "--quiet"])


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_it_is_in_the_manifest_the_card_and_info(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(tiny_run, STATED) == 0
    about = Bundle.open("a.cdga").manifest.about
    assert about == About(
        trained_on="streets by day",
        adapted_to="streets at dusk",
        licence="Apache-2.0",
        limits="Good for nothing yet.",
    )
    card = Path("a.cdga/CARD.md").read_text(encoding="utf-8")
    assert "- Trained on: streets by day.\n- Adapted to: streets at dusk.\n- Licence: Apache-2.0.\n" in card
    assert card.endswith("- Good for nothing yet.\n")
    assert run(["info", "a.cdga", "--json"]) == 0
    assert about.model_dump().items() <= json.loads(capsys.readouterr().out).items()


def test_what_is_not_known_is_left_out(tiny_run: Path, tiny_bundle: Path) -> None:
    assert export(tiny_run, 'trained_on = "streets"\nlicence = "none"') == 0
    card = Path("a.cdga/CARD.md").read_text(encoding="utf-8")
    assert "Adapted to" not in card
    assert Bundle.open(tiny_bundle).manifest.about is None
    assert "Licence" not in (tiny_bundle / "CARD.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("about", "reason"),
    [
        ('licence = "x"', "key 'trained_on': Field required; the keys are trained_on, licence, adapted_to, limits"),
        ('trained_on = " "\nlicence = "x"', "key 'trained_on'"),
        ('trained_on = 1\nlicence = "x"', "key 'trained_on'"),
        ('trained_on = "a"\nlicense = "x"', "key 'licence': Field required"),
        ('trained_on = "a"\nlicence = "x"\nscore = 9', "key 'score': Extra inputs are not permitted"),
        ("trained_on: a", "about.toml: not a TOML file"),
    ],
)
def test_a_file_that_is_refused(about: str, reason: str, tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(tiny_run, about) == 2
    assert reason in capsys.readouterr().err
    assert not Path("a.cdga").exists()


def test_a_file_that_is_not_there(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", str(tiny_run), "-o", "a.cdga", "--about", "none.toml"]) == 3
    assert "none.toml: cannot read (No such file or directory)" in capsys.readouterr().err


def test_a_score_names_its_data_without_the_place(tiny_run: Path, tmp_path: Path) -> None:
    write_png(Path("mine/images/a.png"), np.random.default_rng(0).integers(0, 256, (64, 128, 3), np.uint8))
    write_png(Path("mine/labels/a.png"), np.zeros((64, 128), np.uint8))
    assert export(tiny_run, STATED, "--score", f"folder:{tmp_path / 'mine'}", "--classes", "common11") == 0
    parity = Bundle.open("a.cdga").parity["fp32"]
    assert isinstance(parity, dict)
    assert parity["labels"]["data"] == "folder:mine val, common11 classes"
    assert str(tmp_path) not in Path("a.cdga/CARD.md").read_text(encoding="utf-8")
    score = f"mIoU {parity['labels']['miou']:.2f} on 1 frame of folder:mine val, common11 classes"
    assert describe(Path("a.cdga"))["fp32_score"] == score
