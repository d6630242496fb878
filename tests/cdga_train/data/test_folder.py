"""Any folder of images, with or without labels, with or without a declared map of their ids."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cdga_sdk.errors import InputError
from cdga_sdk.image import write_png
from cdga_train.data.base import Dataset
from cdga_train.data.folder import folder
from cdga_train.data.listing import list_split
from cdga_train.data.paired_files import open_listing
from tests.published_layouts import write_palette_png

IMAGE = np.full((2, 3, 3), 7, np.uint8)


def folder_data(root: Path, split: str = "train", *, with_labels: bool = True) -> Dataset:
    return open_listing(list_split(folder(root), split, with_labels=with_labels))


def fill(place: Path, *names: str) -> None:
    for name in names:
        write_png(place / f"{name}.png", IMAGE)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    fill(tmp_path / "images", "b", "a")
    for name in "ab":
        write_png(tmp_path / "labels" / f"{name}.png", np.array([[0, 18, 255], [3, 4, 5]], np.uint8))
    return tmp_path


def test_labelled(root: Path) -> None:
    data = folder_data(root)
    assert data.is_labelled
    assert [data[i].name for i in range(len(data))] == ["a", "b"]
    label = data[0].label
    assert label is not None
    assert label.tolist() == [[0, 18, 255], [3, 4, 5]]
    assert (data[0].image_bgr == 7).all()


@pytest.mark.parametrize("split", ["trian", "test"])
def test_a_slip_in_a_split_is_no_whole_folder(root: Path, split: str) -> None:
    (root / "val.txt").write_text("a\n")
    assert len(folder_data(root, "val")) == 1
    with pytest.raises(InputError, match=f"no split '{split}'; there are: val"):
        folder_data(root, split)


def test_splits_are_folders_or_lists_where_they_exist(root: Path) -> None:
    fill(root / "images/val", "x", "y", "z")
    for name in "xyz":
        write_png(root / "labels/val" / f"{name}.png", np.zeros((2, 3), np.uint8))
    (root / "one.txt").write_text("b\n")
    assert [len(folder_data(root, split)) for split in ("val", "train", "one")] == [3, 2, 1]


def test_train_is_what_lists_for_validation_and_tests_leave(root: Path) -> None:
    (root / "my_val.txt").write_text("a\r\n")
    (root / "README.txt").write_text("b\n")
    (root / "trainval.txt").write_text("a\nb\n")
    assert [folder_data(root, "train")[i].name for i in range(len(folder_data(root, "train")))] == ["b"]
    (root / "my_val.txt").unlink()
    assert len(folder_data(root, "train")) == 2


def test_hidden_folders_are_no_splits(root: Path) -> None:
    (root / "images/.ipynb_checkpoints").mkdir()
    assert len(folder_data(root, "val")) == 2


def test_bare_images_are_unlabelled(tmp_path: Path) -> None:
    fill(tmp_path, "a", "b", "c")
    data = folder_data(tmp_path)
    assert not data.is_labelled
    assert [data[i].label for i in range(len(data))] == [None, None, None]


def test_unlabelled_opening_ignores_labels(root: Path) -> None:
    assert folder_data(root, with_labels=False)[0].label is None
    shutil.rmtree(root / "labels")
    assert len(folder_data(root, with_labels=False)) == 2


def test_image_without_a_label_is_named(root: Path) -> None:
    (root / "labels/b.png").unlink()
    with pytest.raises(InputError, match=r"labels/b\.png: no label for 1 of 2 images"):
        folder_data(root)


def test_wrong_labels_are_refused(root: Path) -> None:
    write_png(root / "labels/a.png", np.array([[19, 19, 254], [0, 0, 0]], np.uint8))
    with pytest.raises(InputError, match=r"unknown label ids 19 \(2 pixels\), 254 \(1 pixel\)"):
        folder_data(root)[0]
    write_png(root / "labels/a.png", np.zeros((3, 3), np.uint8))
    with pytest.raises(InputError, match="label is 3x3 but its image is 3x2"):
        folder_data(root)[0]


def test_many_unknown_ids_make_one_short_line(root: Path) -> None:
    fill(root / "images", "a")
    write_png(root / "images/a.png", np.zeros((10, 10, 3), np.uint8))
    write_png(root / "labels/a.png", np.arange(100, 200, dtype=np.uint8).reshape(10, 10))
    with pytest.raises(InputError, match=r"107 \(1 pixel\) and 92 more"):
        folder_data(root)[0]


def test_palette_labels_are_their_indices(root: Path) -> None:
    write_palette_png(root / "labels/a.png", np.array([[0, 18, 255], [3, 4, 5]], np.uint8))
    label = folder_data(root)[0].label
    assert label is not None
    assert label.tolist() == [[0, 18, 255], [3, 4, 5]]


def test_a_declared_map(root: Path) -> None:
    write_png(root / "labels/a.png", np.array([[0, 1, 2], [7, 255, 40]], np.uint8))
    declared = {"0": "road", "1": "traffic light", "2": 13, "7": "ignored", "40": 255}
    (root / "labels.json").write_text(json.dumps(declared))
    label = folder_data(root)[0].label
    assert label is not None
    assert label.tolist() == [[0, 6, 13], [255, 255, 255]]
    with pytest.raises(InputError, match=r"unknown label ids 3 \(1 pixel\), 4 \(1 pixel\), 5"):
        folder_data(root)[1]


def test_a_declared_map_changes_the_identity(root: Path) -> None:
    before = folder_data(root).identity()
    (root / "labels.json").write_text('{"0": "car"}')
    assert folder_data(root).identity() != before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a map of label ids that can be read"),
        ("", "not a map of label ids that can be read"),
        ("\xff", "not a map of label ids that can be read"),
        ("[" * 100_000, "not a map of label ids that can be read"),
        ('{"0": "road", "0": "car"}', "a key occurs twice"),
        ("[]", "wanted {"),
        ("{}", "wanted {"),
        ("3", "wanted {"),
        ('{"256": "road"}', "'256' is no label id"),
        ('{"-1": "road"}', "'-1' is no label id"),
        ('{"07": "road"}', "'07' is no label id"),
        ('{"road": 0}', "'road' is no label id"),
        ('{"' + "9" * 5000 + '": "road"}', "is no label id"),
        ('{"0": "raod"}', "id 0: unknown class 'raod'; did you mean 'road'"),
        ('{"0": 19}', "id 0: unknown class '19'"),
        ('{"0": -1}', "id 0: unknown class '-1'"),
        ('{"0": null}', "id 0 is given 'None'"),
        ('{"0": true}', "id 0 is given 'True'"),
        ('{"0": 1.5}', r"id 0 is given '1\.5'"),
        ('{"0": ["road"]}', "id 0 is given"),
    ],
)
def test_a_map_that_cannot_be_used(root: Path, text: str, message: str) -> None:
    (root / "labels.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=message) as caught:
        folder_data(root)
    assert "labels.json" in str(caught.value)
    assert len(str(caught.value)) < 6000


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        folder_data(tmp_path / "absent")
    with pytest.raises(InputError, match="no images in this folder"):
        folder_data(tmp_path)
