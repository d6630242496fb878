"""The check of a data set: every fault of every kind, in one pass, and none where there is none."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from cdga_sdk.image import write_png
from cdga_train.data.check import PROBLEM_KINDS, DataReport, check_listing, rival_splits
from cdga_train.data.spec import list_files
from tests.published_layouts import (
    SIZE_WH,
    make_camvid_fast_ai,
    make_camvid_segnet,
    make_cityscapes,
    make_gta5,
    make_synthia,
    write_palette_png,
    write_rgb16_png,
)


def check(spec: str, split: str = "train", *, rivals: tuple[tuple[str, str], ...] = (), **options: int) -> DataReport:
    listing = list_files(spec, split)
    others = {f"{name} {part}": list_files(name, part) for name, part in rivals}
    return check_listing(listing, rivals=others, **options)  # type: ignore[arg-type]


def found(report: DataReport) -> list[tuple[str, str, str]]:
    return [(p.kind, p.where, p.what) for p in report.problems]


@pytest.mark.parametrize(
    ("kind", "make"),
    [
        ("gta5", make_gta5),
        ("synthia", make_synthia),
        ("cityscapes", make_cityscapes),
        ("camvid", make_camvid_segnet),
        ("camvid", make_camvid_fast_ai),
    ],
)
def test_published_layouts_are_clean(tmp_path: Path, kind: str, make: object) -> None:
    assert callable(make)
    make(tmp_path)
    done: list[int] = []
    listing = list_files(f"{kind}:{tmp_path}", "train")
    report = check_listing(listing, rivals={}, on_frame=done.append)
    assert found(report) == []
    assert report.problem_counts == {}
    assert report.is_labelled
    assert report.frames == report.checked == len(listing.pairs)
    assert done == list(range(1, report.frames + 1))
    assert dict(report.image_sizes_wh) == {SIZE_WH: report.frames}
    assert sum(i.pixels for i in report.ids) == report.frames * SIZE_WH[0] * SIZE_WH[1]
    assert sum(i.percent for i in report.ids) == pytest.approx(100)
    assert {i.meaning for i in report.ids} & set(report.never) == set()


def test_shares_by_hand(tmp_path: Path) -> None:
    for name, ids in (("00001", [[7, 7, 26], [26, 0, 4]]), ("00002", [[7, 34, 34], [23, 23, 23]])):
        write_png(tmp_path / f"images/{name}.png", np.full((2, 3, 3), int(name), np.uint8))
        write_palette_png(tmp_path / f"labels/{name}.png", np.array(ids, np.uint8))
    report = check(f"gta5:{tmp_path}")
    shares = [(i.label_id, i.meaning, i.pixels) for i in report.ids]
    assert shares == [
        (0, "ignored", 1),
        (4, "ignored", 1),
        (7, "road", 3),
        (23, "sky", 3),
        (26, "car", 2),
        (34, "ignored", 2),
    ]
    assert report.ids[2].percent == 25
    assert report.ignored_percent == pytest.approx(100 * 4 / 12)
    assert len(report.never) == 16
    assert "road" not in report.never
    assert "train" in report.never


@pytest.fixture
def broken(tmp_path: Path) -> str:
    """GTA5 frames 1 to 11 with one fault each; 1 and 10 are whole."""
    root = make_gta5(tmp_path / "broken", 11)
    labels, images = root / "labels", root / "images"
    (labels / "00002.png").unlink()
    (images / "00003.png").unlink()
    write_palette_png(labels / "00004.png", np.full((10, 12), 7, np.uint8))
    strange = np.full((SIZE_WH[1], SIZE_WH[0]), 7, np.uint8)
    strange[0, :5] = 77
    strange[1, :2] = 200
    write_palette_png(labels / "00005.png", strange)
    (images / "00006.png").write_bytes((images / "00006.png").read_bytes()[:500])
    (labels / "00007.png").write_text("no label")
    shutil.copyfile(images / "00001.png", images / "00008.png")
    write_palette_png(labels / "00009.png", np.zeros((SIZE_WH[1], SIZE_WH[0]), np.uint8))
    write_png(labels / "00011.png", np.zeros((SIZE_WH[1], SIZE_WH[0], 3), np.uint8))
    write_png(root / "held_out/images/val/x.png", np.zeros((2, 2, 3), np.uint8))
    shutil.copyfile(images / "00010.png", root / "held_out/images/val/y.png")
    return f"gta5:{root}"


def test_every_kind_of_problem_is_found_at_once(broken: str) -> None:
    root = Path(broken.removeprefix("gta5:"))
    val = f"folder:{root / 'held_out'}"
    report = check(broken, rivals=((val, "val"),))
    assert found(report) == [
        ("missing label", "labels/00002.png", "no file"),
        ("orphan label", "labels/00003.png", "no image belongs to it"),
        ("unreadable", "images/00006.png", "not an image that can be decoded"),
        ("unreadable", "labels/00007.png", "not an image that can be decoded"),
        (
            "unreadable",
            "labels/00011.png",
            f"label image has shape ({SIZE_WH[1]}, {SIZE_WH[0]}, 3) and type uint8, "
            "wanted one 8-bit channel of class ids",
        ),
        ("size mismatch", "labels/00004.png", "label is 12x10, its image 96x48"),
        ("unknown ids", "labels/00005.png", "77 (5 pixels), 200 (2 pixels)"),
        ("nothing labelled", "labels/00009.png", "every pixel is ignored"),
        ("duplicate image", "images/00008.png", "same bytes as images/00001.png"),
        ("leaked image", "images/00010.png", f"same bytes as images/val/y.png of {val} val"),
    ]
    assert report.problem_counts["unreadable"] == 3
    assert sum(report.problem_counts.values()) == len(report.problems) == 10
    assert set(report.problem_counts) <= set(PROBLEM_KINDS)
    assert (report.frames, report.checked) == (10, 10)
    assert [i.meaning for i in report.ids if i.label_id in {77, 200}] == ["unknown", "unknown"]


def test_problems_of_a_list(broken: str) -> None:
    root = Path(broken.removeprefix("gta5:"))
    (root / "mine.txt").write_text("00001\n00010\n00003\n00001.png\n")
    assert found(check(broken, "mine")) == [
        ("missing image", "00003", "listed in mine.txt, but no file answers to it"),
        ("repeated name", "00001", "more than one image is named so"),
    ]


def test_unknown_16_bit_ids(tmp_path: Path) -> None:
    make_synthia(tmp_path, 2)
    ids = np.full((SIZE_WH[1], SIZE_WH[0]), 3, np.uint16)
    ids[0, 0] = 40_000
    write_rgb16_png(tmp_path / "GT/LABELS/0000001.png", ids, ids)
    assert found(check(f"synthia:{tmp_path}")) == [("unknown ids", "GT/LABELS/0000001.png", "40000 (1 pixel)")]


def test_a_target_without_labels_is_no_problem(tmp_path: Path) -> None:
    make_cityscapes(tmp_path, {"train": 2}, with_labels=False)
    report = check(f"cityscapes:{tmp_path}")
    assert not report.is_labelled
    assert (report.problems, report.ids, report.never, report.ignored_percent) == ((), (), (), 0.0)


def test_one_label_folder_of_two_is_a_problem(tmp_path: Path) -> None:
    make_cityscapes(tmp_path, {"train": 4})
    shutil.rmtree(tmp_path / "gtFine/train/zurich")
    assert check(f"cityscapes:{tmp_path}").problem_counts == {"missing label": 2}


@pytest.mark.parametrize(("limit", "wanted"), [(1, ["00001"]), (2, ["00001", "00005"]), (99, None)])
def test_limit_spreads_evenly(tmp_path: Path, limit: int, wanted: list[str] | None) -> None:
    make_gta5(tmp_path, 8)
    for number in range(1, 9):  # every label is broken: those that were opened are named
        (tmp_path / f"labels/{number:05d}.png").write_text("")
    report = check(f"gta5:{tmp_path}", limit=limit)
    assert report.frames == 8
    assert report.checked == min(limit, 8)
    if wanted is not None:
        assert [Path(p.where).stem for p in report.problems] == wanted


def test_leaks_between_splits(tmp_path: Path) -> None:
    make_camvid_segnet(tmp_path, {"train": 3, "val": 2, "test": 1})
    shutil.copyfile(tmp_path / "train/0001TP_000401.png", tmp_path / "val/0001TP_000404.png")
    spec = f"camvid:{tmp_path}"
    rivals = (("val", "val"), ("test", "test"))
    report = check_listing(list_files(spec, "train"), rivals={name: list_files(spec, split) for name, split in rivals})
    assert report.compared_with == ("val", "test")
    assert found(report) == [
        ("leaked image", "train/0001TP_000401.png", "same bytes as val/0001TP_000404.png of val"),
    ]


def test_leaks_are_found_among_the_frames_that_a_limit_leaves_unopened(tmp_path: Path) -> None:
    make_gta5(tmp_path / "own", 4)
    make_gta5(tmp_path / "rival", 1, first_seed=2)  # the third of the four
    for limit in (1, 2, 4):
        report = check(f"gta5:{tmp_path / 'own'}", rivals=((f"gta5:{tmp_path / 'rival'}", "train"),), limit=limit)
        assert report.checked == limit
        assert [(p.kind, p.where) for p in report.problems] == [("leaked image", "images/00003.png")]
        assert report.not_compared == {}


def test_images_that_could_not_be_compared_are_counted(tmp_path: Path) -> None:
    make_gta5(tmp_path / "own", 2)
    rival = make_gta5(tmp_path / "rival", 3, first_seed=50)
    (rival / "mine.txt").write_text("00001\ngone\n00003\nlost.png\n")
    (rival / "images/00009.png").symlink_to("nowhere.png")
    own, spec = f"gta5:{tmp_path / 'own'}", f"gta5:{rival}"
    report = check(own, rivals=((spec, "mine"), (spec, "train")))
    assert report.problems == ()
    assert report.compared_with == (f"{spec} mine", f"{spec} train")
    assert report.not_compared == {f"{spec} mine": 2, f"{spec} train": 1}
    listings = list_files(own, "train"), list_files(spec, "train")
    (rival / "images/00003.png").unlink()  # between the listing and the look
    assert check_listing(listings[0], rivals={"it": listings[1]}).not_compared == {"it": 2}


def test_links_to_no_file_and_held_out_names_of_no_image_are_missing_images(tmp_path: Path) -> None:
    make_camvid_fast_ai(tmp_path)
    (tmp_path / "valid.txt").write_text("0016E5_00002.JPG\n")
    (tmp_path / "images/z.png").symlink_to("nowhere.png")
    assert found(check(f"camvid:{tmp_path}")) == [
        ("missing image", "0016E5_00002.JPG", "listed in valid.txt, but no file answers to it"),
        ("missing image", "images/z.png", "a link to no file"),
    ]


@pytest.mark.parametrize(
    ("split", "wanted"),
    [
        ("train", ["test", "val"]),
        ("day_train", ["test", "val"]),
        ("val", ["day_train", "test", "train"]),
        ("mine", ["day_train", "test", "train", "val"]),
    ],
)
def test_lists_of_training_frames_may_overlap(tmp_path: Path, split: str, wanted: list[str]) -> None:
    make_camvid_segnet(tmp_path)
    for name in ("day_train", "mine"):
        shutil.copyfile(tmp_path / "train.txt", tmp_path / f"{name}.txt")
    (tmp_path / "README.txt").write_text("About this copy.")
    assert rival_splits(list_files(f"camvid:{tmp_path}", split)) == wanted


def test_the_real_camvid(camvid: Path) -> None:
    spec = f"camvid:{camvid}"
    report = check(spec, "val", rivals=((spec, "train"),))
    assert found(report) == []
    assert dict(report.image_sizes_wh) == {(480, 360): 101}
    assert sum(i.pixels for i in report.ids) == 101 * 480 * 360
    overlap = check(spec, "day_train", rivals=((spec, "train"),), limit=20)
    assert overlap.checked == 20
    assert overlap.problem_counts == {"leaked image": 305}
