"""The one resize of the project."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from cdga_sdk.errors import ResourceError
from cdga_sdk.opencv import cv2
from cdga_sdk.preprocess import RESIZE_RULE, Preprocess, UInt8Array, resize_image, resize_label


def test_bilinear_by_hand() -> None:
    # Half-pixel centres: outputs lie at -0.25, 0.25, 0.75, 1.25 of the two inputs 0 and 100, clamped at the ends.
    assert resize_image(np.array([[0, 100]], np.uint8), (1, 4)).tolist() == [[0, 25, 75, 100]]


def test_the_rule_in_words_is_the_rule_in_use() -> None:
    image = np.random.default_rng(3).integers(0, 256, (31, 57, 3), dtype=np.uint8)
    said = eval(RESIZE_RULE, {"cv2": cv2, "image": image, "width": 40, "height": 20})
    np.testing.assert_array_equal(resize_image(image, (20, 40)), said)
    assert resize_image(image, (20, 40)).shape == (20, 40, 3)


@pytest.mark.parametrize(("source_hw", "wanted_hw"), [((4, 6), (8, 12)), ((9, 7), (4, 3)), ((5, 8), (13, 3))])
def test_labels_take_the_nearest_centre(source_hw: tuple[int, int], wanted_hw: tuple[int, int]) -> None:
    label = np.arange(source_hw[0] * source_hw[1], dtype=np.uint8).reshape(source_hw)
    (h, w), (height, width) = source_hw, wanted_hw
    y = (2 * np.arange(height) + 1) * h // (2 * height)
    x = (2 * np.arange(width) + 1) * w // (2 * width)
    np.testing.assert_array_equal(resize_label(label, wanted_hw), label[np.ix_(y, x)])


def test_fitting_size_is_not_copied() -> None:
    image, label = np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.uint8)
    assert resize_image(image, (4, 6)) is image
    assert resize_label(label, (4, 6)) is label


def test_defaults_are_imagenet() -> None:
    preprocess = Preprocess(imgsz_hw=(64, 128))
    assert preprocess.mean == (0.485, 0.456, 0.406)
    assert preprocess.std == (0.229, 0.224, 0.225)


@pytest.mark.parametrize("resize", [resize_image, resize_label])
def test_a_size_beyond_the_memory(resize: Callable[[UInt8Array, tuple[int, int]], UInt8Array]) -> None:
    with pytest.raises(ResourceError, match=r"no memory for an image of 700000x600000; use a smaller imgsz"):
        resize(np.zeros((4, 4), np.uint8), (600_000, 700_000))
