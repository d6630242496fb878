"""FDA by thin DFT products against the paper's full transforms, and against values known by hand."""

from __future__ import annotations

from math import floor

import numpy as np
import numpy.typing as npt
import pytest

from cdga_sdk.errors import UsageError
from cdga_train.fourier import translate

Image = npt.NDArray[np.uint8]


def textured(seed: int, height: int, width: int) -> Image:
    """A smooth scene with noise: most of its energy at low frequencies, as in a photograph."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    phase = rng.uniform(0, 6, (3, 3))
    scene = [100 + 25 * seed + 40 * np.sin(x / 9 + a) + 30 * np.cos(y / 7 + b) + 15 * np.sin(x * y / 99 + c)
             for a, b, c in phase]  # fmt: skip
    noisy = np.stack(scene, 2) + rng.normal(0, 12, (height, width, 3))
    return np.asarray(noisy.clip(0, 255).astype(np.uint8))


def plain(source: Image, target: Image, beta: float) -> npt.NDArray[np.float64]:
    """The paper's way in float64: swap the centred window of the shifted amplitude, invert; before the clip."""
    out = np.empty(source.shape)
    for channel in range(3):
        spectrum = np.fft.fftshift(np.fft.fft2(source[..., channel]))
        amplitude, phase = np.abs(spectrum), np.angle(spectrum)
        other = np.abs(np.fft.fftshift(np.fft.fft2(target[..., channel])))
        height, width = amplitude.shape
        b, middle_y, middle_x = floor(beta * min(height, width)), height // 2, width // 2
        for y in range(middle_y - b, middle_y + b + 1):
            for x in range(middle_x - b, middle_x + b + 1):
                amplitude[y, x] = other[y, x]
        back = np.fft.ifft2(np.fft.ifftshift(amplitude * np.exp(1j * phase)))
        assert np.abs(back.imag).max() < 1e-9
        out[..., channel] = back.real
    return out


@pytest.mark.parametrize("beta", [0.0, 0.01, 0.05, 0.09, 0.3, 0.499])
@pytest.mark.parametrize(("height", "width"), [(128, 256), (60, 45), (45, 60), (37, 37), (2, 3)])
def test_equals_the_full_transforms(height: int, width: int, beta: float) -> None:
    source, target = textured(0, height, width), textured(2, height, width)
    wanted = plain(source, target, beta).clip(0, 255)
    got = translate(source, target, beta=beta)
    assert got.dtype == np.uint8
    assert got.shape == source.shape
    # Half a step is what rounding costs; the rest is float32.
    assert np.abs(got - wanted).max() <= 0.5 + 2e-3


@pytest.mark.parametrize("beta", [0.0, 0.05, 0.4])
def test_an_image_translated_to_itself_is_unchanged(beta: float) -> None:
    image = textured(1, 40, 52)
    assert np.array_equal(translate(image, image, beta=beta), image)


def test_beta_zero_swaps_the_mean_of_each_channel() -> None:
    source = textured(0, 24, 30).clip(60, 160)
    target = np.empty_like(source)
    target[:] = (90, 120, 150)
    wanted = source + (np.array([90, 120, 150]) - source.mean((0, 1)))
    assert np.abs(translate(source, target, beta=0) - wanted).max() <= 0.501


def test_a_wave_takes_the_target_amplitude_and_keeps_its_place() -> None:
    x = np.arange(64)
    wave = np.cos(2 * np.pi * x / 64)
    source = np.broadcast_to((128 + 20 * wave)[None, :, None].round(), (32, 64, 3)).astype(np.uint8)
    target = np.broadcast_to((100 - 60 * wave)[None, :, None].round(), (32, 64, 3)).astype(np.uint8)
    # b = floor(0.04 * 32) = 1: mean 100 and amplitude 60 from the target, the crest still at x = 0.
    got = translate(source, target, beta=0.04).astype(float)
    assert np.abs(got[0, :, 0] - (100 + 60 * wave)).max() < 1.6


def test_values_are_clipped_not_wrapped() -> None:
    source = np.zeros((32, 32, 3), np.uint8)
    source[:, 16:] = 255
    bright = np.full((32, 32, 3), 250, np.uint8)
    got = translate(source, bright, beta=0)
    assert got[:, 16:].min() == 255
    assert got[:, :16].max() == 122  # 0 + (250 - 127.5), rounded to even


def test_a_black_source_is_defined() -> None:
    got = translate(np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 77, np.uint8), beta=0.1)
    assert np.array_equal(got, np.full((16, 16, 3), 77))


def test_arguments_are_left_as_they_were() -> None:
    source, target = textured(0, 20, 20), textured(1, 20, 20)
    before = source.copy(), target.copy()
    translate(source, target, beta=0.1)
    assert np.array_equal(source, before[0])
    assert np.array_equal(target, before[1])


@pytest.mark.parametrize("beta", [-0.01, 0.5, float("nan")])
def test_beta_outside_its_range_is_refused(beta: float) -> None:
    image = textured(0, 8, 8)
    with pytest.raises(UsageError, match="beta is"):
        translate(image, image, beta=beta)


def test_images_of_two_sizes_are_refused() -> None:
    with pytest.raises(UsageError, match=r"\(8, 8, 3\) cannot take the style of a target of \(8, 9, 3\)"):
        translate(textured(0, 8, 8), textured(0, 8, 9), beta=0.1)
