"""Pseudo-labels of a target by the rule of BDL (Li et al. 2019, arXiv 1904.10620): confident pixels only.

Per class, the threshold is the median, over the whole target train set, of the confidence of the pixels predicted as
that class, at most 0.9; a pixel below its class's threshold is ignored. So at least half of every class's pixels stay.

Axes: C classes, H x W pixels of the network's input.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from cdga_sdk import __version__
from cdga_sdk.atomic import atomic_folder, write_text
from cdga_sdk.errors import DegradedError
from cdga_sdk.image import write_png
from cdga_sdk.labels import CITYSCAPES_NAMES, IGNORE
from cdga_sdk.preprocess import UInt8Array
from cdga_train.data.base import Dataset
from cdga_train.data.pseudo import FORMAT, MANIFEST, label_file, labels_sha256
from cdga_train.models.fused import FusedNetwork
from cdga_train.predict import predict_prob

__all__ = [
    "BIN_WIDTH",
    "CAP",
    "ConfidenceHistogram",
    "LabelSource",
    "PseudoLabelStats",
    "pseudo_label",
    "write_pseudo_labels",
]

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

CAP: Final = 0.9
_BINS: Final = 2**14  # a power of two: float32 times it is exact
BIN_WIDTH: Final = 1 / _BINS


@dataclass(frozen=True, kw_only=True)
class LabelSource:
    """The checkpoint that labelled: its fingerprint or file hash, and how far it was trained."""

    checkpoint_sha256: str
    iteration: int


@dataclass(frozen=True, kw_only=True)
class PseudoLabelStats:
    """What was labelled.

    Attributes:
        thresholds: By class name, 0 to 1; the cap for a class that was never predicted.
        predicted: Share of all pixels predicted as each class, 0 to 1. One class at 1: the network has collapsed.
        kept: Share of each class's pixels that kept their label; 0 for a class that was never predicted.
        kept_in_all: Share of all pixels that kept theirs.
    """

    thresholds: dict[str, float]
    predicted: dict[str, float]
    kept: dict[str, float]
    kept_in_all: float


class ConfidenceHistogram:
    """Per-class histograms of confidence in bins of `BIN_WIDTH` (6.1e-5): 2.5 MB for 19 classes, however many images.

    Args:
        num_classes: At least 1.
    """

    def __init__(self, num_classes: int) -> None:
        assert num_classes >= 1, num_classes
        self._counts: Int64Array = np.zeros((num_classes, _BINS), np.int64)

    def add(self, mask_HW: UInt8Array, prob_HW: Float32Array) -> None:
        """Count an image: classes below ``num_classes`` and their probabilities, 0 to 1, never NaN."""
        assert mask_HW.shape == prob_HW.shape, (mask_HW.shape, prob_HW.shape)
        assert mask_HW.max() < len(self._counts), mask_HW.max()
        assert prob_HW.min() >= 0, "probability is negative or NaN"  # a NaN compares false
        bins = np.minimum((prob_HW * np.float32(_BINS)).astype(np.int64), _BINS - 1)
        flat = (mask_HW.astype(np.int64) * _BINS + bins).ravel()
        self._counts += np.bincount(flat, minlength=self._counts.size).reshape(self._counts.shape)

    @property
    def pixels(self) -> Int64Array:
        """(C,): pixels counted for each class."""
        return np.asarray(self._counts.sum(axis=1))

    def thresholds(self, cap: float = CAP) -> Float64Array:
        """(C,) in [0, cap]: the median confidence of each class, at most ``cap``; ``cap`` where nothing was counted.

        Error against the median of the raw values (numpy's, the mean of the two middle ones): at most `BIN_WIDTH`, and
        never above it, so that half of the pixels always stay, those exactly at the median too.
        """
        cumulated = self._counts.cumsum(axis=1)
        total = cumulated[:, -1]
        middles = np.stack([(total - 1) // 2, total // 2], axis=1)  # ranks from 0
        # The first bin whose cumulated count is above the rank holds the value of that rank; its lower edge is taken.
        found = [np.searchsorted(row, ranks, side="right") for row, ranks in zip(cumulated, middles, strict=True)]
        return np.where(total > 0, np.minimum(np.mean(found, axis=1) * BIN_WIDTH, cap), cap)


def pseudo_label(mask_HW: UInt8Array, prob_HW: Float32Array, thresholds_C: Float64Array) -> UInt8Array:
    """``mask_HW`` where its probability reaches its class's threshold, 255 elsewhere: (H, W) uint8.

    Args:
        mask_HW: Predicted classes, below C.
        prob_HW: Their probabilities, 0 to 1.
        thresholds_C: As `ConfidenceHistogram.thresholds` gives.
    """
    return np.where(prob_HW < thresholds_C.astype(np.float32)[mask_HW], np.uint8(IGNORE), mask_HW)


def write_pseudo_labels(
    fused: FusedNetwork,
    dataset: Dataset,
    folder: Path,
    *,
    source: LabelSource,
    on_frame: Callable[[int], None] = lambda _: None,
) -> PseudoLabelStats:
    """Label ``dataset`` at the network's size into ``folder``, which exists only once it is complete.

    The network runs twice over the data set: once for the thresholds and once for the labels, so that nothing is kept
    in between, on the disk or in memory.

    Args:
        fused: The network of the round before.
        dataset: The whole target train set; its labels, if it has any, are never looked at.
        folder: Must not exist yet.
        source: Written into the manifest.
        on_frame: Called with the number of frames done, up to twice the length of ``dataset``.

    Raises:
        UsageError: ``folder`` exists or cannot be written to.
        ResourceError: The disk is full.
        InputError: An image cannot be read.
        ModelError: The network gives NaN.
        DegradedError: Every pixel would be ignored: the data changed while they were being labelled.
    """
    histogram = ConfidenceHistogram(len(CITYSCAPES_NAMES))
    names: list[str] = []
    with atomic_folder(folder) as growing:
        for index in range(len(dataset)):
            sample = dataset[index]
            histogram.add(*_mask_and_confidence(fused, sample.image_bgr))
            names.append(sample.name)
            on_frame(index + 1)
        thresholds_C = histogram.thresholds()
        kept_C: Int64Array = np.zeros(len(CITYSCAPES_NAMES), np.int64)
        for index in range(len(dataset)):
            mask_HW, prob_HW = _mask_and_confidence(fused, dataset[index].image_bgr)
            label_HW = pseudo_label(mask_HW, prob_HW, thresholds_C)
            kept_C += np.bincount(label_HW.ravel(), minlength=256)[: len(kept_C)]
            write_png(label_file(growing, index), label_HW)
            on_frame(len(dataset) + index + 1)
        stats = _stats(thresholds_C, histogram.pixels, kept_C)
        if not kept_C.any():
            raise DegradedError("every pixel would be ignored", where=folder, fix="keep the data unchanged meanwhile")
        sha256 = labels_sha256(growing, len(dataset))
        manifest = _manifest(names, fused.preprocess.imgsz_hw, source, stats, sha256)
        write_text(growing / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return stats


def _mask_and_confidence(fused: FusedNetwork, image_bgr: UInt8Array) -> tuple[UInt8Array, Float32Array]:
    """Both (H, W): the most probable class and its probability. Only these leave the device."""
    prob_HW, mask_HW = predict_prob(fused, image_bgr).max(dim=0)
    return mask_HW.byte().cpu().numpy(), prob_HW.cpu().numpy()


def _stats(thresholds_C: Float64Array, pixels_C: Int64Array, kept_C: Int64Array) -> PseudoLabelStats:
    def by_name(values_C: Float64Array) -> dict[str, float]:
        return {name: round(float(v), 6) for name, v in zip(CITYSCAPES_NAMES, values_C, strict=True)}

    return PseudoLabelStats(
        thresholds=by_name(thresholds_C),
        predicted=by_name(pixels_C / pixels_C.sum()),
        kept=by_name(kept_C / np.maximum(pixels_C, 1)),
        kept_in_all=round(float(kept_C.sum() / pixels_C.sum()), 6),
    )


def _manifest(
    names: list[str], size_hw: tuple[int, int], source: LabelSource, stats: PseudoLabelStats, sha256: str
) -> dict[str, object]:
    classes = {
        name: {"threshold": stats.thresholds[name], "predicted": stats.predicted[name], "kept": stats.kept[name]}
        for name in CITYSCAPES_NAMES
    }
    return {
        "format": FORMAT,
        "made_by": f"cdga-sdk {__version__}",
        "rule": f"per-class median of confidence, at most {CAP} (Li et al. 2019)",
        "checkpoint_sha256": source.checkpoint_sha256,
        "iteration": source.iteration,
        "size_hw": size_hw,
        "kept": stats.kept_in_all,
        "classes": classes,
        "sha256": sha256,
        "names": names,
    }
