"""Images and labels in files: what every data set on disk becomes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cdga_sdk.errors import InputError, counted
from cdga_sdk.image import read_image_bgr
from cdga_train.data.base import Sample, check_same_size
from cdga_train.data.label_format import LabelFormat
from cdga_train.data.listing import Listing, Pair

__all__ = ["PairedFiles", "file_stamp", "open_listing"]


@dataclass(frozen=True, kw_only=True)
class PairedFiles:
    """A data set of image files and, where ``labels`` is given, label files; files are read when a sample is asked for.

    Attributes:
        pairs: In the order of the samples; names are unique.
        labels: How labels are read; None: unlabelled, label files are never touched.
    """

    pairs: tuple[Pair, ...]
    labels: LabelFormat | None

    @property
    def is_labelled(self) -> bool:
        """Whether samples carry labels."""
        return self.labels is not None

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        pair = self.pairs[index]
        image_bgr = read_image_bgr(pair.image)
        if self.labels is None:
            return Sample(name=pair.name, image_bgr=image_bgr, label=None)
        label = self.labels.decode(pair.label)
        check_same_size(pair.label, image_bgr, label)
        return Sample(name=pair.name, image_bgr=image_bgr, label=label)

    def identity(self) -> str:
        """A hash over names, sizes and times of change of all files and the meaning of their ids (0.2 s for 25,000)."""
        digest = hashlib.sha256()
        for pair in self.pairs:
            digest.update(b"\0".join([os.fsencode(pair.name), *_facts(pair, with_label=self.is_labelled)]) + b"\n")
        if self.labels is not None:
            digest.update(f"{self.labels.read.__name__} {sorted(self.labels.id_map.items())}".encode())
        return digest.hexdigest()


def open_listing(listing: Listing) -> PairedFiles:
    """The data set of a listing that has nothing missing.

    Raises:
        InputError: A listed image or a label is missing, or two images have one name.
    """
    if listing.absent:
        raise InputError(
            f"no file for {counted(len(listing.absent), 'listed images')}, e.g. {listing.absent[0]}",
            where=listing.listed,
            fix="write names as the image files have them, or remove the lines",
        )
    if listing.dangling:
        raise InputError(
            f"{counted(len(listing.dangling), 'images')}: no file behind the link", where=listing.dangling[0]
        )
    if listing.repeated:
        raise InputError(
            f"more than one image for {counted(len(listing.repeated), 'names')} in split '{listing.split}', "
            f"e.g. {listing.repeated[0]}",
            where=listing.root,
            fix="names must be unique: remove or rename, or name each frame once in a list",
        )
    if listing.unlabelled:
        raise InputError(
            f"no label for {len(listing.unlabelled)} of {counted(len(listing.pairs), 'images')}",
            where=listing.unlabelled[0].label,
        )
    return PairedFiles(pairs=listing.pairs, labels=listing.labels)


def _facts(pair: Pair, *, with_label: bool) -> Iterator[bytes]:
    for path in (pair.image, pair.label)[: 1 + with_label]:
        yield os.fsencode(path.name)
        yield file_stamp(path).encode()


def file_stamp(path: Path) -> str:
    """Size and time of change, which tell a file from what it was before.

    Raises:
        InputError: It cannot be looked at.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise InputError(f"cannot read ({error.strerror})", where=path) from error
    return f"{stat.st_size} {stat.st_mtime_ns}"
