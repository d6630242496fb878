"""Batches: everything random about a forward pass follows from (seed, iteration, slot), so that a run can go on from
any iteration, and so that N processes see what one process sees that accumulates N forward passes.

Shape legend: B images of a domain, H and W the network's input size.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from cdga_sdk.errors import UsageError
from cdga_sdk.preprocess import UInt8Array, resize_image
from cdga_train.config import TrainConfig
from cdga_train.data.augment import recoloured, zoomed
from cdga_train.data.base import Dataset, Sample
from cdga_train.data.cache import RamBudget, ResizedSamples
from cdga_train.fourier import translate

__all__ = ["Batch", "Batches", "prefetched"]

_Item = TypeVar("_Item")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One forward pass's images; source and target may be of different sizes.

    Attributes:
        source_BHWC: uint8 RGB, translated towards the target where the configuration says so.
        label_BHW: uint8 train ids of the source, 255 ignored.
        target_BHWC: uint8 RGB; None where the arm sees no target.
        target_label_BHW: uint8 pseudo-labels of the target, 255 ignored; None in round 1.
    """

    source_BHWC: UInt8Array
    label_BHW: UInt8Array
    target_BHWC: UInt8Array | None = None
    target_label_BHW: UInt8Array | None = None


class Batches:
    """``batches[i]`` holds the batches of iteration i, one per slot, the same at every call.

    Source and target are drawn independently and with replacement; each image is resized once and kept while the
    memory, or the folder, allowed for it lasts.

    Args:
        source: Labelled samples.
        target: Samples of the target; labels that they carry are pseudo-labels.
        config: Sizes, batch, translation and cache.
        slots: The forward passes of an iteration that this process makes; by default all of one process.

    Raises:
        UsageError: ``cache_dir`` cannot be written to.
    """

    def __init__(
        self, source: Dataset, target: Dataset | None, config: TrainConfig, slots: Sequence[int] | None = None
    ) -> None:
        if config.cache_dir is not None:
            _require_writable(Path(config.cache_dir))
        ram_bytes, disk = config.cache_gib * 2**30, Path(config.cache_dir) if config.cache_dir else None
        # Memory goes to the target first: it is the smaller set, so its images come up more often.
        of_target = 0 if target is None else min(ram_bytes, _bytes_of(target, config.imgsz))
        self._source = ResizedSamples(source, config.source_size, ram=RamBudget(ram_bytes - of_target), disk=disk)
        self._target = (
            None if target is None else ResizedSamples(target, config.imgsz, ram=RamBudget(of_target), disk=disk)
        )
        self._config = config
        self._slots = range(config.accumulate) if slots is None else slots

    @property
    def is_disk_cache_full(self) -> bool:
        """Whether a folder was given and images no longer go there."""
        samples = [self._source, *([self._target] if self._target else [])]
        return self._config.cache_dir is not None and not all(s.is_writing for s in samples)

    def __getitem__(self, iteration: int) -> tuple[Batch, ...]:
        return tuple(self._batch(iteration, slot) for slot in self._slots)

    def _batch(self, iteration: int, slot: int) -> Batch:
        config = self._config
        rng = np.random.default_rng([config.seed, iteration, slot])
        sources = [_drawn(self._source, rng, config) for _ in range(config.batch)]
        targets = [_drawn(self._target, rng, config) for _ in range(config.batch)] if self._target else []
        images = [s.image_bgr[:, :, ::-1] for s in sources]
        target_images = [t.image_bgr[:, :, ::-1] for t in targets]
        if config.translate == "fda":
            styles = (resize_image(image, config.source_size) for image in target_images)
            pairs = zip(images, styles, strict=True)
            images = [translate(image, style, beta=config.fda_beta) for image, style in pairs]
        if config.augment:
            images = [recoloured(image, rng) for image in images]
        pseudo = [t.label for t in targets if t.label is not None]
        return Batch(
            source_BHWC=np.stack(images),
            label_BHW=np.stack([s.label for s in sources if s.label is not None]),
            target_BHWC=np.stack(target_images) if config.is_adapting else None,
            target_label_BHW=np.stack(pseudo) if pseudo else None,
        )


def prefetched(make: Callable[[int], _Item], start: int, stop: int, *, workers: int) -> Iterator[_Item]:
    """``make(start)`` ... ``make(stop - 1)`` in order, prepared ahead on threads (OpenCV and numpy free the GIL).

    Two items a thread are under way or ready, so that a slow one does not leave the others idle.

    An exception of ``make`` is raised where its item would have come.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="batches")
    waiting: deque[Future[_Item]] = deque()
    try:
        for iteration in range(start, stop):
            waiting.append(pool.submit(make, iteration))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _require_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"the folder '{folder}' cannot be written to ({error.strerror})", where="cache_dir", fix="name another"
        ) from error


def _bytes_of(dataset: Dataset, size_hw: tuple[int, int]) -> int:
    """What all its resized samples take: three bytes a pixel, and one for the label."""
    return len(dataset) * size_hw[0] * size_hw[1] * (4 if dataset.is_labelled else 3)


def _drawn(samples: ResizedSamples, rng: np.random.Generator, config: TrainConfig) -> Sample:
    """A random sample; with ``augment`` a part of it, with ``flip`` mirrored half of the time."""
    sample = samples[int(rng.integers(len(samples)))]
    if config.augment:
        sample = zoomed(sample, rng)
    if not (config.flip and rng.random() < 0.5):
        return sample
    label = None if sample.label is None else sample.label[:, ::-1]
    return Sample(name=sample.name, image_bgr=sample.image_bgr[:, ::-1], label=label)
