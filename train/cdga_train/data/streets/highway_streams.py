"""Everything in rows along an open road: traffic, signs, delineators and lamps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from cdga_train.data.streets.highway import Carriageway, Highway
from cdga_train.data.streets.streams import Stream

__all__ = ["BEHIND_DIVIDER_M", "highway_streams"]

# Oncoming vehicles are painted before the divider: as if behind it by the length of one of its pieces.
BEHIND_DIVIDER_M: Final = 18.0


def highway_streams(highway: Highway, seed: int, *, lane: float, driver_mps: float, driver_s: float) -> list[Stream]:
    """All streams of an open road; ``lane`` is where the driver keeps, from ``driver_s`` on at ``driver_mps``."""
    rng = np.random.default_rng([seed, 63])
    result: list[Stream] = []
    for carriageway in highway.carriageways:
        result += _driving(highway, carriageway, rng, lane, driver_mps, driver_s)
    for number, side in enumerate(highway.sides):
        key = 1000 + 100 * number
        if side.sign > 0 or highway.kind == "country":
            result += _signs(rng, key, side.sign * (side.edge + float(rng.uniform(0.8, 1.1))))
        if highway.posts:
            result.append(
                Stream(key=key + 8, d=side.sign * (side.edge + 0.3), spacing=50.0, share=1.0, kind="delineators")
            )
        if highway.lamps:
            inward = 0.0 if side.sign < 0 else float(np.pi)
            d = side.sign * (side.edge + 0.9)
            result.append(Stream(key=key + 9, d=d, spacing=45.0, share=1.0, kind="lamp1", turn_rad=inward))
    return result


def _signs(rng: np.random.Generator, key: int, d: float) -> Sequence[Stream]:
    spacing = float(rng.uniform(70, 160))
    return (
        Stream(key=key, d=d, spacing=spacing, share=0.55, kind="signs"),
        Stream(key=key + 1, d=d * 1.08, spacing=spacing * 1.9, share=0.45, kind="boards", start=31.0),
    )


def _driving(
    highway: Highway,
    carriageway: Carriageway,
    rng: np.random.Generator,
    lane: float,
    driver_mps: float,
    driver_s: float,
) -> list[Stream]:
    """A stream for each lane: faster inside, lorries outside."""
    forward = carriageway.sign > 0
    motorway = highway.kind == "motorway"
    slowest, step = (float(rng.uniform(21, 25)), 3.0) if motorway else (float(rng.uniform(15, 22)), 2.0)
    rows = []
    num_lanes = len(carriageway.lanes)
    for number, d in enumerate(carriageway.lanes):
        own = forward and abs(d - lane) < 0.1
        speed = slowest + step * (num_lanes - 1 - number)
        haulage = number >= num_lanes - 2 and rng.uniform() < 0.3 + 0.6 * highway.trucks
        spacing = float(rng.uniform(24, 70)) if motorway else float(rng.uniform(40, 110))
        gap = float(rng.uniform(9, 40))
        rows.append(
            Stream(
                key=1200 + (0 if forward else 50) + number,
                d=carriageway.sign * d,
                spacing=spacing,
                share=0.35 + 0.6 * highway.traffic,
                kind="haulage" if haulage else "fast",
                speed=driver_mps if own else speed if forward else -speed,
                turn_rad=0.0 if forward else float(np.pi),
                spread=0.25,
                empty=(driver_s - 40, driver_s + gap + (9 if haulage else 3)) if own else None,
                behind_m=0.0 if forward or highway.median == 0 else BEHIND_DIVIDER_M,
            )
        )
    return rows
