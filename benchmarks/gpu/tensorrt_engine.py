"""Build a bundle's engine on the GPU at hand, hold it against the golden frames, and measure it.

    python -m benchmarks.gpu.tensorrt_engine model.cdga --json mine.json

Needs one NVIDIA GPU and TensorRT (``pip install 'cdga-sdk[trt]'``), or TensorRT for RTX (``--product tensorrt_rtx``).
Latency is that of one batch: with the copies to and from the GPU, as an application sees it, and without them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
import time
from collections.abc import Callable
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
    backend = TensorRtBackend(engine)
    try:
        return {
            "engine": engine.sidecar.model_dump(),
            "gpu": asdict(gpu_facts()),
            "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
            "cdga_sdk": __version__,
            "bundle_sha256": bundle.sha256,
            "model": bundle.manifest.provenance.model,
            "imgsz_hw": bundle.manifest.imgsz_hw,
            "parity": _parity(bundle, backend),
            "latency": [_latency(bundle, backend, size, rounds) for size in sorted({batch[0], batch[1], batch[2]})],
        }
    finally:
        backend.close()


def _engine(graph: bytes, product: str, precision: str, batch: tuple[int, int, int]) -> VerifiedEngine:
    sha256, flags = hashlib.sha256(graph).hexdigest(), BuildFlags(batch=batch)
    key = key_for_this_gpu(sha256, precision=precision, product=product, flags=flags)
    engine = EngineCache(cache_folder()).obtain(key, partial(build_plan, graph, key))
    assert engine is not None  # only a fallback gives None
    return engine


def _parity(bundle: Bundle, backend: TensorRtBackend) -> dict[str, float]:
    """Share of pixels that have the trained network's class, by golden frame."""
    agreement = {}
    for frame in bundle.golden_frames():
        mask_NHW = backend.infer(frame.image_bgr[np.newaxis, :, :, ::-1]).mask_NHW
        agreement[frame.name] = float((mask_NHW[0] == frame.mask).mean())
    return agreement


def _latency(bundle: Bundle, backend: TensorRtBackend, batch: int, rounds: int) -> dict[str, float]:
    """Milliseconds of one batch of golden frames."""
    frames = [f.image_bgr[:, :, ::-1] for f in bundle.golden_frames()]
    frames_NHWC = np.stack([frames[i % len(frames)] for i in range(batch)])

    def without_copies() -> None:
        backend.enqueue(batch)
        backend.wait()

    with_ms = _times_ms(lambda: backend.infer(frames_NHWC), rounds)
    bare_ms = _times_ms(without_copies, rounds)
    return {
        "batch": batch,
        "with_copies_p50_ms": round(float(np.percentile(with_ms, 50)), 4),
        "with_copies_p95_ms": round(float(np.percentile(with_ms, 95)), 4),
        "without_copies_p50_ms": round(float(np.percentile(bare_ms, 50)), 4),
        "without_copies_p95_ms": round(float(np.percentile(bare_ms, 95)), 4),
        "frames_per_s": round(1e3 * batch / float(np.percentile(with_ms, 50)), 1),
    }


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
