"""The ways that the study of smoothing compares, on frames whose motion is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.smoothing import Frame, by_product, carried, clip, consistency, smoothed, tiled
from cdga_sdk.opencv import cv2
from cdga_sdk.preprocess import UInt8Array
from cdga_sdk.tail import labels
from cdga_train.data.base import Sample

SHIFT = 6


class Moving:
    """A texture that moves to the right; its label is two halves that move with it."""

    is_labelled = True

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Sample:
        noise = np.random.default_rng(0).integers(0, 256, (24, 48, 3), np.uint8)
        image = np.asarray(cv2.resize(noise, (192, 96), interpolation=cv2.INTER_CUBIC), np.uint8)
        label: UInt8Array = np.where(np.arange(192) < 96, 0, 13).astype(np.uint8)[None].repeat(96, axis=0)
        moved = (np.roll(array, SHIFT * index, axis=1) for array in (image, label))
        image, label = moved
        return Sample(name=str(index), image_bgr=np.ascontiguousarray(image), label=np.ascontiguousarray(label))

    def identity(self) -> str:
        return "moving"


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    return list(clip(Moving(), None))


def one_hot(frame: Frame) -> np.ndarray[tuple[int, int, int], np.dtype[np.float32]]:
    return np.eye(19, dtype=np.float32)[frame.label]


def test_both_flows_find_the_motion(frames: list[Frame]) -> None:
    assert not frames[0].flow_HW2.any()
    for flow_HW2 in (frames[1].flow_HW2, frames[1].judging_flow_HW2):
        assert np.median(flow_HW2[20:-20, 40:-40, 0]) == pytest.approx(-SHIFT, abs=0.5)
        assert np.median(flow_HW2[20:-20, 40:-40, 1]) == pytest.approx(0, abs=0.5)


def test_what_is_carried_along_lies_where_it_is_now(frames: list[Frame]) -> None:
    moved = carried(frames[0].label, frames[1].judging_flow_HW2, cv2.INTER_NEAREST)
    inner = np.s_[20:-20, 40:-40]
    assert (moved[inner] == frames[1].label[inner]).mean() > 0.98
    assert (frames[0].label[inner] == frames[1].label[inner]).mean() < 0.96


def test_smoothing_in_place_lags_and_with_the_flow_does_not(frames: list[Frame]) -> None:
    series = [one_hot(frame) for frame in frames]
    inner = np.s_[20:-20, 40:-40]
    lagging, following = (smoothed(series, frames, 0.3, flow=flow)[2] for flow in (False, True))
    assert (following[inner] == frames[2].label[inner]).mean() > 0.97
    assert (lagging[inner] == frames[2].label[inner]).mean() < (following[inner] == frames[2].label[inner]).mean()
    assert (smoothed(series, frames, 1.0, flow=False)[2] == frames[2].label).all()


def test_the_product_smooths_at_the_head_and_follows_too(frames: list[Frame]) -> None:
    logits = [np.eye(19, dtype=np.float32)[f.label[4::8, 4::8]].transpose(2, 0, 1) * 9 for f in frames]
    inner = np.s_[20:-20, 40:-40]
    masks, smoothing_ms = by_product(logits, frames, 0.3, (96, 192))
    assert smoothing_ms > 0
    assert [(m[inner] == f.label[inner]).mean() > 0.97 for m, f in zip(masks, frames, strict=True)] == [True] * 3
    plain, _ = by_product(logits, frames, 1.0, (96, 192))
    assert all((mask == labels(one, (96, 192))).all() for mask, one in zip(plain, logits, strict=True))


def test_labels_that_move_with_the_picture_are_consistent(frames: list[Frame]) -> None:
    still = [frames[0].label] * 3
    assert consistency(frames, [f.label for f in frames]) > consistency(frames, still) > 0


class Brightness(nn.Module):
    """Class 0 where it is dark, class 1 where it is bright, at stride 8."""

    def forward(self, image_1CHW: Tensor) -> Tensor:
        grey = torch.nn.functional.avg_pool2d(image_1CHW.mean(1, keepdim=True), 8)
        rest = torch.full_like(grey, -99.0).expand(-1, 17, -1, -1)
        return torch.cat([-grey, grey, rest], dim=1)


def test_tiles_cover_the_frame() -> None:
    image = np.zeros((96, 192, 3), np.uint8)
    image[:, 60:] = 255
    prob_HWC = tiled(Brightness(), image)
    assert prob_HWC.sum(axis=2) == pytest.approx(1, abs=1e-4)
    label = prob_HWC.argmax(axis=2)
    assert (label[:, :52] == 0).all()
    assert (label[:, 68:] == 1).all()
