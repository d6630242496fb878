"""Which of a bundle's graphs runs on this machine.

fp32, fp16 and the int8 graphs run wherever somebody asks for them; where no runtime is named, int8 runs in OpenVINO if
the bundle says that it is proven there (docs/decisions/0011-int8-by-search.md). bf16 is for CPUs with instructions for
it, in OpenVINO: elsewhere it would be slower than float32 or not run at all, so the bundle's float32 graph takes its
place and says so (docs/decisions/0015-bf16.md).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Unpack

from cdga_sdk.backends.base import Backend
from cdga_sdk.backends.choice import Choice, RuntimeOptions, choose_backend
from cdga_sdk.bundle import Bundle
from cdga_sdk.errors import MissingExtraError, UsageError

__all__ = ["Opened", "computes_bf16", "open_precision"]

_BF16_HOME: Final = "bf16 runs in OpenVINO on a CPU only"


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A graph, open in a runtime.

    Attributes:
        precision: Of the graph that runs, which with ``auto`` or without bf16 instructions is not what was asked for.
        choice: Where, and why there.
    """

    precision: str
    choice: Choice

    @property
    def backend(self) -> Backend:
        """Where it runs."""
        return self.choice.backend


def computes_bf16() -> bool:
    """Whether OpenVINO is installed and this CPU has instructions for bfloat16."""
    try:
        from cdga_sdk.backends.openvino_cpu import cpu_has_bf16
    except MissingExtraError:
        return False
    return cpu_has_bf16()


def open_precision(bundle: Bundle, precision: str, **options: Unpack[RuntimeOptions]) -> Opened:
    """Open a bundle's graph of this precision; ``auto`` is bf16 where that is to be had, else fp32.

    ``auto`` leaves the runtime alone: it asks for bf16 only where float32 would run in OpenVINO on a CPU.

    Args:
        bundle: The bundle.
        precision: One of its precisions, or ``auto``.
        **options: As `choose_backend` has them.

    Raises:
        UsageError: The bundle does not have that precision, or bf16 was asked for with a runtime that has none.
        CdgaError: As `choose_backend` does.
    """

    backend, device = options.get("backend", "auto"), options.get("device", "auto")

    def opened(graph: str, name: str, runtime: str = backend) -> Opened:
        wanted: RuntimeOptions = {**options, "backend": runtime}
        proven = bundle.is_proven_in_openvino_too(graph)
        choice = choose_backend(bundle.graph(graph), precision=name, proven_in_openvino=proven, **wanted)
        if runtime != backend:
            choice = replace(choice, walk=tuple(replace(c, reason=_BF16_HOME) for c in choice.walk))
        return Opened(precision=graph, choice=choice)

    if precision == "bf16":
        bundle.graph("bf16")  # one that is not there is refused whatever the CPU
        _refuse_without_bf16(backend, device)
        if computes_bf16():
            return opened("bf16", "bf16", "openvino")
        return opened("fp32", "(this CPU has no bf16) fp32", "openvino")
    if precision != "auto":
        return opened(precision, precision)
    fp32 = opened("fp32", "fp32")  # a second compilation, in place of a second copy of the rules of `choose_backend`
    if "bf16" not in bundle.graphs or not fp32.backend.name.startswith("openvino cpu") or not computes_bf16():
        return fp32
    fp32.backend.close()
    return opened("bf16", "bf16", "openvino")


def _refuse_without_bf16(backend: str, device: str) -> None:
    if backend not in {"auto", "openvino"} or device == "cuda":
        asked_for = f"device {device}" if device == "cuda" else f"backend {backend}"
        raise UsageError(
            f"bf16 runs in OpenVINO on a CPU, not with {asked_for}",
            fix="use --backend openvino --device cpu, or another --precision",
        )
