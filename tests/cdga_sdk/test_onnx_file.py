"""External data are found wherever a tensor can be, by reading the bytes alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, helper, numpy_helper

from cdga_sdk.onnx_file import _WITHIN, external_locations

PLAIN = numpy_helper.from_array(np.arange(6, dtype=np.float32), "plain")


def outside(location: str = "../secret") -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[6], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="offset", value="0")
    tensor.external_data.add(key="location", value=location)
    return tensor


def sparse(values: TensorProto, indices: TensorProto) -> SparseTensorProto:
    return SparseTensorProto(values=values, indices=indices, dims=[9])


def node(**attribute: object) -> NodeProto:
    return NodeProto(op_type="Any", attribute=[AttributeProto(name="a", **attribute)])  # type: ignore[arg-type]


def nested(depth: int) -> GraphProto:
    graph = GraphProto(initializer=[outside()])
    for _ in range(depth):
        graph = GraphProto(node=[node(g=graph)])
    return graph


def of_node(**attribute: object) -> ModelProto:
    return ModelProto(graph=GraphProto(node=[node(**attribute)]))


def function(**fields: object) -> ModelProto:
    return ModelProto(functions=[onnx.FunctionProto(**fields)])  # type: ignore[arg-type]


PLACES: dict[str, Callable[[], ModelProto]] = {
    "initializer": lambda: ModelProto(graph=GraphProto(initializer=[PLAIN, outside()])),
    "sparse values": lambda: ModelProto(graph=GraphProto(sparse_initializer=[sparse(outside(), PLAIN)])),
    "sparse indices": lambda: ModelProto(graph=GraphProto(sparse_initializer=[sparse(PLAIN, outside())])),
    "attribute": lambda: of_node(t=outside()),
    "attribute list": lambda: of_node(tensors=[PLAIN, outside()]),
    "sparse attribute": lambda: of_node(sparse_tensor=sparse(outside(), PLAIN)),
    "sparse attribute list": lambda: of_node(sparse_tensors=[sparse(PLAIN, outside())]),
    "subgraph": lambda: of_node(g=nested(0)),
    "subgraph list": lambda: of_node(graphs=[GraphProto(), nested(0)]),
    "deep subgraph": lambda: ModelProto(graph=nested(20)),
    "function": lambda: function(node=[node(t=outside())]),
    "function's default": lambda: function(attribute_proto=[AttributeProto(name="a", t=outside())]),
    "training": lambda: ModelProto(training_info=[onnx.TrainingInfoProto(algorithm=nested(0))]),
    "start of training": lambda: ModelProto(training_info=[onnx.TrainingInfoProto(initialization=nested(0))]),
}


@pytest.mark.parametrize("place", PLACES)
def test_found_wherever_a_tensor_can_be(place: str) -> None:
    assert external_locations(PLACES[place]().SerializeToString()) == ["../secret"]


def messages_with_tensors() -> dict[str, set[int]]:
    """By onnx's own description: the fields of each message through which a tensor can be reached."""
    kinds = {}
    waiting = [ModelProto.DESCRIPTOR]
    while waiting:
        kind = waiting.pop()
        kinds[kind.name] = {field.number: field.message_type.name for field in kind.fields if field.message_type}
        waiting += [f.message_type for f in kind.fields if f.message_type and f.message_type.name not in kinds]
    reach = {"TensorProto"}
    while True:
        more = {name for name, fields in kinds.items() if reach & set(fields.values())} | reach
        if more == reach:
            break
        reach = more
    return {
        name: {number for number, inner in fields.items() if inner in reach}
        for name, fields in kinds.items()
        if name in reach - {"TensorProto"}
    }


def test_no_way_to_a_tensor_is_forgotten() -> None:
    assert {name: set(fields) for name, fields in _WITHIN.items()} == messages_with_tensors()


def test_a_graph_of_its_own_names_nothing() -> None:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 6])]
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "plain"], ["y"], alpha=1.5)], "g", inputs, outputs, [PLAIN]
    )
    model = helper.make_model(graph)
    model.metadata_props.add(key="location", value="../secret")
    assert external_locations(model.SerializeToString()) == []


def test_half_a_statement_counts() -> None:
    unnamed = TensorProto(data_location=TensorProto.EXTERNAL)
    named = TensorProto(external_data=[onnx.StringStringEntryProto(key="location", value="w.bin")])
    model = ModelProto(graph=GraphProto(initializer=[named, unnamed]))
    assert sorted(external_locations(model.SerializeToString())) == ["", "w.bin"]


@pytest.mark.parametrize(
    "data", [b"graph", b"\x08", b"\x3a\x05abc", b"\x3b\x3c", b"\x38\x01", b"\x09abc", b"\x80" * 20, b"\x3a\xff\x7f"]
)
def test_what_is_no_onnx_file(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"wire type|bytes wanted|does not end|wanted a message"):
        external_locations(data)


def test_a_cut_file_is_refused_or_says_the_same() -> None:
    whole = PLACES["initializer"]().SerializeToString()
    for length in range(1, len(whole)):
        with pytest.raises(ValueError, match=r"bytes wanted|does not end"):
            external_locations(whole[:length])
