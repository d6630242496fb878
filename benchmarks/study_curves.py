"""mIoU over the iterations of a study's arms as an SVG picture; `benchmarks.pages` writes those of docs/results.md.

Of each arm the mean over its seeds at every checkpoint that was kept, and a band from the worst to the best of them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from benchmarks.markdown import results
from benchmarks.studies import DAY_DUSK, TWO_ROUNDS, called

__all__ = ["PICTURES", "curves"]

WIDTH: Final = 720
HEIGHT: Final = 320
LEFT: Final = 48
RIGHT: Final = 220  # the arms' names stand there
TOP: Final = 12
BOTTOM: Final = 40
STEP: Final = 5  # mIoU between two lines of the grid
LINE: Final = 18
_COLOURS: Final = {
    "source_only": "#666666",
    "translation": "#1f5fa8",
    "self_training": "#3a9aa8",
    "baseline": "#8a6bbf",
    "cdga": "#c4572b",
    "target_supervised": "#3f8f3f",
}


def curves(name: str) -> str:
    """The picture of the study that ``benchmarks/results/NAME.json`` holds."""
    study = results(name)
    of_arms = {arm: _by_iteration(study, arm) for arm in study["arms"]}
    values = [v for line in of_arms.values() for at in line.values() for v in at]
    low, high = STEP * math.floor(min(values) / STEP), STEP * math.ceil(max(values) / STEP)
    end = max(at for line in of_arms.values() for at in line)

    def x(iteration: float) -> float:
        return LEFT + iteration / end * (WIDTH - LEFT - RIGHT)

    def y(miou: float) -> float:
        return TOP + (high - miou) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [_grid_line(y(miou), f"{miou}") for miou in range(low, high + 1, STEP)]
    parts += [_below(x(at), f"{at}") for at in sorted({at for line in of_arms.values() for at in line})]
    parts.append(_below((LEFT + WIDTH - RIGHT) / 2, "iterations; up: mIoU, %", line=2))
    for number, (arm, line) in enumerate(of_arms.items()):
        above = [f"{x(at):.1f},{y(max(values)):.1f}" for at, values in line.items()]
        below = [f"{x(at):.1f},{y(min(values)):.1f}" for at, values in reversed(line.items())]
        means = [f"{x(at):.1f},{y(statistics.fmean(values)):.1f}" for at, values in line.items()]
        colour, across, down = _COLOURS[arm], WIDTH - RIGHT + 12, TOP + LINE * (number + 1)
        parts += [
            f'<polygon points="{" ".join(above + below)}" fill="{colour}" opacity="0.12"/>',
            f'<polyline points="{" ".join(means)}" fill="none" stroke="{colour}" stroke-width="2"/>',
            f'<path d="M{across} {down - 4}h16" stroke="{colour}" stroke-width="3"/>',
            f'<text x="{across + 22}" y="{down}">{called(name)[arm]}</text>',
        ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12"><rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _by_iteration(study: Mapping[str, Any], arm: str) -> dict[int, list[float]]:
    """mIoU of every seed at every checkpoint, percent."""
    found: dict[int, list[float]] = {}
    for run in study["runs"]:
        if run["arm"] == arm:
            for checkpoint in run["checkpoints"]:
                found.setdefault(checkpoint["iteration"], []).append(next(iter(checkpoint["miou"].values())))
    return dict(sorted(found.items()))


def _grid_line(y: float, label: str) -> str:
    return (
        f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>'
        f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
    )


def _below(x: float, label: str, *, line: int = 1) -> str:
    return f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16 * line}" text-anchor="middle">{label}</text>'


PICTURES: Final[Mapping[str, Callable[[], str]]] = {
    "docs/images/day_dusk_curves.svg": partial(curves, DAY_DUSK),
    "docs/images/two_rounds_curves.svg": partial(curves, TWO_ROUNDS),
}
"""What draws each picture, by its place in the repository."""
