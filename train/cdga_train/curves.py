"""The log of a run as small charts: ``metrics.jsonl`` read leniently, drawn as SVG.

Drawn by hand, since a chart here is a line, a band, a few ticks and one line of reference: a plotting library would
bring seven more packages, and a font cache on every machine, to write larger files of the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np

from cdga_train.config import TrainConfig
from cdga_train.page import Html, figure, text

__all__ = ["Metrics", "Reference", "Watched", "chart", "charts", "read_metrics", "watched"]

Point = tuple[int, float | None]

WIDTH: Final = 300
HEIGHT: Final = 150
LEFT: Final = 44
RIGHT: Final = 8
TOP: Final = 8
BOTTOM: Final = 20
_MAX_POINTS: Final = 300  # about one for each pixel across
_COLOURS: Final = ("#1f5fa8", "#c4572b")  # of rounds 1 and 2
_GRID: Final = "#ddd"
_HUGE: Final = 1e300  # beyond it the difference of two values overflows


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """A log.

    Attributes:
        rows: The values of each good line, by name; None stands for NaN, infinity, or as good as that.
        iterations: The iteration of each good line.
        damaged: Numbers of the lines that could not be read, from 1.
    """

    rows: tuple[Mapping[str, float | None], ...]
    iterations: tuple[int, ...]
    damaged: tuple[int, ...]

    @cached_property
    def last_iteration(self) -> int:
        """The last one logged, 0 where none is."""
        return max(self.iterations, default=0)

    def series(self, key: str) -> list[Point]:
        """Iteration and value of every line that has ``key``."""
        return [(at, row[key]) for at, row in zip(self.iterations, self.rows, strict=True) if key in row]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A value to hold a curve against, and what it means."""

    value: float
    meaning: str


@dataclass(frozen=True, kw_only=True)
class Watched:
    """A value of the log that is looked at, what it is, and what it is held against."""

    key: str
    title: str
    reference: Reference | None = None


def read_metrics(path: Path) -> Metrics:
    """Read a log that may be damaged, or still be written to; empty where there is no file that can be read."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        lines = []
    rows, iterations, damaged = [], [], []
    for number, line in enumerate(lines, start=1):
        parsed = _parsed(line)
        if parsed is not None:
            iterations.append(parsed[0])
            rows.append(parsed[1])
        elif line.strip() and number < len(lines):  # behind the last line break: still being written
            damaged.append(number)
    return Metrics(rows=tuple(rows), iterations=tuple(iterations), damaged=tuple(damaged))


def watched(config: TrainConfig) -> tuple[Watched, ...]:
    """What the method says to watch (train/README.md), with the values that mean something."""
    k = config.num_groups if config.arm == "cdga" else 1
    views = 2 if config.losses.adversarial_domains == "both" else 1
    blind = Reference(value=views * k * math.log(2), meaning="D is blind")
    return (
        Watched(key="seg", title="L_seg, source cross-entropy"),
        Watched(key="ssl", title="L_ssl, cross-entropy with pseudo-labels"),
        Watched(key="co", title="L_co, distance of the domains' groups"),
        Watched(
            key="orth",
            title="L_orth, likeness of the groups",
            reference=Reference(value=2 * k * (k - 1), meaning="2K(K-1): all groups equal"),
        ),
        Watched(key="cadv", title="L_cadv, adversarial, flipped label", reference=blind),
        Watched(key="adv", title="Adversarial, flipped label", reference=blind),
        Watched(key="cl", title="L_cl, class equivalence"),
        Watched(
            key="d", title="D's loss, a group", reference=Reference(value=math.log(2), meaning="0.693: D is blind")
        ),
        Watched(
            key="group_entropy",
            title="Entropy of the mean group",
            reference=Reference(value=math.log(k), meaning="log K: all groups used"),
        ),
        Watched(key="lr", title="Learning rate of G"),
        Watched(
            key="data_wait_share",
            title="Share of the time spent waiting for data",
            reference=Reference(value=0.02, meaning="2 %"),
        ),
    )


def charts(config: TrainConfig, rounds: Mapping[str, Metrics]) -> Html:
    """One chart for every watched value that a log holds, the rounds over each other.

    Args:
        config: The run.
        rounds: The log of each round by its name.
    """
    drawn = []
    for item in watched(config):
        lines = {name: log.series(item.key) for name, log in rounds.items()}
        if any(lines.values()):
            drawn.append(figure(chart(lines, item), _caption(item, lines)))
    legend = "".join(
        f'<li><span class="swatch" style="background:{colour}"></span>{text(name)}</li>'
        for name, colour in zip(rounds, _COLOURS, strict=False)
        if len(rounds) > 1
    )
    return Html(f'<ul class="legend">{legend}</ul><div class="charts">{"".join(drawn)}</div>')


def chart(lines: Mapping[str, Sequence[Point]], item: Watched) -> Html:
    """One chart as SVG: a line for each round, a dashed one for the reference.

    Where there are more points than pixels, the line is the mean and the band the range of neighbours. A value that was
    not finite leaves a gap.
    """
    values = [v for line in lines.values() for _, v in line if v is not None]
    values += [] if item.reference is None else [item.reference.value]
    low, high, ticks = _scale(min([0.0, *values]), max([0.0, *values]))
    axes = _Axes(low=low, high=high, end=max((at for line in lines.values() for at, _ in line), default=1) or 1)
    parts = [*_grid(axes, ticks)]
    for colour, line in zip(_COLOURS, lines.values(), strict=False):
        parts += _line(axes, line, colour)
    if item.reference is not None:
        parts.append(_reference(axes, item.reference))
    title = text(f"{item.title} over the iterations")
    return Html(
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" data-key="{text(item.key)}"><title>{title}</title>'
        f"{''.join(parts)}</svg>"
    )


@dataclass(frozen=True, kw_only=True)
class _Axes:
    low: float
    high: float
    end: int

    def x(self, iteration: float) -> float:
        return LEFT + iteration / self.end * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return TOP + (self.high - value) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM)


@dataclass(frozen=True, kw_only=True)
class _Bin:
    """Neighbouring points: where, their mean, and their range."""

    at: float
    mean: float
    low: float
    high: float


def _parsed(line: str) -> tuple[int, dict[str, float | None]] | None:
    try:
        record = json.loads(line)
        iteration = record.pop("iteration")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if type(iteration) is not int or iteration < 0 or not all(_is_number(v) for v in record.values()):
        return None
    return iteration, {name: float(v) if v is not None and abs(v) < _HUGE else None for name, v in record.items()}


def _is_number(value: object) -> bool:
    if isinstance(value, int) and abs(value) > 2**53:  # JSON knows integers that no float can hold
        return False
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _caption(item: Watched, lines: Mapping[str, Sequence[Point]]) -> str:
    last = [f"{_short(line[-1][1])}" for line in lines.values() if line]
    meaning = "" if item.reference is None else f" · dashed: {item.reference.meaning}"
    return f"{item.title} ({item.key}) · last {' and '.join(last)}{meaning}"


def _short(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def _scale(low: float, high: float) -> tuple[float, float, list[float]]:
    """A range of round numbers that holds both, and the ticks in it."""
    if high - low < 1 / _HUGE:
        high = low + 1
    rough = (high - low) / 3
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(step for step in (1, 2, 2.5, 5, 10) if step * magnitude >= rough * (1 - 1e-9)) * magnitude
    first, last = math.floor(low / step), math.ceil(high / step - 1e-9)
    return first * step, last * step, [number * step for number in range(first, last + 1)]


def _grid(axes: _Axes, ticks: Iterable[float]) -> list[str]:
    parts = []
    for tick in ticks:
        y = axes.y(tick)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="{_GRID}"/>')
        parts.append(f'<text x="{LEFT - 4}" y="{y + 3:.1f}" text-anchor="end">{_tick(tick)}</text>')
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        at = axes.x(share * axes.end)
        label = _tick(share * axes.end)
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{label}</text>')
    return parts


def _tick(value: float) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:.5g}"


def _line(axes: _Axes, line: Sequence[Point], colour: str) -> list[str]:
    parts = []
    for run in _runs(line):
        bins = _binned(run)
        points = [f"{axes.x(b.at):.1f},{axes.y(b.mean):.1f}" for b in bins]
        if len(bins) < len(run):
            above = [f"{axes.x(b.at):.1f},{axes.y(b.high):.1f}" for b in bins]
            below = [f"{axes.x(b.at):.1f},{axes.y(b.low):.1f}" for b in reversed(bins)]
            parts.append(f'<polygon points="{" ".join(above + below)}" fill="{colour}" opacity="0.2"/>')
        if len(points) == 1:
            x, y = points[0].split(",")
            parts.append(f'<circle cx="{x}" cy="{y}" r="2" fill="{colour}"/>')
        else:
            parts.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="1.3"/>')
    return parts


def _runs(line: Sequence[Point]) -> list[list[tuple[int, float]]]:
    """The stretches without a gap."""
    runs: list[list[tuple[int, float]]] = [[]]
    for at, value in line:
        if value is None:
            runs.append([])
        else:
            runs[-1].append((at, value))
    return [run for run in runs if run]


def _binned(run: Sequence[tuple[int, float]]) -> list[_Bin]:
    parts = np.array_split(np.asarray(run, np.float64), min(len(run), _MAX_POINTS))
    return [
        _Bin(at=float(p[:, 0].mean()), mean=float(p[:, 1].mean()), low=float(p[:, 1].min()), high=float(p[:, 1].max()))
        for p in parts
    ]


def _reference(axes: _Axes, reference: Reference) -> str:
    y = axes.y(reference.value)
    return f'<path class="reference" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#888" stroke-dasharray="4 3"/>'
