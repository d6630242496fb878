"""A procedural labelled driving world that needs no download: towns and open roads in five looks, with exact labels.

A town or an open road is laid out along a route from a seed, in metres. A pinhole camera drives through it, every
shape is drawn once into a buffer of shape numbers, and label, depth, texture and light follow from that buffer, so
image and label agree in every pixel. Only a crown without leaves is labelled as a whole, as people label it, while
what is behind shows between its twigs. Five domains show the same places as sunny or grey `day`, `dusk`, `rain`, `fog`,
and through another `camera`; a domain changes colours and never a label.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from cdga_sdk.errors import UsageError
from cdga_train.data.streets.camera import Camera
from cdga_train.data.streets.courses import PLACES, Place
from cdga_train.data.streets.domains import DOMAINS, Look, finish, look_of
from cdga_train.data.streets.painter import Geometry, coverage, paint_geometry, shade
from cdga_train.data.streets.scene import Drive, scene_at, shadow_of
from cdga_train.data.streets.textures import TILE

__all__ = ["DOMAINS", "PLACES", "Place", "StreetFrame", "render_clip", "render_frame"]

_MIN_SIDE, _MAX_SIDE = 16, 4096


@dataclass(frozen=True, kw_only=True)
class StreetFrame:
    """One drawn frame.

    Attributes:
        image_rgb: (H, W, 3) uint8.
        label: (H, W) uint8 Cityscapes train ids, 0 to 18; there is no unlabelled pixel.
    """

    image_rgb: npt.NDArray[np.uint8]
    label: npt.NDArray[np.uint8]


def render_frame(
    *, seed: int, domain: str = "day", size_wh: tuple[int, int] = (512, 256), place: Place = "town"
) -> StreetFrame:
    """One frame of its own: every seed is another place, camera and traffic.

    The same seed in another domain is the same place with the identical label; the same arguments give the same bytes.

    Args:
        seed: 0 or more.
        domain: One of `DOMAINS`.
        size_wh: Width and height in pixels, 16 to 4096 each; drawn at this size, not resized.
        place: One of `PLACES`: a town, a town in winter, or an open road (motorway or country road).

    Raises:
        UsageError: Unknown domain or place, negative seed or a size out of range.
    """
    return next(render_clip(seed=seed, num_frames=1, domain=domain, size_wh=size_wh, place=place))


def render_clip(
    *,
    seed: int,
    num_frames: int,
    domain: str = "day",
    size_wh: tuple[int, int] = (512, 256),
    fps: Fraction = Fraction(25),
    place: Place = "town",
) -> Iterator[StreetFrame]:
    """A continuous drive through the place of ``seed``: the camera moves forward, traffic and people move.

    Frame 0 is `render_frame` of the same arguments. Frame n shows the place n / fps seconds later. Only the centre
    line of the route grows with the length (32 bytes a metre).

    Args:
        seed: 0 or more.
        num_frames: 0 or more.
        domain: One of `DOMAINS`.
        size_wh: Width and height in pixels, 16 to 4096 each.
        fps: Frames per second, above 0.
        place: One of `PLACES`.

    Raises:
        UsageError: Unknown domain or place, negative seed or number of frames, a size or rate out of range; raised by
            the call itself, not by the first frame.
    """
    _check_word("domain", domain, DOMAINS)
    _check_word("place", place, PLACES)
    _check(seed=seed, num_frames=num_frames, size_wh=size_wh, fps=fps)
    return _frames(seed, num_frames, domain, size_wh, fps, place)


def _frames(
    seed: int, num_frames: int, domain: str, size_wh: tuple[int, int], fps: Fraction, place: Place
) -> Iterator[StreetFrame]:
    drive = Drive(seed, float(num_frames / fps), size_wh, place)
    look = look_of(domain, seed, place)
    for number in range(num_frames):
        scene = scene_at(drive, float(number / fps))
        shadow = shadow_of(scene, look.lighting.sun_direction, look.shadow)
        geometry = paint_geometry(scene.shapes, shadow, scene.camera)
        chance = [seed, 40, DOMAINS.index(domain), number]
        picture = _picture(geometry, scene.camera, look, chance)
        twigs = scene.shapes.tile == TILE["twigs"]
        if twigs.any():  # cost: the frame is drawn and lit twice
            behind = paint_geometry(scene.shapes.take(~twigs), shadow, scene.camera)
            picture = _mixed(picture, _picture(behind, scene.camera, look, chance), coverage(geometry))
        yield StreetFrame(image_rgb=picture, label=geometry.label)


def _picture(geometry: Geometry, camera: Camera, look: Look, chance: Sequence[int]) -> npt.NDArray[np.uint8]:
    image, glow = shade(geometry, look.lighting)
    return finish(image, glow, geometry, camera, look, np.random.default_rng(chance))


def _mixed(
    front_HW3: npt.NDArray[np.uint8], behind_HW3: npt.NDArray[np.uint8], cover_HW: npt.NDArray[np.float32]
) -> npt.NDArray[np.uint8]:
    behind = behind_HW3.astype(np.float32)
    return np.rint(behind + (front_HW3 - behind) * cover_HW[..., None]).astype(np.uint8)


def _check_word(what: str, word: str, known: Sequence[str]) -> None:
    if word not in known:
        near = get_close_matches(word, known, n=1, cutoff=0.3)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise UsageError(f"unknown {what} '{word}'", fix=f"{hint}use one of {', '.join(known)}")


def _check(*, seed: int, num_frames: int, size_wh: tuple[int, int], fps: Fraction) -> None:
    if len(size_wh) != 2 or not all(_MIN_SIDE <= side <= _MAX_SIDE for side in size_wh):
        raise UsageError(
            f"size {'x'.join(str(side) for side in size_wh)} cannot be drawn",
            fix=f"give width and height from {_MIN_SIDE} to {_MAX_SIDE} pixels, such as 512x256",
        )
    if seed < 0:
        raise UsageError(f"seed {seed} is negative", fix="give 0 or more")
    if num_frames < 0:
        raise UsageError(f"{num_frames} frames cannot be drawn", fix="give 0 or more")
    if fps <= 0:
        raise UsageError(f"{fps} frames per second is no rate", fix="give a rate above 0, such as 25")
