"""The group discriminator D: tells, group by group, whether a prediction comes from the source or the target domain.

Axes: B images, C classes (indices i and j), K groups, O = 64 output channels of the first layer, H x W pixels, h x w
output positions, u x v = 4 x 4 kernel positions.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdga_sdk.errors import UsageError

__all__ = ["MIN_SIDE", "GroupDiscriminator"]

MIN_SIDE: Final = 16
_FULL_SIDE: Final = 32
_CHANNELS: Final = (64, 128, 256, 512)
_SLOPE: Final = 0.2


class GroupDiscriminator(nn.Module):
    """D of Kim et al. 2021, eq. 4: five 4x4 convolutions with stride 2 on the outer product of F[k] and Q[k].

    Channels 64, 128, 256, 512, 1; padding 1; LeakyReLU 0.2 after all but the last; no normalisation. All groups share
    the weights. The input of group k has C * C channels, number ``i * C + j`` being ``F[k][i] * Q[k][j]`` with
    ``F[k] = group[k] * prob``. Q is constant over space, so that input is never built: ``first`` is held as a plain
    convolution of C * C channels and evaluated on the C channels of F[k] with
    ``W_eff[k, o, i] = sum over j of W[o, i * C + j] * Q[k, j]``, which is the same up to rounding.

    Five halvings need sides of 32. Sides from 16 to 31 get as much more zero padding in the first layer as fills
    them to 32 (not in the paper, whose inputs are never so small).

    Args:
        num_classes: C, at least 1.
    """

    def __init__(self, num_classes: int) -> None:
        assert num_classes >= 1, num_classes
        super().__init__()
        self.num_classes = num_classes
        self.first = nn.Conv2d(num_classes**2, _CHANNELS[0], 4, stride=2, padding=1)
        layers: list[nn.Module] = [nn.LeakyReLU(_SLOPE, inplace=True)]
        for channels_in, channels_out in pairwise(_CHANNELS):
            layers += [nn.Conv2d(channels_in, channels_out, 4, stride=2, padding=1), nn.LeakyReLU(_SLOPE, inplace=True)]
        self.rest = nn.Sequential(*layers, nn.Conv2d(_CHANNELS[-1], 1, 4, stride=2, padding=1))

    def forward(self, prob_BCHW: Tensor, group_BKHW: Tensor, q_BKC: Tensor) -> Tensor:
        """The scores of every group before the sigmoid; positive means source.

        Args:
            prob_BCHW: Class probabilities in [0, 1]; each side at least 16.
            group_BKHW: Group probabilities in [0, 1], at the same resolution.
            q_BKC: ``losses.group_distribution`` of the two. It is detached here, as in CDAN: no gradient passes it.

        Returns:
            (B, K, h, w), h = H // 32 and w = W // 32, at least 1.

        Raises:
            UsageError: A side is below 16.
        """
        _check_size(*prob_BCHW.shape[-2:])
        hidden_GOhw = self._first_layer(prob_BCHW, group_BKHW, self._folded(q_BKC.detach()))
        logits_G1hw: Tensor = self.rest(hidden_GOhw)
        return logits_G1hw.view(*q_BKC.shape[:2], *logits_G1hw.shape[-2:])

    def _folded(self, q_BKC: Tensor) -> Tensor:
        """(B, K, O, C, 4, 4) kernels: the first layer's weight summed over j with each group's Q, in full precision."""
        weight_OIJuv = self.first.weight.view(-1, self.num_classes, self.num_classes, 4, 4)
        with torch.autocast(q_BKC.device.type, enabled=False):
            return torch.einsum("oijuv,bkj->bkoiuv", weight_OIJuv, q_BKC.to(weight_OIJuv.dtype))

    def _first_layer(self, prob_BCHW: Tensor, group_BKHW: Tensor, weight_BKOCuv: Tensor) -> Tensor:
        """(B * K, O, h, w): the first convolution, one group at a time."""
        # Cost: forward and backward of 2 x 8 groups of 19 x 64 x 128 take 51 ms on two CPU cores; one convolution with
        # B * K channel groups 80 ms, unfold and a batched product 87 ms. At 32 x 64: 17, 16 and 13 ms.
        padding = _padding(prob_BCHW.shape[-2]), _padding(prob_BCHW.shape[-1])
        return torch.stack(
            [
                F.conv2d(group_HW * prob_CHW, weight_OCuv, self.first.bias, stride=2, padding=padding)
                for prob_CHW, group_KHW, weight_KOCuv in zip(prob_BCHW, group_BKHW, weight_BKOCuv, strict=True)
                for group_HW, weight_OCuv in zip(group_KHW, weight_KOCuv, strict=True)
            ]
        )


def _padding(side: int) -> int:
    """The first layer's padding: 1, and for a short side what makes it behave like one of 32."""
    return 1 + (max(0, _FULL_SIDE - side) + 1) // 2


def _check_size(height: int, width: int) -> None:
    if min(height, width) < MIN_SIDE:
        raise UsageError(
            f"the discriminator got maps of {width}x{height}, and each side must be at least {MIN_SIDE}",
            fix="train on larger images, or align at the resolution of the input",
        )
