"""ONNX bytes to a TensorRT plan: one way for TensorRT 10, TensorRT 11 and TensorRT for RTX.

Precision is in the graph (fp16 by type, int8 by Q/DQ), so the network is always strongly typed: TensorRT 11 knows no
other kind. TF32 is switched off, since it changes labels. What is built is told by `EngineKey` alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cdga_sdk.atomic import write_bytes
from cdga_sdk.backends.base import refuse_foreign_graph
from cdga_sdk.backends.cuda_device import gpu_facts
from cdga_sdk.backends.engine_cache import EngineKey
from cdga_sdk.errors import CdgaError, InputError, ModelError, ResourceError, UsageError, one_line

__all__ = [
    "HW_COMPAT",
    "PRODUCTS",
    "BuildFlags",
    "batch_text",
    "build_plan",
    "graph_precision",
    "import_product",
    "key_ahead_of_time",
    "key_for_this_gpu",
    "parse_batch",
    "supported_sms",
]

PRODUCTS: Final = ("tensorrt", "tensorrt_rtx")
HW_COMPAT: Final = {"none": "NONE", "same-cc": "SAME_COMPUTE_CAPABILITY", "ampere+": "AMPERE_PLUS"}

_INSTALL: Final = {"tensorrt": "pip install 'cdga-sdk[trt]'", "tensorrt_rtx": "pip install 'cdga-sdk[trt-rtx]'"}
_ANY: Final = "any"
# Far beyond what a GPU has: the bindings tell of larger ones by errors of their own, after an export.
_MAX_BATCH: Final = 1024
_MAX_WORKSPACE_GIB: Final = 2**20


@dataclass(frozen=True, kw_only=True)
class BuildFlags:
    """How to build.

    Attributes:
        batch: Smallest, best and largest batch.
        workspace_gib: Bound on scratch memory while building; None is TensorRT's own.
        hw_compat: One of `HW_COMPAT`; the engine then loads on more GPUs and runs slower.
        version_compatible: The engine then loads in later versions of TensorRT, and runs slower.

    Raises:
        UsageError: A value out of range.
    """

    batch: tuple[int, int, int] = (1, 1, 1)
    workspace_gib: float | None = None
    hw_compat: str = "none"
    version_compatible: bool = False

    def __post_init__(self) -> None:
        low, best, high = self.batch
        if not 1 <= low <= best <= high <= _MAX_BATCH:
            what = f"batch is {batch_text(self.batch)}, wanted 1 <= smallest <= best <= largest <= {_MAX_BATCH}"
            raise UsageError(what)
        if self.hw_compat not in HW_COMPAT:
            raise UsageError(f"unknown hw-compat '{self.hw_compat}'", fix=f"use one of {', '.join(HW_COMPAT)}")
        if self.workspace_gib is not None and not 0 < self.workspace_gib <= _MAX_WORKSPACE_GIB:
            raise UsageError(f"workspace is {self.workspace_gib} GiB, wanted more than 0, to {_MAX_WORKSPACE_GIB}")


def parse_batch(text: str) -> tuple[int, int, int]:
    """``"1:4:8"`` as (smallest, best, largest); one number stands for all three.

    Raises:
        UsageError: Not one or three whole numbers, in order, from 1.
    """
    parts = text.split(":")
    if len(parts) not in {1, 3} or not all(p.isdecimal() and p.isascii() for p in parts):
        raise UsageError(f"batch is '{text}', wanted SMALLEST:BEST:LARGEST", fix="e.g. --batch 1:4:8")
    low, best, high = (int(p) for p in (parts if len(parts) == 3 else parts * 3))
    return BuildFlags(batch=(low, best, high)).batch


def batch_text(batch: tuple[int, int, int]) -> str:
    """``"1:4:8"``."""
    return ":".join(map(str, batch))


def import_product(product: str) -> Any:
    """The Python module of TensorRT or of TensorRT for RTX.

    Raises:
        ResourceError: It is not installed, or its libraries cannot be loaded.
    """
    try:
        if product == "tensorrt":
            import tensorrt

            return tensorrt
        import tensorrt_rtx
    except (ImportError, OSError) as error:
        raise ResourceError(f"'{product}' is needed here ({one_line(error)[:120]})", fix=_INSTALL[product]) from error
    return tensorrt_rtx


def graph_precision(precisions: Iterable[str]) -> str:
    """Which of a bundle's graphs an engine is built from: the one of least precision that TensorRT reads.

    Those beyond fp32 are in a bundle because they were asked for and passed their gates. ``int8`` is for CPUs.
    """
    held = set(precisions)
    return next(p for p in ("int8-trt", "fp16", "fp32") if p in held)


def key_for_this_gpu(model_sha256: str, *, precision: str, product: str, flags: BuildFlags) -> EngineKey:
    """What an engine built here and now depends on.

    Raises:
        ResourceError: The library or a GPU is missing.
    """
    version = import_product(product).__version__
    gpu = gpu_facts()
    return _key(model_sha256, precision, product, version, flags, sm=gpu.sm, gpu=gpu.name, driver=gpu.driver)


def key_ahead_of_time(model_sha256: str, *, precision: str, sm: str, flags: BuildFlags) -> EngineKey:
    """What an engine that TensorRT for RTX builds for every GPU of a compute capability depends on.

    Raises:
        ResourceError: The library is missing.
        UsageError: It does not build for this compute capability.
    """
    known = supported_sms()
    if sm not in known:
        raise UsageError(f"TensorRT for RTX builds nothing for SM '{sm}'", fix=f"use one of {', '.join(known)}")
    version = import_product("tensorrt_rtx").__version__
    return _key(model_sha256, precision, "tensorrt_rtx", version, flags, sm=sm, gpu=_ANY, driver=_ANY)


def supported_sms() -> tuple[str, ...]:
    """Compute capabilities that TensorRT for RTX builds for ahead of time: ``("75", "80", ...)``.

    Raises:
        ResourceError: The library is missing.
    """
    names = import_product("tensorrt_rtx").ComputeCapability.__members__
    return tuple(name.removeprefix("SM") for name in names if name.startswith("SM"))


def _key(
    model_sha256: str, precision: str, product: str, version: str, flags: BuildFlags, *, sm: str, gpu: str, driver: str
) -> EngineKey:
    return EngineKey(
        onnx_sha256=model_sha256,
        precision=precision,
        product=product,
        version=version,
        sm=sm,
        gpu=gpu,
        driver=driver,
        batch=batch_text(flags.batch),
        workspace_gib=flags.workspace_gib,
        hw_compat=flags.hw_compat,
        version_compatible=flags.version_compatible,
    )


def build_plan(
    model_bytes: bytes,
    key: EngineKey,
    *,
    timing_cache: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> bytes:
    """Build the engine that ``key`` names; takes seconds (RTX) to many minutes. Ctrl-C stops it.

    Args:
        model_bytes: The ONNX file: input ``frame`` (N, H, W, 3) uint8, outputs ``mask`` and ``conf``.
        key: Made by `key_for_this_gpu` or `key_ahead_of_time`.
        timing_cache: File of measured kernel times, read and written: makes later builds much faster. TensorRT only.
        say: Takes a line about a timing cache that is of no use, or cannot be written.

    Returns:
        The plan, as TensorRT serialises it.

    Raises:
        ModelError: The graph is refused; the first node at fault is named.
        InputError: The timing cache cannot be read.
        ResourceError: The library or the GPU is missing, or there is too little memory.
    """
    stopped = threading.Event()
    # In a thread of its own: the bindings drop what a signal raises in one of TensorRT's thousands of log callbacks.
    with ThreadPoolExecutor(1) as pool:
        try:
            return pool.submit(_built, model_bytes, key, timing_cache, say, stopped).result()
        except BaseException:
            stopped.set()
            raise


def _built(
    model_bytes: bytes, key: EngineKey, timing_cache: Path | None, say: Callable[[str], None], stopped: threading.Event
) -> bytes:
    trt = import_product(key.product)
    log = _error_log(trt)
    builder = _builder(trt, log)
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # TensorRT 11 knows no other kind
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, log)
    _parse(parser, network, model_bytes)
    config = _config(trt, builder, network, key)
    keeps_times = False
    if timing_cache is not None:
        keeps_times = _takes_timing_cache(config, timing_cache, say)
        log.errors.clear()  # what it may say of a foreign cache, which stops nothing
    config.progress_monitor = watch = _watch(trt, stopped)
    plan = builder.build_serialized_network(network, config)
    del watch  # TensorRT has a pointer to it until here
    if plan is None:
        raise _refusal(log.errors)
    if timing_cache is not None and keeps_times:
        _write_timing_cache(config, timing_cache, say)
    return bytes(plan)


def _error_log(trt: Any) -> Any:
    """A logger that keeps what went wrong, for one line of ours, and prints nothing."""
    serious = {trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR}

    class ErrorLog(trt.ILogger):  # type: ignore[misc]  # the package is untyped
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            # Without a driver TensorRT for RTX builds all the same, and complains again and again: error 35.
            if severity in serious and "cudaError 35" not in message:
                self.errors.append(one_line(message))

    return ErrorLog()


def _builder(trt: Any, log: Any) -> Any:
    try:
        return trt.Builder(log)
    except TypeError as error:  # what the bindings raise for a builder that could not be made
        raise ResourceError(
            f"TensorRT has no GPU to build on ({log.errors[0][:200] if log.errors else one_line(error)[:200]})",
            fix="see whether nvidia-smi shows a GPU and its driver here",
        ) from error


def _parse(parser: Any, network: Any, model_bytes: bytes) -> None:
    if not parser.parse(model_bytes):
        first = parser.get_error(0)
        node = (
            f"{first.node_operator()} node {first.node_name() or 'without a name'}: " if first.node_operator() else ""
        )
        reason = first.desc().strip().splitlines()
        # The parser's own line comes first and says little; the one below it tells what was wrong with the node.
        raise ModelError(
            f"TensorRT refuses the graph ({node}{one_line(reason[min(1, len(reason) - 1)])[:300]})",
            fix="use another --precision or GPU, or ONNX Runtime, which needs no engine",
        )
    # Bytes that are no model at all may parse, as a network of nothing.
    refuse_foreign_graph(
        [network.get_input(i).name for i in range(network.num_inputs)],
        [network.get_output(i).name for i in range(network.num_outputs)],
    )


def _config(trt: Any, builder: Any, network: Any, key: EngineKey) -> Any:
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    if key.workspace_gib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(key.workspace_gib * 2**30))
    if key.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if key.hw_compat != "none":
        level = getattr(trt.HardwareCompatibilityLevel, HW_COMPAT[key.hw_compat], None)
        if level is None:
            raise UsageError(f"TensorRT {key.version} does not know hw-compat {key.hw_compat}", fix="use ampere+")
        config.hardware_compatibility_level = level
    if key.product == "tensorrt_rtx":
        config.num_compute_capabilities = 1
        wanted = f"SM{key.sm}" if key.gpu == _ANY else "CURRENT"
        config.set_compute_capability(getattr(trt.ComputeCapability, wanted), 0)
    frame = network.get_input(0)
    size = tuple(frame.shape)[1:]
    if -1 in size:
        raise ModelError(
            "the graph's height and width are open, an engine is built for one size",
            fix="export it with cdga export, which fixes height and width",
        )
    profile = builder.create_optimization_profile()
    profile.set_shape(frame.name, *((batch, *size) for batch in parse_batch(key.batch)))
    config.add_optimization_profile(profile)
    return config


def _takes_timing_cache(config: Any, path: Path, say: Callable[[str], None]) -> bool:
    """Hand over the file's times, or begin a file; what is no cache of this GPU and version stays as it is."""
    try:
        data = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise InputError(f"cannot read the timing cache ({error.strerror})", where=path) from error
    cache = config.create_timing_cache(data)
    if cache is not None and config.set_timing_cache(cache, False):  # noqa: FBT003 - a C++ signature
        return True
    say(f"{path}: no timing cache of this GPU and TensorRT, so neither used nor changed; name another file")
    return False


def _write_timing_cache(config: Any, path: Path, say: Callable[[str], None]) -> None:
    """Keep the times; where they cannot be kept that is said, for the engine took minutes and is sound."""
    try:
        write_bytes(path, bytes(config.get_timing_cache().serialize()))
    except CdgaError as error:
        say(f"the timing cache is not kept: {error}")


def _watch(trt: Any, stopped: threading.Event) -> Any:
    """Ends the build at its next step once ``stopped`` is set."""

    class Watch(trt.IProgressMonitor):  # type: ignore[misc]  # the package is untyped
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase: str, parent: str | None, num_steps: int) -> None: ...

        def step_complete(self, phase: str, step: int) -> bool:
            return not stopped.is_set()

        def phase_finish(self, phase: str) -> None: ...

    return Watch()


def _refusal(errors: list[str]) -> ModelError | ResourceError:
    """Of a build that failed: told by what TensorRT logged first."""
    reason = errors[0][:300] if errors else "no reason was given"
    if any(word in line.lower() for line in errors for word in ("out of memory", "outofmemory", "insufficient memory")):
        return ResourceError(
            f"TensorRT could not build ({reason})",
            fix="free memory on the GPU, or use a smaller --workspace or --batch",
        )
    return ModelError(
        f"TensorRT could not build ({reason})",
        fix="use another --precision or GPU, or ONNX Runtime, which needs no engine",
    )
