"""Held-out dusk frames as networks see them before and after adaptation, and CDGA's groups of them: docs/results.md.

    cdga study streets --arms source_only,cdga --seeds 0
    python -m benchmarks.pictures runs/study/streets/source_only-seed0 runs/study/streets/cdga-seed0 \
        docs/images/groups.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.streets_adaptation import before_after
from cdga_sdk.image import write_png

WIDTH_PX: Final = 360


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the picture of two runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="a run of the source alone")
    parser.add_argument("after", type=Path, help="a run with arm=cdga")
    parser.add_argument("picture", type=Path)
    options = parser.parse_args(arguments)
    write_png(options.picture, before_after(options.before, options.after, with_groups=True, width_px=WIDTH_PX))


if __name__ == "__main__":
    main()
