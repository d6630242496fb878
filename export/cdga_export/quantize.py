"""Convolutions in 8 bits, by ONNX Runtime's static quantiser: explicit QuantizeLinear / DequantizeLinear pairs.

Two graphs, for no one form serves both: CPUs want unsigned activations with a zero point; TensorRT wants symmetric
signed ones and no quantised bias (its parser rejects the int32 bias).

Which convolutions: a network may lose everything in a few of them and little in the others. So where all is too much
each is tried by itself, and then as much of the network goes into 8 bits as still gives the labels wanted. The rest
stays float32. docs/decisions/0011-int8-by-search.md
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NoReturn

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from cdga_export.typed_fp16 import convolutions
from cdga_sdk.backends.onnx_runtime import OnnxRuntimeBackend
from cdga_sdk.errors import GateError
from cdga_sdk.preprocess import UInt8Array

__all__ = ["Quantized", "Quantizer", "Runtime", "longest_admitted", "multiplications", "quantized"]

NUM_TRIED: Final = 4
"""Frames on which each convolution is tried by itself; twice as many admit the whole."""

MIN_SHARE: Final = 0.5
"""A network of whose multiplications fewer are in 8 bits is not called int8."""

_BUDGET: Final = 0.8
"""Of what a gate allows; other frames than those that choose may lose more."""

# TensorRT's parser wants the pairs on weights too and cannot take a quantised bias.
_FOR_TENSORRT: Final = {"ActivationSymmetric": True, "QuantizeBias": False, "AddQDQPairToWeight": True}
Runtime = Literal["cpu", "tensorrt"]


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """A graph, and how much of it is in 8 bits.

    Attributes:
        model: The graph.
        names: The convolutions in 8 bits.
        num_convolutions: That the graph has.
        share: Of the convolutions' multiplications that are in 8 bits, 0 to 1.
    """

    model: onnx.ModelProto
    names: frozenset[str]
    num_convolutions: int
    share: float

    def __str__(self) -> str:
        return (
            f"{100 * self.share:.0f} % of the convolutions' multiplications in 8 bits "
            f"({len(self.names)} of {self.num_convolutions} convolutions)"
        )


def quantized(
    model: onnx.ModelProto,
    frames_rgb: Sequence[UInt8Array],
    runtime: Runtime,
    *,
    min_agreement: float,
    on_tried: Callable[[int], None] = lambda done: None,
) -> Quantized:
    """As much of a float32 graph of `cdga_export.to_onnx` in 8 bits as keeps its labels.

    All convolutions where that is good enough; else each is tried by itself, and they are taken in the order of what
    they cost in labels for what they save in multiplications. That takes a run of a few frames for each.

    Args:
        model: The graph.
        frames_rgb: (H, W, 3) uint8 RGB frames of its size, of the kind that it will see: they set the ranges, and some
            of them judge.
        runtime: What it is for.
        min_agreement: The gate: share of every frame's pixels that must keep their class.
        on_tried: Called with the number of convolutions tried.

    Raises:
        GateError: Less than `MIN_SHARE` of the network can be in 8 bits.
    """
    quantizer = Quantizer(model, frames_rgb, runtime)
    cost = multiplications(model)
    judges = frames_rgb[:: max(1, len(frames_rgb) // (2 * NUM_TRIED))][: 2 * NUM_TRIED]
    budget = _BUDGET * (1 - min_agreement)
    loss_of = _Losses(model, quantizer, judges)
    names = list(cost)
    if loss_of(names) > budget:
        alone = {}
        for done, name in enumerate(names, start=1):
            alone[name] = loss_of([name], NUM_TRIED)
            on_tried(done)
        # What costs too much alone is left out; the rest is not tried together where it is too little in any case.
        names = [name for name in names if alone[name] <= budget]
        if _share(names, cost) < MIN_SHARE:
            _refuse(names, cost, budget, runtime)
        by_worth = sorted(names, key=lambda name: alone[name] / cost[name])
        names = list(longest_admitted(by_worth, lambda some: loss_of(some) <= budget))
    share = _share(names, cost)
    if share < MIN_SHARE:
        _refuse(names, cost, budget, runtime)
    return Quantized(model=quantizer.graph(names), names=frozenset(names), num_convolutions=len(cost), share=share)


def _share(names: Sequence[str], cost: Mapping[str, int]) -> float:
    return sum(cost[name] for name in names) / sum(cost.values())


def _refuse(names: Sequence[str], cost: Mapping[str, int], budget: float, runtime: Runtime) -> NoReturn:
    raise GateError(
        f"at most {100 * _share(names, cost):.0f} % of the convolutions' multiplications ({len(names)} of {len(cost)} "
        f"convolutions) can be in 8 bits for {runtime} if every frame is to keep {100 * (1 - budget):.2f} % of its "
        f"classes, wanted {100 * MIN_SHARE:.0f} %",
        fix="leave that precision out, or give --calib with footage like that to be segmented",
    )


class Quantizer:
    """Ranges of every activation, found once; any choice of convolutions in 8 bits by them.

    Args:
        model: The float32 graph.
        frames_rgb: (H, W, 3) uint8 RGB frames that set the ranges (the smallest and largest value seen).
        runtime: What the graphs are for.
    """

    def __init__(self, model: onnx.ModelProto, frames_rgb: Sequence[UInt8Array], runtime: Runtime) -> None:
        self._model = model
        self._is_for_cpu = runtime == "cpu"
        with tempfile.TemporaryDirectory() as folder, _quiet():
            file = Path(folder) / "fp32.onnx"
            onnx.save_model(model, file)
            calibrator = create_calibrator(
                file,
                ["Conv"],
                augmented_model_path=str(Path(folder) / "probed.onnx"),
                calibrate_method=CalibrationMethod.MinMax,
                extra_options={} if self._is_for_cpu else {"symmetric": True},
            )
            calibrator.collect_data(_Frames(frames_rgb))
            self._ranges = calibrator.compute_data()

    def graph(self, names: Sequence[str]) -> onnx.ModelProto:
        """A copy of the graph with the convolutions of these names in 8 bits."""
        copy = onnx.ModelProto()
        copy.CopyFrom(self._model)
        with _quiet():
            work: Any = QDQQuantizer(
                copy,
                per_channel=True,
                reduce_range=False,
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QUInt8 if self._is_for_cpu else QuantType.QInt8,
                tensors_range=self._ranges,
                nodes_to_quantize=list(names),
                nodes_to_exclude=[],
                op_types_to_quantize=["Conv"],
                extra_options={} if self._is_for_cpu else dict(_FOR_TENSORRT),
            )
            work.quantize_model()
            work.model.topological_sort()
        made: onnx.ModelProto = work.model.model
        return made


def longest_admitted(ordered: Sequence[str], is_admitted: Callable[[Sequence[str]], bool]) -> Sequence[str]:
    """A long start of ``ordered`` that is admitted, found by halving.

    The longest where a longer one is never better. With 8 bits that is nearly so: errors may cancel.
    """
    shortest, longest = 0, len(ordered)
    while shortest < longest:
        middle = (shortest + longest + 1) // 2
        if is_admitted(ordered[:middle]):
            shortest = middle
        else:
            longest = middle - 1
    return ordered[:shortest]


def multiplications(model: onnx.ModelProto) -> dict[str, int]:
    """For each convolution of a graph of `cdga_export.to_onnx`, by name: its multiplications for one frame."""
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    for conv in convolutions(model):  # shape inference loses the sizes behind a Resize
        probed.graph.node.append(onnx.helper.make_node("Shape", [conv.output[0]], [f"{conv.name}_shape"]))
        probed.graph.output.append(
            onnx.helper.make_tensor_value_info(f"{conv.name}_shape", onnx.TensorProto.INT64, [4])
        )
    session = onnxruntime.InferenceSession(probed.SerializeToString(), providers=["CPUExecutionProvider"])
    height, width = (dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:3])
    names = [conv.name for conv in convolutions(model)]
    shapes = session.run([f"{name}_shape" for name in names], {"frame": np.zeros((1, height, width, 3), np.uint8)})
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    return {
        conv.name: int(np.prod(weights[conv.input[1]].dims) * np.prod(shape[2:]))
        for conv, shape in zip(convolutions(model), shapes, strict=True)
    }


class _Losses:
    """What convolutions in 8 bits cost: the largest share of a judging frame's pixels that changes its class."""

    def __init__(self, model: onnx.ModelProto, quantizer: Quantizer, judges: Sequence[UInt8Array]) -> None:
        self._quantizer = quantizer
        self._judges = judges
        self._masks = _masks(model, judges)

    def __call__(self, names: Sequence[str], num_frames: int | None = None) -> float:
        found = _masks(self._quantizer.graph(names), self._judges[:num_frames])
        return max(float((a != b).mean()) for a, b in zip(found, self._masks, strict=False))


def _masks(model: onnx.ModelProto, frames_rgb: Sequence[UInt8Array]) -> list[UInt8Array]:
    backend = OnnxRuntimeBackend(model.SerializeToString(), device="cpu")
    return [backend.infer(frame[np.newaxis])[0][0] for frame in frames_rgb]


class _Frames(CalibrationDataReader):  # type: ignore[misc]  # the package is untyped
    def __init__(self, frames_rgb: Sequence[UInt8Array]) -> None:
        self._frames: Iterator[UInt8Array] = iter(frames_rgb)

    def get_next(self) -> Mapping[str, UInt8Array] | None:
        frame = next(self._frames, None)
        return None if frame is None else {"frame": frame[np.newaxis]}


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser logs advice to the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
