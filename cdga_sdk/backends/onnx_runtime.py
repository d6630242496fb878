"""ONNX Runtime: CPU and CUDA."""

from __future__ import annotations

import ctypes
import io
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from pathlib import Path
from typing import Any, Final

import numpy as np

from cdga_sdk.backends.base import error_of_runtime, error_when_closed, refuse_foreign_graph
from cdga_sdk.errors import MissingExtraError, ModelError, ResourceError, one_line
from cdga_sdk.machine import NO_DRIVER, cuda_driver, usable_cpus
from cdga_sdk.prediction import Known
from cdga_sdk.preprocess import UInt8Array

try:
    import onnxruntime
except ImportError as error:
    raise MissingExtraError("onnxruntime", "export") from error

__all__ = ["OnnxRuntimeBackend", "load_cuda_libraries", "what_cuda_lacks"]

_WARNING: Final = 2  # the runtime's default
_FATAL: Final = 4


def what_cuda_lacks() -> str:
    """Why ONNX Runtime cannot use CUDA here, as far as can be told without trying; empty where it may."""
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "this ONNX Runtime was built without CUDA"
    return "" if cuda_driver() else NO_DRIVER


def _why_without_cuda() -> str:
    """Why a session came up without CUDA, where the driver or the loader of libraries tells."""
    if lacking := what_cuda_lacks():
        return lacking
    try:
        ctypes.CDLL(str(Path(onnxruntime.__file__).with_name("capi") / "libonnxruntime_providers_cuda.so"))
    except OSError as error:
        reason = one_line(error)
        return reason if "cannot open shared object file" in reason else ""
    return ""


def load_cuda_libraries() -> None:
    """Load CUDA and cuDNN out of pip's packages, where no loader looks by itself, or from where the system has them.

    What is not to be had is told by what wants it next.
    """
    with redirect_stdout(io.StringIO()), suppress(Exception):  # it prints what it does not find
        onnxruntime.preload_dlls(msvc=False)


@contextmanager
def _without_log() -> Iterator[None]:
    """Within, the runtime prints nothing of its own; what it raises is told by us."""
    onnxruntime.set_default_logger_severity(_FATAL)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(_WARNING)  # what it was cannot be asked


class OnnxRuntimeBackend:
    """Runs a bundle's ONNX graph as it is typed. One session may be called from many threads.

    What goes in and comes out is bound to the caller's own arrays: with CUDA one copy each way, and what is returned
    keeps none of the runtime's memory. CUDA graphs are left off: they want every operator on the GPU, inputs and
    outputs at fixed places there, and one call at a time. docs/decisions/0020-gpu-launches.md

    Raises:
        ResourceError: CUDA was asked for and cannot be used, or memory ran out.
        ModelError: The graph cannot be loaded.
    """

    def __init__(self, model_bytes: bytes, *, device: str, threads: int | None = None, precision: str = "fp32") -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or usable_cpus()
        options.log_severity_level = 3
        provider = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
        # TF32 would change labels on Ampere and later: fp32 is what is promised.
        settings = {"use_tf32": "0"} if device == "cuda" else {}
        if device == "cuda" and not what_cuda_lacks():
            load_cuda_libraries()
        try:
            # From bytes: exactly what was hashed is what is loaded; a graph that names other files was refused before.
            with _without_log() if device == "cuda" else nullcontext():  # it prints all that it lacks for CUDA
                session = onnxruntime.InferenceSession(
                    model_bytes, options, providers=[(provider, settings)], enable_fallback=0
                )
        except Exception as error:  # the runtime raises a dozen private types, and RuntimeError
            raise error_of_runtime(error, "ONNX Runtime", "refuses the graph") from error
        if provider not in session.get_providers():  # missing libraries do not raise, it falls back silently
            why = _why_without_cuda()
            raise ResourceError(
                "ONNX Runtime could not use CUDA" + (f" ({why})" if why else ""),
                fix="check the NVIDIA driver; pip install 'onnxruntime-gpu[cuda,cudnn]' brings CUDA and cuDNN as this "
                "version wants them; or use --device cpu",
            )
        refuse_foreign_graph((i.name for i in session.get_inputs()), (o.name for o in session.get_outputs()))
        types = {tensor.type for tensor in (*session.get_inputs(), *session.get_outputs())}
        if types != {"tensor(uint8)"}:
            raise ModelError(f"the graph's tensors are {one_line(sorted(types))}, wanted uint8", fix="export it again")
        self._run_options = onnxruntime.RunOptions()
        self._run_options.log_severity_level = 4  # what fails is raised, and told once
        self._idle: list[Any] = []  # append and pop are atomic
        self._session: Any = session
        self.name = f"onnxruntime {device} {precision}"
        self.frames_at_once = 1
        self.gives_logits = False

    def infer(self, frames_NHWC: UInt8Array) -> Known:
        """Segment frames; see `Backend.infer`."""
        idle, session = self._idle, self._session  # in this order; see `close`
        if session is None:
            raise error_when_closed()
        frames_NHWC = np.ascontiguousarray(frames_NHWC)  # so its memory is bound, and no copy that the runtime owns
        mask_NHW, conf_NHW = (np.empty(frames_NHWC.shape[:3], np.uint8) for _ in range(2))
        # Never shared between threads: one would have the other's frame.
        try:
            binding = idle.pop()
        except IndexError:
            binding = session.io_binding()
        try:
            self._run(session, binding, frames_NHWC, mask_NHW, conf_NHW)
        except Exception as error:  # see `__init__`
            raise error_of_runtime(error, self.name, "cannot run the graph") from error
        idle.append(binding)
        return Known(mask_NHW, conf_NHW)

    def _run(
        self, session: Any, binding: Any, frames_NHWC: UInt8Array, mask_NHW: UInt8Array, conf_NHW: UInt8Array
    ) -> None:
        value_of = onnxruntime.OrtValue.ortvalue_from_numpy  # on the CPU the array's own memory
        values = {"frame": value_of(frames_NHWC), "mask": value_of(mask_NHW), "conf": value_of(conf_NHW)}
        binding.bind_ortvalue_input("frame", values["frame"])
        for name in ("mask", "conf"):
            binding.bind_ortvalue_output(name, values[name])
        binding.synchronize_inputs()  # of CUDA: binding was the copy to the GPU
        session.run_with_iobinding(binding, self._run_options)
        binding.synchronize_outputs()
        binding.clear_binding_inputs()  # else it keeps the caller's arrays
        binding.clear_binding_outputs()

    def close(self) -> None:
        """Free the session, once no call is under way; closing twice is harmless."""
        # A call has these in hand, and its binding goes with its list.
        self._session = None
        self._idle = []
