"""What stands still and is large in a town: ground, road marks, houses, walls, fences, hedges, and the end of the view.

Blocks are drawn up in route coordinates (s, d, z) and bent onto the route all at once when they are complete.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from cdga_train.data.streets.builder import Block, BlockBuilder, leaf_rgb
from cdga_train.data.streets.models import (
    BUILDING,
    FENCE,
    ROAD,
    SIDEWALK,
    TERRAIN,
    VEGETATION,
    WALL,
    Objects,
    objects_of,
)
from cdga_train.data.streets.shapes import (
    LAYER_GROUND,
    LAYER_MARK,
    Point,
    Rgb,
    ShapeList,
    Shapes,
)
from cdga_train.data.streets.textures import TILE
from cdga_train.data.streets.town import BLOCK_M, Gap, Route, Season, Side, Street, gap_of_block

__all__ = ["block_from_seed", "skyline"]

_GRASS: Final[Rgb] = (0.33, 0.40, 0.2)
_STRIP_M: Final = 9.0
_SIDE_STREET_M: Final = 60.0
_BAY_M: Final = 6.0
_HOUSE_DEPTH_M: Final = 12.0
_WALLS: Final[tuple[Rgb, ...]] = (
    (0.78, 0.72, 0.60),
    (0.82, 0.79, 0.73),
    (0.62, 0.34, 0.26),
    (0.70, 0.62, 0.52),
    (0.57, 0.55, 0.53),
    (0.80, 0.66, 0.47),
    (0.72, 0.74, 0.72),
    (0.52, 0.28, 0.22),
    (0.64, 0.70, 0.74),
    (0.86, 0.84, 0.80),
    (0.45, 0.43, 0.42),
    (0.74, 0.55, 0.48),
)
_ROOFS: Final[tuple[Rgb, ...]] = ((0.45, 0.2, 0.15), (0.5, 0.27, 0.19), (0.26, 0.26, 0.28), (0.35, 0.3, 0.27))
_LEAFY: Final = frozenset(f"tree{k}" for k in range(6))
_WALL_TILES: Final = {"windows0": "plaster", "windows1": "brick", "windows2": "concrete"}


_BROWN: Final[Rgb] = (0.36, 0.31, 0.27)  # woods in winter


class _Builder(BlockBuilder):
    """Collects one block of a town."""

    def __init__(self, seed: int, block: int, street: Street) -> None:
        super().__init__(np.random.default_rng([seed, 4, block + 1000]))
        self.street = street
        self.plants: list[tuple[str, float, float, float, float, Rgb]] = []

    def plant(self, name: str, s: float, d: float, scale: float, rgb: Rgb, *, line: float | None = None) -> None:
        """A tree or bush; with ``line``, it stands behind a wall there and is ordered before it."""
        if self.street.season == "winter" and name in _LEAFY:
            name = name.replace("tree", "winter")
        self.plants.append((name, s, d, np.nan if line is None else line, scale, rgb))


def block_from_seed(seed: int, block: int, street: Street, route: Route) -> Block:
    """Block number ``block``: it reaches from block * BLOCK_M to (block + 1) * BLOCK_M along the route."""
    builder = _Builder(seed, block, street)
    gap = gap_of_block(seed, block)
    start, end = block * BLOCK_M, (block + 1) * BLOCK_M
    for side in street.sides:
        opened = gap is not None and side.sign in gap.signs
        _ground(builder, side, start, end, gap if opened else None)
        if gap is not None and opened:
            _plots(builder, side, start, gap.start)
            _plots(builder, side, gap.end, end)
        else:
            _plots(builder, side, start, end)
    _marks(builder, start, end, gap)
    return Block(
        shapes=builder.parts.build(route.bend),
        plants=_objects(builder.plants),
        walls=route.bend(np.array(builder.walls, np.float32).reshape(-1, 2, 3)),
        wall_heights=np.array(builder.wall_heights, np.float32),
        gap=gap,
    )


def _objects(plants: Sequence[tuple[str, float, float, float, float, Rgb]]) -> Objects:
    names = [p[0] for p in plants]
    numbers = np.array([p[1:5] for p in plants], np.float32).reshape(-1, 4)
    colours = np.array([(p[5],) * 3 for p in plants], np.float32).reshape(-1, 3, 3)
    s, d, behind_d, scale = numbers.T
    return objects_of(names, s=s, d=d, behind_d=behind_d, scale=scale, colours=colours)


def _ground(b: _Builder, side: Side, start: float, end: float, gap: Gap | None) -> None:
    """Road, kerb, verge, pavement and what lies behind, in strips short enough to follow the curve."""
    street, sign = b.street, side.sign
    tone = street.road_tone
    road: Rgb = (tone, tone, tone * 1.03)
    cuts = sorted({*np.linspace(start, end, round((end - start) / _STRIP_M) + 1).tolist()})
    for s in pairwise(cuts):
        b.strip(sign, (street.median, side.kerb), s, ROAD, road, street.asphalt)
        if street.median:
            b.strip(sign, (0.0, street.median - 0.15), s, TERRAIN, _GRASS, "grass")
            b.strip(sign, (street.median - 0.15, street.median), s, SIDEWALK, (0.62, 0.62, 0.6), "concrete")
        b.strip(sign, (side.kerb, side.kerb + 0.18), s, SIDEWALK, (0.66, 0.65, 0.63), "concrete", tile_m=2)
        inner = side.kerb + 0.18
        if side.verge:
            b.strip(sign, (inner, inner + side.verge), s, TERRAIN, _GRASS, "grass")
        b.strip(sign, (inner + side.verge, side.line), s, SIDEWALK, street.walk_rgb, street.paving)
        b.strip(sign, (side.line, side.line + 45), s, TERRAIN, _GRASS, "grass", tile_m=8)
    if gap is not None:
        outer = side.line + _SIDE_STREET_M
        walk = 2.0
        b.strip(
            sign, (side.kerb, outer), (gap.start + walk, gap.end - walk), ROAD, road, street.asphalt, layer=LAYER_MARK
        )
        for s in ((gap.start, gap.start + walk), (gap.end - walk, gap.end)):
            b.strip(sign, (side.kerb + 0.18, outer), s, SIDEWALK, street.walk_rgb, street.paving, layer=LAYER_MARK)
            kerb_s = (gap.start + walk - 0.18, gap.start + walk) if s[0] == gap.start else (s[0], s[0] + 0.18)
            b.strip(sign, (side.kerb, outer), kerb_s, SIDEWALK, (0.66, 0.65, 0.63), "concrete", layer=LAYER_MARK)


def _marks(b: _Builder, start: float, end: float, gap: Gap | None) -> None:
    """Lane lines, edge lines, a zebra crossing and its stop lines; all are road."""
    street = b.street
    paint: Rgb = (0.84, 0.84, 0.8)
    clear = (gap.start - 6.5, gap.end + 1) if gap is not None else (0.0, 0.0)

    def line(side: int, d: float, s0: float, s1: float, width: float = 0.13) -> None:
        if s1 <= clear[0] or s0 >= clear[1]:
            b.strip(side, (d - width / 2, d + width / 2), (s0, s1), ROAD, paint, "plain", layer=LAYER_MARK)

    solid = b.rng.uniform() < 0.35
    for s0 in np.arange(start, end - 0.1, 6.0).tolist():
        if street.median == 0:
            line(1, 0.0, s0, s0 + (6.0 if solid else 3.0))
        for side in street.sides:
            for inner in side.lanes[1:]:
                line(side.sign, inner - street.lane_m / 2, s0, s0 + 3.0)
            if side.parking is not None:
                line(side.sign, side.lanes[-1] + street.lane_m / 2, s0, s0 + 6.0, 0.1)
    if gap is not None and gap.zebra:
        left, right = street.sides[0].kerb, street.sides[1].kerb
        for d in np.arange(-left + 0.4, right - 0.4, 1.0).tolist():
            if d + 0.5 < -street.median or d > street.median:
                b.strip(1, (d, d + 0.5), (gap.start - 4.5, gap.start - 1.2), ROAD, paint, "plain", layer=LAYER_MARK)
        stop = (street.median + 0.1, street.sides[1].kerb - 0.2)
        b.strip(1, stop, (gap.start - 6.2, gap.start - 5.8), ROAD, paint, "plain", layer=LAYER_MARK)


def _plots(b: _Builder, side: Side, start: float, end: float) -> None:
    """Houses, gardens and open pieces from ``start`` to ``end``."""
    odds = {"city": (0.82, 0.05, 0.08, 0.05), "suburb": (0.1, 0.52, 0.28, 0.1), "avenue": (0.44, 0.18, 0.28, 0.1)}
    s = start
    while end - s > 4:
        width = min(float(b.rng.uniform(9, 20)), end - s)
        width = end - s if end - s - width < 6 else width
        kind = int(b.rng.choice(4, p=odds[b.street.zone]))
        (_block_house, _garden_house, _park, _yard)[kind](b, side, s, s + width)
        s += width


def _bays(start: float, end: float) -> list[tuple[float, float]]:
    cuts = np.linspace(start, end, max(1, round((end - start) / _BAY_M)) + 1).tolist()
    return list(pairwise(cuts))


def _pick(rng: np.random.Generator, choices: Sequence[Rgb]) -> Rgb:
    rgb = choices[int(rng.integers(len(choices)))]
    factor = float(rng.uniform(0.82, 1.1))
    return rgb[0] * factor, rgb[1] * factor, rgb[2] * factor


def _block_house(b: _Builder, side: Side, start: float, end: float) -> None:
    """A town house of two to six storeys that stands right at the pavement."""
    floors = int(b.rng.integers(2, 6 if b.street.zone == "city" else 4))
    _house(b, side, (start, end), side.line, floors=floors, ground_m=float(b.rng.uniform(3.4, 4.2)), line=side.line)


@dataclass(frozen=True, kw_only=True)
class _Facade:
    """What all bays of one house share; ``ground_m``, ``top_m`` and ``ridge_m`` are heights."""

    rgb: Rgb
    ground_rgb: Rgb
    roof_rgb: Rgb
    windows: str
    ground: str
    floors: int
    columns: int
    first_window: tuple[float, float]
    ground_m: float
    top_m: float
    ridge_m: float


def _facade(b: _Builder, bay_m: float, floors: int, ground_m: float) -> _Facade:
    rng = b.rng
    rgb = _pick(rng, _WALLS)
    ground = "shop" if b.street.zone != "suburb" and rng.uniform() < 0.55 else "door"
    top = ground_m + floors * float(rng.uniform(2.9, 3.5))
    return _Facade(
        rgb=rgb,
        ground_rgb=_pick(rng, _WALLS) if rng.uniform() < 0.4 else rgb,
        roof_rgb=_pick(rng, _ROOFS),
        windows=f"windows{int(rng.integers(6))}",
        ground="arcade" if rng.uniform() < 0.1 else ground,
        floors=floors,
        columns=max(1, round(bay_m / float(rng.uniform(2.2, 3.4)))),
        first_window=(float(rng.integers(4)) / 4, float(rng.integers(4)) / 4),
        ground_m=ground_m,
        top_m=top,
        ridge_m=top + (float(rng.uniform(2.5, 4.5)) if rng.uniform() < 0.5 else 0.0),
    )


def _house(
    b: _Builder, side: Side, s: tuple[float, float], d: float, *, floors: int, ground_m: float, line: float
) -> None:
    bays = _bays(*s)
    facade = _facade(b, (s[1] - s[0]) / len(bays), floors, ground_m)
    for number, bay in enumerate(bays):
        _bay(b, side.sign, bay, d, facade, number, line)
        b.shadow_wall(side.sign, bay, d, (facade.top_m + facade.ridge_m) / 2)
    rgb = facade.rgb
    b.across(
        side.sign,
        s[0],
        (d, d + _HOUSE_DEPTH_M),
        (0, facade.top_m),
        BUILDING,
        (rgb[0] * 0.9, rgb[1] * 0.9, rgb[2] * 0.9),
        _WALL_TILES.get(facade.windows, "plaster"),
        repeat=(3, 3),
        gable=facade.ridge_m - facade.top_m,
        order=4,
        line=line,
    )
    if b.rng.uniform() < 0.5:
        _side_windows(b, side.sign, s[0], d, (ground_m, facade.top_m), line)


def _bay(b: _Builder, sign: int, s: tuple[float, float], d: float, facade: _Facade, number: int, line: float) -> None:
    """Ground floor, storeys, roof and ledges of one piece of a facade."""
    ground, top, rgb = facade.ground_m, facade.top_m, facade.rgb
    ledge: Rgb = (rgb[0] * 1.12, rgb[1] * 1.12, rgb[2] * 1.12)
    door = (0.5 * (number % 2), 0.0)
    window = ((facade.first_window[0] + number * facade.columns / 4) % 1, facade.first_window[1])
    repeat = (facade.columns / 4, facade.floors / 4)
    b.upright(
        sign, s, d, (0, ground), BUILDING, facade.ground_rgb, facade.ground, repeat=(0.5, 1), offset=door, line=line
    )
    b.upright(
        sign, s, d, (ground, top), BUILDING, rgb, facade.windows, repeat=repeat, offset=window, order=1, line=line
    )
    if facade.ridge_m > top:
        _roof(b, sign, s, d, (top, facade.ridge_m), facade.roof_rgb, line)
    for out, low, high in ((0.25, top - 0.3, top + 0.25), (0.1, ground - 0.25, ground)):
        b.upright(sign, s, d - out, (low, high), BUILDING, ledge, "plain", repeat=(1, 1), order=3, line=line)


def _roof(
    b: _Builder, sign: int, s: tuple[float, float], d: float, z: tuple[float, float], rgb: Rgb, line: float
) -> None:
    ends = (s[1], s[0]) if sign > 0 else (s[0], s[1])
    corners = [
        (ends[0], d * sign, z[0]),
        (ends[1], d * sign, z[0]),
        (ends[1], (d + 6) * sign, z[1]),
        (ends[0], (d + 6) * sign, z[1]),
    ]
    b.surface(corners, rgb, BUILDING, "roof", repeat=(2, 2), order=2, anchor=(s[1], line * sign, 0.0))


def _side_windows(b: _Builder, sign: int, s: float, d: float, z: tuple[float, float], line: float) -> None:
    """A column of windows on the wall that looks back at the driver."""
    floors = max(1, round((z[1] - z[0]) / 3.2))
    for floor in range(floors):
        low = z[0] + floor * (z[1] - z[0]) / floors + 0.8
        for at in (2.5, 7.0):
            b.across(
                sign,
                s - 0.03,
                (d + at, d + at + 1.2),
                (low, low + 1.4),
                BUILDING,
                (0.2, 0.23, 0.27),
                "face_shade",
                repeat=(1, 1),
                order=5,
                line=line,
            )


def _garden_house(b: _Builder, side: Side, start: float, end: float) -> None:
    """A house behind a front garden with a hedge, fence or wall at the pavement."""
    setback = float(b.rng.uniform(3, 7))
    s = (start + 1.2, end - 1.2)
    _house(b, side, s, side.line + setback, floors=int(b.rng.integers(1, 3)), ground_m=2.9, line=side.line)
    _front(b, side, (start, end))
    rgb = leaf_rgb(b.rng)
    for _ in range(int(b.rng.integers(0, 4))):
        at = float(b.rng.uniform(start + 1, end - 1))
        d = (side.line + float(b.rng.uniform(0.9, 2.5))) * side.sign
        if b.rng.uniform() < 0.35:
            b.plant(f"tree{int(b.rng.integers(8))}", at, d, float(b.rng.uniform(0.5, 0.8)), leaf_rgb(b.rng))
        else:
            b.plant(
                f"bush{int(b.rng.integers(3))}", at, d, float(b.rng.uniform(0.8, 1.3)), rgb, line=side.line * side.sign
            )


def _front(b: _Builder, side: Side, s: tuple[float, float]) -> None:
    """What separates a garden from the pavement: hedge, fence, wall or nothing."""
    kind = int(b.rng.choice(4, p=[0.3, 0.3, 0.22, 0.18]))
    if kind == 3:
        return
    train_id = (VEGETATION, FENCE, WALL)[kind]
    low, high = ((0.8, 1.9), (0.9, 1.6), (0.6, 2.0))[kind]
    height = float(b.rng.uniform(low, high))
    rgb: Rgb = (
        leaf_rgb(b.rng),
        _pick(b.rng, ((0.45, 0.35, 0.26), (0.7, 0.7, 0.68), (0.25, 0.28, 0.27))),
        _pick(b.rng, _WALLS),
    )[kind]
    tile = (
        "leaves",
        ("pickets", "bars", "planks")[int(b.rng.integers(3))],
        ("brick", "stone", "plaster")[int(b.rng.integers(3))],
    )[kind]
    for bay in _bays(*s):
        length = bay[1] - bay[0]
        repeat = (round(length / 2), 1.0) if kind == 1 else (length / 2, height / 2)
        b.upright(
            side.sign, bay, side.line + 0.1, (0, height), train_id, rgb, tile, repeat=repeat, order=8, line=side.line
        )
        if kind != 1:
            _cap(b, side, bay, height, train_id, rgb)
        b.shadow_wall(side.sign, bay, side.line + 0.1, height)
    b.across(
        side.sign,
        s[0],
        (side.line + 0.1, side.line + 0.6),
        (0, height),
        train_id,
        rgb,
        tile,
        repeat=(0.3, 0.6),
        order=7,
        line=side.line,
    )


def _cap(b: _Builder, side: Side, bay: tuple[float, float], height: float, train_id: int, rgb: Rgb) -> None:
    light: Rgb = (min(1, rgb[0] * 1.12), min(1, rgb[1] * 1.12), min(1, rgb[2] * 1.12))
    top = (height - 0.12, height + 0.02) if train_id == WALL else (height, height + 0.06)
    b.upright(
        side.sign,
        bay,
        side.line + 0.05,
        top,
        train_id,
        light,
        "leaves" if train_id == VEGETATION else "plain",
        repeat=(2, 0.2),
        order=9,
        line=side.line,
    )


def _park(b: _Builder, side: Side, start: float, end: float) -> None:
    """Grass with trees and bushes, sometimes behind a fence."""
    if b.rng.uniform() < 0.6:
        _front(b, side, (start, end))
    rows = ((8.0, 14.0), (15.0, 24.0)) if b.rng.uniform() < 0.7 else ((3.0, 9.0),)
    for near, far in reversed(rows):
        for s in np.arange(end - 1, start, -float(b.rng.uniform(3.0, 5.5))).tolist():
            d = side.line + float(b.rng.uniform(near, far))
            scale = float(b.rng.uniform(0.8, 1.3))
            name = f"tree{int(b.rng.integers(8))}" if b.rng.uniform() < 0.8 else f"bush{int(b.rng.integers(3))}"
            b.plant(name, float(s), d * side.sign, scale, leaf_rgb(b.rng), line=side.line * side.sign)


def _yard(b: _Builder, side: Side, start: float, end: float) -> None:
    """A long wall or fence with trees behind it."""
    tall_wall = b.rng.uniform() < 0.6
    height = float(b.rng.uniform(1.8, 3.2))
    rgb = _pick(b.rng, _WALLS) if tall_wall else (0.4, 0.42, 0.4)
    tile = ("brick", "stone", "concrete")[int(b.rng.integers(3))] if tall_wall else "bars"
    train_id = WALL if tall_wall else FENCE
    for bay in _bays(start, end):
        repeat = ((bay[1] - bay[0]) / 2.5, height / 2.5 if tall_wall else 1.0)
        b.upright(
            side.sign, bay, side.line + 0.05, (0, height), train_id, rgb, tile, repeat=repeat, order=8, line=side.line
        )
        b.shadow_wall(side.sign, bay, side.line + 0.05, height)
    b.across(
        side.sign,
        start,
        (side.line, side.line + 12),
        (0, height),
        train_id,
        rgb,
        tile,
        repeat=(5, 1),
        order=7,
        line=side.line,
    )
    for s in np.arange(start + 2, end, 4.5).tolist():
        d = (side.line + float(b.rng.uniform(3, 9))) * side.sign
        b.plant(
            f"tree{int(b.rng.integers(8))}",
            float(s),
            d,
            float(b.rng.uniform(0.8, 1.2)),
            leaf_rgb(b.rng),
            line=side.line * side.sign,
        )


def skyline(seed: int, route: Route, s: float, season: Season = "summer") -> Shapes:
    """Far houses and woods across the view at ``s``, so that the street does not end in nothing."""
    rng = np.random.default_rng([seed, 5])
    parts = ShapeList(BUILDING)
    heading = float(route.heading_at(s))
    x0, y0, _ = route.point(s, 0.0)
    right, forward = (np.cos(heading), -np.sin(heading)), (np.sin(heading), np.cos(heading))

    def at(d: float, ahead: float, z: float) -> Point:
        return (
            x0 + d * float(right[0]) + ahead * float(forward[0]),
            y0 + d * float(right[1]) + ahead * float(forward[1]),
            z,
        )

    anchor = at(0, 100, 0)
    ground = [at(-400, -200, 0), at(400, -200, 0), at(400, 200, 0), at(-400, 200, 0)]
    parts.face(ground, _GRASS, train_id=TERRAIN, layer=LAYER_GROUND, order=-1, one_sided=False)
    d = -180.0
    while d < 180:
        width = float(rng.uniform(10, 26))
        wood = rng.uniform() < 0.45
        height = float(rng.uniform(6, 12)) if wood else float(rng.uniform(8, 20))
        rgb = leaf_rgb(rng) if wood else _pick(rng, _WALLS)
        if wood and season == "winter":
            rgb = _BROWN
        corners = [at(d, 30, 0), at(d + width, 30, 0), at(d + width, 30, height)]
        if wood:
            corners += [at(d + width * f, 30, height * g) for f, g in ((0.8, 1.12), (0.55, 0.97), (0.3, 1.1))]
        corners.append(at(d, 30, height))
        tile = TILE["leaves"] if wood else TILE[f"windows{int(rng.integers(5))}"]
        parts.face(
            corners,
            rgb,
            train_id=VEGETATION if wood else BUILDING,
            tile=tile,
            repeat=(width / 11, height / 12),
            anchor=anchor,
            one_sided=False,
        )
        d += width
    return parts.build()
