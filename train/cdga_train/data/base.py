"""What every data set is: numbered samples of an image and, where it is labelled, a label map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from cdga_sdk.errors import InputError
from cdga_sdk.preprocess import UInt8Array

__all__ = ["Dataset", "Sample", "check_same_size"]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image and its label.

    Attributes:
        name: Names the sample within its data set.
        image_bgr: (H, W, 3) uint8.
        label: (H, W) uint8 Cityscapes train ids, 255 ignored; None where there is none.
    """

    name: str
    image_bgr: UInt8Array
    label: UInt8Array | None


class Dataset(Protocol):
    """A numbered collection. ``dataset[i]`` gives the same sample whenever it is asked, from any thread."""

    @property
    def is_labelled(self) -> bool:
        """Whether samples carry labels."""
        ...

    def __len__(self) -> int:
        """Number of samples, at least 1."""
        ...

    def __getitem__(self, index: int) -> Sample:
        """Sample ``index``, from 0; its ``label`` is None when ``is_labelled`` is false.

        Raises:
            InputError: A file cannot be read, or image and label do not fit.
        """
        ...

    def identity(self) -> str:
        """A text that differs whenever a sample could: for files their names, sizes and times of change."""
        ...


def check_same_size(name: object, image_bgr: UInt8Array, label: UInt8Array) -> None:
    """Refuse a label of another size than its image.

    Raises:
        InputError: The sizes differ.
    """
    image_hw, label_hw = image_bgr.shape[:2], label.shape
    if image_hw != label_hw:
        raise InputError(
            f"label is {label_hw[1]}x{label_hw[0]} but its image is {image_hw[1]}x{image_hw[0]} pixels",
            where=name,
            fix="leave the frame out (a split may be a list, SPLIT.txt); cdga data check finds all of them",
        )
