"""The convolutions in 8 bits, by ONNX Runtime's static quantiser: explicit QuantizeLinear / DequantizeLinear pairs.

Two graphs, for no one form serves both: CPUs want unsigned activations with a zero point; TensorRT wants symmetric
signed ones and no quantised bias (its parser rejects the int32 bias).

Left in float32 are the first convolution and the last, which cost little and decide much, and the convolutions that
amplify rounding errors (`cdga_export.typed_fp16`): with 8 bits they ruin a network.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from cdga_export.typed_fp16 import MAX_AMPLIFICATION, ChannelStatistics, amplification, convolutions
from cdga_sdk.preprocess import UInt8Array

__all__ = ["kept_in_float", "quantized"]

# TensorRT's parser wants the pairs on weights too and cannot take a quantised bias.
_FOR_TENSORRT: Final = {"ActivationSymmetric": True, "QuantizeBias": False, "AddQDQPairToWeight": True}


class _Frames(CalibrationDataReader):  # type: ignore[misc]  # the package is untyped
    def __init__(self, frames_rgb: Sequence[UInt8Array]) -> None:
        self._frames: Iterator[UInt8Array] = iter(frames_rgb)

    def get_next(self) -> dict[str, UInt8Array] | None:
        frame = next(self._frames, None)
        return None if frame is None else {"frame": frame[np.newaxis]}


def quantized(
    model: onnx.ModelProto,
    frames_rgb: Sequence[UInt8Array],
    statistics: Mapping[str, ChannelStatistics],
    runtime: Literal["cpu", "tensorrt"],
) -> onnx.ModelProto:
    """A copy of a float32 graph of `cdga_export.to_onnx` with its convolutions in 8 bits.

    Args:
        model: The graph.
        frames_rgb: (H, W, 3) uint8 RGB frames of its size, of the kind that it will see: they set the ranges.
        statistics: By `cdga_export.typed_fp16.channel_statistics`.
        runtime: What it is for.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    is_for_cpu = runtime == "cpu"
    left = kept_in_float(model, statistics)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        file = Path(folder) / "int8.onnx"
        quantize_static(
            copy,
            str(file),
            _Frames(frames_rgb),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            nodes_to_quantize=[c.name for c in convolutions(model) if c.name not in left],
            per_channel=True,
            activation_type=QuantType.QUInt8 if is_for_cpu else QuantType.QInt8,
            weight_type=QuantType.QInt8,
            extra_options={} if is_for_cpu else dict(_FOR_TENSORRT),
        )
        return onnx.load_model(file)


def kept_in_float(model: onnx.ModelProto, statistics: Mapping[str, ChannelStatistics]) -> frozenset[str]:
    """Names of the convolutions that are not worth, or not fit for, 8 bits."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    in_order = convolutions(model)
    kept = {in_order[0].name, in_order[-1].name}
    for conv in in_order:
        weight = numpy_helper.to_array(constants[conv.input[1]]).astype(np.float64)
        if amplification(weight, statistics[conv.input[0]], statistics[conv.output[0]]) > MAX_AMPLIFICATION:
            kept.add(conv.name)
    return frozenset(kept)


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser logs advice to the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
