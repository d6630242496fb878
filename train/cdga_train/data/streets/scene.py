"""One place at one moment: the shapes and shadows that a camera on its route can see."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cdga_train.data.streets.builder import Block
from cdga_train.data.streets.camera import Camera
from cdga_train.data.streets.courses import Course, Place, course_of
from cdga_train.data.streets.models import Objects, gather, library, shapes_of
from cdga_train.data.streets.painter import Shadow
from cdga_train.data.streets.shapes import Floats, Shapes, concatenate
from cdga_train.data.streets.streams import objects_in_view

__all__ = ["Drive", "Scene", "scene_at", "shadow_of"]

_SHADOW_RANGE_M = 70.0
_ON_A_BANK_M = 0.3
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
    """A place and the driver's way through it. Blocks are laid out when they come into view and forgotten behind.

    Args:
        seed: Number of the place.
        length_s: How long the drive takes, seconds.
        size_wh: Image size in pixels.
        place: One of `PLACES`.
    """

    def __init__(self, seed: int, length_s: float, size_wh: tuple[int, int], place: Place = "town") -> None:
        self.size_wh = size_wh
        self.course: Course = course_of(place, seed, length_s)
        self._blocks: dict[int, Block] = {}

    def s_at(self, time_s: float) -> float:
        """Metres along the route at ``time_s``."""
        return self.course.start_s + self.course.speed_mps * time_s

    def camera_at(self, time_s: float) -> Camera:
        """The camera at ``time_s``, with the small nodding of a moving car."""
        course, s = self.course, self.s_at(time_s)
        x, y, _ = course.route.point(s, course.d)
        nod = 0.003 * float(np.sin(2 * np.pi * 0.9 * time_s)) + 0.001 * float(np.sin(2 * np.pi * 2.3 * time_s))
        return Camera(
            position=(x, y, course.height_m),
            yaw_rad=float(course.route.heading_at(s + 4)) + course.yaw_rad,
            pitch_rad=course.pitch_rad + nod,
            fov_rad=course.fov_rad,
            size_wh=self.size_wh,
        )

    def blocks(self, s: float) -> list[Block]:
        """The blocks in view from ``s``."""
        block_m, view_m = self.course.block_m, self.course.view_m
        wanted = range(int((s - 8) // block_m), int((s + view_m) // block_m) + 1)
        for gone in [n for n in self._blocks if n < wanted.start]:
            del self._blocks[gone]
        for number in wanted:
            if number not in self._blocks:
                self._blocks[number] = self.course.block_of(number)
        return [self._blocks[number] for number in wanted]


def scene_at(drive: Drive, time_s: float) -> Scene:
    """The scene of ``drive`` at ``time_s`` seconds after its start."""
    course, s = drive.course, drive.s_at(time_s)
    blocks = drive.blocks(s)
    gaps = [b.gap for b in blocks if b.gap is not None]
    groups = [b.plants for b in blocks]
    for stream in course.streams:
        reach = _SMALL_RANGE_M if stream.kind in _SMALL else course.view_m - 20
        groups.append(objects_in_view(stream, seed=course.seed, gaps=gaps, s_range=(s - 12, s + reach), time_s=time_s))
    groups += course.at_gaps(gaps, s)
    objects = gather(groups).on_route(course.route)
    camera = drive.camera_at(time_s)
    backdrop = course.backdrop(s, camera)
    return Scene(
        shapes=concatenate([backdrop, *(b.shapes for b in blocks), shapes_of(objects, camera)]),
        objects=objects,
        walls=np.concatenate([b.walls for b in blocks]),
        wall_heights=np.concatenate([b.wall_heights for b in blocks]),
        camera=camera,
    )


def shadow_of(scene: Scene, sun: tuple[float, float, float], darkness: float) -> Shadow:
    """What darkens the ground: walls and objects in the sun, and a contact shadow under every object."""
    eye = np.asarray(scene.camera.position, np.float32)
    slope = np.array([-sun[0], -sun[1]], np.float32) / max(sun[2], 0.2)
    near = np.linalg.norm(scene.objects.position - eye, axis=-1) < _SHADOW_RANGE_M
    # shadows fall on flat ground: what stands on a bank has none
    near &= scene.objects.position[:, 2] < _ON_A_BANK_M
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
