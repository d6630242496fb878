"""The grouping network C: assigns every pixel softly to K groups, from its class probabilities alone.

Axes: B images, C classes, K groups, H x W pixels.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

__all__ = ["GroupingNetwork"]

_HIDDEN: Final = 64


class GroupingNetwork(nn.Module):
    """C of Kim et al. 2021: conv1x1 to 64, ReLU, BatchNorm (in this order), conv1x1 to K, softmax over K.

    One network serves both domains; call it once per domain, so that BatchNorm never mixes them. Training only.

    Args:
        num_classes: Channels of its input, at least 1.
        num_groups: K, at least 1; 8 in the paper.
    """

    def __init__(self, num_classes: int, num_groups: int) -> None:
        assert num_classes >= 1, num_classes
        assert num_groups >= 1, num_groups
        super().__init__()
        self.num_classes = num_classes
        self.num_groups = num_groups
        self.layers = nn.Sequential(
            nn.Conv2d(num_classes, _HIDDEN, 1),
            nn.ReLU(inplace=True),
            nn.BatchNorm2d(_HIDDEN),
            nn.Conv2d(_HIDDEN, num_groups, 1),
        )

    def forward(self, prob_BCHW: Tensor) -> Tensor:
        """The group probabilities of every pixel.

        Args:
            prob_BCHW: Class probabilities in [0, 1], summing to 1 over C.

        Returns:
            (B, K, H, W) in [0, 1], summing to 1 over K; float32 under autocast too.
        """
        logits_BKHW: Tensor = self.layers(prob_BCHW)
        return logits_BKHW.softmax(1, dtype=torch.promote_types(logits_BKHW.dtype, torch.float32))
