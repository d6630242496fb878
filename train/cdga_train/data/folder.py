"""Any folder: ``images/`` and, where it is labelled, ``labels/`` with the same stems; or just images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from cdga_sdk.errors import InputError, UsageError, one_line
from cdga_sdk.labels import IGNORE, TRAIN_IDS, train_id_of
from cdga_train.data.label_format import LabelFormat
from cdga_train.data.listing import Folders, Layout, folders_in, lists_in, refuse_link_out, require_folder

__all__ = ["ID_MAP_NAME", "folder"]

ID_MAP_NAME: Final = "labels.json"
_MAX_MAP_BYTES: Final = 2**20


def folder(root: Path) -> Layout:
    """``images[/SPLIT]/NAME.jpg`` with ``labels[/SPLIT]/NAME.png``, or images directly in ``root``.

    Labels hold Cityscapes train ids (0 to 18, 255 ignored), unless a ``labels.json`` beside them says what their ids
    mean::

        {"0": "road", "1": "car", "2": 13, "7": "ignored"}

    Keys are ids (0 to 255), values names or train ids of Cityscapes classes, or ``ignored``. Ids that it leaves out
    are refused where they occur, but for 255, which is ignored unless it is named. A folder without
    splits and lists is every split; beside them, ``train`` is what splits, and lists for validation or tests, leave.

    Raises:
        InputError: No such folder, or a map that cannot be used.
    """
    require_folder(root)
    images, labels = root / "images", root / "labels"
    if not images.is_dir():
        images = root
    splits = folders_in(images) if images != root else []
    declared = root / ID_MAP_NAME
    return Layout(
        root=root,
        splits={s: (Folders(images=images / s, labels=_inner(labels, s)),) for s in splits},
        labels=LabelFormat(id_map=_read_id_map(declared) if declared.is_file() else TRAIN_IDS),
        lists=lists_in(root),
        otherwise=(Folders(images=images, labels=labels),),
    )


def _inner(labels: Path, split: str) -> Path:
    return labels / split if (labels / split).is_dir() else labels


def _read_id_map(path: Path) -> dict[int, int]:
    refuse_link_out(path, path.parent)
    try:
        if path.stat().st_size > _MAX_MAP_BYTES:
            raise ValueError("too large")
        declared = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_refuse_repeats)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"not a map of label ids that can be read ({one_line(error)[:120]})", where=path) from error
    if not isinstance(declared, dict) or not declared:
        raise InputError('not a map of label ids, wanted {"0": "road", "1": "car", ...}', where=path)
    return {IGNORE: IGNORE} | {_id(key, path): _train_id(key, value, path) for key, value in declared.items()}


def _refuse_repeats(items: list[tuple[str, object]]) -> dict[str, object]:
    if len(dict(items)) < len(items):
        raise ValueError("a key occurs twice")
    return dict(items)


def _id(key: str, path: Path) -> int:
    if not (key.isascii() and key.isdecimal() and len(key) <= 3 and str(int(key)) == key and int(key) <= 255):
        raise InputError(f"'{key}' is no label id, wanted 0 to 255", where=path)
    return int(key)


def _train_id(key: str, value: object, path: Path) -> int:
    if value in ("ignored", IGNORE):
        return IGNORE
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise InputError(f"id {key} is given '{value}', wanted a class name, a train id or 'ignored'", where=path)
    try:
        return train_id_of(value)
    except UsageError as error:
        raise InputError(f"id {key}: {error.what}", where=path, fix=error.fix) from error
