"""CamVid in three layouts: lists, ids of 11 and of 32 classes, labels looked at only when asked for."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cdga_sdk.errors import InputError
from cdga_sdk.image import write_png
from cdga_sdk.labels import CAMVID_TO_TRAIN_ID
from cdga_sdk.preprocess import UInt8Array
from cdga_train.data.base import Dataset
from cdga_train.data.spec import list_files, open_labelled, open_unlabelled
from tests.published_layouts import CODES, frames, make_camvid_fast_ai, make_camvid_segnet

IDS: UInt8Array = np.arange(12, dtype=np.uint8).reshape(3, 4)


def camvid_data(root: Path, split: str = "train") -> Dataset:
    return open_labelled(f"camvid:{root}", split, (1, 1))


def names(data: Dataset) -> list[str]:
    return [data[i].name for i in range(len(data))]


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
    data = camvid_data(root)
    assert names(data) == ["b", "a"]
    first = data[0]
    assert first.label is not None
    # sky building pole road / sidewalk tree sign fence / car pedestrian bicyclist void
    assert first.label.tolist() == [[10, 2, 5, 0], [1, 8, 7, 4], [13, 11, 18, 255]]
    assert first.label.dtype == np.uint8
    assert (first.image_bgr == 20).all()
    assert set(np.unique(first.label)) == set(CAMVID_TO_TRAIN_ID.values())


def test_unknown_id_is_refused_with_counts(root: Path) -> None:
    wrong = IDS.copy()
    wrong[0] = (12, 200, 200, 255)
    write_png(root / "labels/train/b.png", wrong)
    with pytest.raises(InputError, match=r"labels/train/b\.png: unknown label ids 12 \(1 pixel\), 200 \(2 pixels\)"):
        camvid_data(root)[0]


def test_colour_label_is_refused(root: Path) -> None:
    write_png(root / "labels/train/b.png", np.zeros((3, 4, 3), np.uint8))
    with pytest.raises(InputError, match="one 8-bit channel"):
        camvid_data(root)[0]


def test_missing_image_is_named_on_opening(root: Path) -> None:
    (root / "images/train/b.png").unlink()
    with pytest.raises(InputError, match=r"train\.txt: no file for 1 listed image, e\.g\. b;"):
        camvid_data(root)


def test_missing_split_names_those_there_are(root: Path) -> None:
    with pytest.raises(InputError, match=r"no split 'test'; there are: day_train, train, val$"):
        camvid_data(root, "test")


def test_folders_are_the_splits_where_there_is_no_list(root: Path) -> None:
    (root / "train.txt").unlink()
    assert names(camvid_data(root)) == ["a", "b"]


def test_unlabelled_never_reads_a_label(root: Path) -> None:
    shutil.rmtree(root / "labels")
    data = open_unlabelled(f"camvid:{root}", "train", (1, 1))
    assert not data.is_labelled
    assert [data[i].label for i in range(2)] == [None, None]
    assert names(data) == ["b", "a"]


def test_segnet_tutorials_layout(tmp_path: Path) -> None:
    data = camvid_data(make_camvid_segnet(tmp_path))
    assert names(data) == ["0001TP_000400", "0001TP_000401"]
    assert [len(camvid_data(tmp_path, split)) for split in ("val", "test")] == [1, 1]
    image, label = list(frames(2, first_seed=400))[1]
    np.testing.assert_array_equal(data[1].image_bgr, image)
    # what the 11 classes merge, train id by train id: walls are buildings, lights signs, trucks and buses cars ...
    merged = np.array([0, 1, 2, 2, 4, 5, 7, 7, 8, 8, 10, 11, 18, 13, 13, 13, 13, 18, 18], np.uint8)
    np.testing.assert_array_equal(data[1].label, merged[label])


def test_segnet_lists_of_another_machine_are_refused(tmp_path: Path) -> None:
    make_camvid_segnet(tmp_path)
    (tmp_path / "val.txt").write_text("/home/me/CamVid/val/x.png /home/me/CamVid/valannot/x.png\n")
    with pytest.raises(InputError, match="leads out of the data set's folder"):
        camvid_data(tmp_path, "val")


def test_fast_ais_layout(tmp_path: Path) -> None:
    make_camvid_fast_ai(tmp_path, train=2, val=1)
    assert names(camvid_data(tmp_path)) == ["0016E5_00000", "0016E5_00001"]
    for split in ("val", "valid"):
        assert names(camvid_data(tmp_path, split)) == ["0016E5_00002"]
    label = camvid_data(tmp_path)[1].label
    # 32 classes keep walls and lights apart; terrain and riders have no class of their own, nor trucks and buses
    kept = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 10, 11, 18, 13, 13, 13, 16, 17, 18], np.uint8)
    np.testing.assert_array_equal(label, kept[list(frames(2, first_seed=500))[1][1]])


@pytest.mark.parametrize("opener", [open_labelled, open_unlabelled])
def test_held_out_names_that_no_image_has_are_told_not_trained_on(
    tmp_path: Path, opener: Callable[[str, str, tuple[int, int]], Dataset]
) -> None:
    make_camvid_fast_ai(tmp_path, train=2, val=2)
    (tmp_path / "valid.txt").write_text("0016E5_00002.png\n0016E5_00003.JPG\n")
    for split in ("train", "valid"):
        assert list_files(f"camvid:{tmp_path}", split).absent == ("0016E5_00003.JPG",)
        with pytest.raises(
            InputError, match=r"valid\.txt: no file for 1 listed image, e\.g\. 0016E5_00003\.JPG; write names as"
        ):
            opener(f"camvid:{tmp_path}", split, (1, 1))
    (tmp_path / "train.txt").write_text("0016E5_00000.png\n")  # names its images itself
    assert names(opener(f"camvid:{tmp_path}", "train", (1, 1))) == ["0016E5_00000"]


def test_held_out_names_are_not_read_from_outside(tmp_path: Path) -> None:
    root = make_camvid_fast_ai(tmp_path / "camvid")
    (root / "valid.txt").rename(tmp_path / "elsewhere.txt")
    (root / "valid.txt").symlink_to(tmp_path / "elsewhere.txt")
    for split in ("train", "val"):
        with pytest.raises(InputError, match=r"valid\.txt: a link leads out of the data set's folder"):
            camvid_data(root, split)


def test_every_one_of_the_32(tmp_path: Path) -> None:
    make_camvid_fast_ai(tmp_path, train=1, val=0)
    (tmp_path / "valid.txt").unlink()
    write_png(tmp_path / "images/0016E5_00000.png", np.zeros((4, 8, 3), np.uint8))
    write_png(tmp_path / "labels/0016E5_00000_P.png", np.arange(32, dtype=np.uint8).reshape(4, 8))
    label = camvid_data(tmp_path)[0].label
    assert label is not None
    assert label.tolist() == [
        [255, 2, 18, 255, 2, 13, 255, 11],  # animal archway bicyclist bridge building car luggage child
        [5, 4, 0, 0, 7, 17, 255, 1],  # pole fence markings markings text motorcycle moving parking
        [11, 0, 1, 1, 7, 10, 13, 255],  # pedestrian road shoulder sidewalk sign sky suv cone
        [6, 16, 8, 13, 255, 8, 255, 3],  # light train tree truck_bus tunnel vegetation void wall
    ]
    (tmp_path / "codes.txt").write_text("\n".join(reversed(CODES.split())))  # the file says what an id is
    label = camvid_data(tmp_path)[0].label
    assert label is not None
    assert label[0, 0] == 3
    assert label[3, 7] == 255


@pytest.mark.parametrize(
    ("codes", "message"),
    [("Sky\nRoad\n", "holds 2 names, wanted CamVid's 32"), ("Sky\nCow\n", "holds 'Cow'"), ("", "holds 0 names")],
)
def test_codes_of_something_else(tmp_path: Path, codes: str, message: str) -> None:
    make_camvid_fast_ai(tmp_path)
    (tmp_path / "codes.txt").write_text(codes)
    with pytest.raises(InputError, match=message):
        camvid_data(tmp_path)


def test_the_real_lists(camvid: Path) -> None:
    lengths = {s: len(camvid_data(camvid, s)) for s in ("train", "val", "day_train", "dusk_train")}
    assert lengths == {"train": 367, "val": 101, "day_train": 305, "dusk_train": 62}
    sample = camvid_data(camvid, "val")[0]
    assert sample.label is not None
    assert sample.image_bgr.shape == (360, 480, 3)
    assert set(np.unique(sample.label)) <= set(CAMVID_TO_TRAIN_ID.values())
    assert (sample.label == 0).mean() > 0.1  # road
