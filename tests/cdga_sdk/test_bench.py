"""``cdga bench``: what takes part, what is left out and why, and when its numbers say nothing."""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from cdga_sdk import bench as module
from cdga_sdk.bench import AGAIN, BenchRequest, ScopeTimes, bench
from cdga_sdk.cli import run
from cdga_sdk.errors import GateError, InputError, ResourceError, UsageError
from cdga_sdk.segmenter import Segmenter
from cdga_sdk.verify import Verification

ON_CPU = ["--device", "cpu", "--threads", "1", "--rounds", "5"]


def file_scope(first: Sequence[float], again: Sequence[float], other: Sequence[float] = (2.0, 2.0, 2.0)) -> ScopeTimes:
    return ScopeTimes(
        scope="file",
        samples_ms={"one": first, "other": other, AGAIN: again},
        slowest_stage_ms={"one": [2.0, 2.0, 2.0]},
    )


def test_every_runtime_in_three_scopes(
    tiny_bundle: Path, ride: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert run(["bench", str(tiny_bundle), "--video", str(ride), "--frames", "4", *ON_CPU, "--json"]) in {0, 4}
    record = json.loads(capsys.readouterr().out)
    names = [one["name"] for one in record["contenders"]]
    assert sorted(names) == ["onnxruntime cpu fp32", "openvino cpu fp32"]
    assert record["left_out"] == {}
    assert record["video"] == "ride.mp4"
    command = f"cdga bench {tiny_bundle.name} --video ride.mp4 --backend auto --backend onnxruntime --backend openvino"
    assert record["command"] == f"{command} --threads 1 --device cpu --rounds 5 --frames 4 --json"
    assert (record["size_hw"], record["frames"]) == ([64, 128], 4)
    assert list(record["scopes"]) == ["model", "frame", "file"]
    for scope in record["scopes"].values():
        assert list(scope["contenders"]) == [*names, AGAIN]
        for row in scope["contenders"].values():
            assert len(row["samples_ms"]) == 5
            assert min(row["samples_ms"]) > 0
    model, frame, file = (record["scopes"][name]["contenders"][names[0]] for name in ("model", "frame", "file"))
    assert median(model["samples_ms"]) < 1.5 * median(frame["samples_ms"])  # a part of it, and not of all four frames
    assert file["of_slowest_stage"]["median"] > 0
    assert not list(tmp_path.iterdir())


def test_golden_frames_where_no_clip_is_given(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", str(tiny_bundle), "--backend", "onnxruntime", *ON_CPU]) in {0, 4}
    out, told = capsys.readouterr()
    assert out == ""
    assert "8 golden frames" in told
    assert "model, milliseconds a frame" in told
    assert "frame, milliseconds a frame" in told
    assert "file, milliseconds" not in told
    assert "onnxruntime cpu fp32: 100.000 % as trained" in told


def test_what_cannot_take_part_is_told_and_the_rest_is_measured(tiny_bundle: Path) -> None:
    report = bench(
        BenchRequest(
            model=tiny_bundle, backends=("onnxruntime", "tensorrt"), device="cpu", precisions=("fp32",), rounds=5
        )
    )
    assert [one.name for one in report.contenders] == ["onnxruntime cpu fp32"]
    assert report.left_out == {"tensorrt fp32": "TensorRT has no CPU device; use --backend onnxruntime"}


def test_what_gives_other_labels_is_not_timed(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: Path, *, backend: str, **_: object) -> Verification:
        agreement = 0.5 if backend == "openvino" else 1.0
        return Verification(
            model=str(model),
            backend=f"{backend} cpu fp32",
            agreement={"000": agreement},
            min_agreement=0.9999,
            latency_ms=1.0,
            slowest_ms=1.0,
        )

    monkeypatch.setattr(module, "verify", wrong)
    request = BenchRequest(model=tiny_bundle, backends=("openvino", "onnxruntime"), device="cpu", rounds=5)
    report = bench(request)
    assert [one.name for one in report.contenders] == ["onnxruntime cpu fp32"]
    assert list(report.scopes[0].samples_ms) == ["onnxruntime cpu fp32", AGAIN]
    assert "gives 50.000 % of the golden mask's pixels" in report.left_out["openvino fp32"]
    with pytest.raises(GateError):
        bench(BenchRequest(model=tiny_bundle, backends=("openvino",), device="cpu", rounds=5))


def test_what_opens_only_once_is_left_out(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Once(Segmenter):
        def __init__(self, model: Path, *, backend: str, throughput: bool, **kept: Any) -> None:
            if backend == "openvino" and throughput:
                raise ResourceError("no memory for another")
            super().__init__(model, backend=backend, throughput=throughput, **kept)

    monkeypatch.setattr(module, "Segmenter", Once)
    request = BenchRequest(model=tiny_bundle, backends=("openvino", "onnxruntime"), device="cpu", rounds=5)
    report = bench(request)
    assert [one.name for one in report.contenders] == ["onnxruntime cpu fp32"]
    assert report.left_out == {"openvino fp32": "no memory for another"}


def test_bad_words(tiny_bundle: Path, tmp_path: Path) -> None:
    assert run(["bench", str(tmp_path / "absent.cdga")]) == 3
    assert run(["bench", str(tiny_bundle), "--video", str(tmp_path / "absent.mp4")]) == 3
    assert run(["bench", str(tiny_bundle), "--rounds", "4"]) == 2
    assert run(["bench", str(tiny_bundle), "--precision", "fp16"]) == 2
    assert run(["bench", str(tiny_bundle), "--precision", "fp32", "--precision", "fp8"]) == 2
    assert run(["bench", str(tiny_bundle), "--backend", "onnxruntime", "--backend", "openvin"]) == 2
    with pytest.raises(UsageError, match="frames is 0"):
        BenchRequest(model=Path("m"), frames=0)
    assert run(["bench", str(tiny_bundle), "--frames", "8"]) == 2


def test_the_packages_model_goes_by_its_name_in_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "default", "--backend", "onnxruntime", "--threads", "1", "--device", "cpu", "--rounds", "5"]
    assert run([*words, "--json"]) in {0, 4}
    assert json.loads(capsys.readouterr().out)["command"] == shlex.join(["cdga", *words, "--json"])


def test_a_clip_without_a_frame(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(InputError, match=r"text\.mp4"):
        bench(BenchRequest(model=tiny_bundle, video=tmp_path / "text.mp4"))


def test_speed_ups_are_paired_and_against_the_first() -> None:
    scope = file_scope([4.0, 8.0, 6.0], [4.0, 8.0, 6.0], [2.0, 4.0, 3.0])
    assert scope.first == "one"
    assert scope.speed_up("other").median == 2
    assert not scope.is_void
    rows = scope.record()["contenders"]
    assert isinstance(rows, dict)
    assert rows["one"]["median_ms"] == 6
    assert rows["one"]["of_slowest_stage"]["median"] == 3
    assert rows["other"]["is_resolved"]
    assert "of_slowest_stage" not in rows["other"]


def test_a_null_pair_that_differs_voids_the_run(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scope = file_scope([1.0, 1.0, 1.0], [1.1, 1.1, 1.1])
    assert scope.is_void
    rows = scope.record()["contenders"]
    assert isinstance(rows, dict)
    assert not rows["other"]["is_resolved"]
    monkeypatch.setattr(module, "_frame_scopes", lambda samples: (scope,))
    assert run(["bench", str(tiny_bundle), "--backend", "onnxruntime", *ON_CPU]) == 4
    told = capsys.readouterr().err
    assert "void" in told
    assert "not resolved" in told
    assert "the ratios say nothing" in told
