"""The procedural world as a data set: fixed, repeatable, and no place seen twice."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from cdga_sdk.errors import UsageError
from cdga_train.data.street_frames import StreetsDataset
from cdga_train.data.streets import DOMAINS

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


def test_no_two_domains_or_splits_share_a_place() -> None:
    names = [
        int(StreetsDataset(domain, split, SIZE_HW)[i].name.rpartition("_")[2])
        for domain in DOMAINS
        for split, length in (("train", 400), ("val", 100))
        for i in (0, length - 1)
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


@pytest.mark.parametrize(
    ("domain", "split", "message"),
    [
        ("dsuk", "train", "no domain 'dsuk'; did you mean 'dusk'"),
        ("zzz", "train", "no domain 'zzz'; use one of day, dusk"),
        ("day", "vall", "no split 'vall'; did you mean 'val'"),
        ("day", "test", "no split 'test'; use one of train, val"),
    ],
)
def test_unknown_words(domain: str, split: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        StreetsDataset(domain, split, SIZE_HW)
