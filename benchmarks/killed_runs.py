"""Does a run that is killed end as one that is not? ``kill -9`` at many moments of a small two-round run on the CPU.

::

    python -m benchmarks.killed_runs --kills 30 --json benchmarks/results/killed_runs.json

Each run is started anew, killed, and started again until it ends; every third one is killed twice. A run that ends
before its kill is thrown away, so that every one counted was killed. A third of the kills
come at a random moment, a third while a file is half written, a third when a phase has just left its mark. Then the
weights, BatchNorm statistics and optimiser states of both rounds, the pseudo-labels and the choices of checkpoint must
be those of the run that was left alone, and nothing half written may be left.
"""

from __future__ import annotations

import argparse
import datetime as dt
import hashlib
import json
import multiprocessing
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from cdga_sdk.atomic import write_text
from cdga_sdk.image import write_png
from cdga_train.checkpoint import load_checkpoint
from cdga_train.config import TrainConfig
from cdga_train.data.streets import render_frame
from cdga_train.rounds import PSEUDO_LABELS, train_run
from cdga_train.run_layout import LAST, ROUNDS, SELECTION
from cdga_train.state import TrainingState

MOMENTS: Final = ("random", "half-written file", "phase change")
NUM_FRAMES: Final = 5
MARKS: Final = (f"round1/{SELECTION}", PSEUDO_LABELS, f"round2/{LAST}", f"round2/{SELECTION}", f"round1/{LAST}")
_FORKED: Final = multiprocessing.get_context("fork")

Outcome = dict[str, object]


def main() -> None:
    """Kill, resume, compare; print the table and write the JSON; exit 1 if one run ends differently."""
    options = _options()
    torch.set_num_threads(1)  # this process never computes: what it forks must not miss its threads
    with tempfile.TemporaryDirectory() as place:
        report = killed_runs(Path(place), options.kills, options.seed)
    command = f"python -m benchmarks.killed_runs --kills {options.kills} --seed {options.seed}"
    text = json.dumps({**_environment(), "command": command, **report}, indent=1) + "\n"
    if options.json is not None:
        write_text(options.json, text)
    _print(report)
    sys.exit(0 if report["equal"] == report["kills"] else 1)


def killed_runs(place: Path, kills: int, seed: int) -> dict[str, object]:
    """Every run's moment, phase and end beside the end of the run that was left alone."""
    chance = random.Random(seed)  # noqa: S311 - no secret, and it must be repeatable
    in_child(make_domains, place)
    config = small_config(place)
    started = time.monotonic()
    in_child(run_in, config, place / "whole")
    length_s = time.monotonic() - started
    expected = outcome_of(place / "whole", place)
    rows = []
    for number in range(kills):
        folder = place / f"run{number}"
        moment = MOMENTS[number % len(MOMENTS)]
        while (first := kill_at(moment, config, folder, length_s, chance)) is None:
            shutil.rmtree(folder)
        second = kill_at("random", config, folder, length_s, chance) if number % 3 == 2 else None
        found = [phase for phase in (first, second) if phase is not None]
        in_child(run_in, config, folder)
        outcome = outcome_of(folder, place)
        rows.append({"moment": moment, "killed_in": found, "equal": outcome == expected, "sha256": digest(outcome)})
        shutil.rmtree(folder)
    equal = sum(bool(row["equal"]) for row in rows)
    return {"kills": kills, "equal": equal, "left_alone": {**expected, "sha256": digest(expected)}, "runs": rows}


def small_config(place: Path) -> TrainConfig:
    """Two rounds of CDGA that take seconds and save often."""
    return TrainConfig(
        source=f"folder:{place / 'day'}",
        target=f"folder:{place / 'dusk'}",
        imgsz=(64, 64),
        num_groups=2,
        rounds=2,
        iters=6,
        flip=True,
        translate="fda",
        candidates=2,
        log_every=1,
        save_every=1,
        device="cpu",
    )


def make_domains(place: Path) -> None:
    """Labelled frames of the procedural world, as folders ``day`` and ``dusk``."""
    for domain in ("day", "dusk"):
        for seed in range(NUM_FRAMES):
            frame = render_frame(seed=seed, domain=domain, size_wh=(64, 64))
            write_png(place / domain / "images" / f"{seed}.png", np.ascontiguousarray(frame.image_rgb[:, :, ::-1]))
            write_png(place / domain / "labels" / f"{seed}.png", frame.label)


def run_in(config: TrainConfig, folder: Path) -> None:
    """Begin the run in ``folder``, or go on with it."""
    folder.mkdir(exist_ok=True)
    train_run(config, folder)


def kill_at(moment: str, config: TrainConfig, folder: Path, length_s: float, chance: random.Random) -> str | None:
    """Start the run, kill it at ``moment``, and say in which phase that was; None if it ended before the kill."""
    wait_s = chance.uniform(0, length_s)
    mark = folder / chance.choice(MARKS)
    seen = chance.randrange(1, 8)
    child = _FORKED.Process(target=run_in, args=(config, folder))
    child.start()
    started, count = time.monotonic(), 0
    while child.is_alive():
        if moment == "random" and time.monotonic() - started >= wait_s:
            break
        if moment == "phase change" and mark.exists():
            break
        if moment == "half-written file" and half_written(folder):
            count += 1
            if count == seen:
                break
            time.sleep(0.01)
        time.sleep(0.0002)
    assert child.pid is not None
    if child.is_alive():
        os.kill(child.pid, signal.SIGKILL)
    child.join()
    if child.exitcode != -signal.SIGKILL:
        return None
    return phase_of(folder) + (" (half-written file)" if half_written(folder) else "")


def half_written(folder: Path) -> list[Path]:
    """Files and folders under their temporary names."""
    return [p for p in folder.rglob(".*") if p.name != ".lock"] if folder.is_dir() else []


def phase_of(folder: Path) -> str:
    """The phase that a run was in, from what it left."""
    for number, name in reversed(list(enumerate(ROUNDS, start=1))):
        if (folder / name / SELECTION).is_file():
            return "finished" if number == 2 else "pseudo-labels"
        if (folder / name / LAST).is_file():
            return f"round {number}"
    return "start of round 2" if (folder / PSEUDO_LABELS).is_dir() else "start"


def outcome_of(folder: Path, place: Path) -> Outcome:
    """What a run is held to, computed in a process of its own."""
    file = place / "outcome.json"
    in_child(_write_outcome, folder, file)
    outcome: Outcome = json.loads(file.read_text(encoding="utf-8"))
    return outcome


def _write_outcome(folder: Path, file: Path) -> None:
    labels = json.loads((folder / PSEUDO_LABELS / "pseudo_labels.json").read_text(encoding="utf-8"))
    outcome: Outcome = {"pseudo_labels": labels["sha256"], "half_written": len(half_written(folder))}
    for name in ROUNDS:
        checkpoint = load_checkpoint(folder / name / LAST)
        state = TrainingState.resumed(checkpoint, checkpoint.config, torch.device("cpu"))
        outcome[f"{name} state"] = state.fingerprint()
        outcome[f"{name} iteration"] = checkpoint.iteration
        outcome[f"{name} chosen"] = json.loads((folder / name / SELECTION).read_text(encoding="utf-8"))["chosen"]
    file.write_text(json.dumps(outcome), encoding="utf-8")


def in_child(action: Callable[..., None], *arguments: object) -> None:
    """Run ``action`` in a forked process: torch is imported already, and nothing of the action stays here."""
    child = _FORKED.Process(target=action, args=arguments)
    child.start()
    child.join()
    if child.exitcode != 0:
        raise RuntimeError(f"{action.__name__} ended with {child.exitcode}")


def digest(outcome: Outcome) -> str:
    """sha256 of an outcome."""
    return hashlib.sha256(json.dumps(outcome, sort_keys=True).encode()).hexdigest()


def _environment() -> dict[str, object]:
    return {
        "what": "runs that were killed (SIGKILL) and resumed, and how many ended bit for bit as the one left alone",
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "machine": f"{platform.machine()}, 1 thread, Python {platform.python_version()}",
        "torch": torch.__version__,
    }


def _print(report: dict[str, object]) -> None:
    table = Table(title=f"{report['equal']} of {report['kills']} ended as the run left alone", title_justify="left")
    for column in ("moment", "killed in", "equal"):
        table.add_column(column)
    rows = report["runs"]
    assert isinstance(rows, list)
    for row in rows:
        table.add_row(row["moment"], ", then ".join(row["killed_in"]), "yes" if row["equal"] else "NO")
    Console(stderr=True).print(table)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.killed_runs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=None)
    return parser.parse_args()


if __name__ == "__main__":
    main()
