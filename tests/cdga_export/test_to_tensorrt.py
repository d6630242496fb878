"""``cdga export --trt`` and ``--trt-rtx``: engines beside a bundle that is complete without them."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cdga_export.to_tensorrt import USUAL_SMS, build_engines, engine_path, engine_request, run_engines
from cdga_sdk.backends.engine_cache import read_engine, sidecar_path
from cdga_sdk.bundle import Bundle
from cdga_sdk.cli import run
from cdga_sdk.errors import ModelError, ResourceError, UsageError


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CDGA_CACHE", str(tmp_path / "cache"))


def request(**words: Any) -> Any:
    return engine_request(None, **({"trt": False, "trt_rtx": False} | words))


def test_engines_ahead_of_time(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorrt_rtx")
    output = tmp_path / "street.v2.cdga"
    words = ["export", str(tiny_run), "-o", str(output), "--trt-rtx", "--sm", "89,120", "--batch", "1:2:4"]
    assert run(words) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "street.v2.cdga",
        "street.v2.sm120.engine",
        "street.v2.sm120.engine.json",
        "street.v2.sm89.engine",
        "street.v2.sm89.engine.json",
    ]
    graph = hashlib.sha256(Bundle.open(output).graph("fp32")).hexdigest()
    for sm in ("89", "120"):
        path = engine_path(output, sm)
        record = json.loads(sidecar_path(path).read_text())
        assert (record["sm"], record["gpu"], record["driver"]) == (sm, "any", "any")
        assert (record["onnx_sha256"], record["product"], record["batch"]) == (graph, "tensorrt_rtx", "1:2:4")
        assert record["engine_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert read_engine(path).sidecar.engine_bytes == path.stat().st_size
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("building street.v2.sm") == 2
    assert "street.v2.sm120.engine: fp32, " in err


def test_engines_are_not_replaced_unasked(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorrt_rtx")
    output = tmp_path / "model.cdga"
    engine_path(output, "89").write_bytes(b"kept")
    words = ["export", str(tiny_run), "-o", str(output), "--trt-rtx", "--sm", "89", "--quiet"]
    assert run(words) == 2
    assert "model.sm89.engine: already exists" in capsys.readouterr().err
    assert not output.exists()
    assert engine_path(output, "89").read_bytes() == b"kept"
    assert run([*words, "--exist-ok"]) == 0
    assert read_engine(engine_path(output, "89")).sidecar.sm == "89"
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("without_gpu")
def test_without_gpu_the_bundle_is_complete(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorrt")
    output = tmp_path / "model.cdga"
    assert run(["export", str(tiny_run), "-o", str(output), "--trt", "--batch", "1:4:8", "--quiet"]) == 6
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"error[E-RESOURCE]: {output}: the bundle is complete, an engine is not: ")
    assert err.strip().endswith("nvidia-smi shows a GPU and its driver here")
    assert len(Bundle.open(output).golden_frames()) == 8
    assert [p.name for p in tmp_path.iterdir()] == ["model.cdga"]


@pytest.mark.parametrize(
    ("flag", "library", "extra"), [("--trt", "tensorrt", "trt"), ("--trt-rtx", "tensorrt_rtx", "trt-rtx")]
)
def test_a_missing_library_is_told_before_the_export(
    tiny_run: Path,
    tmp_path: Path,
    flag: str,
    library: str,
    extra: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, library, None)  # what an import of a missing library finds
    assert run(["export", str(tiny_run), "-o", str(tmp_path / "model.cdga"), flag]) == 6
    err = capsys.readouterr().err
    assert err.startswith(f"error[E-RESOURCE]: '{library}' is needed here")
    assert err.endswith(f"pip install 'cdga-sdk[{extra}]'\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("without_gpu")
def test_engines_that_need_no_gpu_are_built_before_one_is_missed(tiny_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    bundle = renamed(Bundle.open(tiny_bundle), tmp_path / "m.cdga")
    wanted = request(trt=True, trt_rtx=True, sm="89", hw_compat="same-cc")
    with pytest.raises(ResourceError):
        build_engines(bundle, wanted, say=lambda line: None)
    assert read_engine(tmp_path / "m.sm89.engine").sidecar.hw_compat == "none"  # which is TensorRT's alone


def renamed(bundle: Bundle, path: Path) -> Bundle:
    """A bundle whose engines go elsewhere."""
    return replace(bundle, path=path)


def test_a_graph_that_is_refused_leaves_no_engine(tiny_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    bundle = renamed(Bundle.open(tiny_bundle), tmp_path / "m.cdga")
    with pytest.raises(ModelError, match="FP32 GEMM is not supported"):
        build_engines(bundle, request(trt_rtx=True, sm="75"), say=lambda line: None)
    with pytest.raises(ModelError, match="the bundle is complete, an engine is not: ") as caught:
        run_engines(bundle, request(trt_rtx=True, sm="75"), quiet=True)
    assert caught.value.exit_code == 5
    assert list(tmp_path.iterdir()) == []


def test_a_precision_that_the_bundle_lacks(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = renamed(Bundle.open(tiny_bundle), tmp_path / "m.cdga")
    with pytest.raises(UsageError, match="no precision 'fp16' in this bundle"):
        build_engines(bundle, request(trt_rtx=True), precision="fp16", say=lambda line: None)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--batch", "1:4:8"], "--batch goes with --trt or --trt-rtx"),
        (["--workspace", "4"], "--workspace goes with --trt or --trt-rtx"),
        (["--trt", "--sm", "89"], "--sm goes with --trt-rtx"),
        (["--trt-rtx", "--hw-compat", "none"], "--hw-compat goes with --trt"),
        (["--trt-rtx", "--version-compatible"], "--version-compatible goes with --trt"),
        (["--trt-rtx", "--timing-cache", "x"], "--timing-cache goes with --trt"),
        (["--trt-rtx", "--sm", "8.9"], "sm is '8.9', wanted compute capabilities without the point"),
        (["--trt-rtx", "--sm", ""], "sm is ''"),
        (["--trt-rtx", "--sm", "89,90"], "builds nothing for SM 90; use some of 75, 80"),
        (["--trt", "--batch", "8:4:1"], "batch is 8:4:1, wanted 1 <= smallest <= best <= largest"),
        (["--trt", "--batch", "two"], "batch is 'two', wanted SMALLEST:BEST:LARGEST"),
        (["--trt", "--workspace", "-1"], "workspace is -1.0 GiB, wanted more than 0"),
        (["--trt", "--hw-compat", "all"], "unknown hw-compat 'all'"),
    ],
)
def test_wrong_flags_are_told_before_the_export(
    words: list[str], said: str, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx")
    assert run(["export", str(tiny_run), "-o", str(tmp_path / "m.cdga"), *words]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_the_words_mean() -> None:
    pytest.importorskip("tensorrt_rtx")
    assert request() is None
    assert request(trt_rtx=True).rtx_sms == USUAL_SMS
    made = request(trt=True, trt_rtx=True, sm="89, 120,89", batch="2", workspace=4.0, hw_compat="ampere+")
    assert (made.trt, made.rtx_sms, made.flags.batch) == (True, ("89", "120"), (2, 2, 2))
    assert (made.flags.workspace_gib, made.flags.hw_compat, made.overwrite) == (4.0, "ampere+", False)
