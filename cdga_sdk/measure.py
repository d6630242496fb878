"""How speed is measured here: variants in turn within one run, paired ratios with an interval, a null pair.

A shared machine makes milliseconds noise, so a claim is a ratio of two variants that were timed within the same rounds.
One variant runs twice under two names (the null pair): if those two differ, the run says nothing.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, TypeVar

import numpy as np

__all__ = ["MAX_HALF_WIDTH", "Ratio", "Timer", "Times", "in_rounds", "load", "paired_ratio", "timed"]

NULL_BAND: Final = (0.97, 1.03)
MAX_HALF_WIDTH: Final = 0.05
"""Of a ratio's interval, over its median: a wider one resolves nothing."""

Sample = TypeVar("Sample")


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

    @property
    def is_resolved(self) -> bool:
        """Whether the interval is narrow enough to tell."""
        return self.high - self.low <= 2 * MAX_HALF_WIDTH * self.median

    def record(self) -> dict[str, object]:
        """Four significant digits, for JSON."""
        return {name: float(f"{value:.4g}") for name, value in asdict(self).items()}

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


Timer = Callable[[Callable[[], object]], tuple[float, float]]


def timed(action: Callable[[], object]) -> tuple[float, float]:
    """Run ``action``; seconds of the clock and of this process's cores."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - wall_s, time.process_time() - cpu_s


def in_rounds(
    variants: Mapping[str, Callable[[], Sample]], *, rounds: int, warm_up: int, on_run: Callable[[], None] | None = None
) -> dict[str, list[Sample]]:
    """Run every variant once a round, in another order each round: what ran just before leaves caches warm or cold.

    Args:
        variants: What to run, by name.
        rounds: Rounds that count, at least 1.
        warm_up: Rounds before them that do not.
        on_run: Called after each run of a variant.

    Returns:
        What the variants returned, ``rounds`` samples for every name.
    """
    assert rounds >= 1, rounds
    names = list(variants)
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    for index in range(warm_up + rounds):
        for name in random.Random(index).sample(names, len(names)):  # noqa: S311 - an order, not a secret
            sample = variants[name]()
            if index >= warm_up:
                samples[name].append(sample)
            if on_run:
                on_run()
    return samples


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


def load(*, pressure: Path = Path("/proc/pressure/cpu")) -> dict[str, object]:
    """How busy the machine is: the 1-minute load, and how long tasks waited for a core lately where Linux tells."""
    waiting = None
    with suppress(OSError):  # not there; or there, and unreadable: kernels that do not count, containers
        fields = pressure.read_text(encoding="ascii").split()
        waiting = float(next(field for field in fields if field.startswith("avg10=")).removeprefix("avg10="))
    one_minute = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None  # Windows has none
    return {"load_1min": one_minute, "waiting_for_cpu_percent": waiting}
