"""Files that are either complete under their final name or not there at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from cdga_sdk.errors import CdgaError, ResourceError, UsageError

__all__ = [
    "RESOURCE_ERRNOS",
    "atomic_folder",
    "check_folder_name",
    "error_from_os",
    "new_run_folder",
    "sync_folder",
    "write_bytes",
    "write_text",
]

RESOURCE_ERRNOS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOMEM})
"""Of a failed write: the disk is full or broken, or memory ran out; with any other the place is at fault."""


def error_from_os(error: OSError, path: Path, *, fix: str = "choose another place for the output") -> CdgaError:
    """The user's error for a failed write: ResourceError for `RESOURCE_ERRNOS`, else UsageError with ``fix``."""
    reason = error.strerror or str(error)
    if error.errno in RESOURCE_ERRNOS:
        return ResourceError(f"cannot write ({reason})", where=path, fix="free some space or choose another folder")
    return UsageError(f"cannot write ({reason})", where=path, fix=fix)


def sync_folder(folder: Path) -> None:
    """Make a rename inside ``folder`` survive a power cut (where the platform can open folders)."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_bytes(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write ``data`` to ``path``: a temporary file beside it, then renamed over it.

    Args:
        path: The final name; its folder is made if missing.
        data: The whole content.
        durable: Flush to the disk before the rename, so that a power cut cannot leave an empty file. Costs
            milliseconds: off for files of which a run writes thousands.

    Raises:
        ResourceError: The disk is full or broken; an older file at ``path`` is untouched.
        UsageError: The place cannot be written to.
    """
    temporary = _name_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as stream:
            stream.write(data)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        raise error_from_os(error, path) from error
    finally:
        with suppress(OSError):  # as a rule it is gone: it has the final name
            temporary.unlink()
    if durable:
        sync_folder(path.parent)


def _name_beside(path: Path) -> Path:
    """A name that nothing has. Not by `tempfile`, whose files are the user's alone whatever the umask says."""
    return path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}")


def write_text(path: Path, text: str) -> None:
    """``write_bytes`` for UTF-8 text."""
    write_bytes(path, text.encode())


@contextmanager
def atomic_folder(final: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Fill the folder that is yielded; on a clean exit it takes the name ``final``.

    On an exception everything written is removed and an older ``final`` is untouched. All files are flushed to the disk
    before the rename, so that a power cut cannot leave empty ones; that costs up to some milliseconds for each.

    Raises:
        UsageError: ``final`` exists and ``overwrite`` is off, or its place cannot be written to.
        ResourceError: The disk is full or broken.
    """
    if os.path.lexists(final) and not overwrite:
        raise UsageError("already exists", where=final, fix="choose another name, or pass --exist-ok to replace it")
    temporary = _name_beside(final)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
    except OSError as error:
        raise error_from_os(error, final) from error
    try:
        yield temporary
        _sync_all(temporary)
        _take_place(temporary, final, overwrite=overwrite)
    except OSError as error:
        raise error_from_os(error, final) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_folder(final.parent)


def _sync_all(folder: Path) -> None:
    for place, _, names in os.walk(folder, topdown=False):
        for path in (Path(place, name) for name in names):
            if not path.is_symlink():
                _sync_file(path)
        sync_folder(Path(place))


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)  # which may be all that is allowed
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _take_place(temporary: Path, final: Path, *, overwrite: bool) -> None:
    if not (overwrite and os.path.lexists(final)):  # what took the name meanwhile is not replaced unasked
        temporary.rename(final)
        return
    # A name of this process alone, so that what a killed one left is not in the way.
    old = temporary.with_name(f"{temporary.name}.old")
    try:
        final.rename(old)
        temporary.rename(final)
    except BaseException:  # Ctrl-C too, which may come between the two
        if os.path.lexists(old) and not os.path.lexists(final):
            old.rename(final)
        raise
    finally:
        if os.path.lexists(final) and os.path.lexists(old):  # another process may have taken the name meanwhile
            _remove(old)


def _remove(old: Path) -> None:
    if not old.is_dir() or old.is_symlink():  # a link goes, what it leads to is somebody's own
        old.unlink()
        return
    for place, _, _ in os.walk(old):  # top down: a folder is opened for writing before it is gone into
        with suppress(OSError):
            Path(place).chmod(stat.S_IRWXU)
    shutil.rmtree(old, ignore_errors=True)


def check_folder_name(name: str) -> None:
    """Raise a UsageError where ``name`` is not a plain folder name."""
    if not name or name in {".", ".."} or Path(name).name != name:
        raise UsageError(
            f"'{name}' is not a plain folder name", fix="use --project for the place and --name for the name"
        )


def new_run_folder(project: Path, name: str, *, exist_ok: bool = False) -> Path:
    """Make ``project/name``, or ``project/name2``, ``name3`` ... when it is taken, and return it.

    Raises:
        UsageError: The place cannot be written to, or ``name`` is not a plain folder name.
    """
    check_folder_name(name)
    count = 1
    while True:
        folder = project / (name if count == 1 else f"{name}{count}")
        try:
            folder.mkdir(parents=True, exist_ok=exist_ok)
        except FileExistsError:
            if not folder.is_dir():
                raise UsageError("is a file, not a folder", where=folder, fix="choose another --name") from None
            count += 1
            continue
        except OSError as error:
            raise error_from_os(error, folder) from error
        return folder
