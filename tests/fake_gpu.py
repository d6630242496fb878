"""A GPU in the host's memory, with as much of CUDA's runtime and of TensorRT as the SDK calls, and as strict.

What is queued runs when its stream is waited for, and not before: who reads or writes too early gets the wrong bytes.
Freed memory is overwritten. A graph runs wrongly once its context was changed.
"""

# ruff: noqa: N802 - the names are CUDA's

from __future__ import annotations

import ctypes
import functools
import itertools
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from enum import Enum
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cdga_sdk.backends.engine_cache import Sidecar, VerifiedEngine

Frames = NDArray[np.uint8]
Job = Callable[[], None]
SIZE_HW = (4, 6)
FAILED = 900


def mask_of(frames_NHWC: Frames) -> Frames:
    """What the fake network gives as the mask."""
    return frames_NHWC[..., 0] % 19


def conf_of(frames_NHWC: Frames) -> Frames:
    """What the fake network gives as the confidence."""
    return 255 - frames_NHWC[..., 1]


def engine(product: str = "tensorrt") -> VerifiedEngine:
    """What the cache would hand out."""
    sidecar = Sidecar(
        onnx_sha256="ab" * 32,
        precision="fp16",
        product=product,
        version="10.0.0",
        sm="89",
        gpu="Fake",
        driver="1",
        batch="1:1:1",
        workspace_gib=None,
        hw_compat="none",
        version_compatible=False,
        engine_sha256="",
        engine_bytes=4,
        build_s=1.0,
    )
    return VerifiedEngine(data=b"plan", sidecar=sidecar)


@dataclass
class Queue:
    """A stream: jobs that wait, and the list that takes them instead while it captures."""

    waiting: list[Job] = field(default_factory=list)
    captured: list[Job] | None = None

    def put(self, job: Job) -> None:
        (self.waiting if self.captured is None else self.captured).append(job)


def driver_call(num_values: int = 0) -> Callable[[Any], Any]:
    """A function of the runtime that gives so many values: noted, and failing where the test wants it to."""

    def decorate(function: Any) -> Any:
        @functools.wraps(function)
        def called(gpu: FakeGpu, *arguments: Any) -> tuple[Any, ...]:
            if gpu.note(function.__name__):
                gpu.last_error.code = FAILED
                return (FAILED, *[None] * num_values)
            answer = function(gpu, *arguments)
            return (0, *(() if answer is None else (answer,)))

        return called

    return decorate


class FakeGpu:
    """Stands for ``cuda.bindings.runtime``, and `tensorrt` for that module.

    Attributes:
        calls: Names of all functions that were called, in order.
        fail_at: Function and the number of its call, from 1, that fails; every later one too where ``for_good``.
        during_network: Called when the network runs, with the context.
        in_graph: How a captured network runs: ``rightly``, ``another pixel``, or ``nothing``.
        max_contexts: TensorRT gives no more of them.
    """

    cudaStreamNonBlocking = 1
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice="to device", cudaMemcpyDeviceToHost="to host")
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal="of this thread")

    def __init__(self, batch: tuple[int, int] = (1, 1)) -> None:
        self.batch = batch
        self.calls: list[str] = []
        self.fail_at: dict[str, int] = {}
        self.for_good = False
        self.during_network: Callable[[Context], None] = lambda context: None
        self.in_graph = "rightly"
        self.max_contexts = 9
        self.last_error = threading.local()
        self.contexts: weakref.WeakSet[Context] = weakref.WeakSet()
        self.memory: dict[int, tuple[str, Any]] = {}
        self.streams: dict[int, Queue] = {}
        self.graphs: dict[int, list[Job]] = {}
        self.launchable: dict[int, list[Job]] = {}
        self._made: Counter[str] = Counter()
        self._handles = itertools.count(1)
        self._kept: list[Any] = []
        self._lock = threading.Lock()
        self.tensorrt = tensorrt_on(self)

    def note(self, name: str) -> bool:
        """Whether this call of a function is to fail."""
        with self._lock:
            self.calls.append(name)
            self._made[name] += 1
            made = self._made[name]
        at = self.fail_at.get(name, 0)
        return made == at or (self.for_good and 0 < at <= made)

    def counts(self, *names: str) -> list[int]:
        """How often each was called, since the test last cleared `calls`."""
        made = Counter(self.calls)
        return [made[name] for name in names]

    def leaks(self) -> dict[str, int]:
        """What is still there."""
        kinds: dict[str, Collection[object]] = {
            "memory": self.memory,
            "streams": self.streams,
            "graphs": self.graphs,
            "launchable": self.launchable,
            "contexts": self.contexts,
        }
        return {kind: len(there) for kind, there in kinds.items() if there}

    def has_error(self) -> bool:
        """Whether a failure of this thread's was not taken off by ``cudaGetLastError``."""
        return getattr(self.last_error, "code", 0) != 0

    def view(self, address: int, num_bytes: int) -> Frames:
        """Bytes of the memory that starts there."""
        kind, memory = self.memory[address]
        assert num_bytes <= len(memory), f"{num_bytes} bytes of {len(memory)} {kind}"
        return np.frombuffer(memory, np.uint8, num_bytes)

    def install(self, patch: pytest.MonkeyPatch, product: str = "tensorrt") -> FakeGpu:
        """Let the SDK find this in place of what is installed."""
        patch.setitem(sys.modules, "cuda.bindings", SimpleNamespace(runtime=self))
        patch.setitem(sys.modules, product, self.tensorrt)
        return self

    @driver_call(1)
    def cudaGetDeviceCount(self) -> int:
        return 1

    @driver_call(1)
    def cudaGetDeviceProperties(self, device: int) -> SimpleNamespace:
        return SimpleNamespace(name=b"Fake", major=8, minor=9)

    @driver_call(1)
    def cudaStreamCreateWithFlags(self, flags: int) -> int:
        assert flags == self.cudaStreamNonBlocking
        handle = next(self._handles)
        self.streams[handle] = Queue()
        return handle

    @driver_call()
    def cudaStreamDestroy(self, stream: int) -> None:
        assert self.streams.pop(stream).captured is None

    @driver_call(1)
    def cudaMalloc(self, num_bytes: int) -> int:
        return self._allocate("device", num_bytes)

    @driver_call(1)
    def cudaMallocHost(self, num_bytes: int) -> int:
        return self._allocate("host", num_bytes)

    @driver_call()
    def cudaFree(self, address: int) -> None:
        assert not [c for c in self.contexts if address in c.addresses.values()], "a context still has this memory"
        self._free("device", address)

    @driver_call()
    def cudaFreeHost(self, address: int) -> None:
        self._free("host", address)

    def _allocate(self, kind: str, num_bytes: int) -> int:
        memory = (ctypes.c_uint8 * num_bytes)()
        address = ctypes.addressof(memory)
        self.memory[address] = kind, memory
        return address

    def _free(self, kind: str, address: int) -> None:
        was, memory = self.memory.pop(address)
        assert was == kind
        ctypes.memset(memory, 0xDD, len(memory))
        self._kept.append(memory)

    @driver_call()
    def cudaMemcpyAsync(self, to: int, source: int, num_bytes: int, kind: str, stream: int) -> None:
        kinds = {"to device": ("host", "device"), "to host": ("device", "host")}
        assert (self.memory[source][0], self.memory[to][0]) == kinds[kind]

        def copy() -> None:
            self.view(to, num_bytes)[:] = self.view(source, num_bytes)

        self.streams[stream].put(copy)

    @driver_call()
    def cudaStreamSynchronize(self, stream: int) -> None:
        queue = self.streams[stream]
        assert queue.captured is None, "nothing may wait for a stream that captures"
        while queue.waiting:
            queue.waiting.pop(0)()

    @driver_call()
    def cudaStreamBeginCapture(self, stream: int, mode: str) -> None:
        assert mode == self.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        assert self.streams[stream].captured is None
        self.streams[stream].captured = []

    def cudaStreamEndCapture(self, stream: int) -> tuple[int, int | None]:
        queue = self.streams[stream]
        jobs, queue.captured = queue.captured, None
        if self.note("cudaStreamEndCapture") or jobs is None:  # it is at an end all the same
            self.last_error.code = FAILED
            return FAILED, None
        handle = next(self._handles)
        self.graphs[handle] = jobs
        return 0, handle

    @driver_call(1)
    def cudaGraphInstantiateWithFlags(self, graph: int, flags: int) -> int:
        assert flags == 0
        handle = next(self._handles)
        self.launchable[handle] = list(self.graphs[graph])
        return handle

    @driver_call()
    def cudaGraphLaunch(self, launchable: int, stream: int) -> None:
        for job in self.launchable[launchable]:
            self.streams[stream].put(job)

    @driver_call()
    def cudaGraphDestroy(self, graph: int) -> None:
        del self.graphs[graph]

    @driver_call()
    def cudaGraphExecDestroy(self, launchable: int) -> None:
        assert not [q for q in self.streams.values() if set(q.waiting) & set(self.launchable[launchable])], "under way"
        del self.launchable[launchable]

    def cudaGetLastError(self) -> tuple[int]:
        code = getattr(self.last_error, "code", 0)
        self.last_error.code = 0
        return (code,)

    def cudaGetErrorString(self, status: int) -> tuple[int, bytes]:
        return 0, b"made to fail"


class Context:
    """An execution context of TensorRT."""

    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu = gpu
        self.addresses: dict[str, int] = {}
        self.changes = 0
        self.is_unsettled = True
        self.frames = 0
        self._busy = threading.Lock()
        gpu.contexts.add(self)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.changes += 1
        self.addresses[name] = address
        return not self.gpu.note("set_tensor_address")

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, high = self.gpu.batch
        if self.gpu.note("set_input_shape") or not low <= shape[0] <= high:
            return False
        assert (name, shape[1:]) == ("frame", (*SIZE_HW, 3))
        self.changes += 1
        self.is_unsettled = True
        self.frames = shape[0]
        return True

    def execute_async_v3(self, stream: int) -> bool:
        queue = self.gpu.streams[stream]
        is_captured = queue.captured is not None
        if self.gpu.note("execute_async_v3") or self.gpu.has_error():
            return False
        if is_captured and self.gpu.note("captured execute_async_v3"):
            return False
        if is_captured and self.is_unsettled:  # what it puts off to the next call cannot be captured
            return False
        self.is_unsettled = False
        me, changes, frames = weakref.ref(self), self.changes, self.frames

        def network() -> None:
            context = me()
            assert context is not None, "the context is gone"
            how = context.gpu.in_graph if is_captured else "rightly"
            context._run(frames, "garbage" if context.changes != changes and is_captured else how)

        queue.put(network)
        return True

    def _run(self, frames: int, how: str) -> None:
        """The network."""
        assert self._busy.acquire(blocking=False), "one context in two streams"
        self.gpu.during_network(self)
        pixels = frames * SIZE_HW[0] * SIZE_HW[1]
        frames_NHWC = self.gpu.view(self.addresses["frame"], 3 * pixels).reshape(frames, *SIZE_HW, 3)
        mask, conf = (self.gpu.view(self.addresses[name], pixels) for name in ("mask", "conf"))
        if how == "garbage":
            mask[:] = 0xEE
        elif how != "nothing":
            mask[:], conf[:] = mask_of(frames_NHWC).reshape(-1), conf_of(frames_NHWC).reshape(-1)
        if how == "another pixel":
            conf[pixels // 2] ^= 1
        self._busy.release()


class Plan:
    """An engine of TensorRT."""

    num_io_tensors = 3

    def __init__(self, gpu: FakeGpu) -> None:
        self._gpu = gpu

    def create_execution_context(self) -> Context | None:
        return Context(self._gpu) if len(self._gpu.contexts) < self._gpu.max_contexts else None

    def get_tensor_name(self, index: int) -> str:
        return ("frame", "mask", "conf")[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name == "frame" else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType.UINT8

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        low, high = self._gpu.batch
        return [(batch, *SIZE_HW, 3) for batch in (low, high, high)]


class TensorIOMode(Enum):
    """As TensorRT's."""

    INPUT = 1
    OUTPUT = 2


class DataType(Enum):
    """As TensorRT's."""

    UINT8 = 1


class Logger:
    """As TensorRT's."""

    ERROR = 1

    def __init__(self, severity: int) -> None: ...


def tensorrt_on(gpu: FakeGpu) -> Any:
    """The module of TensorRT; whatever the bytes of an engine are, it is `Plan`."""

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, log: Logger) -> None: ...

        def deserialize_cuda_engine(self, data: bytes) -> Plan:
            return Plan(gpu)

    return SimpleNamespace(
        __version__="10.0.0",
        Logger=Logger,
        Runtime=Runtime,
        TensorIOMode=TensorIOMode,
        DataType=DataType,
        ICudaEngine=Plan,
        IExecutionContext=Context,
    )
