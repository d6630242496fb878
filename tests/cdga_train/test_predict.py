"""Probabilities and masks of networks whose logits are written down, against bilinear interpolation done by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from cdga_sdk.errors import ModelError
from cdga_sdk.preprocess import Preprocess, UInt8Array, resize_image
from cdga_train.models.fused import FusedNetwork
from cdga_train.predict import (
    predict_frames,
    predict_head_prob,
    predict_mask,
    predict_mask_published,
    predict_prob,
    upsampled_argmax,
)


class Written(nn.Module):
    """Gives the same logits (C, h, w) for every image."""

    def __init__(self, logits_Chw: Tensor) -> None:
        super().__init__()
        self.logits_Chw = nn.Parameter(logits_Chw)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        return self.logits_Chw.expand(len(image_BCHW), -1, -1, -1)


def written(logits_Chw: Tensor, imgsz_hw: tuple[int, int]) -> FusedNetwork:
    return FusedNetwork(Written(logits_Chw), Preprocess(imgsz_hw=imgsz_hw))


def strided(imgsz_hw: tuple[int, int], *, classes: int = 19) -> FusedNetwork:
    torch.manual_seed(3)
    return FusedNetwork(nn.Conv2d(3, classes, 8, stride=8), Preprocess(imgsz_hw=imgsz_hw))


def picture(height: int, width: int) -> UInt8Array:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


def bilinear(plane_hw: NDArray[np.float64], size_hw: tuple[int, int]) -> NDArray[np.float64]:
    """Pixel centres at half integers, edges repeated: one output pixel at a time."""
    out = np.zeros(size_hw)
    for y, x in np.ndindex(size_hw):
        corners, weights = [], []
        for at, length, size in ((y, plane_hw.shape[0], size_hw[0]), (x, plane_hw.shape[1], size_hw[1])):
            place = max(0.0, (at + 0.5) * length / size - 0.5)
            low = min(math.floor(place), length - 1)
            corners.append((low, min(low + 1, length - 1)))
            weights.append(place - low if low < length - 1 else 0.0)
        (y0, y1), (x0, x1), (ty, tx) = *corners, weights
        out[y, x] = (1 - ty) * ((1 - tx) * plane_hw[y0, x0] + tx * plane_hw[y0, x1]) + ty * (
            (1 - tx) * plane_hw[y1, x0] + tx * plane_hw[y1, x1]
        )
    return out


def test_probabilities_are_the_softmax_of_upsampled_logits() -> None:
    logits = torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(0)) * 4
    prob = predict_prob(written(logits, (5, 12)), picture(7, 9))
    assert prob.shape == (3, 5, 12)
    assert prob.dtype == torch.float32
    upsampled = np.stack([bilinear(plane, (5, 12)) for plane in logits.double().numpy()])
    expected = np.exp(upsampled) / np.exp(upsampled).sum(axis=0)
    np.testing.assert_allclose(prob.numpy(), expected, atol=1e-6)


def test_head_probabilities_stay_at_the_heads_size() -> None:
    logits = torch.log(torch.tensor([[[0.9, 0.4]], [[0.1, 0.6]]]))
    prob = predict_head_prob(written(logits, (4, 8)), picture(3, 5))
    np.testing.assert_allclose(prob.numpy(), [[[0.9, 0.4]], [[0.1, 0.6]]], atol=1e-6)


def test_the_two_protocols_differ_where_they_should() -> None:
    # One row of two pixels, (0.9, 0.1) and (0.4, 0.6), for an image eight wide. Nearest: the border is in the middle.
    # Bilinear: class 1 wins from 0.8 of the way on; the pixels lie at 0, 0, 1/8, 3/8, 5/8, 7/8, 1, 1 of it.
    fused = written(torch.log(torch.tensor([[[0.9, 0.4]], [[0.1, 0.6]]])), (1, 2))
    assert predict_mask(fused, picture(1, 8)).tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]]
    assert predict_mask_published(fused, picture(1, 8)).tolist() == [[0, 0, 0, 0, 0, 1, 1, 1]]


def test_published_masks_by_hand() -> None:
    logits = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(5)) * 3
    fused = written(logits, (6, 4))
    prob = predict_prob(fused, picture(2, 2)).double().numpy()
    expected = np.stack([bilinear(plane, (13, 9)) for plane in prob]).argmax(axis=0)
    mask = predict_mask_published(fused, picture(13, 9))
    assert mask.dtype == np.uint8
    assert (mask == expected).all()
    assert len(np.unique(mask)) > 1


@pytest.mark.parametrize("size_hw", [(64, 128), (97, 51), (8, 16), (1, 1)])
def test_class_by_class_is_the_argmax_of_the_whole(size_hw: tuple[int, int]) -> None:
    prob = torch.randn(19, 32, 64, generator=torch.Generator().manual_seed(1)).mul(3).softmax(dim=0)
    whole = F.interpolate(prob[None], size=size_hw, mode="bilinear", align_corners=False)[0]
    assert torch.equal(upsampled_argmax(prob, size_hw).long(), whole.argmax(dim=0))


def test_the_first_of_equal_classes_wins() -> None:
    assert not upsampled_argmax(torch.full((5, 2, 2), 0.2), (3, 3)).any()


def test_deployed_masks_are_the_networks_own() -> None:
    fused, image = strided((32, 48)), picture(64, 144)
    mask = predict_mask(fused, image)
    with torch.inference_mode():
        expected, conf = fused(torch.from_numpy(resize_image(image, (32, 48))[:, :, ::-1].copy())[None])
    rows = ((np.arange(64) + 0.5) * 32 / 64).astype(int)
    columns = ((np.arange(144) + 0.5) * 48 / 144).astype(int)
    assert (mask == expected[0].numpy()[rows][:, columns]).all()
    frame = np.ascontiguousarray(resize_image(image, (32, 48))[:, :, ::-1])
    found_mask, found_conf = predict_frames(fused, frame[np.newaxis])
    assert (found_mask == expected.numpy()).all()
    assert (found_conf == conf.numpy()).all()


def test_probabilities_fit_the_mask_and_its_confidence() -> None:
    fused, image = strided((32, 48)), picture(32, 48)
    prob = predict_prob(fused, image)
    mask, conf = predict_frames(fused, np.ascontiguousarray(image[np.newaxis, :, :, ::-1]))
    assert (prob.argmax(dim=0).numpy() == mask[0]).all()
    assert np.abs(255 * prob.max(dim=0).values.numpy() - conf[0]).max() <= 0.5 + 1e-3
    torch.testing.assert_close(prob.sum(dim=0), torch.ones(32, 48))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_is_refused(bad: float) -> None:
    logits = torch.zeros(3, 2, 2)
    logits[1, 0, 1] = bad
    fused = written(logits, (4, 4))
    for predict in (predict_prob, predict_head_prob, predict_mask_published):
        with pytest.raises(ModelError, match="NaN or infinity; use an older checkpoint"):
            predict(fused, picture(4, 4))


def test_sure_beyond_float32_is_no_nan() -> None:
    logits = torch.tensor([[[1e30]], [[-1e30]]])
    assert predict_prob(written(logits, (2, 2)), picture(2, 2))[:, 0, 0].tolist() == [1, 0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_inputs_go_to_the_networks_device() -> None:
    cpu, gpu, image = strided((32, 48)), strided((32, 48)).cuda(), picture(50, 70)
    assert predict_prob(gpu, image).device.type == "cuda"
    for predict in (predict_mask, predict_mask_published):
        assert (predict(cpu, image) == predict(gpu, image)).mean() > 0.99
