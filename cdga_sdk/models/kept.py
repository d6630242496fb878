"""A published model as a bundle in the user's cache: fetched and converted once, by one process, then only opened.

::

    <cache>/models/efficientvit_seg_b0_cityscapes.pt               the authors' file
    <cache>/models/efficientvit_b0_cityscapes-923d6fdd-1.cdga      made of it; the start of its hash, and `REVISION`

``CDGA_MODELS`` may name a folder that is looked into first: for the authors' file, or for a bundle NAME.cdga, of any
size and with any precisions. Nothing that lies there or in the cache is removed but a bundle that is made anew.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from cdga_sdk.atomic import error_from_os, write_bytes
from cdga_sdk.bundle import Bundle
from cdga_sdk.errors import InputError, IntegrityError, MissingExtraError, ModelError, ResourceError, UsageError
from cdga_sdk.models.catalogue import REVISION, NamedModel
from cdga_sdk.models.convert import convert
from cdga_sdk.models.download import downloaded, refuse_other_bytes
from cdga_sdk.progress import tell_on_stderr
from cdga_sdk.user_cache import OTHER_CACHE, user_cache

__all__ = ["bundle_at_hand", "kept_bundle", "models_folder"]

_LOCK_S: Final = 1500.0  # more than fetching and converting take at most
# Looked for before anything is fetched, and without importing them, which takes seconds.
_NEEDED: Final = ("torch", "torchvision", "timm", "safetensors", "yaml", "onnx", "filelock")

Say = Callable[[str], None]


def models_folder() -> Path:
    """Where models are kept; it may not exist yet."""
    return user_cache() / "models"


def bundle_at_hand(model: NamedModel) -> Bundle | None:
    """A model's bundle, verified, where it need not be made: the user's own, or the one in the cache.

    Raises:
        UsageError: ``CDGA_MODELS`` names no folder, or one that cannot be read.
        ModelError: The user's own bundle of that name is damaged, or is not this model.
    """
    own = _own(f"{model.name}.cdga")
    if own is None:
        return _cached(model)
    bundle = Bundle.open(own)
    found = bundle.manifest.provenance.weights_sha256
    if found != model.weights_sha256:
        raise ModelError(
            f"holds other weights than {model.name}: {found[:8]}, wanted {model.weights_sha256[:8]}",
            where=own,
            fix="give it another name, and its path as the model",
        )
    return bundle


def kept_bundle(model: NamedModel, *, offline: bool, say: Say = tell_on_stderr, lock_s: float = _LOCK_S) -> Path:
    """The folder of a model's bundle, which is made if it is not there, no longer readable, or made otherwise.

    Args:
        model: Of the catalogue.
        offline: Never ask the network.
        say: Takes a line before anything that takes long.
        lock_s: Seconds to wait for another process that makes it.

    Raises:
        MissingExtraError: It has to be converted, and what that needs is not installed.
        InputError: The file is not here, and is not to be fetched or cannot be.
        IntegrityError: The file is another one.
        ModelError: The user's own bundle of that name is another model, or nothing can be made of the file.
        ResourceError: The disk is full, or another process or the conversion does not come to an end.
        UsageError: The cache cannot be written to.
    """
    if bundle := bundle_at_hand(model):
        return bundle.path
    _refuse_without_export(model)
    place = _cache_place(model)
    with _alone(place, lock_s, say):
        if _cached(model) is None:
            weights = _weights(model, offline=offline, say=say)
            say(f"{model.name}: converting it, once; kept in {place}")
            convert(model, weights, place)
    return place


def _own(name: str) -> Path | None:
    """What the user's own folder of models, where ``CDGA_MODELS`` names one, holds under this name."""
    stated = os.environ.get("CDGA_MODELS")
    if not stated:
        return None
    try:
        if not Path(stated).is_dir():
            raise UsageError("CDGA_MODELS names no folder", where=stated, fix="unset it, or make the folder")
        place = Path(stated, name)
        return place if place.exists() else None
    except OSError as error:
        what = f"CDGA_MODELS names a folder that cannot be read ({error.strerror})"
        raise UsageError(what, where=stated, fix="unset it, or name another") from error


def _cache_place(model: NamedModel) -> Path:
    return models_folder() / f"{model.name}-{model.sha256[:8]}-{REVISION}.cdga"


def _cached(model: NamedModel) -> Bundle | None:
    """The bundle in the cache, where there is one that this version reads and would make."""
    place = _cache_place(model)
    if not os.path.exists(place):  # noqa: PTH110 - false too where nobody may look
        return None
    try:
        bundle = Bundle.open(place)
    except ModelError:  # damaged, or of another version
        return None
    return bundle if model.is_described_by(bundle.manifest) else None


def _refuse_without_export(model: NamedModel) -> None:
    missing = [library for library in _NEEDED if not _is_installed(library)]
    if missing:
        error = MissingExtraError(missing[0], "export")
        raise error.told_after(f"{model.name} is converted once, here or on another machine", None)


def _is_installed(library: str) -> bool:
    try:
        return find_spec(library) is not None
    except (ImportError, ValueError):  # a module that something else put there has no spec
        return False


def _weights(model: NamedModel, *, offline: bool, say: Say) -> bytes:
    """The authors' file, verified."""
    if own := _own(model.file):
        return _verified(own, model)
    kept = models_folder() / model.file
    if kept.exists():
        try:
            return _verified(kept, model)
        except IntegrityError:
            if offline:
                raise
            say(f"{kept}: not the file that was expected; left as it is")
    if offline:
        what = f"{model.name} is not here, and the network is not to be used; its file is {model.url}"
        raise InputError(what, where=kept, fix=_fix(model))
    say(f"{model.name}: fetching {model.num_bytes / 1e6:.1f} MB from {model.url}")
    data = downloaded(model.url, num_bytes=model.num_bytes, sha256=model.sha256, fix=_fix(model))
    if not kept.exists():
        write_bytes(kept, data)
    return data


def _verified(path: Path, model: NamedModel) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read ({error.strerror})", where=path) from error
    refuse_other_bytes(data, num_bytes=model.num_bytes, sha256=model.sha256, where=path, fix=_fix(model))
    return data


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
        raise error_from_os(error, place, fix=OTHER_CACHE) from error
    try:
        yield
    finally:
        lock.release()
