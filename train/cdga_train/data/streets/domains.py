"""The five looks of the same place: light, sky, air, weather and camera. None of them moves a pixel's class."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from cdga_sdk.opencv import cv2
from cdga_train.data.streets.camera import Camera
from cdga_train.data.streets.courses import Place
from cdga_train.data.streets.painter import Geometry, Lighting
from cdga_train.data.streets.shapes import Floats
from cdga_train.data.streets.textures import cloud_noise

__all__ = ["DOMAINS", "Look", "finish", "look_of"]

DOMAINS: Final[tuple[str, ...]] = ("day", "dusk", "rain", "fog", "camera")
_Rgb = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Look:
    """Everything that a domain decides.

    Attributes:
        domain: One of `DOMAINS`.
        lighting: Light on the shapes.
        shadow: How dark cast shadows are, 0 to 1 (contact shadows stay).
        sky_top, sky_low: Sky colour overhead and at the horizon.
        cloud: Share of the sky under clouds, 0 to 1, and ``cloud_rgb`` their colour.
        haze_rgb: What distance fades to.
        haze_m: Distance after which 63 % have faded (Koschmieder 1924: 1 - exp(-z / haze_m)).
        gain: Exposure.
        gamma: Exponent on the final image; above 1 darkens the middle tones.
        cast: Colour multipliers of the whole image.
        noise: Standard deviation of the sensor noise, 0 to 1.
    """

    domain: str
    lighting: Lighting
    shadow: float
    sky_top: _Rgb
    sky_low: _Rgb
    cloud: float
    cloud_rgb: _Rgb
    haze_rgb: _Rgb
    haze_m: float
    gain: float
    gamma: float
    cast: _Rgb
    noise: float


def _scaled(rgb: _Rgb, factor: float) -> _Rgb:
    return rgb[0] * factor, rgb[1] * factor, rgb[2] * factor


def _sun(rng: np.random.Generator, low: float, high: float) -> tuple[float, float, float]:
    azimuth, height = rng.uniform(0, 2 * np.pi), np.deg2rad(rng.uniform(low, high))
    flat = float(np.cos(height))
    return flat * float(np.sin(azimuth)), flat * float(np.cos(azimuth)), float(np.sin(height))


def look_of(domain: str, seed: int, place: Place = "town") -> Look:
    """The look of ``domain`` in the place of ``seed``; ``day`` and ``camera`` share sun and sky."""
    look = _town_look(domain, seed)
    match place:
        case "town":
            return look
        case "winter":
            return _in_winter(look, np.random.default_rng([seed, 81]))
        case "road":
            return _in_the_open(look, np.random.default_rng([seed, 68]))


def _in_winter(look: Look, rng: np.random.Generator) -> Look:
    """A low sun and, by day, skies that are white or of a pale blue as often as not."""
    sun, kind, level = _sun(rng, 8, 30), float(rng.uniform()), float(rng.uniform())
    look = replace(look, lighting=replace(look.lighting, sun_direction=sun))
    if look.domain not in {"day", "camera"}:
        return look
    if kind < 0.45:
        white = 0.88 + 0.16 * level
        dull = replace(look.lighting, sun_rgb=_scaled(look.lighting.sun_rgb, 0.3))
        return replace(
            look, lighting=dull, shadow=look.shadow * 0.3, sky_top=(white,) * 3, sky_low=(white,) * 3, cloud=0.2 * level
        )
    if kind < 0.8:
        top = (0.45 + 0.3 * level, 0.6 + 0.22 * level, 0.78 + 0.14 * level)
        low = (0.84 + 0.1 * level, 0.88 + 0.08 * level, 0.92 + 0.06 * level)
        return replace(look, sky_top=top, sky_low=low, cloud=0.4 * level)
    return look


def _in_the_open(look: Look, rng: np.random.Generator) -> Look:
    """Clearer air than in towns and, by day, skies from deep blue to overexposed white."""
    clear = float(rng.uniform(1, 5))
    kind, level = float(rng.uniform()), float(rng.uniform())
    if look.domain not in {"day", "camera"}:
        return replace(look, haze_m=look.haze_m * (1 + 0.2 * clear))
    look = replace(look, haze_m=look.haze_m * clear)
    if kind < 0.22:
        white = 0.94 + 0.12 * level
        return replace(look, sky_top=(white * 0.98, white, white), sky_low=(white,) * 3, cloud=0.0)
    if kind < 0.62:
        top = (0.2 + 0.2 * level, 0.36 + 0.2 * level, 0.64 + 0.16 * level)
        low = (0.62 + 0.16 * level, 0.76 + 0.1 * level, 0.86 + 0.08 * level)
        cloud = 0.0 if level < 0.6 else 0.5 * level
        return replace(look, sky_top=top, sky_low=low, cloud=cloud, haze_rgb=_scaled(low, 0.92))
    return look


def _town_look(domain: str, seed: int) -> Look:
    sunlight = np.random.default_rng([seed, 31])
    sun = _sun(sunlight, 25, 65)
    mood = np.random.default_rng([seed, 32, DOMAINS.index(domain)])
    if domain == "dusk":
        return _dusk(mood, sun)
    if domain in {"rain", "fog"}:
        return _grey(domain, mood, sun)
    return _day(domain, sunlight, mood, sun)


def _day(domain: str, rng: np.random.Generator, mood: np.random.Generator, sun: tuple[float, float, float]) -> Look:
    overcast = float(np.clip(rng.normal(0.35, 0.35), 0, 1))
    direct, blue = 0.72 * (1 - 0.8 * overcast), 1 - 0.75 * overcast
    ambient = 0.74 + 0.22 * overcast
    exposure = float(rng.uniform(0.88, 1.12))
    gamma, cast, noise = 1.0, (1.0, 1.0, 1.0), 0.008
    if domain == "camera":
        warm = float(mood.choice([-1.0, 1.0]) * mood.uniform(0.5, 1.0))
        cast = (1 + 0.22 * warm, 1 + float(mood.uniform(-0.08, 0.1)), 1 - 0.24 * warm)
        exposure *= float(mood.choice([mood.uniform(0.55, 0.75), mood.uniform(1.25, 1.55)]))
        gamma, noise = float(mood.uniform(0.65, 1.6)), float(mood.uniform(0.035, 0.075))
    return Look(
        domain=domain,
        lighting=Lighting(
            sun_direction=sun,
            sun_rgb=(direct, direct * 0.96, direct * 0.86),
            ambient_rgb=(ambient * 0.95, ambient, ambient * 1.06),
            glow=0.0,
            window_rgb=(0, 0, 0),
        ),
        shadow=0.46 * (1 - overcast),
        sky_top=(0.72 - 0.42 * blue, 0.76 - 0.24 * blue, 0.82 + 0.04 * blue),
        sky_low=(0.86 - 0.08 * blue, 0.89, 0.93),
        cloud=float(rng.uniform(0.1, 0.6)),
        cloud_rgb=(0.95, 0.96, 0.98),
        haze_rgb=(0.78, 0.83, 0.89),
        haze_m=float(rng.uniform(350, 900)),
        gain=exposure,
        gamma=gamma,
        cast=cast,
        noise=noise,
    )


def _dusk(rng: np.random.Generator, sun: tuple[float, float, float]) -> Look:
    late = float(rng.uniform(0, 1))
    level = 0.5 - 0.22 * late
    return Look(
        domain="dusk",
        lighting=Lighting(
            sun_direction=(sun[0], sun[1], 0.12),
            sun_rgb=_scaled((0.42, 0.24, 0.1), 1 - late),
            ambient_rgb=(level * 0.78, level * 0.82, level * 1.25),
            glow=0.75 + 0.25 * late,
            window_rgb=(1.0, 0.72, 0.34),
        ),
        shadow=0.0,
        sky_top=_scaled((0.16, 0.2, 0.42), 1.1 - 0.6 * late),
        sky_low=_scaled((0.85, 0.5, 0.32), 1.0 - 0.55 * late),
        cloud=float(rng.uniform(0.2, 0.7)),
        cloud_rgb=_scaled((0.45, 0.3, 0.38), 1 - 0.5 * late),
        haze_rgb=_scaled((0.42, 0.34, 0.4), 1 - 0.5 * late),
        haze_m=400.0,
        gain=1.1,
        gamma=1.05,
        cast=(1.05, 0.94, 1.02),
        noise=0.02 + 0.015 * late,
    )


def _grey(domain: str, rng: np.random.Generator, sun: tuple[float, float, float]) -> Look:
    rain = domain == "rain"
    level = float(rng.uniform(0.5, 0.66)) if rain else float(rng.uniform(0.62, 0.8))
    tone = float(rng.uniform(0.5, 0.66)) if rain else float(rng.uniform(0.66, 0.82))
    grey = (tone * 0.97, tone, tone * 1.03)
    return Look(
        domain=domain,
        lighting=Lighting(
            sun_direction=sun,
            sun_rgb=(0.05, 0.05, 0.05),
            ambient_rgb=(level * 0.94, level, level * 1.07),
            glow=float(rng.uniform(0.2, 0.5)),
            window_rgb=(0.8, 0.62, 0.36),
        ),
        shadow=0.0,
        sky_top=_scaled(grey, 0.88 if rain else 1.0),
        sky_low=grey,
        cloud=0.8 if rain else 0.0,
        cloud_rgb=_scaled(grey, 0.8),
        haze_rgb=grey,
        haze_m=float(rng.uniform(90, 170)) if rain else float(rng.uniform(18, 42)),
        gain=1.0,
        gamma=1.0,
        cast=(0.96, 1.0, 1.05) if rain else (1.0, 1.0, 1.0),
        noise=0.012,
    )


def finish(
    image: Floats, glow: Floats, geometry: Geometry, camera: Camera, look: Look, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """From lit surfaces (3, H, W) to the picture (H, W, 3) uint8: sky, air, weather, lens and sensor.

    ``rng`` is the chance of this one frame (noise, drops, streaks). ``image`` is used up.
    """
    image += glow
    _hang_sky(image, geometry, camera, look)
    _fill_with_haze(image, geometry, look)
    if look.domain == "rain":
        _wet(image, geometry, camera)
    if look.lighting.glow > 0:
        _bloom(image, glow)
    for plane, factor in zip(image, look.cast, strict=True):
        plane *= np.float32(factor * look.gain)
    if look.domain == "rain":
        _rain_on_lens(image, rng)
    if look.domain == "camera":
        _lens(image)
    return _sensor(image, look, rng)


def _hang_sky(image: Floats, geometry: Geometry, camera: Camera, look: Look) -> None:
    sky = geometry.number == 0
    rows = int(np.flatnonzero(sky.any(axis=1)).max(initial=-1)) + 1
    if rows == 0:
        return
    height = np.clip((camera.horizon_row - np.arange(rows)) / camera.focal_px, 0, 1).astype(np.float32)
    mix = np.clip(height * 2.2, 0, 1)[:, None]
    noise = cloud_noise()
    columns = (camera.yaw_rad + np.arctan(camera.rays()[0])) * (noise.shape[1] / (2 * np.pi))
    lines = np.clip((0.35 / (height + 0.12)) * 60, 0, noise.shape[0] - 1).astype(np.intp)
    cloud = noise[lines[:, None], columns.astype(np.intp)[None, :] % noise.shape[1]]
    width = image.shape[2]
    cloud = _planar(cv2.GaussianBlur(cloud, (0, 0), max(0.8, width / 256)))
    cover = np.clip((cloud - 1.4 + 2.2 * look.cloud) * np.float32(0.7), 0, 1) * np.float32(0.8)
    for plane, low, top, white in zip(image, look.sky_low, look.sky_top, look.cloud_rgb, strict=True):
        clear = low + (top - low) * mix
        np.copyto(plane[:rows], clear + cover * (white - clear), where=sky[:rows])


def _planar(array: object) -> Floats:
    """The float32 array that an OpenCV function gave back (its own types say less)."""
    return np.asarray(array, np.float32)


def _fill_with_haze(image: Floats, geometry: Geometry, look: Look) -> None:
    through = _planar(cv2.exp(geometry.depth * np.float32(-1 / look.haze_m)))
    if look.domain != "fog":
        through[geometry.number == 0] = 1
    for plane, haze in zip(image, look.haze_rgb, strict=True):
        plane -= np.float32(haze)
        plane *= through
        plane += np.float32(haze)


def _wet(image: Floats, geometry: Geometry, camera: Camera) -> None:
    """Wet ground mirrors what stands above it, smeared downwards, the more the flatter one looks at it (Fresnel)."""
    height = image.shape[1]
    horizon = camera.horizon_row
    first = int(np.clip(np.ceil(horizon), 0, height - 1))
    rows = np.arange(first, height)
    mirrored = np.clip(2 * horizon - rows, 0, height - 1).astype(np.intp)
    grazing = np.exp(-(rows - horizon) / (0.28 * height)).astype(np.float32)
    ground = geometry.ground[first:].astype(np.float32)
    weight = (0.2 + 0.5 * grazing)[:, None] * ground
    dark = 1 - np.float32(0.28) * ground
    for plane in image:
        reflection = _planar(cv2.blur(plane[mirrored], (3, max(3, height // 12))))
        plane[first:] *= dark
        plane[first:] += weight * (reflection - plane[first:])


def _bloom(image: Floats, glow: Floats) -> None:
    """Light that spreads in the lens; computed at a quarter of the size."""
    height, width = glow.shape[1:]
    for plane, light in zip(image, glow, strict=True):
        small = cv2.resize(light, (max(1, width // 4), max(1, height // 4)), interpolation=cv2.INTER_AREA)
        wide = _planar(cv2.GaussianBlur(small, (0, 0), max(1.0, width / 170)))
        plane += _planar(cv2.resize(_planar(small) * np.float32(0.3) + wide * np.float32(0.8), (width, height)))


def _rain_on_lens(image: Floats, rng: np.random.Generator) -> None:
    height, width = image.shape[1:]
    drops, streaks = np.zeros((height, width), np.uint8), np.zeros((height, width), np.uint8)
    slant = float(rng.normal(0.12, 0.03))
    for _ in range(int(rng.integers(50, 110))):
        x, y, length = rng.uniform(0, width), rng.uniform(-0.1, 1) * height, rng.uniform(0.03, 0.1) * height
        end = (int(x + slant * length), int(y + length))
        cv2.line(streaks, (int(x), int(y)), end, int(rng.integers(40, 110)), 1, cv2.LINE_AA)
    for _ in range(int(rng.integers(4, 14))):
        centre = (int(rng.uniform(0, width)), int(rng.uniform(0, height)))
        cv2.circle(drops, centre, max(1, int(rng.uniform(0.008, 0.03) * height)), 255, -1, cv2.LINE_AA)
    weight = _planar(cv2.blur(drops, (3, 3))) * np.float32(0.85 / 255)
    shine = streaks * np.float32(0.5 / 255)
    for plane in image:
        blurred = _planar(cv2.blur(plane, (max(3, width // 40), max(3, height // 14))))
        plane += weight * (blurred * np.float32(1.08) - plane)
        plane += shine


def _lens(image: Floats) -> None:
    """A cheap lens: soft everywhere, darker towards the corners."""
    height, width = image.shape[1:]
    x = np.linspace(-1, 1, width, dtype=np.float32)
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    vignette = np.float32(1.08) - np.float32(0.38) * (x * x + y * y)
    for plane in image:
        plane[:] = cv2.GaussianBlur(plane, (0, 0), 0.55 + width / 900)
        plane *= vignette


def _sensor(image: Floats, look: Look, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    height, width = image.shape[1:]
    planes = []
    for plane in image:
        # a pixel of a real sensor sees a little of its neighbours
        soft = plane if look.domain == "camera" else _planar(cv2.GaussianBlur(plane, (3, 3), 0.5))
        if look.gamma != 1.0:
            soft = _planar(cv2.pow(np.maximum(soft, 0), look.gamma))
        soft += _noise(rng, height, width, look.noise)
        planes.append(np.clip(soft * np.float32(255), 0, 255).astype(np.uint8))
    picture: npt.NDArray[np.uint8] = np.asarray(cv2.merge(planes), np.uint8)
    return _jpeg(picture, quality=32) if look.domain == "camera" else picture


def _noise(rng: np.random.Generator, height: int, width: int, strength: float) -> Floats:
    """(H, W) normal noise, tiled from a quarter of the area because drawing it all costs 4 ms a frame."""
    block = rng.standard_normal((height // 2 + 1, width // 2 + 1), np.float32) * np.float32(strength)
    return np.tile(block, (2, 2))[:height, :width]


def _jpeg(picture_rgb: npt.NDArray[np.uint8], *, quality: int) -> npt.NDArray[np.uint8]:
    ok, data = cv2.imencode(".jpg", picture_rgb, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert ok
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
