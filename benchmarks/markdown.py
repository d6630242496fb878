"""What every page of figures is made with: the committed results, and tables of Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

__all__ = ["ROOT", "results", "table"]

ROOT: Final = Path(__file__).parents[1]


def results(name: str) -> Any:
    """``benchmarks/results/NAME.json``."""
    return json.loads((ROOT / "benchmarks/results" / f"{name}.json").read_text(encoding="utf-8"))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column to the left, all others to the right."""
    alignment = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, alignment, *rows))
