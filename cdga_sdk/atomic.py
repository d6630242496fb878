"""Files that are either complete under their final name or not there at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cdga_sdk.errors import CdgaError, ResourceError, UsageError

__all__ = [
    "atomic_folder",
    "check_folder_name",
    "error_from_os",
    "new_run_folder",
    "sync_folder",
    "write_bytes",
    "write_text",
]

_OUT_OF_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def error_from_os(error: OSError, path: Path) -> CdgaError:
    """The user's error for a failed write: ResourceError when the disk is full, else UsageError."""
    reason = error.strerror or str(error)
    if error.errno in _OUT_OF_SPACE:
        return ResourceError(f"cannot write ({reason})", where=path, fix="free some space or choose another folder")
    return UsageError(f"cannot write ({reason})", where=path, fix="choose another place for the output")


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
        ResourceError: The disk is full; an older file at ``path`` is untouched.
        UsageError: The place cannot be written to.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.")
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
        temporary = None
    except OSError as error:
        raise error_from_os(error, path) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
    if durable:
        sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """``write_bytes`` for UTF-8 text."""
    write_bytes(path, text.encode())


@contextmanager
def atomic_folder(final: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Fill the folder that is yielded; on a clean exit it takes the name ``final``.

    On an exception everything written is removed and an older ``final`` is untouched.

    Raises:
        UsageError: ``final`` exists and ``overwrite`` is off, or its place cannot be written to.
        ResourceError: The disk is full.
    """
    if final.exists() and not overwrite:
        raise UsageError("already exists", where=final, fix="choose another name, or pass --exist-ok to replace it")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name[:40]}."))
    except OSError as error:
        raise error_from_os(error, final) from error
    try:
        yield temporary
        temporary.chmod(0o755)
        _take_place(temporary, final)
    except OSError as error:
        raise error_from_os(error, final) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_folder(final.parent)


def _take_place(temporary: Path, final: Path) -> None:
    if not final.exists():
        temporary.rename(final)
        return
    # A name of this process alone, so that what a killed one left is not in the way.
    old = temporary.with_name(f"{temporary.name}.old")
    final.rename(old)
    try:
        temporary.rename(final)
    except BaseException:  # Ctrl-C too
        if not final.exists():
            old.rename(final)
        raise
    shutil.rmtree(old, ignore_errors=True) if old.is_dir() else old.unlink()


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
