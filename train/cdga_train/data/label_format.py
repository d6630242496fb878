"""What the files of a data set's labels hold, and how that becomes train ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from cdga_sdk.errors import InputError, counted
from cdga_sdk.image import read_label, read_stored
from cdga_sdk.labels import lookup_table
from cdga_sdk.opencv import cv2
from cdga_sdk.preprocess import UInt8Array

__all__ = ["IdArray", "LabelFormat", "id_counts", "read_first_of_16_bit_channels", "shown_counts"]

IdArray = npt.NDArray[np.uint8 | np.uint16]

_UNKNOWN: Final = 254
_SHOWN_IDS: Final = 8


@dataclass(frozen=True, kw_only=True)
class LabelFormat:
    """How label files are read, and what their ids mean.

    Attributes:
        id_map: Id to train id (255 ignored) for every id of the data set's definition. An id that is not here does
            not belong into a file: it is refused, not ignored.
        read: Reads a file as (H, W) ids, exactly as stored.
    """

    id_map: Mapping[int, int]
    read: Callable[[Path], IdArray] = read_label

    def decode(self, path: Path) -> UInt8Array:
        """Read ``path`` as (H, W) uint8 train ids, 255 ignored.

        Raises:
            InputError: The file cannot be read, is no label map, or holds an unknown id.
        """
        ids = self.read(path)
        narrow = np.minimum(ids, 255).astype(np.uint8, copy=False)
        # five times as fast as indexing the table
        label = np.asarray(cv2.LUT(narrow, lookup_table(self.id_map, unknown=_UNKNOWN)), np.uint8)
        if (label == _UNKNOWN).any():
            unknown = self.unknown(id_counts(ids))
            raise InputError(
                f"unknown label ids {shown_counts(unknown)}",
                where=path,
                fix="map them to the data set's ids, or to void",
            )
        return label

    def unknown(self, counts: Mapping[int, int]) -> dict[int, int]:
        """Those of ``counts`` (id to pixels) that do not belong into a file."""
        return {i: n for i, n in counts.items() if i not in self.id_map}


def id_counts(ids: IdArray) -> dict[int, int]:
    """Pixels of each id that occurs."""
    counts = np.bincount(ids.ravel())
    return {int(i): int(counts[i]) for i in np.flatnonzero(counts)}


def read_first_of_16_bit_channels(path: Path) -> IdArray:
    """Read the first channel, in RGB order, of a 16-bit colour PNG as (H, W) uint16 ids: SYNTHIA's labels.

    Raises:
        InputError: Unreadable, or an image of another kind.
    """
    stored_bgr = read_stored(path)
    if stored_bgr.ndim != 3 or stored_bgr.dtype != np.uint16:
        raise InputError(
            f"label image has shape {stored_bgr.shape} and type {stored_bgr.dtype}, wanted 16-bit colour",
            where=path,
            fix="use GT/LABELS as published; converted labels are read as folder:PATH",
        )
    return np.asarray(stored_bgr[:, :, 2])


def shown_counts(counts: Mapping[int, int]) -> str:
    """Ids and their pixels in words, the first few of many."""
    first = list(counts.items())[:_SHOWN_IDS]
    more = f" and {len(counts) - len(first)} more" if len(counts) > len(first) else ""
    return ", ".join(f"{i} ({counted(n, 'pixels')})" for i, n in first) + more
