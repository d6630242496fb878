"""``model.extra.onnx``: the float32 network for programs of one's own, with logits or features, or of any size.

A file of its own, so that the graph that is deployed stays lean and of one size. docs/decisions/0012-an-extra-graph.md
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal, get_args

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from cdga_export.frames import Frame
from cdga_export.parity import MIN_AGREEMENT
from cdga_export.to_onnx import checked_bytes, state_facts, traced
from cdga_sdk.bundle import ExtraBlock, Manifest
from cdga_sdk.errors import GateError, UsageError
from cdga_sdk.preprocess import UInt8Array, resize_image
from cdga_train.models.base import SegmentationNetwork
from cdga_train.models.fused import FusedNetwork, Normalise, classified

__all__ = [
    "EXTRA_OUTPUTS",
    "MAX_RELATIVE_ERROR",
    "ExtraNetwork",
    "ExtraOutput",
    "extra_onnx",
    "extra_parity",
    "parse_outputs",
]

ExtraOutput = Literal["logits", "features"]
EXTRA_OUTPUTS: Final[tuple[ExtraOutput, ...]] = get_args(ExtraOutput)
MAX_RELATIVE_ERROR: Final = 1e-3
"""The gate of logits and features: largest difference from torch's, over the largest value that torch gives."""


class ExtraNetwork(nn.Module):
    """As `FusedNetwork`, at the size of the frame that comes, with more outputs.

    Args:
        network: A segmentation network.
        fused: The same, fused.
        outputs: What to give beside mask and confidence.
    """

    def __init__(self, network: SegmentationNetwork, fused: FusedNetwork, outputs: Sequence[ExtraOutput]) -> None:
        super().__init__()
        self.network = network
        self.normalise = Normalise(fused.preprocess)
        self.outputs = tuple(outputs)
        self.eval()

    def forward(self, frame_NHWC: Tensor) -> tuple[Tensor, ...]:
        """Mask and confidence (N, H, W) uint8, then logits (N, C, h, w) and features (N, F, h', w') as asked for."""
        features = self.network.backbone(self.normalise(frame_NHWC))
        logits_NChw: Tensor = self.network.head(features).float()
        found = {"logits": logits_NChw, "features": _deepest(features).float()}
        # The sides are traced: a number would be frozen into the graph.
        size_hw = (frame_NHWC.shape[1], frame_NHWC.shape[2])
        return *classified(logits_NChw, size_hw), *(found[name] for name in self.outputs)


def parse_outputs(text: str) -> tuple[ExtraOutput, ...]:
    """``"logits,features"``; mask and conf may be named, and are always there.

    Raises:
        UsageError: An unknown word.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    unknown = [word for word in words if word not in {"mask", "conf", *EXTRA_OUTPUTS}]
    if unknown:
        raise UsageError(f"unknown output '{unknown[0]}'", fix=f"use some of mask,conf,{','.join(EXTRA_OUTPUTS)}")
    return tuple(name for name in EXTRA_OUTPUTS if name in words)


def extra_onnx(network: ExtraNetwork, manifest: Manifest) -> bytes:
    """The checked ONNX file that ``manifest.extra`` describes."""
    extra = manifest.extra
    assert extra is not None, "the manifest names no extra graph"
    axes = {name: {0: "N"} for name in ("frame", "mask", "conf", *extra.outputs)}
    if extra.size == "dynamic":
        for name in ("frame", "mask", "conf"):
            axes[name] |= {1: "H", 2: "W"}
        for name in extra.outputs:
            axes[name] |= {2: f"{name}_h", 3: f"{name}_w"}
    model = traced(network, manifest.imgsz_hw, axes)
    state_facts(model, manifest)
    return checked_bytes(model)


def extra_parity(graph: bytes, network: ExtraNetwork, extra: ExtraBlock, golden: Sequence[Frame]) -> dict[str, object]:
    """Hold the graph against torch on every golden frame, at its own size and, where any will do, at two others.

    Returns:
        By size: the smallest share of a frame's pixels with torch's class, and for each further output the largest
        difference over torch's largest value. Plain values.

    Raises:
        GateError: They differ.
    """
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    report: dict[str, object] = {}
    for size_hw in _sizes(extra, golden[0].frame_rgb.shape):
        rows = [_compared(session, network, f) for f in _resized(golden, size_hw)]
        worst = {key: (min if key == "agreement" else max)(row[key] for row in rows) for key in rows[0]}
        title = f"{size_hw[0]},{size_hw[1]}"
        _refuse(worst, title)
        report[title] = worst
    return report


def _compared(
    session: onnxruntime.InferenceSession, network: ExtraNetwork, frame_1HWC: UInt8Array
) -> Mapping[str, float]:
    try:
        found = session.run(None, {"frame": frame_1HWC})
    except Exception as error:  # the runtime's own types
        size = f"{frame_1HWC.shape[1]},{frame_1HWC.shape[2]} (height,width)"
        raise GateError(f"the extra graph does not run at {size}", fix="leave --dynamic-size out") from error
    with torch.inference_mode():
        wanted = [tensor.numpy() for tensor in network(torch.from_numpy(frame_1HWC))]
    errors = zip(network.outputs, found[2:], wanted[2:], strict=True)
    return {"agreement": float((found[0] == wanted[0]).mean())} | {
        name: float(np.abs(there - here).max() / np.abs(here).max()) for name, there, here in errors
    }


def _refuse(worst: Mapping[str, float], size: str) -> None:
    if worst["agreement"] < MIN_AGREEMENT["fp32"]:
        raise GateError(
            f"the extra graph at {size} agrees with torch on {100 * worst['agreement']:.3f} % of a golden frame's "
            f"pixels, wanted {100 * MIN_AGREEMENT['fp32']:.2f} %",
            fix="leave --outputs and --dynamic-size out",
        )
    for name in EXTRA_OUTPUTS:
        if not worst.get(name, 0.0) <= MAX_RELATIVE_ERROR:
            raise GateError(
                f"{name} of the extra graph at {size} differ from torch's by {worst[name]:.2g} of their largest, "
                f"wanted at most {MAX_RELATIVE_ERROR:g}",
                fix=f"leave {name} out of --outputs",
            )


def _sizes(extra: ExtraBlock, shape: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The bundle's own size; half of it and another shape, which a graph with frozen sizes cannot do."""
    height, width = shape[:2]
    yield height, width
    if extra.size == "dynamic":
        step = extra.size_multiple
        yield _multiple(height // 2, step), _multiple(width // 2, step)
        yield _multiple(width, step), _multiple(height + step, step)


def _multiple(side: int, step: int) -> int:
    return max(step, side // step * step)


def _resized(golden: Sequence[Frame], size_hw: tuple[int, int]) -> Iterator[UInt8Array]:
    for frame in golden:
        yield np.ascontiguousarray(resize_image(frame.frame_rgb, size_hw)[np.newaxis])


def _deepest(features: Tensor | Mapping[str, Tensor] | Sequence[Tensor]) -> Tensor:
    """The last map of a backbone that gives several, from fine to coarse."""
    if isinstance(features, Tensor):
        return features
    maps = list(features.values()) if isinstance(features, Mapping) else list(features)
    return maps[-1]
