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
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from cdga_export.lowered import (
    BUDGET,
    MIN_SHARE,
    NUM_JUDGES,
    Losses,
    Lowered,
    longest_admitted,
    lowered,
    multiplications,
    share_of,
)
from cdga_sdk.errors import GateError
from cdga_sdk.preprocess import UInt8Array

__all__ = ["Quantizer", "Runtime", "quantized"]

# TensorRT's parser wants the pairs on weights too and cannot take a quantised bias.
_FOR_TENSORRT: Final = {"ActivationSymmetric": True, "QuantizeBias": False, "AddQDQPairToWeight": True}
Runtime = Literal["cpu", "tensorrt"]


def quantized(
    model: onnx.ModelProto,
    frames_rgb: Sequence[UInt8Array],
    runtime: Runtime,
    *,
    min_agreement: float,
    on_tried: Callable[[int], None] = lambda done: None,
) -> Lowered:
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
    budget = BUDGET * (1 - min_agreement)
    loss_of = Losses(model, frames_rgb)
    names = list(cost)
    if loss_of(quantizer.graph(names)) > budget:
        alone = {}
        for done, name in enumerate(names, start=1):
            alone[name] = loss_of(quantizer.graph([name]), NUM_JUDGES // 2)
            on_tried(done)
        # What costs too much alone is left out; the rest is not tried together where it is too little in any case.
        names = [name for name in names if alone[name] <= budget]
        if share_of(names, cost) >= MIN_SHARE:
            by_worth = sorted(names, key=lambda name: alone[name] / cost[name])
            names = list(longest_admitted(by_worth, lambda some: loss_of(quantizer.graph(some)) <= budget))
    if (share := share_of(names, cost)) < MIN_SHARE:
        raise GateError(
            f"at most {100 * share:.0f} % of the convolutions' multiplications ({len(names)} of {len(cost)} "
            f"convolutions) can be in 8 bits for {runtime} if every frame is to keep {100 * (1 - budget):.2f} % of its "
            f"classes, wanted {100 * MIN_SHARE:.0f} %",
            fix="leave that precision out, or give --calib with footage like that to be segmented",
        )
    return lowered(quantizer.graph, names, cost, "8 bits")


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
