"""Data sets as their publishers lay them out: one small function each, from a folder to a `Layout`.

Other places of labels, image suffixes other than the published one (a copy recompressed as JPEG) and lists are
found alike; see `cdga_train.data.listing`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from cdga_sdk.labels import (
    CITYSCAPES_ID_TO_TRAIN_ID,
    GTA5_TO_TRAIN_ID,
    SYNTHIA_TO_TRAIN_ID,
    TRAIN_IDS,
)
from cdga_train.data.camvid import camvid
from cdga_train.data.folder import folder
from cdga_train.data.label_format import LabelFormat, read_first_of_16_bit_channels
from cdga_train.data.listing import Folders, Layout, folders_in, lists_in, require_folder

__all__ = ["LAYOUTS", "bdd100k", "cityscapes", "gta5", "synthia"]


def gta5(root: Path) -> Layout:
    """GTA5 (Richter et al. 2016): ``images/00001.png`` and ``labels/00001.png``, 24,966 of them.

    Labels are palette PNGs of Cityscapes ids. Split ``train`` is every frame; the publisher's own parts, or any
    other, are lists.
    """
    require_folder(root / "images", "images/00001.png ... and labels/00001.png ..., as GTA5 is published")
    frames = Folders(images=root / "images", labels=root / "labels")
    return Layout(
        root=root,
        splits={"train": (frames,)},
        labels=LabelFormat(id_map=GTA5_TO_TRAIN_ID),
        lists=lists_in(root),
    )


def synthia(root: Path) -> Layout:
    """SYNTHIA-RAND-CITYSCAPES (Ros et al. 2016): ``RGB/0000000.png`` and ``GT/LABELS/0000000.png``, 9,400 of them.

    Labels are 16-bit colour PNGs whose first channel (of RGB) is the class. Split ``train`` is every frame.
    """
    require_folder(root / "RGB", "RGB/0000000.png ... and GT/LABELS/0000000.png ..., as SYNTHIA is published")
    frames = Folders(images=root / "RGB", labels=root / "GT" / "LABELS")
    return Layout(
        root=root,
        splits={"train": (frames,)},
        labels=LabelFormat(id_map=SYNTHIA_TO_TRAIN_ID, read=read_first_of_16_bit_channels),
        lists=lists_in(root),
    )


def cityscapes(root: Path) -> Layout:
    """Cityscapes (Cordts et al. 2016): ``leftImg8bit/SPLIT/CITY/*_leftImg8bit.png``, ``gtFine/.../*_labelIds.png``."""
    images, labels = root / "leftImg8bit", root / "gtFine"
    require_folder(images, "leftImg8bit/train/CITY/*_leftImg8bit.png, as Cityscapes is published")
    return Layout(
        root=root,
        splits={
            split: tuple(
                Folders(images=images / split / city, labels=labels / split / city)
                for city in sorted({*folders_in(images / split), *folders_in(labels / split)})
            )
            for split in folders_in(images)
        },
        labels=LabelFormat(id_map=CITYSCAPES_ID_TO_TRAIN_ID),
        image_tail="_leftImg8bit",
        label_tail="_gtFine_labelIds.png",
        lists=lists_in(root),
    )


def bdd100k(root: Path) -> Layout:
    """BDD100K's 10k part (Yu et al. 2020): 7,000 train and 1,000 val images, labels of train ids.

    ``images/10k/SPLIT/NAME.jpg`` with ``labels/sem_seg/masks/SPLIT/NAME.png``, or, as it was first published,
    ``images/SPLIT/NAME.jpg`` with ``labels/SPLIT/NAME_train_id.png``.
    """
    is_new = (root / "images" / "10k").is_dir()
    images = root / "images" / "10k" if is_new else root / "images"
    labels = root / "labels" / "sem_seg" / "masks" if is_new else root / "labels"
    require_folder(images, "images/10k/train/*.jpg and labels/sem_seg/masks/train/*.png, as BDD100K is published")
    return Layout(
        root=root,
        splits={s: (Folders(images=images / s, labels=labels / s),) for s in folders_in(images)},
        labels=LabelFormat(id_map=TRAIN_IDS),
        label_tail=".png" if is_new else "_train_id.png",
        lists=lists_in(root),
    )


LAYOUTS: Final[Mapping[str, Callable[[Path], Layout]]] = MappingProxyType(
    {
        "gta5": gta5,
        "synthia": synthia,
        "cityscapes": cityscapes,
        "bdd100k": bdd100k,
        "camvid": camvid,
        "folder": folder,
    }
)
