"""Labels and confidences from the head's logits: against the rule written out in float64, and against torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cdga_sdk import tail
from cdga_sdk.errors import ModelError
from cdga_sdk.opencv import cv2
from cdga_sdk.preprocess import Preprocess, resize_image
from cdga_sdk.tail import Float32Array, confidence, labels, mean_confidence
from cdga_sdk.video.source import VideoSource
from cdga_train.checkpoint import read_published_weights
from cdga_train.models.fused import Normalise, classified
from cdga_train.models.registry import network_spec

Float64Array = NDArray[np.float64]
UInt8Array = NDArray[np.uint8]

TIE = 1e-5
"""Of the largest logit: two logits that are closer than this tie within the rounding of float32."""


def axis(head: int, size: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Float64Array]:
    position = np.clip((np.arange(size) + 0.5) * head / size - 0.5, 0, head - 1)
    low = np.floor(position).astype(np.intp)
    return low, np.minimum(low + 1, head - 1), position - low


def upsampled(logits_Chw: Float32Array, size_hw: tuple[int, int]) -> Float64Array:
    """The rule in float64: half-pixel centres, edges repeated."""
    logits = logits_Chw.astype(np.float64)
    (y0, y1, v), (x0, x1, u) = (axis(head, size) for head, size in zip(logits.shape[1:], size_hw, strict=True))
    rows: Float64Array = logits[:, y0] * (1 - v)[:, np.newaxis] + logits[:, y1] * v[:, np.newaxis]
    return rows[:, :, x0] * (1 - u) + rows[:, :, x1] * u


def plain(logits_Chw: Float32Array, size_hw: tuple[int, int]) -> tuple[UInt8Array, Float64Array]:
    """The rule's labels, and its confidence before rounding."""
    logits = upsampled(logits_Chw, size_hw)
    best = logits.max(axis=0)
    return logits.argmax(axis=0).astype(np.uint8), 255 / np.exp(logits - best).sum(axis=0)


def random_logits(shape_Chw: tuple[int, int, int], seed: int, scale: float = 3) -> Float32Array:
    """Noise: nearly every cell has corners of different classes."""
    return (scale * np.random.default_rng(seed).standard_normal(shape_Chw)).astype(np.float32)


def smooth_logits(shape_Chw: tuple[int, int, int], seed: int) -> Float32Array:
    """A few blobs for each class, as of a network that has learned."""
    coarse = random_logits((shape_Chw[0], 4, 6), seed, scale=5)
    size_wh = (shape_Chw[2], shape_Chw[1])
    return np.stack([np.asarray(cv2.resize(c, size_wh, interpolation=cv2.INTER_CUBIC), np.float32) for c in coarse])


def assert_exact(logits_Chw: Float32Array, size_hw: tuple[int, int]) -> None:
    """Where the labels are not the rule's, their logit and the best one tie; confidence is off by rounding at most."""
    mask, wanted_conf = labels(logits_Chw, size_hw), plain(logits_Chw, size_hw)[1]
    conf = confidence(logits_Chw, size_hw)
    assert mask.shape == conf.shape == size_hw
    assert mask.dtype == conf.dtype == np.uint8
    logits = upsampled(logits_Chw, size_hw)
    chosen = np.take_along_axis(logits, mask[np.newaxis].astype(np.intp), axis=0)[0]
    scale = max(1.0, float(np.abs(logits_Chw).max()))
    assert (logits.max(axis=0) - chosen).max() <= TIE * scale
    assert np.abs(conf - wanted_conf).max() <= 0.5 + 1e-3 * scale


def cells_interpolated(monkeypatch: pytest.MonkeyPatch, logits_Chw: Float32Array, size_hw: tuple[int, int]) -> int:
    """How many cells `labels` had to look into."""
    counts = []
    inside = tail._labels_inside

    def counted(
        logits: Float32Array, grid: tail._Grid, cells: NDArray[np.intp], candidates: NDArray[np.bool_]
    ) -> UInt8Array:
        counts.append(len(cells))
        return inside(logits, grid, cells, candidates)

    with monkeypatch.context() as patch:
        patch.setattr(tail, "_labels_inside", counted)
        labels(logits_Chw, size_hw)
    return sum(counts)


SIZES = [
    ((19, 16, 32), (128, 256)),  # eight, as most heads
    ((19, 33, 65), (256, 512)),  # DeepLab's odd heads
    ((5, 9, 7), (9, 7)),
    ((5, 9, 7), (10, 29)),
    ((3, 6, 10), (9, 15)),  # one and a half
    ((3, 5, 4), (15, 12)),  # odd: a pixel lies on every head pixel
    ((4, 16, 12), (5, 7)),  # smaller than the head: cells without pixels
    ((4, 1, 1), (8, 8)),
    ((4, 1, 9), (8, 72)),
    ((4, 9, 1), (31, 3)),
    ((1, 4, 6), (32, 48)),
    ((255, 3, 3), (24, 24)),
    ((2, 2, 2), (700, 600)),  # a cell of more pixels than a block
]


@pytest.mark.parametrize(("shape_Chw", "size_hw"), SIZES)
@pytest.mark.parametrize("make", [random_logits, smooth_logits])
def test_exact_at_every_ratio(
    make: Callable[[tuple[int, int, int], int], Float32Array], shape_Chw: tuple[int, int, int], size_hw: tuple[int, int]
) -> None:
    assert_exact(make(shape_Chw, 1), size_hw)


def test_exact_at_many_random_shapes() -> None:
    rng = np.random.default_rng(7)
    for seed in range(300):
        classes, h, w = (int(n) for n in rng.integers(1, 12, 3))
        height, width = (int(n) for n in rng.integers(1, 60, 2))
        make = (random_logits, smooth_logits)[seed % 2]
        assert_exact(make((classes, h, w), seed), (height, width))


@pytest.mark.parametrize(("shape_Chw", "size_hw"), SIZES)
def test_same_as_what_the_bundle_runs(shape_Chw: tuple[int, int, int], size_hw: tuple[int, int]) -> None:
    logits = smooth_logits(shape_Chw, 2)
    mask, conf = (t[0].numpy() for t in classified(torch.from_numpy(logits)[None], size_hw))
    ours = labels(logits, size_hw)
    best, second = np.sort(upsampled(logits, size_hw), axis=0)[::-1][[0, min(1, len(logits) - 1)]]
    assert (best - second)[ours != mask].max(initial=0) <= TIE * np.abs(logits).max()
    assert np.abs(confidence(logits, size_hw).astype(int) - conf).max() <= 1


def test_only_cells_with_different_corners_are_interpolated(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = np.zeros((3, 8, 8), np.float32)
    logits[0] = 1
    assert cells_interpolated(monkeypatch, logits, (64, 64)) == 0
    logits[2, 4, 4] = 5  # one head pixel of another class: the four cells around it
    assert cells_interpolated(monkeypatch, logits, (64, 64)) == 4
    assert_exact(logits, (64, 64))
    noise = random_logits((19, 8, 8), 0)
    assert cells_interpolated(monkeypatch, noise, (64, 64)) > 0.9 * 7 * 7


def test_cells_left_alone_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """These logits tell exact labels from the nearest head pixel's, and from the best of the corners' winners."""
    logits = smooth_logits((19, 16, 32), 1)
    exact = labels(logits, (128, 256))
    np.testing.assert_array_equal(exact, plain(logits, (128, 256))[0])
    nearest = tail._argmax(logits).repeat(8, axis=0).repeat(8, axis=1)
    assert (nearest != exact).any()

    def winners_only(logits: Float32Array, corner_4m: NDArray[np.intp], winner_4m: UInt8Array) -> NDArray[np.bool_]:
        del corner_4m
        chosen: NDArray[np.bool_] = (np.arange(len(logits))[:, np.newaxis, np.newaxis] == winner_4m).any(axis=1)
        return chosen

    monkeypatch.setattr(tail, "_candidates", winners_only)
    noise = random_logits((19, 16, 32), 1)
    assert (labels(noise, (128, 256)) != plain(noise, (128, 256))[0]).any()


def test_a_class_that_wins_at_no_corner_wins_between_them() -> None:
    logits = np.array([[[10, 0]], [[0, 10]], [[9, 9]], [[4, 4]]], np.float32)
    assert labels(logits, (1, 20))[0].tolist() == [0] * 6 + [2] * 8 + [1] * 6


def test_of_equal_logits_the_first_class_wins() -> None:
    same = np.repeat(smooth_logits((1, 6, 9), 4), 4, axis=0)
    assert not labels(same, (48, 72)).any()
    twice = np.repeat(smooth_logits((5, 6, 9), 5), 2, axis=0)
    assert not (labels(twice, (48, 72)) % 2).any()
    crossing = np.array([[[1, 0]], [[0, 1]]], np.float32)  # the middle one of five pixels ties
    assert labels(crossing, (1, 5)).tolist() == [[0, 0, 0, 1, 1]]
    assert labels(crossing[::-1], (1, 5)).tolist() == [[1, 1, 0, 0, 0]]


def test_the_layout_in_memory_does_not_matter() -> None:
    logits = smooth_logits((7, 12, 20), 6)
    strided = np.asfortranarray(logits)[:, ::2, ::-1]
    assert not strided.flags.c_contiguous
    tight = strided.copy()
    np.testing.assert_array_equal(labels(strided, (48, 160)), labels(tight, (48, 160)))
    np.testing.assert_array_equal(confidence(strided, (48, 160)), confidence(tight, (48, 160)))
    assert mean_confidence(strided, (48, 160)) == mean_confidence(tight, (48, 160))


def test_arguments_are_left_as_they_were() -> None:
    logits = random_logits((7, 12, 20), 6)
    before = logits.copy()
    labels(logits, (48, 160)), confidence(logits, (48, 160)), mean_confidence(logits, (48, 160))
    np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize("scale", [1e-6, 1, 25, 100, 1e4, 1e29])
def test_logits_near_and_far_apart(scale: float) -> None:
    """Where e to their difference leaves float32's range, confidence goes another way."""
    logits, size_hw = random_logits((6, 7, 9), 8, scale=scale), (56, 72)
    mask, conf = plain(logits, size_hw)
    assert np.abs(confidence(logits, size_hw) - conf).max() <= 0.5 + 1e-3 * min(scale, 100)
    assert (labels(logits, size_hw) != mask).mean() < 1e-3


def test_both_ways_to_exponentials_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = smooth_logits((19, 16, 32), 9)
    fast = confidence(logits, (128, 256)).astype(int)
    monkeypatch.setattr(tail, "LOWEST_EXPONENT", 0.0)
    slow = confidence(logits, (128, 256))
    assert np.abs(fast - slow).max() <= 1
    assert (fast != slow).mean() < 1e-3


def test_confidence_by_hand() -> None:
    # Halfway between (log 3, 0) and (0, log 3) both classes have half.
    logits = np.array([[[np.log(3), 0]], [[0, np.log(3)]]], np.float32)
    assert confidence(logits, (1, 3)).tolist() == [[191, 128, 191]]
    assert confidence(random_logits((1, 3, 4), 0), (6, 8)).tolist() == [[255] * 8] * 6


@pytest.mark.parametrize(("head_hw", "size_hw"), [((7, 9), (56, 72)), ((7, 9), (53, 71)), ((12, 20), (5, 13))])
def test_mean_confidence_is_that_of_every_8th_pixel(head_hw: tuple[int, int], size_hw: tuple[int, int]) -> None:
    logits = random_logits((6, *head_hw), 10)
    _, conf = plain(logits, size_hw)
    assert mean_confidence(logits, size_hw) == pytest.approx(float(conf[4::8, 4::8].mean()) / 255, abs=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e31])
@pytest.mark.parametrize("function", [labels, confidence, mean_confidence])
def test_what_is_no_logit_is_refused(bad: float, function: Callable[[Float32Array, tuple[int, int]], object]) -> None:
    logits = random_logits((3, 4, 5), 0)
    logits[1, 2, 3] = bad
    with pytest.raises(ModelError, match=r"logits run from .* wanted numbers within 1e\+30; run it in fp32"):
        function(logits, (8, 10))


def test_real_logits(city_weights: Path, dashcam: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Published weights on a real frame: torch's labels, and few cells to look into."""
    size_hw = (512, 1024)
    spec = network_spec("efficientvit_b0", size_hw)
    network = spec.build(19)
    spec.load_published(network, read_published_weights(city_weights))
    with VideoSource(dashcam, max_frames=1) as frames:
        frame_rgb = np.ascontiguousarray(resize_image(next(iter(frames)).image_bgr, size_hw)[:, :, ::-1])
    with torch.inference_mode():
        normalise = Normalise(Preprocess(imgsz_hw=size_hw))
        logits_1Chw = network.eval()(normalise(torch.from_numpy(frame_rgb)[None]))
        mask, conf = (t[0].numpy() for t in classified(logits_1Chw, size_hw))
    logits = logits_1Chw[0].numpy()
    assert logits.shape == (19, 64, 128)
    assert (labels(logits, size_hw) != mask).mean() < 1e-5
    assert np.abs(confidence(logits, size_hw).astype(int) - conf).max() <= 1
    assert 0 < cells_interpolated(monkeypatch, logits, size_hw) < 0.2 * 64 * 128
