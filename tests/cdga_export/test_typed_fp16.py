"""fp16 by types: what becomes half, what stays, and why rounding does not ruin a network that takes differences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn

from cdga_export import typed_fp16 as module
from cdga_export.export import ExportOptions, export_weights
from cdga_export.to_onnx import checked_bytes, onnx_from_fused, onnx_of
from cdga_export.typed_fp16 import ChannelStatistics, amplification, channel_statistics, typed_fp16
from cdga_sdk.preprocess import UInt8Array
from cdga_train.models.fused import FusedNetwork
from cdga_train.models.registry import NETWORKS
from tests.cdga_export.test_to_onnx import MANIFEST, PREPROCESS, calibrated, coarse_frames


class Differences(nn.Module):
    """Activations that are nearly constant, and a 1x1 convolution that takes their differences, as in EfficientViT."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.spread = nn.Conv2d(3, 32, 3, padding=1, stride=2)
        self.act = nn.Hardswish()
        self.take = nn.Conv2d(32, 19, 1)
        with torch.no_grad():
            self.spread.weight.mul_(0.1)
            self.spread.bias.fill_(3.0)  # type: ignore[union-attr]  # it has one
            self.take.weight.mul_(400)
            flat = self.act(torch.full((1, 32, 1, 1), 3.0))
            self.take.bias.sub_(self.take(flat).flatten())  # type: ignore[union-attr]  # it has one

    def forward(self, image_BCHW: Tensor) -> Tensor:
        logits: Tensor = self.take(self.act(self.spread(image_BCHW)))
        return logits


FRAMES = coarse_frames(6)
JUDGED, SEEN = FRAMES[:2], list(FRAMES[2:])


@pytest.fixture(scope="module")
def fp32() -> onnx.ModelProto:
    return onnx_of(onnx_from_fused(FusedNetwork(Differences(), PREPROCESS), MANIFEST))


def masks(model: onnx.ModelProto, frames: UInt8Array = JUDGED) -> UInt8Array:
    session = onnxruntime.InferenceSession(checked_bytes(model), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["mask"], {"frame": frames})[0])


def agreement(one: onnx.ModelProto, other: onnx.ModelProto) -> float:
    return float((masks(one) == masks(other)).mean())


def test_statistics_are_those_of_the_activations(fp32: onnx.ModelProto) -> None:
    network = Differences()
    normalised = FusedNetwork(network, PREPROCESS).normalise(torch.from_numpy(np.stack(SEEN)))
    with torch.inference_mode():
        spread = network.spread(normalised)
        inside = network.act(spread).double()
    found = channel_statistics(fp32, SEEN)
    assert len(found) == 4  # in and out of two convolutions
    conv = [n for n in fp32.graph.node if n.op_type == "Conv"][1]
    np.testing.assert_allclose(found[conv.input[0]].mean, inside.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(found[conv.input[0]].mean_square, inside.square().mean((0, 2, 3)), rtol=1e-5)
    deviation = inside.permute(1, 0, 2, 3).flatten(1).std(1, correction=0)
    np.testing.assert_allclose(found[conv.input[0]].deviation, deviation, rtol=1e-3)


def test_amplification_by_hand() -> None:
    weight = np.array([[3.0, -4.0], [1.0, 0.0]]).reshape(2, 2, 1, 1)
    incoming = ChannelStatistics(mean=np.array([2.0, 2.0]), mean_square=np.array([4.0, 4.0]))
    outgoing = ChannelStatistics(mean=np.zeros(2), mean_square=np.array([0.25, 4.0]))
    # Output 0: sqrt(9 * 4 + 16 * 4) / 0.5 = 20; output 1: 2 / 2 = 1.
    assert amplification(weight, incoming, outgoing) == pytest.approx(10.5)


def test_a_network_of_differences_survives_half_precision(
    fp32: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    statistics = channel_statistics(fp32, SEEN)
    take = [n for n in fp32.graph.node if n.op_type == "Conv"][1]
    weight = numpy_helper.to_array(next(t for t in fp32.graph.initializer if t.name == take.input[1])).astype(float)
    assert amplification(weight, statistics[take.input[0]], statistics[take.output[0]]) > 20
    centred = agreement(typed_fp16(fp32, statistics), fp32)
    monkeypatch.setattr(module, "MAX_AMPLIFICATION", np.inf)
    plain = agreement(typed_fp16(fp32, statistics), fp32)
    assert len(np.unique(masks(fp32))) > 3
    assert centred > 0.998
    assert 1 - centred < 0.2 * (1 - plain)


def test_what_is_half_and_what_is_not(fp32: onnx.ModelProto) -> None:
    half = typed_fp16(fp32, channel_statistics(fp32, SEEN))
    typed = onnx.shape_inference.infer_shapes(half, strict_mode=True)
    kind = {v.name: v.type.tensor_type.elem_type for v in typed.graph.value_info}
    for node in half.graph.node:
        if node.op_type == "Conv":
            assert kind[node.output[0]] == TensorProto.FLOAT16
        if not node.name.startswith("/network/") and node.op_type in {"Resize", "Exp", "ReduceSum", "ReduceMax"}:
            assert kind[node.output[0]] == TensorProto.FLOAT
    weights = [t for t in half.graph.initializer if len(t.dims) == 4 and t.dims[0] in {19, 32}]
    assert {t.data_type for t in weights} == {TensorProto.FLOAT16}
    assert [i.name for i in half.graph.input] == ["frame"]
    assert [o.name for o in half.graph.output] == ["mask", "conf"]
    assert masks(half, FRAMES[:1]).shape == (1, 64, 96)  # the batch is still free
    assert half.metadata_props == fp32.metadata_props


def test_attention_and_upsampling_stay_in_float32() -> None:
    torch.manual_seed(3)
    model = onnx_of(onnx_from_fused(calibrated(NETWORKS["efficientvit_b0"].build(19), JUDGED), MANIFEST))
    half = typed_fp16(model, channel_statistics(model, SEEN))
    inside = [n for n in half.graph.node if ("/context_module/main/" in n.name or "/upsample_" in n.name)]
    inside = [n for n in inside if n.op_type not in {"Conv", "Cast"}]
    assert {"MatMul", "Div", "ConvTranspose", "Concat"} <= {n.op_type for n in inside}
    kind = {
        v.name: v.type.tensor_type.elem_type
        for v in onnx.shape_inference.infer_shapes(half, strict_mode=True).graph.value_info
    }
    assert TensorProto.FLOAT16 not in {kind[name] for node in inside for name in node.output}


def test_the_float32_graph_is_left_alone(fp32: onnx.ModelProto) -> None:
    before = fp32.SerializeToString(deterministic=True)
    statistics = channel_statistics(fp32, SEEN)
    typed_fp16(fp32, statistics)
    assert fp32.SerializeToString(deterministic=True) == before


# ResNet-101 and the strides of caffe are each in another one.
@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "deeplabv2_resnet101_caffe"])
def test_every_network_in_half_precision(name: str) -> None:
    torch.manual_seed(3)
    fused = calibrated(NETWORKS[name].build(19), JUDGED)
    model = onnx_of(onnx_from_fused(fused, MANIFEST))
    half = typed_fp16(model, channel_statistics(model, SEEN))
    assert len(checked_bytes(half)) < 0.6 * len(checked_bytes(model))
    assert agreement(half, model) > 0.75  # random weights: all pixels are near ties, and 1 in 19 agrees by chance


def test_published_weights_pass_the_gate(city_weights: Path, camvid: Path, tmp_path: Path) -> None:
    """EfficientViT-B0 falls below it where means are not taken out."""
    exported = export_weights(
        city_weights,
        "efficientvit_b0",
        (352, 480),
        tmp_path / "city.cdga",
        ExportOptions(precisions=("fp16",), golden=f"camvid:{camvid}"),
    )
    assert min(frame.agreement for frame in exported.parity["fp16"].frames) >= 0.999
    assert len(exported.bundle.graph("fp16")) < 0.6 * len(exported.bundle.model_bytes)
