"""A study's run, judged by its own labels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.verdict import rows_of
from cdga_sdk.cli import run


def test_a_verdict_is_right_where_labels_say_so(tiny_run: Path, tmp_path: Path) -> None:
    words = ["study", "streets", "--arms", "cdga", "--seeds", "0", "--project", str(tmp_path), "--quiet"]
    short = ["imgsz=64,128", "iters=2", "batch=2", "candidates=2", "num_groups=2", "align_resolution=input"]
    assert run([*words, f"weights={tiny_run}", *short]) == 0
    (row,) = rows_of(tmp_path / "streets")
    record = json.loads((tmp_path / "streets/study.json").read_text())
    miou = {c["iteration"]: c["miou"]["19"] for c in record["runs"][0]["checkpoints"]}
    assert row["given_miou"] == pytest.approx(miou[0], abs=0.005)
    assert row["trained_miou"] == pytest.approx(miou[row["trained_iteration"]], abs=0.005)
    assert row["is_left"] == (record["runs"][0]["choice"]["iteration"] > 0)
    assert row["is_right"] == (row["is_left"] == (miou[row["trained_iteration"]] > miou[0]))
    assert (row["case"], row["seed"], row["classes"]) == ("streets", 0, "19")
