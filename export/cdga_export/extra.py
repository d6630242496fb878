"""``model.extra.onnx``: the float32 network for programs of one's own, with logits or features, or of any size.

A file of its own, so that the graph that is deployed stays lean and of one size. docs/decisions/0012-an-extra-graph.md
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from torch import Tensor, nn

from cdga_export.parity import MIN_AGREEMENT, Reference
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

_Array = npt.NDArray[Any]


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
    state_facts(model, manifest, {"extra": extra.model_dump_json()})
    return checked_bytes(model)


def extra_parity(
    graph: bytes, network: ExtraNetwork, extra: ExtraBlock, references: Sequence[Reference]
) -> dict[str, object]:
    """Hold the graph against the trained network on every golden frame and, where any size will do, at two others.

    Returns:
        By size: the smallest share of a frame's pixels with the network's class, and with its confidence to one of 255;
        for each further output the largest difference from torch's over torch's largest value. Plain values.

    Raises:
        GateError: They differ.
    """
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    own_hw, *other_sizes = _sizes(extra, references[0].mask.shape)
    report: dict[str, object] = {}
    for size_hw in (own_hw, *other_sizes):
        rows = []
        for told in references:
            frame_1HWC = np.ascontiguousarray(resize_image(told.frame.frame_rgb, size_hw)[np.newaxis])
            wanted = _said_by(network, frame_1HWC)
            if size_hw == own_hw:  # here the word of the trained network itself counts
                wanted[:2] = told.mask[np.newaxis], told.conf[np.newaxis]
            rows.append(_compared(_run(session, frame_1HWC), wanted, network.outputs))
        report[_title(size_hw)] = worst = _worst(rows)
        _refuse(worst, _title(size_hw))
    _refuse({"agreement": _in_a_batch(session, references)}, f"{_title(own_hw)}, in a batch,")
    return report


def _said_by(network: ExtraNetwork, frame_1HWC: UInt8Array) -> list[_Array]:
    with torch.inference_mode():
        return [tensor.numpy() for tensor in network(torch.from_numpy(frame_1HWC))]


def _run(session: onnxruntime.InferenceSession, frames_NHWC: UInt8Array) -> list[_Array]:
    try:
        found: list[_Array] = session.run(None, {"frame": frames_NHWC})
    except Exception as error:  # the runtime's own types
        size = f"{_title(frames_NHWC.shape[1:3])} (height,width)"
        raise GateError(f"the extra graph does not run at {size}", fix="leave --dynamic-size out") from error
    return found


def _compared(found: Sequence[_Array], wanted: Sequence[_Array], outputs: Sequence[str]) -> dict[str, float]:
    errors = zip(outputs, found[2:], wanted[2:], strict=True)
    return {
        "agreement": float((found[0] == wanted[0]).mean()),
        "confidence": float((np.abs(found[1].astype(int) - wanted[1].astype(int)) <= 1).mean()),
    } | {name: float(np.abs(there - here).max() / np.abs(here).max()) for name, there, here in errors}


def _in_a_batch(session: onnxruntime.InferenceSession, references: Sequence[Reference]) -> float:
    both = [references[0], references[-1]]
    masks = _run(session, np.stack([told.frame.frame_rgb for told in both]))[0]
    return min(float((mask == told.mask).mean()) for mask, told in zip(masks, both, strict=True))


def _worst(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    is_share = {"agreement", "confidence"}
    # NumPy's keep a NaN, wherever it stands; Python's do not.
    return {key: float((np.min if key in is_share else np.max)([row[key] for row in rows])) for key in rows[0]}


def _refuse(worst: Mapping[str, float], size: str) -> None:
    for name, what in (("agreement", "class"), ("confidence", "confidence")):
        if worst.get(name, 1.0) < MIN_AGREEMENT["fp32"]:
            raise GateError(
                f"the extra graph at {size} has the network's {what} on {100 * worst[name]:.3f} % of a golden frame's "
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


def _sizes(extra: ExtraBlock, size_hw: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The bundle's own size; half of it and another shape, which a graph with frozen sizes cannot do."""
    height, width = size_hw
    yield height, width
    if extra.size == "dynamic":
        step = extra.size_multiple
        yield _multiple(height // 2, step), _multiple(width // 2, step)
        yield _multiple(width, step), _multiple(height + step, step)


def _multiple(side: int, step: int) -> int:
    return max(step, side // step * step)


def _title(size_hw: Sequence[int]) -> str:
    return f"{size_hw[0]},{size_hw[1]}"


def _deepest(features: Tensor | Mapping[str, Tensor] | Sequence[Tensor]) -> Tensor:
    """The last map of a backbone that gives several, from fine to coarse."""
    if isinstance(features, Tensor):
        return features
    maps = list(features.values()) if isinstance(features, Mapping) else list(features)
    return maps[-1]
