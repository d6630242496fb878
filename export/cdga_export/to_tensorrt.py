"""TensorRT engines of a finished bundle: into the cache for the GPU at hand, or beside the bundle ahead of time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import typer

from cdga_sdk.backends.engine_cache import (
    EngineCache,
    Sidecar,
    cache_folder,
    sidecar_path,
    write_engine,
)
from cdga_sdk.backends.tensorrt_build import (
    BuildFlags,
    build_plan,
    graph_precision,
    import_product,
    key_ahead_of_time,
    key_for_this_gpu,
    parse_batch,
    supported_sms,
)
from cdga_sdk.bundle import Bundle
from cdga_sdk.errors import CdgaError, ResourceError, UsageError
from cdga_sdk.progress import tell_on_stderr

__all__ = [
    "BuiltEngine",
    "EngineRequest",
    "build_engines",
    "engine_path",
    "engine_request",
    "require_libraries",
    "run_engines",
]

USUAL_SMS: Final = ("86", "89", "120")
"""GeForce RTX 30, 40 and 50. SM75 is left out: TensorRT for RTX multiplies no float32 matrices there."""


@dataclass(frozen=True, kw_only=True)
class EngineRequest:
    """What to build.

    Attributes:
        trt: Build with TensorRT for the GPU at hand, into the engine cache.
        rtx_sms: Build with TensorRT for RTX for these compute capabilities, into files beside the bundle.
        flags: How to build.
        timing_cache: File of measured kernel times, for TensorRT.
        overwrite: Replace engines that lie beside the bundle.
    """

    trt: bool
    rtx_sms: tuple[str, ...]
    flags: BuildFlags
    timing_cache: Path | None = None
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class BuiltEngine:
    """An engine that is there now."""

    path: Path
    sidecar: Sidecar


def engine_request(
    output: Path | None,
    *,
    trt: bool,
    trt_rtx: bool,
    sm: str | None = None,
    batch: str | None = None,
    workspace: float | None = None,
    hw_compat: str | None = None,
    version_compatible: bool = False,
    timing_cache: Path | None = None,
    overwrite: bool = False,
) -> EngineRequest | None:
    """From words on the command line to what to build; None when no engine is wanted.

    Called before the export, which takes long, so that nothing here is found wrong after it.

    Raises:
        UsageError: Flags that are wrong or do not go together, or an engine that would be replaced unasked.
    """
    only_trt = {
        "--hw-compat": hw_compat is not None,
        "--version-compatible": version_compatible,
        "--timing-cache": timing_cache is not None,
    }
    either = {"--batch": batch is not None, "--workspace": workspace is not None}
    _refuse_unless(trt, only_trt, "--trt")
    _refuse_unless(trt_rtx, {"--sm": sm is not None}, "--trt-rtx")
    _refuse_unless(trt or trt_rtx, either, "--trt or --trt-rtx")
    if not (trt or trt_rtx):
        return None
    request = EngineRequest(
        trt=trt,
        rtx_sms=_parse_sms(sm) if trt_rtx else (),
        flags=BuildFlags(
            batch=parse_batch(batch or "1"),
            workspace_gib=workspace,
            hw_compat=hw_compat or "none",
            version_compatible=version_compatible,
        ),
        timing_cache=timing_cache,
        overwrite=overwrite,
    )
    if output is not None:
        _refuse_existing(output, request)
    return request


def require_libraries(request: EngineRequest) -> None:
    """Load what the engines are built with, before an export that takes long; a missing GPU is found after it.

    Raises:
        ResourceError: A library is not installed, or cannot be loaded.
    """
    for product, is_wanted in (("tensorrt", request.trt), ("tensorrt_rtx", bool(request.rtx_sms))):
        if is_wanted:
            import_product(product)


def build_engines(
    bundle: Bundle, request: EngineRequest, *, precision: str | None = None, say: Callable[[str], None] = tell_on_stderr
) -> list[BuiltEngine]:
    """Build the engines that were asked for, from the very graph bytes that the bundle was verified with.

    Args:
        bundle: Finished and verified; it is not changed.
        request: What to build.
        precision: Which of the bundle's graphs; by default `graph_precision`'s choice.
        say: Takes a line before each build.

    Returns:
        Those ahead of time first, since they need no GPU.

    Raises:
        ResourceError: The library, the GPU, memory or disk is missing. The bundle is complete all the same.
        ModelError: TensorRT refuses the graph.
        UsageError: An engine is there already, or the bundle has no such precision.
    """
    _refuse_existing(bundle.path, request)
    precision = precision or graph_precision(bundle.graphs)
    graph = bundle.graph(precision)
    built = [_ahead_of_time(bundle.path, graph, precision, sm, request, say) for sm in request.rtx_sms]
    if request.trt:
        built.append(_for_this_gpu(graph, precision, request, say))
    return built


def run_engines(bundle: Bundle, request: EngineRequest, *, quiet: bool) -> list[BuiltEngine]:
    """`build_engines`, and a line for each engine. Raises as that does, and says that the bundle is complete."""
    try:
        built = build_engines(bundle, request, say=(lambda line: None) if quiet else tell_on_stderr)
    except CdgaError as error:
        raise error.told_after("the bundle is complete, an engine is not", bundle.path) from error
    for engine in built if not quiet else ():
        made = engine.sidecar
        typer.echo(
            f"{engine.path}: {made.precision}, {made.engine_bytes / 1e6:.1f} MB, built in {made.build_s:.1f} s",
            err=True,
        )
    return built


def engine_path(bundle: Path, sm: str) -> Path:
    """Where an engine built ahead of time goes: ``model.sm89.engine`` beside ``model.cdga``."""
    return bundle.parent / f"{bundle.stem}.sm{sm}.engine"


def _ahead_of_time(
    bundle: Path, graph: bytes, precision: str, sm: str, request: EngineRequest, say: Callable[[str], None]
) -> BuiltEngine:
    path = engine_path(bundle, sm)
    flags = BuildFlags(batch=request.flags.batch, workspace_gib=request.flags.workspace_gib)
    key = key_ahead_of_time(_sha256(graph), precision=precision, sm=sm, flags=flags)
    say(f"building {path.name} with TensorRT for RTX {key.version}")
    return BuiltEngine(path=path, sidecar=write_engine(path, key, partial(build_plan, graph, key)).sidecar)


def _for_this_gpu(graph: bytes, precision: str, request: EngineRequest, say: Callable[[str], None]) -> BuiltEngine:
    key = key_for_this_gpu(_sha256(graph), precision=precision, product="tensorrt", flags=request.flags)
    cache = EngineCache(cache_folder())
    build = partial(build_plan, graph, key, timing_cache=request.timing_cache, say=say)
    engine = cache.obtain(key, build, say=say)
    assert engine is not None  # only a fallback gives None
    return BuiltEngine(path=cache.path_of(key), sidecar=engine.sidecar)


def _parse_sms(text: str | None) -> tuple[str, ...]:
    if text is None:
        return USUAL_SMS
    sms = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    if not all(sm.isdecimal() and sm.isascii() for sm in sms):
        raise UsageError(f"sm is '{text}', wanted compute capabilities without the point", fix="e.g. --sm 89,120")
    try:
        known = supported_sms()
    except ResourceError:  # not installed, which `require_libraries` says
        return sms
    if unknown := [sm for sm in sms if sm not in known]:
        raise UsageError(
            f"TensorRT for RTX builds nothing for SM {', '.join(unknown)}", fix=f"use some of {', '.join(known)}"
        )
    return sms


def _refuse_unless(wanted: bool, given: dict[str, bool], flag: str) -> None:
    if not wanted and (lonely := [name for name, is_given in given.items() if is_given]):
        raise UsageError(f"{', '.join(lonely)} goes with {flag}")


def _refuse_existing(bundle: Path, request: EngineRequest) -> None:
    for engine in (engine_path(bundle, sm) for sm in request.rtx_sms):
        for path in (engine, sidecar_path(engine)):
            if path.exists() and not request.overwrite:
                raise UsageError(
                    "already exists", where=path, fix="choose another -o, or pass --exist-ok to replace it"
                )


def _sha256(graph: bytes) -> str:
    return hashlib.sha256(graph).hexdigest()
