"""How the benchmarks measure: as `cdga_sdk.measure` does, on CUDA too; and the memory of a process alone."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import multiprocessing
import os
import platform
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import TypeVar

import torch
from rich.table import Table

from cdga_sdk.machine import this_machine
from cdga_sdk.measure import Ratio, Timer, Times, in_rounds, load, paired_ratio, timed

__all__ = [
    "Ratio",
    "Record",
    "Times",
    "environment",
    "interleaved",
    "load",
    "paired_ratio",
    "peak_bytes",
    "run_alone",
    "side_by_side",
    "side_by_side_table",
]

Record = dict[str, object]
Result = TypeVar("Result")


def interleaved(
    variants: Mapping[str, Callable[[], object]], *, rounds: int, warm_up: int, device: torch.device
) -> dict[str, Times]:
    """Run every variant once a round, in another order each round, and time each run.

    Args:
        variants: What to run, by name.
        rounds: Rounds that count, at least 1.
        warm_up: Rounds before them that do not.
        device: Where the variants compute: their work there is awaited, on CUDA measured by its own events.

    Returns:
        ``rounds`` samples for every name.
    """
    timer: Timer = partial(_timed_on_cuda, device) if device.type == "cuda" else timed
    samples = in_rounds({name: partial(timer, run) for name, run in variants.items()}, rounds=rounds, warm_up=warm_up)
    return {name: Times(wall_s=[w for w, _ in one], cpu_s=[c for _, c in one]) for name, one in samples.items()}


def side_by_side(times: Mapping[str, Times], *, of: str, per: int) -> Record:
    """What is said of interleaved variants: milliseconds, ratios to one of them, raw samples.

    Args:
        times: Of `interleaved`.
        of: The variant that the others are held against.
        per: Frames of a run.
    """
    wall_s, cpu_s = times[of].wall_s, times[of].cpu_s
    return {
        "ms_per_frame": {name: round(1e3 * median(t.wall_s) / per, 3) for name, t in times.items()},
        "cpu_ms_per_frame": {name: round(1e3 * median(t.cpu_s) / per, 3) for name, t in times.items()},
        f"of_{of}": {name: paired_ratio(t.wall_s, wall_s).record() for name, t in times.items()},
        f"cpu_of_{of}": {name: paired_ratio(t.cpu_s, cpu_s).record() for name, t in times.items()},
        "times": {name: {k: [round(v, 6) for v in s] for k, s in asdict(t).items()} for name, t in times.items()},
    }


def side_by_side_table(title: str, times: Mapping[str, Times], *, of: str, per: int) -> Table:
    """The same for the terminal."""
    table = Table(title=title, title_justify="left")
    for column in ("variant", "median ms", "CPU ms", f"of {of} [95 %]", f"CPU time of {of}"):
        table.add_column(column, justify="left" if column == "variant" else "right")
    for name, t in times.items():
        wall, cpu = paired_ratio(t.wall_s, times[of].wall_s), paired_ratio(t.cpu_s, times[of].cpu_s)
        milliseconds = (1e3 * median(seconds) / per for seconds in (t.wall_s, t.cpu_s))
        table.add_row(name, *(f"{ms:.2f}" for ms in milliseconds), str(wall), str(cpu))
    return table


def _timed_on_cuda(device: torch.device, action: Callable[[], object]) -> tuple[float, float]:
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        cpu_s = time.process_time()
        start.record()
        action()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3, time.process_time() - cpu_s


def run_alone(action: Callable[[], Result]) -> Result:
    """What ``action``, which must be picklable, returns in a fresh process, where nothing that ran before shows."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(action).result()


def peak_bytes(action: Callable[[], object], device: torch.device) -> int:
    """The memory that ``action`` needed at its highest, above what this process held just before.

    CPU memory is read from Linux's ``/proc``. Only a process that has not held more before gives an exact figure (see
    ``run_alone``); in another one it is too large. Not from ``ru_maxrss``: a child starts with its parent's, even
    after exec.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        action()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    before = _status_bytes("VmRSS")
    action()
    return _status_bytes("VmHWM") - before


def _status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def environment(module: str, arguments: Sequence[str], packages: Sequence[str], device: torch.device) -> Record:
    """What a reader needs to repeat the run: date, command, machine, versions.

    Args:
        module: Name of the benchmark's module, for the command.
        arguments: Its command line, without the program.
        packages: Distributions whose versions matter.
        device: Where it computed.
    """
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else this_machine().cpu
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "command": shlex.join(["python", "-m", module, *arguments]),
        "machine": f"{platform.machine()}, {chip}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "device": device.type,
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
    }
