"""KIND:PLACE: what opens, and what is said when it does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cdga_sdk.errors import InputError, UsageError
from cdga_sdk.image import write_png
from cdga_sdk.labels import class_set
from cdga_train.data.layouts import LAYOUTS
from cdga_train.data.paired_files import PairedFiles
from cdga_train.data.spec import KINDS, list_files, open_labelled, open_unlabelled, without_place
from cdga_train.data.street_frames import StreetsDataset
from cdga_train.data.video import VideoDataset
from tests.cdga_train.data.test_video import clip
from tests.published_layouts import (
    frames,
    make_bdd100k,
    make_camvid_segnet,
    make_cityscapes,
    make_gta5,
    make_synthia,
)

SIZE_HW = (32, 64)


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("camvdi:here", "did you mean 'camvid:...'?"),
        ("street:day", "did you mean 'streets:...'?"),
        ("folders:x", "did you mean 'folder:...'?"),
        ("gta:x", "did you mean 'gta5:...'?"),
        ("cityscape:x", "did you mean 'cityscapes:...'?"),
        ("streets", "write one of streets:day, streets:dusk, streets:rain"),
        ("streets:", "streets:all, streets:road"),
        ("camvid", "write camvid:PATH"),
        ("video:", "write video:FILE"),
        ("", "KIND one of streets, gta5, synthia, cityscapes, bdd100k, camvid, folder, video"),
        (":day", "write KIND:PLACE"),
        ("https://example.com/x", "write KIND:PLACE"),
    ],
)
def test_unknown_spec_has_a_hint(spec: str, hint: str) -> None:
    for refuse in (
        lambda: open_labelled(spec, "train", SIZE_HW),
        lambda: open_unlabelled(spec, "train", SIZE_HW),
        lambda: list_files(spec, "train"),
    ):
        with pytest.raises(UsageError) as caught:
            refuse()
        assert caught.value.fix is not None
        assert hint in caught.value.fix


def test_a_path_without_its_kind(tmp_path: Path) -> None:
    (tmp_path / "ride.mp4").write_bytes(b"x")
    with pytest.raises(UsageError, match=f"did you mean 'video:{tmp_path}/ride.mp4'"):
        open_unlabelled(f"{tmp_path}/ride.mp4", "train", SIZE_HW)
    with pytest.raises(UsageError, match=f"did you mean 'folder:{tmp_path}'"):
        open_unlabelled(str(tmp_path), "train", SIZE_HW)


def make_folder(root: Path) -> Path:
    for seed, (image, label) in enumerate(frames(2)):
        write_png(root / f"images/{seed}.png", image)
        write_png(root / f"labels/{seed}.png", label)
    return root


# how many frames split ``train`` has, the seed and domain of its first, and the folder of labels
PUBLISHED: dict[str, tuple[Callable[[Path], Path], int, int, str]] = {
    "gta5": (make_gta5, 3, 0, "day"),
    "synthia": (make_synthia, 3, 100, "day"),
    "cityscapes": (make_cityscapes, 3, 200, "dusk"),
    "bdd100k": (make_bdd100k, 2, 300, "day"),
    "camvid": (make_camvid_segnet, 2, 400, "day"),
    "folder": (make_folder, 2, 0, "day"),
}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in {"streets", "video"}])
def test_each_kind_of_files_opens(tmp_path: Path, kind: str) -> None:
    make, count, seed, domain = PUBLISHED[kind]
    spec = f"{kind}:{make(tmp_path)}"
    data, target = open_labelled(spec, "train", SIZE_HW), open_unlabelled(spec, "train", SIZE_HW)
    assert isinstance(data, PairedFiles)
    assert (data.is_labelled, target.is_labelled, len(data), len(target)) == (True, False, count, count)
    image, label = next(frames(1, domain=domain, first_seed=seed))
    for sample in (data[0], target[0]):
        assert np.abs(sample.image_bgr.astype(int) - image).mean() < (8 if kind == "bdd100k" else 1e-9)  # JPEG
    found = data[0].label
    assert found is not None
    assert target[0].label is None
    own = class_set("common11").table if kind == "camvid" else np.arange(256)  # the 11 merge some of the 19
    np.testing.assert_array_equal(own[found], own[label])
    assert [p.name for p in list_files(spec, "train").pairs] == [data[i].name for i in range(count)]


@pytest.mark.parametrize("spec", ["streets:day", "streets:road", "streets:all"])
def test_the_procedural_world_opens(spec: str) -> None:
    data, target = open_labelled(spec, "train", SIZE_HW), open_unlabelled(spec, "train", SIZE_HW)
    assert isinstance(data, StreetsDataset)
    assert (data.is_labelled, target.is_labelled) == (True, False)
    assert data[0].label is not None
    assert target[0].label is None


def test_a_video_opens_as_a_target(tmp_path: Path) -> None:
    data = open_unlabelled(f"video:{clip(tmp_path / 'ride.mkv', 3)}", "train", SIZE_HW)
    assert isinstance(data, VideoDataset)
    assert (data.is_labelled, len(data), data[2].image_bgr.shape) == (False, 3, (*SIZE_HW, 3))


def test_a_video_is_never_a_source_and_not_decoded_to_say_so(tmp_path: Path) -> None:
    broken = tmp_path / "ride.mkv"
    broken.write_text("to decode it is another error")
    with pytest.raises(InputError, match=r"ride\.mkv: has no labels; name a labelled data set"):
        open_labelled(f"video:{broken}", "train", SIZE_HW)


@pytest.mark.parametrize("kind", ["video", *LAYOUTS])
@pytest.mark.parametrize(
    "place", ["a" * 300, "a/" * 3000, "a\0b", "\udcff", "self/images"], ids=["name", "path", "null", "no utf-8", "loop"]
)
def test_a_path_that_no_file_can_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, place: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("self").symlink_to("self")
    with pytest.raises(InputError) as caught:
        open_unlabelled(f"{kind}:{place}", "train", SIZE_HW)
    assert "\n" not in str(caught.value)
    if kind != "video":
        with pytest.raises(InputError):
            list_files(f"{kind}:{place}", "train")


@pytest.mark.parametrize("spec", ["a" * 300, "a\0b", "a" * 5000 + ":b"])
def test_words_too_long_for_a_path_are_no_kind(spec: str) -> None:
    with pytest.raises(UsageError, match="unknown data"):
        list_files(spec, "train")


def test_training_needs_labels(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", np.zeros((2, 3, 3), np.uint8))
    with pytest.raises(InputError, match="has no labels; name a labelled data set"):
        open_labelled(f"folder:{tmp_path}", "train", SIZE_HW)


@pytest.mark.parametrize("spec", ["streets:day", "video:ride.mp4"])
def test_only_files_can_be_listed(spec: str) -> None:
    with pytest.raises(UsageError, match="not made of image files; use one of gta5, synthia, cityscapes"):
        list_files(spec, "train")


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("streets:day", "streets:day"),
        ("video:/home/me/ride.mp4", "video:ride.mp4"),
        ("camvid:../data/camvid/", "camvid:camvid"),
        ("folder:.", "folder:ride"),
        ("folder:sunny/..", "folder:ride"),
        ("folder:/", "folder:folder"),
        ("folder:/a/..", "folder:folder"),
    ],
)
def test_what_is_told_of_a_place(spec: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ride").mkdir()
    monkeypatch.chdir(tmp_path / "ride")
    assert without_place(spec) == told
