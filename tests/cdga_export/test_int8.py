"""int8 on CPUs: OpenVINO judges beside ONNX Runtime, and what it says decides which of them runs the graph."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from cdga_export import export as export_module
from cdga_export import judge as judge_module
from cdga_export.export import Exported, ExportOptions, export_checkpoint
from cdga_export.frames import Frame
from cdga_export.judge import Judge
from cdga_export.parity import ParityReport, Reference, openvino_line
from cdga_export.run import _lines
from cdga_sdk.backends.onnx_runtime import OnnxRuntimeBackend
from cdga_sdk.backends.openvino_cpu import OpenVinoBackend
from cdga_sdk.bundle import Bundle, write_bundle
from cdga_sdk.errors import ModelError
from cdga_sdk.precision import open_precision
from cdga_sdk.verify import verify
from tests.cdga_export.test_bf16 import executed
from tests.cdga_export.test_judge import LAX

PASSED_BY = "passed by for int8: not proven in OpenVINO"


@pytest.fixture(scope="module")
def done(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """With int8, behind a gate that a network which has hardly learned passes; read only."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (judge_module, export_module):
            patch.setattr(module, "MIN_AGREEMENT", LAX)
        return export_checkpoint(
            tiny_run, tmp_path_factory.mktemp("int8") / "a.cdga", ExportOptions(precisions=("int8",))
        )


@pytest.fixture
def references(done: Exported) -> list[Reference]:
    """ONNX Runtime's own int8 masks of the golden frames: what OpenVINO rounds otherwise differs from them."""
    runtime = OnnxRuntimeBackend(done.bundle.graph("int8"), device="cpu")
    found = []
    for golden in done.bundle.golden_frames():
        frame_rgb = np.ascontiguousarray(golden.image_bgr[:, :, ::-1])
        answer = runtime.infer(frame_rgb[np.newaxis])
        mask = answer.mask_NHW[0]
        frame = Frame(name=golden.name, image_bgr=golden.image_bgr, frame_rgb=frame_rgb)
        found.append(Reference(frame=frame, mask=mask, conf=answer.confidence(0), image_mask=mask))
    return found


@pytest.fixture
def judge(done: Exported, references: list[Reference], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Judge:
    """That lets int8 differ from its references in no pixel."""
    monkeypatch.setattr(judge_module, "MIN_AGREEMENT", {"fp32": 0.0, "int8": 1.0})
    return Judge(references, done.bundle.model_bytes, None, tmp_path / "a.cdga")


def rewritten(bundle: Bundle, int8: object, path: Path) -> Bundle:
    """The bundle with another report on its int8 graph."""
    return write_bundle(
        path,
        manifest=bundle.manifest,
        graphs={"fp32": bundle.model_bytes, "int8": bundle.graph("int8")},
        golden=bundle.golden_frames(),
        parity={"fp32": bundle.parity["fp32"], "int8": int8},
        card="#",
    )


def test_openvino_judges_too(done: Exported) -> None:
    found = done.parity["int8"].openvino
    assert isinstance(found, ParityReport)
    assert (found.candidate, found.min_agreement, found.faults) == ("openvino cpu int8", 0.5, ())
    assert done.parity["fp32"].openvino is None
    assert [p for p in done.bundle.manifest.precisions if done.bundle.is_proven_in_openvino_too(p)] == ["int8"]
    assert f"- int8: {openvino_line(found)}." in (done.bundle.path / "CARD.md").read_text()
    seen = verify(done.bundle.path, precision="int8", device="cpu")
    assert (seen.backend, seen.min_agreement) == ("openvino cpu int8", 0.5)
    assert min(seen.agreement.values()) == pytest.approx(found.worst_agreement, abs=1e-3)


@pytest.mark.parametrize("breaks", ["import", "run"])
def test_a_broken_openvino_ends_no_export(
    judge: Judge, done: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breaks: str
) -> None:
    def infer(self: OpenVinoBackend, frame_NHWC: object) -> object:
        raise RuntimeError("mixed\nversions")

    if breaks == "import":
        (tmp_path / "openvino.py").write_text('raise RuntimeError("mixed versions")')
        monkeypatch.syspath_prepend(tmp_path)
        for name in [n for n in sys.modules if n.split(".")[0] == "openvino" or n == OpenVinoBackend.__module__]:
            monkeypatch.delitem(sys.modules, name)
    else:
        monkeypatch.setattr(OpenVinoBackend, "infer", infer)
    found = judge.proven("int8", done.bundle.graph("int8")).report.openvino
    assert isinstance(found, str)
    assert found == "mixed versions"


def test_what_is_not_in_8_bits_stays_float32(done: Exported) -> None:
    backend = OpenVinoBackend(done.bundle.graph("int8"), threads=1)
    operators = executed(backend)
    assert {"u8", "i8"} & {arithmetic for kind, arithmetic in operators if kind == "Convolution"}
    assert not {"bf16", "f16"} & {arithmetic for _, arithmetic in operators}


def test_auto_opens_int8_where_it_is_proven(done: Exported) -> None:
    opened = open_precision(done.bundle, "int8", device="cpu", threads=1)
    assert opened.backend.name == "openvino cpu int8"
    assert opened.choice.walk[2].reason == "the first in this order that runs here"
    asked = open_precision(done.bundle, "int8", backend="onnxruntime", device="cpu", threads=1)
    assert asked.backend.name == "onnxruntime cpu int8"
    assert open_precision(done.bundle, "auto", device="cpu", threads=1).precision == "fp32"


@pytest.mark.parametrize("openvino", [None, "not installed"])
def test_auto_passes_openvino_by_where_it_is_not(done: Exported, openvino: object, tmp_path: Path) -> None:
    older = {key: value for key, value in done.parity["int8"].as_dict().items() if key != "openvino"}
    report = older if openvino is None else older | {"openvino": openvino}
    bundle = rewritten(done.bundle, report, tmp_path / "a.cdga")
    opened = open_precision(bundle, "int8", device="cpu", threads=1)
    assert opened.backend.name == "onnxruntime cpu int8"
    assert opened.choice.walk[2].reason == PASSED_BY
    asked = open_precision(bundle, "int8", backend="openvino", device="cpu", threads=1)
    assert asked.backend.name == "openvino cpu int8"


def test_a_failure_in_openvino_alone_leaves_int8_to_onnx_runtime(done: Exported, judge: Judge, tmp_path: Path) -> None:
    report = judge.proven("int8", done.bundle.graph("int8")).report
    assert (report.candidate, report.faults) == ("onnxruntime cpu int8", ())
    assert isinstance(report.openvino, ParityReport)
    assert report.openvino.faults
    bundle = rewritten(done.bundle, report.as_dict(), tmp_path / "a.cdga")
    assert not bundle.is_proven_in_openvino_too("int8")
    lines = list(_lines(Exported(bundle=bundle, parity={"fp32": judge.fp32.report, "int8": report})))
    assert lines[2].startswith("int8: for ONNX Runtime only: in OpenVINO agreement ")
    assert lines[3].endswith("of fp32's time here, onnxruntime cpu int8 against openvino cpu fp32")


def test_a_runtime_that_fails_while_it_is_timed_ends_no_export(done: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    def infer(self: OpenVinoBackend, frame_NHWC: object) -> object:
        raise ModelError("mixed versions")

    monkeypatch.setattr(OpenVinoBackend, "infer", infer)
    *_, timed, place = _lines(done)
    assert (timed, place) == ("int8 cannot be timed here: mixed versions", str(done.bundle.path))


def test_openvino_that_cannot_be_asked(done: Exported, judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(judge._in_openvino(b"garbage", None)).startswith("OpenVINO refuses the graph (")
    monkeypatch.delitem(sys.modules, "cdga_sdk.backends.openvino_cpu")
    monkeypatch.setitem(sys.modules, "openvino", None)
    found = judge.proven("int8", done.bundle.graph("int8")).report.openvino
    assert isinstance(found, str)
    assert openvino_line(found) == (
        "for ONNX Runtime only: OpenVINO could not be asked "
        "('openvino' is needed here; pip install 'cdga-sdk[openvino]')"
    )
