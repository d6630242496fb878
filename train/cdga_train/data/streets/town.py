"""A town along one route, laid out from a seed: the street's cross section, blocks of houses, and everything on it.

Route coordinates: s metres along the route, d metres to the right of its centre line. Everything is a function of
(seed, s, time): blocks of `BLOCK_M` metres hold what stands still and is large, streams hold rows of like objects
(trees, lamps, parked or moving cars, people), each with an identity of its own that lasts for the whole clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from cdga_train.data.streets.shapes import Floats, Point

__all__ = [
    "BLOCK_M",
    "VIEW_M",
    "Gap",
    "Route",
    "Season",
    "Side",
    "Street",
    "blocked",
    "gap_of_block",
    "route_from_seed",
    "route_of",
    "street_from_seed",
]

Season = Literal["summer", "winter"]
BLOCK_M: Final = 54.0
VIEW_M: Final = 190.0
_STEP_M: Final = 1.0
_BEHIND_M: Final = 60.0


@dataclass(frozen=True, kw_only=True)
class Route:
    """The centre line as samples every metre.

    Attributes:
        s: (n,) metres along the route.
        x, y: (n,) position, metres.
        heading_rad: (n,) clockwise from the y axis.
    """

    s: npt.NDArray[np.float64]
    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.float64]
    heading_rad: npt.NDArray[np.float64]

    def heading_at(self, s: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Heading at ``s``."""
        return np.asarray(np.interp(np.asarray(s, np.float64), self.s, self.heading_rad))

    def at(self, s: npt.ArrayLike, d: npt.ArrayLike, z: npt.ArrayLike = 0.0) -> Floats:
        """(..., 3) world points of route coordinates."""
        heading = self.heading_at(s)
        s = np.asarray(s, np.float64)
        x = np.interp(s, self.s, self.x) + np.asarray(d) * np.cos(heading)
        y = np.interp(s, self.s, self.y) - np.asarray(d) * np.sin(heading)
        return np.stack(np.broadcast_arrays(x, y, np.asarray(z, np.float64)), axis=-1).astype(np.float32)

    def bend(self, points_sdz: Floats) -> Floats:
        """(..., 3) route coordinates (s, d, z) as world points."""
        return self.at(points_sdz[..., 0], points_sdz[..., 1], points_sdz[..., 2])

    def point(self, s: float, d: float, z: float = 0.0) -> Point:
        """One world point."""
        x, y, up = self.at(s, d, z).tolist()
        return x, y, up


def route_from_seed(seed: int, length_m: float) -> Route:
    """A gently winding centre line; two sines keep curve radii above about 90 m."""
    rng = np.random.default_rng([seed, 1])
    s = np.arange(-_BEHIND_M, length_m + VIEW_M + _BEHIND_M, _STEP_M)
    swing = float(rng.choice([0.0, 0.25, 1.0], p=[0.3, 0.35, 0.35]))
    heading = np.zeros_like(s)
    for wave_m, bend in ((float(rng.uniform(150, 260)), 0.0032), (float(rng.uniform(320, 600)), 0.0025)):
        phase = float(rng.uniform(0, 2 * np.pi))
        heading += swing * bend * wave_m / (2 * np.pi) * np.sin(2 * np.pi * s / wave_m + phase) * 2
    return route_of(s, heading)


def route_of(s: npt.NDArray[np.float64], heading_rad: npt.NDArray[np.float64]) -> Route:
    """The route with this heading at every metre of ``s``, moved and turned so that s = 0 looks along the y axis."""
    heading = heading_rad - np.interp(0.0, s, heading_rad)
    x, y = np.cumsum(np.sin(heading)) * _STEP_M, np.cumsum(np.cos(heading)) * _STEP_M
    return Route(s=s, x=x - np.interp(0, s, x), y=y - np.interp(0, s, y), heading_rad=heading)


@dataclass(frozen=True, kw_only=True)
class Side:
    """One side of the street, from the centre line outwards (metres).

    Attributes:
        sign: 1 right of the driver, -1 left.
        kerb: Where the road ends.
        lanes: Lane centres, from the inside.
        parking: Centre of the parking lane, or None.
        verge: Width of the grass strip behind the kerb, 0 for none.
        walk: Width of the pavement.
        line: Where plots begin: kerb + verge + walk.
    """

    sign: int
    kerb: float
    lanes: tuple[float, ...]
    parking: float | None
    verge: float
    walk: float

    @property
    def line(self) -> float:
        """Where the pavement ends and plots begin."""
        return self.kerb + 0.18 + self.verge + self.walk


@dataclass(frozen=True, kw_only=True)
class Street:
    """The character of one town.

    Attributes:
        sides: Left and right.
        lane_m: Lane width.
        median: Half width of the grass strip in the middle, 0 for none.
        zone: "city", "suburb" or "avenue".
        trees, people, traffic, parked, cycles: Densities, 0 to 1.
        tram: Trams instead of buses in the middle lanes.
        paving, asphalt: Texture names.
        road_tone, walk_rgb: Colours.
        season: In winter broad trees are bare.
    """

    sides: tuple[Side, Side]
    lane_m: float
    median: float
    zone: str
    trees: float
    people: float
    traffic: float
    parked: float
    cycles: float
    tram: bool
    paving: str
    asphalt: str
    road_tone: float
    walk_rgb: tuple[float, float, float]
    season: Season = "summer"


def _side(rng: np.random.Generator, sign: int, lane_m: float, num_lanes: int, inner: float, zone: str) -> Side:
    lanes = tuple(inner + lane_m * (k + 0.5) for k in range(num_lanes))
    kerb = inner + lane_m * num_lanes
    has_parking = rng.uniform() < 0.65
    parking = kerb + 1.1 if has_parking else None
    kerb += 2.2 if has_parking else 0.35
    verge_odds = {"city": 0.15, "suburb": 0.6, "avenue": 0.7}[zone]
    verge = float(rng.uniform(0.9, 2.4)) if rng.uniform() < verge_odds else 0.0
    walk = float(rng.uniform(1.8, 4.6 if zone == "city" else 3.0))
    return Side(sign=sign, kerb=kerb, lanes=lanes, parking=parking, verge=verge, walk=walk)


def street_from_seed(seed: int, season: Season = "summer") -> Street:
    """The cross section and the densities of the town ``seed``.

    In winter the pavements differ too: they are often of asphalt, like the road.
    """
    street = _street_from_seed(seed)
    if season == "summer":
        return street
    rng = np.random.default_rng([seed, 80])
    grey, warm = float(rng.uniform(0.3, 0.6)), float(rng.uniform(-0.03, 0.04))
    return replace(
        street,
        paving=str(rng.choice(["asphalt", "cracked", "slabs", "concrete"], p=[0.3, 0.2, 0.3, 0.2])),
        walk_rgb=(grey + warm, grey + warm * 0.4, grey - warm * 0.6),
        season=season,
    )


def _street_from_seed(seed: int) -> Street:
    rng = np.random.default_rng([seed, 2])
    zone = str(rng.choice(["city", "suburb", "avenue"], p=[0.5, 0.28, 0.22]))
    lane_m = float(rng.uniform(3.0, 3.5))
    num_lanes = 2 if rng.uniform() < {"city": 0.25, "suburb": 0.05, "avenue": 0.6}[zone] else 1
    median = float(rng.uniform(0.6, 2.2)) if zone == "avenue" and rng.uniform() < 0.5 else 0.0
    sides = tuple(_side(rng, sign, lane_m, num_lanes, median, zone) for sign in (-1, 1))
    grey = float(rng.uniform(0.44, 0.62))
    warm = float(rng.uniform(-0.03, 0.05))
    return Street(
        sides=(sides[0], sides[1]),
        lane_m=lane_m,
        median=median,
        zone=zone,
        trees=float(rng.uniform(0.1, 1)) * {"city": 0.8, "suburb": 1.0, "avenue": 1.3}[zone],
        people=float(rng.uniform(0.1, 1)) * {"city": 1.0, "suburb": 0.5, "avenue": 0.7}[zone],
        traffic=float(rng.uniform(0.1, 1)),
        parked=float(rng.uniform(0.25, 0.9)),
        cycles=float(rng.uniform(0.1, 1)),
        tram=bool(rng.uniform() < 0.22),
        paving=str(rng.choice(["slabs", "cobbles", "concrete"])),
        asphalt=str(rng.choice(["asphalt", "asphalt", "cracked"])),
        road_tone=float(rng.uniform(0.3, 0.46)),
        walk_rgb=(grey + warm, grey + warm * 0.4, grey - warm * 0.6),
    )


@dataclass(frozen=True, kw_only=True)
class Gap:
    """Where a side street opens, from ``start`` to ``end`` along the route, on the sides in ``signs``."""

    start: float
    end: float
    signs: tuple[int, ...]
    zebra: bool
    lights: bool


def gap_of_block(seed: int, block: int) -> Gap | None:
    """The side street at the beginning of block number ``block``, if it has one."""
    rng = np.random.default_rng([seed, 3, block + 1000])
    if rng.uniform() > 0.5:
        return None
    signs = ((-1, 1), (1,), (-1,))[int(rng.choice(3, p=[0.5, 0.25, 0.25]))]
    start = block * BLOCK_M + float(rng.uniform(0, 6))
    width = float(rng.uniform(9.5, 15))
    zebra = bool(rng.uniform() < 0.65)
    lights = zebra and bool(rng.uniform() < 0.65)
    return Gap(start=start, end=start + width, signs=signs, zebra=zebra, lights=lights)


def blocked(gaps: Sequence[Gap], s: npt.NDArray[np.float64], margin_m: float) -> npt.NDArray[np.bool_]:
    """Which positions lie in a side street or within ``margin_m`` of one."""
    inside = np.zeros(s.shape, np.bool_)
    for gap in gaps:
        inside |= (s > gap.start - margin_m) & (s < gap.end + margin_m)
    return inside
