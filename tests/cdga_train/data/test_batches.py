"""Batches: they follow from (seed, iteration) alone, keep image and label together, and come in order."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cdga_sdk.errors import UsageError
from cdga_sdk.preprocess import UInt8Array
from cdga_train.config import TrainConfig
from cdga_train.data.base import Sample
from cdga_train.data.batches import Batch, Batches, prefetched
from cdga_train.fourier import translate

SIZE_HW = (32, 64)
SAMPLE_BYTES = 32 * 64 * 4  # three of the image, one of the label


class Counting:
    """Samples in which image (BGR: x + 128, index, x) and label (x) tell where each pixel came from."""

    def __init__(self, length: int = 10, *, offset: int = 0, is_labelled: bool = True) -> None:
        self.asked: list[int] = []
        self.is_labelled = is_labelled
        self._length = length
        self._offset = offset

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        self.asked.append(index)
        label: UInt8Array = np.broadcast_to(np.arange(64, dtype=np.uint8), SIZE_HW).copy()
        image = np.stack([label + 128, np.full(SIZE_HW, self._offset + index, np.uint8), label], axis=2)
        return Sample(name=str(index), image_bgr=image, label=label if self.is_labelled else None)

    def identity(self) -> str:
        return f"{self._offset} {self._length} {self.is_labelled}"


def target_samples() -> Counting:
    return Counting(offset=100, is_labelled=False)


CONFIG = TrainConfig(imgsz=SIZE_HW, batch=3, flip=True, seed=5)


def equal(one: Batch, other: Batch) -> bool:
    pairs = zip(vars(one).values(), vars(other).values(), strict=True)
    return all(a is b if a is None or b is None else bool((a == b).all()) for a, b in pairs)


def indices(images_BHWC: UInt8Array) -> list[int]:
    return [int(i) for i in images_BHWC[:, 0, 0, 1]]


def test_a_batch_follows_from_seed_and_iteration_alone() -> None:
    forwards = Batches(Counting(), target_samples(), CONFIG)
    backwards = Batches(Counting(), target_samples(), replace(CONFIG, cache_gib=0.0, workers=7))
    batches = {i: forwards[i][0] for i in range(8)}
    assert all(equal(batches[i], backwards[i][0]) for i in reversed(range(8)))
    assert all(equal(batches[i], forwards[i][0]) for i in range(8))
    assert len({tuple(indices(b.source_BHWC)) for b in batches.values()}) > 4
    other_seed = Batches(Counting(), target_samples(), replace(CONFIG, seed=6))
    assert not all(equal(batches[i], other_seed[i][0]) for i in range(8))


def test_shapes_order_and_domains() -> None:
    batch = Batches(Counting(), target_samples(), CONFIG)[0][0]
    assert batch.target_BHWC is not None
    assert batch.source_BHWC.shape == batch.target_BHWC.shape == (3, 32, 64, 3)
    assert batch.label_BHW.shape == (3, 32, 64)
    assert batch.source_BHWC.dtype == batch.label_BHW.dtype == np.uint8
    assert max(indices(batch.source_BHWC)) < 10
    assert min(indices(batch.target_BHWC)) >= 100
    for images_BHWC in (batch.source_BHWC, batch.target_BHWC):  # RGB: x, index, x + 128
        red, _, blue = images_BHWC.transpose(3, 0, 1, 2)
        assert (blue == red + 128).all()
        assert set(red.flat) == set(range(64))


def test_images_become_rgb_of_the_networks_size() -> None:
    class Blue:
        is_labelled = True

        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> Sample:
            label: UInt8Array = np.zeros((16, 16), np.uint8)
            return Sample(name="blue", image_bgr=np.full((16, 16, 3), (255, 0, 9), np.uint8), label=label)

        def identity(self) -> str:
            return "blue"

    (batch,) = Batches(Blue(), Blue(), CONFIG)[0]
    for images_BHWC in (batch.source_BHWC, batch.target_BHWC):
        assert images_BHWC is not None
        assert images_BHWC.shape == (3, 32, 64, 3)
        assert images_BHWC[0, 0, 0].tolist() == [9, 0, 255]


@pytest.mark.parametrize("flip", [True, False])
def test_flips_keep_image_and_label_together(flip: bool) -> None:
    batches = Batches(Counting(), target_samples(), replace(CONFIG, flip=flip))
    mirrored = []
    for i in range(20):
        (batch,) = batches[i]
        assert (batch.source_BHWC[..., 0] == batch.label_BHW).all()
        assert (batch.source_BHWC[..., 2] == batch.label_BHW + 128).all()
        mirrored += [bool(row[0] == 63) for row in batch.label_BHW[:, 0]]
    assert 15 <= sum(mirrored) <= 45 if flip else not any(mirrored)  # of 60


def test_fda_only_when_asked() -> None:
    plain_config = replace(CONFIG, flip=False)
    plain = Batches(Counting(), target_samples(), plain_config)[4][0]
    fda = Batches(Counting(), target_samples(), replace(plain_config, translate="fda", fda_beta=0.05))[4][0]
    assert plain.target_BHWC is not None
    assert fda.target_BHWC is not None
    assert (fda.target_BHWC == plain.target_BHWC).all()
    assert (fda.label_BHW == plain.label_BHW).all()
    assert (plain.source_BHWC[..., 0] == plain.label_BHW).all()
    for source, target, found in zip(plain.source_BHWC, plain.target_BHWC, fda.source_BHWC, strict=True):
        assert (found == translate(source, target, beta=0.05)).all()
        assert not (found == source).all()


@pytest.mark.parametrize("style", ["none", "fda"])
def test_source_only_has_no_target_array(style: str) -> None:
    config = replace(CONFIG, arm="source_only", translate="fda" if style == "fda" else "none")
    target = target_samples()
    batch = Batches(Counting(), target if style == "fda" else None, config)[0][0]
    assert batch.target_BHWC is None
    assert bool(target.asked) == (style == "fda")


def test_slots_are_drawn_apart_and_processes_share_them() -> None:
    config = replace(CONFIG, accumulate=2, flip=False)
    alone = Batches(Counting(), target_samples(), config)
    second = Batches(Counting(), target_samples(), replace(config, accumulate=1), slots=range(1, 2))
    for i in range(4):
        first_batch, second_batch = alone[i]
        assert not equal(first_batch, second_batch)
        assert equal(second[i][0], second_batch)


@pytest.mark.parametrize("style", ["none", "fda"])
def test_domains_of_different_sizes(style: str) -> None:
    config = replace(CONFIG, source_imgsz=(48, 32), translate="fda" if style == "fda" else "none")
    (batch,) = Batches(Counting(), target_samples(), config)[0]
    assert batch.target_BHWC is not None
    assert batch.source_BHWC.shape == (3, 48, 32, 3)
    assert batch.label_BHW.shape == (3, 48, 32)
    assert batch.target_BHWC.shape == (3, 32, 64, 3)


def test_labels_of_the_target_are_pseudo_labels_and_are_mirrored_with_it() -> None:
    batches = Batches(Counting(), Counting(offset=100), CONFIG)
    for i in range(10):
        (batch,) = batches[i]
        assert batch.target_label_BHW is not None
        assert batch.target_BHWC is not None
        assert (batch.target_BHWC[..., 0] == batch.target_label_BHW).all()
    (without,) = Batches(Counting(), target_samples(), CONFIG)[0]
    assert without.target_label_BHW is None


def test_a_disk_cache_serves_the_next_run(tmp_path: Path) -> None:
    config = replace(CONFIG, cache_gib=0.0, cache_dir=str(tmp_path))
    first, again = Counting(), Counting()
    batches = Batches(first, None, replace(config, arm="source_only"))
    made = [batches[i][0] for i in range(20)]
    served = Batches(again, None, replace(config, arm="source_only"))
    assert all(equal(served[i][0], batch) for i, batch in enumerate(made))
    assert len(first.asked) == 10
    assert again.asked == []
    assert not batches.is_disk_cache_full
    assert not Batches(first, None, replace(CONFIG, arm="source_only")).is_disk_cache_full


@pytest.mark.parametrize("kept", [0, 3, 10])
def test_memory_budget(kept: int) -> None:
    data = Counting()
    batches = Batches(data, None, replace(CONFIG, arm="source_only", cache_gib=(kept + 0.5) * SAMPLE_BYTES / 2**30))
    for i in range(40):
        batches[i]
    first_asked = list(dict.fromkeys(data.asked))
    again = [index for index in first_asked if data.asked.count(index) > 1]
    assert len(first_asked) == 10
    assert len(again) == 10 - kept
    assert not set(again) & set(first_asked[:kept])


def test_one_budget_for_source_and_target() -> None:
    source, target = Counting(), Counting(offset=100)  # labelled both: samples of one size
    batches = Batches(source, target, replace(CONFIG, cache_gib=12.5 * SAMPLE_BYTES / 2**30))
    for i in range(40):
        batches[i]
    once = [i for data in (source, target) for i in range(10) if data.asked.count(i) == 1]
    assert len(once) == 12


def dummy(iteration: int) -> Batch:
    pixel: UInt8Array = np.full((1, 1, 1), iteration, np.uint8)
    return Batch(source_BHWC=pixel, label_BHW=pixel, target_BHWC=None)


def numbers(batches: list[Batch]) -> list[int]:
    return [int(b.label_BHW[0, 0, 0]) for b in batches]


def batch_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("batches")]


def test_a_cache_that_cannot_be_written_to_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    config = replace(CONFIG, cache_dir=str(tmp_path / "file" / "cache"))
    with pytest.raises(UsageError, match=r"cache_dir: the folder '.*cache' cannot be written to"):
        Batches(Counting(1), None, config)


@pytest.mark.parametrize(("start", "stop"), [(0, 12), (5, 9), (3, 4), (7, 7)])
def test_prefetched_keeps_the_order(start: int, stop: int) -> None:
    def make(iteration: int) -> Batch:
        time.sleep(0.01 if iteration % 3 == 0 else 0)
        return dummy(iteration)

    assert numbers(list(prefetched(make, start, stop, workers=4))) == list(range(start, stop))
    assert not batch_threads()


def test_prefetched_stays_two_items_a_thread_ahead() -> None:
    made: list[int] = []

    def make(iteration: int) -> Batch:
        made.append(iteration)
        return dummy(iteration)

    stream = prefetched(make, 0, 100, workers=2)
    next(stream)
    time.sleep(0.05)
    assert max(made) == 4
    stream.close()  # type: ignore[attr-defined]  # it is a generator
    assert not batch_threads()


def test_prefetched_keeps_every_thread_busy() -> None:
    running, most, lock = 0, 0, threading.Lock()

    def make(iteration: int) -> Batch:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1
        return dummy(iteration)

    assert numbers(list(prefetched(make, 0, 40, workers=8))) == list(range(40))
    assert most == 8


def test_prefetched_raises_where_the_batch_would_have_come_and_stops() -> None:
    def make(iteration: int) -> Batch:
        if iteration == 5:
            raise ValueError("the fifth")
        return dummy(iteration)

    seen: list[Batch] = []
    with pytest.raises(ValueError, match="the fifth"):
        seen.extend(prefetched(make, 0, 50, workers=3))
    assert not batch_threads()
    stream = prefetched(make, 0, 50, workers=3)
    assert numbers([next(stream) for _ in range(5)]) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="the fifth"):
        next(stream)
    assert not batch_threads()


def test_prefetched_stops_its_threads_when_left() -> None:
    for batch in prefetched(dummy, 0, 1000, workers=3):
        if numbers([batch]) == [2]:
            break
    assert not batch_threads()


def test_augmentation_zooms_both_domains_and_recolours_the_source() -> None:
    config = replace(CONFIG, augment=True, flip=False)
    batch = Batches(Counting(), target_samples(), config)[3][0]
    assert batch.target_BHWC is not None
    for target_HWC in batch.target_BHWC:
        column = target_HWC[:, :, 0].astype(int)
        assert 0 < np.ptp(column) < 63  # a window of the columns
        assert (target_HWC[:, :, 2] == column + 128).all()  # colours as they were
        assert (target_HWC[:, :, 1] == target_HWC[0, 0, 1]).all()
    for source_HWC, label_HW in zip(batch.source_BHWC, batch.label_BHW, strict=True):
        assert 0 < np.ptp(label_HW.astype(int)) < 63
        assert (source_HWC[:, :, 2].astype(int) != label_HW.astype(int) + 128).mean() > 0.5  # other colours
        row_W = source_HWC.mean(axis=(0, 2))
        assert np.corrcoef(row_W, label_HW.mean(axis=0))[0, 1] > 0.9  # brighter to the right, as the labels rise
