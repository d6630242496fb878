"""How much of a network another arithmetic can have: what it costs in labels, what it takes over, and the bounds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
import onnxruntime

from cdga_export.typed_fp16 import convolutions
from cdga_sdk.backends.onnx_runtime import OnnxRuntimeBackend
from cdga_sdk.preprocess import UInt8Array

__all__ = [
    "BUDGET",
    "MIN_SHARE",
    "NUM_JUDGES",
    "Losses",
    "Lowered",
    "longest_admitted",
    "lowered",
    "multiplications",
    "share_of",
]

NUM_JUDGES: Final = 8
"""Frames that admit a graph; half of them try a convolution by itself."""

MIN_SHARE: Final = 0.5
"""A network of whose multiplications fewer are in 8 bits (or 16) is not called int8 (or fp16, bf16)."""

BUDGET: Final = 0.8
"""Of what a gate allows; other frames than those that choose may lose more."""


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """A graph, and how much of it is in another arithmetic.

    Attributes:
        model: The graph.
        names: The convolutions in that arithmetic.
        num_convolutions: That the graph has.
        share: Of the convolutions' multiplications that are in it, 0 to 1.
        arithmetic: ``8 bits``, ``float16`` or ``bfloat16``.
    """

    model: onnx.ModelProto
    names: frozenset[str]
    num_convolutions: int
    share: float
    arithmetic: str

    def __str__(self) -> str:
        return (
            f"{100 * self.share:.0f} % of the convolutions' multiplications in {self.arithmetic} "
            f"({len(self.names)} of {self.num_convolutions} convolutions)"
        )


def lowered(
    graph_of: Callable[[Sequence[str]], onnx.ModelProto], names: Sequence[str], cost: Mapping[str, int], arithmetic: str
) -> Lowered:
    """The graph that ``graph_of`` makes with these convolutions in another arithmetic; ``cost``: `multiplications`."""
    return Lowered(
        model=graph_of(names),
        names=frozenset(names),
        num_convolutions=len(cost),
        share=share_of(names, cost),
        arithmetic=arithmetic,
    )


def share_of(names: Collection[str], cost: Mapping[str, int]) -> float:
    """Of all multiplications those of these convolutions, 0 to 1."""
    return sum(cost[name] for name in names) / sum(cost.values())


class Losses:
    """What a graph costs in labels: the largest share of a judging frame's pixels that changes its class.

    Args:
        model: The float32 graph.
        frames_rgb: (H, W, 3) uint8 RGB frames of its size.
        num_judges: So many of them, spread, are the judges.
    """

    def __init__(self, model: onnx.ModelProto, frames_rgb: Sequence[UInt8Array], num_judges: int = NUM_JUDGES) -> None:
        self._judges = frames_rgb[:: max(1, len(frames_rgb) // num_judges)][:num_judges]
        self._masks = _masks(model, self._judges)

    def __call__(self, changed: onnx.ModelProto, num_frames: int | None = None) -> float:
        """Of a changed graph, on all the judging frames or the first of them; 0 to 1."""
        found = _masks(changed, self._judges[:num_frames])
        return max(float((a != b).mean()) for a, b in zip(found, self._masks, strict=False))

    def are_within(self, budget: float, changed: onnx.ModelProto) -> bool:
        """Whether no judging frame loses more with a changed graph; the first that does ends the trial."""
        backend = OnnxRuntimeBackend(changed.SerializeToString(), device="cpu")
        found = (backend.infer(frame[np.newaxis]).mask_NHW[0] for frame in self._judges)
        return all(float((a != b).mean()) <= budget for a, b in zip(found, self._masks, strict=True))


def _masks(model: onnx.ModelProto, frames_rgb: Sequence[UInt8Array]) -> list[UInt8Array]:
    backend = OnnxRuntimeBackend(model.SerializeToString(), device="cpu")
    return [backend.infer(frame[np.newaxis]).mask_NHW[0] for frame in frames_rgb]


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
