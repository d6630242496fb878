"""Make the tables and curves of README.md and docs/ anew from the committed JSON of `benchmarks/results`.

    python -m benchmarks.pages

Each table lies in its page between ``<!-- table: NAME -->`` and ``<!-- end -->``. A test holds pages and curves to the
JSON.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from benchmarks import performance, studies
from benchmarks.markdown import ROOT
from benchmarks.study_curves import PICTURES
from cdga_sdk.atomic import write_text

PAGES: Final[tuple[Path, ...]] = (ROOT / "README.md", ROOT / "docs/performance.md", ROOT / "docs/results.md")
TABLES: Final[Mapping[str, Callable[[], str]]] = {**performance.TABLES, **studies.TABLES}
_TABLE: Final = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    """Write the pages and pictures anew."""
    for page in PAGES:
        write_text(page, rendered(page.read_text(encoding="utf-8")))
    for place, draw in PICTURES.items():
        write_text(ROOT / place, draw())


def rendered(page: str) -> str:
    """The page with every table made from its JSON."""
    return _TABLE.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n\n{found[3]}", page)


if __name__ == "__main__":
    main()
