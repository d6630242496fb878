"""The contract that every runtime keeps.

Shape legend: N frames, H and W the network's input size.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, Literal, Protocol

from cdga_sdk.errors import CdgaError, ModelError, ResourceError, UsageError, one_line
from cdga_sdk.prediction import Prediction
from cdga_sdk.preprocess import UInt8Array

__all__ = ["Backend", "OnIncompatible", "error_of_runtime", "error_when_closed", "refuse_foreign_graph"]

OnIncompatible = Literal["rebuild", "fallback", "error"]
"""What to do where no kept engine fits; see `cdga_sdk.backends.engine_cache.EngineCache.obtain`."""

# As ONNX Runtime, CUDA and its libraries, OpenVINO and C++ itself say it; none of them has a type for it.
_OUT_OF_MEMORY: Final = ("failed to allocate", "out of memory", "alloc_failed", "bad_alloc", "bad allocation")
# As ONNX Runtime says it of a GPU that is hidden, has too old a driver, or fails; behind it its own source is named.
_GPU_FAILED: Final = re.compile(r"\b(?:CUDA|CUDNN|CUBLAS|CUFFT) failure \d+: .*?(?= ; GPU=|$)")


class Backend(Protocol):
    """Runs a bundle's graph.

    Attributes:
        name: Runtime, device and arithmetic, for people: ``"onnxruntime cpu fp32"``.
        frames_at_once: Calls from so many threads at a time are the fastest way to segment many frames.
        gives_logits: Whether `infer` gives `FromLogits`.
    """

    name: str
    frames_at_once: int
    gives_logits: bool

    def infer(self, frames_NHWC: UInt8Array) -> Prediction:
        """Segment (N, H, W, 3) uint8 RGB frames of the network's size.

        What it returns is the caller's to keep: no later call writes into it.

        Raises:
            ResourceError: Memory ran out, of the device or of this computer, or the device failed.
            ModelError: The runtime cannot run the graph.
            UsageError: It is closed.
        """
        ...

    def close(self) -> None:
        """Free what the runtime holds, once no call is under way. Closing twice is harmless."""
        ...


def error_of_runtime(error: Exception, runtime: str, what: str) -> CdgaError:
    """What a runtime raised, as an error of ours: ResourceError where memory ran out or a GPU failed, else ModelError.

    Args:
        error: As it came.
        runtime: For people.
        what: It does not do: "refuses the graph".
    """
    said = one_line(error) or type(error).__name__
    gpu = _GPU_FAILED.search(said)
    if isinstance(error, MemoryError) or any(words in said.lower() for words in _OUT_OF_MEMORY):
        fix = "free some memory, or use a model that sees smaller frames"
        return ResourceError(f"{runtime} ran out of memory ({gpu[0] if gpu else said[-200:]})", fix=fix)
    if gpu:
        fix = "see whether nvidia-smi shows a GPU and its driver here, or use --device cpu"
        return ResourceError(f"{runtime} cannot use the GPU ({gpu[0][:200]})", fix=fix)
    return ModelError(f"{runtime} {what} ({said[:200]})")


def error_when_closed() -> UsageError:
    """Of a call after `Backend.close`."""
    return UsageError("this runtime is closed", fix="open a new one")


def refuse_foreign_graph(inputs: Iterable[str], outputs: Iterable[str]) -> None:
    """Hold the names that a loaded graph has against those of a bundle's graph.

    Raises:
        ModelError: They differ.
    """
    found_in, found_out = ", ".join(inputs), ", ".join(outputs)
    if (found_in, found_out) != ("frame", "mask, conf"):
        raise ModelError(
            f"the graph has {found_in} in and {found_out} out, wanted frame in, mask and conf out",
            fix="export it again",
        )
