"""The contract that every runtime keeps, and the choice between them.

Shape legend: N frames, H and W the network's input size.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol

from cdga_sdk.errors import MissingExtraError, ModelError, ResourceError, UsageError
from cdga_sdk.preprocess import UInt8Array

__all__ = ["BACKENDS", "Backend", "open_backend", "refuse_foreign_graph"]

BACKENDS: Final = ("auto", "onnxruntime", "openvino")
DEVICES: Final = ("auto", "cpu", "cuda")


class Backend(Protocol):
    """Runs a bundle's graph.

    Attributes:
        name: Runtime, device and arithmetic, for people: ``"onnxruntime cpu fp32"``.
    """

    name: str

    def infer(self, frames_NHWC: UInt8Array) -> tuple[UInt8Array, UInt8Array]:
        """Segment (N, H, W, 3) uint8 RGB frames of the network's size.

        Returns:
            mask (N, H, W) uint8 train ids and conf (N, H, W) uint8, probability of the class times 255. Both are
            the caller's to keep: no later call writes into them.
        """
        ...

    def close(self) -> None:
        """Free what the runtime holds. Closing twice is harmless."""
        ...


def refuse_foreign_graph(inputs: Iterable[str], outputs: Iterable[str]) -> None:
    """Hold the names that a loaded graph has against those of a bundle's graph.

    Raises:
        ModelError: They differ.
    """
    found_in, found_out = ", ".join(inputs), ", ".join(outputs)
    if (found_in, found_out) != ("frame", "mask, conf"):
        raise ModelError(
            f"the graph has {found_in} in and {found_out} out, wanted frame in, mask and conf out",
            fix="export it again",
        )


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
