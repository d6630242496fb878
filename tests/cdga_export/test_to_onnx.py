"""The ONNX file: checked, self-contained, of the stated interface, and right at any batch size."""

from __future__ import annotations

import importlib
import json
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from cdga_export.to_onnx import OPSET, onnx_from_fused
from cdga_sdk.bundle import Manifest, Provenance, preprocess_block
from cdga_sdk.errors import MissingExtraError
from cdga_sdk.labels import CITYSCAPES_NAMES, CITYSCAPES_PALETTE_RGB
from cdga_sdk.preprocess import Preprocess, UInt8Array
from cdga_train.models.efficientvit import EfficientViTSeg
from cdga_train.models.fused import FusedNetwork, Normalise
from cdga_train.models.registry import NETWORKS

PREPROCESS = Preprocess(imgsz_hw=(64, 96))
MANIFEST = Manifest(
    names=CITYSCAPES_NAMES,
    palette_rgb=CITYSCAPES_PALETTE_RGB,
    preprocess=preprocess_block(PREPROCESS),
    provenance=Provenance(model="m", weights_sha256="0", made_by="cdga-sdk test", made_on="2026-01-01"),
)


@pytest.fixture(scope="module")
def fused() -> FusedNetwork:
    torch.manual_seed(3)
    network = EfficientViTSeg(19)
    with torch.no_grad():
        for parameter in network.head.parameters():  # logits far enough apart for several classes
            parameter.mul_(2)
    return FusedNetwork(network, PREPROCESS)


@pytest.fixture(scope="module")
def model_bytes(fused: FusedNetwork) -> bytes:
    return onnx_from_fused(fused, MANIFEST)


@pytest.fixture(scope="module")
def model(model_bytes: bytes) -> onnx.ModelProto:
    return onnx.load_model_from_string(model_bytes)


def interface(values: object) -> list[tuple[str, int, list[int | str]]]:
    return [
        (v.name, v.type.tensor_type.elem_type, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim])
        for v in values  # type: ignore[attr-defined]  # protobuf's repeated fields
    ]


def test_checker_and_opset(model: onnx.ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)
    assert {o.domain: o.version for o in model.opset_import} == {"": OPSET}


def test_interface(model: onnx.ModelProto) -> None:
    uint8 = onnx.TensorProto.UINT8
    assert interface(model.graph.input) == [("frame", uint8, ["N", 64, 96, 3])]
    assert interface(model.graph.output) == [("mask", uint8, ["N", 64, 96]), ("conf", uint8, ["N", 64, 96])]


def test_single_file_with_its_weights(model: onnx.ModelProto, model_bytes: bytes, fused: FusedNetwork) -> None:
    tensors = list(model.graph.initializer)
    assert tensors
    assert not any(t.external_data or t.data_location == onnx.TensorProto.EXTERNAL for t in tensors)
    num_weights = sum(p.numel() for p in fused.network.parameters())
    assert 4 * num_weights < len(model_bytes) < 2 * 4 * num_weights


def test_metadata(model: onnx.ModelProto) -> None:
    facts = {p.key: p.value for p in model.metadata_props}
    assert set(facts) == {f"cdga.{k}" for k in ("names", "preprocess", "outputs", "label_space", "made_by")}
    assert tuple(json.loads(facts["cdga.names"])) == CITYSCAPES_NAMES
    preprocess = json.loads(facts["cdga.preprocess"])
    assert preprocess["imgsz_hw"] == [64, 96]
    assert preprocess["mean"] == list(PREPROCESS.mean)
    assert preprocess["normalisation"] == "in the graph"
    assert json.loads(facts["cdga.outputs"]).keys() == {"mask", "conf"}
    assert facts["cdga.label_space"] == "cityscapes train id"
    assert facts["cdga.made_by"] == "cdga-sdk test"


def coarse_frames(num_frames: int) -> UInt8Array:
    rng = np.random.default_rng(num_frames)
    coarse: UInt8Array = rng.integers(0, 256, (num_frames, 8, 12, 3), np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


@pytest.mark.parametrize("num_frames", [1, 3])
def test_any_batch_size_gives_what_torch_gives(model_bytes: bytes, fused: FusedNetwork, num_frames: int) -> None:
    session = onnxruntime.InferenceSession(model_bytes, providers=["CPUExecutionProvider"])
    frames = coarse_frames(num_frames)
    mask, conf = session.run(["mask", "conf"], {"frame": frames})
    with torch.inference_mode():
        expected_mask, expected_conf = (t.numpy() for t in fused(torch.from_numpy(frames)))
    assert mask.dtype == conf.dtype == np.uint8
    assert mask.shape == conf.shape == (num_frames, 64, 96)
    assert len(np.unique(expected_mask)) > 1
    assert (mask == expected_mask).mean() > 0.999
    assert np.abs(conf.astype(int) - expected_conf).max() <= 1
    single = [session.run(["mask"], {"frame": frames[i : i + 1]})[0][0] for i in range(num_frames)]
    assert (np.stack(single) == mask).mean() > 0.999


def calibrated(network: nn.Module, frames: UInt8Array) -> FusedNetwork:
    """Random weights, but BatchNorm has seen the frames: the logits stay small and the classes differ."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.inference_mode():
        network.train()(Normalise(PREPROCESS)(torch.from_numpy(frames)))
    return FusedNetwork(network, PREPROCESS)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_gives_what_torch_gives(name: str) -> None:
    torch.manual_seed(3)
    frames = coarse_frames(2)
    fused = calibrated(NETWORKS[name].build(len(CITYSCAPES_NAMES)), frames)
    session = onnxruntime.InferenceSession(onnx_from_fused(fused, MANIFEST), providers=["CPUExecutionProvider"])
    mask, conf = session.run(["mask", "conf"], {"frame": frames})
    with torch.inference_mode():
        expected_mask, expected_conf = (t.numpy() for t in fused(torch.from_numpy(frames)))
    assert len(np.unique(expected_mask)) > 3
    assert len(np.unique(expected_conf)) > 10
    assert (mask == expected_mask).mean() > 0.999
    assert np.abs(conf.astype(int) - expected_conf).max() <= 1


def test_missing_onnx_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)  # what an import of a missing library finds
    monkeypatch.delitem(sys.modules, "cdga_export.to_onnx")
    with pytest.raises(MissingExtraError, match=r"'onnx' is needed here; pip install 'cdga-sdk\[export\]'"):
        importlib.import_module("cdga_export.to_onnx")
