"""The sheet of the procedural world that README.md shows is the world as it is drawn now."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.streets_sheet import PLACES, TILE_WH, sheet
from cdga_sdk.image import read_image_bgr
from cdga_train.data.streets import DOMAINS
from cdga_train.data.streets import PLACES as ALL_PLACES

PICTURE = Path(__file__).parents[2] / "docs/images/streets.jpg"


def test_the_committed_sheet_is_drawn_by_this_code() -> None:
    assert {place for place, _ in PLACES} == set(ALL_PLACES)
    drawn, committed = sheet(), read_image_bgr(PICTURE)
    assert drawn.shape == committed.shape == (TILE_WH[1] * len(PLACES), TILE_WH[0] * len(DOMAINS), 3)
    assert np.abs(drawn.astype(int) - committed).mean() < 6  # of 255: what JPEG costs
