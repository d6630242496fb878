"""The network's convolutions in fp16 or bf16, by types in the graph itself: TensorRT 11 knows no other way.

Weights and activations of the network become float16; what is sensitive stays float32: normalisation of the frame,
resizing, linear attention, and everything from the logits on (upsampling, argmax, confidence).

That alone is not enough where activations are nearly constant: a 1x1 convolution that takes differences of them (after
a folded BatchNorm its weights and bias may be tens of times larger than its outputs) makes rounding errors that much
larger. Such convolutions get their input less its mean. In exact arithmetic nothing changes,

    W x + b = W (x - m) + (b + W m),

but what is rounded is small. The operators that lead to it, back to the convolution before, then stay in float32.
The bias also takes back the shift that the rounding of the weights brings, on average (bias correction: Nagel et al.
2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2; means are measured here).

bfloat16 is treated alike, but for the convolutions whose sum the logits are: they stay float32. Its errors are eight
times larger, and nothing overflows. docs/decisions/0015-bf16.md
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from cdga_sdk.preprocess import UInt8Array

__all__ = [
    "MAX_AMPLIFICATION",
    "ChannelStatistics",
    "Half",
    "amplification",
    "channel_statistics",
    "convolutions",
    "making_logits",
    "typed_fp16",
]

FloatArray = npt.NDArray[np.float64]
Half = Literal["float16", "bfloat16"]

_TENSOR_TYPE: Final = MappingProxyType({"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16})
_BFLOAT16_OPSET: Final = 22  # the first whose convolutions may be in it

# Convolutions and what lies between them. Of other operators none is worth its casts.
_HALF_OPS: Final = frozenset(
    {"Add", "Clip", "Concat", "Conv", "GlobalAveragePool", "HardSigmoid", "HardSwish", "MaxPool", "Mul", "Relu"}
)
_POINTWISE: Final = frozenset({"Clip", "HardSigmoid", "HardSwish", "Relu"})
# Nodes bear the names of the modules that they came from.
_NETWORK: Final = "/network/"
_FP32_SCOPES: Final = ("/context_module/", "/upsample_")
MAX_AMPLIFICATION: Final = 2.0
"""Convolutions that make rounding errors larger than this are treated apart."""


@dataclass(frozen=True, kw_only=True)
class ChannelStatistics:
    """Of an activation (N, C, H, W), over frames and positions: (C,) each."""

    mean: FloatArray
    mean_square: FloatArray

    @property
    def deviation(self) -> FloatArray:
        """Standard deviation."""
        return np.sqrt(np.maximum(self.mean_square - self.mean**2, 1e-12))


def channel_statistics(model: onnx.ModelProto, frames_rgb: Sequence[UInt8Array]) -> dict[str, ChannelStatistics]:
    """Statistics of what goes into every convolution and comes out of it, by name.

    Args:
        model: A float32 graph of `cdga_export.to_onnx`.
        frames_rgb: (H, W, 3) uint8 RGB frames of its size, at least one.
    """
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    names = list(dict.fromkeys(n for c in convolutions(model) for n in (c.input[0], c.output[0])))
    probed.graph.initializer.append(numpy_helper.from_array(np.array([2, 3]), "probe_axes"))
    outputs = []
    for name in names:  # only the sums leave the graph: all the activations themselves would fill gigabytes
        square, mean, mean_square = f"{name}_square", f"{name}_mean", f"{name}_mean_square"
        probed.graph.node.append(helper.make_node("Mul", [name, name], [square]))
        for what, to in ((name, mean), (square, mean_square)):
            probed.graph.node.append(helper.make_node("ReduceMean", [what, "probe_axes"], [to], keepdims=0))
            probed.graph.output.append(helper.make_tensor_value_info(to, TensorProto.FLOAT, None))
            outputs.append(to)
    session = onnxruntime.InferenceSession(probed.SerializeToString(), providers=["CPUExecutionProvider"])
    rows = [session.run(outputs, {"frame": frame[np.newaxis]}) for frame in frames_rgb]
    found = [np.asarray(np.mean([row[i][0] for row in rows], axis=0, dtype=np.float64)) for i in range(len(outputs))]
    return {name: ChannelStatistics(mean=found[2 * i], mean_square=found[2 * i + 1]) for i, name in enumerate(names)}


def typed_fp16(
    model: onnx.ModelProto,
    statistics: Mapping[str, ChannelStatistics],
    *,
    num_fp32: int = 0,
    half: Half = "float16",
) -> onnx.ModelProto:
    """A copy of a graph of `cdga_export.to_onnx` whose network computes in float16; inputs and outputs are the same.

    BatchNorm is folded into the float32 weights before they are rounded: a running variance may exceed what float16
    holds, and folding after rounding would round twice.

    Args:
        model: The float32 graph.
        statistics: By `channel_statistics`.
        num_fp32: So many of the first convolutions stay in float32, with everything up to the next.
        half: The type that takes float32's place.
    """
    typed = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    return _Rewrite(typed, statistics, num_fp32, half).done()


def amplification(weight_OIhw: FloatArray, incoming: ChannelStatistics, outgoing: ChannelStatistics) -> float:
    """How many times larger a relative rounding error of the input is in the output: the median over its channels."""
    energy = (_per_output(incoming.mean_square, weight_OIhw) * (weight_OIhw**2).sum(axis=(2, 3))).sum(axis=1)
    return float(np.median(np.sqrt(energy) / outgoing.deviation))


class _Rewrite:
    """One pass over the nodes in their order, casting where the type changes."""

    def __init__(
        self, model: onnx.ModelProto, statistics: Mapping[str, ChannelStatistics], num_fp32: int, half: Half
    ) -> None:
        self._model = model
        self._statistics = statistics
        self._tensor_type = _TENSOR_TYPE[half]
        graph = model.graph
        self._constants = {tensor.name: tensor for tensor in graph.initializer} | dict(_constant_nodes(graph))
        self._float = {v.name for v in (*graph.value_info, *graph.output) if _is_float(v)} | {
            name for name, tensor in self._constants.items() if tensor.data_type == TensorProto.FLOAT
        }
        self._half: set[str] = set()
        self._made: set[str] = set()
        self._nodes: list[onnx.NodeProto] = []
        self._added: list[TensorProto] = []
        self._centred_in = {c.name for c in convolutions(model) if self._is_ill(c)}
        self._centred_out, between = self._leading_to_centred()
        self._kept = between | self._up_to_convolution(num_fp32)
        if half == "bfloat16":
            self._kept |= making_logits(model)

    def done(self) -> onnx.ModelProto:
        graph = self._model.graph
        for node in list(graph.node):
            self._rewrite(node)
        del graph.node[:]
        graph.node.extend(self._nodes)
        graph.initializer.extend(self._added)
        del graph.value_info[:]
        _drop_unused(graph)
        if self._tensor_type == TensorProto.BFLOAT16:
            for opset in self._model.opset_import:
                opset.version = max(opset.version, _BFLOAT16_OPSET)
        return self._model

    def _rewrite(self, node: onnx.NodeProto) -> None:
        is_half = self._is_half(node)
        if is_half and node.op_type == "Conv":
            self._convolution(node)
            return
        for position, name in enumerate(node.input):
            if name in self._float:
                node.input[position] = self._as_half(name) if is_half else self._as_float(name)
        self._nodes.append(node)
        self._half.update(name for name in node.output if is_half and name in self._float)

    def _convolution(self, node: onnx.NodeProto) -> None:
        """Input less its mean where that helps, half weights, the bias for both, and the output's mean behind."""
        weight = self._values(node.input[1])
        bias = self._values(node.input[2]) if len(node.input) > 2 else np.zeros(len(weight))
        mean_in, output = self._statistics[node.input[0]].mean, node.output[0]
        source = self._as_float(node.input[0]) if node.name in self._centred_in else node.input[0]
        shift = _mean_shift(weight - self._halved(weight).astype(np.float64), mean_in)
        if node.name in self._centred_in:
            source = self._binary("Sub", source, mean_in, f"{node.name}_less_mean")
            self._float.add(source)
            shift = _mean_shift(weight, mean_in)
        behind = self._statistics[output].mean if node.name in self._centred_out else np.zeros(len(weight))
        centred = f"{output}_less_mean" if node.name in self._centred_out else output
        names = [self._as_half(source), self._constant(f"{node.name}_weight", self._halved(weight))]
        names.append(self._constant(f"{node.name}_bias", self._halved(bias + shift - behind)))
        del node.input[:]
        node.input.extend(names)
        node.output[0] = centred
        self._nodes.append(node)
        self._half.add(centred)
        if node.name in self._centred_out:
            self._float.add(centred)
            self._binary("Add", self._as_float(centred), behind, f"{node.name}_mean", output)

    def _binary(self, op: str, name: str, values_C: FloatArray, title: str, output: str | None = None) -> str:
        constant = self._constant(f"{title}_value", values_C.astype(np.float32).reshape(-1, 1, 1))
        made = output or f"{title}_output"
        self._nodes.append(helper.make_node(op, [name, constant], [made], name=title))
        return made

    def _is_half(self, node: onnx.NodeProto) -> bool:
        is_inside = node.name.startswith(_NETWORK) and (
            node.op_type == "Conv" or not any(scope in node.name for scope in _FP32_SCOPES)
        )
        is_of_type = node.op_type in _HALF_OPS and node.output[0] in self._float
        return is_inside and is_of_type and node.name not in self._kept

    def _is_ill(self, conv: onnx.NodeProto) -> bool:
        pads = next((list(a.ints) for a in conv.attribute if a.name == "pads"), [])
        if any(pads):  # a border of zeros has no mean to be taken from
            return False
        statistics = self._statistics
        found = amplification(self._values(conv.input[1]), statistics[conv.input[0]], statistics[conv.output[0]])
        return found > MAX_AMPLIFICATION

    def _leading_to_centred(self) -> tuple[set[str], set[str]]:
        """Convolutions before the centred ones, and the operators in between, which stay in float32."""
        maker = {name: node for node in self._model.graph.node for name in node.output}
        before, between = set(), set()
        for conv in convolutions(self._model):
            node = maker.get(conv.input[0]) if conv.name in self._centred_in else None
            while node is not None and node.op_type in _POINTWISE:
                between.add(node.name)
                node = maker.get(node.input[0])
            if node is not None and node.op_type == "Conv":
                before.add(node.name)
        return before, between

    def _up_to_convolution(self, number: int) -> set[str]:
        """All nodes before this one of the convolutions, counted from 0."""
        nodes = self._model.graph.node
        places = [place for place, node in enumerate(nodes) if node.op_type == "Conv"]
        return {node.name for node in nodes[: [*places, len(nodes)][number]]}

    def _values(self, name: str) -> FloatArray:
        return numpy_helper.to_array(self._constants[name]).astype(np.float64)

    def _halved(self, values: FloatArray) -> npt.NDArray[np.floating]:
        return np.asarray(values.astype(helper.tensor_dtype_to_np_dtype(self._tensor_type)))

    def _constant(self, name: str, values: npt.NDArray[np.floating]) -> str:
        if name not in self._made:
            self._made.add(name)
            self._added.append(numpy_helper.from_array(values, name))
        return name

    def _as_half(self, name: str) -> str:
        if name in self._half:
            return name
        if name in self._constants:
            return self._constant(f"{name}_half", self._halved(self._values(name)))
        return self._cast(name, self._tensor_type, f"{name}_half")

    def _as_float(self, name: str) -> str:
        return self._cast(name, TensorProto.FLOAT, f"{name}_fp32") if name in self._half else name

    def _cast(self, name: str, to: int, result: str) -> str:
        if result not in self._made:
            self._made.add(result)
            self._nodes.append(helper.make_node("Cast", [name], [result], name=f"{result}_cast", to=to))
        return result


def convolutions(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The convolutions of a graph, in its order."""
    return [node for node in model.graph.node if node.op_type == "Conv"]


def making_logits(model: onnx.ModelProto) -> set[str]:
    """Names of all nodes from the last convolutions to the upsampled logits: rounded there, near ties change sides."""
    maker = {name: node for node in model.graph.node for name in node.output}
    upsampling = [node for node in model.graph.node if node.op_type == "Resize"][-1:]
    made: set[str] = set()
    waiting = [node.input[0] for node in upsampling]
    while waiting:
        node = maker.get(waiting.pop())
        if node is not None and node.name not in made:
            made.add(node.name)
            waiting += [] if node.op_type == "Conv" else node.input
    return made


def _per_output(values_C: FloatArray, weight_OIhw: FloatArray) -> FloatArray:
    """(O, I): what belongs to the input channels that each output channel of a (grouped) convolution sees."""
    out_channels, per_group = weight_OIhw.shape[:2]
    of_group = values_C.reshape(-1, per_group)
    return of_group.repeat(out_channels // len(of_group), axis=0)


def _mean_shift(weight_OIhw: FloatArray, mean_C: FloatArray) -> FloatArray:
    """What a constant input adds to the output of a convolution: (O,)."""
    return np.asarray((_per_output(mean_C, weight_OIhw) * weight_OIhw.sum(axis=(2, 3))).sum(axis=1))


def _constant_nodes(graph: onnx.GraphProto) -> Iterable[tuple[str, TensorProto]]:
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    yield node.output[0], attribute.t


def _is_float(value: onnx.ValueInfoProto) -> bool:
    return bool(value.type.tensor_type.elem_type == TensorProto.FLOAT)


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Float32 constants that only half nodes used."""
    used = {name for node in graph.node for name in node.input}
    for tensor in [t for t in graph.initializer if t.name not in used]:
        graph.initializer.remove(tensor)
    for node in [n for n in graph.node if n.op_type == "Constant" and n.output[0] not in used]:
        graph.node.remove(node)
