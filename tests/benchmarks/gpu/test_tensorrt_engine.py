"""The measurement on a GPU: refused in one line without one, and a whole record with one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.tensorrt_engine import measure
from cdga_sdk.backends.cuda_device import gpu_facts
from cdga_sdk.errors import ResourceError


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
    parity, latency = report["parity"], report["latency"]
    assert isinstance(parity, dict)
    assert isinstance(latency, list)
    assert min(parity.values()) >= 0.9999
    assert [row["batch"] for row in latency] == [1, 4]
    assert all(row["with_copies_p95_ms"] >= row["with_copies_p50_ms"] > 0 for row in latency)
