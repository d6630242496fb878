"""The fused network as one ONNX file."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from cdga_sdk.bundle import Manifest
from cdga_sdk.errors import MissingExtraError
from cdga_train.models.fused import FusedNetwork

try:
    import onnx
except ImportError as error:
    raise MissingExtraError("onnx", "export") from error

__all__ = ["OPSET", "checked_bytes", "onnx_from_fused", "onnx_of", "state_facts", "traced"]

OPSET = 18


def onnx_from_fused(fused: FusedNetwork, manifest: Manifest) -> bytes:
    """Export to ONNX: input ``frame`` (N, H, W, 3) uint8 RGB, outputs ``mask`` and ``conf`` (N, H, W) uint8.

    N is dynamic, H and W are fixed. The manifest's facts that a reader of the file alone needs are in its metadata.

    Returns:
        A checked, single-file ONNX model.
    """
    height, width = fused.preprocess.imgsz_hw
    model = traced(fused, fused.preprocess.imgsz_hw, {"frame": {0: "N"}, "mask": {0: "N"}, "conf": {0: "N"}})
    for output in model.graph.output:
        _state_size(output, height, width)
    state_facts(model, manifest)
    return checked_bytes(model)


def traced(network: nn.Module, imgsz_hw: tuple[int, int], axes: Mapping[str, dict[int, str]]) -> onnx.ModelProto:
    """The graph of a module that maps frames to tensors.

    Args:
        network: Takes (N, H, W, 3) uint8 frames.
        imgsz_hw: Height and width of the frames that it is traced with.
        axes: The names of the input and of each output, in order, and of their dynamic axes.
    """
    example = torch.zeros(2, *imgsz_hw, 3, dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        file = Path(folder) / "model.onnx"
        # The exporter that traces is called deprecated; the newer one is used once its graph is proven as good:
        # docs/decisions/0003-onnx-exporter.md
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (example,),
            file,
            dynamo=False,
            opset_version=OPSET,
            input_names=list(axes)[:1],
            output_names=list(axes)[1:],
            dynamic_axes=axes,
        )
        model = onnx.load_model(file)
    _name_constants_directly(model.graph)
    return model


def state_facts(model: onnx.ModelProto, manifest: Manifest, more: Mapping[str, str] | None = None) -> None:
    """Put into the file's metadata what a reader of the file alone needs, and ``more``."""
    facts = {
        "names": json.dumps(manifest.names),
        "preprocess": manifest.preprocess.model_dump_json(),
        "outputs": manifest.outputs.model_dump_json(),
        "label_space": manifest.label_space,
        "made_by": manifest.provenance.made_by,
        **(more or {}),
    }
    onnx.helper.set_model_props(model, {f"cdga.{key}": value for key, value in facts.items()})


def onnx_of(data: bytes) -> onnx.ModelProto:
    """The graph in an ONNX file."""
    return onnx.load_model_from_string(data)


def checked_bytes(model: onnx.ModelProto) -> bytes:
    """The file of a graph that the ONNX checker accepts, types and shapes included."""
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _name_constants_directly(graph: onnx.GraphProto) -> None:
    """Of equal parameters tracing keeps one, and reaches it through an Identity from where the others were."""
    constants = {tensor.name for tensor in graph.initializer}
    same = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Identity" and n.input[0] in constants}
    for node in [n for n in graph.node if n.output[0] in same]:
        graph.node.remove(node)
    for node in graph.node:
        node.input[:] = [same.get(name, name) for name in node.input]


def _state_size(output: onnx.ValueInfoProto, height: int, width: int) -> None:
    """State a mask's size, which tracing leaves open."""
    for dim, size in zip(output.type.tensor_type.shape.dim[1:], (height, width), strict=True):
        dim.Clear()
        dim.dim_value = size
