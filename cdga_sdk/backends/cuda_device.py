"""The GPU: what it is, memory on both sides of the bus, queues of work, and work that is kept to be queued again."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from cdga_sdk.errors import ResourceError
from cdga_sdk.preprocess import UInt8Array

__all__ = ["CaptureLostError", "GpuFacts", "Graph", "PinnedBuffer", "Stream", "driver_version", "gpu_facts"]

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


class CaptureLostError(ResourceError):
    """What was being captured is lost, and may not be another time: calls of other threads can spoil a capture."""


class Stream:
    """A queue of work on the GPU; what is put in runs in order.

    Raises:
        ResourceError: The GPU refuses, here and in every method.
    """

    def __init__(self, held: ExitStack) -> None:
        self._runtime = _runtime()
        # Such a stream neither waits for the default one nor loses a capture to what another library puts there.
        flags = self._runtime.cudaStreamNonBlocking
        (self._stream,) = _call(self._runtime.cudaStreamCreateWithFlags(flags), "the GPU gives no stream")
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

    def capture(self, queue: Callable[[], None]) -> Any:
        """A ``cudaGraph_t`` of what ``queue`` puts in, none of which runs; the caller destroys it.

        Raises:
            CaptureLostError: ``queue`` raised a ResourceError, or the GPU dropped what it captured.
            ResourceError: The GPU captures nothing.
        """
        # Of this thread alone: other threads may go on allocating memory meanwhile, which no capture allows its own.
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        try:
            _call(self._runtime.cudaStreamBeginCapture(self._stream, mode), "the GPU captures no work")
            return self._captured(queue)
        except BaseException:
            # Else the stream may run nothing ever again; where it does not capture, this is an error and does nothing.
            status, graph = self._runtime.cudaStreamEndCapture(self._stream)
            if int(status) == 0:
                self._runtime.cudaGraphDestroy(graph)
            self._runtime.cudaGetLastError()  # see `_call`
            raise

    def _captured(self, queue: Callable[[], None]) -> Any:
        try:
            queue()
            (graph,) = _call(self._runtime.cudaStreamEndCapture(self._stream), "the GPU dropped what it captured")
        except ResourceError as error:
            raise CaptureLostError(error.what, where=error.where, fix=error.fix) from error
        return graph

    def _copy(self, to: int, source: int, num_bytes: int, kind: object) -> None:
        _call(self._runtime.cudaMemcpyAsync(to, source, num_bytes, kind, self._stream), "the GPU refuses a copy")


class Graph:
    """What a function puts into a stream, kept as it was put in: `launch` queues all of it by one call.

    It is bound to the memory and to the state that the function worked with: both must outlive it unchanged.

    Args:
        stream: Where it is captured and launched; as it was before where that fails.
        queue: Called once; what it puts in is kept and does not run.

    Raises:
        CaptureLostError: See `Stream.capture`.
        ResourceError: The GPU refuses, here and in `launch`.
    """

    def __init__(self, stream: Stream, queue: Callable[[], None]) -> None:
        self._runtime, self._stream = _runtime(), stream
        captured = stream.capture(queue)
        try:
            # Of the two functions for this the one that is the same in CUDA 11, 12 and 13.
            (self._launchable,) = _call(
                self._runtime.cudaGraphInstantiateWithFlags(captured, 0), "the GPU cannot run what it captured"
            )
        finally:
            self._runtime.cudaGraphDestroy(captured)  # the launchable one has all of it

    def launch(self) -> None:
        """Queue it."""
        _call(self._runtime.cudaGraphLaunch(self._launchable, self._stream.handle), "the GPU refuses a graph")

    def close(self) -> None:
        """Free it, which must not be under way; closing twice is harmless."""
        launchable, self._launchable = self._launchable, None
        if launchable is not None:
            self._runtime.cudaGraphExecDestroy(launchable)


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
        # A precaution: it takes the failure off this thread, where TensorRT would find it and fail in its turn if it
        # shares this runtime; the bindings may well have one of their own.
        runtime.cudaGetLastError()
        raise ResourceError(f"{what} ({text})", fix="see whether nvidia-smi shows a GPU and its driver here")
    return tuple(values)
