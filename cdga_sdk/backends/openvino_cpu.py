"""OpenVINO on the CPU, held to the graph's own precision."""

from __future__ import annotations

import numpy as np

from cdga_sdk.backends.base import refuse_foreign_graph
from cdga_sdk.errors import MissingExtraError, ModelError, one_line
from cdga_sdk.preprocess import UInt8Array

try:
    import openvino
except ImportError as error:
    raise MissingExtraError("openvino", "openvino") from error

__all__ = ["OpenVinoBackend"]


class OpenVinoBackend:
    """Runs a bundle's ONNX graph.

    OpenVINO computes in bf16 by itself where the CPU can, which changes labels; the precision is set here and
    named in `name`.

    Raises:
        ModelError: The graph cannot be loaded.
    """

    def __init__(self, model_bytes: bytes, *, threads: int | None = None, precision: str = "fp32") -> None:
        core = openvino.Core()
        properties: dict[str, object] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            properties["INFERENCE_NUM_THREADS"] = threads
        try:
            self._compiled = core.compile_model(core.read_model(model_bytes), "CPU", properties)
        except RuntimeError as error:
            raise ModelError(f"OpenVINO refuses the graph ({one_line(error)[:200]})") from error
        compiled = self._compiled
        refuse_foreign_graph((i.any_name for i in compiled.inputs), (o.any_name for o in compiled.outputs))
        self.name = f"openvino cpu {precision}"

    def infer(self, frames_NHWC: UInt8Array) -> tuple[UInt8Array, UInt8Array]:
        """Segment frames; see `Backend.infer`."""
        # A request of its own per call: one shared request answers wrongly when threads meet in it.
        request = self._compiled.create_infer_request()
        request.infer({"frame": frames_NHWC})
        return (
            np.array(request.get_tensor("mask").data, np.uint8),
            np.array(request.get_tensor("conf").data, np.uint8),
        )

    def close(self) -> None:
        """Nothing to do: the compiled model goes with this object."""
