"""Small procedural textures with their mip levels, drawn once per process.

A texel holds (r, g, b, a) bytes. The colour it gives is ``light * (rgb + base * a / 128)``: ``a`` modulates the
colour of the shape (128 keeps it), ``rgb`` adds a colour of its own (window glass, shop fronts).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt

from cdga_sdk.opencv import cv2
from cdga_train.data.streets.shapes import Floats

__all__ = ["NUM_LEVELS", "TILE", "TILE_NAMES", "TILE_PX", "Atlas", "atlas", "cloud_noise"]

TILE_PX: Final = 128
NUM_LEVELS: Final = 7
TILE_NAMES: Final = (
    "plain",
    "asphalt",
    "cracked",
    "slabs",
    "cobbles",
    "concrete",
    "grass",
    "brick",
    "plaster",
    "stone",
    "planks",
    "pickets",
    "bars",
    "leaves",
    "crown",
    "round",
    "roof",
    "shop",
    "door",
    "arcade",
    "windows0",
    "windows1",
    "windows2",
    "windows3",
    "windows4",
    "windows5",
    "bus_side",
    "wheel",
    "face_shade",
    "cloth",
    "conifer",
    "mesh",
    "twigs",
)
_NUM_TWIGS: Final = 150
TILE: Final = {name: number for number, name in enumerate(TILE_NAMES)}
_Texels = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Atlas:
    """All tiles with all levels.

    Attributes:
        texels: (tiles * levels * TILE_PX * TILE_PX,) uint32, each the four bytes r, g, b, a in memory order.
        glow: The same number of uint8: how brightly the texel shines when the lights are on.
        cover: The same number of uint8: how much of the texel there is, 255 for all of it.
    """

    texels: npt.NDArray[np.uint32]
    glow: _Texels
    cover: _Texels


def fractal_noise(rng: np.random.Generator, shape_hw: tuple[int, int], *, octaves: int = 5, first: int = 4) -> Floats:
    """(H, W) wrapping noise of mean 0 and standard deviation 1, coarse octaves strongest."""
    height, width = shape_hw
    total = np.zeros(shape_hw, np.float32)
    for octave in range(octaves):
        cells = min(first * 2**octave, min(shape_hw))
        grid = rng.normal(size=(cells, cells)).astype(np.float32)
        wrapped = np.pad(grid, 2, mode="wrap")
        step_x, step_y = width / cells, height / cells
        large = cv2.resize(wrapped, (round((cells + 4) * step_x), round((cells + 4) * step_y)))
        top, left = round(2 * step_y), round(2 * step_x)
        total += large[top : top + height, left : left + width] * np.float32(0.65**octave)
    normal: Floats = (total - total.mean()) / total.std()
    return normal


class _Canvas:
    """One tile while it is drawn: row 0 is the upper edge of the surface."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng([11, seed])
        self.own = np.zeros((TILE_PX, TILE_PX, 3), np.float32)
        self.base = np.ones((TILE_PX, TILE_PX), np.float32)
        self.glow = np.zeros((TILE_PX, TILE_PX), np.float32)
        self.cover = np.ones((TILE_PX, TILE_PX), np.float32)

    def noise(self, amount: float, *, first: int = 4, octaves: int = 5) -> None:
        self.base *= 1 + amount * fractal_noise(self.rng, (TILE_PX, TILE_PX), octaves=octaves, first=first)

    def paint(self, x0: int, y0: int, x1: int, y1: int, rgb: tuple[float, float, float], glow: float = 0) -> None:
        self.own[y0:y1, x0:x1] = rgb
        self.base[y0:y1, x0:x1] = 0
        self.glow[y0:y1, x0:x1] = glow

    def shade(self, x0: int, y0: int, x1: int, y1: int, factor: float) -> None:
        self.base[y0:y1, x0:x1] *= factor
        self.own[y0:y1, x0:x1] *= factor

    def bricks(self, rows: int, columns: int, joint: float, spread: float, *, shift: bool = True) -> None:
        step_y, step_x = TILE_PX // rows, TILE_PX // columns
        for row in range(rows):
            offset = step_x // 2 if shift and row % 2 else 0
            for column in range(columns):
                tone = 1 + self.rng.uniform(-spread, spread)
                x = np.arange(column * step_x + offset, (column + 1) * step_x + offset) % TILE_PX
                self.base[row * step_y : (row + 1) * step_y, x] *= tone
                self.base[row * step_y : (row + 1) * step_y, x[0]] *= joint
            self.base[row * step_y] *= joint


def _ground(name: str, seed: int) -> _Canvas:
    canvas = _Canvas(seed)
    if name == "asphalt":
        canvas.noise(0.05, first=2)
        canvas.base += canvas.rng.normal(0, 0.035, canvas.base.shape).astype(np.float32)
    elif name == "cracked":
        canvas.noise(0.07, first=2)
        for _ in range(5):
            x0, y0, x1, y1 = (int(v) for v in canvas.rng.integers(0, TILE_PX, 4))
            cv2.line(canvas.base, (x0, y0), (x1, y1), 0.7, 1)
        x0, y0 = (int(v) for v in canvas.rng.integers(10, 60, 2))
        canvas.shade(x0, y0, x0 + 40, y0 + 55, 0.82)
    elif name == "slabs":
        canvas.noise(0.04)
        canvas.bricks(8, 8, 0.8, 0.06)
    elif name == "cobbles":
        canvas.bricks(16, 16, 0.72, 0.12)
        canvas.noise(0.06)
    elif name == "concrete":
        canvas.noise(0.05, first=2)
        canvas.bricks(2, 2, 0.85, 0.03, shift=False)
    else:
        canvas.noise(0.13, first=4, octaves=6)
        canvas.own[..., 0] = 0.05 * np.clip(fractal_noise(canvas.rng, (TILE_PX, TILE_PX), first=2), 0, 2)
        canvas.own[..., 1] = canvas.own[..., 0] * 0.7
    return canvas


def _surface(name: str, seed: int) -> _Canvas:
    canvas = _Canvas(seed)
    if name == "brick":
        canvas.bricks(16, 8, 0.75, 0.1)
        canvas.noise(0.06)
    elif name == "plaster":
        canvas.noise(0.05, first=2)
    elif name == "stone":
        canvas.bricks(6, 5, 0.6, 0.2)
        canvas.noise(0.1)
    elif name == "planks":
        canvas.bricks(1, 16, 0.55, 0.12, shift=False)
        canvas.noise(0.05)
        canvas.shade(0, 20, TILE_PX, 26, 0.85)
    elif name == "roof":
        canvas.bricks(16, 16, 0.75, 0.12)
        canvas.noise(0.08)
    elif name == "cloth":
        canvas.noise(0.1, first=4)
    elif name == "mesh":
        canvas.noise(0.2, first=8)
        for x in range(0, 2 * TILE_PX, 16):
            for slope in (-TILE_PX, TILE_PX):
                cv2.line(canvas.base, (x, 0), (x + slope, TILE_PX), 1.3, 2)
    return canvas


def _grid_fence(name: str, seed: int) -> _Canvas:
    canvas = _Canvas(seed)
    step = 16 if name == "pickets" else 8
    for x in range(0, TILE_PX, step):
        gap = 6 if name == "pickets" else 5
        canvas.paint(x, 8, x + gap, TILE_PX, (0.10, 0.12, 0.08))
        canvas.shade(x + gap, 0, x + gap + 1, TILE_PX, 0.7)
    for y in (24, 100):
        canvas.own[y : y + 8] = 0
        canvas.base[y : y + 8] = 0.85
    return canvas


def _foliage(name: str, seed: int) -> _Canvas:
    canvas = _Canvas(seed)
    noise = fractal_noise(canvas.rng, (TILE_PX, TILE_PX), first=8, octaves=5)
    canvas.base = np.clip(1 + 0.3 * noise, 0.3, 1.8).astype(np.float32)
    if name in {"crown", "conifer"}:
        y, x = np.mgrid[0:TILE_PX, 0:TILE_PX].astype(np.float32) / TILE_PX
        canvas.base *= (1.28 - 0.75 * y - 0.25 * np.abs(x - 0.45)).astype(np.float32)
    if name == "conifer":
        canvas.base *= (1 + 0.2 * np.sin(np.arange(TILE_PX) * 0.6)).astype(np.float32)[:, None]
    canvas.own[..., 1] = 0.03 * np.clip(noise, 0, 2)
    canvas.own[..., 0] = 0.02 * np.clip(noise, 0, 2)
    return canvas


def _twigs(seed: int) -> _Canvas:
    """Twigs without leaves: thin lines that mostly rise, and nothing between them."""
    canvas = _Canvas(seed)
    canvas.noise(0.15, first=8)
    canvas.cover[:] = 0
    for number in range(_NUM_TWIGS):
        x, y = canvas.rng.uniform(0, TILE_PX, 2)
        angle, length = canvas.rng.normal(np.pi / 2, 0.8), canvas.rng.uniform(8, 30)
        for bend in (0.0, canvas.rng.normal(0, 0.5)):
            to_x, to_y = x + length * np.cos(angle + bend), y - length * np.sin(angle + bend)
            width = 2 if number % 12 == 0 else 1
            cv2.line(canvas.cover, (int(x), int(y)), (int(to_x), int(to_y)), 1.0, width)
            x, y = to_x, to_y
    return canvas


def _rounded(name: str, seed: int) -> _Canvas:
    canvas = _Canvas(seed)
    x = np.linspace(-1, 1, TILE_PX, dtype=np.float32)
    if name == "wheel":
        distance = np.hypot(x[:, None], x[None, :])
        canvas.base = np.where(distance > 0.8, 0.35, 1.0).astype(np.float32)
        canvas.base *= 1 - 0.25 * (np.abs(np.sin(np.arctan2(x[:, None], x[None, :]) * 8)) < 0.25)
    elif name == "face_shade":
        canvas.base *= (1.1 - 0.3 * np.abs(x + 0.2))[None, :] * (1.05 - 0.12 * x)[:, None]
    else:
        canvas.base *= (1.12 - 0.45 * np.abs(x + 0.25) ** 1.5)[None, :]
    return canvas


def _window(canvas: _Canvas, cell: tuple[int, int], size: tuple[int, int], style: int) -> None:
    (left, upper), (width, height) = cell, size
    sky = canvas.rng.uniform(0.05, 0.4)
    lit = float(canvas.rng.uniform() < 0.45) * canvas.rng.uniform(0.5, 1)
    frame = 0.82 if style % 2 == 0 else 0.25
    canvas.shade(left - 2, upper - 2, left + width + 2, upper + height + 3, 1.15 if style % 3 else 0.85)
    canvas.paint(left - 1, upper - 1, left + width + 1, upper + height + 1, (frame, frame, frame * 0.95))
    for row in range(height):
        tone = sky * (1.1 - 0.8 * row / height) + 0.07
        canvas.paint(left, upper + row, left + width, upper + row + 1, (tone * 0.85, tone * 0.97, tone * 1.1), lit)
    if canvas.rng.uniform() < 0.4:
        drop = int(height * canvas.rng.uniform(0.2, 0.7))
        canvas.paint(left, upper, left + width, upper + drop, (0.62, 0.6, 0.53), lit * 0.8)
    middle = left + width // 2
    if width > 9:
        canvas.paint(middle, upper, middle + 1, upper + height, (frame, frame, frame))
    canvas.paint(left - 2, upper + height + 1, left + width + 2, upper + height + 2, (0.7, 0.69, 0.66))


def _windows(style: int, seed: int) -> _Canvas:
    canvas = _Canvas(seed)
    canvas.noise(0.03, first=2)
    if style == 1:
        canvas.bricks(32, 16, 0.86, 0.06)
    if style == 5:
        _curtain_wall(canvas)
        return canvas
    size = ((13, 19), (14, 17), (22, 16), (11, 21), (17, 20))[style]
    for row in range(4):
        for column in range(4):
            left = column * 32 + (32 - size[0]) // 2
            _window(canvas, (left, row * 32 + 6), size, style)
            if style == 4 and column % 2 == 0:
                canvas.paint(left - 4, row * 32 + 19, left + size[0] + 4, row * 32 + 30, (0.42, 0.43, 0.45))
                canvas.shade(left - 4, row * 32 + 19, left + size[0] + 4, row * 32 + 21, 1.4)
            if style == 3:
                for x in (left - 5, left + size[0] + 1):
                    canvas.paint(x, row * 32 + 6, x + 4, row * 32 + 27, (0.16, 0.28, 0.22))
        if style in {0, 3}:
            canvas.shade(0, row * 32 + 30, TILE_PX, row * 32 + 31, 1.15)
            canvas.shade(0, row * 32 + 31, TILE_PX, row * 32 + 32, 0.75)
    return canvas


def _curtain_wall(canvas: _Canvas) -> None:
    for row in range(4):
        for column in range(8):
            tone = canvas.rng.uniform(0.12, 0.4)
            lit = float(canvas.rng.uniform() < 0.4) * 0.8
            x, y = column * 16, row * 32
            canvas.paint(x + 1, y + 2, x + 15, y + 23, (tone * 0.8, tone * 0.95, tone * 1.1), lit)
            canvas.shade(x + 1, y + 24, x + 15, y + 32, 0.8)


def _ground_floor(name: str, seed: int) -> _Canvas:
    canvas = _Canvas(seed)
    canvas.noise(0.03, first=2)
    for left in (0, 64):
        if name == "shop":
            sign = tuple(float(v) for v in canvas.rng.uniform(0.1, 0.8, 3))
            canvas.paint(left + 3, 12, left + 61, 32, (sign[0], sign[1], sign[2]), 0.3)
            for x in range(left + 9, left + 50, 7):
                canvas.paint(x, 18, x + 4, 26, (0.9, 0.9, 0.85), 0.9)
            canvas.paint(left + 4, 40, left + 42, 108, (0.16, 0.19, 0.2), 0.9)
            for _ in range(9):
                x, y = int(canvas.rng.integers(left + 5, left + 34)), int(canvas.rng.integers(62, 92))
                tone = tuple(float(v) for v in canvas.rng.uniform(0.15, 0.7, 3))
                canvas.paint(x, y, x + 7, y + 15, (tone[0], tone[1], tone[2]), 0.7)
            canvas.paint(left + 46, 42, left + 60, 128, (0.2, 0.17, 0.14), 0.3)
            canvas.paint(left + 48, 46, left + 58, 90, (0.25, 0.28, 0.3), 0.7)
        elif name == "door":
            canvas.paint(left + 6, 44, left + 24, 92, (0.17, 0.2, 0.23), 0.6 if left else 0)
            canvas.paint(left + 14, 44, left + 16, 92, (0.8, 0.8, 0.78))
            canvas.paint(left + 36, 36, left + 54, 128, (0.28, 0.15, 0.1) if left else (0.12, 0.2, 0.28))
            canvas.paint(left + 38, 38, left + 52, 50, (0.3, 0.33, 0.35), 0.7)
        else:
            canvas.paint(left + 8, 40, left + 52, 128, (0.07, 0.07, 0.08), 0.2)
            canvas.paint(left + 14, 30, left + 46, 40, (0.07, 0.07, 0.08), 0.2)
            canvas.paint(left + 22, 60, left + 40, 128, (0.2, 0.22, 0.24), 0.5)
    canvas.shade(0, 120, TILE_PX, 128, 0.8)
    return canvas


def _bus_side(seed: int) -> _Canvas:
    canvas = _Canvas(seed)
    for x in range(0, TILE_PX, 21):
        canvas.paint(x + 1, 24, x + 19, 70, (0.13, 0.16, 0.19), 0.75)
        canvas.paint(x + 1, 24, x + 19, 38, (0.24, 0.28, 0.31), 0.75)
    canvas.shade(0, 112, TILE_PX, 128, 0.5)
    canvas.shade(0, 84, TILE_PX, 90, 0.75)
    return canvas


def _draw(name: str, seed: int) -> _Canvas:
    if name in {"asphalt", "cracked", "slabs", "cobbles", "concrete", "grass"}:
        return _ground(name, seed)
    if name in {"pickets", "bars"}:
        return _grid_fence(name, seed)
    if name in {"leaves", "crown", "conifer"}:
        return _foliage(name, seed)
    if name == "twigs":
        return _twigs(seed)
    if name in {"round", "wheel", "face_shade"}:
        return _rounded(name, seed)
    if name in {"shop", "door", "arcade"}:
        return _ground_floor(name, seed)
    if name.startswith("windows"):
        return _windows(int(name[-1]), seed)
    return _bus_side(seed) if name == "bus_side" else _surface(name, seed)


def _levels(canvas: _Canvas) -> Floats:
    """(levels, TILE_PX, TILE_PX, 6): each level averages 2 x 2 of the one before; all kept at full size."""
    # v grows upwards on a surface, rows grow downwards in the canvas
    one_HW = (canvas.base * 128, canvas.glow * 255, canvas.cover * 255)
    full = np.concatenate([canvas.own * 255, np.stack(one_HW, axis=-1)], axis=-1)[::-1]
    levels = [np.clip(full, 0, 255)]
    for level in range(1, NUM_LEVELS):
        side = TILE_PX >> level
        small = levels[0].reshape(side, 1 << level, side, 1 << level, 6).mean(axis=(1, 3))
        levels.append(np.repeat(np.repeat(small, 1 << level, axis=0), 1 << level, axis=1))
    return np.stack(levels).astype(np.float32)


@cache
def atlas() -> Atlas:
    """The atlas of this process (about 0.2 s and 23 MB, once)."""
    stack = np.stack([_levels(_draw(name, seed)) for seed, name in enumerate(TILE_NAMES)])
    flat = np.rint(stack.reshape(-1, 6)).astype(np.uint8)
    return Atlas(
        texels=np.ascontiguousarray(flat[:, :4]).view(np.uint32)[:, 0],
        glow=np.ascontiguousarray(flat[:, 4]),
        cover=np.ascontiguousarray(flat[:, 5]),
    )


@cache
def cloud_noise() -> Floats:
    """(256, 1024) wrapping noise that the sky is cut from."""
    noise = fractal_noise(np.random.default_rng([12, 0]), (256, 1024), octaves=6, first=4)
    return np.ascontiguousarray(cv2.GaussianBlur(noise, (5, 5), 0))
