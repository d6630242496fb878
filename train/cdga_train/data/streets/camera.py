"""A pinhole camera: world points to camera axes to pixels, and the ray of every pixel.

Camera axes: x right, y down, z forward (metres). Pixel (0, 0) is the centre of the upper left pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from cdga_train.data.streets.shapes import Floats

__all__ = ["NEAR_M", "Camera", "clip_to_near"]

NEAR_M: Final = 0.4


@dataclass(frozen=True, kw_only=True)
class Camera:
    """Where the camera stands and what it sees.

    Attributes:
        position: x, y, z in metres; z is the height above the road.
        yaw_rad: Heading, clockwise from the world's y axis.
        pitch_rad: Positive looks down.
        fov_rad: Horizontal field of view.
        size_wh: Image size in pixels.
    """

    position: tuple[float, float, float]
    yaw_rad: float
    pitch_rad: float
    fov_rad: float
    size_wh: tuple[int, int]

    @property
    def focal_px(self) -> float:
        """Focal length in pixels, equal for both axes."""
        return self.size_wh[0] / (2 * float(np.tan(self.fov_rad / 2)))

    @property
    def centre_xy(self) -> tuple[float, float]:
        """Principal point in pixels."""
        return (self.size_wh[0] - 1) / 2, (self.size_wh[1] - 1) / 2

    @property
    def horizon_row(self) -> float:
        """The image row of the horizon (the camera has no roll)."""
        return self.centre_xy[1] - self.focal_px * float(np.tan(self.pitch_rad))

    @property
    def rotation(self) -> Floats:
        """(3, 3): rows are the camera's x, y and z axes in world axes."""
        sin_yaw, cos_yaw = np.sin(self.yaw_rad), np.cos(self.yaw_rad)
        sin_pitch, cos_pitch = np.sin(self.pitch_rad), np.cos(self.pitch_rad)
        right = [cos_yaw, -sin_yaw, 0.0]
        down = [-sin_pitch * sin_yaw, -sin_pitch * cos_yaw, -cos_pitch]
        forward = [cos_pitch * sin_yaw, cos_pitch * cos_yaw, -sin_pitch]
        return np.array([right, down, forward], np.float32)

    def to_camera(self, points: Floats) -> Floats:
        """World points (..., 3) in camera axes."""
        out: Floats = (points - np.asarray(self.position, np.float32)) @ self.rotation.T
        return out

    def to_pixels(self, points: Floats) -> Floats:
        """Camera points (..., 3) in front of the camera as pixel positions (..., 2)."""
        scale = np.float32(self.focal_px) / np.maximum(points[..., 2:], np.float32(NEAR_M * 0.5))
        return (points[..., :2] * scale + np.array(self.centre_xy, np.float32)).astype(np.float32, copy=False)

    def rays(self) -> tuple[Floats, Floats]:
        """(W,) and (H, 1): x / z and y / z of the ray through each pixel column and row."""
        columns = (np.arange(self.size_wh[0]) - self.centre_xy[0]) / self.focal_px
        rows = (np.arange(self.size_wh[1]) - self.centre_xy[1]) / self.focal_px
        return columns.astype(np.float32), rows.astype(np.float32)[:, None]


def clip_to_near(points: Floats) -> Floats:
    """One polygon (K, 3) in camera axes, cut at the near plane (Sutherland and Hodgman 1974); may have 0 points."""
    kept = []
    for here, after in zip(points, np.roll(points, -1, axis=0), strict=True):
        if here[2] >= NEAR_M:
            kept.append(here)
        if (here[2] >= NEAR_M) != (after[2] >= NEAR_M):
            part = (NEAR_M - here[2]) / (after[2] - here[2])
            kept.append(here + part * (after - here))
    return np.array(kept, np.float32).reshape(-1, 3)
