"""What a drive needs of a place, for a town and for an open road: the driver's way, and who lays out what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal, get_args

import numpy as np

from cdga_train.data.streets.blocks import block_from_seed, skyline
from cdga_train.data.streets.builder import Block
from cdga_train.data.streets.camera import Camera
from cdga_train.data.streets.countryside import countryside_block, panorama
from cdga_train.data.streets.highway import ROAD_BLOCK_M, ROAD_VIEW_M, highway_from_seed, highway_route
from cdga_train.data.streets.highway_streams import highway_streams
from cdga_train.data.streets.models import Objects, objects_of
from cdga_train.data.streets.shapes import Floats, Shapes
from cdga_train.data.streets.streams import Stream, streams_of
from cdga_train.data.streets.town import BLOCK_M, VIEW_M, Gap, Route, Season, Street, route_from_seed, street_from_seed

__all__ = ["PLACES", "Course", "Place", "course_of"]

Place = Literal["town", "road", "winter"]
PLACES: Final[tuple[Place, ...]] = get_args(Place)
_FASTEST_IN_TOWN_MPS: Final = 12.0


@dataclass(frozen=True, kw_only=True)
class Course:
    """One place and the driver's way through it.

    Attributes:
        seed: Number of the place.
        route: Centre line.
        start_s, speed_mps: Where the driver starts, metres along the route, and how fast he goes.
        d, height_m: The camera's distance from the centre line and height above the road.
        pitch_rad, yaw_rad, fov_rad: See `Camera`; relative to the route.
        block_m: Length of a block.
        view_m: How far blocks are laid out.
        streams: Rows of like objects.
        block_of: Lays out a block by its number.
        backdrop: What ends the view at s, for a camera there.
        at_gaps: What happens where side streets open, for a driver at s.
    """

    seed: int
    route: Route
    start_s: float
    speed_mps: float
    d: float
    height_m: float
    pitch_rad: float
    yaw_rad: float
    fov_rad: float
    block_m: float
    view_m: float
    streams: Sequence[Stream]
    block_of: Callable[[int], Block]
    backdrop: Callable[[float, Camera], Shapes]
    at_gaps: Callable[[Sequence[Gap], float], list[Objects]]


def course_of(place: Place, seed: int, length_s: float) -> Course:
    """The place ``seed`` of its kind, laid out for a drive of ``length_s`` seconds."""
    match place:
        case "town":
            return _town(seed, length_s, "summer")
        case "winter":
            return _town(seed, length_s, "winter")
        case "road":
            return _open_road(seed, length_s)


def _town(seed: int, length_s: float, season: Season) -> Course:
    street = street_from_seed(seed, season)
    rng = np.random.default_rng([seed, 8])
    start_s, speed_mps = float(rng.uniform(0, BLOCK_M)), float(rng.uniform(5, 12))
    route = route_from_seed(seed, start_s + _FASTEST_IN_TOWN_MPS * length_s)
    lanes = street.sides[1].lanes
    lane = lanes[int(rng.integers(len(lanes)))]
    return Course(
        seed=seed,
        route=route,
        start_s=start_s,
        speed_mps=speed_mps,
        d=lane + float(rng.normal(0, 0.2)),
        height_m=float(rng.uniform(1.2, 1.65)),
        pitch_rad=float(rng.normal(0.015, 0.02)),
        yaw_rad=float(rng.normal(0, 0.035)),
        fov_rad=float(np.deg2rad(rng.uniform(50, 78))),
        block_m=BLOCK_M,
        view_m=VIEW_M,
        streams=streams_of(street, seed, lane=lane, driver_mps=speed_mps, driver_s=start_s),
        block_of=lambda number: block_from_seed(seed, number, street, route),
        backdrop=lambda s, _: skyline(seed, route, s + VIEW_M - 25, season),
        at_gaps=partial(_at_gaps, seed, street),
    )


def _open_road(seed: int, length_s: float) -> Course:
    highway = highway_from_seed(seed)
    rng = np.random.default_rng([seed, 67])
    start_s = float(rng.uniform(0, 2 * ROAD_BLOCK_M))
    speed_mps = float(rng.uniform(22, 33) if highway.kind == "motorway" else rng.uniform(14, 26))
    route = highway_route(seed, highway.kind, start_s + speed_mps * length_s)
    lanes = highway.carriageways[0].lanes
    lane = lanes[int(rng.integers(len(lanes)))]
    return Course(
        seed=seed,
        route=route,
        start_s=start_s,
        speed_mps=speed_mps,
        d=lane + float(rng.normal(0, 0.25)),
        height_m=float(rng.uniform(1.15, 1.7)) if rng.uniform() < 0.88 else float(rng.uniform(1.9, 2.6)),
        pitch_rad=float(rng.normal(0.0, 0.035)),
        yaw_rad=float(rng.normal(0, 0.03)),
        fov_rad=float(np.deg2rad(rng.uniform(42, 80))),
        block_m=ROAD_BLOCK_M,
        view_m=ROAD_VIEW_M,
        streams=highway_streams(highway, seed, lane=lane, driver_mps=speed_mps, driver_s=start_s),
        block_of=lambda number: countryside_block(seed, number, highway, route),
        backdrop=lambda _, camera: panorama(seed, highway, camera),
        at_gaps=lambda _gaps, _s: [],
    )


def _at_gaps(seed: int, street: Street, gaps: Sequence[Gap], s: float) -> list[Objects]:
    """Traffic lights at the side streets, people who cross the road, and a car that waits to turn in."""
    found: list[tuple[str, float, float, float, Floats]] = []
    for gap in gaps:
        rng = np.random.default_rng([seed, 9, int(gap.start * 100) + 100000])
        left, right = street.sides
        if gap.lights:
            name = ("light1", "light0")[int(rng.integers(2))] + ("r", "g")[int(rng.integers(2))]
            white = np.ones((3, 3), np.float32)
            found.append((name, gap.start - 1.0, right.kerb + 0.6, 0.0, white))
            found.append(("light0" + name[-1], gap.start - 1.0, -left.kerb - 0.6, 0.0, white))
        colours = rng.uniform(0.1, 0.6, (4, 3, 3)).astype(np.float32)
        if gap.zebra and rng.uniform() < 0.6 * street.people + 0.2:
            found += _crossing(street, gap, s, rng, colours)
        for sign in gap.signs:
            if rng.uniform() < 0.5:
                d = sign * (street.sides[(sign + 1) // 2].kerb + float(rng.uniform(4, 9)))
                at = gap.start + 3.6 if sign > 0 else gap.end - 3.6
                found.append(("sedan", at, d, -sign * np.pi / 2, colours[3]))
    return [objects_of([name], s=at, d=d, turn_rad=turn, colours=colours[None]) for name, at, d, turn, colours in found]


def _crossing(
    street: Street, gap: Gap, s: float, rng: np.random.Generator, colours: Floats
) -> list[tuple[str, float, float, float, Floats]]:
    """People on the zebra crossing: how far they are follows from how near the driver is, so all get across."""
    left, right = -street.sides[0].kerb - 0.8, street.sides[1].kerb + 0.8
    result = []
    for number in range(int(rng.integers(1, 4))):
        at = gap.start - 2.9 + float(rng.uniform(-1, 1))
        late = float(rng.uniform(0, 25))
        part = float(np.clip(1 - (at - s - 13 - late) / 35, 0, 1))
        to_right = rng.uniform() < 0.5
        d = left + (right - left) * (part if to_right else 1 - part)
        phase = int(part * 24) % 8 if 0 < part < 1 else 8
        skin = colours[number].copy()
        skin[2] = (0.8, 0.6, 0.48)
        result.append((f"person{phase}", at, d, np.pi / 2 if to_right else -np.pi / 2, skin))
    return result
