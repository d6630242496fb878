"""Paints shapes into one buffer of shape numbers, from which label, depth, texture and light are all derived.

Every polygon is drawn exactly once, without anti-aliasing, as its own number. The label is the class of that number
and the image is the colour of that number, so both agree in every pixel. Depth and texture coordinates come from the
plane of the shape, so they are exact too: a plane gives 1 / z that is linear in the pixel position.

Axis legend: N shapes, P pixels, H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from cdga_sdk.opencv import cv2
from cdga_train.data.streets.camera import NEAR_M, Camera, clip_to_near
from cdga_train.data.streets.shapes import BLOB, BONE, FACE, LAYER_SOLID, Floats, Ints, Shapes, blob_outlines
from cdga_train.data.streets.textures import NUM_LEVELS, TILE_PX, atlas

__all__ = ["SKY_DEPTH_M", "Geometry", "Lighting", "Shadow", "coverage", "paint_geometry", "shade"]

SKY_DEPTH_M: Final = 2000.0
_SUBPIXEL_BITS: Final = 4
_SKY_ID: Final = 10
_FAR_COORDINATE: Final = 60000.0
_DAY_GLOW: Final = 0.25
_SMALLEST_PX: Final = 0.6


@dataclass(frozen=True, kw_only=True)
class Shadow:
    """Outlines on the ground: (n, K, 3) world points each with the darkness (n,) that it leaves, 0 to 1."""

    points: Floats
    darkness: Floats


@dataclass(frozen=True, kw_only=True)
class Lighting:
    """How the shapes are lit; colours are multipliers of about 0 to 1.5.

    Attributes:
        sun_direction: Unit vector towards the sun, world axes.
        sun_rgb: Direct light.
        ambient_rgb: Light from everywhere.
        glow: How strongly lamps and lit windows shine, 0 by day.
        window_rgb: Colour of lit windows.
    """

    sun_direction: tuple[float, float, float]
    sun_rgb: tuple[float, float, float]
    ambient_rgb: tuple[float, float, float]
    glow: float
    window_rgb: tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """What is where, before any light.

    Attributes:
        number: (H, W) intp: 0 is the sky, n + 1 is shape n of ``shapes``.
        label: (H, W) uint8 Cityscapes train ids.
        depth: (H, W) metres along the optical axis; `SKY_DEPTH_M` in the sky.
        texel: (H, W) intp: position in the atlas.
        ground: (H, W) bool: flat ground, which takes shadows and reflections.
        darkness: (H, W) float32, 0 to 1: shadow on the ground.
        shapes: The shapes that were visible, in world axes.
    """

    number: npt.NDArray[np.intp]
    label: npt.NDArray[np.uint8]
    depth: Floats
    texel: npt.NDArray[np.intp]
    ground: npt.NDArray[np.bool_]
    darkness: Floats
    shapes: Shapes


def paint_geometry(shapes: Shapes, shadow: Shadow, camera: Camera) -> Geometry:
    """Project, order from back to front and draw the shapes, then resolve every pixel."""
    flat = _turn_to_camera(shapes, camera)
    points_cam = camera.to_camera(flat.points)
    kept = _visible(flat, points_cam, camera)
    flat, points_cam = flat.take(kept), points_cam[kept]
    buffer = np.zeros(camera.size_wh[::-1], np.int32)
    _draw(buffer, flat, points_cam, camera)
    number = buffer.astype(np.intp)
    depth, texel = _resolve(number, flat, points_cam, camera)
    class_of = np.concatenate([[_SKY_ID], flat.train_id]).astype(np.uint8)
    ground_of = np.concatenate([[False], flat.layer < LAYER_SOLID])
    return Geometry(
        number=number,
        label=class_of[number],
        depth=depth,
        texel=texel,
        ground=ground_of[number],
        darkness=_draw_shadow(shadow, camera),
        shapes=flat,
    )


def _turn_to_camera(shapes: Shapes, camera: Camera) -> Shapes:
    """BONES and BLOBS become flat polygons that face the camera."""
    points, count = shapes.points.copy(), shapes.count.copy()
    axis_u, axis_v, offset = shapes.axis_u.copy(), shapes.axis_v.copy(), shapes.offset_uv.copy()
    eye = np.asarray(camera.position, np.float32)
    bone = np.flatnonzero(shapes.kind == BONE)
    start, end, radius = points[bone, 0], points[bone, 1], shapes.radius[bone]
    along = _unit(end - start)
    side = _unit(np.cross(along, start - eye))
    a, b = side * radius[:, :1], side * radius[:, 1:]
    cap_a, cap_b = along * radius[:, :1] * 0.8, along * radius[:, 1:] * 0.8
    bar = [start - a, start - cap_a, start + a, end + b, end + cap_b, end - b]
    points[bone, :6], points[bone, 6:], count[bone] = np.stack(bar, axis=1), bar[-1][:, None], 6
    axis_u[bone], axis_v[bone] = side / (2 * radius.max(axis=1, keepdims=True) + 1e-6), along * 0.5
    offset[bone] = 0.0
    blob = np.flatnonzero(shapes.kind == BLOB)
    centre, size = points[blob, 0], shapes.radius[blob]
    right = _unit(np.cross(centre - eye, np.array([0, 0, 1], np.float32)))
    up = np.cross(right, _unit(centre - eye))
    outline = blob_outlines()[shapes.outline[blob]] * size[:, None]
    points[blob] = centre[:, None] + outline[..., :1] * right[:, None] + outline[..., 1:] * up[:, None]
    count[blob] = outline.shape[1]
    axis_u[blob], axis_v[blob] = right / (2.4 * size[:, :1] + 1e-6), up / (2.4 * size[:, 1:] + 1e-6)
    # texture (0.5, 0.5) is the middle of the blob; the first point lies at (+1, 0) of the outline
    offset[blob] = 0.5 + outline[:, 0] / (2.4 * size + 1e-6)
    return replace(shapes, points=points, count=count, axis_u=axis_u, axis_v=axis_v, offset_uv=offset)


def _unit(vectors: Floats) -> Floats:
    out: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-6)
    return out


def _visible(shapes: Shapes, points_cam: Floats, camera: Camera) -> npt.NDArray[np.bool_]:
    """In front of the camera, inside the image, larger than half a pixel and not seen from behind."""
    eye = np.asarray(camera.position, np.float32)
    normal = np.cross(shapes.axis_u, shapes.axis_v)
    towards = (normal * (eye - shapes.points[:, 0])).sum(-1) > 0
    # the points as the first axis, because numpy reduces long rows far faster than many short ones
    points_K3N = np.ascontiguousarray(points_cam.transpose(1, 2, 0))
    depth_KN = points_K3N[:, 2]
    nearest, farthest = depth_KN.min(axis=0), depth_KN.max(axis=0)
    slope_K2N = points_K3N[:, :2] / np.maximum(depth_KN, np.float32(NEAR_M * 0.5))[:, None]
    low, high = slope_K2N.min(axis=0) * camera.focal_px, slope_K2N.max(axis=0) * camera.focal_px
    half = np.array(camera.size_wh, np.float32)[:, None] / 2 + 1
    inside = np.all((high > -half) & (low < half), axis=0)
    large = (high - low).max(axis=0) > _SMALLEST_PX
    # a polygon that crosses the near plane has no bounding box in the image yet
    crossing = nearest <= NEAR_M
    seen: npt.NDArray[np.bool_] = (farthest > NEAR_M) & (towards | ~shapes.one_sided) & (crossing | (inside & large))
    return seen


def _draw(buffer: Ints, shapes: Shapes, points_cam: Floats, camera: Camera) -> None:
    """Fill the polygons back to front; cost: about 3 microseconds each at 512 x 256."""
    depth = camera.to_camera(shapes.anchor)[:, 2]
    depth[shapes.layer < LAYER_SOLID] = 0
    sequence = np.lexsort((shapes.order, -depth, shapes.layer))
    fixed = _fixed_point(points_cam, camera)
    crossing = points_cam[..., 2].min(axis=1) <= NEAR_M
    count, lumpy, cut = shapes.count.tolist(), (shapes.kind == BLOB).tolist(), crossing.tolist()
    for n in sequence.tolist():
        outline = fixed[n, : count[n]]
        if cut[n]:
            clipped = clip_to_near(points_cam[n, : count[n]])
            if len(clipped) < 3:
                continue
            outline = _fixed_point(clipped, camera)
        if lumpy[n]:
            cv2.fillPoly(buffer, [outline], n + 1, cv2.LINE_8, _SUBPIXEL_BITS)
        else:
            cv2.fillConvexPoly(buffer, outline, n + 1, cv2.LINE_8, _SUBPIXEL_BITS)


def _fixed_point(points_cam: Floats, camera: Camera) -> Ints:
    pixels = np.clip(camera.to_pixels(points_cam), -_FAR_COORDINATE, _FAR_COORDINATE)
    return np.rint(pixels * (1 << _SUBPIXEL_BITS)).astype(np.int32)


def _resolve(
    number: npt.NDArray[np.intp], shapes: Shapes, points_cam: Floats, camera: Camera
) -> tuple[Floats, npt.NDArray[np.intp]]:
    """Depth and texel of every pixel from the plane and the texture axes of its shape."""
    u_axis, v_axis = shapes.axis_u @ camera.rotation.T, shapes.axis_v @ camera.rotation.T
    origin = points_cam[:, 0]
    normal = _unit(np.cross(u_axis, v_axis))
    distance = (normal * origin).sum(-1, keepdims=True)
    plane = normal / np.where(np.abs(distance) < 1e-4, 1e-4, distance)
    # 64 repeats of offset keep the integer parts positive
    offset = shapes.offset_uv - np.stack([(u_axis * origin).sum(-1), (v_axis * origin).sum(-1)], -1) + 64
    columns, rows = camera.rays()
    inverse: Floats = _linear(plane.astype(np.float32), number, columns, rows, sky=(0.0, 0.0, 1 / SKY_DEPTH_M))
    depth = (1 / np.clip(inverse, 1 / SKY_DEPTH_M, 1 / 0.1)).astype(np.float32, copy=False)
    coordinates = []
    for axis, start in ((u_axis, offset[:, 0]), (v_axis, offset[:, 1])):
        value = _linear((axis * TILE_PX).astype(np.float32), number, columns, rows, sky=(0.0, 0.0, 0.0))
        value *= depth
        value += np.take(np.append(np.float32(0), start * TILE_PX).astype(np.float32), number)
        coordinates.append(value)
    return depth, _texel(shapes, number, coordinates[0], coordinates[1])


def _linear(
    table: Floats, number: npt.NDArray[np.intp], columns: Floats, rows: Floats, *, sky: tuple[float, float, float]
) -> Floats:
    full = np.concatenate([np.array([sky], np.float32), table.astype(np.float32)]).T.copy()
    out: Floats = np.take(full[0], number)
    out *= columns
    part = np.take(full[1], number)
    part *= rows
    out += part
    out += np.take(full[2], number)
    return out


def _texel(shapes: Shapes, number: npt.NDArray[np.intp], u: Floats, v: Floats) -> npt.NDArray[np.intp]:
    """Position in the atlas; the level follows how many texels one pixel covers."""
    step = np.ones_like(u)
    step[:, 1:] = np.abs(u[:, 1:] - u[:, :-1])
    rise = np.abs(v[1:] - v[:-1])
    np.maximum(step[1:], rise, out=step[1:])
    # the exponent bits of a float are the whole part of its base-2 logarithm
    level = np.clip((step.view(np.int32) >> 23) - 127, 0, NUM_LEVELS - 1)
    tile = np.take(np.append(0, shapes.tile).astype(np.int32), number)
    tile *= NUM_LEVELS
    tile += level
    tile *= TILE_PX
    tile += v.astype(np.int32) & (TILE_PX - 1)
    tile *= TILE_PX
    tile += u.astype(np.int32) & (TILE_PX - 1)
    return tile.astype(np.intp)


def _draw_shadow(shadow: Shadow, camera: Camera) -> Floats:
    buffer = np.zeros(camera.size_wh[::-1], np.uint8)
    points_cam = camera.to_camera(shadow.points)
    front = points_cam[..., 2] > NEAR_M
    fixed = _fixed_point(points_cam, camera)
    edge_x = camera.size_wh[0] << _SUBPIXEL_BITS
    beside = np.all(fixed[..., 0] < 0, axis=1) | np.all(fixed[..., 0] > edge_x, axis=1)
    whole = np.all(front, axis=1)
    wanted = np.flatnonzero(np.any(front, axis=1) & ~(whole & beside))
    for n, darkness in zip(wanted.tolist(), (shadow.darkness[wanted] * 255).tolist(), strict=True):
        outline = fixed[n] if whole[n] else _fixed_point(_hull_in_front(points_cam[n]), camera)
        if len(outline) >= 3:
            cv2.fillConvexPoly(buffer, cv2.convexHull(outline), darkness, cv2.LINE_8, _SUBPIXEL_BITS)
    soft = cv2.blur(buffer, (5, 3))
    return soft.astype(np.float32) * np.float32(1 / 255)


def _hull_in_front(points_cam: Floats) -> Floats:
    """All crossings of the near plane by lines between the points, and the points before it: their hull is the cut."""
    front, back = points_cam[points_cam[:, 2] > NEAR_M], points_cam[points_cam[:, 2] <= NEAR_M]
    part = (NEAR_M - front[:, None, 2:]) / (back[None, :, 2:] - front[:, None, 2:])
    cuts = front[:, None] + part * (back[None] - front[:, None])
    return np.concatenate([front, cuts.reshape(-1, 3)])


def shade(geometry: Geometry, lighting: Lighting) -> tuple[Floats, Floats]:
    """Colour of every pixel without sky and air: (3, H, W) float32, 1 is white, and the part of it that glows.

    Planes instead of interleaved colours: numpy is three times as fast on them.
    """
    shapes = geometry.shapes
    light_N3 = _light(shapes, lighting)
    base_3N = _with_sky((shapes.rgb * light_N3 / 128).astype(np.float32))
    light = np.take(np.append(np.float32(0), light_N3.mean(-1) / 255).astype(np.float32), geometry.number)
    # the four bytes of a texel in one gather
    texel = np.take(atlas().texels, geometry.texel).view(np.uint8).reshape(*geometry.texel.shape, 4)
    bright = 1 - geometry.darkness * geometry.ground
    modulation = texel[..., 3] * bright
    light *= bright
    image = np.empty((3, *geometry.texel.shape), np.float32)
    for channel in range(3):
        np.multiply(np.take(base_3N[channel], geometry.number), modulation, out=image[channel])
        image[channel] += texel[..., channel] * light
    return image, _glow(geometry, lighting)


def coverage(geometry: Geometry) -> Floats:
    """(H, W) float32, 0 to 1: how much of a pixel its shape covers; below 1 the light comes through twigs."""
    return np.take(atlas().cover, geometry.texel).astype(np.float32) * np.float32(1 / 255)


def _with_sky(table_N3: Floats) -> Floats:
    """(3, N + 1): the columns of a table by channel, with black for number 0."""
    return np.concatenate([np.zeros((1, 3)), table_N3]).T.astype(np.float32, order="C")


def _light(shapes: Shapes, lighting: Lighting) -> Floats:
    """(N, 3) light on each shape: ambient from the sky plus Lambert's cosine for faces, a mean for round shapes."""
    sun = np.asarray(lighting.sun_direction, np.float32)
    normal = _unit(np.cross(shapes.axis_u, shapes.axis_v))
    facing = np.where(shapes.kind == FACE, np.clip(normal @ sun, 0, 1), 0.5)
    facing = np.where(shapes.layer < LAYER_SOLID, sun[2], facing)
    upward = np.where(shapes.kind == FACE, 0.85 + 0.15 * normal[:, 2], 0.92)
    direct, ambient = np.asarray(lighting.sun_rgb, np.float32), np.asarray(lighting.ambient_rgb, np.float32)
    return (facing[:, None] * direct + upward[:, None] * ambient).astype(np.float32)


def _glow(geometry: Geometry, lighting: Lighting) -> Floats:
    """(3, H, W) light of lamps and, when the lights are on, of windows."""
    table_3N = _with_sky(geometry.shapes.glow * np.float32(max(lighting.glow, _DAY_GLOW)))
    out = np.stack([np.take(plane, geometry.number) for plane in table_3N])
    if lighting.glow > _DAY_GLOW / 2:
        window = np.take(atlas().glow, geometry.texel) * np.float32(lighting.glow / 255)
        for channel in range(3):
            out[channel] += window * np.float32(lighting.window_rgb[channel])
    return out
