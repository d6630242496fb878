"""The fused network as one ONNX file."""

from __future__ import annotations

import json
import tempfile
import warnings
from pathlib import Path

import torch

from cdga_sdk.bundle import Manifest
from cdga_sdk.errors import MissingExtraError
from cdga_train.models.fused import FusedNetwork

try:
    import onnx
except ImportError as error:
    raise MissingExtraError("onnx", "export") from error

__all__ = ["OPSET", "checked_bytes", "onnx_from_fused", "onnx_of"]

OPSET = 18


def onnx_from_fused(fused: FusedNetwork, manifest: Manifest) -> bytes:
    """Export to ONNX: input ``frame`` (N, H, W, 3) uint8 RGB, outputs ``mask`` and ``conf`` (N, H, W) uint8.

    N is dynamic, H and W are fixed. The manifest's facts that a reader of the file alone needs are in its metadata.

    Returns:
        A checked, single-file ONNX model.
    """
    height, width = fused.preprocess.imgsz_hw
    example = torch.zeros(2, height, width, 3, dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        file = Path(folder) / "model.onnx"
        # The exporter that traces is called deprecated; the newer one is used once its graph is proven as good:
        # docs/decisions/0003-onnx-exporter.md
        warnings.simplefilter("ignore")
        torch.onnx.export(
            fused,
            (example,),
            file,
            dynamo=False,
            opset_version=OPSET,
            input_names=["frame"],
            output_names=["mask", "conf"],
            dynamic_axes={"frame": {0: "N"}, "mask": {0: "N"}, "conf": {0: "N"}},
        )
        model = onnx.load_model(file)
    _fix_output_shapes(model, height, width)
    _name_constants_directly(model.graph)
    facts = {
        "names": json.dumps(manifest.names),
        "preprocess": manifest.preprocess.model_dump_json(),
        "outputs": manifest.outputs.model_dump_json(),
        "label_space": manifest.label_space,
        "made_by": manifest.provenance.made_by,
    }
    onnx.helper.set_model_props(model, {f"cdga.{key}": value for key, value in facts.items()})
    return checked_bytes(model)


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


def _fix_output_shapes(model: onnx.ModelProto, height: int, width: int) -> None:
    """State the outputs' sizes, which tracing leaves open."""
    for output in model.graph.output:
        dims = output.type.tensor_type.shape.dim
        for dim, size in zip(dims[1:], (height, width), strict=True):
            dim.Clear()
            dim.dim_value = size
