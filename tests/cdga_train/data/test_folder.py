"""Any folder of images, with or without labels."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from cdga_sdk.errors import InputError
from cdga_sdk.image import write_png
from cdga_train.data.folder import FolderDataset

IMAGE = np.full((2, 3, 3), 7, np.uint8)


def fill(folder: Path, *names: str) -> None:
    for name in names:
        write_png(folder / f"{name}.png", IMAGE)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    fill(tmp_path / "images", "b", "a")
    for name in "ab":
        write_png(tmp_path / "labels" / f"{name}.png", np.array([[0, 18, 255], [3, 4, 5]], np.uint8))
    return tmp_path


def test_labelled(root: Path) -> None:
    data = FolderDataset(str(root), "train")
    assert data.is_labelled
    assert [data[i].name for i in range(len(data))] == ["a", "b"]
    label = data[0].label
    assert label is not None
    assert label.tolist() == [[0, 18, 255], [3, 4, 5]]
    assert (data[0].image_bgr == 7).all()


def test_splits_are_folders_where_they_exist(root: Path) -> None:
    fill(root / "images/val", "x", "y", "z")
    for name in "xyz":
        write_png(root / "labels/val" / f"{name}.png", np.zeros((2, 3), np.uint8))
    assert len(FolderDataset(str(root), "val")) == 3
    assert len(FolderDataset(str(root), "train")) == 2


def test_bare_images_are_unlabelled(tmp_path: Path) -> None:
    fill(tmp_path, "a", "b", "c")
    data = FolderDataset(str(tmp_path), "train")
    assert not data.is_labelled
    assert [data[i].label for i in range(len(data))] == [None, None, None]


def test_unlabelled_opening_ignores_labels(root: Path) -> None:
    assert FolderDataset(str(root), "train", with_labels=False)[0].label is None
    shutil.rmtree(root / "labels")
    assert len(FolderDataset(str(root), "train", with_labels=False)) == 2


def test_image_without_a_label_is_named(root: Path) -> None:
    (root / "labels/b.png").unlink()
    with pytest.raises(InputError, match=r"labels/b\.png: 1 of 2 labels are missing"):
        FolderDataset(str(root), "train")


def test_wrong_labels_are_refused(root: Path) -> None:
    write_png(root / "labels/a.png", np.array([[19, 19, 254], [0, 0, 0]], np.uint8))
    with pytest.raises(InputError, match=r"unknown label ids 19 \(2 pixels\), 254 \(1 pixels\)"):
        FolderDataset(str(root), "train")[0]
    write_png(root / "labels/a.png", np.zeros((3, 3), np.uint8))
    with pytest.raises(InputError, match="label is 3x3 but its image is 3x2"):
        FolderDataset(str(root), "train")[0]


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        FolderDataset(str(tmp_path / "absent"), "train")
    with pytest.raises(InputError, match="no images in this folder"):
        FolderDataset(str(tmp_path), "train")
