"""Which runtime runs a bundle."""

from __future__ import annotations

from typing import Final, Literal, get_args

from cdga_sdk.backends.base import Backend
from cdga_sdk.errors import MissingExtraError, ResourceError, UsageError

__all__ = ["BACKENDS", "DEVICES", "ON_INCOMPATIBLE", "open_backend"]

BACKENDS: Final = ("auto", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx")
DEVICES: Final = ("auto", "cpu", "cuda")
OnIncompatible = Literal["rebuild", "fallback", "error"]
ON_INCOMPATIBLE: Final[tuple[OnIncompatible, ...]] = get_args(OnIncompatible)


def open_backend(
    model_bytes: bytes,
    *,
    precision: str = "fp32",
    backend: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    on_incompatible: str = "rebuild",
) -> Backend:
    """Open the runtime called ``backend`` for a bundle's graph.

    ``auto`` takes TensorRT where an engine of this very graph for this GPU is kept already (it builds none: that takes
    minutes), else ONNX Runtime on CUDA where a driver is present, else OpenVINO where it is installed, else ONNX
    Runtime on the CPU. All of them compute as the graph is typed, and with float32 the choice changes the speed and not
    the labels. With 8 bits it does, since runtimes round differently: there ``auto`` passes OpenVINO by, for the gate
    of an int8 graph was ONNX Runtime's.

    Args:
        model_bytes: The ONNX file, verified by `Bundle.open`.
        precision: Of that graph, for the backend's name.
        backend: One of `BACKENDS`.
        device: One of `DEVICES`.
        threads: CPU threads of the runtime; by default every CPU that this process may use.
        on_incompatible: What TensorRT does when no kept engine fits, one of `ON_INCOMPATIBLE`: build it, let ``auto``
            choose another runtime, or refuse.

    Raises:
        UsageError: No backend, device or ``on_incompatible`` of that name.
        MissingExtraError: The runtime asked for is not installed.
        ResourceError: The device asked for cannot be had.
        ModelError: The runtime refuses the graph.
    """
    if backend not in BACKENDS:
        raise UsageError(f"unknown backend '{backend}'", fix=f"use one of {', '.join(BACKENDS)}")
    if device not in DEVICES:
        raise UsageError(f"unknown device '{device}'", fix=f"use one of {', '.join(DEVICES)}")
    if backend == "openvino" and device == "cuda":
        raise UsageError("OpenVINO has no CUDA device", fix="use --backend onnxruntime")
    if on_incompatible not in ON_INCOMPATIBLE:
        raise UsageError(f"unknown on-incompatible '{on_incompatible}'", fix=f"use one of {', '.join(ON_INCOMPATIBLE)}")
    if backend.startswith("tensorrt"):
        if device == "cpu":
            raise UsageError("TensorRT has no CPU device", fix="use --backend onnxruntime")
        opened = _tensorrt(model_bytes, backend, precision, on_incompatible)
    else:
        opened = _kept_tensorrt(model_bytes) if (backend, device) in {("auto", "auto"), ("auto", "cuda")} else None
    return opened or _without_tensorrt(model_bytes, precision, backend, device, threads)


def _tensorrt(model_bytes: bytes, product: str, precision: str, on_incompatible: OnIncompatible) -> Backend | None:
    from cdga_sdk.backends.engine_cache import tell_on_stderr
    from cdga_sdk.backends.tensorrt_engine import open_tensorrt

    return open_tensorrt(
        model_bytes, product=product, precision=precision, on_incompatible=on_incompatible, say=tell_on_stderr
    )


def _kept_tensorrt(model_bytes: bytes) -> Backend | None:
    from cdga_sdk.backends.tensorrt_engine import open_kept

    return open_kept(model_bytes)


def _without_tensorrt(model_bytes: bytes, precision: str, backend: str, device: str, threads: int | None) -> Backend:
    from cdga_sdk.backends.onnx_runtime import OnnxRuntimeBackend, cuda_driver_present

    wants_cuda = device == "cuda" or (device == "auto" and backend != "openvino" and cuda_driver_present())
    if wants_cuda:
        try:
            return OnnxRuntimeBackend(model_bytes, device="cuda", threads=threads, precision=precision)
        except ResourceError:  # a driver, but not the CUDA libraries that this runtime wants
            if device == "cuda":
                raise
    if backend == "onnxruntime" or (backend == "auto" and precision.startswith("int8")):
        return OnnxRuntimeBackend(model_bytes, device="cpu", threads=threads, precision=precision)
    try:
        from cdga_sdk.backends.openvino_cpu import OpenVinoBackend
    except MissingExtraError:
        if backend == "openvino":
            raise
        return OnnxRuntimeBackend(model_bytes, device="cpu", threads=threads, precision=precision)
    return OpenVinoBackend(model_bytes, threads=threads, precision=precision)
