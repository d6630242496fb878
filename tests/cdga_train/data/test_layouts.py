"""GTA5, SYNTHIA, Cityscapes and BDD100K, on folders built exactly as they are published."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from cdga_sdk.errors import InputError
from cdga_sdk.image import write_png
from cdga_sdk.preprocess import UInt8Array
from cdga_train.data.base import Dataset
from cdga_train.data.spec import KINDS, open_labelled, open_unlabelled
from tests.published_layouts import (
    SIZE_WH,
    frames,
    make_bdd100k,
    make_camvid_fast_ai,
    make_camvid_segnet,
    make_cityscapes,
    make_gta5,
    make_synthia,
    write_palette_png,
    write_rgb16_png,
)

ANY_HW = (1, 1)

# every id of a definition, 8 to a row; what it becomes, by hand from the definitions
CITYSCAPES_IDS = np.arange(40, dtype=np.uint8).reshape(5, 8) % 34
CITYSCAPES_TRAIN_IDS = [
    [255, 255, 255, 255, 255, 255, 255, 0],
    [1, 255, 255, 2, 3, 4, 255, 255],
    [255, 5, 255, 6, 7, 8, 9, 10],
    [11, 12, 13, 14, 15, 255, 255, 16],
    [17, 18, 255, 255, 255, 255, 255, 255],
]
SYNTHIA_IDS = np.arange(24, dtype=np.uint16).reshape(3, 8) % 23
SYNTHIA_TRAIN_IDS = [
    [255, 10, 2, 0, 1, 4, 8, 5],
    [13, 7, 11, 18, 17, 255, 255, 6],
    [9, 12, 14, 15, 16, 3, 255, 255],
]


def train(kind: str, root: Path, split: str = "train") -> Dataset:
    return open_labelled(f"{kind}:{root}", split, ANY_HW)


def names(data: Dataset) -> list[str]:
    return [data[i].name for i in range(len(data))]


def label_of(data: Dataset, index: int = 0) -> UInt8Array:
    label = data[index].label
    assert label is not None
    assert label.dtype == np.uint8
    return label


def test_gta5(tmp_path: Path) -> None:
    data = train("gta5", make_gta5(tmp_path))
    assert names(data) == ["00001", "00002", "00003"]
    for index, (image, label) in enumerate(frames(3)):
        np.testing.assert_array_equal(data[index].image_bgr, image)
        np.testing.assert_array_equal(label_of(data, index), label)


def test_every_gta5_id(tmp_path: Path) -> None:
    ids = CITYSCAPES_IDS.copy()
    ids[4, 7] = 34  # the licence plate
    write_png(tmp_path / "images/00001.png", np.zeros((5, 8, 3), np.uint8))
    write_palette_png(tmp_path / "labels/00001.png", ids)
    coloured = cv2.imread(str(tmp_path / "labels/00001.png"), cv2.IMREAD_UNCHANGED)
    assert coloured is not None
    assert coloured.ndim == 3  # what a plain read gives: colours
    assert label_of(train("gta5", tmp_path)).tolist() == CITYSCAPES_TRAIN_IDS
    write_palette_png(tmp_path / "labels/00001.png", np.full((5, 8), 35, np.uint8))
    with pytest.raises(InputError, match=r"labels/00001\.png: unknown label ids 35 \(40 pixels\)"):
        train("gta5", tmp_path)[0]


def test_gta5_labels_saved_as_grey_are_as_good(tmp_path: Path) -> None:
    write_png(tmp_path / "images/00001.png", np.zeros((5, 8, 3), np.uint8))
    write_png(tmp_path / "labels/00001.png", CITYSCAPES_IDS)
    assert label_of(train("gta5", tmp_path)).tolist() == CITYSCAPES_TRAIN_IDS


def test_gta5_frame_of_another_size_is_refused_with_the_way_out(tmp_path: Path) -> None:
    make_gta5(tmp_path)
    write_palette_png(tmp_path / "labels/00002.png", np.full((10, 12), 7, np.uint8))
    with pytest.raises(InputError, match=r"label is 12x10 but its image is 96x48 pixels; leave the frame out"):
        train("gta5", tmp_path)[1]
    (tmp_path / "good.txt").write_text("00001.png\n00003.png\n")
    assert names(train("gta5", tmp_path, "good")) == ["00001", "00003"]


def test_synthia(tmp_path: Path) -> None:
    data = train("synthia", make_synthia(tmp_path))
    assert names(data) == ["0000000", "0000001", "0000002"]
    for index, (image, label) in enumerate(frames(3, first_seed=100)):
        np.testing.assert_array_equal(data[index].image_bgr, image)
        np.testing.assert_array_equal(label_of(data, index), label)


def test_every_synthia_id_is_the_first_of_16_bit_channels(tmp_path: Path) -> None:
    write_png(tmp_path / "RGB/0000000.png", np.zeros((3, 8, 3), np.uint8))
    write_rgb16_png(tmp_path / "GT/LABELS/0000000.png", SYNTHIA_IDS, np.full((3, 8), 300, np.uint16))
    plain = cv2.imread(str(tmp_path / "GT/LABELS/0000000.png"))
    assert plain is not None
    assert (plain[:, :, 2] == 0).all()  # what an 8-bit read makes of it: all void
    assert label_of(train("synthia", tmp_path)).tolist() == SYNTHIA_TRAIN_IDS


@pytest.mark.parametrize("strange", [23, 255, 256, 65535])
def test_unknown_synthia_id(tmp_path: Path, strange: int) -> None:
    write_png(tmp_path / "RGB/0000000.png", np.zeros((3, 8, 3), np.uint8))
    ids = SYNTHIA_IDS.copy()
    ids[0, :2] = strange
    write_rgb16_png(tmp_path / "GT/LABELS/0000000.png", ids, ids)
    with pytest.raises(InputError, match=rf"unknown label ids {strange} \(2 pixels\)"):
        train("synthia", tmp_path)[0]


@pytest.mark.parametrize("label", [np.zeros((3, 8), np.uint8), np.zeros((3, 8, 3), np.uint8)])
def test_synthia_label_that_was_converted_is_refused(tmp_path: Path, label: UInt8Array) -> None:
    write_png(tmp_path / "RGB/0000000.png", np.zeros((3, 8, 3), np.uint8))
    write_png(tmp_path / "GT/LABELS/0000000.png", label)
    with pytest.raises(InputError, match="type uint8, wanted 16-bit colour"):
        train("synthia", tmp_path)[0]


def test_cityscapes(tmp_path: Path) -> None:
    make_cityscapes(tmp_path)
    data = train("cityscapes", tmp_path)
    assert names(data) == ["aachen_000000_000019", "aachen_000002_000019", "zurich_000001_000019"]
    drawn = list(frames(5, domain="dusk", first_seed=200))
    for index, number in enumerate((0, 2, 1)):
        np.testing.assert_array_equal(data[index].image_bgr, drawn[number][0])
        np.testing.assert_array_equal(label_of(data, index), drawn[number][1])
    val = train("cityscapes", tmp_path, "val")
    assert names(val) == ["frankfurt_000000_000019", "frankfurt_000001_000019"]
    np.testing.assert_array_equal(label_of(val, 1), drawn[4][1])


def test_every_cityscapes_id(tmp_path: Path) -> None:
    stem = "aachen_000000_000019"
    write_png(tmp_path / f"leftImg8bit/train/aachen/{stem}_leftImg8bit.png", np.zeros((5, 8, 3), np.uint8))
    file = tmp_path / f"gtFine/train/aachen/{stem}_gtFine_labelIds.png"
    write_png(file, CITYSCAPES_IDS)
    assert label_of(train("cityscapes", tmp_path)).tolist() == CITYSCAPES_TRAIN_IDS
    write_png(file, np.full((5, 8), 34, np.uint8))  # GTA5's, not Cityscapes'
    with pytest.raises(InputError, match=r"unknown label ids 34"):
        train("cityscapes", tmp_path)[0]


def test_cityscapes_is_a_target_without_its_labels(tmp_path: Path) -> None:
    make_cityscapes(tmp_path, {"train": 2}, with_labels=False)
    data = open_unlabelled(f"cityscapes:{tmp_path}", "train", ANY_HW)
    assert len(data) == 2
    assert data[0].label is None
    with pytest.raises(InputError, match="has no labels"):
        train("cityscapes", tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        "zurich/zurich_000001_000019_leftImg8bit.png",
        "leftImg8bit/train/zurich/zurich_000001_000019_leftImg8bit.png",
        "zurich_000001_000019",
        "train/zurich/zurich_000001_000019_leftImg8bit.png train/zurich/zurich_000001_000019_gtFine_labelIds.png",
        "leftImg8bit/train/zurich/zurich_000001_000019_leftImg8bit.png,"
        "gtFine/train/zurich/zurich_000001_000019_gtFine_labelIds.png",
    ],
)
def test_cityscapes_lists_in_their_usual_spellings(tmp_path: Path, line: str) -> None:
    make_cityscapes(tmp_path)
    (tmp_path / "mine.txt").write_text(f"\n{line}\n")
    data = train("cityscapes", tmp_path, "mine")
    assert names(data) == ["zurich_000001_000019"]
    assert label_of(data).shape == (SIZE_WH[1], SIZE_WH[0])


@pytest.mark.parametrize("is_old", [False, True])
def test_bdd100k(tmp_path: Path, is_old: bool) -> None:
    make_bdd100k(tmp_path, is_old=is_old)
    data = train("bdd100k", tmp_path)
    assert names(data) == ["0000012c-00000000", "0000012d-00000001"]
    np.testing.assert_array_equal(label_of(data, 1), list(frames(2, first_seed=300))[1][1])
    assert len(train("bdd100k", tmp_path, "val")) == 1
    file = next(tmp_path.rglob("labels/**/0000012c-*.png"))
    write_png(file, np.full((SIZE_WH[1], SIZE_WH[0]), 255, np.uint8))
    assert (label_of(data) == 255).all()
    write_png(file, np.full((SIZE_WH[1], SIZE_WH[0]), 19, np.uint8))
    with pytest.raises(InputError, match="unknown label ids 19"):
        data[0]


MAKERS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "gta5": (make_gta5, "labels"),
    "synthia": (make_synthia, "GT"),
    "cityscapes": (make_cityscapes, "gtFine"),
    "bdd100k": (make_bdd100k, "labels"),
    "camvid": (make_camvid_segnet, "trainannot"),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_unlabelled_never_needs_a_label(tmp_path: Path, kind: str) -> None:
    make, labels = MAKERS[kind]
    make(tmp_path)
    count = len(train(kind, tmp_path))
    for file in (tmp_path / labels).rglob("*.png"):
        file.write_bytes(b"")
    data = open_unlabelled(f"{kind}:{tmp_path}", "train", ANY_HW)
    assert len(data) == count
    assert not data.is_labelled
    assert [data[i].label for i in range(count)] == [None] * count
    shutil.rmtree(tmp_path / labels)
    assert len(open_unlabelled(f"{kind}:{tmp_path}", "train", ANY_HW)) == count


@pytest.mark.parametrize("kind", MAKERS)
def test_missing_label_is_told_on_opening(tmp_path: Path, kind: str) -> None:
    make, labels = MAKERS[kind]
    make(tmp_path)
    count = len(train(kind, tmp_path))
    pattern = {"cityscapes": "*_labelIds.png", "synthia": "LABELS/*.png", "bdd100k": "train/*.png"}.get(kind, "*.png")
    first = sorted((tmp_path / labels).rglob(pattern))[0]
    first.unlink()
    with pytest.raises(InputError, match=rf"{first.name}: no label for 1 of {count} images"):
        train(kind, tmp_path)


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in {"streets", "video"}])
def test_a_folder_that_is_not_there_or_is_another(tmp_path: Path, kind: str) -> None:
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "absent", tmp_path / "empty"):
        for opener in (open_labelled, open_unlabelled):
            with pytest.raises(InputError, match=r"no such folder|no (images|CamVid) in this folder"):
                opener(f"{kind}:{place}", "train", ANY_HW)


def test_unknown_split_names_those_there_are(tmp_path: Path) -> None:
    make_cityscapes(tmp_path)
    with pytest.raises(InputError, match=r"no split 'vall'; there are: train, val$"):
        train("cityscapes", tmp_path, "vall")
    with pytest.raises(InputError, match=r"no split 'val'; there are: train$"):
        train("gta5", make_gta5(tmp_path / "gta5"), "val")


def test_a_sample_is_the_same_from_any_copy(tmp_path: Path) -> None:
    make_camvid_fast_ai(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    one, other = (train("camvid", tmp_path / name) for name in "ab")
    assert one.identity() == other.identity()  # the times are copied too
    (tmp_path / "b/labels/0016E5_00000_P.png").touch()
    assert one.identity() != train("camvid", tmp_path / "b").identity()
    unlabelled = [open_unlabelled(f"camvid:{tmp_path / name}", "train", ANY_HW).identity() for name in "ab"]
    assert unlabelled[0] == unlabelled[1]
    assert unlabelled[0] != one.identity()
