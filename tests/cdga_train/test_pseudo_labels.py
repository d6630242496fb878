"""BDL's rule: thresholds against numpy's median of the raw values, labels by hand, all-or-nothing folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from cdga_sdk.errors import DegradedError, InputError, ModelError, UsageError
from cdga_sdk.image import read_label
from cdga_sdk.labels import CITYSCAPES_NAMES
from cdga_sdk.preprocess import Preprocess, UInt8Array
from cdga_train.checkpoint import load_checkpoint
from cdga_train.data.base import Sample
from cdga_train.data.pseudo import MANIFEST, PseudoLabelled
from cdga_train.data.street_frames import StreetsDataset
from cdga_train.models.fused import FusedNetwork
from cdga_train.predict import predict_prob
from cdga_train.pseudo_labels import (
    BIN_WIDTH,
    ConfidenceHistogram,
    LabelSource,
    pseudo_label,
    write_pseudo_labels,
)
from cdga_train.state import build_network

SOURCE = LabelSource(checkpoint_sha256="ab" * 32, iteration=500)


class Frames:
    """``count`` random images, each of another size; ``image`` may make them differently."""

    is_labelled = False

    def __init__(self, count: int, image: Callable[[int], UInt8Array] | None = None) -> None:
        self._count = count
        self._image = image or (lambda i: np.random.default_rng(i).integers(0, 256, (30 + i, 60, 3), np.uint8))

    def __len__(self) -> int:
        return self._count

    def identity(self) -> str:
        return "frames"

    def __getitem__(self, index: int) -> Sample:
        return Sample(name=f"frame {index}", image_bgr=self._image(index), label=None)


def network(*, scale: float = 4.0) -> FusedNetwork:
    """Nineteen logits of every 8x8 patch; ``scale`` is how sure it is."""
    torch.manual_seed(1)
    layer = nn.Conv2d(3, 19, 8, stride=8)
    layer.weight.data *= scale
    return FusedNetwork(layer, Preprocess(imgsz_hw=(32, 64)))


def histogram_of(values: NDArray[np.float32], *, classes: int = 1) -> ConfidenceHistogram:
    histogram = ConfidenceHistogram(classes)
    histogram.add(np.zeros((1, len(values)), np.uint8), values[np.newaxis])
    return histogram


@pytest.mark.parametrize("count", [1, 2, 3, 1000, 1001, 40_000])
@pytest.mark.parametrize("kind", ["uniform", "sure", "two heaps", "constant", "ends"])
def test_threshold_is_numpys_median_to_the_bound(kind: str, count: int) -> None:
    rng = np.random.default_rng(count)
    values = {
        "uniform": rng.random(count),
        "sure": 1 - rng.random(count) ** 4 * 1e-3,
        "two heaps": rng.choice([0.2, 0.8], count),
        "constant": np.full(count, 0.7),
        "ends": rng.choice([0.0, 1.0], count),
    }[kind].astype(np.float32)
    median = float(np.median(values.astype(np.float64)))
    found = float(histogram_of(values).thresholds(cap=1.0)[0])
    assert 0 <= median - found <= BIN_WIDTH <= 1e-4
    assert (values >= found).sum() * 2 >= count


def test_many_images_are_as_one() -> None:
    rng = np.random.default_rng(0)
    masks = rng.integers(0, 3, (5, 20, 30)).astype(np.uint8)
    probs = rng.random((5, 20, 30)).astype(np.float32)
    histogram = ConfidenceHistogram(4)
    for mask, prob in zip(masks, probs, strict=True):
        histogram.add(mask, prob)
    found = histogram.thresholds(cap=1.0)
    for class_id in range(3):
        assert found[class_id] == pytest.approx(np.median(probs[masks == class_id]), abs=BIN_WIDTH)
    assert histogram.pixels.tolist() == [int((masks == c).sum()) for c in range(4)]
    assert histogram.pixels[3] == 0
    assert found[3] == 1.0


def test_the_cap() -> None:
    histogram = ConfidenceHistogram(3)
    histogram.add(np.array([[0, 0, 0, 1, 1]], np.uint8), np.array([[0.95, 0.97, 0.99, 0.25, 0.5]], np.float32))
    # Median of class 0 is 0.97: capped. Class 1: 0.375, exactly on a bin. Class 2 was never predicted.
    assert histogram.thresholds().tolist() == [0.9, 0.375, 0.9]
    assert histogram.thresholds(cap=0.3).tolist() == [0.3, 0.3, 0.3]


def test_bad_confidence_is_never_counted() -> None:
    mask = np.zeros((1, 2), np.uint8)
    for bad in (np.nan, -0.1):
        with pytest.raises(AssertionError, match="negative or NaN"):
            ConfidenceHistogram(1).add(mask, np.array([[0.5, bad]], np.float32))
    with pytest.raises(AssertionError):
        ConfidenceHistogram(1).add(mask + 1, np.ones((1, 2), np.float32))
    with pytest.raises(AssertionError):
        ConfidenceHistogram(1).add(mask, np.ones((2, 1), np.float32))
    beyond = ConfidenceHistogram(1)
    beyond.add(mask, np.full((1, 2), np.nextafter(np.float32(1), np.float32(2))))  # a softmax may round up
    assert beyond.thresholds(cap=1.0)[0] == 1 - BIN_WIDTH


def test_labels_by_hand() -> None:
    mask = np.array([[0, 0, 1], [1, 2, 2]], np.uint8)
    prob = np.array([[0.5, 0.49, 0.9], [0.89, 0.1, 0.0]], np.float32)
    label = pseudo_label(mask, prob, np.array([0.5, 0.9, 0.0]))
    # 0.9 in float32 is a little below 0.9 in float64, and yet reaches it.
    assert label.tolist() == [[0, 255, 1], [255, 2, 2]]
    assert label.dtype == np.uint8
    everything = pseudo_label(mask, prob, np.array([1.0, 1.0, 1.0]))
    assert set(everything.ravel().tolist()) == {255}


def test_written_labels_follow_the_rule(tmp_path: Path) -> None:
    fused, data, done = network(), Frames(6), list[int]()
    stats = write_pseudo_labels(fused, data, tmp_path / "labels", source=SOURCE, on_frame=done.append)
    assert done == list(range(1, 13))
    probs = np.stack([predict_prob(fused, data[i].image_bgr).numpy() for i in range(6)])
    masks, confidence = probs.argmax(axis=1), probs.max(axis=1)
    assert len(np.unique(masks)) > 3
    labelled = PseudoLabelled(data, tmp_path / "labels")
    found = np.stack([np.asarray(labelled[i].label) for i in range(6)])
    assert found.shape == (6, 32, 64)
    for class_id, name in enumerate(CITYSCAPES_NAMES):
        where = masks == class_id
        if not where.any():
            assert (stats.thresholds[name], stats.predicted[name], stats.kept[name]) == (0.9, 0, 0)
            continue
        median = min(0.9, float(np.median(confidence[where].astype(np.float64))))
        assert -1e-6 <= median - stats.thresholds[name] <= BIN_WIDTH + 1e-6
        kept = found[where] == class_id
        assert (kept | (found[where] == 255)).all()
        assert kept[confidence[where] >= median].all()
        assert not kept[confidence[where] < median - BIN_WIDTH].any()
        assert stats.predicted[name] == pytest.approx(where.mean(), abs=1e-6)
        assert stats.kept[name] == pytest.approx(kept.mean(), abs=1e-6)
        assert stats.kept[name] >= 0.5
    assert stats.kept_in_all == pytest.approx((found != 255).mean(), abs=1e-6)


def test_manifest_says_where_labels_come_from(tmp_path: Path) -> None:
    write_pseudo_labels(network(), Frames(2), tmp_path / "labels", source=SOURCE)
    text = (tmp_path / "labels" / MANIFEST).read_text(encoding="utf-8")
    manifest = json.loads(text)
    assert (manifest["checkpoint_sha256"], manifest["iteration"]) == ("ab" * 32, 500)
    assert manifest["names"] == ["frame 0", "frame 1"]
    assert manifest["size_hw"] == [32, 64]
    assert set(manifest["classes"]) == set(CITYSCAPES_NAMES)
    assert 0.5 <= manifest["kept"] <= 1
    assert str(tmp_path) not in text
    assert sorted(p.name for p in (tmp_path / "labels").iterdir()) == ["000000.png", "000001.png", MANIFEST]


def test_same_network_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        write_pseudo_labels(network(), Frames(3), tmp_path / name, source=SOURCE)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_frame_may_be_ignored_altogether(tmp_path: Path) -> None:
    # Grey frames give one class with one confidence each: the paler half is below the median of all.
    fused = FusedNetwork(nn.Conv2d(3, 19, 1), Preprocess(imgsz_hw=(8, 8)))
    layer = fused.network
    assert isinstance(layer, nn.Conv2d)
    layer.weight.data.zero_()
    layer.weight.data[4] = 0.2
    assert layer.bias is not None
    layer.bias.data.zero_()
    grey = Frames(3, lambda i: np.full((8, 8, 3), 130 + 40 * i, np.uint8))
    stats = write_pseudo_labels(fused, grey, tmp_path / "labels", source=SOURCE)
    assert stats.predicted["fence"] == 1
    assert stats.kept_in_all == pytest.approx(2 / 3, abs=1e-6)
    found = [np.unique(read_label(tmp_path / "labels" / f"00000{i}.png")).tolist() for i in range(3)]
    assert found == [[255], [4], [4]]


def test_data_that_change_meanwhile_are_refused(tmp_path: Path) -> None:
    fused, asked = network(scale=20), list[int]()

    def image(index: int) -> UInt8Array:
        asked.append(index)
        sure = np.random.default_rng(0).integers(0, 256, (32, 64, 3), np.uint8)
        mean = np.array([103.5, 116.3, 123.7])  # BGR: the normalised image is zero, and the network unsure
        return sure if len(asked) == 1 else np.broadcast_to(mean, (32, 64, 3)).astype(np.uint8)

    with pytest.raises(DegradedError, match="every pixel would be ignored"):
        write_pseudo_labels(fused, Frames(1, image), tmp_path / "labels", source=SOURCE)
    assert list(tmp_path.iterdir()) == []


def test_nan_leaves_no_folder(tmp_path: Path) -> None:
    fused = network()
    next(fused.parameters()).data[0] = float("nan")
    with pytest.raises(ModelError, match="NaN"):
        write_pseudo_labels(fused, Frames(2), tmp_path / "labels", source=SOURCE)
    assert list(tmp_path.iterdir()) == []


def test_a_bad_image_leaves_no_folder(tmp_path: Path) -> None:
    def image(index: int) -> UInt8Array:
        if index == 2:
            raise InputError("cut short", where="2.jpg")
        return np.zeros((8, 8, 3), np.uint8)

    with pytest.raises(InputError, match="cut short"):
        write_pseudo_labels(network(), Frames(3, image), tmp_path / "labels", source=SOURCE)
    assert list(tmp_path.iterdir()) == []


def test_labels_are_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    done: list[int] = []
    with pytest.raises(UsageError, match="already exists"):
        write_pseudo_labels(network(), Frames(1), tmp_path / "labels", source=SOURCE, on_frame=done.append)
    assert done == []


def test_a_run_labels_its_target(tiny_run: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(tiny_run)
    fused = FusedNetwork(build_network(checkpoint), checkpoint.preprocess)
    street = StreetsDataset("dusk", "train", (90, 150), with_labels=False)
    target = Frames(3, lambda i: street[i].image_bgr)
    stats = write_pseudo_labels(fused, target, tmp_path / "labels", source=SOURCE)
    assert 0.5 <= stats.kept_in_all <= 1
    sample = PseudoLabelled(target, tmp_path / "labels")[2]
    assert sample.label is not None
    assert sample.label.shape == (64, 128)
    assert sample.name == target[2].name
