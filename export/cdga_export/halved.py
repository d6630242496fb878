"""float16 for as much of a network as keeps its labels: all of it, or all but its first convolutions.

What the first convolutions round, everything behind them amplifies. So where all in float16 does not keep the labels,
as few of the first ones as will do stay in float32. Where those would be most of it, all goes to the judge, who shows
what is lost. docs/decisions/0010-typed-fp16.md
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from cdga_export.lowered import BUDGET, MIN_SHARE, Losses, Lowered, longest_admitted, lowered, multiplications, share_of
from cdga_export.rounded import with_rounding
from cdga_export.typed_fp16 import channel_statistics, typed_fp16
from cdga_sdk.preprocess import UInt8Array

__all__ = ["halved"]


def halved(model: onnx.ModelProto, frames_rgb: Sequence[UInt8Array], *, min_agreement: float) -> Lowered:
    """As much of a float32 graph of `cdga_export.to_onnx` in float16 as keeps its labels.

    Args:
        model: The graph.
        frames_rgb: (H, W, 3) uint8 RGB frames of its size, of the kind that it will see: they set the means, and some
            of them judge.
        min_agreement: The gate: share of every frame's pixels that must keep their class.
    """
    statistics = channel_statistics(model, frames_rgb)
    cost = multiplications(model)
    loss_of = Losses(model, frames_rgb)
    budget = BUDGET * (1 - min_agreement)

    def graph_of(names: Sequence[str]) -> onnx.ModelProto:
        return typed_fp16(model, statistics, num_fp32=len(cost) - len(names))

    def is_admitted(names: Sequence[str]) -> bool:
        return loss_of(with_rounding(graph_of(names))) <= budget

    every = list(cost)[::-1]
    names = every if is_admitted(every) else longest_admitted(every[:-1], is_admitted)
    if share_of(names, cost) < MIN_SHARE:
        names = every
    return lowered(graph_of, names, cost, "float16")
