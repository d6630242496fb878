"""How the benchmarks measure: variants in turn in one run, paired ratios with an interval, a null pair, memory alone.

A shared machine makes milliseconds noise, so every claim is a ratio of two variants that were timed within the same
rounds. One variant runs twice under two names (the null pair): if those two differ, the run says nothing.
"""

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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
import torch

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
]

NULL_BAND: Final = (0.97, 1.03)

Record = dict[str, object]
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Times:
    """One variant's raw samples, one per round: seconds of the clock (or of the GPU), and of this process's cores."""

    wall_s: list[float]
    cpu_s: list[float]


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """The median of paired ratios, and the interval that holds it in 95 % of the bootstrap's resamples."""

    median: float
    low: float
    high: float

    @property
    def is_null(self) -> bool:
        """Whether this could be a null pair's ratio: the median lies between 0.97 and 1.03."""
        return NULL_BAND[0] <= self.median <= NULL_BAND[1]

    def record(self) -> Record:
        """Four significant digits, for JSON."""
        return {name: float(f"{value:.4g}") for name, value in asdict(self).items()}

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


def interleaved(
    variants: Mapping[str, Callable[[], object]], *, rounds: int, warm_up: int, device: torch.device
) -> dict[str, Times]:
    """Run every variant once a round, starting with another one each round, and time each run.

    Args:
        variants: What to run, by name.
        rounds: Rounds that count, at least 1.
        warm_up: Rounds before them that do not.
        device: Where the variants compute: their work there is awaited, on CUDA measured by its own events.

    Returns:
        ``rounds`` samples for every name.
    """
    assert rounds >= 1, rounds
    names = list(variants)
    times = {name: Times(wall_s=[], cpu_s=[]) for name in names}
    for index in range(warm_up + rounds):
        first = index % len(names)
        for name in names[first:] + names[:first]:
            wall_s, cpu_s = _timed(variants[name], device)
            if index >= warm_up:
                times[name].wall_s.append(wall_s)
                times[name].cpu_s.append(cpu_s)
    return times


def _timed(action: Callable[[], object], device: torch.device) -> tuple[float, float]:
    if device.type == "cuda":
        return _timed_on_cuda(action, device)
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - wall_s, time.process_time() - cpu_s


def _timed_on_cuda(action: Callable[[], object], device: torch.device) -> tuple[float, float]:
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        cpu_s = time.process_time()
        start.record()
        action()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3, time.process_time() - cpu_s


def paired_ratio(
    numerator: Sequence[float], denominator: Sequence[float], *, resamples: int = 10_000, seed: int = 0
) -> Ratio:
    """Median over rounds of ``numerator / denominator``, with a 95 % percentile bootstrap over the rounds.

    Args:
        numerator: One positive sample per round.
        denominator: The other variant's, of the same rounds in the same order.
        resamples: Bootstrap resamples.
        seed: Of the resampling.
    """
    assert len(numerator) == len(denominator) >= 1, (len(numerator), len(denominator))
    ratios = np.asarray(numerator, float) / np.asarray(denominator, float)
    chosen = np.random.default_rng(seed).integers(len(ratios), size=(resamples, len(ratios)))
    low, high = np.percentile(np.median(ratios[chosen], axis=1), [2.5, 97.5])
    return Ratio(median=float(np.median(ratios)), low=float(low), high=float(high))


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


def load() -> Record:
    """How busy the machine is: the 1-minute load, and how long tasks waited for a core lately where Linux tells."""
    pressure = Path("/proc/pressure/cpu")
    waiting = None
    if pressure.is_file():
        fields = pressure.read_text(encoding="ascii").split()
        waiting = float(next(field for field in fields if field.startswith("avg10=")).removeprefix("avg10="))
    return {"load_1min": round(os.getloadavg()[0], 2), "waiting_for_cpu_percent": waiting}


def environment(module: str, arguments: Sequence[str], packages: Sequence[str], device: torch.device) -> Record:
    """What a reader needs to repeat the run: date, command, machine, versions.

    Args:
        module: Name of the benchmark's module, for the command.
        arguments: Its command line, without the program.
        packages: Distributions whose versions matter.
        device: Where it computed.
    """
    processor = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "command": shlex.join(["python", "-m", module, *arguments]),
        "machine": f"{platform.machine()}, {processor}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "device": device.type,
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"
