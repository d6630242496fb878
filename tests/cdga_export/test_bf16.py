"""bf16: what becomes bfloat16, how it is judged, and where it runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from cdga_export import export as export_module
from cdga_export import judge as judge_module
from cdga_export.halved import halved
from cdga_export.lowered import Losses
from cdga_export.rounded import with_rounding
from cdga_export.to_onnx import checked_bytes, onnx_from_fused, onnx_of
from cdga_export.typed_fp16 import channel_statistics, convolutions, typed_fp16
from cdga_sdk.backends.openvino_cpu import OpenVinoBackend
from cdga_sdk.bundle import Bundle
from cdga_sdk.cli import run
from cdga_sdk.errors import UsageError
from cdga_sdk.precision import computes_bf16, open_precision
from cdga_sdk.segmenter import Segmenter
from cdga_train.models.fused import FusedNetwork
from cdga_train.models.registry import NETWORKS
from tests.cdga_export.test_halved import FineAtFirst
from tests.cdga_export.test_judge import LAX
from tests.cdga_export.test_to_onnx import MANIFEST, PREPROCESS, calibrated
from tests.cdga_export.test_typed_fp16 import JUDGED, SEEN, Differences, agreement, masks

NEEDS_BF16 = pytest.mark.skipif(not computes_bf16(), reason="this CPU has no bf16, or OpenVINO is not installed")
ABSENT = "cdga_sdk.backends.openvino_cpu.cpu_has_bf16"


class FineAtFirstThenWide(FineAtFirst):
    """With most of its multiplications in a robust convolution before the one of the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(64, 64, 3, padding=1)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        logits: Tensor = self.name_(self.mix(self.widen(self.compare(self.raise_(image_BCHW))).relu()))
        return logits


@pytest.fixture(scope="module")
def fp32() -> onnx.ModelProto:
    return onnx_of(onnx_from_fused(FusedNetwork(Differences(), PREPROCESS), MANIFEST))


@pytest.fixture(scope="module")
def fine_at_first() -> onnx.ModelProto:
    return onnx_of(onnx_from_fused(FusedNetwork(FineAtFirstThenWide(), PREPROCESS), MANIFEST))


@pytest.fixture(scope="module")
def bundle(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """With bf16, behind a gate that a network which has hardly learned passes; read only."""
    output = tmp_path_factory.mktemp("bf16") / "a.cdga"
    with pytest.MonkeyPatch.context() as patch:
        for module in (judge_module, export_module):
            patch.setattr(module, "MIN_AGREEMENT", LAX)
        assert run(["export", str(tiny_run), "-o", str(output), "--precision", "bf16", "--quiet"]) == 0
    return Bundle.open(output)


def bfloat16_convolutions(model: onnx.ModelProto) -> list[str]:
    half = {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.BFLOAT16}
    return [conv.name for conv in convolutions(model) if conv.input[1] in half]


def executed(backend: OpenVinoBackend) -> list[tuple[str, str]]:
    """Kind and arithmetic of every operator, as OpenVINO itself says it runs it."""
    nodes = [node.get_rt_info() for node in backend._compiled.get_runtime_model().get_ordered_ops()]
    return [(info["layerType"].astype(str), info["runtimePrecision"].astype(str)) for info in nodes]


def native_convolutions(backend: OpenVinoBackend) -> int:
    """How many convolutions OpenVINO runs in bf16."""
    return executed(backend).count(("Convolution", "bf16"))


# --- the graph


def test_all_but_what_makes_the_logits(fp32: onnx.ModelProto) -> None:
    half = typed_fp16(fp32, channel_statistics(fp32, SEEN), half="bfloat16")
    names = [conv.name for conv in convolutions(fp32)]
    assert bfloat16_convolutions(half) == names[:-1]
    assert max(opset.version for opset in half.opset_import) == 22  # the checker refuses such convolutions before
    assert not any(tensor.data_type == TensorProto.FLOAT16 for tensor in half.graph.initializer)
    assert max(opset.version for opset in fp32.opset_import) < 22
    onnx.checker.check_model(onnx_of(checked_bytes(half)), full_check=True)


def test_rounding_as_bfloat16_rounds() -> None:
    """A graph whose one half tensor is its input, cast: 1 + 2^-8 lies between two bfloat16 and goes to the even one."""
    given = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1e38], np.float32)
    value, result = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("x", "y"))
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.BFLOAT16),
        helper.make_node("Relu", ["half"], ["kept"]),
        helper.make_node("Cast", ["kept"], ["y"], to=TensorProto.FLOAT),
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [value], [result]), opset_imports=[helper.make_opsetid("", 22)], ir_version=10
    )
    import onnxruntime

    session = onnxruntime.InferenceSession(with_rounding(model).SerializeToString())
    (found,) = session.run(None, {"x": given})
    np.testing.assert_array_equal(found[:3], np.array([1.0, 1.0, 1 + 2**-6], np.float32))
    assert found[3] == pytest.approx(1e38, rel=2**-8)  # float16 would say infinity


def test_weights_have_eight_bits(fp32: onnx.ModelProto) -> None:
    statistics = channel_statistics(fp32, SEEN)
    half = typed_fp16(fp32, statistics, half="bfloat16")
    first = convolutions(fp32)[0]
    before = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in fp32.graph.initializer}
    after = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in half.graph.initializer}
    weight, rounded = before[first.input[1]], after[convolutions(half)[0].input[1]]
    error = np.abs(rounded - weight) / np.abs(weight)
    assert 2**-10 < error.max() <= 2**-8  # half of the last of 8 bits


def test_the_first_stay_and_every_frame_judges(fine_at_first: onnx.ModelProto) -> None:
    names = [conv.name for conv in convolutions(fine_at_first)]
    everything = halved(fine_at_first, SEEN, "bfloat16", min_agreement=-1.0)  # no loss is too much
    assert bfloat16_convolutions(everything.model) == names[:-1]
    assert everything.share < 1
    assert agreement(with_rounding(everything.model), fine_at_first) < 0.9
    found = halved(fine_at_first, SEEN, "bfloat16", min_agreement=0.7)
    assert bfloat16_convolutions(found.model) == names[2:-1]
    assert found.names == set(names[2:-1])
    assert str(found).endswith("in bfloat16 (2 of 5 convolutions)")
    rounded = with_rounding(found.model)
    losses = Losses(fine_at_first, SEEN, len(SEEN))
    assert losses(rounded) <= 0.15  # half of what the gate allows
    assert losses.are_within(losses(rounded), rounded)
    assert not losses.are_within(losses(rounded) - 1e-9, rounded)
    assert losses(rounded) >= Losses(fine_at_first, SEEN, 1)(rounded)


@NEEDS_BF16
def test_openvino_computes_what_is_typed_so() -> None:
    torch.manual_seed(3)
    fused = calibrated(NETWORKS["lraspp_mobilenet_v3"].build(19), JUDGED)
    model = onnx_of(onnx_from_fused(fused, MANIFEST))
    half = typed_fp16(model, channel_statistics(model, SEEN), half="bfloat16")
    backend = OpenVinoBackend(checked_bytes(half), threads=1, precision="bf16")
    assert backend.gives_logits
    assert native_convolutions(backend) == len(bfloat16_convolutions(half)) == len(convolutions(model)) - 2
    assert native_convolutions(OpenVinoBackend(checked_bytes(model), threads=1)) == 0


@NEEDS_BF16
def test_openvino_rounds_as_the_judge_does(fp32: onnx.ModelProto) -> None:
    half = typed_fp16(fp32, channel_statistics(fp32, SEEN), half="bfloat16")
    native = OpenVinoBackend(checked_bytes(half), threads=1, precision="bf16").infer(JUDGED).mask_NHW
    judged, exact = (masks(graph) for graph in (with_rounding(half), fp32))
    assert (native != exact).any()
    assert (native == judged).mean() > 0.99
    assert (native == exact).mean() > 0.97


# --- the bundle


def test_the_report_names_what_judged(bundle: Bundle) -> None:
    assert bundle.manifest.precisions == ("fp32", "bf16")
    report = bundle.parity["bf16"]
    assert isinstance(report, dict)
    judge = "openvino cpu bf16" if computes_bf16() else "onnxruntime cpu bf16 (rounded)"
    assert (report["candidate"], report["min_agreement"]) == (judge, 0.5)
    card = (bundle.path / "CARD.md").read_text()
    assert f"on a CPU, bf16 by {judge}. Figures" in card
    assert "| bf16 | `model.bf16.onnx` |" in card
    assert len(bundle.graph("bf16")) < 0.6 * len(bundle.model_bytes)
    assert (bundle.path / "worst/bf16.png").is_file()


def test_without_bf16_the_judge_rounds(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ABSENT, lambda: False)
    assert run(["export", str(tiny_run), "-o", str(tmp_path / "a.cdga"), "--precision", "bf16"]) == 7
    assert "onnxruntime cpu bf16 (rounded) differs from torch" in capsys.readouterr().err  # it has hardly learned
    assert [p.name for p in tmp_path.iterdir()] == ["a.cdga.refused.bf16.png"]


@NEEDS_BF16
@pytest.mark.parametrize("precision", ["bf16", "auto"])
def test_it_runs_where_the_cpu_has_it(bundle: Bundle, precision: str) -> None:
    opened = open_precision(bundle, precision, backend="openvino", device="cpu", threads=1)
    assert (opened.precision, opened.backend.name) == ("bf16", "openvino cpu bf16")
    assert isinstance(opened.backend, OpenVinoBackend)
    assert native_convolutions(opened.backend) == len(bfloat16_convolutions(onnx_of(bundle.graph("bf16"))))
    with Segmenter(bundle.path, precision=precision, backend="openvino", threads=1) as segmenter:
        assert segmenter.backend_name == "openvino cpu bf16"


@pytest.mark.parametrize(
    ("precision", "name"),
    [("bf16", "openvino cpu (this CPU has no bf16) fp32"), ("auto", "openvino cpu fp32")],
)
def test_elsewhere_float32_runs_and_says_so(
    bundle: Bundle, precision: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ABSENT, lambda: False)
    opened = open_precision(bundle, precision, backend="openvino", device="cpu", threads=1)
    assert (opened.precision, opened.backend.name) == ("fp32", name)
    golden = bundle.golden_frames()[0]
    mask_1HW = opened.backend.infer(np.ascontiguousarray(golden.image_bgr[np.newaxis, :, :, ::-1])).mask_NHW
    assert (mask_1HW[0] == golden.mask).mean() >= 0.9999  # the bundle's float32 graph, not the other one


def test_auto_leaves_the_runtime_alone(bundle: Bundle, tiny_bundle: Path) -> None:
    opened = open_precision(bundle, "auto", backend="onnxruntime", device="cpu", threads=1)
    assert (opened.precision, opened.backend.name) == ("fp32", "onnxruntime cpu fp32")
    plain = open_precision(Bundle.open(tiny_bundle), "auto", backend="openvino", threads=1)
    assert (plain.precision, plain.backend.name) == ("fp32", "openvino cpu fp32")


@pytest.mark.parametrize(
    ("backend", "device", "said"),
    [
        ("onnxruntime", "cpu", "not with backend onnxruntime"),
        ("tensorrt", "auto", "not with backend tensorrt"),
        ("auto", "cuda", "not with device cuda"),
    ],
)
def test_other_runtimes_refuse(bundle: Bundle, backend: str, device: str, said: str) -> None:
    with pytest.raises(UsageError, match=f"bf16 runs in OpenVINO on a CPU, {said}; use --backend openvino") as caught:
        open_precision(bundle, "bf16", backend=backend, device=device)
    assert caught.value.exit_code == 2


def test_a_bundle_without_it(tiny_bundle: Path) -> None:
    with pytest.raises(UsageError, match="no precision 'bf16' in this bundle; use one of fp32, or a bundle"):
        open_precision(Bundle.open(tiny_bundle), "bf16", backend="onnxruntime")


def test_verify_uses_the_gate_of_what_ran(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verify = ["verify", str(bundle.path), "--backend", "openvino", "--precision"]
    monkeypatch.setattr(ABSENT, lambda: False)
    assert run([*verify, "bf16"]) == 0
    assert "(this CPU has no bf16) fp32, 8 golden frames" in (said := "".join(capsys.readouterr()))
    assert "(gate 99.99 %)" in said
    monkeypatch.undo()
    if computes_bf16():
        assert run([*verify, "auto"]) == 0
        assert "openvino cpu bf16, 8 golden frames" in (said := "".join(capsys.readouterr()))
        assert "(gate 50.00 %)" in said


def test_the_script_for_onnx_runtime_says_that_it_cannot(bundle: Bundle) -> None:
    image = next((bundle.path / "golden").glob("*.png"))
    command = [sys.executable, str(bundle.path / "deploy/run_onnx.py"), str(image), "o.png", "--precision", "bf16"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        "bf16 graphs are for OpenVINO; ONNX Runtime cannot run them on a CPU\n",
    )
