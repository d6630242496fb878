"""Any folder: ``images/`` and, where it is labelled, ``labels/`` with the same stems; or just images."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cdga_sdk.errors import InputError
from cdga_sdk.image import list_images, read_image_bgr, read_label
from cdga_sdk.labels import CITYSCAPES_NAMES, IGNORE, lookup_table
from cdga_sdk.preprocess import UInt8Array
from cdga_train.data.base import Sample, check_same_size

__all__ = ["FolderDataset", "map_label"]

_UNKNOWN = 254
_TRAIN_IDS = lookup_table({**{i: i for i in range(len(CITYSCAPES_NAMES))}, IGNORE: IGNORE}, unknown=_UNKNOWN)


class FolderDataset:
    """Images, with label PNGs of Cityscapes train ids (0 to 18, 255 ignored) where there is a ``labels`` folder.

    Layouts: ``PLACE/images[/SPLIT]/NAME.jpg`` with ``PLACE/labels[/SPLIT]/NAME.png``, or images directly in PLACE.

    Raises:
        InputError: No such folder, no images in it, or an image without a label.
    """

    def __init__(self, place: str, split: str, *, with_labels: bool = True) -> None:
        root = Path(place)
        if not root.is_dir():
            raise InputError("no such folder", where=root)
        self._images = list_images(_inner(root, "images", split) or root)
        labels = _inner(root, "labels", split) if with_labels else None
        self.is_labelled = labels is not None
        self._labels = [labels / f"{p.stem}.png" for p in self._images] if labels else []
        missing = [p for p in self._labels if not p.is_file()]
        if missing:
            raise InputError(f"{len(missing)} of {len(self._labels)} labels are missing", where=missing[0])

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:
        path = self._images[index]
        image_bgr = read_image_bgr(path)
        label = None
        if self.is_labelled:
            label = map_label(self._labels[index], read_label(self._labels[index]), _TRAIN_IDS)
            check_same_size(self._labels[index], image_bgr, label)
        return Sample(name=path.stem, image_bgr=image_bgr, label=label)


def map_label(where: Path, label: UInt8Array, table: UInt8Array) -> UInt8Array:
    """Map ids to train ids by a (256,) table in which 254 marks an id that does not belong there.

    Raises:
        InputError: An unknown id; the ids and their pixel counts are named.
    """
    mapped = table[label]
    if (mapped == _UNKNOWN).any():
        ids, counts = np.unique(label[mapped == _UNKNOWN], return_counts=True)
        found = ", ".join(f"{i} ({n} pixels)" for i, n in zip(ids[:8], counts[:8], strict=True))
        raise InputError(f"unknown label ids {found}", where=where, fix="map them to the data set's ids, or to void")
    return np.asarray(mapped)


def _inner(root: Path, kind: str, split: str) -> Path | None:
    return next((p for p in (root / kind / split, root / kind) if p.is_dir()), None)
