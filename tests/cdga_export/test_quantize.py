"""8 bits: which convolutions, in which form for whom, and that the gate keeps what they ruin."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import Tensor, nn

from cdga_export.export import ExportOptions, export_checkpoint
from cdga_export.lowered import longest_admitted, multiplications
from cdga_export.quantize import Quantizer, Runtime, quantized
from cdga_export.to_onnx import checked_bytes, onnx_from_fused, onnx_of
from cdga_export.typed_fp16 import channel_statistics, convolutions, typed_fp16
from cdga_sdk.bundle import Bundle, write_bundle
from cdga_sdk.cli import run
from cdga_sdk.errors import GateError
from cdga_sdk.image import read_image_bgr
from cdga_train.models.fused import FusedNetwork
from cdga_train.models.registry import NETWORKS
from tests.cdga_export.test_to_onnx import MANIFEST, PREPROCESS, calibrated
from tests.cdga_export.test_typed_fp16 import FRAMES, SEEN, agreement


@pytest.fixture(scope="module")
def fp32() -> onnx.ModelProto:
    torch.manual_seed(3)
    return onnx_of(onnx_from_fused(calibrated(NETWORKS["lraspp_mobilenet_v3"].build(19), FRAMES), MANIFEST))


def in_8_bits(model: onnx.ModelProto) -> set[str]:
    made_by = {node.output[0]: node.op_type for node in model.graph.node}
    return {conv.name for conv in convolutions(model) if made_by.get(conv.input[1]) == "DequantizeLinear"}


@pytest.mark.parametrize("runtime", ["cpu", "tensorrt"])
def test_the_convolutions_that_were_named(fp32: onnx.ModelProto, runtime: Runtime) -> None:
    quantizer = Quantizer(fp32, SEEN, runtime)
    names = [conv.name for conv in convolutions(fp32)]
    assert in_8_bits(quantizer.graph(names[3:9])) == set(names[3:9])
    small = quantizer.graph(names)
    assert in_8_bits(small) == set(names)
    # TensorRT's form keeps float weights and rounds them in the graph; the engine is what is small.
    assert len(checked_bytes(small)) < (0.6 if runtime == "cpu" else 1.1) * len(checked_bytes(fp32))
    assert agreement(small, fp32) > 0.3  # random weights: by chance it would be 1 in 19


def test_tensorrt_gets_symmetric_pairs_and_float_biases(fp32: onnx.ModelProto) -> None:
    small = Quantizer(fp32, SEEN, "tensorrt").graph([conv.name for conv in convolutions(fp32)])
    constants = {tensor.name: tensor for tensor in small.graph.initializer}
    for node in small.graph.node:
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            zero = onnx.numpy_helper.to_array(constants[node.input[2]])
            assert zero.dtype == np.int8
            assert not zero.any()
    named = [conv.input[2] for conv in convolutions(small) if len(conv.input) > 2]
    biases = [constants[name].data_type for name in named if name in constants]
    assert set(biases) == {TensorProto.FLOAT}


def test_multiplications_by_hand() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
            self.second = nn.Conv2d(8, 19, 1)

        def forward(self, image_BCHW: Tensor) -> Tensor:
            logits: Tensor = self.second(self.first(image_BCHW))
            return logits

    model = onnx_of(onnx_from_fused(FusedNetwork(Two(), PREPROCESS), MANIFEST))
    height, width = (side // 2 for side in PREPROCESS.imgsz_hw)
    assert list(multiplications(model).values()) == [3 * 9 * 8 * height * width, 8 * 19 * height * width]


def test_the_longest_start_that_is_admitted() -> None:
    names = list("abcdefg")
    for admitted in (names[:length] for length in range(8)):

        def is_admitted(some: Sequence[str], most: int = len(admitted)) -> bool:
            return len(some) <= most

        assert longest_admitted(names, is_admitted) == admitted


class OneBadConvolution(nn.Module):
    """A convolution whose inputs differ in size by 10,000, which 8 bits for both cannot hold; three easy ones."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.easy = nn.Conv2d(3, 32, 3, padding=1)
        self.easier = nn.Conv2d(32, 32, 3, padding=1)
        self.grow = nn.Conv2d(32, 2, 1)
        self.bad = nn.Conv2d(2, 19, 1)
        with torch.no_grad():
            self.grow.weight[0].mul_(1e4)
            self.bad.weight[:, 0] = 0

    def forward(self, image_BCHW: Tensor) -> Tensor:
        logits: Tensor = self.bad(self.grow(self.easier(self.easy(image_BCHW))))
        return logits


@pytest.fixture(scope="module")
def one_bad() -> onnx.ModelProto:
    return onnx_of(onnx_from_fused(FusedNetwork(OneBadConvolution(), PREPROCESS), MANIFEST))


def test_what_ruins_the_labels_stays_float(one_bad: onnx.ModelProto) -> None:
    names = [conv.name for conv in convolutions(one_bad)]
    assert agreement(Quantizer(one_bad, SEEN, "cpu").graph(names), one_bad) < 0.8
    tried: list[int] = []
    found = quantized(one_bad, SEEN, "cpu", min_agreement=0.9, on_tried=tried.append)
    assert tried == [1, 2, 3, 4]
    assert names[3] not in found.names
    assert 0.5 < found.share < 1
    assert in_8_bits(found.model) == found.names
    assert agreement(found.model, one_bad) >= 0.9
    assert str(found).endswith(f"({len(found.names)} of 4 convolutions)")


def test_too_little_in_8_bits_is_no_int8(one_bad: onnx.ModelProto) -> None:
    with pytest.raises(GateError, match=r"at most \d+ % of the convolutions' multiplications .* 8 bits for cpu"):
        quantized(one_bad, SEEN, "cpu", min_agreement=1.0)


def test_all_where_all_keeps_the_labels(one_bad: onnx.ModelProto) -> None:
    found = quantized(one_bad, SEEN, "cpu", min_agreement=0.0)
    assert found.names == {conv.name for conv in convolutions(one_bad)}
    assert found.share == 1.0


def test_what_the_gate_refuses_is_shown_and_not_written(tiny_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "a.cdga"
    with pytest.raises(GateError, match=r"onnxruntime cpu fp16 \(rounded\) differs .* no bundle was written; see "):
        export_checkpoint(tiny_run, output, ExportOptions(precisions=("fp16",)))
    assert read_image_bgr(tmp_path / "a.cdga.refused.fp16.png").shape == (64, 4 * 128, 3)
    assert [p.name for p in tmp_path.iterdir()] == ["a.cdga.refused.fp16.png"]


def test_a_network_that_has_hardly_learned_is_refused_in_fp16(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "a.cdga"
    assert run(["export", str(tiny_run), "-o", str(output), "--precision", "fp16", "--calib", "streets:dusk"]) == 7
    assert "onnxruntime cpu fp16 (rounded) differs from torch" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["a.cdga.refused.fp16.png"]


def test_published_weights_from_the_command_line(
    city_weights: Path, camvid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "a.cdga"
    origin = ["--weights", str(city_weights), "--model", "efficientvit_b0", "--imgsz", "352,480"]
    assert run(["export", *origin, "-o", str(output), "--precision", "fp16", "--golden", f"camvid:{camvid}"]) == 0
    assert "onnxruntime cpu fp16 (rounded) = torch" in capsys.readouterr().err
    assert Bundle.open(output).manifest.precisions == ("fp32", "fp16")
    assert (output / "worst/fp16.png").is_file()
    assert "| fp16 | `model.fp16.onnx` |" in (output / "CARD.md").read_text()


def test_a_precision_is_chosen_where_the_bundle_is_used(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = Bundle.open(tiny_bundle)
    frames, model = plain.golden_frames(), onnx_of(plain.model_bytes)
    statistics = channel_statistics(model, [np.ascontiguousarray(f.image_bgr[:, :, ::-1]) for f in frames])
    bundle = write_bundle(
        tmp_path / "a.cdga",
        manifest=plain.manifest.model_copy(update={"precisions": ("fp32", "fp16")}),
        graphs={"fp32": plain.model_bytes, "fp16": checked_bytes(typed_fp16(model, statistics))},
        golden=frames,
        parity=dict.fromkeys(("fp32", "fp16"), plain.parity["fp32"]),
        card="#",
    )
    image = bundle.path / "golden" / f"{frames[0].name}.png"
    segment = ["segment", str(image), "--model", str(bundle.path), "--save", "masks", "-o", str(tmp_path / "out")]
    assert run([*segment, "--quiet", "--precision", "fp16", "--backend", "onnxruntime"]) == 0
    assert run([*segment, "--quiet", "--precision", "int8", "--exist-ok"]) == 2
    assert "no precision 'int8' in this bundle; use one of fp32, fp16" in capsys.readouterr().err
