"""A published model as a bundle in the user's cache: fetched and converted once, by one process, then only opened.

::

    <cache>/models/efficientvit_seg_b0_cityscapes.pt               the authors' file
    <cache>/models/efficientvit_b0_cityscapes-923d6fdd.cdga        made of it; the number is the start of its hash

``CDGA_MODELS`` may name a folder that is looked into first: for the authors' file, or for a bundle NAME.cdga.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from cdga_sdk.atomic import error_from_os, write_bytes
from cdga_sdk.backends.engine_cache import tell_on_stderr
from cdga_sdk.bundle import Bundle
from cdga_sdk.errors import InputError, IntegrityError, MissingExtraError, ModelError, ResourceError, UsageError
from cdga_sdk.models.catalogue import NamedModel
from cdga_sdk.models.download import downloaded, refuse_other_bytes
from cdga_sdk.user_cache import user_cache

__all__ = ["bundle_place", "kept_bundle", "models_folder", "own_folder"]

_LOCK_S: Final = 900.0

Say = Callable[[str], None]


def models_folder() -> Path:
    """Where models are kept; it may not exist yet."""
    return user_cache() / "models"


def own_folder() -> Path | None:
    """The user's own folder of models, where ``CDGA_MODELS`` names one.

    Raises:
        UsageError: It is no folder.
    """
    stated = os.environ.get("CDGA_MODELS")
    if not stated:
        return None
    if not Path(stated).is_dir():
        raise UsageError("CDGA_MODELS names no folder", where=stated, fix="unset it, or make the folder")
    return Path(stated)


def bundle_place(model: NamedModel) -> Path:
    """Where the bundle of a model lies, or would be made."""
    own = own_folder()
    if own is not None and (own / f"{model.name}.cdga").exists():
        return own / f"{model.name}.cdga"
    return models_folder() / f"{model.name}-{model.sha256[:8]}.cdga"


def kept_bundle(model: NamedModel, *, offline: bool, say: Say = tell_on_stderr, lock_s: float = _LOCK_S) -> Path:
    """The folder of a model's bundle, which is made if it is not there or no longer readable.

    Args:
        model: Of the catalogue.
        offline: Never ask the network.
        say: Takes a line before anything that takes long.
        lock_s: Seconds to wait for another process that makes it.

    Raises:
        MissingExtraError: It has to be converted, and what that needs is not installed.
        InputError: The file is not here, and is not to be fetched or cannot be.
        IntegrityError: The file is another one.
        ResourceError: The disk is full, or another process does not come to an end.
        UsageError: The cache cannot be written to.
    """
    place = bundle_place(model)
    if place.parent == own_folder() or _is_sound(place):
        return place
    _refuse_without_export(model)
    with _alone(place, lock_s, say):
        if not _is_sound(place):
            weights = _weights(model, offline=offline, say=say)
            say(f"{model.name}: converting it, once; kept in {place}")
            _convert(model, weights, place)
    return place


def _is_sound(place: Path) -> bool:
    """Whether a bundle is there that this version reads."""
    if not place.exists():
        return False
    try:
        Bundle.open(place)
    except ModelError:  # damaged, or of another version
        return False
    return True


def _refuse_without_export(model: NamedModel) -> None:
    """Told before anything is fetched, and without importing what takes seconds to."""
    missing = [library for library in ("torch", "timm", "onnx", "filelock") if not _is_installed(library)]
    if missing:
        error = MissingExtraError(missing[0], "export")
        raise error.told_after(f"{model.name} is converted once, here or on another machine", None)


def _is_installed(library: str) -> bool:
    try:
        return find_spec(library) is not None
    except ImportError:
        return False


def _convert(model: NamedModel, weights: Path, place: Path) -> None:
    from cdga_export.export import ExportOptions, export_weights

    export_weights(weights, model.network, model.imgsz_hw, place, ExportOptions(about=model.about, overwrite=True))


def _weights(model: NamedModel, *, offline: bool, say: Say) -> Path:
    """The authors' file, verified."""
    own = own_folder()
    if own is not None and (own / model.file).is_file():
        _refuse_other_file(own / model.file, model)
        return own / model.file
    kept = models_folder() / model.file
    if kept.is_file():
        try:
            _refuse_other_file(kept, model)
        except IntegrityError:
            kept.unlink(missing_ok=True)
            if offline:
                raise
            say(f"{kept}: not the file that was expected; removed")
        else:
            return kept
    if offline:
        what = f"{model.name} is not here, and the network is not to be used; its file is {model.url}"
        raise InputError(what, where=kept, fix=_fix(model))
    say(f"{model.name}: fetching {model.num_bytes / 1e6:.1f} MB from {model.url}")
    write_bytes(kept, downloaded(model.url, num_bytes=model.num_bytes, sha256=model.sha256, fix=_fix(model)))
    return kept


def _refuse_other_file(path: Path, model: NamedModel) -> None:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read ({error.strerror})", where=path) from error
    refuse_other_bytes(data, num_bytes=model.num_bytes, sha256=model.sha256, where=path, fix=_fix(model))


def _fix(model: NamedModel) -> str:
    """How the file gets here by hand."""
    height, width = model.imgsz_hw
    by_hand = f"cdga export --weights FILE --model {model.network} --imgsz {height},{width} -o model.cdga"
    place = models_folder() / model.file
    return f"put the file at {place}, or into a folder that CDGA_MODELS names; or convert it: {by_hand}"


@contextmanager
def _alone(place: Path, lock_s: float, say: Say) -> Iterator[None]:
    """Within, no other process makes this bundle; the lock goes with the process that holds it."""
    import filelock

    lock = filelock.FileLock(place.with_suffix(".lock"))
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except TimeoutError:
            say(f"another process is making {place.name}; waiting for it")
            lock.acquire(timeout=lock_s)
    except TimeoutError as error:
        raise ResourceError(
            f"another process has been making it for {lock_s:g} s", where=place, fix="end that process, then try again"
        ) from error
    except OSError as error:
        raise error_from_os(error, place) from error
    try:
        yield
    finally:
        lock.release()
