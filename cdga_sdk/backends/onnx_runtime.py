"""ONNX Runtime: CPU and CUDA."""

from __future__ import annotations

from typing import Any

import numpy as np

from cdga_sdk.backends.base import refuse_foreign_graph
from cdga_sdk.errors import MissingExtraError, ModelError, ResourceError, one_line
from cdga_sdk.machine import NO_DRIVER, cuda_driver, usable_cpus
from cdga_sdk.prediction import Known
from cdga_sdk.preprocess import UInt8Array

try:
    import onnxruntime
except ImportError as error:
    raise MissingExtraError("onnxruntime", "export") from error

__all__ = ["OnnxRuntimeBackend", "what_cuda_lacks"]


def what_cuda_lacks() -> str:
    """Why ONNX Runtime cannot use CUDA here, as far as can be told without trying; empty where it may."""
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "this ONNX Runtime was built without CUDA"
    return "" if cuda_driver() else NO_DRIVER


class OnnxRuntimeBackend:
    """Runs a bundle's ONNX graph as it is typed. One session may be called from many threads.

    What goes in and comes out is bound to the caller's own arrays: with CUDA one copy each way, and what is returned
    keeps none of the runtime's memory. CUDA graphs are left off: they want every operator on the GPU, inputs and
    outputs at fixed places there, and one call at a time. docs/decisions/0020-gpu-launches.md

    Raises:
        ResourceError: CUDA was asked for and the session came up without it.
        ModelError: The graph cannot be loaded.
    """

    def __init__(self, model_bytes: bytes, *, device: str, threads: int | None = None, precision: str = "fp32") -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or usable_cpus()
        options.log_severity_level = 3
        provider = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
        # TF32 would change labels on Ampere and later: fp32 is what is promised.
        settings = {"use_tf32": "0"} if device == "cuda" else {}
        try:
            # From bytes: exactly what was hashed is what is loaded; a graph that names other files was refused before.
            self._session = onnxruntime.InferenceSession(
                model_bytes, options, providers=[(provider, settings)], enable_fallback=0
            )
        except Exception as error:  # the runtime raises a dozen private types, and RuntimeError
            raise ModelError(f"ONNX Runtime refuses the graph ({one_line(error)[:200]})") from error
        if provider not in self._session.get_providers():  # a missing GPU does not raise, it falls back silently
            raise ResourceError(
                "CUDA was asked for, but ONNX Runtime could not use it",
                fix="check the NVIDIA driver, CUDA and cuDNN that this onnxruntime-gpu wants, or use --device cpu",
            )
        session = self._session
        refuse_foreign_graph((i.name for i in session.get_inputs()), (o.name for o in session.get_outputs()))
        types = {tensor.type for tensor in (*session.get_inputs(), *session.get_outputs())}
        if types != {"tensor(uint8)"}:
            raise ModelError(f"the graph's tensors are {one_line(sorted(types))}, wanted uint8", fix="export it again")
        self._idle: list[Any] = []  # append and pop are atomic
        self.name = f"onnxruntime {device} {precision}"
        self.frames_at_once = 1
        self.gives_logits = False

    def infer(self, frames_NHWC: UInt8Array) -> Known:
        """Segment frames; see `Backend.infer`."""
        frames_NHWC = np.ascontiguousarray(frames_NHWC)  # so its memory is bound, and no copy that the runtime owns
        mask_NHW, conf_NHW = (np.empty(frames_NHWC.shape[:3], np.uint8) for _ in range(2))
        # Never shared between threads: one would have the other's frame.
        try:
            binding = self._idle.pop()
        except IndexError:
            binding = self._session.io_binding()
        value_of = onnxruntime.OrtValue.ortvalue_from_numpy  # on the CPU the array's own memory
        values = {"frame": value_of(frames_NHWC), "mask": value_of(mask_NHW), "conf": value_of(conf_NHW)}
        binding.bind_ortvalue_input("frame", values["frame"])
        for name in ("mask", "conf"):
            binding.bind_ortvalue_output(name, values[name])
        binding.synchronize_inputs()  # of CUDA: binding was the copy to the GPU
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        binding.clear_binding_inputs()  # else it keeps the caller's arrays
        binding.clear_binding_outputs()
        self._idle.append(binding)
        return Known(mask_NHW, conf_NHW)

    def close(self) -> None:
        """Nothing to do: the session goes with this object."""
