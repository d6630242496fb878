"""What float16 arithmetic does to a typed graph, on a machine that has none.

ONNX Runtime's and OpenVINO's CPU kernels compute half-precision nodes in float32, and drop the roundings in between: a
graph whose activations overflow in float16 passes there. So the gate of fp16 judges this: the same graph in float32
where every half tensor is rounded to what float16 can hold, infinity included, as tensor cores round theirs (products
are summed in float32 on both).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

__all__ = ["with_rounding"]

_SHAPE = "rounding_shape"


def with_rounding(half: onnx.ModelProto) -> onnx.ModelProto:
    """A float32 copy of a graph of `cdga_export.typed_fp16` in which every half tensor is rounded to float16."""
    typed = onnx.shape_inference.infer_shapes(half, strict_mode=True)
    rank_of = {
        v.name: len(v.type.tensor_type.shape.dim)
        for v in typed.graph.value_info
        if v.type.tensor_type.elem_type == TensorProto.FLOAT16
    }
    nodes = [made for node in typed.graph.node for made in _rounding(node, rank_of)]
    constants = [_as_float(tensor) for tensor in typed.graph.initializer]
    shapes = [numpy_helper.from_array(np.zeros(rank, np.int64), f"{_SHAPE}_{rank}") for rank in set(rank_of.values())]
    graph = helper.make_graph(nodes, "rounded", list(half.graph.input), list(half.graph.output), constants + shapes)
    return helper.make_model(graph, opset_imports=half.opset_import, ir_version=half.ir_version)


def _rounding(node: NodeProto, rank_of: dict[str, int]) -> Iterator[NodeProto]:
    """The node in float32 and, where its output was half, what rounds it."""
    name = node.output[0]
    if name not in rank_of:
        yield node
        return
    kept = NodeProto()
    kept.CopyFrom(node)
    kept.output[0] = f"{name}_unrounded"
    for attribute in kept.attribute:
        if kept.op_type == "Cast" and attribute.name == "to":
            attribute.i = TensorProto.FLOAT
    yield kept
    yield helper.make_node("Cast", [kept.output[0]], [f"{name}_half"], to=TensorProto.FLOAT16)
    # Two casts in a row would be taken out as if nothing were lost between them; a Reshape to the same shape is not.
    yield helper.make_node("Reshape", [f"{name}_half", f"{_SHAPE}_{rank_of[name]}"], [f"{name}_held"])
    yield helper.make_node("Cast", [f"{name}_held"], [name], to=TensorProto.FLOAT)


def _as_float(tensor: TensorProto) -> TensorProto:
    if tensor.data_type != TensorProto.FLOAT16:
        return tensor
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
