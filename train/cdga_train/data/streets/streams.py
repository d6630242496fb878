"""Rows of like objects along the route: trees, lamps, signs, parked and moving vehicles, people.

Object k of a stream sits at s = k * spacing + jitter + speed * t. Its properties are drawn from (seed, stream, k), so
it keeps them for as long as anyone looks, and nothing has to be remembered between frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from cdga_train.data.streets.models import Objects, library, objects_of
from cdga_train.data.streets.shapes import Floats
from cdga_train.data.streets.town import Gap, Season, Side, Street, blocked

__all__ = ["Stream", "objects_in_view", "streams_of"]

_CHUNK: Final = 16
_NUM_DRAWS: Final = 12
_Draws = npt.NDArray[np.float64]
_CAR_RGB: Final = np.array(
    [
        (0.72, 0.73, 0.74),
        (0.1, 0.1, 0.11),
        (0.85, 0.85, 0.84),
        (0.36, 0.37, 0.39),
        (0.5, 0.09, 0.08),
        (0.1, 0.18, 0.38),
        (0.16, 0.24, 0.2),
        (0.2, 0.21, 0.23),
        (0.55, 0.5, 0.42),
        (0.25, 0.4, 0.6),
        (0.7, 0.5, 0.1),
    ],
    np.float32,
)
_SKIN_RGB: Final = np.array(
    [(0.87, 0.68, 0.56), (0.78, 0.57, 0.44), (0.55, 0.38, 0.28), (0.36, 0.24, 0.18)], np.float32
)


@dataclass(frozen=True, kw_only=True)
class Stream:
    """One row of like objects.

    Attributes:
        key: Number of the stream, part of the seed of its objects.
        d: Metres to the right of the centre line.
        spread: Objects stray from ``d`` by up to this.
        spacing: Metres from one place to the next.
        share: Probability that a place is taken.
        speed: Metres per second along the route; negative comes towards the driver.
        turn_rad: Heading relative to the route.
        kind: What its objects are; see `_NAMES`.
        keep_clear: Distance to side streets in metres; negative where side streets do not matter.
        start: Every place is moved along the route by this.
        empty: Objects keep out of this range of s at time 0 (the driver's own place).
        behind_m: 0 orders objects by their nearer end, more orders them as if they stood this far behind their
            farther end (behind a wall along the route); None orders them by their middle.
    """

    key: int
    d: float
    spacing: float
    share: float
    kind: str
    spread: float = 0.0
    speed: float = 0.0
    turn_rad: float = 0.0
    keep_clear: float = -1.0
    start: float = 0.0
    empty: tuple[float, float] | None = None
    behind_m: float | None = None


@lru_cache(maxsize=4096)
def _draws(seed: int, key: int, chunk: int) -> _Draws:
    return np.random.default_rng([seed, 6, key, chunk + 100000]).random((_CHUNK, _NUM_DRAWS))


def _range_draws(seed: int, key: int, first: int, last: int) -> _Draws:
    chunks = range(first // _CHUNK, last // _CHUNK + 1)
    rows = np.concatenate([_draws(seed, key, c) for c in chunks])
    offset = first - (first // _CHUNK) * _CHUNK
    return rows[offset : offset + last - first + 1]


def objects_in_view(
    stream: Stream, *, seed: int, gaps: Sequence[Gap], s_range: tuple[float, float], time_s: float
) -> Objects:
    """The objects of ``stream`` between both ends of ``s_range`` at ``time_s``, in route coordinates."""
    moved = stream.start + stream.speed * time_s
    first = int(np.floor((s_range[0] - moved) / stream.spacing))
    last = int(np.ceil((s_range[1] - moved) / stream.spacing))
    draws = _range_draws(seed, stream.key, first, last)
    base = (np.arange(first, last + 1) + (draws[:, 0] - 0.5) * 0.5) * stream.spacing
    s = base + moved
    keep = (draws[:, 1] < stream.share) & (s > s_range[0]) & (s < s_range[1])
    if stream.empty is not None:
        at_start = base + stream.start
        keep &= (at_start < stream.empty[0]) | (at_start > stream.empty[1])
    if stream.keep_clear >= 0:
        keep &= ~blocked(gaps, s, stream.keep_clear)
    draws, s = draws[keep], s[keep]
    objects = objects_of(
        _NAMES[stream.kind](draws, time_s),
        s=s,
        d=stream.d + (draws[:, 2] - 0.5) * 2 * stream.spread,
        turn_rad=stream.turn_rad + _wobble(stream, draws),
        scale=_SCALES.get(stream.kind, _unscaled)(draws),
        colours=_COLOURS.get(stream.kind, _cloth_colours)(draws),
    )
    return objects if stream.behind_m is None else _ordered_behind(objects, stream.behind_m)


def _ordered_behind(objects: Objects, behind_m: float) -> Objects:
    """Ordered by the nearer end, or from ``behind_m`` metres behind the farther end."""
    anchor = objects.anchor.copy()
    half_length = library().half_wl[objects.kind, 1]
    anchor[:, 0] += np.float32(behind_m) + (half_length if behind_m > 0 else -half_length)
    return replace(objects, anchor=anchor)


def _wobble(stream: Stream, draws: _Draws) -> _Draws:
    """Standing people look anywhere, parked things are a little askew."""
    if stream.kind == "standing":
        return draws[:, 9] * 2 * np.pi
    return (draws[:, 9] - 0.5) * (0.08 if stream.speed == 0 else 0.0)


def _choice(draws: _Draws, column: int, names: Sequence[str], weights: Sequence[float]) -> list[str]:
    edges = np.cumsum(weights) / np.sum(weights)
    return [names[int(k)] for k in np.searchsorted(edges, draws[:, column], side="right")]


_CAR_NAMES: Final = ("hatch", "sedan", "estate", "suv", "van")


def _cars(draws: _Draws, time_s: float) -> list[str]:
    del time_s
    return _choice(draws, 3, (*_CAR_NAMES, "truck"), (4, 4, 3, 3, 1.2, 0.35))


def _traffic(draws: _Draws, time_s: float) -> list[str]:
    del time_s
    return _choice(draws, 3, (*_CAR_NAMES, "truck", "bus", "motorcyclist"), (4, 4, 3, 3, 1.2, 1.5, 1.3, 1.2))


def _trams(draws: _Draws, time_s: float) -> list[str]:
    del time_s
    return _choice(draws, 3, ("tram", "hatch", "sedan", "estate"), (1.6, 2, 2, 1))


def _walkers(draws: _Draws, time_s: float) -> list[str]:
    phase = (draws[:, 8] * 8 + time_s * 7.5) % 8
    return [f"person{int(p)}" for p in phase]


def _standing(draws: _Draws, time_s: float) -> list[str]:
    del time_s
    return ["person8"] * len(draws)


def _riders(draws: _Draws, time_s: float) -> list[str]:
    phase = (draws[:, 8] * 8 + time_s * 8) % 8
    return ["motorcyclist" if kind < 0.2 else f"cyclist{int(p)}" for kind, p in zip(draws[:, 3], phase, strict=True)]


def _trees(draws: _Draws, time_s: float) -> list[str]:
    del time_s
    return [f"tree{int(k * 4)}" for k in draws[:, 3] ** 2]


def _winter_trees(draws: _Draws, time_s: float) -> list[str]:
    del time_s
    return [f"winter{int(k * 6)}" for k in draws[:, 3]]


def _signs(draws: _Draws, time_s: float) -> list[str]:
    del time_s
    return [f"sign{int(k * 8)}" for k in draws[:, 3]]


def _parked_cycles(draws: _Draws, time_s: float) -> list[str]:
    del time_s
    return ["motorcycle" if k < 0.3 else "bicycle" for k in draws[:, 3]]


def _fast(draws: _Draws, time_s: float) -> list[str]:
    del time_s
    return _choice(draws, 3, (*_CAR_NAMES, "rigid", "bus", "motorcyclist"), (4, 5, 4, 4, 1.6, 0.4, 0.3, 0.25))


def _haulage(draws: _Draws, time_s: float) -> list[str]:
    del time_s
    return _choice(draws, 3, (*_CAR_NAMES, "rigid", "lorry", "bus"), (2, 2, 2, 2, 1.5, 2.5, 5, 0.7))


def _boards(draws: _Draws, time_s: float) -> list[str]:
    del time_s
    return [f"board{int(k * 4)}" for k in draws[:, 3]]


def _always(name: str) -> Callable[[_Draws, float], list[str]]:
    return lambda draws, _: [name] * len(draws)


_NAMES: Final[dict[str, Callable[[_Draws, float], list[str]]]] = {
    "cars": _cars,
    "traffic": _traffic,
    "trams": _trams,
    "walkers": _walkers,
    "standing": _standing,
    "riders": _riders,
    "trees": _trees,
    "winter_trees": _winter_trees,
    "signs": _signs,
    "cycles": _parked_cycles,
    "lamp0": _always("lamp0"),
    "lamp1": _always("lamp1"),
    "bollard": _always("bollard"),
    "fast": _fast,
    "haulage": _haulage,
    "boards": _boards,
    "delineators": _always("delineator"),
}


_TREES_IN: Final[dict[Season, str]] = {"summer": "trees", "winter": "winter_trees"}


def _unscaled(draws: _Draws) -> _Draws:
    return np.ones(len(draws))


def _body_height(draws: _Draws) -> _Draws:
    """Grown people of 1.55 to 1.9 m, and one child in ten."""
    return np.where(draws[:, 10] < 0.1, 0.66 + draws[:, 4] * 0.2, 0.88 + draws[:, 4] * 0.19)


def _tree_height(draws: _Draws) -> _Draws:
    return 0.75 + draws[:, 4] * 0.5


_SCALES: Final[dict[str, Callable[[_Draws], _Draws]]] = {
    "walkers": _body_height,
    "standing": _body_height,
    "trees": _tree_height,
    "winter_trees": _tree_height,
}


def _cloth_colours(draws: _Draws) -> Floats:
    """(n, 3, 3): coat of any colour, darker trousers, skin (or the paint of a bicycle)."""
    coat = 0.12 + 0.62 * draws[:, 5:6] * np.stack([draws[:, 6], draws[:, 7], draws[:, 11]], -1) ** 0.6
    trousers = 0.08 + 0.28 * draws[:, 7:8] * np.array([[0.8, 0.85, 1.1]])
    skin = _SKIN_RGB[(draws[:, 4] * len(_SKIN_RGB)).astype(int)]
    return np.stack([coat, trousers, skin], axis=1).astype(np.float32)


def _car_colours(draws: _Draws) -> Floats:
    paint = _CAR_RGB[(draws[:, 5] * len(_CAR_RGB)).astype(int)] * (0.85 + 0.3 * draws[:, 6:7])
    cargo = _CAR_RGB[(draws[:, 7] ** 2 * len(_CAR_RGB)).astype(int)]
    return np.stack([paint, cargo, paint], axis=1).astype(np.float32)


def _bus_colours(draws: _Draws) -> Floats:
    colours = _car_colours(draws)
    bright = np.array([(0.75, 0.12, 0.1), (0.85, 0.68, 0.12), (0.85, 0.85, 0.82), (0.15, 0.4, 0.6)], np.float32)
    big = (draws[:, 3] > 0.8)[:, None, None]
    return np.where(big, bright[(draws[:, 5] * 4).astype(int)][:, None], colours)


def _haulage_colours(draws: _Draws) -> Floats:
    """Most trailers are light, some are of any colour."""
    colours = _car_colours(draws)
    light = np.float32(0.72) + np.float32(0.2) * draws[:, 6:7].astype(np.float32)
    colours[:, 1] = np.where(draws[:, 7:8] < 0.6, light, colours[:, 1])
    return colours


def _leaf_colours(draws: _Draws) -> Floats:
    green = 0.3 + 0.15 * draws[:, 5]
    leaf = np.stack([green * (0.62 + 0.3 * draws[:, 6]), green, green * (0.35 + 0.25 * draws[:, 7])], -1)
    return np.repeat(leaf[:, None], 3, axis=1).astype(np.float32)


_COLOURS: Final[dict[str, Callable[[_Draws], Floats]]] = {
    "cars": _car_colours,
    "traffic": _bus_colours,
    "trams": _bus_colours,
    "fast": _bus_colours,
    "haulage": _haulage_colours,
    "trees": _leaf_colours,
}


def streams_of(street: Street, seed: int, *, lane: float, driver_mps: float, driver_s: float) -> list[Stream]:
    """All streams of a town; ``lane`` is where the driver keeps, from ``driver_s`` on at ``driver_mps``."""
    rng = np.random.default_rng([seed, 7])
    result: list[Stream] = []
    for number, side in enumerate(street.sides):
        key = 100 * number
        result += _furniture(street, side, rng, key)
        result += _walking(street, side, rng, key + 30)
        result += _driving(street, side, rng, key + 60, lane, driver_mps, driver_s)
    if street.median > 0.9 and rng.uniform() < 0.7:
        result.append(Stream(key=300, d=0.0, spacing=11.0, share=0.8, kind=_TREES_IN[street.season], keep_clear=5))
    return result


def _furniture(street: Street, side: Side, rng: np.random.Generator, key: int) -> list[Stream]:
    sign = side.sign
    behind_kerb = sign * (side.kerb + 0.18 + 0.45)
    inward = 0.0 if sign < 0 else float(np.pi)
    lamp = "lamp1" if rng.uniform() < 0.7 else "lamp0"
    offset = float(rng.uniform(0, 30))
    rows = [
        Stream(
            key=key,
            d=behind_kerb,
            spacing=float(rng.uniform(22, 32)),
            share=0.95,
            kind=lamp,
            turn_rad=inward,
            keep_clear=1,
            start=offset,
        ),
        Stream(key=key + 1, d=behind_kerb, spacing=18.0, share=0.55, kind="signs", keep_clear=1, start=offset + 7),
        Stream(
            key=key + 2,
            d=sign * (side.line - 0.5),
            spacing=7.0,
            share=0.25 * street.cycles,
            kind="cycles",
            spread=0.2,
            turn_rad=0.3,
            keep_clear=2,
        ),
    ]
    tree_d = sign * (side.kerb + 0.18 + max(side.verge / 2, 0.7))
    if side.walk + side.verge > 2.4:
        rows.append(
            Stream(
                key=key + 3,
                d=tree_d,
                spacing=float(rng.uniform(8, 13)),
                share=min(1.0, street.trees),
                kind=_TREES_IN[street.season],
                keep_clear=3,
                start=3.0,
            )
        )
    if rng.uniform() < 0.3:
        rows.append(
            Stream(key=key + 4, d=sign * (side.kerb + 0.5), spacing=2.4, share=0.9, kind="bollard", keep_clear=1)
        )
    if side.parking is not None:
        rows.append(
            Stream(
                key=key + 5,
                d=sign * side.parking,
                spacing=7.2,
                share=street.parked,
                kind="cars",
                spread=0.1,
                turn_rad=0.0 if sign > 0 else float(np.pi),
                keep_clear=6,
            )
        )
    return rows


def _walking(street: Street, side: Side, rng: np.random.Generator, key: int) -> list[Stream]:
    middle = side.sign * (side.line - side.walk / 2)
    spread = side.walk / 2 - 0.4
    rows = []
    for number, speed in enumerate((1.3, -1.2, 0.0)):
        spacing = float(rng.uniform(7, 13)) * (1.6 if speed == 0 else 1.0)
        rows.append(
            Stream(
                key=key + number,
                d=middle,
                spread=spread,
                spacing=spacing,
                share=0.75 * street.people,
                kind="walkers" if speed else "standing",
                speed=speed,
                turn_rad=0.0 if speed > 0 else float(np.pi),
            )
        )
    return rows


def _driving(
    street: Street, side: Side, rng: np.random.Generator, key: int, lane: float, driver_mps: float, driver_s: float
) -> list[Stream]:
    forward = side.sign > 0
    rows = []
    for number, d in enumerate(side.lanes):
        own = forward and abs(d - lane) < 0.1
        speed = driver_mps if own else float(rng.uniform(7, 12)) * (1 if forward else -1)
        kind = "trams" if street.tram and number == 0 and not own else "traffic"
        spacing = float(rng.uniform(17, 30)) if kind == "traffic" else 34.0
        rows.append(
            Stream(
                key=key + number,
                d=side.sign * d,
                spacing=spacing,
                share=0.85 * street.traffic,
                kind=kind,
                speed=speed,
                turn_rad=0.0 if forward else float(np.pi),
                spread=0.2,
                empty=(driver_s - 25, driver_s + 11) if own else None,
            )
        )
    edge = side.lanes[-1] + street.lane_m / 2 - 0.15
    rows.append(
        Stream(
            key=key + 8,
            d=side.sign * edge,
            spacing=26.0,
            share=0.7 * street.cycles,
            kind="riders",
            speed=4.6 if forward else -4.6,
            turn_rad=0.0 if forward else float(np.pi),
            spread=0.15,
        )
    )
    return rows
