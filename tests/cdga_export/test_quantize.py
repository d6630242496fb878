"""8 bits: which convolutions, in which form for whom, and that the gate keeps what they ruin."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from cdga_export.export import ExportOptions, export_checkpoint
from cdga_export.quantize import kept_in_float, quantized
from cdga_export.to_onnx import checked_bytes, onnx_from_fused, onnx_of
from cdga_export.typed_fp16 import ChannelStatistics, channel_statistics, convolutions, typed_fp16
from cdga_sdk.bundle import Bundle, write_bundle
from cdga_sdk.cli import run
from cdga_sdk.errors import GateError
from cdga_sdk.image import read_image_bgr
from cdga_train.models.registry import NETWORKS
from tests.cdga_export.test_to_onnx import MANIFEST, calibrated
from tests.cdga_export.test_typed_fp16 import FRAMES, SEEN, agreement

Statistics = dict[str, ChannelStatistics]


@pytest.fixture(scope="module")
def fp32() -> onnx.ModelProto:
    torch.manual_seed(3)
    return onnx_of(onnx_from_fused(calibrated(NETWORKS["lraspp_mobilenet_v3"].build(19), FRAMES), MANIFEST))


@pytest.fixture(scope="module")
def statistics(fp32: onnx.ModelProto) -> Statistics:
    return channel_statistics(fp32, SEEN)


def in_8_bits(model: onnx.ModelProto) -> set[str]:
    made_by = {node.output[0]: node.op_type for node in model.graph.node}
    return {conv.name for conv in convolutions(model) if made_by.get(conv.input[0]) == "DequantizeLinear"}


@pytest.mark.parametrize("runtime", ["cpu", "tensorrt"])
def test_all_convolutions_but_those_kept(
    fp32: onnx.ModelProto, statistics: Statistics, runtime: Literal["cpu", "tensorrt"]
) -> None:
    left = kept_in_float(fp32, statistics)
    names = [conv.name for conv in convolutions(fp32)]
    assert {names[0], names[-1]} <= left
    small = quantized(fp32, SEEN, statistics, runtime)
    assert in_8_bits(small) == set(names) - left
    assert len(names) - len(left) > 20
    # TensorRT's form keeps float weights and rounds them in the graph; the engine is what is small.
    assert len(checked_bytes(small)) < (0.6 if runtime == "cpu" else 1.1) * len(checked_bytes(fp32))
    assert agreement(small, fp32) > 0.3  # random weights: by chance it would be 1 in 19


def test_tensorrt_gets_symmetric_pairs_and_float_biases(fp32: onnx.ModelProto, statistics: Statistics) -> None:
    small = quantized(fp32, SEEN, statistics, "tensorrt")
    constants = {tensor.name: tensor for tensor in small.graph.initializer}
    for node in small.graph.node:
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            zero = onnx.numpy_helper.to_array(constants[node.input[2]])
            assert zero.dtype == np.int8
            assert not zero.any()
    named = [conv.input[2] for conv in convolutions(small) if len(conv.input) > 2]
    biases = [constants[name].data_type for name in named if name in constants]
    assert set(biases) == {TensorProto.FLOAT}


def test_convolutions_that_amplify_errors_are_kept(fp32: onnx.ModelProto, statistics: Statistics) -> None:
    conv = convolutions(fp32)[5]
    assert conv.name not in kept_in_float(fp32, statistics)
    flat = ChannelStatistics(
        mean=np.full(len(statistics[conv.input[0]].mean), 10.0),
        mean_square=np.full(len(statistics[conv.input[0]].mean), 1e6),
    )
    assert conv.name in kept_in_float(fp32, statistics | {conv.input[0]: flat})


def test_what_the_gate_refuses_is_shown_and_not_written(tiny_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "a.cdga"
    with pytest.raises(
        GateError, match=r"onnxruntime cpu int8 differs from torch.* no bundle was written; see "
    ) as caught:
        export_checkpoint(tiny_run, output, ExportOptions(precisions=("int8",)))
    assert caught.value.exit_code == 7
    assert read_image_bgr(tmp_path / "a.cdga.refused.int8.png").shape == (64, 4 * 128, 3)
    assert [p.name for p in tmp_path.iterdir()] == ["a.cdga.refused.int8.png"]


def test_a_network_that_has_hardly_learned_is_refused_in_fp16(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "a.cdga"
    assert run(["export", str(tiny_run), "-o", str(output), "--precision", "fp16", "--calib", "streets:dusk"]) == 7
    assert "onnxruntime cpu fp16 differs from torch" in capsys.readouterr().err  # many pixels lie between two classes
    assert [p.name for p in tmp_path.iterdir()] == ["a.cdga.refused.fp16.png"]


def test_published_weights_from_the_command_line(
    city_weights: Path, camvid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "a.cdga"
    origin = ["--weights", str(city_weights), "--model", "efficientvit_b0", "--imgsz", "352,480"]
    assert run(["export", *origin, "-o", str(output), "--precision", "fp16", "--golden", f"camvid:{camvid}"]) == 0
    assert "onnxruntime cpu fp16 = torch" in capsys.readouterr().err
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
        parity=plain.parity,
        card="#",
    )
    image = bundle.path / "golden" / f"{frames[0].name}.png"
    segment = ["segment", str(image), "--model", str(bundle.path), "--save", "masks", "-o", str(tmp_path / "out")]
    assert run([*segment, "--quiet", "--precision", "fp16", "--backend", "onnxruntime"]) == 0
    assert run([*segment, "--quiet", "--precision", "int8"]) == 2
    assert "no precision 'int8' in this bundle; use one of fp32, fp16" in capsys.readouterr().err
