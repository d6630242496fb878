"""Classes, colours and id maps. The one place that knows what a label id means.

Inside this project a label map is always uint8 Cityscapes train ids (0 to 18), with 255 for "ignored". A map from a
data set's ids names every id of its definition, the ignored ones too: any other id in a file is a fault of the file.
Sources: the Cityscapes label definition (Cordts et al., CVPR 2016) for names, order, colours and ids; Richter et al.,
ECCV 2016 for GTA5, whose ids are Cityscapes'; Ros et al., CVPR 2016 for SYNTHIA-RAND-CITYSCAPES; CamVid's 32 classes
(Brostow et al. 2008) and their grouping into 11, as SegNet (Badrinarayanan et al. 2017) and its labels have it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import MappingProxyType
from typing import Final

import numpy as np
import numpy.typing as npt

from cdga_sdk.errors import UsageError, did_you_mean

__all__ = [
    "CAMVID32",
    "CAMVID_TO_TRAIN_ID",
    "CITYSCAPES_ID_TO_TRAIN_ID",
    "CITYSCAPES_NAMES",
    "CITYSCAPES_PALETTE_RGB",
    "CLASS_SETS",
    "GTA5_TO_TRAIN_ID",
    "IGNORE",
    "SYNTHIA_TO_TRAIN_ID",
    "TRAIN_IDS",
    "ClassSet",
    "class_set",
    "lookup_table",
    "train_id_of",
]

IGNORE: Final = 255

CITYSCAPES_NAMES: Final[tuple[str, ...]] = (
    "road",
    "sidewalk",
    "building",
    "wall",
    "fence",
    "pole",
    "traffic light",
    "traffic sign",
    "vegetation",
    "terrain",
    "sky",
    "person",
    "rider",
    "car",
    "truck",
    "bus",
    "train",
    "motorcycle",
    "bicycle",
)

CITYSCAPES_PALETTE_RGB: Final[tuple[tuple[int, int, int], ...]] = (
    (128, 64, 128),
    (244, 35, 232),
    (70, 70, 70),
    (102, 102, 156),
    (190, 153, 153),
    (153, 153, 153),
    (250, 170, 30),
    (220, 220, 0),
    (107, 142, 35),
    (152, 251, 152),
    (70, 130, 180),
    (220, 20, 60),
    (255, 0, 0),
    (0, 0, 142),
    (0, 0, 70),
    (0, 60, 100),
    (0, 80, 100),
    (0, 0, 230),
    (119, 11, 32),
)

TRAIN_IDS: Final[Mapping[int, int]] = MappingProxyType({**{i: i for i in range(19)}, IGNORE: IGNORE})

# 0 to 33; the ids that are left out are unlabelled, ego vehicle, parking, bridge and the like: ignored
CITYSCAPES_ID_TO_TRAIN_ID: Final[Mapping[int, int]] = MappingProxyType(
    dict.fromkeys(range(34), IGNORE)
    | {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14}
    | {28: 15, 31: 16, 32: 17, 33: 18}
)

# 34 is the licence plate, which Cityscapes numbers -1 and never draws
GTA5_TO_TRAIN_ID: Final[Mapping[int, int]] = MappingProxyType({**CITYSCAPES_ID_TO_TRAIN_ID, 34: IGNORE})

# 0 to 22: 0 void, 13 parking slot, 14 road work, 22 lane marking are ignored
SYNTHIA_TO_TRAIN_ID: Final[Mapping[int, int]] = MappingProxyType(
    dict.fromkeys(range(23), IGNORE)
    | {1: 10, 2: 2, 3: 0, 4: 1, 5: 4, 6: 8, 7: 5, 8: 13, 9: 7, 10: 11, 11: 18, 12: 17, 15: 6, 16: 9, 17: 12, 18: 14}
    | {19: 15, 20: 16, 21: 3}
)

# 0 sky 1 building 2 pole 3 road 4 sidewalk 5 tree 6 sign 7 fence 8 car 9 pedestrian 10 bicyclist 11 void
CAMVID_TO_TRAIN_ID: Final[Mapping[int, int]] = MappingProxyType(
    {0: 10, 1: 2, 2: 5, 3: 0, 4: 1, 5: 8, 6: 7, 7: 4, 8: 13, 9: 11, 10: 18, 11: IGNORE, 255: IGNORE}
)


# By name, the Cityscapes class that each of the 32 is a part of, within its class of the 11; ignored where Cityscapes
# has none or leaves it out of training. Truck_Bus could be either: it stays a car, as in the 11.
CAMVID32: Final[Mapping[str, int]] = MappingProxyType(
    {
        "Animal": IGNORE,
        "Archway": 2,
        "Bicyclist": 18,
        "Bridge": IGNORE,
        "Building": 2,
        "Car": 13,
        "CartLuggagePram": IGNORE,
        "Child": 11,
        "Column_Pole": 5,
        "Fence": 4,
        "LaneMkgsDriv": 0,
        "LaneMkgsNonDriv": 0,
        "Misc_Text": 7,
        "MotorcycleScooter": 17,
        "OtherMoving": IGNORE,
        "ParkingBlock": 1,
        "Pedestrian": 11,
        "Road": 0,
        "RoadShoulder": 1,
        "Sidewalk": 1,
        "SignSymbol": 7,
        "Sky": 10,
        "SUVPickupTruck": 13,
        "TrafficCone": IGNORE,
        "TrafficLight": 6,
        "Train": 16,
        "Tree": 8,
        "Truck_Bus": 13,
        "Tunnel": IGNORE,
        "VegetationMisc": 8,
        "Void": IGNORE,
        "Wall": 3,
    }
)


def lookup_table(id_map: Mapping[int, int], *, unknown: int = IGNORE) -> npt.NDArray[np.uint8]:
    """A (256,) uint8 table that maps ids by one indexing, ``table[label_HW]``; other ids become ``unknown``."""
    table = np.full(256, unknown, np.uint8)
    for source_id, wanted_id in id_map.items():
        table[source_id] = wanted_id
    return table


@dataclass(frozen=True, kw_only=True)
class ClassSet:
    """The classes that a score is stated over.

    Attributes:
        name: What ``--classes`` calls it.
        names: One name per class of the confusion matrix.
        groups: Train ids merged into each class; the same number of entries as ``names``.
        scored: Indices into ``names`` that enter the mean; the other classes can still be confused with.
    """

    name: str
    names: tuple[str, ...]
    groups: tuple[tuple[int, ...], ...]
    scored: tuple[int, ...] = field(default=())

    def __post_init__(self) -> None:
        assert len(self.names) == len(self.groups)
        if not self.scored:
            object.__setattr__(self, "scored", tuple(range(len(self.names))))

    @property
    def table(self) -> npt.NDArray[np.uint8]:
        """(256,) uint8: train id to class index, everything else 255."""
        return lookup_table({i: k for k, group in enumerate(self.groups) for i in group})


_EACH: Final = tuple((i,) for i in range(19))
_SYNTHIA_13: Final = (0, 1, 2, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18)
_COMMON: Final[Mapping[str, tuple[int, ...]]] = MappingProxyType(
    {
        "road": (0,),
        "sidewalk": (1,),
        "building": (2, 3),
        "fence": (4,),
        "pole": (5,),
        "sign": (6, 7),
        "vegetation": (8, 9),
        "sky": (10,),
        "person": (11,),
        "vehicle": (13, 14, 15, 16),
        "two_wheeler": (12, 17, 18),
    }
)

CLASS_SETS: Final[Mapping[str, ClassSet]] = MappingProxyType(
    {
        "19": ClassSet(name="19", names=CITYSCAPES_NAMES, groups=_EACH),
        "16": ClassSet(name="16", names=CITYSCAPES_NAMES, groups=_EACH, scored=tuple(sorted((*_SYNTHIA_13, 3, 4, 5)))),
        "13": ClassSet(name="13", names=CITYSCAPES_NAMES, groups=_EACH, scored=_SYNTHIA_13),
        "common11": ClassSet(name="common11", names=tuple(_COMMON), groups=tuple(_COMMON.values())),
    }
)


def class_set(name: str) -> ClassSet:
    """The class set called ``name``.

    Raises:
        UsageError: No class set has that name.
    """
    if name not in CLASS_SETS:
        near = get_close_matches(name, CLASS_SETS, n=1, cutoff=0.4)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise UsageError(f"unknown class set '{name}'", fix=f"{hint}use one of {', '.join(CLASS_SETS)}")
    return CLASS_SETS[name]


_MOST_DIGITS: Final = 3  # of an id; Python refuses to read thousands


def train_id_of(label: int | str, names: Sequence[str] = CITYSCAPES_NAMES) -> int:
    """The train id of a class given by name ("car") or id (13, "13").

    Raises:
        UsageError: No such class.
    """
    text = str(label).strip()
    if text.isdecimal() and len(text) <= _MOST_DIGITS and int(text) < len(names):
        return int(text)
    if text in names:
        return names.index(text)
    raise UsageError(f"unknown class '{text[:100]}'", fix=did_you_mean(text, names))
