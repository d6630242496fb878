"""Fourier domain adaptation (FDA): give a source image the low-frequency amplitude of a target image.

Source: Yang & Soatto, "FDA: Fourier Domain Adaptation for Semantic Segmentation", CVPR 2020. No training.
Axes: H x W pixels, C colour channels, U row frequencies 0 to b, V column frequencies -b to b, X = W and C together.
"""

from __future__ import annotations

from math import floor

import numpy as np
import numpy.typing as npt

from cdga_sdk.errors import UsageError

__all__ = ["translate"]


def translate(
    source_rgb_HWC: npt.NDArray[np.uint8], target_rgb_HWC: npt.NDArray[np.uint8], *, beta: float
) -> npt.NDArray[np.uint8]:
    """The source image in the style of the target: its low-frequency amplitude is the target's, its phase its own.

    In each channel, ``amplitude(u, v)`` is swapped for ``|u| <= b`` and ``|v| <= b``, ``b = floor(beta * min(H, W))``.
    The content keeps its place, so the labels of the source hold. Deterministic.

    Source: Yang & Soatto 2020, eq. 3 (their beta, L in their code); the window includes its border as in their code.

    Args:
        source_rgb_HWC: uint8, with labels.
        target_rgb_HWC: uint8, of the same size and channel order.
        beta: Relative half-width of the window, in [0, 0.5); 0.01 to 0.09 in the paper. As long as ``b`` is 0, and so
            with ``beta=0``, the mean of each channel is still swapped.

    Returns:
        (H, W, C) uint8, rounded and clipped to [0, 255].

    Raises:
        UsageError: The sizes differ, or ``beta`` is outside its range.
    """
    _check(source_rgb_HWC, target_rgb_HWC, beta)
    height, width, _ = source_rgb_HWC.shape
    b = floor(beta * min(height, width))
    source_HWC = source_rgb_HWC.astype(np.float32)
    rows_UH, columns_VW = _waves(np.arange(b + 1), height), _waves(np.arange(-b, b + 1), width)
    source_UCV = _low_spectrum(source_HWC, rows_UH, columns_VW)
    target_UCV = _low_spectrum(target_rgb_HWC.astype(np.float32), rows_UH, columns_VW)
    source_HWC += _image(_amplitude_swap(source_UCV, target_UCV), rows_UH, columns_VW)
    np.clip(np.rint(source_HWC), 0, 255, out=source_HWC)
    return source_HWC.astype(np.uint8)


def _check(source_HWC: npt.NDArray[np.uint8], target_HWC: npt.NDArray[np.uint8], beta: float) -> None:
    assert source_HWC.dtype == target_HWC.dtype == np.uint8, (source_HWC.dtype, target_HWC.dtype)
    assert source_HWC.ndim == target_HWC.ndim == 3, (source_HWC.shape, target_HWC.shape)
    if source_HWC.shape != target_HWC.shape:
        raise UsageError(
            f"a source image of shape {source_HWC.shape} cannot take the style of a target of {target_HWC.shape}",
            fix="resize both to one size first",
        )
    if not 0 <= beta < 0.5:
        raise UsageError(f"beta is {beta}, and must be at least 0 and below 0.5", where="beta", fix="0.01 is usual")


def _waves(frequency_F: npt.NDArray[np.int_], side: int) -> npt.NDArray[np.complex64]:
    """(F, side) rows of the DFT matrix: ``exp(-2 pi i f x / side)``."""
    turns = np.outer(frequency_F, np.arange(side)) % side / side
    waves: npt.NDArray[np.complex128] = np.exp(-2j * np.pi * turns)
    return waves.astype(np.complex64)


# Cost: the swap changes only the window, so the translated image is the source plus the inverse transform of a
# difference that lives in a few frequencies. Products with those rows of the DFT matrices give the same as two full
# transforms and one back: on one core with beta 0.01, 0.3 ms instead of 8 for 256 x 128 and 1.3 instead of 50 for
# 480 x 360. The image is real, so half of the row frequencies do.
# Caveat: numpy's BLAS threads these products; several loader processes on few cores then wait for each other (30 to
# 100 ms were seen), unless OPENBLAS_NUM_THREADS=1 is set for them.
def _low_spectrum(
    image_HWC: npt.NDArray[np.float32], rows_UH: npt.NDArray[np.complex64], columns_VW: npt.NDArray[np.complex64]
) -> npt.NDArray[np.complex64]:
    """(U, C, V): the window of the image's 2-D DFT."""
    height, width, channels = image_HWC.shape
    image_HX = image_HWC.reshape(height, -1)
    part_UX = rows_UH.real @ image_HX + 1j * (rows_UH.imag @ image_HX)
    part_UCW = part_UX.reshape(-1, width, channels).transpose(0, 2, 1)
    spectrum: npt.NDArray[np.complex64] = part_UCW.reshape(-1, width) @ columns_VW.T
    return spectrum.reshape(-1, channels, len(columns_VW))


def _amplitude_swap(
    source_UCV: npt.NDArray[np.complex64], target_UCV: npt.NDArray[np.complex64]
) -> npt.NDArray[np.complex64]:
    """(U, C, V): what the swap adds to the source's spectrum. A zero has phase 0, as in numpy's ``angle``."""
    source_amplitude_UCV = np.abs(source_UCV)
    phase_UCV = np.ones_like(source_UCV)
    np.divide(source_UCV, source_amplitude_UCV, out=phase_UCV, where=source_amplitude_UCV > 0)
    return (np.abs(target_UCV) - source_amplitude_UCV) * phase_UCV


def _image(
    window_UCV: npt.NDArray[np.complex64], rows_UH: npt.NDArray[np.complex64], columns_VW: npt.NDArray[np.complex64]
) -> npt.NDArray[np.float32]:
    """(H, W, C): the inverse DFT of a spectrum that is zero outside the window."""
    channels, height, width = window_UCV.shape[1], rows_UH.shape[1], columns_VW.shape[1]
    part_UCW = (window_UCV.reshape(-1, len(columns_VW)) @ columns_VW.conj()).reshape(-1, channels, width)
    # Rows 1 to b stand for -1 to -b too: a real image's spectrum is conjugate-symmetric.
    part_UCW[1:] *= 2
    part_UX = part_UCW.transpose(0, 2, 1).reshape(len(rows_UH), -1) / (height * width)
    # The real part of conj(rows).T @ part, with rows = cos - i sin.
    image_HX: npt.NDArray[np.float32] = rows_UH.real.T @ part_UX.real + rows_UH.imag.T @ part_UX.imag
    return image_HX.reshape(height, width, channels)
