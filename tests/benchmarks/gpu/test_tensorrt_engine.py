"""The measurement on a GPU: refused in one line without one, and a whole record with one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu.tensorrt_engine import latency, measure, throughput
from cdga_sdk.backends.cuda_device import gpu_facts
from cdga_sdk.errors import ResourceError
from tests.fake_gpu import SIZE_HW, FakeGpu, engine


def has_gpu() -> bool:
    try:
        gpu_facts()
    except ResourceError:
        return False
    return True


@pytest.mark.parametrize("product", ["tensorrt", "tensorrt_rtx"])
def test_without_a_gpu_it_refuses_in_one_line(tiny_bundle: Path, tmp_path: Path, product: str) -> None:
    if has_gpu():
        pytest.skip("this machine has a GPU")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu.tensorrt_engine", str(tiny_bundle), "--product", product],
        capture_output=True,
        text=True,
        env=os.environ | {"CDGA_CACHE": str(tmp_path / "cache")},
        cwd=Path(__file__).parents[3],
    )
    assert (done.returncode, done.stdout) == (6, "")
    assert done.stderr.startswith("error[E-RESOURCE]: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.gpu
@pytest.mark.parametrize("product", ["tensorrt", "tensorrt_rtx"])
def test_a_record_is_whole(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, product: str) -> None:
    pytest.importorskip(product)
    if not has_gpu():
        pytest.skip("no GPU here")
    monkeypatch.setenv("CDGA_CACHE", str(tmp_path))
    report = measure(tiny_bundle, product, "fp32", (1, 1, 4), 20)
    parity, rows = report["parity"], report["latency"]
    assert isinstance(parity, dict)
    assert isinstance(rows, list)
    assert min(parity.values()) >= 0.9999
    assert [row["batch"] for row in rows] == [1, 1, 1, 4, 4, 4]
    assert all(row["with_copies_p95_ms"] >= row["with_copies_p50_ms"] > 0 for row in rows)


def test_ways_of_launching_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(batch=(1, 4)).install(monkeypatch)
    golden_NHWC = np.random.default_rng(0).integers(0, 256, (3, *SIZE_HW, 3), np.uint8)
    plain = "plain (not asked for)"
    rows = latency(engine(), golden_NHWC, (1, 4), 3)
    assert [row["batch"] for row in rows] == [1, 1, 1, 4, 4, 4]
    assert [row["launches"] for row in rows] == 2 * [plain, "graph", plain]
    rows = throughput(engine(), golden_NHWC, 3)
    assert [row["at_once"] for row in rows] == [1, 1, 2, 2, 1]
    assert [row["launches"] for row in rows[:2]] == [[plain], ["graph"]]
    assert all(isinstance(row["frames_per_s"], float) for row in rows)
    assert gpu.leaks() == {}
