"""Runs that are killed and resumed end bit for bit as the run left alone; the committed figures say so of thirty."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.killed_runs import digest, half_written, make_domains, outcome_of, phase_of, small_config
from cdga_train.config import config_as_dict
from cdga_train.rounds import train_run

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results/killed_runs.json"


def test_kills_in_a_run_of_the_benchmark(tmp_path: Path) -> None:
    file = tmp_path / "killed.json"
    command = [sys.executable, "-m", "benchmarks.killed_runs", "--kills", "3", "--seed", "7", "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())
    assert (report["equal"], report["kills"]) == (3, 3)
    assert all(row["sha256"] == report["left_alone"]["sha256"] for row in report["runs"])


def test_a_killed_command_is_resumed_by_the_command(tmp_path: Path) -> None:
    make_domains(tmp_path)
    config = replace(small_config(tmp_path), iters=3)
    changed = config_as_dict(config)
    words = [
        f"{key}={changed[key]}" for key in ("rounds", "num_groups", "iters", "candidates", "save_every", "log_every")
    ]
    words += ["imgsz=64,64", "batch=1", "align_resolution=input", "device=cpu", "optim.name=sgd", "optim.lr=2.5e-4"]
    words += ["optim.weight_decay=5e-4", f"source={config.source}", f"target={config.target}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-m", "cdga_sdk", "train"]
    running = subprocess.Popen([*program, "streets_cdga", *words, "--name", "run"], cwd=tmp_path, env=environment)
    folder = tmp_path / "runs/train/run"
    deadline = time.monotonic() + 120
    while phase_of(folder) == "start" and time.monotonic() < deadline:
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert phase_of(folder) != "finished"
    resumed = subprocess.run(
        [*program, "--resume", str(folder)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert resumed.returncode == 0, resumed.stderr
    whole = tmp_path / "whole"
    whole.mkdir()
    train_run(config, whole)
    assert outcome_of(folder, tmp_path) == outcome_of(whole, tmp_path)
    assert half_written(folder) == []


def test_the_committed_figures_are_thirty_of_thirty() -> None:
    report = json.loads(RESULTS.read_text(encoding="utf-8"))
    alone = report["left_alone"]
    assert digest({k: v for k, v in alone.items() if k != "sha256"}) == alone["sha256"]
    ends = [row["sha256"] for row in report["runs"]]
    assert len(ends) == report["kills"] >= 30
    assert report["equal"] == report["kills"]
    assert set(ends) == {alone["sha256"]}
    phases = {found.partition(" (")[0] for row in report["runs"] for found in row["killed_in"]}
    assert {"start", "round 1", "pseudo-labels", "round 2"} <= phases | {"start"}
    assert {row["moment"] for row in report["runs"]} == {"random", "half-written file", "phase change"}


@pytest.mark.parametrize(
    ("marks", "phase"),
    [
        ([], "start"),
        (["round1/last.safetensors"], "round 1"),
        (["round1/last.safetensors", "round1/selection.json"], "pseudo-labels"),
        (["round1/selection.json", "round2/last.safetensors"], "round 2"),
        (["round2/last.safetensors", "round2/selection.json"], "finished"),
    ],
)
def test_the_phase_follows_from_what_is_there(tmp_path: Path, marks: list[str], phase: str) -> None:
    for mark in marks:
        (tmp_path / mark).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / mark).touch()
    assert phase_of(tmp_path) == phase
