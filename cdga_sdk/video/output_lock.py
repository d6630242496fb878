"""Keeps two runs from writing at one place: the operating system's advisory lock on a file there.

The lock goes with the process that holds it, however that ends. Its file is taken away with it, but for a ``kill -9``;
one that was left behind locks nothing.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from cdga_sdk.errors import UsageError

__all__ = ["alone_at"]

if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


_HELD: Final = frozenset({errno.EAGAIN, errno.EACCES, errno.EDEADLK})
_OPEN: Final = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)


@contextmanager
def alone_at(place: Path) -> Iterator[None]:
    """Within, no other run, of this process or another, is alone at ``place``.

    Where the lock's file cannot be made, or the file system has no locks, it goes on without.

    Args:
        place: A folder, or a file that there may not be yet.

    Raises:
        UsageError: Another run is there.
    """
    file = _lock_file(place)
    descriptor = _locked(file, place)
    try:
        yield
    finally:
        if descriptor is not None:
            _let_go(file, descriptor)


def _lock_file(place: Path) -> Path:
    # Names that differ in the case of their suffix grow as one file: see `PartialVideo`.
    return place / ".cdga.lock" if place.is_dir() else place.with_name(f".{place.stem}{place.suffix.lower()}.lock")


def _locked(file: Path, place: Path) -> int | None:
    while True:
        try:
            descriptor = os.open(file, _OPEN, 0o644)
        except OSError:  # whether anything can be written here is for those to say who do
            return None
        try:
            _lock(descriptor)
            if _is_named(descriptor, file):
                return descriptor
        except OSError as error:
            if error.errno in _HELD:
                os.close(descriptor)
                raise UsageError(
                    "another process writes here", where=place, fix="wait for it, or choose another output"
                ) from error
            _let_go(file, descriptor)  # no locks: nobody holds it
            return None
        except BaseException:  # a signal
            os.close(descriptor)
            raise
        os.close(descriptor)  # its last holder took it away in between


def _is_named(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.lstat())
    except FileNotFoundError:
        return False


def _let_go(file: Path, descriptor: int) -> None:
    # While it is held, so that nobody can hold what has no name; where files that are open stay, after that.
    with suppress(OSError):
        file.unlink()
    os.close(descriptor)
    if sys.platform == "win32":
        with suppress(OSError):
            file.unlink()
