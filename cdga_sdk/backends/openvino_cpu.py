"""OpenVINO on the CPU, held to the graph's own precision.

The end of a graph, logits upsampled to the frame's size with argmax and softmax of them, can cost a CPU more than the
network. So the graph is cut before that, and `cdga_sdk.tail` gives the same labels from the logits as they are.
docs/decisions/0013-exact-tail.md
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

import numpy as np

from cdga_sdk.backends.base import error_of_runtime, error_when_closed, refuse_foreign_graph
from cdga_sdk.errors import MissingExtraError
from cdga_sdk.prediction import FromLogits, Known, Prediction
from cdga_sdk.preprocess import UInt8Array
from cdga_sdk.tail import labels

try:
    import openvino
except ImportError as error:
    raise MissingExtraError("openvino", "openvino") from error

__all__ = ["OpenVinoBackend", "cpu_has_bf16"]

# The bindings prepare numpy's types at the first use of a tensor's data, and two threads that meet in it wait for each
# other for ever. So it is used here, by one.
_ = openvino.Tensor(np.zeros(1, np.uint8)).data

# What `cdga_export.to_onnx` puts behind the upsampling, as OpenVINO reads it: largest class, softmax, rounding.
_CONFIDENCE_OPS: Final = ("ReduceMax", "Subtract", "Exp", "ReduceSum", "Divide", "Multiply", "Round")
_MASK_OPS: Final = ("TopK", "Gather")
_OUTPUT_OPS: Final = ("Convert", "Result")
_TAIL_OPS: Final = sorted([*_CONFIDENCE_OPS, *_OUTPUT_OPS, *_MASK_OPS, *_OUTPUT_OPS])
_UPSAMPLING: Final = {
    "mode": "linear_onnx",
    "coordinate_transformation_mode": "half_pixel",
    "antialias": False,
    "pads_begin": [0, 0, 0, 0],
    "pads_end": [0, 0, 0, 0],
}


def cpu_has_bf16() -> bool:
    """Whether this CPU has instructions for bfloat16, so that a graph typed so is faster than a float32 one."""
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVinoBackend:
    """Runs a bundle's ONNX graph, its end by `cdga_sdk.tail` where that computes the same.

    OpenVINO computes in bf16 by itself where the CPU can, which changes labels. So float32 is set here, and what a
    graph types as bf16 stays that; the precision is named in `name`.

    Attributes:
        gives_logits: See `Backend`; whether `cdga_sdk.tail` computes the end.
        frames_at_once: See `Backend`; more than one for ``throughput`` on several cores.

    Raises:
        ModelError: The graph cannot be loaded.
        ResourceError: Memory ran out.
    """

    _hint: ClassVar[str] = "f32"

    def __init__(
        self,
        model_bytes: bytes,
        *,
        threads: int | None = None,
        throughput: bool = False,
        precision: str = "fp32",
    ) -> None:
        core = openvino.Core()
        properties: dict[str, object] = {
            "INFERENCE_PRECISION_HINT": self._hint,
            "PERFORMANCE_HINT": "THROUGHPUT" if throughput else "LATENCY",
        }
        if threads is not None:
            properties["INFERENCE_NUM_THREADS"] = threads
        try:
            model = core.read_model(model_bytes)
            refuse_foreign_graph((i.any_name for i in model.inputs), (o.any_name for o in model.outputs))
            logits = _before_tail(model)
            self.gives_logits = logits is not None
            if logits is not None:
                model = openvino.Model([logits], model.get_parameters())
            self._compiled: Any = core.compile_model(model, "CPU", properties)
        except (RuntimeError, MemoryError) as error:
            raise error_of_runtime(error, "OpenVINO", "refuses the graph") from error
        self.frames_at_once = int(self._compiled.get_property("NUM_STREAMS"))
        self._idle: list[Any] = []  # append and pop are atomic
        self.name = f"openvino cpu {precision}"

    def infer(self, frames_NHWC: UInt8Array) -> Prediction:
        """Segment frames; see `Backend.infer`."""
        idle, compiled = self._idle, self._compiled  # in this order; see `close`
        if compiled is None:
            raise error_when_closed()
        # Never shared between threads: a request answers wrongly when two meet in it.
        try:
            request = idle.pop()
        except IndexError:
            request = compiled.create_infer_request()
        try:
            # Not `infer`: with one thread that swallows what goes wrong, and leaves the frame before as the answer.
            request.start_async({"frame": frames_NHWC})
            request.wait()
        except (RuntimeError, MemoryError) as error:
            raise error_of_runtime(error, self.name, "cannot run the graph") from error
        copies = [np.array(request.get_output_tensor(index).data) for index in range(len(compiled.outputs))]
        idle.append(request)
        if self.gives_logits:
            (logits_NChw,) = copies
            size_hw = frames_NHWC.shape[1:3]
            return FromLogits(np.stack([labels(logits_Chw, size_hw) for logits_Chw in logits_NChw]), logits_NChw)
        return Known(*copies)

    def close(self) -> None:
        """Free the compiled model, once no call is under way; closing twice is harmless."""
        # A call has these in hand, and its request goes with its list.
        self._compiled = None
        self._idle = []


def _before_tail(model: Any) -> Any:
    """The output (N, C, h, w) float32 that `cdga_sdk.tail` takes over from; None where the graph ends otherwise."""
    upsampling = [node for node in model.get_ordered_ops() if node.get_type_name() == "Interpolate"]
    if not upsampling:
        return None
    last = upsampling[-1]
    attributes = last.get_attributes()
    frame, logits = model.input(0).get_partial_shape(), last.input(0).get_partial_shape()
    is_the_usual = (
        sorted(_types_behind(last)) == _TAIL_OPS
        and all(attributes.get(name) == value for name, value in _UPSAMPLING.items())
        and last.output(0).get_partial_shape()[2:] == frame[1:3]
        and last.input(0).get_element_type() == openvino.Type.f32
        and logits[1].is_static
        and logits[1].get_length() <= 255
    )
    return last.input(0).get_source_output() if is_the_usual else None


def _types_behind(node: Any) -> list[str]:
    """Types of all operators that need this one's output."""
    found, waiting = {}, [node]
    while waiting:
        for output in waiting.pop().outputs():
            for target in output.get_target_inputs():
                behind = target.get_node()
                if behind.get_friendly_name() not in found:
                    found[behind.get_friendly_name()] = behind.get_type_name()
                    waiting.append(behind)
    return list(found.values())
