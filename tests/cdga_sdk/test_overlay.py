"""Colours over a frame, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest

from cdga_sdk.overlay import color_map_bgr, draw_overlay


def test_colours_come_out_in_bgr() -> None:
    painted = color_map_bgr(np.array([[0, 10, 13]], np.uint8))
    assert painted.tolist() == [[[128, 64, 128], [180, 130, 70], [142, 0, 0]]]
    assert painted.dtype == np.uint8


def test_ids_without_a_colour_are_black() -> None:
    assert not color_map_bgr(np.array([[19, 100, 254, 255]], np.uint8)).any()


def test_own_palette() -> None:
    painted = color_map_bgr(np.array([[0, 1, 2]], np.uint8), [(1, 2, 3), (4, 5, 6)])
    assert painted.tolist() == [[[3, 2, 1], [6, 5, 4], [0, 0, 0]]]


def test_blend_by_hand() -> None:
    image = np.full((1, 2, 3), 200, np.uint8)
    mask = np.array([[0, 255]], np.uint8)
    # 0.25 * (128, 64, 128) + 0.75 * 200, and black at 255
    assert draw_overlay(image, mask, alpha=0.25).tolist() == [[[182, 166, 182], [150, 150, 150]]]


def test_ends_of_alpha_and_no_side_effect() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    before = image.copy()
    mask = np.full((5, 7), 8, np.uint8)
    np.testing.assert_array_equal(draw_overlay(image, mask, alpha=0), image)
    np.testing.assert_array_equal(draw_overlay(image, mask, alpha=1), color_map_bgr(mask))
    np.testing.assert_array_equal(image, before)


def test_sizes_must_fit() -> None:
    with pytest.raises(AssertionError):
        draw_overlay(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5), np.uint8))
