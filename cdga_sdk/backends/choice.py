"""Which runtime runs a bundle."""

from __future__ import annotations

from typing import Final

from cdga_sdk.backends.base import Backend
from cdga_sdk.errors import MissingExtraError, ResourceError, UsageError

__all__ = ["BACKENDS", "DEVICES", "open_backend"]

BACKENDS: Final = ("auto", "onnxruntime", "openvino")
DEVICES: Final = ("auto", "cpu", "cuda")


def open_backend(
    model_bytes: bytes, *, backend: str = "auto", device: str = "auto", threads: int | None = None
) -> Backend:
    """Open the runtime called ``backend`` for a bundle's graph.

    ``auto`` takes ONNX Runtime on CUDA where a driver is present, else OpenVINO where it is installed, else ONNX
    Runtime on the CPU. All of them compute in fp32 here, so the choice changes the speed and not the labels.

    Args:
        model_bytes: The ONNX file, verified by `Bundle.open`.
        backend: One of `BACKENDS`.
        device: One of `DEVICES`.
        threads: CPU threads of the runtime; by default every CPU that this process may use.

    Raises:
        UsageError: No backend or device of that name.
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
    from cdga_sdk.backends.onnx_runtime import OnnxRuntimeBackend, cuda_driver_present

    wants_cuda = device == "cuda" or (device == "auto" and backend != "openvino" and cuda_driver_present())
    if wants_cuda:
        try:
            return OnnxRuntimeBackend(model_bytes, device="cuda", threads=threads)
        except ResourceError:  # a driver, but not the CUDA libraries that this runtime wants
            if device == "cuda":
                raise
    if backend == "onnxruntime":
        return OnnxRuntimeBackend(model_bytes, device="cpu", threads=threads)
    try:
        from cdga_sdk.backends.openvino_cpu import OpenVinoBackend
    except MissingExtraError:
        if backend == "openvino":
            raise
        return OnnxRuntimeBackend(model_bytes, device="cpu", threads=threads)
    return OpenVinoBackend(model_bytes, threads=threads)
