"""Names of data sets: ``KIND:PLACE``.

::

    streets:day          the procedural world: day, dusk, rain, fog, camera; splits train and val
    camvid:PATH          CamVid; a split is a list in PATH, such as train, val, day_train
    folder:PATH          images/ and, where labelled, labels/ (PNG of train ids)
    video:ride.mp4       frames of a video, unlabelled
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Final

from cdga_sdk.errors import InputError, UsageError
from cdga_train.data.base import Dataset
from cdga_train.data.camvid import CamVidDataset
from cdga_train.data.folder import FolderDataset
from cdga_train.data.street_frames import StreetsDataset
from cdga_train.data.video import VideoDataset

__all__ = ["KINDS", "open_labelled", "open_unlabelled"]

KINDS: Final = ("streets", "camvid", "folder", "video")


def open_labelled(spec: str, split: str, size_hw: tuple[int, int]) -> Dataset:
    """Open ``spec`` to train on or to score against.

    Args:
        spec: ``KIND:PLACE``.
        split: The part of the data set.
        size_hw: Size at which a procedural world is drawn; files keep their own size.

    Raises:
        UsageError: Not a known kind.
        InputError: Missing files, or a data set without labels.
    """
    dataset = _open(spec, split, size_hw, with_labels=True)
    if not dataset.is_labelled:
        raise InputError("has no labels", where=spec, fix="name a labelled data set, e.g. streets:day or camvid:PATH")
    return dataset


def open_unlabelled(spec: str, split: str, size_hw: tuple[int, int]) -> Dataset:
    """Open ``spec`` as an adaptation target: its samples never carry a label."""
    return _open(spec, split, size_hw, with_labels=False)


def _open(spec: str, split: str, size_hw: tuple[int, int], *, with_labels: bool) -> Dataset:
    kind, colon, place = spec.partition(":")
    if not colon or kind not in KINDS or not place:
        raise UsageError(f"unknown data '{spec}'", fix=_hint(spec, kind))
    match kind:
        case "streets":
            return StreetsDataset(place, split, size_hw, with_labels=with_labels)
        case "camvid":
            return CamVidDataset(place, split, with_labels=with_labels)
        case "folder":
            return FolderDataset(place, split, with_labels=with_labels)
        case _:
            return VideoDataset(place, size_hw)


def _hint(spec: str, kind: str) -> str:
    if spec and Path(spec).exists():
        guess = "folder" if Path(spec).is_dir() else "video"
        return f"did you mean '{guess}:{spec}'?"
    near = get_close_matches(kind, KINDS, n=1)
    return f"did you mean '{near[0]}:...'?" if near else f"write KIND:PLACE with KIND one of {', '.join(KINDS)}"
