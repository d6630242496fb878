"""The GPU: what it is, memory on both sides of the bus, and one queue of work."""

from __future__ import annotations

import ctypes
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from cdga_sdk.errors import ResourceError
from cdga_sdk.preprocess import UInt8Array

__all__ = ["GpuFacts", "PinnedBuffer", "Stream", "driver_version", "gpu_facts"]

_INSTALL = "pip install 'cdga-sdk[trt]'"


@dataclass(frozen=True, kw_only=True)
class GpuFacts:
    """What an engine depends on.

    Attributes:
        name: ``"NVIDIA GeForce RTX 4090"``.
        sm: Compute capability without the point, ``"89"``.
        driver: Version of the driver, ``"580.65.06"``.
    """

    name: str
    sm: str
    driver: str


def gpu_facts() -> GpuFacts:
    """The first GPU that this process may use.

    Raises:
        ResourceError: No library for CUDA, no driver or no GPU.
    """
    runtime = _runtime()
    _call(runtime.cudaGetDeviceCount(), "no CUDA GPU can be used here")
    (found,) = _call(runtime.cudaGetDeviceProperties(0), "the GPU cannot be asked what it is")
    name = found.name.decode(errors="replace").strip("\0")
    return GpuFacts(name=name, sm=f"{found.major}{found.minor}", driver=driver_version())


def driver_version() -> str:
    """Version of the NVIDIA driver, or ``unknown`` where its management library is not installed (Jetson)."""
    try:
        nvml = ctypes.CDLL("nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
    except OSError:
        return "unknown"
    text = ctypes.create_string_buffer(96)
    if nvml.nvmlInit_v2() != 0:
        return "unknown"
    failed = nvml.nvmlSystemGetDriverVersion(text, len(text)) != 0
    nvml.nvmlShutdown()
    return "unknown" if failed else text.value.decode(errors="replace")


class Stream:
    """A queue of work on the GPU; what is put in runs in order.

    Raises:
        ResourceError: The GPU refuses, here and in every method.
    """

    def __init__(self, held: ExitStack) -> None:
        self._runtime = _runtime()
        (self._stream,) = _call(self._runtime.cudaStreamCreate(), "the GPU gives no stream")
        held.callback(self._runtime.cudaStreamDestroy, self._stream)

    @property
    def handle(self) -> int:
        """The pointer that TensorRT takes."""
        return int(self._stream)

    def upload(self, buffer: PinnedBuffer, num_bytes: int) -> None:
        """Queue a copy of the first bytes from the host to the GPU."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._copy(buffer.device, buffer.host_address, num_bytes, kind)

    def download(self, buffer: PinnedBuffer, num_bytes: int) -> None:
        """Queue a copy of the first bytes from the GPU to the host."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._copy(buffer.host_address, buffer.device, num_bytes, kind)

    def wait(self) -> None:
        """Return when all that was queued is done."""
        _call(self._runtime.cudaStreamSynchronize(self._stream), "the GPU failed")

    def _copy(self, to: int, source: int, num_bytes: int, kind: object) -> None:
        _call(self._runtime.cudaMemcpyAsync(to, source, num_bytes, kind, self._stream), "the GPU refuses a copy")


class PinnedBuffer:
    """As many bytes on the GPU as in page-locked memory of the host, which alone is copied without a detour.

    Attributes:
        device: Address on the GPU.
        host_address: Address on the host.
        host: The host's bytes, (num_bytes,) uint8.

    Raises:
        ResourceError: One of the two memories ran out.
    """

    def __init__(self, num_bytes: int, held: ExitStack) -> None:
        runtime = _runtime()
        (device,) = _call(runtime.cudaMalloc(num_bytes), "no memory left on the GPU")
        held.callback(runtime.cudaFree, device)
        (host,) = _call(runtime.cudaMallocHost(num_bytes), "no page-locked memory left")
        held.callback(runtime.cudaFreeHost, host)
        self.device, self.host_address = int(device), int(host)
        self.host: UInt8Array = np.ctypeslib.as_array((ctypes.c_uint8 * num_bytes).from_address(self.host_address))


def _runtime() -> Any:
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise ResourceError("TensorRT needs 'cuda-bindings', which is not installed", fix=_INSTALL) from error
    return runtime


def _call(answer: tuple[Any, ...], what: str) -> tuple[Any, ...]:
    """The values of a CUDA call that succeeded."""
    status, *values = answer
    if int(status) != 0:
        runtime = _runtime()
        text = runtime.cudaGetErrorString(status)[1].decode(errors="replace")
        raise ResourceError(f"{what} ({text})", fix="see whether nvidia-smi shows a GPU and its driver here")
    return tuple(values)
