"""Where the tensors of an ONNX file keep their data, read without the onnx library, which a base install lacks.

A tensor may name a file that its data lie in. Runtimes read that file though no hash covers it, from beside the graph
or, when they are given bytes, from the working folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

__all__ = ["external_locations"]

# The messages of onnx.proto on the way to a tensor, and their fields that hold such messages, by number.
_WITHIN: Final[dict[str, dict[int, str]]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
}
_EXTERNAL_DATA: Final = 13
_DATA_LOCATION: Final = 14
_FIXED_BYTES: Final = {1: 8, 5: 4}


def external_locations(data: bytes) -> list[str]:
    """The files that tensors anywhere in a graph name as the place of their data, in no order; none in a whole graph.

    Args:
        data: The ONNX file.

    Raises:
        ValueError: It is no ONNX file. What is not read whole is refused, lest a runtime read more of it.
    """
    found: list[str] = []
    # A stack of our own: subgraphs nest as deep as whoever wrote the file pleases.
    waiting = [("ModelProto", memoryview(data))]
    while waiting:
        kind, message = waiting.pop()
        if kind == "TensorProto":
            found += _locations_of(message)
            continue
        for number, value in _fields(message):
            if number in _WITHIN[kind]:
                waiting.append((_WITHIN[kind][number], _as_message(value)))
    return found


def _locations_of(tensor: memoryview) -> list[str]:
    """What a tensor says of external data: one location, "" if it names none, or nothing at all."""
    is_external, location = False, ""
    for number, value in _fields(tensor):
        if number == _EXTERNAL_DATA:
            is_external = True
            entry = {n: bytes(_as_message(v)).decode("utf-8", "replace") for n, v in _fields(_as_message(value))}
            location = entry.get(2, "") if entry.get(1) == "location" else location
        elif number == _DATA_LOCATION:
            is_external |= value != 0
    return [location] if is_external else []


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of every field: an int, or the bytes of text, a message or a fixed-size number."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire_type == 2:
            size, at = _varint(message, at)
        elif wire_type in _FIXED_BYTES:
            size = _FIXED_BYTES[wire_type]
        else:
            raise ValueError(f"wire type {wire_type}")
        if at + size > len(message):
            raise ValueError(f"{size} bytes wanted, {len(message) - at} left")
        yield number, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, least first, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at == len(message):
            break
        byte, at = message[at], at + 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number that does not end")


def _as_message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number, wanted a message")
    return value
