"""One frame's way through a TensorRT engine: what one thread at a time works with, and as many as there are of these.

A network is some hundred launches, and each costs the CPU some microseconds. So they are captured as a CUDA graph, and
are one launch from then on. docs/decisions/0020-gpu-launches.md
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from cdga_sdk.backends.base import error_when_closed
from cdga_sdk.backends.cuda_device import CaptureLostError, Graph, PinnedBuffer, Stream
from cdga_sdk.errors import ModelError, ResourceError
from cdga_sdk.preprocess import UInt8Array

__all__ = ["Limits", "Slot", "Slots"]

_MAX_CAPTURES: Final = 4
"""Graphs that a slot makes in its life: where batches keep changing, each would be thrown away before it pays."""
_LEAVE_S: Final = 5.0
"""Seconds that threads have to leave their slots when all are to be freed."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What an engine takes.

    Attributes:
        lowest: Fewest frames at once.
        highest: Most frames at once.
        size_hw: Height and width, pixels.
    """

    lowest: int
    highest: int
    size_hw: tuple[int, int]


class Slot:
    """An execution context with a stream, buffers, and the graph of its launches; for one thread at a time.

    The batch that comes twice running is captured. The graph is taken once it has given, bit by bit, what plain
    launches gave for the same frames, and is dropped with the first other batch: TensorRT leaves undefined what the
    graph of a context does after the context was changed. Where the GPU or TensorRT refuses any of it, or the results
    differ, launches are plain from then on; a capture that is lost on the way is made again, a few times.

    Args:
        plan: TensorRT's engine, of which it makes a context of its own: one works in one stream at a time.
        limits: Of the engine.
        why_plain: Why nothing is captured; empty where it may be.

    Raises:
        ResourceError: Out of memory on the GPU or page-locked memory on the host.
        ModelError: TensorRT does not take the buffers.
    """

    def __init__(self, plan: Any, limits: Limits, *, why_plain: str = "") -> None:
        self._context: Any = None
        self._size_hw = limits.size_hw
        self._why_plain = why_plain
        self._graph: Graph | None = None
        self._is_proven = False
        self._batch = 0  # that the context is set to
        self._times_running = 0
        self._captures_left = _MAX_CAPTURES
        self._buffers: dict[str, PinnedBuffer] = {}
        self._held = ExitStack()
        try:
            self._context = plan.create_execution_context()
            if self._context is None:
                raise ResourceError("the GPU has no memory left", fix="free some, or use --backend onnxruntime")
            self._stream = Stream(self._held)
            pixels = limits.highest * limits.size_hw[0] * limits.size_hw[1]
            for name, num_bytes in {"frame": 3 * pixels, "mask": pixels, "conf": pixels}.items():
                self._buffers[name] = buffer = PinnedBuffer(num_bytes, self._held)
                if not self._context.set_tensor_address(name, buffer.device):
                    raise ModelError(f"TensorRT takes no memory for {name}")
        except BaseException:
            self.close()
            raise

    @property
    def launches(self) -> str:
        """``graph``; ``plain`` where no batch has come twice running; or ``plain (why)``, which it stays."""
        if self._graph is not None and self._is_proven:
            return "graph"
        return f"plain ({self._why_plain})" if self._why_plain else "plain"

    def run(self, frames_NHWC: UInt8Array, batch: int, mask_NHW: UInt8Array, conf_NHW: UInt8Array) -> None:
        """Run frames as a batch that may be larger, and fill ``mask_NHW`` and ``conf_NHW``.

        Raises:
            ResourceError: The GPU refuses.
        """
        frame = self._buffers["frame"]
        frame.host[: frames_NHWC.size].reshape(frames_NHWC.shape)[:] = frames_NHWC
        self._stream.upload(frame, frames_NHWC.size)
        self.enqueue(batch)
        outputs = {"mask": mask_NHW, "conf": conf_NHW}
        self._download(outputs)
        for name, out in outputs.items():
            out[:] = self._buffers[name].host[: out.size].reshape(out.shape)
        self._times_running += 1
        if self._times_running > 1 and not self._is_proven and not self._why_plain:
            self._capture(outputs)

    def enqueue(self, batch: int) -> None:
        """Queue the network on what was uploaded last, without copies.

        Raises:
            ResourceError: The GPU refuses.
        """
        if batch != self._batch:
            self._change(batch)
        if self._graph is not None and self._is_proven:
            try:
                self._graph.launch()
            except ResourceError as error:
                self._give_up(str(error))
            else:
                return
        self._launch()

    def wait(self) -> None:
        """Return when the GPU has done all that was queued."""
        self._stream.wait()

    def close(self) -> None:
        """Free it all; closing twice is harmless."""
        with suppress(ResourceError):  # of a GPU that failed there is nothing to wait for
            self._drop()
        self._context = None
        self._buffers = {}  # whose views of memory must not outlive it
        self._held.close()

    def _change(self, batch: int) -> None:
        """Set the context to another batch."""
        self._drop()
        self._batch, self._times_running = 0, 0
        if not self._context.set_input_shape("frame", (batch, *self._size_hw, 3)):
            raise ResourceError(f"TensorRT could not run a batch of {batch}", fix="use --backend onnxruntime")
        self._batch = batch

    def _launch(self) -> None:
        if not self._context.execute_async_v3(self._stream.handle):
            raise ResourceError(f"TensorRT could not run a batch of {self._batch}", fix="use --backend onnxruntime")

    def _download(self, outputs: dict[str, UInt8Array]) -> None:
        """Bring as many bytes as the arrays hold to the host's buffers."""
        for name, out in outputs.items():
            self._stream.download(self._buffers[name], out.size)
        self._stream.wait()

    def _capture(self, plain: dict[str, UInt8Array]) -> None:
        """Make the graph, and take it where it gives for the frames that are on the GPU what plain launches gave.

        Nothing that goes wrong here is raised: the results are there already.
        """
        try:
            if self._graph is None:  # there may be one that an interruption kept from being tried
                if not self._captures_left:
                    self._give_up("batches keep changing")
                    return
                self._captures_left -= 1
                self._graph = Graph(self._stream, self._launch)
            if self._gives(self._graph, plain):
                self._is_proven = True
            else:
                self._give_up("the graph's results differ")
        except CaptureLostError as error:  # another thread may have spoilt it; the next frame tries again
            if not self._captures_left:
                self._give_up(str(error))
        except ResourceError as error:
            self._give_up(str(error))

    def _gives(self, graph: Graph, plain: dict[str, UInt8Array]) -> bool:
        """Whether the graph's results are these."""
        for name, out in plain.items():  # every byte is made wrong first: one that is not written would pass else
            buffer = self._buffers[name]
            buffer.host[: out.size] = ~out.reshape(-1)
            self._stream.upload(buffer, out.size)
        graph.launch()
        self._download(plain)
        return all(np.array_equal(self._buffers[n].host[: out.size], out.reshape(-1)) for n, out in plain.items())

    def _give_up(self, why: str) -> None:
        """Launch plainly from now on."""
        self._why_plain = why
        with suppress(ResourceError):  # what comes next fails too then, and says so
            self._drop()

    def _drop(self) -> None:
        """Free the graph, if there is one, once all that was queued is done."""
        graph, self._graph, self._is_proven = self._graph, None, False
        try:
            if self._buffers:  # so there is a stream
                self._stream.wait()
        finally:
            if graph is not None:
                graph.close()


class Slots:
    """Slots that threads take turns in: who finds none free waits."""

    def __init__(self) -> None:
        self._all: list[Slot] = []
        self._free: list[Slot] = []
        self._changed = threading.Condition()
        self._closing = threading.Lock()
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._all)

    def add(self, slot: Slot) -> None:
        """Take charge of one more."""
        self._all.append(slot)
        self._free.insert(0, slot)

    @property
    def first(self) -> Slot:
        """The one that is used where one is enough."""
        return self._all[0]

    @property
    def launches(self) -> tuple[str, ...]:
        """`Slot.launches` of each."""
        return tuple(slot.launches for slot in self._all)

    @contextmanager
    def taken(self) -> Iterator[Slot]:
        """One that is nobody else's inside the block.

        Raises:
            UsageError: They are closed.
        """
        slot: Slot | None = None
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._free or self._is_closed)
                if self._is_closed:
                    raise error_when_closed()
                slot = self._free[-1]  # given back last, so its batch is set and its graph is made
                del self._free[-1]  # in two steps: an interruption between them must not lose it
            yield slot
        finally:
            with self._changed:
                if slot is not None and slot not in self._free:
                    self._free.append(slot)
                self._changed.notify_all()

    def close(self) -> bool:
        """Let nobody in any more, wait some seconds for those who are inside, and free what they left.

        A slot that is not given back is left as it is, for whoever is in it may still come back. An interruption can
        keep one from ever being given back. Closing twice is harmless, and frees what came back meanwhile.

        Returns:
            Whether all are freed.
        """
        with self._closing:  # who closes too returns when all is freed
            with self._changed:
                self._is_closed = True
                self._changed.notify_all()
                is_empty = self._changed.wait_for(lambda: len(self._free) == len(self._all), _LEAVE_S)
                left = list(self._free)
            for slot in left:  # may take long: who comes to wait is told meanwhile that all is closed
                slot.close()
        return is_empty
