"""Resized samples: equal to resizing them anew, whatever happens to the memory, the disk and the files."""

from __future__ import annotations

import contextlib
import resource
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier, Lock

import cv2
import numpy as np
import pytest

from cdga_train.data import cache
from cdga_train.data.base import Sample
from cdga_train.data.cache import RamBudget, ResizedSamples
from cdga_train.data.spec import open_labelled, open_unlabelled
from cdga_train.data.video import VideoDataset
from tests.published_layouts import make_camvid_segnet, make_gta5

SIZE_HW = (20, 30)
SAMPLE_BYTES = 20 * 30 * 4


class Counting:
    """Three samples of noise, 40x50; ``asked`` counts what was made anew."""

    def __init__(self, *, is_labelled: bool = True, identity: str = "noise") -> None:
        self.is_labelled = is_labelled
        self.asked: list[int] = []
        self._identity = identity
        self._lock = Lock()

    def __len__(self) -> int:
        return 3

    def identity(self) -> str:
        return self._identity

    def __getitem__(self, index: int) -> Sample:
        with self._lock:
            self.asked.append(index)
        rng = np.random.default_rng(index)
        image, label = rng.integers(0, 256, (40, 50, 3), np.uint8), rng.integers(0, 19, (40, 50), np.uint8)
        return Sample(name=f"ünï {index}", image_bgr=image, label=label if self.is_labelled else None)


def assert_right(samples: ResizedSamples, index: int, *, is_labelled: bool = True) -> None:
    """Sample ``index`` of a `Counting` is what OpenCV makes of it directly."""
    sample = samples[index]
    whole = Counting()[index]
    assert whole.label is not None
    assert sample.name == whole.name
    np.testing.assert_array_equal(sample.image_bgr, cv2.resize(whole.image_bgr, (30, 20)))
    assert (sample.label is not None) == is_labelled
    if sample.label is not None:
        wanted = cv2.resize(whole.label, (30, 20), interpolation=cv2.INTER_NEAREST_EXACT)
        np.testing.assert_array_equal(sample.label, wanted)
    for array in (sample.image_bgr, sample.label):
        if array is not None:
            assert array.flags["C_CONTIGUOUS"]
            assert not array.flags["WRITEABLE"]


def files(disk: Path) -> list[Path]:
    return sorted(disk.glob("*/*"))


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow beyond 100 bytes (EFBIG stands in for a full disk)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture(autouse=True)
def small_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test machine may have less free than the reserve that a real run leaves."""
    monkeypatch.setattr(cache, "RESERVE_BYTES", 0)


@pytest.mark.parametrize("with_disk", [False, True])
@pytest.mark.parametrize("is_labelled", [False, True])
@pytest.mark.parametrize("ram", [0, 1.5 * SAMPLE_BYTES, 1e9])
def test_samples_are_right_at_every_asking(tmp_path: Path, ram: float, is_labelled: bool, with_disk: bool) -> None:
    for _ in range(2):  # a second run finds the files of the first
        data = Counting(is_labelled=is_labelled)
        samples = ResizedSamples(data, SIZE_HW, ram=RamBudget(ram), disk=tmp_path if with_disk else None)
        assert len(samples) == 3
        for index in (2, 0, 1, 2, 0, 1):
            assert_right(samples, index, is_labelled=is_labelled)
    assert bool(files(tmp_path)) == with_disk


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_the_budget_is_held_and_shared(kept: int) -> None:
    ram = RamBudget((kept + 0.5) * SAMPLE_BYTES)
    one, other = Counting(), Counting()
    for data in (one, other):
        samples = ResizedSamples(data, SIZE_HW, ram=ram)
        for _ in range(4):
            for index in range(3):
                assert_right(samples, index)
    assert len(one.asked) == kept + 4 * (3 - kept)
    assert len(other.asked) == 12


def test_the_disk_spares_the_next_run(tmp_path: Path) -> None:
    first, second = Counting(), Counting()
    for data in (first, second):
        samples = ResizedSamples(data, SIZE_HW, ram=RamBudget(0), disk=tmp_path)
        for index in (0, 1, 2, 1):
            assert_right(samples, index)
    assert first.asked == [0, 1, 2]
    assert second.asked == []
    assert [f.name for f in files(tmp_path)] == ["000000.npy", "000001.npy", "000002.npy"]
    array = np.load(files(tmp_path)[1])  # readable by anybody
    assert array.shape == (20, 30, 4)
    np.testing.assert_array_equal(array[:, :, :3], samples[1].image_bgr)
    np.testing.assert_array_equal(array[:, :, 3], samples[1].label)


def test_every_kind_of_damage_is_noticed(tmp_path: Path) -> None:
    ResizedSamples(Counting(), SIZE_HW, ram=RamBudget(0), disk=tmp_path)[1]
    (file,) = files(tmp_path)
    good = file.read_bytes()
    other = Sample(name="x", image_bgr=np.zeros((20, 31, 3), np.uint8), label=np.zeros((20, 31), np.uint8))
    flipped = {*np.linspace(0, len(good) - 1, 60, dtype=int).tolist(), *range(len(good) - 20, len(good))}
    damaged = [b"", good[:1], good[:-1], good[: len(good) // 2], good + b"\0", bytes(len(good)), cache._packed(other)]
    damaged += [good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :] for at in sorted(flipped)]
    for data in damaged:
        file.write_bytes(data)
        noise = Counting()
        assert_right(ResizedSamples(noise, SIZE_HW, ram=RamBudget(0), disk=tmp_path), 1)
        assert noise.asked == [1], f"damaged file of {len(data)} bytes was trusted"
        assert file.read_bytes() == good  # made anew
    noise = Counting()
    assert_right(ResizedSamples(noise, SIZE_HW, ram=RamBudget(0), disk=tmp_path), 1)
    assert noise.asked == []  # and the good one is trusted


def test_a_folder_in_a_files_place_is_no_harm(tmp_path: Path) -> None:
    ResizedSamples(Counting(), SIZE_HW, ram=RamBudget(0), disk=tmp_path)[1]
    (file,) = files(tmp_path)
    file.unlink()
    file.mkdir()
    samples = ResizedSamples(Counting(), SIZE_HW, ram=RamBudget(0), disk=tmp_path)
    assert_right(samples, 1)
    assert not samples.is_writing


def test_what_decides_the_content_decides_the_place(tmp_path: Path) -> None:
    variants = [
        (Counting(), SIZE_HW),
        (Counting(identity="other"), SIZE_HW),
        (Counting(is_labelled=False), SIZE_HW),
        (Counting(), (20, 31)),
        (Counting(), (30, 20)),
    ]
    for data, size_hw in variants:
        ResizedSamples(data, size_hw, ram=RamBudget(0), disk=tmp_path)[0]
        assert data.asked == [0]
    assert len(list(tmp_path.iterdir())) == len(variants)


def test_a_full_disk_ends_the_caching_and_not_the_run(tmp_path: Path) -> None:
    samples = ResizedSamples(Counting(), SIZE_HW, ram=RamBudget(0), disk=tmp_path)
    assert samples.is_writing
    with full_disk():
        assert_right(samples, 0)
    assert not samples.is_writing
    assert_right(samples, 1)
    assert files(tmp_path) == []


def test_room_is_left_for_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "RESERVE_BYTES", shutil.disk_usage(tmp_path).total)
    samples = ResizedSamples(Counting(), SIZE_HW, ram=RamBudget(0), disk=tmp_path)
    assert_right(samples, 0)
    assert not samples.is_writing
    assert files(tmp_path) == []


def test_a_place_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    samples = ResizedSamples(Counting(), SIZE_HW, ram=RamBudget(0), disk=tmp_path / "file")
    for index in range(3):
        assert_right(samples, index)
    assert not samples.is_writing


@pytest.mark.parametrize("ram", [0, 1.5 * SAMPLE_BYTES, 1e9])
def test_many_threads_at_once(tmp_path: Path, ram: float) -> None:
    budget = RamBudget(ram)
    samples = ResizedSamples(Counting(), SIZE_HW, ram=budget, disk=tmp_path)
    barrier = Barrier(8)

    def ask(thread: int) -> None:
        barrier.wait()
        for i in range(30):
            assert_right(samples, (thread + i) % 3)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))
    assert len(files(tmp_path)) == 3  # and no temporary file is left
    assert budget.take(int(max(0, ram - 3 * SAMPLE_BYTES)))  # each sample was counted once


def test_real_files(tmp_path: Path) -> None:
    make_gta5(tmp_path / "gta5", 2)
    spec = f"gta5:{tmp_path / 'gta5'}"
    whole = open_labelled(spec, "train", SIZE_HW)
    for _ in range(2):
        samples = ResizedSamples(open_labelled(spec, "train", SIZE_HW), SIZE_HW, ram=RamBudget(0), disk=tmp_path / "c")
        for index in range(2):
            np.testing.assert_array_equal(samples[index].image_bgr, cv2.resize(whole[index].image_bgr, (30, 20)))
            assert samples[index].name == whole[index].name
    assert len(files(tmp_path / "c")) == 2
    (tmp_path / "gta5/images/00001.png").touch()  # a changed file: nothing old is used
    ResizedSamples(open_labelled(spec, "train", SIZE_HW), SIZE_HW, ram=RamBudget(0), disk=tmp_path / "c")[0]
    assert len(files(tmp_path / "c")) == 3


def test_every_data_set_has_an_identity(tmp_path: Path) -> None:
    make_camvid_segnet(tmp_path)
    camvid = f"camvid:{tmp_path}"
    places = [("streets:day", "train"), ("streets:day", "val"), ("streets:dusk", "train"), (camvid, "train")]
    identities = [open_unlabelled(spec, split, SIZE_HW).identity() for spec, split in [*places, (camvid, "val")]]
    assert len(set(identities)) == 5
    assert identities == [
        open_unlabelled(spec, split, SIZE_HW).identity() for spec, split in [*places, (camvid, "val")]
    ]
    assert open_unlabelled("streets:day", "train", (32, 64)).identity() != identities[0]


def test_a_videos_identity(dashcam: Path, tmp_path: Path) -> None:
    copy = tmp_path / dashcam.name
    shutil.copy2(dashcam, copy)
    one, same = (VideoDataset(str(p), (16, 32), max_frames=5).identity() for p in (dashcam, copy))
    assert one == same
    assert VideoDataset(str(copy), (16, 32), max_frames=6).identity() != one
    copy.touch()
    assert VideoDataset(str(copy), (16, 32), max_frames=5).identity() != one


def test_arrays_of_the_data_set_itself_stay_writeable() -> None:
    class Kept(Counting):
        sample = replace(Counting()[0], image_bgr=np.zeros((20, 30, 3), np.uint8), label=np.zeros((20, 30), np.uint8))

        def __getitem__(self, index: int) -> Sample:
            return self.sample

    ResizedSamples(Kept(), SIZE_HW, ram=RamBudget(1e9))[0]
    assert Kept.sample.image_bgr.flags["WRITEABLE"]
