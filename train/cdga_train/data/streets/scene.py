"""One town at one moment: the shapes and shadows that a camera on its route can see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cdga_train.data.streets.blocks import Block, block_from_seed, skyline
from cdga_train.data.streets.camera import Camera
from cdga_train.data.streets.models import Objects, gather, library, objects_of, shapes_of
from cdga_train.data.streets.painter import Shadow
from cdga_train.data.streets.shapes import Floats, Shapes, concatenate
from cdga_train.data.streets.streams import Stream, objects_in_view, streams_of
from cdga_train.data.streets.town import BLOCK_M, VIEW_M, Gap, Route, Street, route_from_seed, street_from_seed

__all__ = ["Drive", "Scene", "scene_at", "shadow_of"]

_SHADOW_RANGE_M = 70.0
_FAINT = 0.03
_CONTACT = 0.5
_SMALL_RANGE_M = 90.0
_SMALL = frozenset({"walkers", "standing", "cycles", "bollard"})


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Everything in view at one moment, in world axes.

    Attributes:
        shapes: What is painted.
        objects: The placed objects, for their shadows.
        walls: (n, 2, 3) base lines of walls, for their shadows.
        wall_heights: (n,) metres.
        camera: Where it is seen from.
    """

    shapes: Shapes
    objects: Objects
    walls: Floats
    wall_heights: Floats
    camera: Camera


class Drive:
    """A town and the driver's way through it. Blocks are laid out when they come into view and forgotten behind.

    Args:
        seed: Number of the town.
        length_m: How far the driver gets.
        size_wh: Image size in pixels.
    """

    def __init__(self, seed: int, length_m: float, size_wh: tuple[int, int]) -> None:
        self.seed, self.size_wh = seed, size_wh
        self.street: Street = street_from_seed(seed)
        rng = np.random.default_rng([seed, 8])
        self.start_s = float(rng.uniform(0, BLOCK_M))
        self.speed_mps = float(rng.uniform(5, 12))
        self.route: Route = route_from_seed(seed, self.start_s + length_m)
        lanes = self.street.sides[1].lanes
        self.lane = lanes[int(rng.integers(len(lanes)))]
        self.d = self.lane + float(rng.normal(0, 0.2))
        self.height_m = float(rng.uniform(1.2, 1.65))
        self.pitch_rad = float(rng.normal(0.015, 0.02))
        self.yaw_rad = float(rng.normal(0, 0.035))
        self.fov_rad = float(np.deg2rad(rng.uniform(50, 78)))
        self.streams: list[Stream] = streams_of(
            self.street, seed, lane=self.lane, driver_mps=self.speed_mps, driver_s=self.start_s
        )
        self._blocks: dict[int, Block] = {}

    def camera_at(self, time_s: float) -> Camera:
        """The camera at ``time_s``, with the small nodding of a moving car."""
        s = self.start_s + self.speed_mps * time_s
        x, y, _ = self.route.point(s, self.d)
        nod = 0.003 * float(np.sin(2 * np.pi * 0.9 * time_s)) + 0.001 * float(np.sin(2 * np.pi * 2.3 * time_s))
        return Camera(
            position=(x, y, self.height_m),
            yaw_rad=float(self.route.heading_at(s + 4)) + self.yaw_rad,
            pitch_rad=self.pitch_rad + nod,
            fov_rad=self.fov_rad,
            size_wh=self.size_wh,
        )

    def blocks(self, s: float) -> list[Block]:
        """The blocks in view from ``s``."""
        wanted = range(int((s - 8) // BLOCK_M), int((s + VIEW_M) // BLOCK_M) + 1)
        for gone in [n for n in self._blocks if n < wanted.start]:
            del self._blocks[gone]
        for number in wanted:
            if number not in self._blocks:
                self._blocks[number] = block_from_seed(self.seed, number, self.street, self.route)
        return [self._blocks[number] for number in wanted]


def scene_at(drive: Drive, time_s: float) -> Scene:
    """The scene of ``drive`` at ``time_s`` seconds after its start."""
    s = drive.start_s + drive.speed_mps * time_s
    blocks = drive.blocks(s)
    gaps = [b.gap for b in blocks if b.gap is not None]
    groups = [b.plants for b in blocks]
    for stream in drive.streams:
        reach = _SMALL_RANGE_M if stream.kind in _SMALL else VIEW_M - 20
        groups.append(objects_in_view(stream, seed=drive.seed, gaps=gaps, s_range=(s - 12, s + reach), time_s=time_s))
    groups += _at_gaps(drive, gaps, s)
    objects = gather(groups).on_route(drive.route)
    camera = drive.camera_at(time_s)
    backdrop = skyline(drive.seed, drive.route, s + VIEW_M - 25)
    return Scene(
        shapes=concatenate([backdrop, *(b.shapes for b in blocks), shapes_of(objects, camera)]),
        objects=objects,
        walls=np.concatenate([b.walls for b in blocks]),
        wall_heights=np.concatenate([b.wall_heights for b in blocks]),
        camera=camera,
    )


def _at_gaps(drive: Drive, gaps: Sequence[Gap], s: float) -> list[Objects]:
    """Traffic lights at the side streets, people who cross the road, and a car that waits to turn in."""
    found: list[tuple[str, float, float, float, Floats]] = []
    for gap in gaps:
        rng = np.random.default_rng([drive.seed, 9, int(gap.start * 100) + 100000])
        left, right = drive.street.sides
        if gap.lights:
            name = ("light1", "light0")[int(rng.integers(2))] + ("r", "g")[int(rng.integers(2))]
            white = np.ones((3, 3), np.float32)
            found.append((name, gap.start - 1.0, right.kerb + 0.6, 0.0, white))
            found.append(("light0" + name[-1], gap.start - 1.0, -left.kerb - 0.6, 0.0, white))
        colours = rng.uniform(0.1, 0.6, (4, 3, 3)).astype(np.float32)
        if gap.zebra and rng.uniform() < 0.6 * drive.street.people + 0.2:
            found += _crossing(drive, gap, s, rng, colours)
        for sign in gap.signs:
            if rng.uniform() < 0.5:
                d = sign * (drive.street.sides[(sign + 1) // 2].kerb + float(rng.uniform(4, 9)))
                at = gap.start + 3.6 if sign > 0 else gap.end - 3.6
                found.append(("sedan", at, d, -sign * np.pi / 2, colours[3]))
    return [objects_of([name], s=at, d=d, turn_rad=turn, colours=colours[None]) for name, at, d, turn, colours in found]


def _crossing(
    drive: Drive, gap: Gap, s: float, rng: np.random.Generator, colours: Floats
) -> list[tuple[str, float, float, float, Floats]]:
    """People on the zebra crossing: how far they are follows from how near the driver is, so all get across."""
    left, right = -drive.street.sides[0].kerb - 0.8, drive.street.sides[1].kerb + 0.8
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


def shadow_of(scene: Scene, sun: tuple[float, float, float], darkness: float) -> Shadow:
    """What darkens the ground: walls and objects in the sun, and a contact shadow under every object."""
    eye = np.asarray(scene.camera.position, np.float32)
    slope = np.array([-sun[0], -sun[1]], np.float32) / max(sun[2], 0.2)
    near = np.linalg.norm(scene.objects.position - eye, axis=-1) < _SHADOW_RANGE_M
    contact, cast = _object_shadows(scene.objects.take(near), slope)
    groups = [(contact, _CONTACT)]
    if darkness > _FAINT:
        groups = [(_wall_shadows(scene, eye, slope), darkness), (cast, darkness), *groups]
    return Shadow(
        points=np.concatenate([p for p, _ in groups]),
        darkness=np.concatenate([np.full(len(p), d, np.float32) for p, d in groups]),
    )


def _wall_shadows(scene: Scene, eye: Floats, slope: Floats) -> Floats:
    near = np.linalg.norm(scene.walls[:, 0] - eye, axis=-1) < _SHADOW_RANGE_M
    walls = scene.walls[near]
    far = walls.copy()
    far[..., :2] += scene.wall_heights[near, None, None] * slope
    return np.concatenate([walls, far, far, far], axis=1)


def _object_shadows(objects: Objects, slope: Floats) -> tuple[Floats, Floats]:
    """(n, 8, 3) twice: the footprint itself, and the hull of the footprint at the bottom and top of the object."""
    store = library()
    signs = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], np.float32)
    scale = objects.scale[:, None, None]
    corners = signs * store.half_wl[objects.kind][:, None] * scale
    sin, cos = np.sin(objects.turn_rad), np.cos(objects.turn_rad)
    turn = np.stack([cos, -sin, sin, cos], -1).reshape(-1, 2, 2)
    base = np.zeros((len(objects), 4, 3), np.float32)
    base[..., :2] = corners @ turn + objects.position[:, None, :2]
    lifted = store.lifted[objects.kind][:, None, None]
    low, high = base.copy(), base.copy()
    low[..., :2] += scale * lifted * slope
    high[..., :2] += scale * store.height[objects.kind][:, None, None] * slope
    trunk = base * 0.2 + base.mean(axis=1, keepdims=True) * 0.8
    under = np.where(lifted > 0, trunk, base)
    return np.concatenate([under, under], axis=1), np.concatenate([low, high], axis=1)
