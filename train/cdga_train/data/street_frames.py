"""The procedural world as a data set: a fixed number of independent frames per split."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np

from cdga_sdk.errors import UsageError
from cdga_train.data import streets
from cdga_train.data.base import Sample
from cdga_train.data.streets import DOMAINS, Place, render_frame

__all__ = ["STREETS", "StreetsDataset"]

# Seeds of a split start here; each world adds its own offset, so that no two worlds or splits show the same place.
_FIRST_SEED: Final = {"train": 1_000_000, "val": 2_000_000}
_Scene = tuple[Place, str]
# Repeated over the frames: 8 day, 4 dusk, 3 rain, 3 camera and 2 fog of 20, and a road after two towns; as 20 and 3
# share no factor, every look comes with both places.
_LOOKS: Final = (
    *("day", "dusk", "day", "rain", "day", "camera", "day", "dusk", "fog", "day"),
    *("dusk", "day", "camera", "rain", "day", "dusk", "day", "camera", "fog", "rain"),
)
_ALL: Final[tuple[_Scene, ...]] = tuple(
    ("road" if index % 3 == 2 else "town", _LOOKS[index % len(_LOOKS)]) for index in range(3 * len(_LOOKS))
)
# Of 7 places, and 7 and 20 share no factor either.
_YEAR: Final[tuple[_Scene, ...]] = tuple(
    (("town", "winter", "road", "winter", "town", "winter", "road")[index % 7], _LOOKS[index % len(_LOOKS)])
    for index in range(7 * len(_LOOKS))
)


@dataclass(frozen=True, kw_only=True)
class _World:
    """What frame i of a data set shows: ``scenes[i % len(scenes)]``; ``num_frames`` by split."""

    scenes: tuple[_Scene, ...]
    num_frames: dict[str, int]


_FEW: Final = {"train": 400, "val": 100}
# The order decides the seeds: new worlds go to the end.
_WORLDS: Final[dict[str, _World]] = {
    **{domain: _World(scenes=(("town", domain),), num_frames=_FEW) for domain in DOMAINS},
    "all": _World(scenes=_ALL, num_frames={"train": 2000, "val": 500}),
    "road": _World(scenes=(("road", "day"),), num_frames=_FEW),
    "year": _World(scenes=_YEAR, num_frames={"train": 3000, "val": 500}),
}
STREETS: Final = tuple(_WORLDS)


class StreetsDataset:
    """Frames of the procedural world, drawn at the network's size.

    Args:
        world: One of `STREETS`: a domain of `cdga_train.data.streets` in towns, ``road`` (open roads by day), ``all``
            (five domains, two towns for each open road) or ``year`` (five domains; of 7 places 2 are towns in summer, 3
            towns in winter, 2 open roads).
        split: ``train`` (400 frames, ``all`` 2000, ``year`` 3000) or ``val`` (100, or 500, other places).
        size_hw: Height and width drawn.
        with_labels: Whether samples carry their labels.

    Raises:
        UsageError: No such world or split.
    """

    def __init__(self, world: str, split: str, size_hw: tuple[int, int], *, with_labels: bool = True) -> None:
        _check_word("world", world, STREETS)
        _check_word("split", split, tuple(_FIRST_SEED))
        self.is_labelled = with_labels
        self._world = world
        self._first_seed = _FIRST_SEED[split] + 100_000 * STREETS.index(world)
        self._length = _WORLDS[world].num_frames[split]
        self._size_wh = (size_hw[1], size_hw[0])

    def __len__(self) -> int:
        return self._length

    def identity(self) -> str:
        """The frames' seeds and size, and a hash over the code that draws them."""
        return f"streets {self._world} {self._first_seed} {self._length} {self._size_wh} {_code_hash()}"

    def __getitem__(self, index: int) -> Sample:
        scenes = _WORLDS[self._world].scenes
        place, domain = scenes[index % len(scenes)]
        seed = self._first_seed + index
        frame = render_frame(seed=seed, domain=domain, size_wh=self._size_wh, place=place)
        return Sample(
            name=f"{domain}_{seed}" if place == "town" else f"{place}_{domain}_{seed}",
            image_bgr=np.ascontiguousarray(frame.image_rgb[:, :, ::-1]),
            label=frame.label if self.is_labelled else None,
        )


@cache
def _code_hash() -> str:
    digest = hashlib.sha256()
    for path in (Path(__file__), *sorted(Path(streets.__file__).parent.glob("*.py"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _check_word(what: str, word: str, known: tuple[str, ...]) -> None:
    if word not in known:
        near = get_close_matches(word, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"use one of {', '.join(known)}"
        raise UsageError(f"streets has no {what} '{word}'", fix=hint)
