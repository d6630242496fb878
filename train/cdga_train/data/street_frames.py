"""The procedural world as a data set: a fixed number of independent frames per split."""

from __future__ import annotations

import hashlib
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np

from cdga_sdk.errors import UsageError
from cdga_train.data import streets
from cdga_train.data.base import Sample
from cdga_train.data.streets import DOMAINS, render_frame

__all__ = ["StreetsDataset"]

# Seeds of a split start here; a domain adds its own offset, so that no two domains or splits show the same place.
_FIRST_SEED: Final = {"train": 1_000_000, "val": 2_000_000}
_NUM_FRAMES: Final = {"train": 400, "val": 100}


class StreetsDataset:
    """Frames of one domain of `cdga_train.data.streets`, drawn at the network's size.

    Args:
        domain: One of `cdga_train.data.streets.DOMAINS`.
        split: ``train`` (400 frames) or ``val`` (100 other places).
        size_hw: Height and width drawn.
        with_labels: Whether samples carry their labels.

    Raises:
        UsageError: No such domain or split.
    """

    def __init__(self, domain: str, split: str, size_hw: tuple[int, int], *, with_labels: bool = True) -> None:
        _check_word("domain", domain, DOMAINS)
        _check_word("split", split, tuple(_FIRST_SEED))
        self.is_labelled = with_labels
        self._domain = domain
        self._first_seed = _FIRST_SEED[split] + 100_000 * DOMAINS.index(domain)
        self._length = _NUM_FRAMES[split]
        self._size_wh = (size_hw[1], size_hw[0])

    def __len__(self) -> int:
        return self._length

    def identity(self) -> str:
        """The frames' seeds and size, and a hash over the code that draws them."""
        return f"streets {self._domain} {self._first_seed} {self._length} {self._size_wh} {_code_hash()}"

    def __getitem__(self, index: int) -> Sample:
        frame = render_frame(seed=self._first_seed + index, domain=self._domain, size_wh=self._size_wh)
        return Sample(
            name=f"{self._domain}_{self._first_seed + index}",
            image_bgr=np.ascontiguousarray(frame.image_rgb[:, :, ::-1]),
            label=frame.label if self.is_labelled else None,
        )


@cache
def _code_hash() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(streets.__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _check_word(what: str, word: str, known: tuple[str, ...]) -> None:
    if word not in known:
        near = get_close_matches(word, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"use one of {', '.join(known)}"
        raise UsageError(f"streets has no {what} '{word}'", fix=hint)
