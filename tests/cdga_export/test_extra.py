"""The extra graph: what it gives, at any size, and that a graph whose size is frozen is found out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from cdga_export.extra import EXTRA_OUTPUTS, ExtraNetwork, extra_onnx, extra_parity, parse_outputs
from cdga_export.frames import Frame
from cdga_export.parity import Reference
from cdga_export.to_onnx import onnx_from_fused
from cdga_sdk.bundle import Bundle, ExtraBlock
from cdga_sdk.cli import run
from cdga_sdk.errors import GateError, UsageError
from cdga_sdk.image import read_image_bgr, read_label
from cdga_train.models.base import SegmentationNetwork
from cdga_train.models.fused import FusedNetwork
from cdga_train.models.registry import NETWORKS
from cdga_train.predict import predict_frames
from tests.cdga_export.test_to_onnx import MANIFEST, PREPROCESS, coarse_frames

ALL = ExtraBlock(outputs=EXTRA_OUTPUTS, size="dynamic", size_multiple=32)
FRAMES = coarse_frames(2)
DEEPEST = {
    "efficientvit_b0": (128, 32),
    "lraspp_mobilenet_v3": (960, 16),
    "lite0_fpn": (192, 32),
    "deeplabv2_resnet50": (2048, 8),
}


def built(name: str) -> tuple[SegmentationNetwork, ExtraNetwork]:
    torch.manual_seed(3)
    network = NETWORKS[name].build(19)
    return network, ExtraNetwork(network, FusedNetwork(network, PREPROCESS), EXTRA_OUTPUTS)


def said_by(network: SegmentationNetwork) -> list[Reference]:
    references = []
    for number, frame_rgb in enumerate(FRAMES):
        mask, conf = predict_frames(FusedNetwork(network, PREPROCESS), frame_rgb[np.newaxis])
        frame = Frame(name=str(number), image_bgr=frame_rgb[:, :, ::-1], frame_rgb=frame_rgb)
        references.append(Reference(frame=frame, mask=mask[0], conf=conf[0], image_mask=mask[0]))
    return references


@pytest.mark.parametrize("name", sorted(DEEPEST))
def test_logits_and_features_at_any_size(name: str) -> None:
    network, wanted = built(name)
    graph = extra_onnx(wanted, MANIFEST.model_copy(update={"extra": ALL}))
    assert [o.name for o in onnx.load_model_from_string(graph).graph.output] == ["mask", "conf", *EXTRA_OUTPUTS]
    report = extra_parity(graph, wanted, ALL, said_by(network))
    assert list(report) == ["64,96", "32,32", "96,96"]

    frame_1HWC = np.random.default_rng(0).integers(0, 256, (1, 96, 160, 3), np.uint8)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    mask, conf, logits, features = session.run(None, {"frame": frame_1HWC})
    fused = FusedNetwork(network, replace(PREPROCESS, imgsz_hw=(96, 160)))
    with torch.inference_mode():
        mask_there, conf_there = fused(torch.from_numpy(frame_1HWC))
        logits_there = network(fused.normalise(torch.from_numpy(frame_1HWC)))
    assert (mask == mask_there.numpy()).mean() > 0.999
    assert np.abs(conf.astype(int) - conf_there.numpy().astype(int)).max() <= 1
    np.testing.assert_allclose(logits, logits_there, atol=1e-4 * float(logits_there.abs().max()))
    channels, stride = DEEPEST[name]
    assert features.shape == (1, channels, 96 // stride, 160 // stride)


def test_a_graph_of_fixed_size_is_not_passed_off_as_dynamic() -> None:
    network, wanted = built("efficientvit_b0")
    fixed = onnx_from_fused(FusedNetwork(network, PREPROCESS), MANIFEST)
    with pytest.raises(GateError, match=r"the extra graph does not run at 32,32 \(height,width\)"):
        extra_parity(fixed, ExtraNetwork(network, FusedNetwork(network, PREPROCESS), ()), ALL, said_by(network))
    assert wanted.outputs == EXTRA_OUTPUTS


def test_other_logits_are_refused() -> None:
    network, wanted = built("efficientvit_b0")
    graph = extra_onnx(wanted, MANIFEST.model_copy(update={"extra": ALL}))

    class Louder(torch.nn.Module):
        def __init__(self, head: torch.nn.Module) -> None:
            super().__init__()
            self.head = head

        def forward(self, features: list[Tensor]) -> Tensor:
            logits: Tensor = self.head(features) * 1.01  # every class is still the same
            return logits

    told = said_by(network)
    network.head = Louder(network.head)
    with pytest.raises(GateError, match=r"logits of the extra graph at 64,96 differ from torch's by 0\.0099"):
        extra_parity(graph, wanted, ALL, told)


@pytest.mark.parametrize(("what", "message"), [("mask", "class on"), ("conf", "confidence on")])
def test_masks_and_confidences_are_held_against_the_trained_network(what: str, message: str) -> None:
    network, wanted = built("efficientvit_b0")
    graph = extra_onnx(wanted, MANIFEST.model_copy(update={"extra": ALL}))
    others = [replace(told, **{what: getattr(told, what) ^ 3}) for told in said_by(network)]
    with pytest.raises(GateError, match=f"the extra graph at 64,96 has the network's {message}"):
        extra_parity(graph, wanted, ALL, others)


def test_a_graph_that_is_wrong_in_a_batch_is_refused() -> None:
    network, wanted = built("efficientvit_b0")
    graph = onnx.load_model_from_string(extra_onnx(wanted, MANIFEST.model_copy(update={"extra": ALL})))
    mask = graph.graph.output[0].name
    maker = next(node for node in graph.graph.node if mask in node.output)
    maker.output[0] = "told"
    one, first = (onnx.numpy_helper.from_array(np.array(value), name) for value, name in ((1, "one"), (0, "first")))
    graph.graph.initializer.extend([one, first])
    make = onnx.helper.make_node
    graph.graph.node.extend(
        [
            make("Shape", ["told"], ["told_shape"]),
            make("Gather", ["told_shape", "first"], ["size"]),
            make("Sub", ["size", "one"], ["too_many"]),
            make("Cast", ["told"], ["told_whole"], to=onnx.TensorProto.INT64),
            make("Add", ["told_whole", "too_many"], ["wrong"]),  # right alone, another class in a batch of two
            make("Cast", ["wrong"], [mask], to=onnx.TensorProto.UINT8),
        ]
    )
    with pytest.raises(GateError, match="at 64,96, in a batch, has the network's class on"):
        extra_parity(graph.SerializeToString(), wanted, ALL, said_by(network))


def test_from_the_command_line(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "a.cdga"
    assert run(["export", str(tiny_run), "-o", str(output), "--outputs", "logits", "--dynamic-size", "--quiet"]) == 0
    bundle = Bundle.open(output)
    assert bundle.manifest.extra == ExtraBlock(outputs=("logits",), size="dynamic", size_multiple=32)
    assert set(bundle.parity) == {"fp32", "extra"}
    assert "`model.extra.onnx`, for programs of your own: frames of any size in multiples of 32" in (
        (output / "CARD.md").read_text()
    )
    assert run(["info", str(output)]) == 0
    assert "model.extra.onnx: mask, conf, logits; any size in multiples of 32" in capsys.readouterr().out
    golden = bundle.golden_frames()[0].name
    frame_bgr = read_image_bgr(output / "golden" / f"{golden}.png")
    session = onnxruntime.InferenceSession(output / "model.extra.onnx", providers=["CPUExecutionProvider"])
    mask, _, logits = session.run(None, {"frame": np.ascontiguousarray(frame_bgr[None, :, :, ::-1])})
    assert (mask[0] == read_label(output / "golden" / f"{golden}.mask.png")).mean() >= 0.9999
    assert logits.shape == (1, 19, 8, 16)


def test_outputs_in_words() -> None:
    assert parse_outputs("mask,conf") == ()
    assert parse_outputs("features, logits,mask") == ("logits", "features")
    with pytest.raises(UsageError, match="unknown output 'logit'; use some of mask,conf,logits,features"):
        parse_outputs("logit")
