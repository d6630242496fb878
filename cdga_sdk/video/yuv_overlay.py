"""Class colours over a decoded picture, on its own planes: the way through BGR and back costs more than drawing does.

What is not covered stays as it was decoded, and the picture keeps what its file says of its colours.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, ColorTrc

from cdga_sdk.labels import CITYSCAPES_PALETTE_RGB
from cdga_sdk.opencv import cv2
from cdga_sdk.preprocess import UInt8Array

if TYPE_CHECKING:
    from collections.abc import Mapping

    from av.video.frame import VideoFrame

    from cdga_sdk.overlay import Palette

__all__ = ["BT709", "ColorTags", "Picture", "draw_overlay_yuv", "picture_of"]

_FORMAT: Final = "yuv420p"
_BT709, _UNSPECIFIED, _BT470BG, _SMPTE170M = 1, 2, 5, 6
# Weights of red and blue in luma, by H.264's matrix_coefficients (ITU-T H.264, table E-5). A picture that says nothing
# is taken for BT.601, for so does swscale, which makes the network's input of it.
_RED_BLUE: Final[Mapping[int, tuple[float, float]]] = MappingProxyType(
    {_BT709: (0.2126, 0.0722)} | dict.fromkeys((_UNSPECIFIED, _BT470BG, _SMPTE170M), (0.299, 0.114))
)
_RESERVED: Final = frozenset({0, 3})  # of primaries and transfer characteristics


@dataclass(frozen=True, kw_only=True)
class ColorTags:
    """What a file says of its colours, in FFmpeg's numbers, which but for the range are H.264's.

    Attributes:
        matrix: From R'G'B' to Y'CbCr.
        range: Limited or full.
        primaries: Of the display.
        transfer: Its curve.
    """

    matrix: int
    range: int
    primaries: int
    transfer: int

    @property
    def is_bt709(self) -> bool:
        """The matrix is BT.709's; otherwise BT.601's, said or not."""
        return self.matrix == _BT709

    @property
    def can_be_written(self) -> bool:
        """An overlay may have these colours: the range is not full, the matrix is known, and no value is reserved."""
        is_reserved = bool({self.primaries, self.transfer} & _RESERVED)
        return self.matrix in _RED_BLUE and self.range != ColorRange.JPEG and not is_reserved


BT709: Final = ColorTags(matrix=_BT709, range=ColorRange.MPEG, primaries=ColorPrimaries.BT709, transfer=ColorTrc.BT709)


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """An upright 8-bit picture with limited range and half-size chroma (yuv420p), its sides even.

    Attributes:
        frame: FFmpeg's. A decoder may still look at its planes: they are not written to.
        tags: Its colours.
    """

    frame: VideoFrame = field(repr=False)
    tags: ColorTags

    @property
    def size_wh(self) -> tuple[int, int]:
        """Width and height, pixels."""
        return self.frame.width, self.frame.height


def picture_of(frame: VideoFrame) -> Picture | None:
    """What can be drawn on without a conversion; None of any other format, range or matrix, and of odd sizes."""
    tags = ColorTags(
        matrix=frame.colorspace,
        range=frame.color_range,
        primaries=frame.color_primaries,
        transfer=frame.color_trc,
    )
    is_known = (
        frame.format.name == _FORMAT
        and frame.width % 2 == frame.height % 2 == 0
        and tags.can_be_written
        and all(plane.line_size > 0 for plane in frame.planes)  # upside down otherwise
    )
    return Picture(frame=frame, tags=tags) if is_known else None


def draw_overlay_yuv(
    picture: Picture, mask_HW: UInt8Array, palette_rgb: Palette = CITYSCAPES_PALETTE_RGB, *, alpha: float = 0.5
) -> Picture:
    """Blend class colours over a picture; `draw_overlay` without the way through BGR.

    Chroma has the class of the upper left of its four pixels.

    Args:
        picture: Not written to.
        mask_HW: (H, W) uint8 class ids.
        palette_rgb: One colour per class id; other ids are black.
        alpha: Opacity of the colours, 0 to 1.

    Returns:
        A new picture with the same tags.
    """
    width, height = picture.size_wh
    assert mask_HW.shape == (height, width), (mask_HW.shape, picture.size_wh)
    drawn = av.VideoFrame(width, height, _FORMAT)
    mask_hw = np.asarray(cv2.resize(mask_HW, (width // 2, height // 2), interpolation=cv2.INTER_NEAREST), np.uint8)
    tables = _tables_yuv(tuple(palette_rgb), picture.tags.matrix)
    for index, (mask, table) in enumerate(zip((mask_HW, mask_hw, mask_hw), tables, strict=True)):
        colors = cv2.LUT(mask, table)
        cv2.addWeighted(colors, alpha, _plane(picture.frame, index), 1 - alpha, 0.0, dst=_plane(drawn, index))
    tags = picture.tags
    drawn.colorspace, drawn.color_range = tags.matrix, tags.range
    drawn.color_primaries, drawn.color_trc = tags.primaries, tags.transfer
    return Picture(frame=drawn, tags=tags)


def _plane(frame: VideoFrame, index: int) -> UInt8Array:
    """The pixels of a plane, (H, W) uint8; no copy."""
    plane = frame.planes[index]
    return np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]


@lru_cache(maxsize=8)
def _tables_yuv(palette_rgb: tuple[tuple[int, int, int], ...], matrix: int) -> tuple[UInt8Array, ...]:
    """Y', Cb and Cr by class id, limited range, (256,) uint8 each."""
    rgb = np.zeros((256, 3))
    rgb[: len(palette_rgb)] = np.asarray(palette_rgb) / 255
    red, blue = _RED_BLUE[matrix]
    luma = rgb @ (red, 1 - red - blue, blue)
    chroma = (128 + 112 * (rgb[:, channel] - luma) / (1 - weight) for channel, weight in ((2, blue), (0, red)))
    return tuple(np.rint(plane).astype(np.uint8) for plane in (16 + 219 * luma, *chroma))
