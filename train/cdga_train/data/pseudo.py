"""A target with pseudo-labels: its own images, and the label maps that an earlier round's network gave them.

Layout of the folder, made by `cdga_train.pseudo_labels`: ``000000.png`` ... (8-bit train ids, 255 ignored, at the
network's size) and ``pseudo_labels.json``.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final

from cdga_sdk.errors import InputError, IntegrityError, counted, one_line
from cdga_sdk.image import read_label
from cdga_train.data.base import Dataset, Sample

__all__ = ["COLLAPSED_SHARE", "FORMAT", "MANIFEST", "PseudoLabelled", "label_file", "labels_sha256"]

FORMAT: Final = "1"
MANIFEST: Final = "pseudo_labels.json"

COLLAPSED_SHARE: Final = 0.99
"""Share of all pixels in one class from which a network has collapsed: nothing in a street is that much of it."""


class PseudoLabelled:
    """``dataset`` with labels read from ``folder``; the data set's own labels, if any, are never looked at.

    Images keep their own size and labels the network's: they need not be equal.

    Args:
        dataset: The target that was labelled: the same samples in the same order.
        folder: What `cdga_train.pseudo_labels.write_pseudo_labels` made.

    Attributes:
        sha256: Of all label files.

    Raises:
        InputError: There are no pseudo-labels, or they are of another data set: its length, or the name of its first
            or last sample. The other names are compared when a sample is read: opening does not decode the data set.
        IntegrityError: The files are not those that were written.
    """

    is_labelled = True

    def __init__(self, dataset: Dataset, folder: Path) -> None:
        self._dataset = dataset
        self._folder = folder
        manifest = _read_manifest(folder)
        self._names, self._size_hw = manifest["names"], tuple(manifest["size_hw"])
        if len(self._names) != len(dataset):
            raise InputError(
                f"pseudo-labels of {counted(len(self._names), 'samples')}, but the data set has {len(dataset)}",
                where=folder,
                fix="label the data set anew",
            )
        self.sha256: str = manifest["sha256"]
        if labels_sha256(folder, len(self._names)) != self.sha256:
            raise IntegrityError("label files changed since they were written", where=folder, fix="label anew")
        for index in {0, len(self._names) - 1}:
            self._sample(index)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Sample:
        sample = self._sample(index)
        file = label_file(self._folder, index)
        label = read_label(file)
        if label.shape != self._size_hw:
            raise IntegrityError(f"label is of shape {label.shape}, wanted {self._size_hw}", where=file)
        return Sample(name=sample.name, image_bgr=sample.image_bgr, label=label)

    def identity(self) -> str:
        """The data set's own, and the labels' hash."""
        return f"{self._dataset.identity()} labelled {self.sha256}"

    def _sample(self, index: int) -> Sample:
        sample = self._dataset[index]
        if sample.name != self._names[index]:
            raise InputError(
                f"sample {index} is '{sample.name}', but the pseudo-labels have '{self._names[index]}' there",
                where=self._folder,
                fix="label the data set anew",
            )
        return sample


def label_file(folder: Path, index: int) -> Path:
    """The label map of sample ``index``."""
    return folder / f"{index:06d}.png"


def labels_sha256(folder: Path, count: int) -> str:
    """sha256 over the bytes of the label files 0 to ``count - 1``, in order.

    Raises:
        IntegrityError: One is missing or cannot be read.
    """
    digest = hashlib.sha256()
    for index in range(count):
        try:
            digest.update(label_file(folder, index).read_bytes())
        except OSError as error:
            raise IntegrityError(
                f"label file cannot be read ({error.strerror})", where=label_file(folder, index), fix="label anew"
            ) from error
    return digest.hexdigest()


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The parsed manifest, its keys that this module reads checked."""
    file = folder / MANIFEST
    if not file.is_file():
        raise InputError(f"no pseudo-labels here (no {MANIFEST})", where=folder)
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise InputError(f"pseudo-labels of format {manifest['format']}, wanted {FORMAT}", where=file)
        names, size_hw = manifest["names"], manifest["size_hw"]
        fits = all(isinstance(name, str) for name in names) and [type(side) for side in size_hw] == [int, int]
        if not (isinstance(names, list) and names and fits and isinstance(manifest["sha256"], str)):
            raise ValueError("wrong types")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise IntegrityError(f"damaged ({one_line(error)[:120]})", where=file, fix="label anew") from error
    return dict(manifest)
