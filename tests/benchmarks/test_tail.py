"""The ways from logits to labels that are timed give the same labels, and one that does not is noticed."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import tail
from cdga_sdk.opencv import cv2
from cdga_sdk.tail import Float32Array

SIZE_HW = (64, 128)


@pytest.fixture
def blobs() -> Float32Array:
    """Four classes in a few blobs."""
    coarse = np.random.default_rng(0).standard_normal((4, 3, 4)).astype(np.float32)
    return np.stack([np.asarray(cv2.resize(c, (16, 8), interpolation=cv2.INTER_CUBIC), np.float32) for c in coarse])


@pytest.mark.parametrize("name", tail.LABELS)
def test_variants_agree(name: str, blobs: Float32Array) -> None:
    given, wanted = tail.LABELS[name](blobs, SIZE_HW), tail.torch_labels(blobs, SIZE_HW)
    assert (given.shape, given.dtype) == (SIZE_HW, np.dtype(np.uint8))
    assert len(np.unique(wanted)) > 1
    assert (given != wanted).sum() <= 1


def test_what_was_checked_is_told(blobs: Float32Array) -> None:
    record = tail.checked([blobs], SIZE_HW)
    assert record["largest_confidence_difference"] in {0, 1}
    assert isinstance(record["mixed_cells"], float)
    assert 0.05 < record["mixed_cells"] < 0.95


def test_a_way_to_other_labels_ends_the_run(blobs: Float32Array, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "LABELS", {"opencv": lambda logits, size_hw: np.zeros(size_hw, np.uint8)})
    with pytest.raises(SystemExit, match="opencv gives other labels than torch"):
        tail.checked([blobs], SIZE_HW)


def test_a_wrong_confidence_ends_the_run(blobs: Float32Array, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "confidence", lambda logits, size_hw: np.zeros(size_hw, np.uint8))
    with pytest.raises(SystemExit, match=r"differs from torch's by \d+ of 255"):
        tail.checked([blobs], SIZE_HW)
