"""TensorRT and TensorRT for RTX on the GPU, from engines of our own cache alone.

Nothing is allocated per frame but what is returned: memory on both sides and streams are made once.
docs/decisions/0020-gpu-launches.md
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, Final

import numpy as np

from cdga_sdk.backends.base import OnIncompatible, refuse_foreign_graph
from cdga_sdk.backends.engine_cache import EngineCache, EngineKey, VerifiedEngine, cache_folder
from cdga_sdk.backends.tensorrt_build import BuildFlags, build_plan, import_product, key_for_this_gpu
from cdga_sdk.backends.tensorrt_slot import Limits, Slot, Slots
from cdga_sdk.errors import CdgaError, ModelError, ResourceError, one_line
from cdga_sdk.machine import NO_DRIVER, cuda_driver
from cdga_sdk.prediction import Known
from cdga_sdk.preprocess import UInt8Array

__all__ = ["TensorRtBackend", "open_kept", "open_tensorrt", "split_batch", "wanted_key"]

_WHY_NO_GRAPH: Final = {
    # A graph would keep the kernels of its first frames, which TensorRT for RTX replaces by better ones later.
    "tensorrt_rtx": "TensorRT for RTX changes its kernels while it runs",
}


def open_tensorrt(
    model_bytes: bytes,
    *,
    product: str,
    precision: str,
    on_incompatible: OnIncompatible,
    say: Callable[[str], None],
    throughput: bool = False,
) -> TensorRtBackend | None:
    """The engine of this graph for this GPU, from the cache or built now, which takes minutes.

    It is built with the flags that the newest kept engine of the graph was built with, else for single frames.

    Args:
        model_bytes: The ONNX file, verified.
        product: ``tensorrt`` or ``tensorrt_rtx``.
        precision: That of the graph.
        on_incompatible: See `EngineCache.obtain`; ``fallback`` also passes over a missing GPU or library, and over an
            engine that cannot be opened.
        say: Takes the lines that tell what happens.
        throughput: See `TensorRtBackend`.

    Returns:
        The backend, or None when another runtime is to be taken.

    Raises:
        ResourceError: The library, the GPU or its memory is missing.
        ModelError: The graph is refused, or no engine fits and ``on_incompatible`` is ``error``.
    """
    sha256 = hashlib.sha256(model_bytes).hexdigest()
    try:
        here = key_for_this_gpu(sha256, precision=precision, product=product, flags=BuildFlags())
        cache = EngineCache(cache_folder())
        key = wanted_key(here, [s.key for s in cache.sidecars()])
        build = partial(build_plan, model_bytes, key, say=say)
        engine = cache.obtain(key, build, on_incompatible=on_incompatible, say=say)
        return None if engine is None else TensorRtBackend(engine, throughput=throughput)
    except (ModelError, ResourceError) as error:
        if on_incompatible != "fallback":
            raise
        say(f"{error.what}; running without TensorRT")
        return None


def open_kept(model_bytes: bytes, *, throughput: bool = False) -> TensorRtBackend | str:
    """The backend of an engine of this very graph that is kept and fits this GPU; builds and says nothing.

    Args:
        model_bytes: The ONNX file, verified.
        throughput: See `TensorRtBackend`.

    Returns:
        The backend, or in one line why there is none.
    """
    sha256 = hashlib.sha256(model_bytes).hexdigest()
    why = "no kept engine of this graph; build one with: cdga export --trt" if cuda_driver() else NO_DRIVER
    try:
        folder = cache_folder()
        if not folder.is_dir():
            return why
        cache = EngineCache(folder)
        kept = [s.key for s in cache.sidecars() if s.onnx_sha256 == sha256]
        for product, precision in dict.fromkeys((k.product, k.precision) for k in kept):
            here = key_for_this_gpu(sha256, precision=precision, product=product, flags=BuildFlags())
            found = cache.find(wanted_key(here, kept))
            if isinstance(found, VerifiedEngine):
                return TensorRtBackend(found, throughput=throughput)
            why = f"no kept engine fits: {found}"
    except CdgaError as error:  # no GPU, no library, a cache that is not ours: another runtime serves
        return str(error)
    except OSError as error:
        return f"the engine cache cannot be read ({error.strerror})"
    return why


def wanted_key(here: EngineKey, kept: list[EngineKey]) -> EngineKey:
    """``here``, with the flags of a kept engine of the same graph: one that fits if there is, else the newest."""
    flags = ("batch", "workspace_gib", "hw_compat", "version_compatible")
    same = [
        k for k in kept if (k.onnx_sha256, k.product, k.precision) == (here.onnx_sha256, here.product, here.precision)
    ]
    alike = [here.model_copy(update={name: getattr(k, name) for name in flags}) for k in same]
    return next((a for a, k in zip(alike, same, strict=True) if a == k), alike[0] if alike else here)


def split_batch(num_frames: int, lowest: int, highest: int) -> Iterator[tuple[slice, int]]:
    """Cut a batch into parts that an engine takes.

    Args:
        num_frames: Frames there are.
        lowest: Fewest that the engine takes at once.
        highest: Most that it takes.

    Yields:
        The frames of a part, and the batch it runs as: more than the part has where it is smaller than ``lowest``.
    """
    for start in range(0, num_frames, highest):
        stop = min(start + highest, num_frames)
        yield slice(start, stop), max(stop - start, lowest)


class TensorRtBackend:
    """Runs an engine; see `Backend`. Calls from more threads than `frames_at_once` take turns.

    Args:
        engine: As the cache hands it out. Bytes from elsewhere are never deserialised: they would be run.
        throughput: Two frames at a time, one's copies during the other's network; takes the GPU's memory for
            activations twice. Where that is not to be had, one at a time.
        graphs: Whether launches may be captured; see `launches`.

    Raises:
        ResourceError: The library, the GPU or its memory is missing.
        ModelError: TensorRT refuses the engine.
    """

    def __init__(self, engine: VerifiedEngine, *, throughput: bool = False, graphs: bool = True) -> None:
        key = engine.sidecar.key
        self.name = f"{key.product} cuda {key.precision}"
        self.gives_logits = False
        self._slots = Slots()
        self._alive: tuple[Any, ...] = ()
        self._why_plain = _WHY_NO_GRAPH.get(key.product, "") if graphs else "not asked for"
        try:
            self._open(import_product(key.product), engine, num_slots=2 if throughput else 1)
        except BaseException:
            self.close()
            raise
        self.frames_at_once = len(self._slots)

    def _open(self, trt: Any, engine: VerifiedEngine, num_slots: int) -> None:
        log = trt.Logger(trt.Logger.ERROR)
        product = f"{engine.sidecar.product} {engine.sidecar.version}"
        try:
            runtime = trt.Runtime(log)
        except TypeError as error:  # what the bindings raise for a runtime that could not be made
            raise ResourceError(
                f"{product} cannot use the GPU ({one_line(error)[:200]})",
                fix="see whether nvidia-smi shows a GPU and a driver that it works with",
            ) from error
        if engine.sidecar.version_compatible:  # such a plan brings the runtime's code with it; it is of our own making
            runtime.engine_host_code_allowed = True
        plan = runtime.deserialize_cuda_engine(engine.data)
        if plan is None:
            raise ModelError(
                f"{product} refuses the engine, or the GPU has no memory left",
                fix="free memory on the GPU, or use --backend onnxruntime",
            )
        self._alive = (log, runtime, plan)
        self._limits = _limits(trt, plan)
        self._slots.add(Slot(plan, self._limits, why_plain=self._why_plain))
        with suppress(ResourceError):  # no memory for another; what is there serves
            while len(self._slots) < num_slots:
                self._slots.add(Slot(plan, self._limits, why_plain=self._why_plain))

    @property
    def launches(self) -> tuple[str, ...]:
        """How the network gets onto the GPU, of each frame that is computed at a time.

        ``graph``: by one launch. ``plain``: one by one, until a batch of the same size comes again. ``plain (why)``:
        one by one for good.
        """
        return self._slots.launches

    def infer(self, frames_NHWC: UInt8Array) -> Known:
        """Segment frames; see `Backend.infer`."""
        num_frames, *size, _ = frames_NHWC.shape
        limits = self._limits
        assert tuple(size) == limits.size_hw, f"frames are {size}, the engine takes {limits.size_hw}"
        mask_NHW, conf_NHW = (np.empty(frames_NHWC.shape[:3], np.uint8) for _ in range(2))
        with self._slots.taken() as slot:
            for part, batch in split_batch(num_frames, limits.lowest, limits.highest):
                slot.run(frames_NHWC[part], batch, mask_NHW[part], conf_NHW[part])
        return Known(mask_NHW, conf_NHW)

    def enqueue(self, batch: int) -> None:
        """Queue the network on what was uploaded last, without copies; `wait` ends it.

        For measuring, while no other thread is here.

        Raises:
            ResourceError: The GPU refuses.
        """
        self._slots.first.enqueue(batch)

    def wait(self) -> None:
        """Return when the GPU has done all that `enqueue` queued."""
        self._slots.first.wait()

    def close(self) -> None:
        """Free the engine and all its memory, once no thread is here; closing twice is harmless.

        What a thread does not leave within some seconds is not freed; see `Slots.close`.
        """
        if self._slots.close():
            self._alive = ()


def _limits(trt: Any, plan: Any) -> Limits:
    """What an engine takes; its tensors are a bundle's."""
    names = [plan.get_tensor_name(i) for i in range(plan.num_io_tensors)]
    going_in = [n for n in names if plan.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
    refuse_foreign_graph(going_in, [n for n in names if n not in going_in])
    kinds = {n: plan.get_tensor_dtype(n) for n in names}
    if set(kinds.values()) != {trt.DataType.UINT8}:
        raise ModelError(f"the engine's tensors are {one_line(kinds)}, wanted uint8", fix="export it again")
    low, _, high = (tuple(shape) for shape in plan.get_tensor_profile_shape("frame", 0))
    return Limits(lowest=low[0], highest=high[0], size_hw=(high[1], high[2]))
