"""The benchmarks' measuring: the order of rounds, and memory of known size."""

from __future__ import annotations

import json
import os
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.protocol import environment, interleaved, peak_bytes, run_alone

CPU = torch.device("cpu")


def test_every_variant_runs_once_a_round_and_rounds_differ_in_order() -> None:
    ran: list[str] = []
    times = interleaved({n: partial(ran.append, n) for n in "abc"}, rounds=29, warm_up=1, device=CPU)
    rounds = {"".join(ran[start : start + 3]) for start in range(0, 90, 3)}
    assert len(ran) == 90
    assert rounds == {"abc", "acb", "bac", "bca", "cab", "cba"}
    assert list(times) == ["a", "b", "c"]
    assert {len(samples.wall_s) for samples in times.values()} == {29}
    assert {len(samples.cpu_s) for samples in times.values()} == {29}


def test_waiting_takes_time_and_no_core() -> None:
    times = interleaved({"sleep": partial(time.sleep, 0.02)}, rounds=2, warm_up=0, device=CPU)["sleep"]
    assert min(times.wall_s) >= 0.02
    assert max(times.cpu_s) < 0.01


def test_a_process_alone_shows_the_peak_of_what_it_held_and_let_go() -> None:
    megabytes = 96
    action = partial(np.ones, megabytes * 1_000_000 // 8)
    grown = run_alone(partial(peak_bytes, action, CPU))
    assert grown == pytest.approx(megabytes * 1e6, rel=0.05)


def test_a_large_parent_does_not_show_in_its_childs_peak() -> None:
    large = np.ones(40_000_000)
    assert run_alone(partial(peak_bytes, partial(np.ones, 1_000_000), CPU)) < large.nbytes / 4


def test_a_process_alone_is_another_one() -> None:
    assert run_alone(os.getpid) != os.getpid()


def test_the_environment_can_be_repeated_from_and_names_no_folder() -> None:
    record = environment("benchmarks.some", ["--json", "a b.json"], ["numpy"], CPU)
    assert record["command"] == "python -m benchmarks.some --json 'a b.json'"
    assert record["packages"] == {"numpy": np.__version__}
    assert str(Path.cwd()) not in json.dumps(record)
