"""Augmentation: what keeps image and label together, and what changes the picture alone."""

from __future__ import annotations

import numpy as np
import pytest

from cdga_sdk.preprocess import UInt8Array
from cdga_train.data.augment import recoloured, zoomed
from cdga_train.data.base import Sample

HEIGHT, WIDTH = 48, 96


def chance(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def ramps() -> Sample:
    """An image whose first channel tells the column and second the row, twice over, and a label of quarters."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH].astype(np.uint8)
    label = (rows >= HEIGHT // 2) * 2 + (columns >= WIDTH // 2)
    return Sample(
        name="ramps",
        image_bgr=np.stack([columns * 2, rows * 4, np.zeros_like(rows)], axis=2),
        label=label.astype(np.uint8),
    )


@pytest.mark.parametrize("seed", range(8))
def test_a_zoom_takes_a_window_and_keeps_image_and_label_together(seed: int) -> None:
    sample, result = ramps(), zoomed(ramps(), chance(seed))
    assert result.image_bgr.shape == sample.image_bgr.shape
    assert result.label is not None
    column, row = result.image_bgr[:, :, 0] / 2.0, result.image_bgr[:, :, 1] / 4.0
    for share in (np.ptp(column) / (WIDTH - 1), np.ptp(row) / (HEIGHT - 1)):
        assert 0.45 <= share <= 1
    edge = (abs(column - WIDTH / 2) < 1) | (abs(row - HEIGHT / 2) < 1)
    told = (row >= HEIGHT / 2) * 2 + (column >= WIDTH / 2)
    assert (result.label[~edge] == told[~edge]).all()


def test_windows_lie_anywhere() -> None:
    corners = {tuple(zoomed(ramps(), chance(seed)).image_bgr[0, 0, :2] // 24) for seed in range(40)}
    assert len(corners) > 4


def test_an_unlabelled_sample_stays_so() -> None:
    sample = ramps()
    result = zoomed(Sample(name="x", image_bgr=sample.image_bgr, label=None), chance(0))
    assert result.label is None
    assert (result.image_bgr == zoomed(sample, chance(0)).image_bgr).all()


def picture() -> UInt8Array:
    return chance(9).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def test_colours_follow_from_chance_alone_and_the_image_stays() -> None:
    image = picture()
    before = image.copy()
    results = [recoloured(image, chance(seed)) for seed in (1, 1, 2)]
    assert (image == before).all()
    assert (results[0] == results[1]).all()
    assert (results[0] != results[2]).any()
    assert all(r.shape == image.shape and r.dtype == np.uint8 for r in results)


def test_light_changes_a_lot_and_structure_stays() -> None:
    image = np.asarray(np.kron(chance(3).integers(40, 200, (6, 12, 3)), np.ones((8, 8, 1))), np.uint8)
    results = [recoloured(image, chance(seed)) for seed in range(60)]
    means = [float(r.mean()) for r in results]
    assert max(means) > 1.4 * min(means)
    grey = image.mean(axis=2).ravel()
    likeness = [float(np.corrcoef(grey, r.mean(axis=2).ravel())[0, 1]) for r in results]
    assert min(likeness) > 0.7
