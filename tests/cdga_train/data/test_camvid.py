"""CamVid's layout: lists of bare names, ids mapped, labels read only when asked for."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from cdga_sdk.errors import InputError
from cdga_sdk.image import write_png
from cdga_sdk.labels import CAMVID_TO_TRAIN_ID
from cdga_sdk.preprocess import UInt8Array
from cdga_train.data.camvid import CamVidDataset

IDS: UInt8Array = np.arange(12, dtype=np.uint8).reshape(3, 4)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two day frames in ``train``, one in ``val``; frame ``b`` holds every id of the 12."""
    root = tmp_path / "camvid"
    for folder, name, value in (("train", "a", 10), ("train", "b", 20), ("val", "c", 30)):
        write_png(root / "images" / folder / f"{name}.png", np.full((3, 4, 3), value, np.uint8))
        write_png(root / "labels" / folder / f"{name}.png", IDS if name == "b" else np.zeros((3, 4), np.uint8))
    (root / "train.txt").write_text("b\na\n")
    (root / "day_train.txt").write_text("a\n")
    (root / "val.txt").write_text("c\n")
    return root


def test_ids_become_train_ids_and_the_list_gives_the_order(root: Path) -> None:
    data = CamVidDataset(str(root), "train")
    assert len(data) == 2
    assert data.is_labelled
    first = data[0]
    assert first.name == "b"
    assert first.label is not None
    # sky building pole road / sidewalk tree sign fence / car pedestrian bicyclist void
    assert first.label.tolist() == [[10, 2, 5, 0], [1, 8, 7, 4], [13, 11, 18, 255]]
    assert first.label.dtype == np.uint8
    assert (first.image_bgr == 20).all()
    assert data[1].name == "a"
    assert set(np.unique(first.label)) == set(CAMVID_TO_TRAIN_ID.values())


def test_unknown_id_is_refused_with_counts(root: Path) -> None:
    wrong = IDS.copy()
    wrong[0] = (12, 200, 200, 255)
    write_png(root / "labels/train/b.png", wrong)
    with pytest.raises(InputError, match=r"labels/train/b\.png: unknown label ids 12 \(1 pixels\), 200 \(2 pixels\)"):
        CamVidDataset(str(root), "train")[0]


def test_label_of_another_size_is_refused(root: Path) -> None:
    write_png(root / "labels/train/b.png", np.zeros((4, 3), np.uint8))
    with pytest.raises(InputError, match="label is 3x4 but its image is 4x3"):
        CamVidDataset(str(root), "train")[0]


def test_colour_label_is_refused(root: Path) -> None:
    write_png(root / "labels/train/b.png", np.zeros((3, 4, 3), np.uint8))
    with pytest.raises(InputError, match="one 8-bit channel"):
        CamVidDataset(str(root), "train")[0]


def test_missing_label_is_an_input_error_when_it_is_read(root: Path) -> None:
    (root / "labels/train/b.png").unlink()
    data = CamVidDataset(str(root), "train")
    with pytest.raises(InputError, match=r"b\.png: no such file"):
        data[0]
    assert data[1].label is not None


def test_missing_image_is_named_on_opening(root: Path) -> None:
    (root / "images/train/b.png").unlink()
    with pytest.raises(InputError, match=r"1 of 2 listed images are missing, e\.g\. b"):
        CamVidDataset(str(root), "train")


def test_missing_list_names_those_there_are(root: Path) -> None:
    with pytest.raises(InputError, match=r"no list for split 'test'; lists here: day_train, train, val$"):
        CamVidDataset(str(root), "test")


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        CamVidDataset(str(tmp_path / "absent"), "train")
    with pytest.raises(InputError, match="lists here: none"):
        CamVidDataset(str(tmp_path), "train")


@pytest.mark.parametrize("entry", ["../val/c", "/etc/passwd", "train/a", ".", "a/.."])
def test_list_cannot_lead_out_of_the_folder(root: Path, entry: str) -> None:
    (root / "train.txt").write_text(f"a\n{entry}\n")
    with pytest.raises(InputError, match="wanted bare names"):
        CamVidDataset(str(root), "train")


@pytest.mark.parametrize("split", ["../lists/other", "sub/other", "..", ""])
def test_split_cannot_lead_out_of_the_folder(root: Path, split: str) -> None:
    for folder in (root.parent / "lists", root / "sub"):
        folder.mkdir()
        (folder / "other.txt").write_text("a\n")
    with pytest.raises(InputError, match="no list for split"):
        CamVidDataset(str(root), split)


@pytest.mark.parametrize(("content", "message"), [(b" \n", "list is empty"), (b"\xff\xfea\n", "not a text file")])
def test_list_that_is_no_list(root: Path, content: bytes, message: str) -> None:
    (root / "train.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        CamVidDataset(str(root), "train")


def test_unlabelled_never_reads_a_label(root: Path) -> None:
    shutil.rmtree(root / "labels")
    data = CamVidDataset(str(root), "train", with_labels=False)
    assert not data.is_labelled
    assert [data[i].label for i in range(2)] == [None, None]
    assert [data[i].name for i in range(2)] == ["b", "a"]


def test_the_real_lists(camvid: Path) -> None:
    lengths = {split: len(CamVidDataset(str(camvid), split)) for split in ("train", "val", "day_train", "dusk_train")}
    assert lengths == {"train": 367, "val": 101, "day_train": 305, "dusk_train": 62}
    sample = CamVidDataset(str(camvid), "val")[0]
    assert sample.label is not None
    assert sample.image_bgr.shape == (360, 480, 3)
    assert set(np.unique(sample.label)) <= set(CAMVID_TO_TRAIN_ID.values())
    assert (sample.label == 0).mean() > 0.1  # road
