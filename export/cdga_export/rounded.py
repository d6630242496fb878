"""What float16 or bfloat16 arithmetic does to a typed graph, on a machine that has none.

ONNX Runtime's and OpenVINO's CPU kernels compute half-precision nodes in float32, and drop the roundings in between: a
graph whose activations overflow in float16 passes there. So the gate of fp16 judges this: the same graph in float32
where every half tensor is rounded to what float16 can hold, infinity included, as tensor cores round theirs (products
are summed in float32 on both). bfloat16 likewise, which ONNX Runtime's CPU kernels do not know.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, TypeProto, helper, numpy_helper

__all__ = ["with_rounding"]

_SHAPE = "rounding_shape"
_HALF_TYPES = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})


def with_rounding(half: onnx.ModelProto) -> onnx.ModelProto:
    """A float32 copy of a graph of `cdga_export.typed_fp16` in which every half tensor is rounded to its type."""
    typed = onnx.shape_inference.infer_shapes(half, strict_mode=True)
    half_of = {
        v.name: v.type.tensor_type for v in typed.graph.value_info if v.type.tensor_type.elem_type in _HALF_TYPES
    }
    ranks = {len(kind.shape.dim) for kind in half_of.values()}
    nodes = [made for node in typed.graph.node for made in _rounding(node, half_of)]
    constants = [_as_float(tensor) for tensor in typed.graph.initializer]
    shapes = [numpy_helper.from_array(np.zeros(rank, np.int64), f"{_SHAPE}_{rank}") for rank in ranks]
    graph = helper.make_graph(nodes, "rounded", list(half.graph.input), list(half.graph.output), constants + shapes)
    return helper.make_model(graph, opset_imports=half.opset_import, ir_version=half.ir_version)


def _rounding(node: NodeProto, half_of: dict[str, TypeProto.Tensor]) -> Iterator[NodeProto]:
    """The node in float32 and, where its output was half, what rounds it."""
    name = node.output[0]
    if name not in half_of:
        yield node
        return
    kept = NodeProto()
    kept.CopyFrom(node)
    kept.output[0] = f"{name}_unrounded"
    for attribute in kept.attribute:
        if kept.op_type == "Cast" and attribute.name == "to":
            attribute.i = TensorProto.FLOAT
    yield kept
    yield helper.make_node("Cast", [kept.output[0]], [f"{name}_rounded"], to=half_of[name].elem_type)
    # Two casts in a row would be taken out as if nothing were lost between them; a Reshape to the same shape is not.
    shape = f"{_SHAPE}_{len(half_of[name].shape.dim)}"
    yield helper.make_node("Reshape", [f"{name}_rounded", shape], [f"{name}_held"])
    yield helper.make_node("Cast", [f"{name}_held"], [name], to=TensorProto.FLOAT)


def _as_float(tensor: TensorProto) -> TensorProto:
    if tensor.data_type not in _HALF_TYPES:
        return tensor
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
