"""KIND:PLACE: what opens, and what is said when it does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cdga_sdk.errors import InputError, UsageError
from cdga_sdk.image import write_png
from cdga_train.data.paired_files import PairedFiles
from cdga_train.data.spec import list_files, open_labelled, open_unlabelled
from cdga_train.data.street_frames import StreetsDataset
from cdga_train.data.video import VideoDataset

SIZE_HW = (32, 64)


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("camvdi:here", "did you mean 'camvid:...'?"),
        ("street:day", "did you mean 'streets:...'?"),
        ("folders:x", "did you mean 'folder:...'?"),
        ("gta:x", "did you mean 'gta5:...'?"),
        ("cityscape:x", "did you mean 'cityscapes:...'?"),
        ("streets", "did you mean 'streets:...'?"),
        ("streets:", "did you mean 'streets:...'?"),
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


def test_each_kind_opens(tmp_path: Path) -> None:
    write_png(tmp_path / "images/train/a.png", np.zeros((2, 3, 3), np.uint8))
    write_png(tmp_path / "labels/train/a.png", np.zeros((2, 3), np.uint8))
    (tmp_path / "train.txt").write_text("a")
    assert isinstance(open_labelled(f"folder:{tmp_path}", "train", SIZE_HW), PairedFiles)
    assert isinstance(open_labelled("streets:day", "train", SIZE_HW), StreetsDataset)
    first = {kind: open_labelled(f"{kind}:{tmp_path}", "train", SIZE_HW)[0].label for kind in ("folder", "camvid")}
    assert first["folder"] is not None
    assert first["camvid"] is not None
    assert (first["folder"][0, 0], first["camvid"][0, 0]) == (0, 10)  # id 0: a train id, or CamVid's sky
    for spec in (f"folder:{tmp_path}", f"camvid:{tmp_path}", "streets:day"):
        data = open_unlabelled(spec, "train", SIZE_HW)
        assert not data.is_labelled
        assert data[0].label is None


def test_a_video_is_a_target_and_never_a_source(dashcam: Path) -> None:
    assert isinstance(open_unlabelled(f"video:{dashcam}", "train", SIZE_HW), VideoDataset)
    with pytest.raises(InputError, match="has no labels"):
        open_labelled(f"video:{dashcam}", "train", SIZE_HW)


def test_training_needs_labels(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", np.zeros((2, 3, 3), np.uint8))
    with pytest.raises(InputError, match="has no labels; name a labelled data set"):
        open_labelled(f"folder:{tmp_path}", "train", SIZE_HW)


@pytest.mark.parametrize("spec", ["streets:day", "video:ride.mp4"])
def test_only_files_can_be_listed(spec: str) -> None:
    with pytest.raises(UsageError, match="not made of image files; use one of gta5, synthia, cityscapes"):
        list_files(spec, "train")
