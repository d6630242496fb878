"""Build a bundle's engine on the GPU at hand, hold it against the golden frames, and measure it.

    python -m benchmarks.gpu.tensorrt_engine model.cdga --json mine.json

Needs one NVIDIA GPU and TensorRT (``pip install 'cdga-sdk[trt]'``), or TensorRT for RTX (``--product tensorrt_rtx``).
Latency is that of one batch: with the copies to and from the GPU, as an application sees it, and without them; with
plain launches, with their graph, and with plain ones again. Throughput is that of single frames, one and two at a time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cdga_sdk import __version__
from cdga_sdk.atomic import write_text
from cdga_sdk.backends.cuda_device import gpu_facts
from cdga_sdk.backends.engine_cache import EngineCache, VerifiedEngine, cache_folder
from cdga_sdk.backends.tensorrt_build import (
    PRODUCTS,
    BuildFlags,
    build_plan,
    graph_precision,
    key_for_this_gpu,
    parse_batch,
)
from cdga_sdk.backends.tensorrt_engine import TensorRtBackend
from cdga_sdk.bundle import Bundle
from cdga_sdk.errors import CdgaError
from cdga_sdk.preprocess import UInt8Array
from cdga_sdk.video.stages import in_order


def main() -> int:
    """Measure, and write or print JSON; the exit code is that of what went wrong."""
    options = _options()
    try:
        report = measure(options.bundle, options.product, options.precision, parse_batch(options.batch), options.rounds)
        text = json.dumps(report, indent=1) + "\n"
        if options.json is None:
            print(text, end="")
        else:
            write_text(options.json, text)
    except CdgaError as error:
        print(f"error[{error.code}]: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def measure(
    path: Path, product: str, precision: str | None, batch: tuple[int, int, int], rounds: int
) -> dict[str, object]:
    """Build (or load) the engine, and measure what it says and how fast."""
    bundle = Bundle.open(path)
    precision = precision or graph_precision(bundle.graphs)
    engine = _engine(bundle.graph(precision), product, precision, batch)
    golden_NHWC = np.stack([f.image_bgr[:, :, ::-1] for f in bundle.golden_frames()])
    return {
        "engine": engine.sidecar.model_dump(),
        "gpu": asdict(gpu_facts()),
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "cdga_sdk": __version__,
        "bundle_sha256": bundle.sha256,
        "model": bundle.manifest.provenance.model,
        "imgsz_hw": bundle.manifest.imgsz_hw,
        "parity": _parity(bundle, engine),
        "latency": latency(engine, golden_NHWC, sorted(set(batch)), rounds),
        "throughput": throughput(engine, golden_NHWC, rounds),
    }


def _engine(graph: bytes, product: str, precision: str, batch: tuple[int, int, int]) -> VerifiedEngine:
    sha256, flags = hashlib.sha256(graph).hexdigest(), BuildFlags(batch=batch)
    key = key_for_this_gpu(sha256, precision=precision, product=product, flags=flags)
    engine = EngineCache(cache_folder()).obtain(key, partial(build_plan, graph, key))
    assert engine is not None  # only a fallback gives None
    return engine


def _parity(bundle: Bundle, engine: VerifiedEngine) -> dict[str, float]:
    """Share of pixels that have the trained network's class, by golden frame; from the third on by a graph."""
    agreement = {}
    with closing(TensorRtBackend(engine)) as backend:
        for frame in bundle.golden_frames():
            mask_NHW = backend.infer(frame.image_bgr[np.newaxis, :, :, ::-1]).mask_NHW
            agreement[frame.name] = float((mask_NHW[0] == frame.mask).mean())
    return agreement


def latency(
    engine: VerifiedEngine, golden_NHWC: UInt8Array, batches: Sequence[int], rounds: int
) -> list[dict[str, object]]:
    """Milliseconds of one batch of golden frames, by batch and way of launching; the first way is measured twice."""
    rows = []
    for batch in batches:
        frames_NHWC = golden_NHWC[np.arange(batch) % len(golden_NHWC)]
        for graphs in (False, True, False):
            with closing(TensorRtBackend(engine, graphs=graphs)) as backend:
                rows.append(_latency(backend, frames_NHWC, rounds))
    return rows


def _latency(backend: TensorRtBackend, frames_NHWC: UInt8Array, rounds: int) -> dict[str, object]:
    batch = len(frames_NHWC)

    def without_copies() -> None:
        backend.enqueue(batch)
        backend.wait()

    with_ms = _times_ms(lambda: backend.infer(frames_NHWC), rounds)
    bare_ms = _times_ms(without_copies, rounds)
    return {
        "batch": batch,
        "launches": backend.launches[0],
        "with_copies_p50_ms": round(float(np.percentile(with_ms, 50)), 4),
        "with_copies_p95_ms": round(float(np.percentile(with_ms, 95)), 4),
        "without_copies_p50_ms": round(float(np.percentile(bare_ms, 50)), 4),
        "without_copies_p95_ms": round(float(np.percentile(bare_ms, 95)), 4),
        "frames_per_s": round(1e3 * batch / float(np.percentile(with_ms, 50)), 1),
    }


def throughput(engine: VerifiedEngine, golden_NHWC: UInt8Array, rounds: int) -> list[dict[str, object]]:
    """Single golden frames a second, one and two at a time, with and without graphs; the first way is measured twice.

    As files are segmented: in order, on as many threads as `frames_at_once` tells.
    """
    rows: list[dict[str, object]] = []
    for several, graphs in ((False, False), (False, True), (True, False), (True, True), (False, False)):
        with closing(TensorRtBackend(engine, throughput=several, graphs=graphs)) as backend:

            def segment(index: int, backend: TensorRtBackend = backend) -> object:
                return backend.infer(golden_NHWC[[index % len(golden_NHWC)]])

            at_once = backend.frames_at_once
            deque(in_order(segment, range(max(20, rounds // 10)), at_once=at_once), maxlen=0)  # see `_times_ms`
            started = time.perf_counter()
            deque(in_order(segment, range(rounds), at_once=at_once), maxlen=0)
            frames_per_s = rounds / (time.perf_counter() - started)
            launches = list(backend.launches)
        rows.append({"at_once": at_once, "launches": launches, "frames_per_s": round(frames_per_s, 1)})
    return rows


def _times_ms(call: Callable[[], object], rounds: int) -> NDArray[np.float64]:
    for _ in range(max(10, rounds // 10)):  # clocks rise, and TensorRT for RTX compiles its kernels
        call()
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - started))
    return np.asarray(times)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.tensorrt_engine",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--product", choices=PRODUCTS, default="tensorrt")
    parser.add_argument("--precision", default=None, help="the graph to build from; the bundle's lowest by default")
    parser.add_argument("--batch", default="1:1:4", help="SMALLEST:BEST:LARGEST")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", type=Path, default=None)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
