"""The fused network by hand: a 1x1 convolution of known weights between normalisation and argmax."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cdga_sdk.preprocess import Preprocess
from cdga_train.models.fused import FusedNetwork, Normalise

# mean 0 and std 1 / 255 of a value in [0, 1]: a normalised value is the pixel's own, 0 to 255
AS_IS = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}


def linear(weight_C3: list[list[float]], stride: int = 1) -> nn.Module:
    """A network whose logits are ``weight @ rgb`` of every ``stride``-th pixel."""
    conv = nn.Conv2d(3, len(weight_C3), 1, stride=stride, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor(weight_C3)[:, :, None, None])
    return conv


def one_pixel(*rgb: int) -> Tensor:
    return torch.tensor(rgb, dtype=torch.uint8).view(1, 1, 1, 3)


def test_normalise_by_hand() -> None:
    image_NCHW = Normalise(Preprocess(imgsz_hw=(1, 1)))(one_pixel(255, 0, 51))
    expected = [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    torch.testing.assert_close(image_NCHW.flatten(), torch.tensor(expected))
    assert image_NCHW.shape == (1, 3, 1, 1)
    assert image_NCHW.dtype == torch.float32


def test_mask_is_argmax_and_conf_is_the_rounded_softmax() -> None:
    fused = FusedNetwork(linear([[1, 0, 0], [0, 1, 0], [0, 0, 1]]), Preprocess(imgsz_hw=(1, 4), **AS_IS))
    frame = torch.tensor([[[[7, 7, 7], [9, 8, 7], [0, 0, 100], [4, 5, 5]]]], dtype=torch.uint8)
    mask, conf = fused(frame)
    assert mask.dtype == conf.dtype == torch.uint8
    # a tie goes to the first class; softmax of (9, 8, 7) is 1 / (1 + e^-1 + e^-2) = 0.6652
    assert mask.tolist() == [[[0, 0, 2, 1]]]
    expected = [
        round(255 / 3),
        round(255 / (1 + math.exp(-1) + math.exp(-2))),
        255,
        round(255 / (2 + math.exp(-1))),
    ]
    assert expected == [85, 170, 255, 108]
    assert conf.tolist() == [[expected]]


def test_logits_too_large_for_exp_are_no_trouble() -> None:
    fused = FusedNetwork(linear([[1e4, 0, 0], [0, 1e4, 0]]), Preprocess(imgsz_hw=(1, 1), **AS_IS))
    mask, conf = fused(one_pixel(250, 255, 0))
    assert (mask.item(), conf.item()) == (1, 255)


def test_logits_are_upsampled_before_the_argmax() -> None:
    # Logits of pixels 0 and 2: class 0 has 10 and 0, class 1 has 0 and 6. Bilinear with half-pixel centres at width
    # 4: class 0 is 10, 7.5, 2.5, 0; class 1 is 0, 1.5, 4.5, 6.
    frame = torch.tensor([[[10, 0, 0], [0, 0, 0], [0, 6, 0], [0, 0, 0]]], dtype=torch.uint8)[None]
    fused = FusedNetwork(linear([[1, 0, 0], [0, 1, 0]], stride=2), Preprocess(imgsz_hw=(1, 4), **AS_IS))
    mask, conf = fused(frame)
    assert mask.tolist() == [[[0, 0, 1, 1]]]
    margins = (10.0, 6.0, 2.0, 6.0)
    assert conf.flatten().tolist() == [round(255 / (1 + math.exp(-m))) for m in margins]


def test_it_is_put_into_eval_mode() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.9), linear([[1, 0, 0]]))
    fused = FusedNetwork(network.train(), Preprocess(imgsz_hw=(1, 1)))
    assert not any(module.training for module in fused.modules())
