"""Batches: everything random about iteration i follows from (seed, i), so that a run can go on from any of them.

Shape legend: B images of a domain, H and W the network's input size.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

import numpy as np

from cdga_sdk.preprocess import UInt8Array, resize_image, resize_label
from cdga_train.config import TrainConfig
from cdga_train.data.base import Dataset, Sample
from cdga_train.fourier import translate

__all__ = ["Batch", "Batches", "prefetched"]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One iteration's images.

    Attributes:
        source_BHWC: uint8 RGB, translated towards the target where the configuration says so.
        label_BHW: uint8 train ids of the source, 255 ignored.
        target_BHWC: uint8 RGB; None where the arm sees no target.
    """

    source_BHWC: UInt8Array
    label_BHW: UInt8Array
    target_BHWC: UInt8Array | None


class Batches:
    """``batches[i]`` is the batch of iteration i, the same at every call.

    Source and target are drawn independently and with replacement; each image is resized once and kept while the
    memory allowed for it lasts.
    """

    def __init__(self, source: Dataset, target: Dataset | None, config: TrainConfig) -> None:
        cache = _Budget(config.cache_gib * 2**30)
        self._source = _Resized(source, config.imgsz, cache)
        self._target = None if target is None else _Resized(target, config.imgsz, cache)
        self._config = config

    def __getitem__(self, iteration: int) -> Batch:
        config = self._config
        rng = np.random.default_rng([config.seed, iteration])
        sources = [self._source.draw(rng, flip=config.flip) for _ in range(config.batch)]
        targets = [self._target.draw(rng, flip=config.flip) for _ in range(config.batch)] if self._target else []
        images = [s.image_bgr[:, :, ::-1] for s in sources]
        target_images = [t.image_bgr[:, :, ::-1] for t in targets]
        if config.translate == "fda":
            pairs = zip(images, target_images, strict=True)
            images = [translate(image, style, beta=config.fda_beta) for image, style in pairs]
        labels = [s.label for s in sources if s.label is not None]
        return Batch(
            source_BHWC=np.stack(images),
            label_BHW=np.stack(labels),
            target_BHWC=np.stack(target_images) if config.arm == "cdga" else None,
        )


def prefetched(make: Callable[[int], Batch], start: int, stop: int, *, workers: int, depth: int = 4) -> Iterator[Batch]:
    """``make(start)`` ... ``make(stop - 1)`` in order, prepared ahead on threads (OpenCV and numpy free the GIL).

    An exception of ``make`` is raised where its batch would have come.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="batches")
    waiting: deque[Future[Batch]] = deque()
    try:
        for iteration in range(start, stop):
            waiting.append(pool.submit(make, iteration))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Budget:
    """Bytes that images kept in memory may take, over all data sets of a run."""

    def __init__(self, limit_bytes: float) -> None:
        self._left = limit_bytes
        self._lock = Lock()

    def take(self, size: int) -> bool:
        """Whether ``size`` bytes more may be kept."""
        with self._lock:
            fits = size <= self._left
            self._left -= size if fits else 0
        return fits


class _Resized:
    """Samples at the network's size, kept in memory within the budget."""

    def __init__(self, dataset: Dataset, size_hw: tuple[int, int], budget: _Budget) -> None:
        self._dataset = dataset
        self._size_hw = size_hw
        self._budget = budget
        self._kept: dict[int, Sample] = {}

    def draw(self, rng: np.random.Generator, *, flip: bool) -> Sample:
        """A random sample, mirrored half of the time with ``flip``."""
        sample = self._at(int(rng.integers(len(self._dataset))))
        if not (flip and rng.random() < 0.5):
            return sample
        label = None if sample.label is None else sample.label[:, ::-1]
        return Sample(name=sample.name, image_bgr=sample.image_bgr[:, ::-1], label=label)

    def _at(self, index: int) -> Sample:
        if index in self._kept:
            return self._kept[index]
        sample = self._dataset[index]
        label = None if sample.label is None else resize_label(sample.label, self._size_hw)
        sample = Sample(name=sample.name, image_bgr=resize_image(sample.image_bgr, self._size_hw), label=label)
        if self._budget.take(sample.image_bgr.nbytes + (0 if label is None else label.nbytes)):
            self._kept[index] = sample
        return sample
