"""The average of a network's weights over the iterations: one network that sees further than its last iterate.

Single iterates wander, the more so with small batches; their mean lies nearer to where they wander around. The mean's
weights are those of Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models", 3.1:
iterate t counts about as t ** power, so that with a power above 0 the first ones are soon forgotten, and nothing
depends on how long the run is.
"""

from __future__ import annotations

import math

import torch
from torch import nn

__all__ = ["average_in", "newest_share"]


def newest_share(iteration: int, power: float) -> float:
    """The weight of iterate ``iteration``, counted from 1, in the average up to it: 1 - (1 - 1 / t) ** (power + 1).

    In the average up to T, iterate t then weighs (t ** (power + 1) - (t - 1) ** (power + 1)) / T ** (power + 1), and
    their mean age is T / (power + 2): with 3, a fifth of the run.
    """
    return 1 - math.pow(1 - 1 / iteration, power + 1)


@torch.no_grad()
def average_in(average: nn.Module, network: nn.Module, share: float) -> None:
    """Move every weight and BatchNorm statistic of ``average`` by ``share`` of its way to ``network``'s, in place."""
    newest = network.state_dict()
    for name, tensor in average.state_dict().items():
        if tensor.is_floating_point():
            tensor.lerp_(newest[name], share)
        else:  # BatchNorm counts its batches
            tensor.copy_(newest[name])
