"""What stands still along an open road: asphalt, lines, barriers, banks, fields, woods, and the hills at the horizon.

Paint order on one side, far to near: open land, its plants, bank, plants on the bank, fence, verge, barrier, traffic.
Each of these steps is ordered one piece of land farther away than the next, so that what is painted later always
stands in front.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Final

import numpy as np

from cdga_train.data.streets.builder import Block, BlockBuilder
from cdga_train.data.streets.camera import Camera
from cdga_train.data.streets.highway import ROAD_BLOCK_M, Carriageway, Highway, Roadside
from cdga_train.data.streets.highway_streams import BEHIND_DIVIDER_M
from cdga_train.data.streets.models import (
    BUILDING,
    FENCE,
    POLE,
    ROAD,
    SIDEWALK,
    SIGN,
    TERRAIN,
    VEGETATION,
    WALL,
    Objects,
    objects_of,
)
from cdga_train.data.streets.shapes import (
    LAYER_GROUND,
    LAYER_MARK,
    LAYER_SOLID,
    Floats,
    Point,
    Rgb,
    ShapeList,
    Shapes,
)
from cdga_train.data.streets.textures import TILE
from cdga_train.data.streets.town import Route

__all__ = ["countryside_block", "panorama"]

_PIECE_M: Final = {"motorway": 18.0, "country": 9.0}
# how many pieces farther away than its own place each step is ordered
_BARRIER, _VERGE, _FENCE, _BANK, _LAND_PLANTS, _LAND = 0, 1, 1, 2, 3, 4
# a left side is ordered behind all oncoming traffic: the length of a lorry more than what that is ordered behind
_BEHIND_ONCOMING_M: Final = BEHIND_DIVIDER_M + 17.0
_FLAT_M: Final = 0.3
# the far slope of hills, which is in sight where they sink
_BACK_M: Final = 45.0
_WHITE: Final[Rgb] = (0.86, 0.86, 0.83)
_YELLOW: Final[Rgb] = (0.82, 0.62, 0.14)
_STEEL: Final[Rgb] = (0.6, 0.62, 0.63)
_BARRIER_RGB: Final[Rgb] = (0.62, 0.61, 0.58)
_WOOD: Final[Rgb] = (0.5, 0.42, 0.33)
_Z4 = tuple[float, float, float, float]


def _toned(rgb: Rgb, factor: float) -> Rgb:
    return rgb[0] * factor, rgb[1] * factor, rgb[2] * factor


class _Builder(BlockBuilder):
    """Collects one block of an open road."""

    def __init__(self, seed: int, block: int, highway: Highway) -> None:
        super().__init__(np.random.default_rng([seed, 64, block + 1000]))
        self.highway = highway
        self.piece_m = _PIECE_M[highway.kind]
        self.names: list[str] = []
        self.places: list[tuple[float, float, float, float, float]] = []
        self.colours: list[Rgb] = []

    def anchor(self, side: Roadside, s: float, step: int) -> Point:
        """What orders a thing at ``s`` on this side; ``step`` counts from the asphalt outwards."""
        oncoming = side.sign < 0 and self.highway.median > 0
        return s + step * self.piece_m + (_BEHIND_ONCOMING_M if oncoming else 0.0), side.foot * side.sign, 0.0

    def plant(self, name: str, side: Roadside, s: float, d: float, scale: float, rgb: Rgb, step: int) -> None:
        """A plant on the land at its true height."""
        ordered = self.anchor(side, s, step)
        self.names.append(name)
        self.places.append((s, d * side.sign, ordered[0], ordered[1], scale))
        self.colours.append(rgb)

    def slope(
        self, side: Roadside, s: tuple[float, float], d: tuple[float, float], z: _Z4, rgb: Rgb, step: int
    ) -> None:
        """Land between two distances; ``z`` at (s0, d0), (s0, d1), (s1, d1), (s1, d0)."""
        corners = [
            (s[0], d[0] * side.sign, z[0]),
            (s[0], d[1] * side.sign, z[1]),
            (s[1], d[1] * side.sign, z[2]),
            (s[1], d[0] * side.sign, z[3]),
        ]
        if side.sign < 0:
            corners = [corners[1], corners[0], corners[3], corners[2]]
        tile_m = 6.0
        self.surface(
            corners,
            rgb,
            TERRAIN,
            "grass",
            repeat=((d[1] - d[0]) / tile_m, (s[1] - s[0]) / tile_m),
            offset=(0.0, (s[0] / tile_m) % 1.0),
            layer=LAYER_GROUND if max(z) < _FLAT_M else LAYER_SOLID,
            order=-step,
            anchor=self.anchor(side, s[1], step),
        )

    def panel(
        self,
        side: Roadside,
        s: tuple[float, float],
        d: float,
        z: _Z4,
        train_id: int,
        rgb: Rgb,
        tile: str,
        *,
        repeat: tuple[float, float],
        step: int,
        order: int = 1,
    ) -> None:
        """An upright piece along the road; ``z`` at its lower near, lower far, upper far and upper near corner."""
        lateral = d * side.sign
        corners = [(s[0], lateral, z[0]), (s[1], lateral, z[1]), (s[1], lateral, z[2]), (s[0], lateral, z[3])]
        if side.sign > 0:
            corners = [corners[1], corners[0], corners[3], corners[2]]
        anchor = self.anchor(side, s[1], step)
        self.surface(corners, rgb, train_id, tile, repeat=repeat, order=order, anchor=anchor)

    def objects(self) -> Objects:
        """All plants placed so far."""
        s, d, anchor_s, anchor_d, scale = np.array(self.places, np.float32).reshape(-1, 5).T
        colours = np.repeat(np.array(self.colours, np.float32).reshape(-1, 1, 3), 3, axis=1)
        turn = self.rng.uniform(0, 2 * np.pi, len(self.names))
        turn[[name.startswith(("grove", "mast")) for name in self.names]] = 0
        flat = objects_of(self.names, s=s, d=d, turn_rad=turn, scale=scale, colours=colours)
        position, anchor = flat.position.copy(), flat.anchor.copy()
        left, right = (side.height_at(s, d * side.sign) for side in self.highway.sides)
        position[:, 2] = np.where(d < 0, left, right)
        anchor[:, 0], anchor[:, 1] = anchor_s, anchor_d
        return replace(flat, position=position, anchor=anchor)


def countryside_block(seed: int, block: int, highway: Highway, route: Route) -> Block:
    """Block number ``block``: it reaches from block * ROAD_BLOCK_M to (block + 1) * ROAD_BLOCK_M along the route."""
    builder = _Builder(seed, block, highway)
    start, end = block * ROAD_BLOCK_M, (block + 1) * ROAD_BLOCK_M
    cuts = np.linspace(start, end, round((end - start) / builder.piece_m) + 1).tolist()
    pieces = list(pairwise(cuts))
    for carriageway in highway.carriageways:
        _asphalt(builder, carriageway, pieces)
        _lane_lines(builder, carriageway, start, end)
    _median(builder, pieces)
    for side in highway.sides:
        _land(builder, seed, block, side, pieces)
        _barrier(builder, side, pieces)
        if builder.rng.uniform() < 0.9:
            _fence(builder, side, pieces)
        _plants(builder, side, start, end)
        if builder.rng.uniform() < 0.1:
            _hall(builder, side, start)
    if highway.kind == "motorway" and builder.rng.uniform() < 0.14:
        _gantry(builder, start + float(builder.rng.uniform(5, 100)))
    return Block(
        shapes=builder.parts.build(route.bend),
        plants=builder.objects(),
        walls=route.bend(np.array(builder.walls, np.float32).reshape(-1, 2, 3)),
        wall_heights=np.array(builder.wall_heights, np.float32),
        gap=None,
    )


def _asphalt(b: _Builder, way: Carriageway, pieces: Sequence[tuple[float, float]]) -> None:
    """Lanes, a shoulder of another tone, wheel tracks, repairs and edge lines; all are road."""
    road = b.highway
    shoulder = _toned(road.road_rgb, road.shoulder_tone)
    inner_rgb = _YELLOW if road.yellow else _WHITE
    for s in pieces:
        b.strip(way.sign, (way.inner, way.lines[1]), s, ROAD, road.road_rgb, road.asphalt)
        b.strip(way.sign, (way.lines[1], way.edge), s, ROAD, shoulder, road.asphalt)
        if road.tracks and way.sign > 0:
            for lane in way.lanes:
                for d in (lane - 0.85, lane + 0.85):
                    tone = _toned(road.road_rgb, 1 - road.tracks)
                    b.strip(way.sign, (d - 0.35, d + 0.35), s, ROAD, tone, road.asphalt, layer=LAYER_MARK)
        if b.rng.uniform() < 0.08:
            repair, d = _toned(road.road_rgb, float(b.rng.uniform(0.75, 1.12))), float(b.rng.choice(way.lanes))
            cut = (s[0], s[0] + float(b.rng.uniform(0.15, 6)))
            half = road.lane_m / 2 - 0.1
            b.strip(way.sign, (d - half, d + half), cut, ROAD, repair, "asphalt", layer=LAYER_MARK)
        b.strip(way.sign, (way.lines[1] - 0.08, way.lines[1] + 0.08), s, ROAD, _WHITE, "plain", layer=LAYER_MARK)
        if way.inner > 0 or len(b.highway.carriageways) == 1:
            line = (way.lines[0] - 0.08, way.lines[0] + 0.08)
            b.strip(way.sign, line, s, ROAD, inner_rgb, "plain", layer=LAYER_MARK)


def _lane_lines(b: _Builder, way: Carriageway, start: float, end: float) -> None:
    dash, period = b.highway.dash_m
    first = np.floor(start / period) * period
    for s0 in np.arange(first, end, period).tolist():
        s = (max(s0, start), min(s0 + dash, end))
        if s[0] < s[1]:
            for lane in way.lanes[1:]:
                d = lane - b.highway.lane_m / 2
                b.strip(way.sign, (d - 0.075, d + 0.075), s, ROAD, _WHITE, "plain", layer=LAYER_MARK)
            if way.inner == 0 and way.sign > 0 and b.highway.centre == "dashed":
                _centre_line(b, 0.0, s)


def _centre_line(b: _Builder, d: float, s: tuple[float, float]) -> None:
    if len(b.highway.carriageways) == 2:
        rgb = _YELLOW if b.highway.yellow else _WHITE
        b.strip(1, (d - 0.07, d + 0.07), s, ROAD, rgb, "plain", layer=LAYER_MARK)


def _median(b: _Builder, pieces: Sequence[tuple[float, float]]) -> None:
    """The middle: painted lines of an undivided road, or what stands between the two directions."""
    half, kind = b.highway.median, b.highway.divider
    if half == 0:
        for s in pieces:
            for d in {"solid": (0.0,), "double": (-0.14, 0.14)}.get(b.highway.centre, ()):
                _centre_line(b, d, s)
        return
    paved = kind == "concrete"
    grass = b.highway.land.grass_rgb
    for s in pieces:
        if paved:
            b.strip(1, (-half, half), s, ROAD, _toned(b.highway.road_rgb, 0.92), b.highway.asphalt)
            _concrete(b, s, 0.18)
        else:
            b.strip(1, (-half, half), s, TERRAIN, _toned(grass, float(b.rng.uniform(0.94, 1.04))), "grass")
        if kind == "rail":
            _rail(b, 1, s, half - 0.5, (s[1], 0.0, 0.0))
            _rail(b, -1, s, half - 0.5, (s[1] + 0.5, 0.0, 0.0))
        if kind == "hedge":
            _hedge(b, s)
        if kind == "bushes":
            for at in b.rng.uniform(s[0], s[1], int(b.rng.integers(0, 4))).tolist():
                d, rgb = float(b.rng.uniform(-0.6, 0.6)) * half, _leaf(b)
                b.names.append(f"bush{int(b.rng.integers(3))}")
                b.places.append((at, d, at, d, float(b.rng.uniform(0.7, 1.7))))
                b.colours.append(rgb)


def _upright(
    b: _Builder,
    s: tuple[float, float],
    d: tuple[float, float],
    z: tuple[float, float],
    train_id: int,
    rgb: Rgb,
    tile: str,
    *,
    repeat: tuple[float, float],
    anchor: Point,
    order: int,
) -> None:
    """A wall along the road that leans from d[0] at its foot to d[1] at its top; with z[0] == z[1], a flat top."""
    corners = [(s[1], d[0], z[0]), (s[0], d[0], z[0]), (s[0], d[1], z[1]), (s[1], d[1], z[1])]
    b.surface(corners, rgb, train_id, tile, repeat=repeat, order=order, anchor=anchor)


def _concrete(b: _Builder, s: tuple[float, float], middle: float) -> None:
    """A concrete barrier on the median that is seen from its right."""
    anchor = (s[1], 0.0, 0.0)
    rgb, light = _toned(_BARRIER_RGB, float(b.rng.uniform(0.95, 1.03))), _toned(_BARRIER_RGB, 1.12)
    foot = middle + 0.12
    repeat = (2.0, 0.3)
    _upright(b, s, (-middle, middle * 0.6), (0.86, 0.86), WALL, light, "plain", repeat=(1, 1), anchor=anchor, order=1)
    _upright(b, s, (foot, middle), (0.0, 0.3), WALL, light, "concrete", repeat=repeat, anchor=anchor, order=2)
    _upright(b, s, (middle, middle * 0.6), (0.3, 0.86), WALL, rgb, "concrete", repeat=repeat, anchor=anchor, order=3)


def _hedge(b: _Builder, s: tuple[float, float]) -> None:
    half, rgb = min(0.7, b.highway.median * 0.7), _leaf(b)
    height = float(b.rng.uniform(1.0, 1.5))
    anchor = (s[1], 0.0, 0.0)
    top, face = _toned(rgb, 1.15), (half, half * 0.85)
    _upright(
        b, s, (-half, half * 0.85), (height,) * 2, VEGETATION, top, "leaves", repeat=(3, 0.4), anchor=anchor, order=1
    )
    _upright(b, s, face, (0, height), VEGETATION, rgb, "leaves", repeat=(3, 0.4), anchor=anchor, order=2)


def _rail(b: _Builder, sign: int, s: tuple[float, float], d: float, anchor: Point) -> None:
    """A guard rail on posts; nothing in the class set comes nearer to it than a fence."""
    lateral = d * sign
    for at in np.arange(s[0] + 0.75, s[1], 6.0).tolist():
        corners = [(at, lateral - 0.07, 0.0), (at, lateral + 0.07, 0.0), (at, lateral + 0.07, 0.72)]
        corners.append((at, lateral - 0.07, 0.72))
        b.surface(corners, _toned(_STEEL, 0.7), FENCE, "plain", order=1, anchor=anchor)
    front = lateral - 0.1 * sign
    for number, (low, high, tone) in enumerate(((0.44, 0.56, 0.82), (0.56, 0.64, 1.12), (0.64, 0.76, 0.94))):
        _upright(
            b,
            s,
            (front, front),
            (low, high),
            FENCE,
            _toned(_STEEL, tone),
            "plain",
            repeat=(1, 1),
            anchor=anchor,
            order=2 + number,
        )


def _barrier(b: _Builder, side: Roadside, pieces: Sequence[tuple[float, float]]) -> None:
    """A guard rail or a concrete wall beside the asphalt, or the noise wall that hides the other carriageway."""
    noise = side.sign < 0 and b.highway.divider == "wall"
    for s in pieces:
        d = side.edge + 0.5
        anchor = b.anchor(side, s[1], _BARRIER)
        if noise or side.barrier == "concrete":
            height, tile = (3.2, "planks") if noise else (0.9, "concrete")
            b.panel(
                side,
                s,
                d,
                (0, 0, height, height),
                WALL,
                _BARRIER_RGB if not noise else _toned(_BARRIER_RGB, 0.9),
                tile,
                repeat=(2.0, height / 3),
                step=_BARRIER,
            )
            b.shadow_wall(side.sign, s, d, height)
        elif side.barrier == "rail":
            _rail(b, side.sign, s, d, anchor)


def _land(b: _Builder, seed: int, block: int, side: Roadside, pieces: Sequence[tuple[float, float]]) -> None:
    """Verge, bank, the open land behind it and the far slope of its hills."""
    grass = b.highway.land.grass_rgb
    field = np.random.default_rng([seed, 65, side.sign + 1, block // 2 + 1000])
    fields = b.highway.land.fields_rgb
    field_rgb = _toned(fields[int(field.integers(len(fields)))], float(field.uniform(0.85, 1.05)))
    if field.uniform() < 0.5:
        field_rgb = _toned(grass, float(field.uniform(0.9, 1.05)))
    ends = np.array([s[0] for s in pieces] + [pieces[-1][1]])
    crests, outers = (heights.tolist() for heights in side.heights(ends))
    for number, s in enumerate(pieces):
        tone = _toned(grass, float(b.rng.uniform(0.96, 1.04)))
        (crest0, crest1), (outer0, outer1) = crests[number : number + 2], outers[number : number + 2]
        if max(outer0, outer1) > _FLAT_M:
            behind = (side.outer, side.outer + _BACK_M)
            b.slope(side, s, behind, (outer0, 0, 0, outer1), field_rgb, _LAND + 1)
        b.slope(side, s, (side.crest, side.outer), (crest0, outer0, outer1, crest1), field_rgb, _LAND)
        b.slope(side, s, (side.foot, side.crest), (0, crest0, crest1, 0), tone, _BANK)
        b.strip(side.sign, (side.edge, side.foot), s, TERRAIN, tone, "grass")
        gravel = _toned((0.5, 0.46, 0.4), float(b.rng.uniform(0.95, 1.05)))
        b.strip(side.sign, (side.edge, side.edge + 0.35), s, TERRAIN, gravel, "asphalt", layer=LAYER_MARK)
        if side.walk:
            walk = (side.edge + 0.02, side.edge + side.walk)
            b.strip(side.sign, walk, s, SIDEWALK, (0.55, 0.54, 0.52), "concrete", layer=LAYER_MARK, tile_m=3.0)


def _fence(b: _Builder, side: Roadside, pieces: Sequence[tuple[float, float]]) -> None:
    """A fence, a hedge or a wall against noise, at the foot of the bank or on its crest."""
    kind, d = side.fence, side.fence_d
    if kind == "none":
        return
    step = _BANK if side.on_crest else _FENCE
    height = {"mesh": 1.9, "posts": 1.25, "planks": 1.9, "noise": 3.4, "hedge": 1.7}[kind]
    rgb = {"mesh": _toned(b.highway.land.grass_rgb, 0.8), "noise": _BARRIER_RGB, "hedge": _leaf(b)}.get(kind, _WOOD)
    tile, train_id = {
        "mesh": ("mesh", FENCE),
        "planks": ("planks", FENCE),
        "noise": ("concrete", WALL),
        "hedge": ("leaves", VEGETATION),
    }.get(kind, ("plain", FENCE))
    lows = side.height_at(np.array([s[0] for s in pieces] + [pieces[-1][1]]), d).tolist()
    for s, (low0, low1) in zip(pieces, pairwise(lows), strict=True):
        if kind == "posts":
            _posts(b, side, s, (low0, low1), step)
            continue
        z = (low0 - 0.1, low1 - 0.1, low1 + height, low0 + height)
        repeat = (s[1] - s[0]) / (1.4 if kind == "mesh" else 3), height / (1.4 if kind == "mesh" else 3)
        b.panel(side, s, d, z, train_id, rgb, tile, repeat=repeat, step=step)
        if kind == "mesh":
            _uprights(b, side, s, (low0, low1), height + 0.08, _toned(_STEEL, 0.75), step)
        if max(low0, low1) < _FLAT_M:
            b.shadow_wall(side.sign, s, d, height)


def _uprights(
    b: _Builder, side: Roadside, s: tuple[float, float], low: tuple[float, float], height: float, rgb: Rgb, step: int
) -> None:
    """Fence posts every 3 m."""
    for part in np.arange(0, 0.99, 3 / (s[1] - s[0])).tolist():
        at, z = s[0] + part * (s[1] - s[0]), low[0] + part * (low[1] - low[0])
        ends = (at - 0.06, at + 0.06)
        b.panel(
            side,
            ends,
            side.fence_d - 0.06,
            (z - 0.1, z - 0.1, z + height, z + height),
            FENCE,
            rgb,
            "plain",
            repeat=(1, 1),
            step=step,
            order=3,
        )


def _posts(b: _Builder, side: Roadside, s: tuple[float, float], low: tuple[float, float], step: int) -> None:
    """Posts with three rails."""
    for rail in (0.35, 0.75, 1.15):
        z = (low[0] + rail, low[1] + rail, low[1] + rail + 0.11, low[0] + rail + 0.11)
        b.panel(side, s, side.fence_d, z, FENCE, _WOOD, "plain", repeat=(1, 1), step=step, order=2)
    _uprights(b, side, s, low, 1.35, _toned(_WOOD, 0.85), step)


def _leaf(b: _Builder) -> Rgb:
    """A leaf colour of the season."""
    low, high = b.highway.land.leaf_rgb
    part, warm = float(b.rng.uniform()), float(b.rng.uniform(0.92, 1.08))
    r, g, blue = (x + (y - x) * part for x, y in zip(low, high, strict=True))
    return r * warm, g, blue


def _tree(b: _Builder) -> str:
    if b.rng.uniform() < b.highway.land.conifers:
        return f"tree{int(b.rng.integers(6, 8))}"
    if b.rng.uniform() < b.highway.land.bare:
        return f"bare{int(b.rng.integers(3))}"
    return f"tree{int(b.rng.integers(6))}"


def _plants(b: _Builder, side: Roadside, start: float, end: float) -> None:
    """Bushes on the bank, an alley, trees alone, poles with wires, and woods on the land behind."""
    rng = b.rng
    for s in rng.uniform(start, end, int(rng.poisson(10 * side.bushes))).tolist():
        d = float(rng.uniform(side.foot + 0.8, side.crest))
        b.plant(f"bush{int(rng.integers(3))}", side, s, d, float(rng.uniform(0.6, 1.5)), _leaf(b), _BANK)
    if side.alley:
        for s in np.arange(start + 2, end, 13.5).tolist():
            at = s + float(rng.uniform(-2, 2))
            b.plant(_tree(b), side, at, side.foot - 0.2, float(rng.uniform(0.9, 1.3)), _leaf(b), _VERGE)
    for s in rng.uniform(start, end, int(rng.poisson(5 * side.trees**2))).tolist():
        d = float(rng.uniform(side.crest + 1.5, side.crest + 30))
        b.plant(_tree(b), side, s, d, float(rng.uniform(0.7, 1.7)), _leaf(b), _LAND_PLANTS)
    if b.highway.masts and side.sign > 0:
        for s in (start + 20, start + 74):
            b.plant("mast", side, s, side.crest + 1.0, 1.0, (1, 1, 1), _LAND_PLANTS)
    for s in (start, (start + end) / 2):
        if rng.uniform() < side.woods:
            _wood(b, side, s, s + ROAD_BLOCK_M / 2)


def _wood(b: _Builder, side: Roadside, start: float, end: float) -> None:
    """Two rows of groves, the farther one higher."""
    near = float(b.rng.uniform(4, 22))
    shrunk = 0.6 if b.highway.land.bare > 0.5 else 1.0
    for row, spacing in ((near + 11, 13.5), (near, 9.0)):
        for s in np.arange(start, end, spacing).tolist():
            conifer = b.rng.uniform() < b.highway.land.conifers
            name = "grove3" if conifer else f"grove{int(b.rng.integers(3))}"
            d = side.crest + row + float(b.rng.uniform(-2, 2))
            scale = float(b.rng.uniform(0.8, 1.25)) * (shrunk if not conifer else 1.0)
            b.plant(name, side, s + float(b.rng.uniform(-2, 2)), d, scale, _leaf(b), _LAND_PLANTS)
            if shrunk < 1 and not conifer and row == near and b.rng.uniform() < 0.5:
                b.plant(f"bare{int(b.rng.integers(3))}", side, s, d - 2, scale * 1.5, _leaf(b), _LAND_PLANTS)


_HALLS: Final[tuple[Rgb, ...]] = ((0.78, 0.76, 0.72), (0.6, 0.36, 0.28), (0.5, 0.53, 0.56), (0.82, 0.8, 0.76))
_ROOFS: Final[tuple[Rgb, ...]] = ((0.42, 0.22, 0.17), (0.3, 0.31, 0.33), (0.5, 0.42, 0.36))


def _hall(b: _Builder, side: Roadside, start: float) -> None:
    """A farm house or a hall on open land, in one piece of wall, gable and roof."""
    length, depth, eaves = (float(b.rng.uniform(*span)) for span in ((10, 36), (8, 16), (3.2, 7)))
    d = side.crest + float(b.rng.uniform(14, 40))
    s = (start, start + length)
    z = float(side.height_at(start + length / 2, d)) - 0.5
    rgb, roof_rgb = _HALLS[int(b.rng.integers(4))], _ROOFS[int(b.rng.integers(3))]
    top, ridge = z + eaves, z + eaves + depth * float(b.rng.uniform(0.12, 0.35))
    anchor = b.anchor(side, start, _LAND_PLANTS)
    x0, x1, middle = d * side.sign, (d + depth) * side.sign, (d + depth / 2) * side.sign
    windows = "plaster" if length > 22 else f"windows{int(b.rng.integers(5))}"
    long_side = [(s[0], x0, z), (s[1], x0, z), (s[1], x0, top), (s[0], x0, top)]
    roof = [(s[0], x0, top), (s[1], x0, top), (s[1], middle, ridge), (s[0], middle, ridge)]
    gable = [(s[0], x0, z), (s[0], x1, z), (s[0], x1, top), (s[0], middle, ridge), (s[0], x0, top)]
    for order, (corners, colour, tile, repeat) in enumerate(
        (
            (long_side, rgb, windows, (length / 12, eaves / 12)),
            (roof, roof_rgb, "roof", (length / 4, 2.0)),
            (gable, _toned(rgb, 0.92), "plaster", (2.0, 2.0)),
        )
    ):
        b.surface(
            corners if side.sign < 0 else [corners[1], corners[0], *corners[:1:-1]],
            colour,
            BUILDING,
            tile,
            repeat=repeat,
            order=order,
            anchor=anchor,
        )


def _gantry(b: _Builder, s: float) -> None:
    """Signs above our lanes on a beam between two posts."""
    way = b.highway.carriageways[0]
    left, right = way.inner - 0.3, way.edge + 0.6
    grey: Rgb = (0.52, 0.54, 0.55)
    blue: Rgb = ((0.06, 0.2, 0.5), (0.03, 0.34, 0.22), (0.1, 0.11, 0.13))[int(b.rng.integers(3))]
    for d in (left, right):
        b.across(1, s, (d - 0.2, d + 0.2), (0, 6.6), POLE, grey, "round", repeat=(1, 1), order=1, line=0.0)
    b.across(1, s, (left, right), (5.9, 6.6), POLE, grey, "bars", repeat=(3, 1), order=2, line=0.0)
    for lane in way.lanes:
        if b.rng.uniform() < 0.75:
            half, low = b.highway.lane_m / 2 - 0.15, 5.4
            high = low + float(b.rng.uniform(1.4, 2.4))
            b.across(
                1,
                s - 0.1,
                (lane - half, lane + half),
                (low, high),
                SIGN,
                blue,
                "plain",
                repeat=(1, 1),
                order=3,
                line=0.0,
            )
            for row in (0.3, 0.65):
                z = low + row * (high - low)
                width = half * float(b.rng.uniform(0.4, 0.8))
                span = (lane - width, lane + width)
                b.across(1, s - 0.12, span, (z, z + 0.24), SIGN, _WHITE, "plain", repeat=(1, 1), order=4, line=0.0)


_STEP_RAD: Final = float(np.deg2rad(1.5))
_PLAIN_M: Final = 1900.0


def panorama(seed: int, highway: Highway, camera: Camera) -> Shapes:
    """Land up to the horizon and three rows of hills and woods around the camera, as far as they are in view."""
    rng = np.random.default_rng([seed, 66])
    parts = ShapeList(TERRAIN)
    land = highway.land
    plain = _toned(land.fields_rgb[int(rng.integers(len(land.fields_rgb)))], 0.9)
    tile_m = 8.0
    x0, y0 = (round(v / tile_m) * tile_m for v in camera.position[:2])
    ground = [(x0 + a * _PLAIN_M, y0 + c * _PLAIN_M, 0.0) for a, c in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    repeat = (2 * _PLAIN_M / tile_m,) * 2
    parts.face(ground, plain, tile=TILE["grass"], repeat=repeat, layer=LAYER_GROUND, order=-9, one_sided=False)
    mountains = rng.uniform() < 0.5
    rows = (
        (1800.0, float(rng.uniform(60, 240)) if mountains else float(rng.uniform(10, 40)), 0.0),
        (1200.0, float(rng.uniform(8, 70)), 0.1),
        (600.0, float(rng.uniform(9, 15)), 0.45),
    )
    for number, (distance, height, rough) in enumerate(rows):
        wooded = number == 2 or rng.uniform() < 0.65
        tone = float(rng.uniform(0.75, 1.0))
        rgb = _toned(land.leaf_rgb[0], 1.1 * tone) if wooded else _toned(land.grass_rgb, tone)
        profile = _profile(rng, height, rough, gaps=number == 2)
        _ring_of_hills(parts, camera, distance, profile, VEGETATION if wooded else TERRAIN, rgb)
    return parts.build()


def _profile(rng: np.random.Generator, height: float, rough: float, *, gaps: bool) -> Floats:
    """Heights around the full circle; with ``gaps``, none in some directions."""
    count = round(2 * np.pi / _STEP_RAD)
    angle = np.arange(count) * _STEP_RAD
    swing = np.zeros(count)
    for waves, weight in ((3, 0.35), (7, 0.3), (13, 0.2), (29, 0.12)):
        swing += weight * np.sin(waves * angle + rng.uniform(0, 2 * np.pi))
    level = height * np.clip(0.55 + 0.55 * swing + rough * rng.uniform(-0.5, 0.5, count), 0.03, None)
    if gaps:
        level *= swing > float(rng.uniform(-0.5, 0.3))
    return level.astype(np.float32)


def _ring_of_hills(parts: ShapeList, camera: Camera, distance: float, profile: Floats, train_id: int, rgb: Rgb) -> None:
    reach = camera.fov_rad / 2 + 0.2
    first, last = (int(np.floor((camera.yaw_rad + side * reach) / _STEP_RAD)) for side in (-1, 1))
    tile = TILE["leaves"] if train_id == VEGETATION else TILE["grass"]
    x0, y0, _ = camera.position

    def at(number: int, z: float) -> Point:
        angle = number * _STEP_RAD
        return x0 + distance * float(np.sin(angle)), y0 + distance * float(np.cos(angle)), z

    for number in range(first, last + 1):
        low, high = float(profile[number % len(profile)]), float(profile[(number + 1) % len(profile)])
        if low + high > 0:
            corners = [at(number, 0), at(number + 1, 0), at(number + 1, high), at(number, low)]
            tone = 0.94 + 0.06 * float(np.sin(number * 2.4))
            repeat = (distance * _STEP_RAD / 40, max(low, high) / 40)
            anchor = at((first + last) // 2, 0)
            parts.face(
                corners,
                _toned(rgb, tone),
                train_id=train_id,
                tile=tile,
                repeat=repeat,
                anchor=anchor,
                one_sided=False,
            )
