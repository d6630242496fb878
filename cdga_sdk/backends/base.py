"""The contract that every runtime keeps.

Shape legend: N frames, H and W the network's input size.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Protocol

from cdga_sdk.errors import ModelError
from cdga_sdk.prediction import Prediction
from cdga_sdk.preprocess import UInt8Array

__all__ = ["Backend", "OnIncompatible", "refuse_foreign_graph"]

OnIncompatible = Literal["rebuild", "fallback", "error"]
"""What to do where no kept engine fits; see `cdga_sdk.backends.engine_cache.EngineCache.obtain`."""


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
        """
        ...

    def close(self) -> None:
        """Free what the runtime holds. Closing twice is harmless."""
        ...


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
