"""The one currency of the drawn world: a batch of planar shapes with a class, a colour and a texture.

Axis legend: N shapes, K = 12 points at most per shape. World axes: x right, y forward, z up (metres, right-handed).
A shape is one of three kinds. A FACE is a planar polygon. A BONE is a round bar between two points that always turns
its flat side to the camera (poles, limbs, trunks). A BLOB is an irregular disc that faces the camera (crowns, heads).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = [
    "BLOB",
    "BONE",
    "FACE",
    "LAYER_GROUND",
    "LAYER_MARK",
    "LAYER_SOLID",
    "MAX_POINTS",
    "Floats",
    "Ints",
    "ShapeList",
    "Shapes",
    "blob_outlines",
    "concatenate",
]

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Point = tuple[float, float, float]
Rgb = tuple[float, float, float]

MAX_POINTS: Final = 12
FACE: Final = 0
BONE: Final = 1
BLOB: Final = 2
LAYER_GROUND: Final = 0
LAYER_MARK: Final = 1
LAYER_SOLID: Final = 2
_NUM_OUTLINES: Final = 16


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """N shapes as parallel arrays; built by `ShapeList`, moved by `cdga_train.data.streets.models`.

    Attributes:
        points: (N, K, 3) metres. A BONE keeps its ends in the first two points, a BLOB its centre in the first.
        count: (N,) number of points in use.
        kind: (N,) FACE, BONE or BLOB.
        radius: (N, 2) metres: both ends of a BONE, half width and half height of a BLOB.
        outline: (N,) which of `blob_outlines` a BLOB has.
        axis_u, axis_v: (N, 3) texture repeats per metre along the shape's own axes (FACE only).
        offset_uv: (N, 2) texture coordinates at the first point.
        train_id: (N,) Cityscapes train id.
        rgb: (N, 3) colour, 0 to 1.
        slot: (N,) index of the colour that the placed object brings, or -1 to keep ``rgb``.
        tile: (N,) index of the texture.
        glow: (N, 3) light that the shape sends out itself when the lights are on.
        layer: (N,) LAYER_GROUND, LAYER_MARK or LAYER_SOLID; layers are painted in this order.
        order: (N,) paint order inside one object.
        anchor: (N, 3) the point whose depth orders the object among the others.
        one_sided: (N,) a FACE that is not seen from behind.
    """

    points: Floats
    count: Ints
    kind: Ints
    radius: Floats
    outline: Ints
    axis_u: Floats
    axis_v: Floats
    offset_uv: Floats
    train_id: Ints
    rgb: Floats
    slot: Ints
    tile: Ints
    glow: Floats
    layer: Ints
    order: Ints
    anchor: Floats
    one_sided: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.count)

    def take(self, index: npt.NDArray[np.intp] | npt.NDArray[np.bool_]) -> Shapes:
        """The shapes that ``index`` (positions or a mask) names."""
        return Shapes(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


def concatenate(batches: Sequence[Shapes]) -> Shapes:
    """All batches as one, in order."""
    assert batches
    return Shapes(**{f.name: np.concatenate([getattr(b, f.name) for b in batches]) for f in fields(Shapes)})


def blob_outlines() -> Floats:
    """(16, 12, 2) irregular closed outlines around the origin, radius about 1; number 0 is a true disc."""
    angle_K = np.arange(MAX_POINTS) * (2 * np.pi / MAX_POINTS)
    rng = np.random.default_rng([7, 1])
    radius_SK = 1 + rng.uniform(-0.24, 0.16, (_NUM_OUTLINES, MAX_POINTS))
    radius_SK[0] = 1
    circle_K2 = np.stack([np.cos(angle_K), np.sin(angle_K)], axis=-1)
    outlines: Floats = (radius_SK[..., None] * circle_K2).astype(np.float32)
    return outlines


class _Entry(NamedTuple):
    points: tuple[Point, ...]
    kind: int
    radius: tuple[float, float]
    outline: int
    repeat: tuple[float, float]
    offset: tuple[float, float]
    train_id: int
    rgb: Rgb
    slot: int
    tile: int
    glow: Rgb
    layer: int
    order: int
    anchor: Point
    one_sided: bool


_BLACK: Final[Rgb] = (0.0, 0.0, 0.0)
_ORIGIN: Final[Point] = (0.0, 0.0, 0.0)


class ShapeList:
    """Collects shapes one by one; `build` turns them into arrays.

    Args:
        train_id: Class of shapes that do not name their own.
    """

    def __init__(self, train_id: int = 0) -> None:
        self.train_id = train_id
        self._entries: list[_Entry] = []

    def face(
        self,
        points: Sequence[Point],
        rgb: Rgb,
        *,
        train_id: int | None = None,
        slot: int = -1,
        tile: int = 0,
        repeat: tuple[float, float] = (1.0, 1.0),
        offset: tuple[float, float] = (0.0, 0.0),
        glow: Rgb = _BLACK,
        layer: int = LAYER_SOLID,
        order: int | None = None,
        anchor: Point = _ORIGIN,
        one_sided: bool = True,
    ) -> None:
        """A polygon, anticlockwise as seen from its outer side.

        The texture runs ``repeat`` times along the first edge (u) and along the last edge backwards (v).
        """
        assert 3 <= len(points) <= MAX_POINTS
        self._entries.append(
            _Entry(
                points=tuple(points),
                kind=FACE,
                radius=(0.0, 0.0),
                outline=0,
                repeat=repeat,
                offset=offset,
                train_id=self.train_id if train_id is None else train_id,
                rgb=rgb,
                slot=slot,
                tile=tile,
                glow=glow,
                layer=layer,
                order=len(self._entries) if order is None else order,
                anchor=anchor,
                one_sided=one_sided,
            )
        )

    def bone(
        self,
        start: Point,
        end: Point,
        radius: tuple[float, float],
        rgb: Rgb,
        *,
        train_id: int | None = None,
        slot: int = -1,
        tile: int = 0,
        glow: Rgb = _BLACK,
    ) -> None:
        """A round bar from ``start`` to ``end`` with a radius in metres at each end."""
        self._round((start, end), BONE, radius, rgb, train_id, slot, tile, glow, 0)

    def blob(
        self,
        centre: Point,
        radius: tuple[float, float],
        rgb: Rgb,
        *,
        train_id: int | None = None,
        slot: int = -1,
        tile: int = 0,
        glow: Rgb = _BLACK,
        outline: int = 0,
    ) -> None:
        """A disc that faces the camera: half width and half height in metres, edge ``outline``."""
        self._round((centre,), BLOB, radius, rgb, train_id, slot, tile, glow, outline)

    def _round(
        self,
        points: tuple[Point, ...],
        kind: int,
        radius: tuple[float, float],
        rgb: Rgb,
        train_id: int | None,
        slot: int,
        tile: int,
        glow: Rgb,
        outline: int,
    ) -> None:
        self._entries.append(
            _Entry(
                points=points,
                kind=kind,
                radius=radius,
                outline=outline,
                repeat=(1.0, 1.0),
                offset=(0.0, 0.0),
                train_id=self.train_id if train_id is None else train_id,
                rgb=rgb,
                slot=slot,
                tile=tile,
                glow=glow,
                layer=LAYER_SOLID,
                order=len(self._entries),
                anchor=_ORIGIN,
                one_sided=False,
            )
        )

    def box(
        self,
        low: Point,
        high: Point,
        rgb: Rgb,
        *,
        top: tuple[float, float, float, float] | None = None,
        train_id: int | None = None,
        slot: int = -1,
        tile: int = 0,
        sides: str = "rear front left right top",
    ) -> None:
        """The outer faces of a box; ``top`` = (x0, x1, y0, y1) narrows its upper rectangle."""
        corners = box_corners(low, high, top)
        for side in sides.split():
            face = [corners[i] for i in BOX_FACES[side]]
            self.face(face, rgb, train_id=train_id, slot=slot, tile=tile)

    def build(self, to_world: Callable[[Floats], Floats] | None = None) -> Shapes:
        """The collected shapes as arrays; ``to_world`` maps (..., 3) points and anchors from other coordinates."""
        e = self._entries
        count = np.array([len(x.points) for x in e], np.int32)
        flat = np.array(list(chain.from_iterable(x.points for x in e)), np.float32).reshape(-1, 3)
        # unused places repeat the last point
        place_NK = np.minimum(np.arange(MAX_POINTS), count[:, None] - 1) + (np.cumsum(count) - count)[:, None]
        points = flat[place_NK]
        anchor = np.array([x.anchor for x in e], np.float32).reshape(-1, 3)
        if to_world is not None:
            points, anchor = to_world(points), to_world(anchor)
        last = points[np.arange(len(e)), count - 1]
        axis_u, axis_v = _texture_axes(points[:, 1] - points[:, 0], last - points[:, 0])
        repeat = np.array([x.repeat for x in e], np.float32).reshape(-1, 2)
        return Shapes(
            points=points,
            count=count,
            kind=np.array([x.kind for x in e], np.int32),
            radius=np.array([x.radius for x in e], np.float32).reshape(-1, 2),
            outline=np.array([x.outline for x in e], np.int32),
            axis_u=axis_u * repeat[:, :1],
            axis_v=axis_v * repeat[:, 1:],
            offset_uv=np.array([x.offset for x in e], np.float32).reshape(-1, 2),
            train_id=np.array([x.train_id for x in e], np.int32),
            rgb=np.array([x.rgb for x in e], np.float32).reshape(-1, 3),
            slot=np.array([x.slot for x in e], np.int32),
            tile=np.array([x.tile for x in e], np.int32),
            glow=np.array([x.glow for x in e], np.float32).reshape(-1, 3),
            layer=np.array([x.layer for x in e], np.int32),
            order=np.array([x.order for x in e], np.int32),
            anchor=anchor,
            one_sided=np.array([x.one_sided for x in e], np.bool_),
        )


BOX_FACES: Final[dict[str, tuple[int, int, int, int]]] = {
    "rear": (0, 1, 5, 4),
    "front": (2, 3, 7, 6),
    "right": (1, 2, 6, 5),
    "left": (3, 0, 4, 7),
    "top": (4, 5, 6, 7),
}


def box_corners(low: Point, high: Point, top: tuple[float, float, float, float] | None = None) -> list[Point]:
    """Eight corners: the lower rectangle from rear left anticlockwise from above, then the upper one."""
    x0, y0, z0 = low
    x1, y1, z1 = high
    a0, a1, b0, b1 = top or (x0, x1, y0, y1)
    return [
        (x0, y0, z0),
        (x1, y0, z0),
        (x1, y1, z0),
        (x0, y1, z0),
        (a0, b0, z1),
        (a1, b0, z1),
        (a1, b1, z1),
        (a0, b1, z1),
    ]


def _texture_axes(edge_u: Floats, edge_v: Floats) -> tuple[Floats, Floats]:
    length_u = np.maximum((edge_u * edge_u).sum(-1, keepdims=True), 1e-6)
    square_v = edge_v - edge_u * ((edge_u * edge_v).sum(-1, keepdims=True) / length_u)
    length_v = np.maximum((square_v * square_v).sum(-1, keepdims=True), 1e-6)
    return edge_u / length_u, square_v / length_v
