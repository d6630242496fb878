"""The procedural world as a data set: fixed, repeatable, and no place seen twice."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from cdga_sdk.errors import UsageError
from cdga_train.data.street_frames import STREETS, StreetsDataset
from cdga_train.data.streets import DOMAINS, render_frame

SIZE_HW = (64, 96)


def test_a_sample_is_the_same_at_every_asking() -> None:
    first, again = (StreetsDataset("day", "train", SIZE_HW)[3] for _ in range(2))
    assert first.name == again.name == "day_1000003"
    assert first.label is not None
    assert again.label is not None
    assert first.image_bgr.shape == (64, 96, 3)
    assert first.image_bgr.flags["C_CONTIGUOUS"]
    assert (first.image_bgr == again.image_bgr).all()
    assert (first.label == again.label).all()
    assert first.label.shape == SIZE_HW
    assert set(np.unique(first.label)) <= {*range(19), 255}


def test_colours_are_bgr() -> None:
    sky = StreetsDataset("day", "val", SIZE_HW)[0]
    assert sky.label is not None
    blue, _, red = sky.image_bgr[sky.label == 10].mean(axis=0)
    assert blue > red


def test_no_two_worlds_or_splits_share_a_place() -> None:
    names = [
        int(data[i].name.rpartition("_")[2])
        for world in STREETS
        for data in (StreetsDataset(world, split, SIZE_HW) for split in ("train", "val"))
        for i in (0, len(data) - 1)
    ]
    spans = sorted(zip(names[::2], names[1::2], strict=True))
    assert all(first <= last for first, last in spans)
    assert all(last < first for (_, last), (first, _) in pairwise(spans))


def test_lengths_and_labels() -> None:
    assert len(StreetsDataset("dusk", "train", SIZE_HW)) == 400
    data = StreetsDataset("dusk", "val", SIZE_HW, with_labels=False)
    assert len(data) == 100
    assert data[0].label is None
    assert not data.is_labelled


def test_all_is_every_look_of_towns_and_open_roads() -> None:
    train, val = (StreetsDataset("all", split, SIZE_HW) for split in ("train", "val"))
    assert (len(train), len(val)) == (2000, 500)
    words = [val[i].name.split("_")[:-1] for i in range(60)]
    roads = [w[1] for w in words if w[0] == "road"]
    towns = [w[0] for w in words if w[0] != "road"]
    assert len(roads) == 20
    assert {d: towns.count(d) + roads.count(d) for d in DOMAINS} == {
        "day": 24, "dusk": 12, "rain": 9, "fog": 6, "camera": 9,
    }  # fmt: skip
    assert set(towns) == set(roads) == set(DOMAINS)
    assert min(roads.count(d) for d in DOMAINS) >= 2


def test_a_year_is_every_look_of_towns_in_summer_and_winter_and_of_open_roads() -> None:
    train, val = (StreetsDataset("year", split, SIZE_HW) for split in ("train", "val"))
    assert (len(train), len(val)) == (3000, 500)
    words = [train[i].name.split("_")[:-1] for i in range(35)]
    places = [w[0] if len(w) == 2 else "town" for w in words]
    assert {p: places.count(p) for p in set(places)} == {"town": 10, "winter": 15, "road": 10}
    assert {w[-1] for w in words} == set(DOMAINS)
    assert len({tuple(w) for w in words}) >= 12  # of 15
    drawn = render_frame(seed=1_700_001, domain="dusk", place="winter", size_wh=(96, 64))
    assert train[1].name == "winter_dusk_1700001"
    assert (train[1].image_bgr[..., ::-1] == drawn.image_rgb).all()


def test_open_roads_by_day() -> None:
    train, val = (StreetsDataset("road", split, SIZE_HW) for split in ("train", "val"))
    assert (len(train), len(val)) == (400, 100)
    assert train[7].name == "road_day_1600007"
    drawn = render_frame(seed=1_600_007, place="road", size_wh=(96, 64))
    assert (train[7].image_bgr[..., ::-1] == drawn.image_rgb).all()


def test_every_world_and_split_has_an_identity_of_its_own() -> None:
    found = {StreetsDataset(world, split, SIZE_HW).identity() for world in STREETS for split in ("train", "val")}
    assert len(found) == 2 * len(STREETS)


@pytest.mark.parametrize(
    ("domain", "split", "message"),
    [
        ("dsuk", "train", "no world 'dsuk'; did you mean 'dusk'"),
        ("zzz", "train", "no world 'zzz'; use one of day, dusk, rain, fog, camera, all, road, year"),
        ("day", "vall", "no split 'vall'; did you mean 'val'"),
        ("day", "test", "no split 'test'; use one of train, val"),
    ],
)
def test_unknown_words(domain: str, split: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        StreetsDataset(domain, split, SIZE_HW)
