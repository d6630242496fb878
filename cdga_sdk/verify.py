"""``cdga verify``: does a bundle say here, on this machine and runtime, what the trained network said?"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np

from cdga_sdk.bundle import Bundle
from cdga_sdk.errors import GateError
from cdga_sdk.models.model_path import model_path
from cdga_sdk.precision import open_precision

__all__ = ["Verification", "gate_of", "refuse_below_gate", "verify"]

_WARM_UP: Final = 2


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What replaying the golden frames showed.

    Attributes:
        model: The bundle's folder.
        backend: Runtime, device and precision.
        agreement: Share of pixels with the golden masks' class, by frame.
        min_agreement: The gate that every frame must reach: the one the export had.
        latency_ms: Median time of one frame, after two to warm up: frame in, mask out.
        slowest_ms: The longest.
    """

    model: str
    backend: str
    agreement: Mapping[str, float]
    min_agreement: float
    latency_ms: float
    slowest_ms: float

    def as_dict(self) -> dict[str, object]:
        """Plain values that JSON can hold."""
        return asdict(self)


def verify(
    model: str | Path,
    *,
    precision: str = "fp32",
    backend: str = "auto",
    device: str = "auto",
    on_incompatible: str = "rebuild",
) -> Verification:
    """Replay a bundle's golden frames; the arguments are those of `cdga_sdk.Segmenter`.

    Raises:
        CdgaError: As `cdga_sdk.Segmenter` does.
    """
    bundle = Bundle.open(model_path(model))
    opened = open_precision(bundle, precision, backend=backend, device=device, on_incompatible=on_incompatible)
    runtime = opened.backend
    agreement, times_ms = {}, []
    frames = bundle.golden_frames()
    try:
        for number, golden in enumerate([*frames[:1] * _WARM_UP, *frames]):
            frame_1HWC = np.ascontiguousarray(golden.image_bgr[np.newaxis, :, :, ::-1])
            started = time.perf_counter()
            mask_1HW = runtime.infer(frame_1HWC).mask_NHW
            if number >= _WARM_UP:
                times_ms.append(1000 * (time.perf_counter() - started))
                agreement[golden.name] = float((mask_1HW[0] == golden.mask).mean())
    finally:
        runtime.close()
    return Verification(
        model=str(bundle.path),
        backend=runtime.name,
        agreement=agreement,
        min_agreement=gate_of(bundle, opened.precision),
        latency_ms=round(median(times_ms), 3),
        slowest_ms=round(max(times_ms), 3),
    )


def refuse_below_gate(found: Verification) -> None:
    """Hold what was found against the gate.

    Raises:
        GateError: A frame is below it.
    """
    worst = min(found.agreement, key=lambda name: found.agreement[name])
    if found.agreement[worst] < found.min_agreement:
        raise GateError(
            f"{found.backend} gives {100 * found.agreement[worst]:.3f} % of the golden mask's pixels on frame {worst}, "
            f"wanted {100 * found.min_agreement:.2f} %",
            where=found.model,
            fix="use another --backend or --precision, or update the driver; the bundle itself is undamaged",
        )


def gate_of(bundle: Bundle, precision: str) -> float:
    """Share of a frame's pixels that a precision had to have as the trained network has them when it was exported."""
    report = bundle.parity[precision]
    assert isinstance(report, Mapping)
    return float(report["min_agreement"])
