"""One block of a place while it is laid out: pieces of ground, upright walls and what stands on them.

Blocks are drawn up in route coordinates (s, d, z) and bent onto the route all at once when they are complete.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cdga_train.data.streets.models import BUILDING, Objects
from cdga_train.data.streets.shapes import LAYER_GROUND, LAYER_SOLID, Floats, Point, Rgb, ShapeList, Shapes
from cdga_train.data.streets.textures import TILE
from cdga_train.data.streets.town import Gap

__all__ = ["Block", "BlockBuilder", "leaf_rgb"]


@dataclass(frozen=True, kw_only=True)
class Block:
    """One block.

    Attributes:
        shapes: Ground, marks, houses, walls.
        plants: Trees and bushes on the plots, in route coordinates.
        walls: (n, 2, 3) base lines of walls, with their heights ``wall_heights`` (n,), for shadows.
        wall_heights: Metres.
        gap: The side street, if any.
    """

    shapes: Shapes
    plants: Objects
    walls: Floats
    wall_heights: Floats
    gap: Gap | None


class BlockBuilder:
    """Collects the shapes of one block.

    Args:
        rng: The block's own chance.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.parts = ShapeList(BUILDING)
        self.walls: list[tuple[Point, Point]] = []
        self.wall_heights: list[float] = []

    def surface(
        self,
        corners: Sequence[Point],
        rgb: Rgb,
        train_id: int,
        tile: str,
        *,
        repeat: tuple[float, float] = (1.0, 1.0),
        offset: tuple[float, float] = (0.0, 0.0),
        layer: int = LAYER_SOLID,
        order: int | None = None,
        anchor: Point = (0.0, 0.0, 0.0),
    ) -> None:
        """A polygon seen from both sides, with a texture by its name; see `ShapeList.face`."""
        self.parts.face(
            corners,
            rgb,
            train_id=train_id,
            tile=TILE[tile],
            repeat=repeat,
            offset=offset,
            layer=layer,
            order=order,
            anchor=anchor,
            one_sided=False,
        )

    def strip(
        self,
        side: int,
        d: tuple[float, float],
        s: tuple[float, float],
        train_id: int,
        rgb: Rgb,
        tile: str,
        *,
        tile_m: float = 4.0,
        layer: int = LAYER_GROUND,
    ) -> None:
        """A piece of ground between two distances from the centre line; ``d`` counts outwards on ``side``."""
        left, right = sorted((d[0] * side, d[1] * side))
        corners = [(s[0], left, 0.0), (s[0], right, 0.0), (s[1], right, 0.0), (s[1], left, 0.0)]
        repeat = ((right - left) / tile_m, (s[1] - s[0]) / tile_m)
        offset = ((left / tile_m) % 1.0, (s[0] / tile_m) % 1.0)
        self.surface(corners, rgb, train_id, tile, repeat=repeat, offset=offset, layer=layer)

    def upright(
        self,
        side: int,
        s: tuple[float, float],
        d: float,
        z: tuple[float, float],
        train_id: int,
        rgb: Rgb,
        tile: str,
        *,
        repeat: tuple[float, float],
        offset: tuple[float, float] = (0.0, 0.0),
        order: int = 0,
        line: float | None = None,
    ) -> None:
        """A wall along the street at distance ``d`` that looks at the street."""
        ends = (s[1], s[0]) if side > 0 else (s[0], s[1])
        lateral = d * side
        corners = [
            (ends[0], lateral, z[0]),
            (ends[1], lateral, z[0]),
            (ends[1], lateral, z[1]),
            (ends[0], lateral, z[1]),
        ]
        anchor = (s[1], (d if line is None else line) * side, 0.0)
        self.surface(corners, rgb, train_id, tile, repeat=repeat, offset=offset, order=order, anchor=anchor)

    def across(
        self,
        side: int,
        s: float,
        d: tuple[float, float],
        z: tuple[float, float],
        train_id: int,
        rgb: Rgb,
        tile: str,
        *,
        repeat: tuple[float, float],
        order: int = 0,
        gable: float = 0.0,
        line: float | None = None,
    ) -> None:
        """A wall across the street's direction that looks back at the driver, with a gable on top if wanted."""
        left, right = sorted((d[0] * side, d[1] * side))
        corners = [(s, left, z[0]), (s, right, z[0]), (s, right, z[1])]
        if gable:
            corners.append((s, (left + right) / 2, z[1] + gable))
        corners.append((s, left, z[1]))
        anchor = (s, (min(d) if line is None else line) * side, 0.0)
        self.surface(corners, rgb, train_id, tile, repeat=repeat, order=order, anchor=anchor)

    def shadow_wall(self, side: int, s: tuple[float, float], d: float, height: float) -> None:
        """The base line of a wall that darkens the ground."""
        self.walls.append(((s[0], d * side, 0.0), (s[1], d * side, 0.0)))
        self.wall_heights.append(height)


def leaf_rgb(rng: np.random.Generator) -> Rgb:
    """A green between dark conifer and light lime, rarely autumn."""
    if rng.uniform() < 0.08:
        return float(rng.uniform(0.45, 0.6)), float(rng.uniform(0.34, 0.42)), 0.14
    green = float(rng.uniform(0.3, 0.46))
    return green * float(rng.uniform(0.62, 0.9)), green, green * float(rng.uniform(0.35, 0.6))
