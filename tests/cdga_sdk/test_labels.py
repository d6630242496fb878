"""Names, colours and id maps, against a table written by hand from the Cityscapes label definition."""

from __future__ import annotations

import numpy as np
import pytest

from cdga_sdk.errors import UsageError
from cdga_sdk.labels import (
    CAMVID32,
    CAMVID_TO_TRAIN_ID,
    CITYSCAPES_ID_TO_TRAIN_ID,
    CITYSCAPES_NAMES,
    CITYSCAPES_PALETTE_RGB,
    CLASS_SETS,
    GTA5_TO_TRAIN_ID,
    SYNTHIA_TO_TRAIN_ID,
    TRAIN_IDS,
    class_set,
    lookup_table,
    train_id_of,
)

OFFICIAL = """
0 804080 road
1 f423e8 sidewalk
2 464646 building
3 66669c wall
4 be9999 fence
5 999999 pole
6 faaa1e traffic light
7 dcdc00 traffic sign
8 6b8e23 vegetation
9 98fb98 terrain
10 4682b4 sky
11 dc143c person
12 ff0000 rider
13 00008e car
14 000046 truck
15 003c64 bus
16 005064 train
17 0000e6 motorcycle
18 770b20 bicycle
"""


def test_names_and_colours_are_the_official_ones() -> None:
    rows = [line.split(" ", 2) for line in OFFICIAL.strip().splitlines()]
    assert [int(i) for i, _, _ in rows] == list(range(19))
    assert tuple(name for _, _, name in rows) == CITYSCAPES_NAMES
    assert tuple(tuple(bytes.fromhex(c)) for _, c, _ in rows) == CITYSCAPES_PALETTE_RGB


def names_scored(name: str) -> list[str]:
    classes = class_set(name)
    return [classes.names[i] for i in classes.scored]


def test_class_sets_of_the_papers() -> None:
    # SYNTHIA has no terrain, truck and train (16); its older protocol leaves wall, fence and pole out too (13).
    absent = {"terrain", "truck", "train"}
    assert names_scored("19") == list(CITYSCAPES_NAMES)
    assert names_scored("16") == [n for n in CITYSCAPES_NAMES if n not in absent]
    assert names_scored("13") == [n for n in CITYSCAPES_NAMES if n not in absent | {"wall", "fence", "pole"}]
    assert (len(names_scored("16")), len(names_scored("13"))) == (16, 13)


@pytest.mark.parametrize("name", ["19", "16", "13"])
def test_subsets_keep_every_class_to_be_confused_with(name: str) -> None:
    table = class_set(name).table
    assert table.dtype == np.uint8
    np.testing.assert_array_equal(table[:19], np.arange(19))
    assert (table[19:] == 255).all()


def test_common11_merges() -> None:
    merged = {
        "road": ["road"],
        "sidewalk": ["sidewalk"],
        "building": ["building", "wall"],
        "fence": ["fence"],
        "pole": ["pole"],
        "sign": ["traffic light", "traffic sign"],
        "vegetation": ["vegetation", "terrain"],
        "sky": ["sky"],
        "person": ["person"],
        "vehicle": ["car", "truck", "bus", "train"],
        "two_wheeler": ["rider", "motorcycle", "bicycle"],
    }
    common = class_set("common11")
    assert common.names == tuple(merged)
    assert common.scored == tuple(range(11))
    for index, members in enumerate(merged.values()):
        for member in members:
            assert common.table[CITYSCAPES_NAMES.index(member)] == index, member
    assert (common.table[19:] == 255).all()


def test_camvid_ids() -> None:
    wanted = {
        "sky": "sky",
        "building": "building",
        "pole": "pole",
        "road": "road",
        "sidewalk": "sidewalk",
        "tree": "vegetation",
        "sign": "traffic sign",
        "fence": "fence",
        "car": "car",
        "pedestrian": "person",
        "bicyclist": "bicycle",
    }
    for camvid_id, name in enumerate(wanted.values()):
        assert CITYSCAPES_NAMES[CAMVID_TO_TRAIN_ID[camvid_id]] == name
    assert CAMVID_TO_TRAIN_ID[11] == CAMVID_TO_TRAIN_ID[255] == 255
    assert len(CAMVID_TO_TRAIN_ID) == 13


def test_every_camvid_class_has_a_place_in_common11() -> None:
    table = class_set("common11").table
    assert sorted(int(table[t]) for t in CAMVID_TO_TRAIN_ID.values() if t != 255) == list(range(11))


CITYSCAPES_IDS = """
7 road 8 sidewalk 11 building 12 wall 13 fence 17 pole 19 traffic-light 20 traffic-sign 21 vegetation 22 terrain 23 sky
24 person 25 rider 26 car 27 truck 28 bus 31 train 32 motorcycle 33 bicycle
"""
SYNTHIA_IDS = """
1 sky 2 building 3 road 4 sidewalk 5 fence 6 vegetation 7 pole 8 car 9 traffic-sign 10 person 11 bicycle 12 motorcycle
15 traffic-light 16 terrain 17 rider 18 truck 19 bus 20 train 21 wall
"""


@pytest.mark.parametrize(
    ("id_map", "definition", "length"),
    [
        (CITYSCAPES_ID_TO_TRAIN_ID, CITYSCAPES_IDS, 34),
        (GTA5_TO_TRAIN_ID, CITYSCAPES_IDS, 35),
        (SYNTHIA_TO_TRAIN_ID, SYNTHIA_IDS, 23),
    ],
)
def test_published_ids_by_name(id_map: dict[int, int], definition: str, length: int) -> None:
    words = definition.split()
    wanted = {int(i): name.replace("-", " ") for i, name in zip(words[::2], words[1::2], strict=True)}
    assert len(wanted) == 19
    assert sorted(id_map) == list(range(length))
    assert {i: CITYSCAPES_NAMES[t] for i, t in id_map.items() if t != 255} == wanted


def test_train_ids_map_to_themselves() -> None:
    assert dict(TRAIN_IDS) == {**{i: i for i in range(19)}, 255: 255}


def test_the_32_camvid_classes_keep_within_the_11() -> None:
    grouping = """
    0 Sky
    1 Archway Bridge Building Tunnel Wall
    2 Column_Pole TrafficCone
    3 LaneMkgsDriv LaneMkgsNonDriv Road
    4 ParkingBlock RoadShoulder Sidewalk
    5 Tree VegetationMisc
    6 Misc_Text SignSymbol TrafficLight
    7 Fence
    8 Car OtherMoving SUVPickupTruck Train Truck_Bus
    9 Animal CartLuggagePram Child Pedestrian
    10 Bicyclist MotorcycleScooter
    11 Void
    """
    rows = [line.split() for line in grouping.strip().splitlines()]
    groups = {name: int(group) for group, *names in rows for name in names}
    assert len(CAMVID32) == 32
    assert set(CAMVID32) == set(groups)
    common = class_set("common11").table
    for name, train_id in CAMVID32.items():  # a score over the common 11 does not depend on which copy it was
        if train_id != 255:
            assert common[train_id] == common[CAMVID_TO_TRAIN_ID[groups[name]]], name


def test_lookup_table() -> None:
    label_HW = np.array([[3, 7], [8, 255]], np.uint8)
    np.testing.assert_array_equal(lookup_table({3: 0, 7: 1})[label_HW], [[0, 1], [255, 255]])
    np.testing.assert_array_equal(lookup_table({3: 0, 255: 255}, unknown=254)[label_HW], [[0, 254], [254, 255]])


@pytest.mark.parametrize(("label", "train_id"), [("car", 13), ("13", 13), (13, 13), (" traffic light ", 6), (0, 0)])
def test_train_id_of(label: int | str, train_id: int) -> None:
    assert train_id_of(label) == train_id


def test_train_id_of_own_names() -> None:
    assert train_id_of("b", ("a", "b")) == 1
    with pytest.raises(UsageError, match="use one of a, b"):
        train_id_of(2, ("a", "b"))


@pytest.mark.parametrize(
    ("label", "hint"),
    [("cars", "'car'"), ("19", "road"), ("-1", "road"), ("", "road"), ("255", "road"), ("9" * 5000, "road")],
)
def test_unknown_class(label: str, hint: str) -> None:
    with pytest.raises(UsageError, match=hint):
        train_id_of(label)


def test_unknown_class_set() -> None:
    with pytest.raises(UsageError, match="did you mean 'common11'"):
        class_set("common12")
    with pytest.raises(UsageError, match="use one of 19, 16, 13, common11"):
        class_set("zzz")
    assert set(CLASS_SETS) == {"19", "16", "13", "common11"}
