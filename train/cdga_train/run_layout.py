"""Which file of a run's folder is what. Needs no torch; the files themselves are read by `cdga_train.checkpoint`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from cdga_sdk.errors import InputError

__all__ = [
    "CANDIDATES",
    "DAMAGE",
    "LAST",
    "METRICS",
    "PREVIOUS",
    "ROUNDS",
    "SELECTION",
    "candidate_file",
    "find_checkpoint",
    "has_begun",
]

LAST: Final = "last.safetensors"
PREVIOUS: Final = "previous.safetensors"
SELECTION: Final = "selection.json"
ROUNDS: Final = ("round1", "round2")
METRICS: Final = "metrics.jsonl"
CANDIDATES: Final = "checkpoints"
DAMAGE: Final = (OSError, ValueError, KeyError, TypeError, RecursionError)
"""What reading a JSON file of a run raises where it is missing, or not as it was written."""


def candidate_file(folder: Path, iteration: int) -> Path:
    """Where a round keeps the network of an iteration, to be chosen from."""
    return folder / CANDIDATES / f"{iteration:06d}.safetensors"


def has_begun(folder: Path) -> bool:
    """Whether a run has left anything to go on from: a training state, or a line of its log."""
    return any(folder.rglob(LAST)) or any(log.stat().st_size for log in folder.rglob(METRICS))


def find_checkpoint(path: Path) -> Path:
    """``path`` itself, or the result of the run in the folder ``path``.

    That is the checkpoint chosen without labels (``selection.json``), else the last one, of the last round with one.

    Raises:
        InputError: There is none.
    """
    if not path.is_dir():
        if not path.is_file():
            raise InputError("no such checkpoint", where=path, fix="name a checkpoint or a run of cdga train")
        return path
    for folder in (*(path / name for name in reversed(ROUNDS)), path):
        if (folder / LAST).is_file():
            return _chosen(folder) or folder / LAST
    raise InputError(f"no {LAST} in this folder", where=path, fix="name a checkpoint or a run of cdga train")


def _chosen(folder: Path) -> Path | None:
    try:
        record = json.loads((folder / SELECTION).read_text(encoding="utf-8"))
        file = candidate_file(folder, int(record["iteration"]))
    except DAMAGE:
        return None
    return file if file.is_file() else None
