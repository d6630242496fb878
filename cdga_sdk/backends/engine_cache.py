"""TensorRT engines kept between runs, each for exactly the machine, the libraries and the flags it was built with.

An engine is executable code and TensorRT does not notice when it was changed, so an engine is handed out only from a
folder of the user's own, and only when its bytes, already in memory, have the hash that was written beside them.
``CDGA_CACHE`` chooses the folder; ``CDGA_CACHE_GIB`` (8 by default) bounds it: the least recently used go first.

::

    HASH.engine         the plan, as TensorRT wrote it: nothing before it, so that other tools load it too
    HASH.engine.json    what it is (`Sidecar`); written last, so that an entry is there when this file is
    HASH.lock           held by the process that builds or deletes it

HASH is that of all fields of `EngineKey`. This module knows neither TensorRT nor CUDA: who asks brings what builds.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from cdga_sdk.atomic import error_from_os, write_bytes
from cdga_sdk.backends.base import OnIncompatible
from cdga_sdk.backends.engine_eviction import entry_lock, evict, limit_bytes, mark_used
from cdga_sdk.errors import InputError, IntegrityError, ModelError, UsageError
from cdga_sdk.progress import tell_on_stderr
from cdga_sdk.user_cache import OTHER_CACHE, user_cache

__all__ = [
    "EngineCache",
    "EngineKey",
    "Sidecar",
    "VerifiedEngine",
    "cache_folder",
    "read_engine",
    "sidecar_path",
    "write_engine",
]

_WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH


class EngineKey(BaseModel):
    """All that an engine depends on; two keys that differ in any field are two engines.

    Attributes:
        onnx_sha256: Hash of the graph it was built from.
        precision: Arithmetic that is baked into that graph: fp32, fp16 or int8-trt.
        product: ``tensorrt`` or ``tensorrt_rtx``.
        version: Of that library.
        sm: Compute capability of the GPU, ``"89"`` for 8.9.
        gpu: Name of the GPU; ``any`` when built ahead of time for every GPU of that compute capability.
        driver: Version of the GPU's driver, or ``any``.
        batch: Smallest, best and largest batch: ``"1:4:8"``.
        workspace_gib: Bound on scratch memory while building; None is TensorRT's own.
        hw_compat: ``none``, ``same-cc`` or ``ampere+``.
        version_compatible: Loads in later versions of TensorRT too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    onnx_sha256: str
    precision: str
    product: str
    version: str
    sm: str
    gpu: str
    driver: str
    batch: str
    workspace_gib: float | None
    hw_compat: str
    version_compatible: bool

    @property
    def digest(self) -> str:
        """Names the entry: 32 hexadecimal digits."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:32]


class Sidecar(EngineKey):
    """``NAME.engine.json``: the key, what was built, and how long that took."""

    engine_sha256: str
    engine_bytes: int
    build_s: float

    @property
    def key(self) -> EngineKey:
        """The fields that the engine depends on."""
        return EngineKey(**{name: getattr(self, name) for name in EngineKey.model_fields})


@dataclass(frozen=True, kw_only=True)
class VerifiedEngine:
    """A plan in memory, the very bytes whose hash was checked."""

    data: bytes
    sidecar: Sidecar


@dataclass(frozen=True, kw_only=True)
class _Misfit:
    """Why there is no engine to hand out, and how long building took when it was last done."""

    why: str
    last_build_s: float | None = None


def cache_folder() -> Path:
    """Where engines are kept; it may not exist yet."""
    return user_cache() / "engines"


def sidecar_path(engine: Path) -> Path:
    """``NAME.engine.json`` for ``NAME.engine``."""
    return engine.with_name(engine.name + ".json")


def read_engine(path: Path) -> VerifiedEngine:
    """Read an engine and its sidecar, from wherever they lie, and compare the hash. Nothing of it is run.

    Raises:
        InputError: One of the two files cannot be read.
        ModelError: The sidecar is none.
        IntegrityError: The engine is not the one that the sidecar tells of.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read ({error.strerror})", where=path) from error
    try:
        sidecar = _parse_sidecar(sidecar_path(path).read_bytes())
    except OSError as error:
        raise InputError(
            f"an engine without its sidecar ({error.strerror})", where=sidecar_path(path), fix="copy both files"
        ) from error
    if sidecar is None:
        raise ModelError("not the sidecar of an engine", where=sidecar_path(path), fix="export the engine again")
    if fault := _fault_of(data, sidecar):
        raise IntegrityError(fault, where=path, fix="export the engine again; do not load this one")
    return VerifiedEngine(data=data, sidecar=sidecar)


def write_engine(path: Path, key: EngineKey, build: Callable[[], bytes]) -> VerifiedEngine:
    """Build an engine and write it with its sidecar: both, or neither.

    Raises:
        ResourceError: The disk is full.
        UsageError: The place cannot be written to.
        CdgaError: Whatever ``build`` raises.
    """
    started = time.perf_counter()
    data = build()
    sidecar = Sidecar(
        **key.model_dump(),
        engine_sha256=hashlib.sha256(data).hexdigest(),
        engine_bytes=len(data),
        build_s=round(time.perf_counter() - started, 1),
    )
    try:
        write_bytes(path, data)
        write_bytes(sidecar_path(path), (sidecar.model_dump_json(indent=1) + "\n").encode())
    except BaseException:  # Ctrl-C too
        path.unlink(missing_ok=True)
        raise
    return VerifiedEngine(data=data, sidecar=sidecar)


class EngineCache:
    """The engines in one folder, which is made, private to the user, where it is missing.

    Raises:
        UsageError: The folder belongs to somebody else, others may write into it, or it cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
            found = folder.lstat()
        except OSError as error:
            raise error_from_os(error, folder, fix=OTHER_CACHE) from error
        _refuse_public(folder, found)

    def find(self, key: EngineKey) -> VerifiedEngine | str:
        """The engine of exactly this key, or why there is none."""
        found = self._look_up(key)
        return found if isinstance(found, VerifiedEngine) else found.why

    def sidecars(self) -> list[Sidecar]:
        """Those of all entries, the newest first; unreadable ones are passed over."""
        dated = []
        for path in self.folder.glob("*.engine.json"):
            with suppress(FileNotFoundError):  # another process evicts meanwhile
                dated.append((path.lstat().st_mtime_ns, path))
        parsed = [_parse_sidecar(_read_own(path) or b"") for _, path in sorted(dated, reverse=True)]
        return [sidecar for sidecar in parsed if sidecar is not None]

    def obtain(
        self,
        key: EngineKey,
        build: Callable[[], bytes],
        *,
        on_incompatible: OnIncompatible = "rebuild",
        say: Callable[[str], None] = tell_on_stderr,
    ) -> VerifiedEngine | None:
        """The engine of this key: from the cache, or built, by one process at a time, and kept.

        Args:
            key: What is wanted.
            build: Makes the plan; takes minutes.
            on_incompatible: What to do when there is no engine that fits: ``rebuild`` builds it, ``fallback`` gives
                None, ``error`` refuses.
            say: Takes one line that tells why no kept engine fits, and what happens now; and one if others had to
                make room.

        Raises:
            ModelError: No engine fits and ``on_incompatible`` is ``error``.
            UsageError: ``CDGA_CACHE_GIB`` is no size, or the folder cannot be written to.
            ResourceError: The disk is full; nothing half written stays.
            CdgaError: Whatever ``build`` raises; nothing is kept.
        """
        found = self._look_up(key)
        if isinstance(found, VerifiedEngine):
            return found
        if on_incompatible == "error":
            raise ModelError(
                f"no TensorRT engine fits: {found.why}",
                fix="build one with cdga export --trt, or allow it to be rebuilt",
            )
        if on_incompatible == "fallback":
            say(f"no TensorRT engine fits: {found.why}; running without it")
            return None
        with self._lock(key, say):
            found = self._look_up(key)  # anew: another process may have built it while this one waited
            if isinstance(found, VerifiedEngine):
                return found
            again = found.last_build_s is not None
            say(
                f"building a TensorRT engine: {found.why}; "
                + (f"it took {found.last_build_s:.0f} s the last time" if again else "it may take minutes")
            )
            limit = limit_bytes()  # before the minutes that building takes: it may be refused
            built = self._build(key, build)
            evict(self.folder, limit, keep=key.digest, say=say)
            return built

    def _look_up(self, key: EngineKey) -> VerifiedEngine | _Misfit:
        path = self.path_of(key)
        stated = _read_own(sidecar_path(path))
        if stated is None:
            return self._nearest(key)
        sidecar = _parse_sidecar(stated)
        if sidecar is None:
            return _Misfit(why="the sidecar of the one that was kept is damaged")
        if sidecar.key != key:
            return _Misfit(why=_differences(sidecar.key, key), last_build_s=sidecar.build_s)
        data = _read_own(path)
        fault = "the one that was kept is missing" if data is None else _fault_of(data, sidecar)
        if data is None or fault:
            return _Misfit(why=fault, last_build_s=sidecar.build_s)
        mark_used(path)
        return VerifiedEngine(data=data, sidecar=sidecar)

    def _nearest(self, key: EngineKey) -> _Misfit:
        """Told by the entry for the same graph that differs least."""
        same_graph = [
            s for s in self.sidecars() if (s.onnx_sha256, s.product) == (key.onnx_sha256, key.product) and s.key != key
        ]
        if not same_graph:
            return _Misfit(why="there is none yet for this model")
        near = min(same_graph, key=lambda s: len(_differing(s.key, key)))
        return _Misfit(why=_differences(near.key, key), last_build_s=near.build_s)

    def _build(self, key: EngineKey, build: Callable[[], bytes]) -> VerifiedEngine:
        path = self.path_of(key)
        for rest in self.folder.glob(f".{key.digest}*"):  # of a process that was killed while it wrote
            rest.unlink(missing_ok=True)
        return write_engine(path, key, build)

    @contextmanager
    def _lock(self, key: EngineKey, say: Callable[[str], None]) -> Iterator[None]:
        lock = entry_lock(self.folder, key.digest)
        try:
            try:
                lock.acquire(timeout=0)
            except TimeoutError:
                say("another process is building this TensorRT engine; waiting for it")
                lock.acquire()
            except OSError as error:
                raise error_from_os(error, self.folder, fix=OTHER_CACHE) from error
            yield
        finally:
            lock.release()

    def path_of(self, key: EngineKey) -> Path:
        """Where the engine of this key lies, or would lie."""
        return self.folder / f"{key.digest}.engine"


def _refuse_public(folder: Path, found: os.stat_result) -> None:
    fix = f"give yourself a folder that only you may write to (chmod 700 {folder}), or set CDGA_CACHE to another"
    if not stat.S_ISDIR(found.st_mode):
        raise UsageError("the engine cache is a link or a file, wanted a folder", where=folder, fix=fix)
    if sys.platform == "win32":  # a profile's folders are private there, and modes mean nothing
        return
    if found.st_uid != os.getuid():
        raise UsageError(f"the engine cache belongs to user {found.st_uid}, not to you", where=folder, fix=fix)
    if found.st_mode & _WRITABLE_BY_OTHERS:
        raise UsageError("others may write into the engine cache", where=folder, fix=fix)


def _read_own(path: Path) -> bytes | None:
    """The bytes of a plain file of the user's own, else None: no link, nothing of another user."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ELOOP}:
            return None
        raise InputError(f"cannot read ({error.strerror})", where=path) from error
    with os.fdopen(descriptor, "rb") as stream:
        found = os.fstat(descriptor)
        foreign = sys.platform != "win32" and found.st_uid != os.getuid()
        return None if foreign or not stat.S_ISREG(found.st_mode) else stream.read()


def _parse_sidecar(data: bytes) -> Sidecar | None:
    try:
        return Sidecar.model_validate_json(data)
    except ValidationError:
        return None


def _fault_of(data: bytes, sidecar: Sidecar) -> str:
    """What is wrong with an engine, or an empty string."""
    if len(data) != sidecar.engine_bytes:
        return f"the engine has {len(data)} bytes, its sidecar says {sidecar.engine_bytes}"
    if hashlib.sha256(data).hexdigest() != sidecar.engine_sha256:
        return "the engine's bytes were changed since it was built"
    return ""


def _differing(old: EngineKey, new: EngineKey) -> list[str]:
    return [name for name in EngineKey.model_fields if getattr(old, name) != getattr(new, name)]


def _differences(old: EngineKey, new: EngineKey) -> str:
    return ", ".join(
        f"{name} was {getattr(old, name)} and is now {getattr(new, name)}" for name in _differing(old, new)
    )
