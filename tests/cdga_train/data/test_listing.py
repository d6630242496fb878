"""Lists and folders: what a line may say, and that nothing outside the data set is ever opened."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from cdga_sdk.errors import InputError
from cdga_sdk.image import write_png
from cdga_train.data.folder import folder
from cdga_train.data.layouts import bdd100k, gta5
from cdga_train.data.listing import Listing, list_split
from cdga_train.data.paired_files import open_listing

IMAGE = np.zeros((2, 3, 3), np.uint8)
LABEL = np.zeros((2, 3), np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """GTA5's layout, with frames a, b, "c d" and "e,f"."""
    root = tmp_path / "root"
    for name in ("a", "b", "c d", "e,f"):
        write_png(root / f"images/{name}.png", IMAGE)
        write_png(root / f"labels/{name}.png", LABEL)
    return root


def listed(root: Path, text: str | bytes) -> Listing:
    (root / "mine.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    return list_split(gta5(root), "mine", with_labels=True)


def names(listing: Listing) -> list[str]:
    return [pair.name for pair in listing.pairs]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("b\na\n", ["b", "a"]),
        ("b.png\r\na.png\r\n", ["b", "a"]),
        ("images/b.png\n\n  a  \n", ["b", "a"]),
        ("c d\ne,f.png\n", ["c d", "e,f"]),
        ("a.png labels/a.png\nb.png,b.png\n", ["a", "b"]),
        ("\ufeffa\n", ["a"]),
        ("./a.png", ["a"]),
        ("# the good ones\nb\n  #a\n#\n", ["b"]),
    ],
)
def test_lines(root: Path, text: str, wanted: list[str]) -> None:
    listing = listed(root, text)
    assert names(listing) == wanted
    assert listing.absent == ()
    assert [p.label for p in listing.pairs] == [root / f"labels/{n}.png" for n in wanted]


@pytest.mark.parametrize(
    "entry", ["../root/images/a.png", "/etc/passwd", "images/../images/a.png", "a/..", "/x/a.png /y/a.png"]
)
def test_a_list_cannot_lead_out_of_the_folder(root: Path, entry: str) -> None:
    with pytest.raises(InputError, match=r"mine\.txt: list holds .*leads out of the data set's folder; write bare"):
        listed(root, f"a\n{entry}\n")


@pytest.mark.parametrize(
    "second", ["b.png", "../labels/a.png", "images/a.png", "labels/a.png labels/b.png", "bels/a.png"]
)
def test_a_list_that_pairs_wrongly(root: Path, second: str) -> None:
    with pytest.raises(InputError, match=rf"list pairs a\.png with '{second}', wanted labels/a\.png"):
        listed(root, f"a.png {second}\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b" \n", "list is empty"),
        (b"#a\n", "list is empty"),
        (b"", "list is empty"),
        (b"\xff\xfea\n", "not a text file"),
        (b"a\x00\n", None),
    ],
)
def test_a_list_that_is_none(root: Path, content: bytes, message: str | None) -> None:
    if message is None:
        assert listed(root, content).absent == ("a\x00",)
        return
    with pytest.raises(InputError, match=message):
        listed(root, content)


@pytest.mark.parametrize("line", ["zzz", ",", "zzz.png labels/a.png", "a.jpg"])
def test_absent_images_are_kept_apart_and_refused_on_opening(root: Path, line: str) -> None:
    listing = listed(root, f"a\n{line}\nb\n")
    assert names(listing) == ["a", "b"]
    assert listing.absent == (line,)
    with pytest.raises(InputError, match=r"mine\.txt: no file for 1 listed image, e\.g\. .*; write names as"):
        open_listing(listing)


def test_a_name_twice_is_refused(root: Path) -> None:
    assert listed(root, "a\nb\na.png\n").repeated == ("a",)
    write_png(root / "images/a.bmp", IMAGE)  # one label for two images
    listing = list_split(gta5(root), "train", with_labels=True)
    assert listing.repeated == ("a",)
    with pytest.raises(InputError, match=r"more than one image for 1 name in split 'train', e\.g\. a"):
        open_listing(listing)


def test_an_entry_that_could_be_two(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_png(tmp_path / f"images/10k/{split}/a.png", IMAGE)
    (tmp_path / "mine.txt").write_text("a")
    with pytest.raises(InputError, match=r"'a', which could be images/10k/train/a\.png or images/10k/val/a\.png"):
        list_split(bdd100k(tmp_path), "mine", with_labels=False)
    (tmp_path / "mine.txt").write_text("val/a")
    assert list_split(bdd100k(tmp_path), "mine", with_labels=False).pairs[0].image.parent.name == "val"


@pytest.mark.parametrize("split", ["../lists/other", "sub/other", "..", "", "/etc/hostname"])
def test_a_split_cannot_lead_out_of_the_folder(root: Path, split: str) -> None:
    for place in (root.parent / "lists", root / "sub"):
        place.mkdir()
        (place / "other.txt").write_text("a\n")
    with pytest.raises(InputError, match="no split"):
        list_split(gta5(root), split, with_labels=True)


def test_links_out_of_the_folder_are_refused(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    write_png(outside / "secret.png", IMAGE)
    (outside / "list.txt").write_text("a\n")
    for link, target, split in (
        ("images/z.png", outside / "secret.png", "train"),
        ("labels/z.png", outside / "secret.png", "train"),
        ("linked.txt", outside / "list.txt", "linked"),
    ):
        (root / link).symlink_to(target)
        with pytest.raises(InputError, match=rf"{link}: a link leads out of the data set's folder"):
            list_split(gta5(root), split, with_labels=True)
        (root / link).unlink()
    (root / "images").rename(outside / "images")
    (root / "images").symlink_to(outside / "images")
    with pytest.raises(InputError, match="images: a link leads out"):
        list_split(gta5(root), "train", with_labels=True)


def test_links_within_and_to_the_folder_are_followed(root: Path, tmp_path: Path) -> None:
    (root / "images/z.png").symlink_to(root / "images/a.png")
    (root / "labels/z.png").symlink_to("a.png")
    (tmp_path / "alias").symlink_to(root)
    assert len(open_listing(list_split(gta5(tmp_path / "alias"), "train", with_labels=True))) == 5


def test_an_image_whose_name_begins_with_the_sign_of_a_comment(root: Path) -> None:
    write_png(root / "images/#1.png", IMAGE)
    write_png(root / "labels/#1.png", LABEL)
    assert names(listed(root, "#1\n./#1\n")) == ["#1"]
    assert names(listed(root, "images/#1.png\n")) == ["#1"]


@pytest.mark.parametrize("with_labels", [True, False])
@pytest.mark.parametrize("target", ["gone.png", "z.png"])  # to nothing, and to itself
def test_links_to_no_file_are_missing_images(root: Path, target: str, with_labels: bool) -> None:
    (root / "images/z.png").symlink_to(target)
    (root / "images/.z.png").symlink_to(target)
    (root / "images/z.md").symlink_to(target)
    listing = list_split(gta5(root), "train", with_labels=with_labels)
    assert listing.dangling == (root / "images/z.png",)
    assert names(listing) == ["a", "b", "c d", "e,f"]
    with pytest.raises(InputError, match=r"images/z\.png: 1 image: no file behind the link"):
        open_listing(listing)
    (root / "mine.txt").write_text("a\nz\n")
    assert list_split(gta5(root), "mine", with_labels=with_labels).absent == ("z",)
    (root / "mine.txt").write_text("a\n")
    assert len(open_listing(list_split(gta5(root), "mine", with_labels=with_labels))) == 1


def test_a_folder_of_nothing_but_links_to_no_file(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in "ab":
        (tmp_path / f"images/{name}.png").symlink_to(tmp_path / f"store/{name}")
    with pytest.raises(InputError, match=r"images/a\.png: 2 images: no file behind the link"):
        open_listing(list_split(gta5(tmp_path), "train", with_labels=False))


def test_hidden_files_and_others_are_no_frames(root: Path) -> None:
    (root / "images/._a.png").write_bytes(b"resource fork")
    (root / "images/notes.md").write_text("")
    (root / "images/folder.png").mkdir()
    (root / "labels/Thumbs.db").write_bytes(b"")
    listing = list_split(gta5(root), "train", with_labels=True)
    assert names(listing) == ["a", "b", "c d", "e,f"]
    assert listing.orphans == ()


def test_orphans_and_unlabelled(root: Path) -> None:
    (root / "images/a.png").unlink()
    (root / "labels/b.png").unlink()
    listing = list_split(gta5(root), "train", with_labels=True)
    assert listing.orphans == (root / "labels/a.png",)
    assert [p.name for p in listing.unlabelled] == ["b"]
    assert listed(root, "b\n").orphans == ()
    unlabelled = list_split(gta5(root), "train", with_labels=False)
    assert (unlabelled.labels, unlabelled.orphans, unlabelled.unlabelled) == (None, (), ())


def test_splits_that_share_a_folder_of_labels_have_no_orphans(tmp_path: Path) -> None:
    for split, name in (("train", "a"), ("val", "b")):
        write_png(tmp_path / f"images/{split}/{name}.png", IMAGE)
        write_png(tmp_path / f"labels/{name}.png", LABEL)
    write_png(tmp_path / "labels/c.png", LABEL)
    assert list_split(folder(tmp_path), "train", with_labels=True).orphans == (tmp_path / "labels/c.png",)


def test_odd_names_work(tmp_path: Path) -> None:
    odd = ["-x", "%03d", "ünï", "a\nb", "#", "'\"", "a" * 200]
    for name in odd:
        write_png(tmp_path / f"images/{name}.png", IMAGE)
        write_png(tmp_path / f"labels/{name}.png", LABEL)
    data = open_listing(list_split(gta5(tmp_path), "train", with_labels=True))
    assert sorted(data[i].name for i in range(len(data))) == sorted(odd)
    assert len(data.identity()) == 64


def test_folder_without_permission(root: Path) -> None:
    (root / "images").chmod(0)
    try:
        if os.access(root / "images", os.R_OK):
            pytest.skip("this user may read everything")
        with pytest.raises(InputError, match="cannot look into this folder"):
            list_split(gta5(root), "train", with_labels=True)
    finally:
        (root / "images").chmod(0o755)
