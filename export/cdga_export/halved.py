"""float16 or bfloat16 for as much of a network as keeps its labels: all of it, or all but its first convolutions.

What the first convolutions round, everything behind them amplifies. So where all of it does not keep the labels,
as few of the first ones as will do stay in float32. Where those would be most of it, all goes to the judge, who shows
what is lost. docs/decisions/0010-typed-fp16.md
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import onnx

from cdga_export.lowered import (
    BUDGET,
    MIN_SHARE,
    NUM_JUDGES,
    Losses,
    Lowered,
    longest_admitted,
    lowered,
    multiplications,
    share_of,
)
from cdga_export.rounded import with_rounding
from cdga_export.typed_fp16 import Half, channel_statistics, making_logits, typed_fp16
from cdga_sdk.preprocess import UInt8Array

__all__ = ["BFLOAT16_BUDGET", "halved"]

BFLOAT16_BUDGET: Final = 0.5
"""Of what the gate allows, in place of `BUDGET`."""


def halved(model: onnx.ModelProto, frames_rgb: Sequence[UInt8Array], half: Half, *, min_agreement: float) -> Lowered:
    """As much of a float32 graph of `cdga_export.to_onnx` in a half type as keeps its labels.

    Args:
        model: The graph.
        frames_rgb: (H, W, 3) uint8 RGB frames of its size, of the kind that it will see: they set the means, and all
            of them, or with float16 some, judge.
        half: That type.
        min_agreement: The gate: share of every frame's pixels that must keep their class.
    """
    statistics = channel_statistics(model, frames_rgb)
    cost = multiplications(model)
    order = list(cost)
    # bfloat16 stays close to the gate, where a few frames more or less decide, and OpenVINO fuses operators, so that it
    # rounds in fewer places than are rounded here.
    losses = Losses(model, frames_rgb, len(frames_rgb) if half == "bfloat16" else NUM_JUDGES)
    budget = (BFLOAT16_BUDGET if half == "bfloat16" else BUDGET) * (1 - min_agreement)

    def graph_of(names: Sequence[str]) -> onnx.ModelProto:
        num_fp32 = min((order.index(name) for name in names), default=len(order))
        return typed_fp16(model, statistics, num_fp32=num_fp32, half=half)

    def is_admitted(names: Sequence[str]) -> bool:
        return losses.are_within(budget, with_rounding(graph_of(names)))

    stay = making_logits(model) if half == "bfloat16" else set()
    every = [name for name in reversed(order) if name not in stay]
    names = every if is_admitted(every) else longest_admitted(every[:-1], is_admitted)
    if share_of(names, cost) < MIN_SHARE:
        names = every
    return lowered(graph_of, names, cost, half)
