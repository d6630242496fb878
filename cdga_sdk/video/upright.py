"""Decoded frames as upright BGR arrays, ``(H, W, 3)`` uint8."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Final, cast

import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import VideoReformatter

from cdga_sdk.video.yuv_overlay import Picture, picture_of

if TYPE_CHECKING:
    from av.sidedata.sidedata import SideDataContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream
    from numpy.typing import NDArray

__all__ = ["SQUARE", "Upright"]

SQUARE: Final = Fraction(1)
"""Width by height of a pixel where nothing says otherwise."""


class Upright:
    """Turns decoded frames into upright BGR arrays by the stream's display matrix.

    The matrix maps ``x' = a x + c y`` and ``y' = b x + d y`` (ISO/IEC 14496-12, 6.2.2); axis-aligned turns
    and mirrors are applied, other angles snap to the nearest one. PyAV and FFmpeg's decoders leave it to us.
    """

    def __init__(self, frame: VideoFrame) -> None:
        matrix = _display_matrix(frame)
        a, b, c, d = (int(matrix[i]) for i in (0, 1, 3, 4))
        self._transposed = abs(b) + abs(c) > abs(a) + abs(d)
        self._flip_x, self._flip_y = (c < 0, b < 0) if self._transposed else (a < 0, d < 0)
        self._converter = VideoReformatter()

    def shape_hw(self, frame: VideoFrame) -> tuple[int, int]:
        """Size after the turn."""
        return (frame.width, frame.height) if self._transposed else (frame.height, frame.width)

    def sample_aspect_ratio(self, stream: VideoStream) -> Fraction:
        """Width by height of a pixel of ``stream`` after the turn; `SQUARE` where the stream says nothing."""
        ratio = stream.sample_aspect_ratio or SQUARE
        return 1 / ratio if self._transposed else ratio

    def __call__(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """Convert to ``(H, W, 3)`` uint8 BGR with the frame's own matrix and range, then turn it."""
        image = self._converter.reformat(frame, format="bgr24").to_ndarray()
        if self._transposed:
            image = image.transpose(1, 0, 2)
        if self._flip_x:
            image = image[:, ::-1]
        if self._flip_y:
            image = image[::-1]
        return np.ascontiguousarray(image, dtype=np.uint8)

    def picture(self, frame: VideoFrame) -> Picture | None:
        """The frame as it was decoded, where it lies upright and can be drawn on."""
        return None if self._transposed or self._flip_x or self._flip_y else picture_of(frame)


def _display_matrix(frame: VideoFrame) -> NDArray[np.int32]:
    matrix = cast("SideDataContainer", frame.side_data).get(SideDataType.DISPLAYMATRIX)
    if matrix is not None:
        return np.frombuffer(bytes(matrix), dtype=np.int32)
    return np.array([1, 0, 0, 0, 1, 0, 0, 0, 1], dtype=np.int32)
