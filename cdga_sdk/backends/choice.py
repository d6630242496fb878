"""Which runtime runs a bundle, and why: one walk over the candidates, the fastest first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypedDict, Unpack, get_args

from cdga_sdk.backends.base import Backend, OnIncompatible
from cdga_sdk.errors import MissingExtraError, ResourceError, UsageError, one_line
from cdga_sdk.progress import tell_on_stderr

__all__ = [
    "BACKENDS",
    "DEVICES",
    "ON_INCOMPATIBLE",
    "Candidate",
    "Choice",
    "RuntimeOptions",
    "choose_backend",
    "open_backend",
]

BACKENDS: Final = ("auto", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx")
DEVICES: Final = ("auto", "cpu", "cuda")
ON_INCOMPATIBLE: Final[tuple[OnIncompatible, ...]] = get_args(OnIncompatible)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A runtime that could have been taken.

    Attributes:
        name: Runtime and device: ``"openvino cpu"``.
        taken: Whether it runs the graph.
        reason: Why, or why not, in one line.
    """

    name: str
    taken: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class Choice:
    """An open runtime, and the walk that led to it: every candidate in order, exactly one of them taken."""

    backend: Backend
    walk: tuple[Candidate, ...]


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """The arguments of `choose_backend`."""

    model_bytes: bytes
    precision: str
    backend: str
    device: str
    threads: int | None
    throughput: bool
    on_incompatible: OnIncompatible
    proven_in_openvino: bool


class RuntimeOptions(TypedDict, total=False):
    """The keywords of `choose_backend` that are handed on to it."""

    backend: str
    device: str
    threads: int | None
    throughput: bool
    on_incompatible: str


def open_backend(model_bytes: bytes, *, precision: str = "fp32", **options: Unpack[RuntimeOptions]) -> Backend:
    """The runtime of `choose_backend`, without the reasons."""
    return choose_backend(model_bytes, precision=precision, **options).backend


def choose_backend(
    model_bytes: bytes,
    *,
    precision: str = "fp32",
    backend: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    throughput: bool = False,
    on_incompatible: str = "rebuild",
    proven_in_openvino: bool = False,
) -> Choice:
    """Open the runtime called ``backend`` for a bundle's graph, and tell why it is this one.

    ``auto`` takes TensorRT where an engine of this very graph for this GPU is kept already (it builds none: that takes
    minutes), else ONNX Runtime on CUDA where a driver is present, else OpenVINO where it is installed, else ONNX
    Runtime on the CPU; a library that cannot be loaded is passed by. All of them compute as the graph is typed, and
    with float32 the choice changes the speed and not the labels. With 8 bits it does, since runtimes round differently:
    there OpenVINO is passed by, unless it is asked for or the graph is proven in it.

    Args:
        model_bytes: The ONNX file, verified by `Bundle.open`.
        precision: Of that graph, for the backend's name.
        backend: One of `BACKENDS`.
        device: One of `DEVICES`.
        threads: CPU threads of the runtime, 1 or more; by default every CPU that this process may use.
        throughput: As many frames a second as can be, each of which may take longer, where the runtime knows how.
        on_incompatible: What TensorRT does when no kept engine fits, one of `ON_INCOMPATIBLE`: build it, let ``auto``
            choose another runtime, or refuse.
        proven_in_openvino: Whether an int8 graph passed its gate there too (`Bundle.is_proven_in_openvino_too`).

    Raises:
        UsageError: No backend, device or ``on_incompatible`` of that name, or fewer threads than one.
        MissingExtraError: The runtime asked for is not installed.
        ResourceError: The device asked for cannot be had.
        ModelError: The runtime refuses the graph.
    """
    _refuse_unknown(backend, device)
    if on_incompatible not in ON_INCOMPATIBLE:
        raise UsageError(f"unknown on-incompatible '{on_incompatible}'", fix=f"use one of {', '.join(ON_INCOMPATIBLE)}")
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise UsageError(f"threads is {threads!r}, wanted a whole number from 1 on", fix="leave it out for every CPU")
    if backend.startswith("tensorrt") and device == "cpu":
        raise UsageError("TensorRT has no CPU device", fix="use --backend onnxruntime")
    wanted = _Wanted(
        model_bytes=model_bytes,
        precision=precision,
        backend=backend,
        device=device,
        threads=threads,
        throughput=throughput,
        on_incompatible=on_incompatible,
        proven_in_openvino=proven_in_openvino,
    )
    opened: Backend | None = None
    walk: list[Candidate] = []
    for name, attempt in _CANDIDATES:
        found = attempt(wanted) if opened is None else "comes after the one that was taken"
        if isinstance(found, str):
            walk.append(Candidate(name=name, taken=False, reason=one_line(found)))
        else:
            opened = found
            walk.append(Candidate(name=name, taken=True, reason=_why_taken(found, backend)))
    assert opened is not None, "the last candidate opens or raises"
    return Choice(backend=opened, walk=tuple(walk))


def _refuse_unknown(backend: str, device: str) -> None:
    if backend not in BACKENDS:
        raise UsageError(f"unknown backend '{backend}'", fix=f"use one of {', '.join(BACKENDS)}")
    if device not in DEVICES:
        raise UsageError(f"unknown device '{device}'", fix=f"use one of {', '.join(DEVICES)}")
    if backend == "openvino" and device == "cuda":
        raise UsageError("OpenVINO has no CUDA device", fix="use --backend onnxruntime")


# Each opens its runtime, or tells in one line why it is passed by; what nothing may take the place of raises.


def _tensorrt(wanted: _Wanted) -> Backend | str:
    if other := _other_was_asked_for(wanted, "tensorrt", "cuda"):
        return other
    from cdga_sdk.backends.tensorrt_engine import open_kept, open_tensorrt

    if wanted.backend == "auto":
        return open_kept(wanted.model_bytes, throughput=wanted.throughput)
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        tell_on_stderr(line)

    opened = open_tensorrt(
        wanted.model_bytes,
        product=wanted.backend,
        precision=wanted.precision,
        on_incompatible=wanted.on_incompatible,
        say=say,
        throughput=wanted.throughput,
    )
    return opened or said[-1]


def _onnxruntime_cuda(wanted: _Wanted) -> Backend | str:
    if other := _other_was_asked_for(wanted, "onnxruntime", "cuda"):
        return other
    must = wanted.device == "cuda"
    try:
        from cdga_sdk.backends.onnx_runtime import OnnxRuntimeBackend, what_cuda_lacks

        lacking = "" if must else what_cuda_lacks()
    except Exception as error:  # a broken installation raises anything
        if must or wanted.backend == "onnxruntime":
            raise
        return _not_loaded(error)
    if lacking:
        return lacking
    try:
        return OnnxRuntimeBackend(wanted.model_bytes, device="cuda", threads=wanted.threads, precision=wanted.precision)
    except ResourceError as error:  # a driver, but not the CUDA libraries that this runtime wants
        if must:
            raise
        return str(error)


def _openvino(wanted: _Wanted) -> Backend | str:
    if other := _other_was_asked_for(wanted, "openvino", "cpu"):
        return other
    if wanted.backend != "openvino" and wanted.precision.startswith("int8") and not wanted.proven_in_openvino:
        return f"passed by for {wanted.precision}: not proven in OpenVINO"
    try:
        from cdga_sdk.backends.openvino_cpu import OpenVinoBackend
    except Exception as error:  # a broken installation raises anything
        if wanted.backend == "openvino":
            raise
        return _not_loaded(error)
    return OpenVinoBackend(
        wanted.model_bytes, threads=wanted.threads, throughput=wanted.throughput, precision=wanted.precision
    )


def _onnxruntime_cpu(wanted: _Wanted) -> Backend:
    from cdga_sdk.backends.onnx_runtime import OnnxRuntimeBackend

    return OnnxRuntimeBackend(wanted.model_bytes, device="cpu", threads=wanted.threads, precision=wanted.precision)


_CANDIDATES: Final[tuple[tuple[str, Callable[[_Wanted], Backend | str]], ...]] = (
    ("tensorrt cuda", _tensorrt),
    ("onnxruntime cuda", _onnxruntime_cuda),
    ("openvino cpu", _openvino),
    ("onnxruntime cpu", _onnxruntime_cpu),
)


def _why_taken(opened: Backend, backend: str) -> str:
    asked_for = opened.name.startswith(f"{backend} ")
    return f"backend '{backend}' was asked for" if asked_for else "the first in this order that runs here"


def _other_was_asked_for(wanted: _Wanted, runtime: str, device: str) -> str:
    """Why a candidate is not what the arguments name, or an empty string."""
    # Who asked for TensorRT and allows a fallback has any runtime after it.
    if not wanted.backend.startswith(("auto", "tensorrt", runtime)):
        return f"backend '{wanted.backend}' was asked for"
    return "" if wanted.device in {"auto", device} else f"device '{wanted.device}' was asked for"


def _not_loaded(error: Exception) -> str:
    """Tell a library that is not installed from one that is broken."""
    cause = error.__cause__
    if isinstance(error, MissingExtraError) and isinstance(cause, ModuleNotFoundError):
        return f"not installed: {error.fix}"
    return f"cannot be loaded ({one_line(cause or error)[:200]})"
