"""A translated source: the translated images with the source's labels, and every slip in the folder told."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from cdga_sdk.errors import InputError
from cdga_sdk.image import write_png
from cdga_sdk.preprocess import UInt8Array
from cdga_train.checkpoint import load_checkpoint
from cdga_train.config import TrainConfig
from cdga_train.data.batches import Batches
from cdga_train.data.paired_files import PairedFiles
from cdga_train.data.spec import open_labelled
from cdga_train.data.translated import TranslatedFiles
from cdga_train.rounds import train_run
from cdga_train.run_layout import LAST
from cdga_train.state import TrainingState
from tests.published_layouts import SIZE_WH, frames, make_cityscapes, make_gta5, write_jpeg

SIZE_HW = (SIZE_WH[1], SIZE_WH[0])


def look(number: int) -> UInt8Array:
    """An image that no source has, and that differs from number to number, row to row and channel to channel."""
    rows = np.arange(SIZE_HW[0], dtype=np.uint8)[:, None, None]
    return np.ascontiguousarray(np.broadcast_to(rows + np.array([10 * number, 90, 200], np.uint8), (*SIZE_HW, 3)))


@pytest.fixture
def source(tmp_path: Path) -> PairedFiles:
    """Three frames of GTA5."""
    data = open_labelled(f"gta5:{make_gta5(tmp_path / 'gta5')}", "train", SIZE_HW)
    assert isinstance(data, PairedFiles)
    return data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Their translations, and a file that is of none of them."""
    folder = tmp_path / "translated"
    for number in (3, 1, 2):
        write_png(folder / f"{number:05d}.png", look(number))
    write_png(folder / "00099.png", look(9))
    return folder


def label_of(data: TranslatedFiles, index: int) -> UInt8Array:
    label = data[index].label
    assert label is not None
    return label


def test_the_image_is_the_translated_one_and_the_label_the_sources(source: PairedFiles, folder: Path) -> None:
    data = TranslatedFiles(source, folder)
    assert data.is_labelled
    assert len(data) == 3
    for index, (_, label) in enumerate(frames(3)):
        assert data[index].name == f"{index + 1:05d}"
        np.testing.assert_array_equal(data[index].image_bgr, look(index + 1))
        np.testing.assert_array_equal(label_of(data, index), label)


def test_any_image_suffix_will_do(source: PairedFiles, folder: Path) -> None:
    (folder / "00002.png").unlink()
    write_jpeg(folder / "00002.JPG", np.full((*SIZE_HW, 3), (0, 0, 250), np.uint8))
    assert (TranslatedFiles(source, folder)[1].image_bgr[..., 2] > 240).all()


def test_files_are_named_as_samples_are_not_as_source_files(tmp_path: Path) -> None:
    source = open_labelled(f"cityscapes:{make_cityscapes(tmp_path / 'cs', {'train': 1})}", "train", SIZE_HW)
    assert isinstance(source, PairedFiles)
    write_png(tmp_path / "translated/aachen_000000_000019.png", look(4))
    np.testing.assert_array_equal(TranslatedFiles(source, tmp_path / "translated")[0].image_bgr, look(4))


def test_identity_follows_every_change_of_a_translated_file(source: PairedFiles, folder: Path) -> None:
    def identity() -> str:
        return TranslatedFiles(source, folder).identity()

    os.utime(folder / "00001.png", ns=(1, 1_000))
    os.utime(folder / "00002.png", ns=(1, 2_000))
    seen = [source.identity(), identity()]
    assert identity() == seen[1]

    (folder / "00001.png").rename(folder / "kept")  # swapped, each with its own time
    (folder / "00002.png").rename(folder / "00001.png")
    (folder / "kept").rename(folder / "00002.png")
    seen.append(identity())

    os.utime(folder / "00003.png", ns=(1, 3_000))
    seen.append(identity())

    write_png(folder / "00003.png", np.zeros((2, 2, 3), np.uint8))
    os.utime(folder / "00003.png", ns=(1, 3_000))  # another size alone
    seen.append(identity())

    (folder / "00003.png").rename(folder / "00003.webp")
    seen.append(identity())

    label = source.pairs[0].label
    os.utime(label, ns=(1, 4_000))
    seen.append(identity())
    assert len(set(seen)) == len(seen)

    (folder / "00099.png").unlink()  # of no sample
    assert identity() == seen[-1]


def test_a_file_that_vanished_is_told(source: PairedFiles, folder: Path) -> None:
    data = TranslatedFiles(source, folder)
    (folder / "00002.png").unlink()
    with pytest.raises(InputError, match=r"translated/00002\.png: cannot read \(No such file or directory\)"):
        data.identity()
    with pytest.raises(InputError, match=r"translated/00002\.png: no such file"):
        data[1]


def test_missing_images_are_one_error_that_names_the_first(source: PairedFiles, folder: Path) -> None:
    (folder / "00002.png").unlink()
    with pytest.raises(InputError, match=r"translated: no translation of 1 of 3 images, e\.g\. 00002\.png$"):
        TranslatedFiles(source, folder)
    (folder / "00001.png").unlink()
    with pytest.raises(InputError, match=r"translated: no translation of 2 of 3 images, e\.g\. 00001\.png$"):
        TranslatedFiles(source, folder)


def test_two_files_for_one_sample_are_refused(source: PairedFiles, folder: Path) -> None:
    write_jpeg(folder / "00002.jpg", look(7))
    with pytest.raises(InputError, match=r"both 00002\.jpg and 00002\.png could be the translated image; remove one"):
        TranslatedFiles(source, folder)


@pytest.mark.parametrize(
    ("place", "message"),
    [("absent", "no such folder"), ("empty", "no images in this folder"), ("a" * 300, "File name too long")],
)
def test_a_folder_that_is_none(source: PairedFiles, tmp_path: Path, place: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=message):
        TranslatedFiles(source, tmp_path / place)


@pytest.mark.parametrize("scale", [0.5, 1, 2])
def test_batches_pair_images_of_any_size_with_the_labels(tmp_path: Path, scale: float) -> None:
    """Road left of a border that differs from frame to frame, sky right of it; 50 and 200 in the translated image."""
    root, folder = tmp_path / "root", tmp_path / "translated"
    for name, border in (("a", 16), ("b", 48)):
        is_sky = np.broadcast_to(np.arange(64) >= border, (32, 64))
        write_png(root / f"images/{name}.png", np.full((32, 64, 3), 128, np.uint8))
        write_png(root / f"labels/{name}.png", np.where(is_sky, 10, 0).astype(np.uint8))
        image = np.where(is_sky, 200, 50).astype(np.uint8)[:, :, None] + np.array([0, 10, 20], np.uint8)
        size_wh = (int(64 * scale), int(32 * scale))
        write_png(folder / f"{name}.png", np.asarray(cv2.resize(image, size_wh, interpolation=0), np.uint8))
    config = TrainConfig(
        arm="source_only", target=None, imgsz=(32, 64), batch=4, translate="folder", translated=str(folder)
    )
    source = open_labelled(f"folder:{root}", "train", config.source_size)
    assert isinstance(source, PairedFiles)
    batches = Batches(TranslatedFiles(source, folder), None, config)
    (batch,) = batches[0]
    assert batch.source_BHWC.shape == (4, 32, 64, 3)
    inner = np.ones(64, bool)
    inner[[15, 16, 47, 48]] = False  # where a resized image blurs a border, as it is or mirrored
    wanted = np.where(batch.label_BHW == 10, 200, 50)[..., None] + np.array([20, 10, 0])  # RGB
    np.testing.assert_array_equal(batch.source_BHWC[:, :, inner], wanted[:, :, inner])
    shares = {(label == 10).mean() for (b,) in (batches[i] for i in range(8)) for label in b.label_BHW}
    assert shares == {0.25, 0.75}


def test_a_run_sees_nothing_but_the_translated_images(tmp_path: Path, source: PairedFiles, folder: Path) -> None:
    config = TrainConfig(
        arm="source_only", source=f"gta5:{tmp_path / 'gta5'}", target=None, imgsz=(64, 96), rounds=1, iters=1
    )

    def trained(name: str, config: TrainConfig) -> str:
        train_run(config, tmp_path / name)
        checkpoint = load_checkpoint(tmp_path / name / LAST)
        return TrainingState.resumed(checkpoint, checkpoint.config, torch.device("cpu")).fingerprint()

    plain = trained("plain", config)
    translated = trained("run", replace(config, translate="folder", translated=str(folder)))
    for pair in source.pairs:
        (folder / pair.image.name).rename(pair.image)
    assert trained("replaced", config) == translated != plain
