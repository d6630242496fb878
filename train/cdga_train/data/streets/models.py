"""Every kind of object as a small model, and the placing of many copies at once.

Model axes: x right, y forward, z up, origin on the ground in the middle of the object (metres).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt

from cdga_train.data.streets.camera import Camera
from cdga_train.data.streets.shapes import (
    BOX_FACES,
    Floats,
    Point,
    Rgb,
    ShapeList,
    Shapes,
    box_corners,
    concatenate,
)
from cdga_train.data.streets.textures import TILE
from cdga_train.data.streets.town import Route

__all__ = [
    "MODEL_NAMES",
    "Library",
    "Model",
    "Objects",
    "gather",
    "library",
    "model",
    "objects_of",
    "shapes_of",
]

ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, LIGHT, SIGN, VEGETATION, TERRAIN, SKY = range(11)
PERSON, RIDER, CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE = range(11, 19)

_RUBBER: Final[Rgb] = (0.07, 0.07, 0.075)
_GLASS: Final[Rgb] = (0.13, 0.16, 0.19)
_STEEL: Final[Rgb] = (0.36, 0.37, 0.38)
_WHITE: Final[Rgb] = (0.86, 0.86, 0.84)
_HEAD_GLOW: Final[Rgb] = (1.0, 0.95, 0.8)
_TAIL_GLOW: Final[Rgb] = (0.85, 0.06, 0.03)


@dataclass(frozen=True, kw_only=True)
class Model:
    """One kind of object.

    Attributes:
        shapes: Its parts in model axes.
        footprint_wl: Width and length of its shadow on the ground, metres.
        height: Metres, for the length of its shadow.
        lifted: The height at which the shadow starts (the crown of a tree), metres.
    """

    shapes: Shapes
    footprint_wl: tuple[float, float]
    height: float
    lifted: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Objects:
    """n placed copies of models, in route coordinates until `on_route`, in world axes after it.

    Attributes:
        kind: (n,) index into `MODEL_NAMES`.
        position: (n, 3): s, d, z, or world x, y, z.
        anchor: (n, 3) the point whose depth orders the object, in the same coordinates.
        turn_rad: (n,) heading, relative to the route or to the world's y axis.
        scale: (n,) size relative to the model.
        colours: (n, 3, 3) up to three colours that the model asks for.
    """

    kind: npt.NDArray[np.intp]
    position: Floats
    anchor: Floats
    turn_rad: Floats
    scale: Floats
    colours: Floats

    def __len__(self) -> int:
        return len(self.kind)

    def take(self, index: npt.NDArray[np.bool_]) -> Objects:
        """The objects that the mask names."""
        return Objects(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def on_route(self, route: Route) -> Objects:
        """The same objects in world axes."""
        heading = route.heading_at(self.position[:, 0]).astype(np.float32)
        return replace(
            self,
            position=route.bend(self.position),
            anchor=route.bend(self.anchor),
            turn_rad=self.turn_rad + heading,
        )


def gather(groups: Sequence[Objects]) -> Objects:
    """All groups as one, in order."""
    return Objects(**{f.name: np.concatenate([getattr(g, f.name) for g in groups]) for f in fields(Objects)})


def objects_of(
    names: Sequence[str],
    *,
    s: npt.ArrayLike,
    d: npt.ArrayLike,
    turn_rad: npt.ArrayLike = 0.0,
    scale: npt.ArrayLike = 1.0,
    colours: npt.ArrayLike = 1.0,
    behind_d: npt.ArrayLike | None = None,
) -> Objects:
    """Objects by name at (s, d); with ``behind_d`` they are ordered behind the row of walls at that distance."""
    n = len(names)
    position = np.zeros((n, 3), np.float32)
    position[:, 0], position[:, 1] = s, d
    anchor = position.copy()
    if behind_d is not None:
        wall = np.asarray(behind_d, np.float32)
        anchor[:, 0] += np.where(np.isnan(wall), 0, _BEHIND_WALL_M)
        anchor[:, 1] = np.where(np.isnan(wall), anchor[:, 1], wall)
    return Objects(
        kind=np.array([MODEL_NUMBER[name] for name in names], np.intp),
        position=position,
        anchor=anchor,
        turn_rad=np.broadcast_to(np.asarray(turn_rad, np.float32), (n,)).copy(),
        scale=np.broadcast_to(np.asarray(scale, np.float32), (n,)).copy(),
        colours=np.broadcast_to(np.asarray(colours, np.float32), (n, 3, 3)).copy(),
    )


_BEHIND_WALL_M: Final = 6.0
MODEL_NAMES: Final = (
    *("hatch", "sedan", "estate", "suv", "van", "truck", "bus", "tram"),
    *("bicycle", "motorcycle", "motorcyclist", "lamp0", "lamp1", "bollard"),
    *("light0r", "light0g", "light1r", "light1g"),
    *(f"person{k}" for k in range(9)),
    *(f"{name}{k}" for name in ("cyclist", "tree", "sign") for k in range(8)),
    *(f"bush{k}" for k in range(3)),
    # of the open road; new names go to the end because towns refer to models by number
    *("lorry", "rigid", "mast", "delineator"),
    *(f"board{k}" for k in range(4)),
    *(f"grove{k}" for k in range(4)),
    *(f"bare{k}" for k in range(3)),
    *(f"winter{k}" for k in range(6)),
)


MODEL_NUMBER: Final = {name: number for number, name in enumerate(MODEL_NAMES)}


@dataclass(frozen=True, kw_only=True)
class Library:
    """All models in one batch.

    Attributes:
        shapes: Model after model.
        first, count: (models,) where each begins and how many shapes it has.
        half_wl: (models, 2) half its footprint, metres.
        height, lifted: (models,) see `Model`.
    """

    shapes: Shapes
    first: npt.NDArray[np.intp]
    count: npt.NDArray[np.intp]
    half_wl: Floats
    height: Floats
    lifted: Floats


@cache
def library() -> Library:
    """The library of this process (about 30 ms, once)."""
    models = [model(name) for name in MODEL_NAMES]
    count = np.array([len(m.shapes) for m in models], np.intp)
    return Library(
        shapes=concatenate([m.shapes for m in models]),
        first=np.cumsum(count) - count,
        count=count,
        half_wl=np.array([(m.footprint_wl[0] / 2, m.footprint_wl[1] / 2) for m in models], np.float32),
        height=np.array([m.height for m in models], np.float32),
        lifted=np.array([m.lifted for m in models], np.float32),
    )


def shapes_of(objects: Objects, camera: Camera) -> Shapes:
    """All objects (in world axes) that may be in view as shapes, each turned, scaled and moved to its place."""
    store = library()
    objects = objects.take(_in_view(objects, camera))
    size = store.count[objects.kind]
    copy = np.repeat(np.arange(len(objects)), size)
    inside = np.arange(len(copy)) - np.repeat(np.cumsum(size) - size, size)
    shapes = store.shapes.take(store.first[objects.kind][copy] + inside)
    sin, cos = np.sin(objects.turn_rad)[copy, None], np.cos(objects.turn_rad)[copy, None]
    scale = objects.scale[copy, None]
    own = objects.colours[copy, np.maximum(shapes.slot, 0)]
    return replace(
        shapes,
        points=_turned(shapes.points, sin, cos) * scale[..., None] + objects.position[copy, None],
        radius=shapes.radius * scale,
        axis_u=_turned(shapes.axis_u[:, None], sin, cos)[:, 0] / scale,
        axis_v=_turned(shapes.axis_v[:, None], sin, cos)[:, 0] / scale,
        rgb=np.where((shapes.slot >= 0)[:, None], own * shapes.rgb, shapes.rgb),
        anchor=objects.anchor[copy],
    )


def _turned(points: Floats, sin: Floats, cos: Floats) -> Floats:
    x, y, z = points[..., 0], points[..., 1], points[..., 2]
    return np.stack([x * cos + y * sin, y * cos - x * sin, z], axis=-1)


def _in_view(objects: Objects, camera: Camera) -> npt.NDArray[np.bool_]:
    points = camera.to_camera(objects.position)
    # 1.5 m more than the footprint for arms of lamps and crowns of trees
    reach = (library().half_wl[objects.kind].max(axis=1) + 1.5) * objects.scale
    side = np.tan(camera.fov_rad / 2) * np.maximum(points[:, 2] + reach, 0) + reach * 1.5
    seen: npt.NDArray[np.bool_] = (points[:, 2] > -reach) & (np.abs(points[:, 0]) < side)
    return seen


def _circle(x: float, centre_yz: tuple[float, float], radius: float, *, points: int = 12) -> list[Point]:
    """A polygon in the plane x = const whose outer side is the side of x's sign."""
    angles = np.arange(points) * (2 * np.pi / points) * (1 if x >= 0 else -1)
    return [(x, centre_yz[0] + radius * float(np.cos(a)), centre_yz[1] + radius * float(np.sin(a))) for a in angles]


def _inset(face: Sequence[Point], keep: tuple[float, float], shift_v: float = 0.0, out: float = 0.012) -> list[Point]:
    """A smaller copy of a four-sided face, a little in front of it."""
    corners = np.array(face)
    u, v = corners[1] - corners[0], corners[3] - corners[0]
    normal = np.cross(u, v)
    normal = normal / np.linalg.norm(normal)
    result = []
    for s, t in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
        a, b = 0.5 + s * keep[0] / 2, 0.5 + t * keep[1] / 2 + shift_v
        low = corners[0] + a * (corners[1] - corners[0])
        high = corners[3] + a * (corners[2] - corners[3])
        point = low + b * (high - low) + out * normal
        result.append((float(point[0]), float(point[1]), float(point[2])))
    return result


def _wheels(parts: ShapeList, half_width: float, axles: Sequence[float], radius: float) -> None:
    for x in (-half_width - 0.015, half_width + 0.015):
        for y in axles:
            parts.face(_circle(x, (y, radius), radius), _RUBBER)
            parts.face(_circle(x * 1.002, (y, radius), radius * 0.6, points=8), (0.45, 0.46, 0.48))


def _lights(parts: ShapeList, half: tuple[float, float], z: tuple[float, float], width: float) -> None:
    """Head lights at the front, tail lights and a number plate at the rear."""
    half_width, half_length = half
    for side in (-1, 1):
        inner, outer = side * (half_width - width - 0.04), side * (half_width - 0.04)
        x0, x1 = min(inner, outer), max(inner, outer)
        front, rear = half_length + 0.015, -half_length - 0.015
        parts.face(
            [(x1, front, z[0]), (x0, front, z[0]), (x0, front, z[1]), (x1, front, z[1])], _WHITE, glow=_HEAD_GLOW
        )
        parts.face(
            [(x0, rear, z[0]), (x1, rear, z[0]), (x1, rear, z[1]), (x0, rear, z[1])],
            (0.55, 0.06, 0.05),
            glow=_TAIL_GLOW,
        )
    for y, s in ((half_length + 0.02, -1), (-half_length - 0.02, 1)):
        plate = [(-0.26 * s, y, 0.42), (0.26 * s, y, 0.42), (0.26 * s, y, 0.54), (-0.26 * s, y, 0.54)]
        parts.face(plate, (0.8, 0.8, 0.76))


_CARS: Final[dict[str, tuple[float, float, float, float, tuple[float, float, float, float]]]] = {
    # width, length, bonnet height, roof height, cabin as fractions of the length (base rear/front, roof rear/front)
    "hatch": (1.76, 4.05, 0.90, 1.48, (-0.49, 0.26, -0.40, 0.08)),
    "sedan": (1.80, 4.60, 0.90, 1.43, (-0.36, 0.24, -0.22, 0.07)),
    "estate": (1.80, 4.70, 0.92, 1.47, (-0.49, 0.24, -0.44, 0.08)),
    "suv": (1.88, 4.50, 1.04, 1.70, (-0.49, 0.25, -0.42, 0.11)),
    "van": (1.95, 5.00, 1.12, 2.02, (-0.495, 0.38, -0.48, 0.20)),
}


def _car(name: str) -> Model:
    width, length, waist, roof, (rear, front, roof_rear, roof_front) = _CARS[name]
    parts = ShapeList(CAR)
    w, h = width / 2, length / 2
    body_top = (-w + 0.04, w - 0.04, -h + 0.06, h - 0.1)
    parts.box((-w, -h, 0.2), (w, h, waist), (1, 1, 1), top=body_top, slot=0, tile=TILE["face_shade"])
    sill = box_corners((-w - 0.01, -h - 0.01, 0.18), (w + 0.01, h + 0.01, 0.36))
    for side in ("rear", "front", "left", "right"):
        parts.face([sill[i] for i in BOX_FACES[side]], (0.09, 0.09, 0.1))
    _wheels(parts, w, (-0.31 * length, 0.31 * length), 0.33 if roof < 1.6 else 0.37)
    front_mid = waist * 0.62
    grille = [(0.42, h + 0.01, front_mid), (-0.42, h + 0.01, front_mid)]
    parts.face([*grille, (-0.42, h + 0.01, waist - 0.2), (0.42, h + 0.01, waist - 0.2)], (0.08, 0.08, 0.09))
    _lights(parts, (w, h), (waist - 0.28, waist - 0.1), 0.34)
    low = (-w + 0.05, rear * length, waist)
    top = (-w + 0.2, w - 0.2, roof_rear * length, roof_front * length)
    cabin = box_corners(low, (w - 0.05, front * length, roof), top)
    for side in ("rear", "front", "left", "right", "top"):
        face = [cabin[i] for i in BOX_FACES[side]]
        parts.face(face, (0.96, 0.96, 0.96), slot=0)
        if side != "top" and not (name == "van" and side == "rear"):
            parts.face(_inset(face, (0.9, 0.8)), _GLASS, tile=TILE["face_shade"])
        if side in {"left", "right"}:
            for at in (-0.12, 0.22) if name != "sedan" else (-0.05,):
                _pillar(parts, face, at)
    return Model(shapes=parts.build(), footprint_wl=(width, length), height=roof)


def _pillar(parts: ShapeList, face: Sequence[Point], at: float) -> None:
    """A strip of paint between two side windows, ``at`` of the length away from the middle."""
    shift = at * (face[1][1] - face[0][1])
    pillar = [(x, y + shift, z) for x, y, z in _inset(face, (0.035, 0.86), out=0.02)]
    parts.face(pillar, (0.9, 0.9, 0.9), slot=0)


def _truck(name: str) -> Model:
    del name
    parts = ShapeList(TRUCK)
    parts.box((-1.15, -3.9, 0.55), (1.15, -3.6, 0.95), (0.12, 0.12, 0.13))
    parts.box((-1.1, -3.9, 0.6), (1.1, 3.6, 1.0), (0.14, 0.14, 0.15))
    _wheels(parts, 1.12, (-2.6, -1.6, 2.5), 0.48)
    parts.box((-1.25, -3.9, 1.0), (1.25, 1.5, 3.4), (1, 1, 1), slot=1, tile=TILE["plaster"])
    parts.box((-1.18, 1.7, 0.55), (1.18, 3.8, 2.75), (1, 1, 1), top=(-1.12, 1.12, 1.7, 3.6), slot=0)
    cab = box_corners((-1.18, 1.7, 0.55), (1.18, 3.8, 2.75), (-1.12, 1.12, 1.7, 3.6))
    for side in ("front", "left", "right"):
        face = [cab[i] for i in BOX_FACES[side]]
        parts.face(_inset(face, (0.86 if side == "front" else 0.5, 0.36), 0.2), _GLASS, tile=TILE["face_shade"])
    for side, shade in (("rear", 0.9), ("left", 0.95), ("right", 0.95)):
        cargo = box_corners((-1.25, -3.9, 1.0), (1.25, 1.5, 3.4))
        parts.face(_inset([cargo[i] for i in BOX_FACES[side]], (0.94, 0.9)), (shade,) * 3, slot=1)
    _lights(parts, (1.15, 3.9), (0.66, 0.88), 0.3)
    return Model(shapes=parts.build(), footprint_wl=(2.5, 7.8), height=3.3)


def _coach(train_id: int, size_wlh: tuple[float, float, float]) -> Model:
    """A bus or a tram: a long box with a row of windows."""
    width, length, height = size_wlh
    parts = ShapeList(train_id)
    w, h = width / 2, length / 2
    corners = box_corners((-w, -h, 0.3), (w, h, height), (-w + 0.08, w - 0.08, -h + 0.1, h - 0.1))
    for side in ("rear", "front", "left", "right", "top"):
        along = side in {"left", "right"}
        tile = TILE["bus_side"] if along else TILE["face_shade"]
        repeat = (length / 8, 1.0) if along else (1.0, 1.0)
        parts.face([corners[i] for i in BOX_FACES[side]], (1, 1, 1), slot=0, tile=tile, repeat=repeat)
    for side, keep, shift in (("front", (0.88, 0.46), 0.06), ("rear", (0.8, 0.3), 0.18)):
        face = [corners[i] for i in BOX_FACES[side]]
        parts.face(_inset(face, keep, shift), _GLASS, tile=TILE["face_shade"])
        parts.face(_inset(face, (0.6, 0.08), 0.41), (0.08, 0.08, 0.08), glow=(0.8, 0.5, 0.1))
    if train_id == BUS:
        _wheels(parts, w, (-0.28 * length, 0.3 * length), 0.5)
    else:
        parts.bone((0, -1, height), (0, 0.5, height + 0.9), (0.04, 0.04), _STEEL)
    _lights(parts, (w, h), (0.55, 0.85), 0.3)
    return Model(shapes=parts.build(), footprint_wl=(width, length), height=height)


def _person(phase: int) -> Model:
    """A walking (phases 0 to 7) or standing (phase 8) person: slots are coat, trousers and skin."""
    parts = ShapeList(PERSON)
    swing = 0.0 if phase == 8 else 0.34 * float(np.sin(phase * np.pi / 4))
    cloth, skin = TILE["round"], TILE["face_shade"]
    for side in (-1, 1):
        step = swing * side
        hip, knee, foot = (
            (0.09 * side, 0.0, 0.9),
            (0.1 * side, step * 0.62, 0.48),
            (0.1 * side, step * 1.1 - 0.03, 0.06),
        )
        parts.bone(hip, knee, (0.105, 0.075), (1, 1, 1), slot=1, tile=cloth)
        parts.bone(knee, foot, (0.075, 0.055), (0.94, 0.94, 0.94), slot=1, tile=cloth)
        parts.bone((0.1 * side, step * 1.1 - 0.04, 0.05), (0.1 * side, step * 1.1 + 0.15, 0.04), (0.05, 0.04), _RUBBER)
    for side in (-1, 1):
        step = -swing * side
        shoulder, elbow = (0.21 * side, 0.0, 1.4), (0.26 * side, step * 0.4 - 0.03, 1.12)
        parts.bone(shoulder, elbow, (0.065, 0.055), (0.86, 0.86, 0.86), slot=0, tile=cloth)
        hand = (0.25 * side, step * 0.9 + 0.06, 0.88)
        parts.bone(elbow, hand, (0.055, 0.045), (0.86, 0.86, 0.86), slot=0, tile=cloth)
        parts.blob(hand, (0.045, 0.05), (1, 1, 1), slot=2)
    parts.bone((0, 0, 0.86), (0, 0.01, 1.12), (0.155, 0.165), (0.97, 0.97, 0.97), slot=0, tile=cloth)
    parts.bone((0, 0.01, 1.1), (0, 0.0, 1.4), (0.165, 0.19), (1, 1, 1), slot=0, tile=cloth)
    parts.bone((0, 0, 1.42), (0, 0.01, 1.56), (0.06, 0.06), (0.9, 0.9, 0.9), slot=2)
    parts.blob((0, -0.01, 1.66), (0.105, 0.13), (0.16, 0.11, 0.08))
    parts.blob((0, 0.035, 1.63), (0.088, 0.115), (1, 1, 1), slot=2, tile=skin)
    return Model(shapes=parts.build(), footprint_wl=(0.5, 0.5), height=1.7)


def _bicycle_parts(parts: ShapeList) -> None:
    """A bicycle of 1.75 m along y; slot 2 is its frame."""
    for y in (-0.53, 0.53):
        for x in (0.01, -0.01):
            parts.face(_circle(x, (y, 0.34), 0.35), (0.34, 0.34, 0.33), tile=TILE["plain"], one_sided=True)
            parts.face(_circle(x * 1.4, (y, 0.34), 0.29, points=10), (0.5, 0.5, 0.48), one_sided=True)
    pedal, saddle, head = (0.0, -0.06, 0.3), (0.0, -0.22, 0.86), (0.0, 0.36, 0.84)
    for start, end in (
        (pedal, saddle),
        (pedal, head),
        ((0, -0.19, 0.78), head),
        ((0, -0.53, 0.34), (0, -0.19, 0.78)),
        ((0, -0.53, 0.34), pedal),
        ((0, 0.53, 0.34), (0, 0.34, 0.98)),
    ):
        parts.bone(start, end, (0.028, 0.028), (1, 1, 1), slot=2)
    parts.bone((-0.27, 0.32, 1.02), (0.27, 0.32, 1.02), (0.022, 0.022), (0.1, 0.1, 0.1))
    parts.bone((0, -0.34, 0.9), (0, -0.1, 0.9), (0.06, 0.04), (0.08, 0.08, 0.08))
    parts.blob((0, 0.4, 0.8), (0.05, 0.05), _WHITE, glow=_HEAD_GLOW)


def _bicycle(name: str) -> Model:
    del name
    parts = ShapeList(BICYCLE)
    _bicycle_parts(parts)
    return Model(shapes=parts.build(), footprint_wl=(0.4, 1.7), height=0.9)


def _motorcycle_parts(parts: ShapeList) -> None:
    for y in (-0.68, 0.68):
        for x in (0.06, -0.06):
            parts.face(_circle(x, (y, 0.31), 0.31), _RUBBER)
            parts.face(_circle(x * 1.1, (y, 0.31), 0.19, points=8), _STEEL)
    parts.bone((0, -0.35, 0.45), (0, 0.32, 0.45), (0.17, 0.18), (0.18, 0.18, 0.19), tile=TILE["round"])
    parts.bone((0, -0.75, 0.8), (0, -0.1, 0.74), (0.11, 0.13), (0.09, 0.09, 0.09))
    parts.bone((0, -0.05, 0.78), (0, 0.32, 0.84), (0.16, 0.17), (1, 1, 1), slot=2, tile=TILE["round"])
    parts.bone((0, 0.68, 0.31), (0, 0.42, 0.95), (0.06, 0.06), _STEEL)
    parts.bone((-0.36, 0.36, 1.0), (0.36, 0.36, 1.0), (0.03, 0.03), (0.1, 0.1, 0.1))
    parts.blob((0, 0.52, 0.82), (0.1, 0.11), _WHITE, glow=_HEAD_GLOW)
    parts.blob((0, -0.82, 0.72), (0.07, 0.05), (0.55, 0.06, 0.05), glow=_TAIL_GLOW)


def _motorcycle(name: str) -> Model:
    del name
    parts = ShapeList(MOTORCYCLE)
    _motorcycle_parts(parts)
    return Model(shapes=parts.build(), footprint_wl=(0.6, 1.9), height=1.0)


def _rider_parts(parts: ShapeList, phase: int, *, helmet: bool) -> None:
    cloth = TILE["round"]
    for side in (-1, 1):
        angle = phase * np.pi / 4 + (np.pi if side > 0 else 0)
        foot = (0.1 * side, -0.06 + 0.15 * float(np.cos(angle)), 0.3 + 0.15 * float(np.sin(angle)))
        knee = (0.13 * side, 0.2, 0.68 + 0.1 * float(np.sin(angle)))
        parts.bone((0.09 * side, -0.2, 0.94), knee, (0.1, 0.08), (1, 1, 1), slot=1, tile=cloth)
        parts.bone(knee, foot, (0.075, 0.055), (0.94, 0.94, 0.94), slot=1, tile=cloth)
        parts.bone(foot, (foot[0], foot[1] + 0.12, foot[2] - 0.02), (0.05, 0.04), _RUBBER)
    parts.bone((0, -0.22, 0.95), (0, 0.06, 1.4), (0.16, 0.19), (1, 1, 1), slot=0, tile=cloth)
    for side in (-1, 1):
        elbow = (0.27 * side, 0.14, 1.16)
        parts.bone((0.2 * side, 0.06, 1.4), elbow, (0.065, 0.055), (0.88, 0.88, 0.88), slot=0, tile=cloth)
        parts.bone(elbow, (0.25 * side, 0.32, 1.05), (0.05, 0.045), (0.88, 0.88, 0.88), slot=0, tile=cloth)
    parts.blob((0, 0.15, 1.62), (0.1, 0.13), (0.85, 0.66, 0.55))
    cap: Rgb = (0.12, 0.12, 0.14) if not helmet else (0.75, 0.75, 0.74)
    parts.blob((0, 0.12, 1.68), (0.125, 0.11) if not helmet else (0.14, 0.15), cap, tile=TILE["face_shade"])


def _cyclist(phase: int) -> Model:
    parts = ShapeList(BICYCLE)
    _bicycle_parts(parts)
    parts.train_id = RIDER
    _rider_parts(parts, phase, helmet=phase % 2 == 0)
    return Model(shapes=parts.build(), footprint_wl=(0.5, 1.7), height=1.7)


def _motorcyclist(name: str) -> Model:
    del name
    parts = ShapeList(MOTORCYCLE)
    _motorcycle_parts(parts)
    parts.train_id = RIDER
    _rider_parts(parts, 0, helmet=True)
    return Model(shapes=parts.build(), footprint_wl=(0.6, 1.9), height=1.7)


def _tree(variant: int) -> Model:
    """Broad crowns (0 to 3), tall ones (4, 5) and conifers (6, 7); slot 0 is the leaf colour."""
    rng = np.random.default_rng([21, variant])
    parts = ShapeList(VEGETATION)
    if variant >= 6:
        return _conifer(parts, rng)
    tall = variant >= 4
    trunk_top, half, top = (2.2, 1.4, 11.0) if tall else (float(rng.uniform(2.2, 3.2)), 2.5, float(rng.uniform(6, 8)))
    bark: Rgb = (0.3, 0.25, 0.2)
    parts.bone((0, 0, 0), (0, 0, trunk_top + 1), (0.2, 0.13), bark, tile=TILE["round"])
    for x, y in ((0.9, 0.3), (-0.8, -0.4)):
        parts.bone((0, 0, trunk_top), (x, y, trunk_top + 1.4), (0.1, 0.05), bark)
    middle = (trunk_top + top) / 2
    crown: list[tuple[float, float, float]] = []
    for _ in range(13):
        angle, reach, level = rng.uniform(0, 2 * np.pi), np.sqrt(rng.uniform()), rng.uniform(-1, 1)
        wide = half * 0.75 * reach * np.sqrt(max(0.15, 1 - level**2))
        height = middle + level * (top - trunk_top) * 0.36
        crown.append((float(wide * np.cos(angle)), float(wide * np.sin(angle)), float(height)))
    for number, centre in enumerate(sorted(crown, key=lambda c: c[2])):
        size = float(rng.uniform(0.9, 1.35)) * (0.7 if tall else 1.0)
        tone = 0.72 + 0.42 * number / 12 + float(rng.uniform(-0.08, 0.08))
        outline = int(rng.integers(1, 16))
        parts.blob(centre, (size, size * 0.85), (tone, tone, tone), slot=0, tile=TILE["crown"], outline=outline)
    return Model(shapes=parts.build(), footprint_wl=(half * 1.6, half * 1.6), height=top, lifted=trunk_top + 0.5)


def _conifer(parts: ShapeList, rng: np.random.Generator) -> Model:
    parts.bone((0, 0, 0), (0, 0, 2), (0.16, 0.14), (0.26, 0.2, 0.16))
    for number in range(6):
        level, size = 1.4 + number * 1.25, 2.0 - 0.3 * number
        outline = int(rng.integers(1, 16))
        parts.blob((0, 0, level), (size, 1.1), (0.7, 0.82, 0.75), slot=0, tile=TILE["conifer"], outline=outline)
    return Model(shapes=parts.build(), footprint_wl=(2.6, 2.6), height=8.5, lifted=1.0)


def _bush(variant: int) -> Model:
    rng = np.random.default_rng([22, variant])
    parts = ShapeList(VEGETATION)
    for number in range(6):
        x, y, r = rng.uniform(-0.7, 0.7), rng.uniform(-0.4, 0.4), rng.uniform(0.4, 0.65)
        tone = 0.75 + 0.07 * number
        centre = (float(x), float(y), float(0.35 + 0.1 * number * rng.uniform()))
        outline = int(rng.integers(1, 16))
        parts.blob(centre, (float(r), float(r) * 0.8), (tone,) * 3, slot=0, tile=TILE["crown"], outline=outline)
    return Model(shapes=parts.build(), footprint_wl=(1.6, 1.2), height=0.9)


def _lamp(name: str) -> Model:
    """A street lamp; x points to the road. ``lamp1`` hangs over the road, ``lamp0`` is a short one with a globe."""
    parts = ShapeList(POLE)
    grey: Rgb = (0.34, 0.36, 0.36)
    if name == "lamp0":
        parts.bone((0, 0, 0), (0, 0, 4.2), (0.09, 0.055), grey, tile=TILE["round"])
        parts.blob((0, 0, 4.45), (0.24, 0.3), (0.8, 0.8, 0.74), glow=(1.0, 0.8, 0.45))
        return Model(shapes=parts.build(), footprint_wl=(0.2, 0.2), height=4.5)
    parts.bone((0, 0, 0), (0, 0, 1.2), (0.1, 0.095), grey, tile=TILE["round"])
    parts.bone((0, 0, 1.1), (0, 0, 7.8), (0.08, 0.05), grey, tile=TILE["round"])
    parts.bone((0, 0, 7.75), (1.5, 0, 8.3), (0.055, 0.05), grey)
    parts.bone((1.4, 0, 8.28), (2.2, 0, 8.35), (0.12, 0.1), (0.6, 0.6, 0.58), glow=(1.0, 0.8, 0.45))
    return Model(shapes=parts.build(), footprint_wl=(0.25, 0.25), height=8.0)


_RED: Final[Rgb] = (0.76, 0.07, 0.08)
_BLUE: Final[Rgb] = (0.07, 0.24, 0.62)


def _plate(parts: ShapeList, outline: Sequence[tuple[float, float]], z: float, rgb: Rgb, depth: float) -> None:
    """A sign seen from its front (towards -y) and its grey back."""
    front = [(x, -0.06 - depth, z + v) for x, v in outline]
    parts.face(front, rgb, glow=(rgb[0] * 0.12, rgb[1] * 0.12, rgb[2] * 0.12))
    if depth == 0:
        parts.face([(x, -0.05, y) for x, _, y in reversed(front)], (0.5, 0.51, 0.52))


def _ring(radius: float, points: int = 12, turn: float = 0.0) -> list[tuple[float, float]]:
    angles = np.arange(points) * (2 * np.pi / points) + turn
    return [(radius * float(np.cos(a)), radius * float(np.sin(a))) for a in angles]


def _rectangle(half_width: float, half_height: float) -> list[tuple[float, float]]:
    w, h = half_width, half_height
    return [(-w, -h), (w, -h), (w, h), (-w, h)]


def _sign(variant: int) -> Model:
    """0 speed limit, 1 warning, 2 stop, 3 parking, 4 priority, 5 no entry, 6 direction board, 7 give way."""
    parts = ShapeList(POLE)
    height = 2.5
    parts.bone((0, 0, 0), (0, 0, height + 0.3), (0.045, 0.04), (0.55, 0.56, 0.56), tile=TILE["round"])
    parts.train_id = SIGN
    up, down = np.pi / 2, -np.pi / 2
    layers: dict[int, list[tuple[list[tuple[float, float]], Rgb]]] = {
        0: [(_ring(0.36), _RED), (_ring(0.27), _WHITE), (_rectangle(0.12, 0.1), (0.1, 0.1, 0.1))],
        1: [(_ring(0.45, 3, up), _RED), (_ring(0.3, 3, up), _WHITE), (_rectangle(0.04, 0.12), (0.1, 0.1, 0.1))],
        2: [(_ring(0.4, 8, np.pi / 8), _RED), (_rectangle(0.28, 0.07), _WHITE)],
        3: [(_rectangle(0.33, 0.33), _BLUE), (_rectangle(0.12, 0.2), _WHITE), (_rectangle(0.05, 0.08), _BLUE)],
        4: [(_ring(0.42, 4), _WHITE), (_ring(0.31, 4), (0.93, 0.72, 0.08))],
        5: [(_ring(0.37), _RED), (_rectangle(0.26, 0.06), _WHITE)],
        6: [(_rectangle(0.85, 0.4), (0.9, 0.9, 0.88)), (_rectangle(0.8, 0.35), (0.86, 0.74, 0.1))],
        7: [(_ring(0.45, 3, down), _RED), (_ring(0.28, 3, down), _WHITE)],
    }
    for number, (outline, rgb) in enumerate(layers[variant]):
        _plate(parts, outline, height, rgb, 0.012 * number)
    return Model(shapes=parts.build(), footprint_wl=(0.3, 0.1), height=2.8)


def _traffic_light(name: str) -> Model:
    """A traffic light that faces -y; ``light1`` also has a second one on an arm over the road (towards -x)."""
    parts = ShapeList(POLE)
    grey: Rgb = (0.3, 0.31, 0.31)
    tall = name.startswith("light1")
    parts.bone((0, 0, 0), (0, 0, 5.8 if tall else 2.9), (0.085, 0.07), grey, tile=TILE["round"])
    places = [(0.0, 2.5)]
    if tall:
        parts.bone((0, 0, 5.6), (-3.6, 0, 5.8), (0.07, 0.05), grey)
        places.append((-3.5, 5.2))
    parts.train_id = LIGHT
    red = name.endswith("r")
    for x, z in places:
        low, high = (x - 0.17, -0.28, z), (x + 0.17, -0.04, z + 0.95)
        parts.box(low, high, (0.07, 0.08, 0.07), sides="rear front left right")
        colours: tuple[Rgb, Rgb, Rgb] = ((0.1, 0.75, 0.45), (0.75, 0.55, 0.1), (0.85, 0.1, 0.08))
        for number, rgb in enumerate(colours):
            on = number == (2 if red else 0)
            ring = [(x + a, -0.295, z + 0.17 + 0.3 * number + b) for a, b in _ring(0.115)]
            dark = (rgb[0] * 0.22, rgb[1] * 0.22, rgb[2] * 0.22)
            parts.face(ring, rgb if on else dark, glow=rgb if on else (0, 0, 0))
    return Model(shapes=parts.build(), footprint_wl=(0.3, 0.3), height=3.3)


def _bollard(name: str) -> Model:
    del name
    parts = ShapeList(POLE)
    parts.bone((0, 0, 0), (0, 0, 0.95), (0.07, 0.065), (0.25, 0.25, 0.26), tile=TILE["round"])
    parts.bone((0, 0, 0.7), (0, 0, 0.82), (0.072, 0.072), (0.8, 0.8, 0.8))
    return Model(shapes=parts.build(), footprint_wl=(0.2, 0.2), height=0.9)


_GOODS: Final[dict[str, tuple[float, float, float, tuple[float, ...]]]] = {
    # length, height of cab and of cargo, axles
    "lorry": (16.5, 3.6, 3.95, (-6.4, -5.1, -3.8, 3.6, 6.9)),
    "rigid": (8.6, 2.8, 3.4, (-2.6, 3.0)),
}


def _goods_vehicle(name: str) -> Model:
    """A tractor with a semi-trailer, or a rigid truck; slot 0 paints the cab, slot 1 the cargo."""
    length, cab_top, cargo_top, axles = _GOODS[name]
    parts = ShapeList(TRUCK)
    h = length / 2
    parts.box((-1.1, -h, 0.55), (1.1, h - 0.6, 1.05), (0.13, 0.13, 0.14))
    parts.box((-1.2, -h, 0.45), (1.2, 0.2 - h, 0.75), (0.1, 0.1, 0.11))
    _wheels(parts, 1.15, axles, 0.5)
    # from in front the cab hides the cargo, from behind the cargo the cab
    low, high = (-1.27, -h, 1.1), (1.27, h - 2.9, cargo_top)
    parts.box(low, high, (0.9, 0.9, 0.9), slot=1, sides="front")
    narrow = (-1.12, 1.12, h - 2.6, h - 0.3)
    parts.box((-1.2, h - 2.6, 0.5), (1.2, h, cab_top), (1, 1, 1), top=narrow, slot=0, sides="front left right top")
    cab = box_corners((-1.2, h - 2.6, 0.5), (1.2, h, cab_top), narrow)
    for side in ("front", "left", "right"):
        keep = (0.88, 0.28) if side == "front" else (0.42, 0.24)
        parts.face(_inset([cab[i] for i in BOX_FACES[side]], keep, 0.14), _GLASS, tile=TILE["face_shade"])
    parts.face(_inset([cab[i] for i in BOX_FACES["front"]], (0.7, 0.16), -0.2), (0.12, 0.12, 0.13))
    cargo = box_corners(low, high)
    parts.box(low, high, (1, 1, 1), slot=1, tile=TILE["plaster"], sides="rear left right top")
    rear = [cargo[i] for i in BOX_FACES["rear"]]
    for shift in (-0.245, 0.245):
        door = [(x + shift * 2.54, y, z) for x, y, z in _inset(rear, (0.46, 0.93))]
        parts.face(door, (0.93, 0.93, 0.93), slot=1)
    for side in ("left", "right"):
        parts.face(_inset([cargo[i] for i in BOX_FACES[side]], (0.98, 0.9)), (0.96,) * 3, slot=1)
    _lights(parts, (1.2, h + 0.02), (0.78, 0.98), 0.3)
    return Model(shapes=parts.build(), footprint_wl=(2.55, length), height=cargo_top)


def _mast(name: str) -> Model:
    """A wooden pole with a cross arm for wires."""
    del name
    parts = ShapeList(POLE)
    wood: Rgb = (0.36, 0.29, 0.23)
    parts.bone((0, 0, 0), (0, 0, 9.6), (0.15, 0.11), wood, tile=TILE["round"])
    parts.bone((-1.1, 0, 9.0), (1.1, 0, 9.0), (0.07, 0.07), wood)
    for x in (-1.0, -0.5, 0.5, 1.0):
        parts.bone((x, 0, 9.05), (x, 0, 9.3), (0.05, 0.04), (0.6, 0.6, 0.6))
    return Model(shapes=parts.build(), footprint_wl=(0.4, 0.4), height=9.6)


def _delineator(name: str) -> Model:
    """A white post of 1 m with a black band, beside the edge line."""
    del name
    parts = ShapeList(POLE)
    parts.bone((0, 0, 0), (0, 0, 1.0), (0.065, 0.06), (0.85, 0.85, 0.83), tile=TILE["round"])
    parts.bone((0, 0, 0.68), (0, 0, 0.86), (0.067, 0.067), (0.08, 0.08, 0.08))
    return Model(shapes=parts.build(), footprint_wl=(0.15, 0.15), height=1.0)


_BOARDS: Final[tuple[tuple[float, float, Rgb, Rgb], ...]] = (
    # half width, half height, ground, letters
    (1.9, 1.2, (0.06, 0.2, 0.5), _WHITE),
    (1.7, 1.0, (0.03, 0.34, 0.22), _WHITE),
    (1.5, 0.8, (0.85, 0.85, 0.83), (0.1, 0.1, 0.1)),
    (0.62, 0.62, (0.9, 0.62, 0.06), (0.08, 0.08, 0.08)),
)


def _board(variant: int) -> Model:
    """A direction board in blue, green or white on two posts, or (3) a yellow warning diamond on one."""
    half_width, half_height, ground, letters = _BOARDS[variant]
    parts = ShapeList(POLE)
    middle = 2.2 + half_height
    for x in (-half_width * 0.6, half_width * 0.6) if variant < 3 else (0.0,):
        parts.bone((x, 0, 0), (x, 0, middle), (0.07, 0.06), (0.5, 0.51, 0.52), tile=TILE["round"])
    parts.train_id = SIGN
    if variant == 3:
        _plate(parts, _ring(0.85, 4), middle, ground, 0.0)
        _plate(parts, _rectangle(0.1, 0.3), middle, letters, 0.012)
        return Model(shapes=parts.build(), footprint_wl=(0.3, 0.2), height=3.4)
    _plate(parts, _rectangle(half_width, half_height), middle, letters, 0.0)
    _plate(parts, _rectangle(half_width - 0.07, half_height - 0.07), middle, ground, 0.012)
    rng = np.random.default_rng([23, variant])
    for row in range(2 + variant % 2):
        width = half_width * float(rng.uniform(0.4, 0.75))
        v = half_height * (0.5 - 0.55 * row)
        line = [(x - half_width * 0.85 + width, y + v) for x, y in _rectangle(width, 0.13)]
        _plate(parts, line, middle, letters, 0.024)
    return Model(shapes=parts.build(), footprint_wl=(2 * half_width, 0.2), height=middle + 1, lifted=2.0)


def _grove(variant: int) -> Model:
    """A piece of wood of about 11 m: broad crowns (0 to 2) or conifers (3) over undergrowth."""
    rng = np.random.default_rng([24, variant])
    parts = ShapeList(VEGETATION)
    for _ in range(4):
        centre = (float(rng.uniform(-5, 5)), float(rng.uniform(-3, 0)), float(rng.uniform(0.7, 1.3)))
        parts.blob(centre, (2.2, 1.6), (0.5,) * 3, slot=0, tile=TILE["leaves"], outline=int(rng.integers(1, 16)))
    if variant == 3:
        for number in range(5):
            x, tip = -4.4 + 2.2 * number + float(rng.uniform(-0.6, 0.6)), float(rng.uniform(7, 11))
            for level in range(4):
                z, width = 2.0 + level * (tip - 2) / 4, 1.9 - 0.42 * level
                outline = int(rng.integers(1, 16))
                parts.blob((x, 0, z), (width, 1.7), (0.7, 0.8, 0.75), slot=0, tile=TILE["conifer"], outline=outline)
        return Model(shapes=parts.build(), footprint_wl=(11.0, 6.0), height=9.0, lifted=1.0)
    crowns = [(float(rng.uniform(-5, 5)), float(rng.uniform(2.6, 7.5))) for _ in range(10)]
    for x, z in sorted(crowns, key=lambda c: -c[1]):
        size = float(rng.uniform(1.5, 2.3))
        tone = 0.62 + 0.055 * z + float(rng.uniform(-0.1, 0.1))
        outline = int(rng.integers(1, 16))
        y = float(rng.uniform(-2, 2))
        parts.blob((x, y, z), (size, size * 0.85), (tone,) * 3, slot=0, tile=TILE["crown"], outline=outline)
    return Model(shapes=parts.build(), footprint_wl=(11.0, 6.0), height=9.0, lifted=1.0)


_BARK: Final[Rgb] = (0.34, 0.29, 0.25)


def _bare_tree(variant: int) -> Model:
    """A broad tree in winter, seen from far: a trunk that forks three times, and no twigs."""
    parts = ShapeList(VEGETATION)
    _grow(parts, np.random.default_rng([25, variant]))
    return Model(shapes=parts.build(), footprint_wl=(4.0, 4.0), height=7.5, lifted=2.5)


def _winter_tree(variant: int) -> Model:
    """A broad tree in winter with its twigs, which the light comes through; its label is the whole of its crown."""
    rng = np.random.default_rng([26, variant])
    parts = ShapeList(VEGETATION)
    tips = _grow(parts, rng)
    tone = float(rng.uniform(0.7, 1.1))
    for x, y, z in sorted(tips, key=lambda tip: tip[2]):
        size = float(rng.uniform(0.9, 1.5))
        shade: Rgb = (_BARK[0] * tone, _BARK[1] * tone, _BARK[2] * tone)
        outline = int(rng.integers(1, 16))
        for lower, share in ((1.1, 0.8), (0.0, 1.0)):
            centre = (x * (1 - 0.25 * lower), y * (1 - 0.25 * lower), z + 0.2 - lower)
            parts.blob(centre, (size * share, size), shade, tile=TILE["twigs"], outline=outline)
    return Model(shapes=parts.build(), footprint_wl=(4.0, 4.0), height=8.0, lifted=2.5)


def _grow(parts: ShapeList, rng: np.random.Generator) -> list[Point]:
    """A trunk and its branches; where they end."""
    fork = float(rng.uniform(1.8, 2.6))
    parts.bone((0, 0, 0), (0, 0, fork), (0.2, 0.15), _BARK, tile=TILE["round"])
    tips: list[tuple[Point, float, float]] = [((0.0, 0.0, fork), 0.0, 0.0)]
    for length, radius in ((2.3, 0.1), (1.8, 0.065), (1.3, 0.045)):
        grown: list[tuple[Point, float, float]] = []
        for (x, y, z), lean, turn in tips:
            for side in (-1.0, 1.0):
                to, out = turn + float(rng.uniform(0.6, 2.4)) * side, lean + float(rng.uniform(0.12, 0.5))
                flat = length * float(np.sin(out))
                end = (
                    x + flat * float(np.cos(to)),
                    y + flat * float(np.sin(to)),
                    z + length * float(np.cos(out)) * float(rng.uniform(0.8, 1.1)),
                )
                parts.bone((x, y, z), end, (radius, radius * 0.6), _BARK)
                grown.append((end, out, to))
        tips = grown
    for (x, y, z), _, turn in tips:
        for side in (-0.9, 0.2, 1.1):
            end = (x + 0.6 * float(np.cos(turn + side)), y + 0.6 * float(np.sin(turn + side)), z + 0.7)
            parts.bone((x, y, z), end, (0.03, 0.015), (0.4, 0.34, 0.3))
    return [tip for tip, _, _ in tips]


_PLAIN: Final[dict[str, Callable[[str], Model]]] = {
    **dict.fromkeys(_CARS, _car),
    "truck": _truck,
    "bus": lambda _: _coach(BUS, (2.5, 11.5, 3.1)),
    "tram": lambda _: _coach(TRAIN, (2.5, 24.0, 3.5)),
    "bicycle": _bicycle,
    "motorcycle": _motorcycle,
    "motorcyclist": _motorcyclist,
    "lamp0": _lamp,
    "lamp1": _lamp,
    "light0r": _traffic_light,
    "light0g": _traffic_light,
    "light1r": _traffic_light,
    "light1g": _traffic_light,
    "bollard": _bollard,
    **dict.fromkeys(_GOODS, _goods_vehicle),
    "mast": _mast,
    "delineator": _delineator,
}
_NUMBERED: Final[dict[str, Callable[[int], Model]]] = {
    "person": _person,
    "cyclist": _cyclist,
    "tree": _tree,
    "bush": _bush,
    "sign": _sign,
    "board": _board,
    "grove": _grove,
    "bare": _bare_tree,
    "winter": _winter_tree,
}


@cache
def model(name: str) -> Model:
    """The model called ``name``; numbered kinds end in their number (``tree3``, ``person8``)."""
    if name in _PLAIN:
        return _PLAIN[name](name)
    return _NUMBERED[name[:-1]](int(name[-1]))
