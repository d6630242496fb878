"""The README's numbers are the committed JSON's, and its commands exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

from typer.testing import CliRunner

from cdga_sdk.cli import app
from cdga_train.presets import PRESETS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def results(name: str) -> dict[str, object]:
    content: dict[str, object] = json.loads((ROOT / "benchmarks/results" / name).read_text(encoding="utf-8"))
    return content


def test_adaptation_table_is_the_json() -> None:
    summary = results("streets_adaptation.json")["summary"]
    assert isinstance(summary, dict)
    for values in summary.values():
        assert f"{values['mean']:.1f} ± {values['sd']:.1f}" in README


def test_cdga_beats_source_only_by_more_than_the_spread() -> None:
    summary = results("streets_adaptation.json")["summary"]
    assert isinstance(summary, dict)
    gain = summary["cdga"]["mean"] - summary["source_only"]["mean"]
    assert gain > summary["cdga"]["sd"] + summary["source_only"]["sd"]


def test_camvid_table_is_the_json_and_meets_the_reference() -> None:
    runs = results("camvid_reference.json")["runs"]
    assert isinstance(runs, list)
    for run in runs:
        assert f"{run['miou']:.2f}" in README
        assert abs(run["miou"] - run["reference_miou"]) <= 0.3


def test_commands_and_flags_exist() -> None:
    for line in re.findall(r"^cdga .*$", README, flags=re.MULTILINE):
        command = line.split()[1]
        shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
        assert shown.exit_code == 0, line
        for flag in re.findall(r"--[a-z-]+", line):
            assert flag in shown.output, f"{flag} in: {line}"


def test_presets_are_named() -> None:
    for name in PRESETS:
        assert f"`{name}`" in README


def test_camvid_study_table_is_the_json() -> None:
    study = results("camvid_day_dusk_short.json")
    summary = study["summary"]
    assert isinstance(summary, dict)
    assert study["seeds"] == [0, 1]
    for arm in summary.values():
        row = [arm[column]["miou"]["common11"] for column in ("last", "label-free", "oracle")]
        assert " | ".join(f"{v['mean']:.1f} ± {v['sd']:.1f}" for v in row) in README
