"""An open road from a seed: its way, its cross section, and the relief and season of the land beside it.

As in `cdga_train.data.streets.town`, s metres run along the road and d metres to the right of its centre line; a road
of which only our carriageway is in sight has its centre line at the left edge of the asphalt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from cdga_train.data.streets.shapes import Rgb
from cdga_train.data.streets.town import Route, route_of

__all__ = [
    "ROAD_BLOCK_M",
    "ROAD_VIEW_M",
    "Carriageway",
    "Highway",
    "Land",
    "Roadside",
    "highway_from_seed",
    "highway_route",
]

ROAD_BLOCK_M: Final = 108.0
ROAD_VIEW_M: Final = 380.0
_BEHIND_M: Final = 120.0
_Metres = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Carriageway:
    """The asphalt of one direction, from the centre line outwards (metres).

    Attributes:
        sign: 1 ours, right of the centre line; -1 oncoming.
        inner: Where the asphalt begins.
        lanes: Lane centres, from the inside.
        lines: The inner and the outer edge line.
        edge: Where the asphalt ends.
    """

    sign: int
    inner: float
    lanes: tuple[float, ...]
    lines: tuple[float, float]
    edge: float


@dataclass(frozen=True, kw_only=True)
class Roadside:
    """The land on one side: a flat verge up to ``foot``, a bank up to ``crest``, and open land up to ``outer``.

    Attributes:
        sign: 1 right of the road, -1 left.
        edge, foot, crest, outer: Metres from the centre line.
        bank, rise: (height, bias, two wave lengths, two phases) of the bank and of the land behind it; see `heights`.
        barrier: "none", "rail" (guard rail) or "concrete", beside the asphalt.
        fence: "none", "mesh", "posts", "planks", "noise" (a wall against noise) or "hedge".
        on_crest: The fence stands on the crest of the bank instead of at its foot.
        bushes, trees: Densities, 0 to 1.
        woods: Share of the land behind the bank that is wood, 0 to 1.
        alley: A row of trees at the verge.
        walk: Width of a pavement, 0 for none.
    """

    sign: int
    edge: float
    foot: float
    crest: float
    outer: float
    bank: tuple[float, float, float, float, float, float]
    rise: tuple[float, float, float, float, float, float]
    barrier: str
    fence: str
    on_crest: bool
    bushes: float
    trees: float
    woods: float
    alley: bool
    walk: float

    @property
    def fence_d(self) -> float:
        """Distance of the fence from the centre line."""
        return self.crest if self.on_crest else self.foot - 0.3

    def heights(self, s: npt.ArrayLike) -> tuple[_Metres, _Metres]:
        """Height of the crest and of the outer end of the land at ``s``, metres; the verge lies at 0."""
        at = np.asarray(s, np.float64)
        crest = _waves(at, self.bank)
        return crest, crest + _waves(at, self.rise)

    def height_at(self, s: npt.ArrayLike, d: npt.ArrayLike) -> _Metres:
        """Height of the land at ``s``, ``d`` metres outwards from the centre line."""
        (crest, outer), at = self.heights(s), np.asarray(d, np.float64)
        up = np.clip((at - self.foot) / (self.crest - self.foot), 0, 1)
        on = np.clip((at - self.crest) / (self.outer - self.crest), 0, 1)
        return np.asarray(up * crest + on * (outer - crest), np.float64)


def _waves(s: _Metres, wave: tuple[float, float, float, float, float, float]) -> _Metres:
    height, bias, long_m, short_m, long_phase, short_phase = wave
    swing = 0.65 * np.sin(2 * np.pi * s / long_m + long_phase) + 0.35 * np.sin(2 * np.pi * s / short_m + short_phase)
    return np.asarray(height * np.clip(bias + swing, 0, 1), np.float64)


@dataclass(frozen=True, kw_only=True)
class Land:
    """Colours and plants of one season.

    Attributes:
        grass_rgb: Verges and banks.
        fields_rgb: What the land behind them may look like.
        leaf_rgb: Darkest and lightest leaf colour.
        bare: Share of broad trees without leaves, 0 to 1.
        conifers: Share of conifers, 0 to 1.
    """

    grass_rgb: Rgb
    fields_rgb: tuple[Rgb, ...]
    leaf_rgb: tuple[Rgb, Rgb]
    bare: float
    conifers: float


@dataclass(frozen=True, kw_only=True)
class Highway:
    """The character of one open road.

    Attributes:
        kind: "motorway" or "country".
        carriageways: Ours, and the oncoming one if it is in sight.
        sides: Left and right.
        lane_m: Lane width.
        median: Half width of what separates the directions, 0 for none.
        divider: What stands on the median: "grass", "bushes", "rail", "concrete", "hedge", "wall", "none", or "alone":
            the other carriageway is out of sight.
        centre: Centre line of an undivided road: "dashed", "solid" or "double".
        yellow: Centre and inner lines are yellow.
        dash_m: Length of a dash and of dash and gap, metres.
        asphalt: Texture name.
        road_rgb: Colour of the asphalt.
        shoulder_tone: Brightness of the shoulder relative to it.
        tracks: Wheel tracks are this much darker than the asphalt, 0 to 1.
        traffic, trucks: Densities, 0 to 1.
        posts: Delineators stand along the edges.
        lamps: Lamps stand along the edges.
        masts: Poles with wires follow the road.
        land: Season.
    """

    kind: str
    carriageways: tuple[Carriageway, ...]
    sides: tuple[Roadside, Roadside]
    lane_m: float
    median: float
    divider: str
    centre: str
    yellow: bool
    dash_m: tuple[float, float]
    asphalt: str
    road_rgb: Rgb
    shoulder_tone: float
    tracks: float
    traffic: float
    trucks: float
    posts: bool
    lamps: bool
    masts: bool
    land: Land


def highway_route(seed: int, kind: str, length_m: float) -> Route:
    """The way of the road; curve radii stay above about 600 m (motorway) or 170 m (country road)."""
    rng = np.random.default_rng([seed, 61])
    s = np.arange(-_BEHIND_M, length_m + ROAD_VIEW_M + ROAD_BLOCK_M + _BEHIND_M, 1.0)
    swing = float(rng.choice([0.1, 0.5, 1.0], p=[0.3, 0.35, 0.35]))
    heading = np.zeros_like(s)
    motorway = kind == "motorway"
    waves = ((700, 1100, 0.0009), (1300, 2200, 0.0007)) if motorway else ((220, 380, 0.0033), (420, 800, 0.0025))
    for shortest, longest, bend in waves:
        wave_m, phase = float(rng.uniform(shortest, longest)), float(rng.uniform(0, 2 * np.pi))
        heading += swing * bend * wave_m / (2 * np.pi) * np.sin(2 * np.pi * s / wave_m + phase)
    return route_of(s, heading)


def highway_from_seed(seed: int) -> Highway:
    """The open road ``seed``."""
    rng = np.random.default_rng([seed, 62])
    motorway = bool(rng.uniform() < 0.68)
    lane_m = float(rng.uniform(3.45, 3.8) if motorway else rng.uniform(2.9, 3.6))
    median, divider = _median(rng) if motorway else (0.0, "none")
    carriageways = _carriageways(rng, lane_m, median, motorway=motorway, alone=divider in {"alone", "wall"})
    left = carriageways[1].edge if len(carriageways) == 2 else 0.0
    land = _land(rng)
    sides = tuple(
        _roadside(rng, sign, edge, motorway=motorway) for sign, edge in ((-1, left), (1, carriageways[0].edge))
    )
    concrete = bool(rng.uniform() < (0.25 if motorway else 0.05))
    tone = (
        float(rng.uniform(0.5, 0.72))
        if concrete
        else float(rng.choice([rng.uniform(0.2, 0.4), rng.uniform(0.4, 0.62)]))
    )
    warm = float(rng.uniform(-0.02, 0.05))
    return Highway(
        kind="motorway" if motorway else "country",
        carriageways=carriageways,
        sides=(sides[0], sides[1]),
        lane_m=lane_m,
        median=median,
        divider=divider,
        centre=str(rng.choice(["dashed", "solid", "double"], p=[0.5, 0.2, 0.3])),
        yellow=bool(rng.uniform() < 0.4),
        dash_m=((3.0, 12.0), (6.0, 18.0), (4.0, 12.0), (3.0, 9.0))[int(rng.integers(4))],
        asphalt="concrete" if concrete else str(rng.choice(["asphalt", "asphalt", "cracked"])),
        road_rgb=(tone * (1 + warm), tone, tone * (1.02 - warm)),
        shoulder_tone=float(rng.uniform(0.85, 1.2)),
        tracks=float(rng.uniform(0.03, 0.14)) if rng.uniform() < 0.6 else 0.0,
        traffic=float(rng.uniform(0.15, 1)),
        trucks=float(rng.uniform(0, 1)),
        posts=bool(rng.uniform() < 0.45),
        lamps=bool(rng.uniform() < (0.2 if motorway else 0.06)),
        masts=bool(rng.uniform() < 0.4),
        land=land,
    )


def _median(rng: np.random.Generator) -> tuple[float, str]:
    """Half its width, and what stands on it; "alone" and "wall" hide the other carriageway."""
    kind = str(rng.choice(["grass", "bushes", "rail", "concrete", "hedge", "alone", "wall"], p=_MEDIAN_ODDS))
    if kind in {"alone", "wall"}:
        return 0.0, kind
    low, high = {"grass": (1.5, 6), "bushes": (1.5, 4), "rail": (0.8, 3), "hedge": (0.9, 2)}.get(kind, (0.3, 0.6))
    return float(rng.uniform(low, high)), kind


_MEDIAN_ODDS: Final = (0.16, 0.1, 0.2, 0.22, 0.08, 0.14, 0.1)


def _carriageways(
    rng: np.random.Generator, lane_m: float, median: float, *, motorway: bool, alone: bool
) -> tuple[Carriageway, ...]:
    num_lanes = int(rng.choice([1, 2, 3, 4], p=[0.04, 0.42, 0.32, 0.22])) if motorway else 1
    if not motorway and rng.uniform() < 0.12:
        num_lanes = 2
    inside = float(rng.uniform(0.3, 1.8)) if motorway else 0.0
    outside = float(rng.uniform(1.2, 3.4)) if motorway else float(rng.uniform(0.15, 1.2))
    first = median + inside
    end = first + lane_m * num_lanes
    lines = (first, end)
    lanes = tuple(first + lane_m * (k + 0.5) for k in range(num_lanes))
    both = tuple(Carriageway(sign=sign, inner=median, lanes=lanes, lines=lines, edge=end + outside) for sign in (1, -1))
    return both[:1] if alone else both


def _relief(rng: np.random.Generator, height_m: float, bias: float) -> tuple[float, float, float, float, float, float]:
    phases = (float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(0, 2 * np.pi)))
    return height_m, bias, float(rng.uniform(500, 1100)), float(rng.uniform(160, 320)), *phases


def _roadside(rng: np.random.Generator, sign: int, edge: float, *, motorway: bool) -> Roadside:
    foot = edge + float(rng.uniform(1.2, 7.0 if motorway else 4.0))
    crest = foot + float(rng.uniform(6, 16))
    outer = crest + float(rng.uniform(40, 65))
    flat = rng.uniform() < 0.35
    bank_m = 0.0 if flat else float(rng.uniform(1.0, min(7.0, 0.5 * (crest - foot))))
    rise_m = float(rng.uniform(4, 22)) if rng.uniform() < 0.45 else 0.0
    fence = str(rng.choice(["none", "mesh", "posts", "planks", "noise", "hedge"], p=_FENCE_ODDS[motorway]))
    walk = 0.0 if motorway or rng.uniform() > 0.1 else float(rng.uniform(1.2, 2.0))
    return Roadside(
        sign=sign,
        edge=edge,
        foot=foot + walk,
        crest=crest + walk,
        outer=outer,
        bank=_relief(rng, bank_m, float(rng.uniform(0.1, 0.7))),
        rise=_relief(rng, rise_m, float(rng.uniform(-0.2, 0.5))),
        barrier=str(rng.choice(["none", "rail", "concrete"], p=_BARRIER_ODDS[motorway])),
        fence=fence,
        on_crest=bool(rng.uniform() < 0.6),
        bushes=float(rng.uniform(0, 1)) ** 2,
        trees=float(rng.uniform(0, 1)),
        woods=float(rng.choice([0.0, rng.uniform(0.2, 0.7), 1.0], p=[0.3, 0.45, 0.25])),
        alley=bool(not motorway and rng.uniform() < 0.25),
        walk=walk,
    )


_FENCE_ODDS: Final = {True: (0.36, 0.24, 0.12, 0.09, 0.12, 0.07), False: (0.45, 0.1, 0.24, 0.06, 0.01, 0.14)}
_BARRIER_ODDS: Final = {True: (0.55, 0.37, 0.08), False: (0.76, 0.22, 0.02)}

_GREEN: Final[Rgb] = (0.38, 0.46, 0.2)
_LUSH: Final[Rgb] = (0.3, 0.48, 0.17)
_DRY: Final[Rgb] = (0.72, 0.58, 0.36)
_STRAW: Final[Rgb] = (0.8, 0.7, 0.5)
_DULL: Final[Rgb] = (0.44, 0.41, 0.26)
_SOIL: Final[Rgb] = (0.4, 0.31, 0.22)
_RAPE: Final[Rgb] = (0.72, 0.68, 0.14)


def _mixed(one: Rgb, other: Rgb, part: float) -> Rgb:
    r, g, b = (a + (c - a) * part for a, c in zip(one, other, strict=True))
    return r, g, b


def _land(rng: np.random.Generator) -> Land:
    """Summer, dry summer, spring, autumn or winter."""
    season = int(rng.choice(5, p=[0.32, 0.28, 0.12, 0.12, 0.16]))
    mix = float(rng.uniform(0, 1))
    conifers = float(rng.uniform(0, 0.35)) if rng.uniform() < 0.82 else float(rng.uniform(0.4, 0.9))
    grass, fields = (
        (_mixed(_GREEN, _DRY, 0.5 * mix), (_GREEN, _LUSH, _STRAW, _SOIL)),
        (_mixed(_DRY, _STRAW, mix), (_DRY, _STRAW, _DULL, _SOIL)),
        (_mixed(_GREEN, _LUSH, mix), (_LUSH, _GREEN, _RAPE)),
        (_mixed(_GREEN, _DULL, mix), (_GREEN, _SOIL, _DULL, _STRAW)),
        (_mixed(_DULL, _GREEN, 0.6 * mix), (_DULL, _SOIL, _GREEN)),
    )[season]
    leaves: tuple[Rgb, Rgb] = (
        ((0.14, 0.24, 0.08), (0.34, 0.46, 0.18)),
        ((0.2, 0.25, 0.1), (0.4, 0.42, 0.2)),
        ((0.26, 0.4, 0.12), (0.46, 0.54, 0.2)),
        ((0.4, 0.3, 0.1), (0.62, 0.42, 0.14)),
        ((0.18, 0.22, 0.1), (0.38, 0.34, 0.2)),
    )[season]
    bare = (0.0, 0.03, 0.05, 0.15, 0.85)[season]
    return Land(grass_rgb=grass, fields_rgb=fields, leaf_rgb=leaves, bare=bare, conifers=conifers)
