"""Keeps the engine cache below a bound: the engines that were used last stay.

The file system is the record: an engine's time of change is when it was last built or handed out. A process that runs
an engine has it in memory, so it goes on when the file is gone; only its next start has to build again.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cdga_sdk.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    import filelock

__all__ = ["DEFAULT_GIB", "entry_lock", "evict", "limit_bytes", "mark_used"]

DEFAULT_GIB: Final = 8.0
_GIB: Final = 2**30
# Engine, sidecar, and what a killed process left of either; not the lock, which somebody may be waiting for.
_OF_AN_ENTRY: Final = re.compile(r"\.?([0-9a-f]{32})\.engine.*")


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """All files of one key: their size together, and when the engine was last used."""

    digest: str
    files: tuple[Path, ...]
    num_bytes: int
    last_used_ns: int


def limit_bytes() -> float:
    """The bound: ``CDGA_CACHE_GIB`` GiB (0 keeps the newest engine alone, ``inf`` every one), else 8.

    Raises:
        UsageError: It is set to something else than a number from 0 on.
    """
    stated = os.environ.get("CDGA_CACHE_GIB") or str(DEFAULT_GIB)
    try:
        gib = float(stated)
    except ValueError:
        gib = math.nan
    if not gib >= 0:
        raise UsageError(
            f"CDGA_CACHE_GIB is '{stated}', wanted GiB, 0 or more", fix=f"unset it for {DEFAULT_GIB:g} GiB"
        )
    return gib * _GIB


def entry_lock(folder: Path, digest: str) -> filelock.BaseFileLock:
    """The operating system's lock of an entry, not yet taken; it goes with the process that holds it.

    Raises:
        MissingExtraError: The library for it is not installed.
    """
    try:
        import filelock
    except ImportError as error:
        raise MissingExtraError("filelock", "trt") from error
    return filelock.FileLock(folder / f"{digest}.lock")


def mark_used(engine: Path) -> None:
    """Remember that an engine is used now; a cache that cannot be written to is used all the same."""
    with suppress(OSError):
        os.utime(engine)


def evict(folder: Path, limit: float, *, keep: str, say: Callable[[str], None]) -> None:
    """Delete the engines that were not used for longest until the rest is below ``limit``; say so in one line.

    Args:
        folder: The cache.
        limit: Bytes of all engines together.
        keep: Digest of the engine that stays, even where it alone is larger.
        say: Takes the line, if there is something to tell.
    """
    entries = sorted(_entries(folder), key=lambda entry: entry.last_used_ns)
    too_much = sum(entry.num_bytes for entry in entries) - limit
    gone: list[_Entry] = []
    for entry in entries:
        if too_much <= 0:
            break
        if entry.digest != keep and _delete(folder, entry):
            gone.append(entry)
            too_much -= entry.num_bytes
    if gone:
        freed = sum(entry.num_bytes for entry in gone) / _GIB
        say(
            f"engine cache above {limit / _GIB:g} GiB (CDGA_CACHE_GIB): deleted the {len(gone)} not used for longest, "
            f"{freed:.2f} GiB"
        )


def _entries(folder: Path) -> Iterator[_Entry]:
    files: dict[str, list[tuple[Path, os.stat_result]]] = {}
    for path in folder.iterdir():
        if named := _OF_AN_ENTRY.fullmatch(path.name):
            with suppress(FileNotFoundError):  # another process evicts too
                files.setdefault(named[1], []).append((path, path.lstat()))
    for digest, found in files.items():
        yield _Entry(
            digest=digest,
            files=tuple(path for path, _ in found),
            num_bytes=sum(stat.st_size for _, stat in found),
            last_used_ns=max(stat.st_mtime_ns for _, stat in found),
        )


def _delete(folder: Path, entry: _Entry) -> bool:
    """Whether the entry is gone; one that another process builds now, or holds open on Windows, stays."""
    lock = entry_lock(folder, entry.digest)
    try:
        with lock.acquire(timeout=0):
            # The sidecar first: without it there is no entry, so nobody finds half of one.
            for path in sorted(entry.files, key=lambda path: not path.name.endswith(".json")):
                path.unlink(missing_ok=True)
    except OSError:  # filelock's Timeout is one
        return False
    return True
