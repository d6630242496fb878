"""The procedural world on one sheet, for README.md: a town, the town in winter and an open road in the five looks.

python -m benchmarks.streets_sheet docs/images/streets.jpg
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from cdga_sdk.atomic import write_bytes
from cdga_sdk.opencv import cv2
from cdga_sdk.preprocess import UInt8Array
from cdga_train.data.streets import DOMAINS, Place, render_frame

PLACES: Final[tuple[tuple[Place, int], ...]] = (("town", 1_500_007), ("winter", 1_500_003), ("road", 1_500_004))
TILE_WH: Final = (256, 144)
_DRAWN_WH: Final = (512, 288)
_JPEG_QUALITY: Final = 88


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args(arguments)
    is_encoded, data = cv2.imencode(".jpg", sheet(), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    assert is_encoded
    write_bytes(options.picture, data.tobytes())


def sheet() -> UInt8Array:
    """(3 * height, 5 * width, 3) uint8 BGR: a row for each place, a column for each look."""
    return np.vstack([np.hstack([_tile(place, seed, domain) for domain in DOMAINS]) for place, seed in PLACES])


def _tile(place: Place, seed: int, domain: str) -> UInt8Array:
    frame = render_frame(seed=seed, domain=domain, size_wh=_DRAWN_WH, place=place)
    return np.asarray(cv2.resize(frame.image_rgb[:, :, ::-1], TILE_WH, interpolation=cv2.INTER_AREA), np.uint8)


if __name__ == "__main__":
    main()
