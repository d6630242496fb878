"""The discriminators D: tell, group by group or as a whole, whether a prediction is of the source or the target domain.

Axes: B images, C classes (indices i and j), K groups, O = 64 output channels of the first layer, H x W pixels, h x w
output positions, u x v = 4 x 4 kernel positions; S = 4 values of a 2x2 block, R = C * S, U x V = 2 x 2 kernel blocks.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdga_sdk.errors import UsageError

__all__ = ["MIN_SIDE", "GroupDiscriminator", "OutputDiscriminator"]

MIN_SIDE: Final = 16
_FULL_SIDE: Final = 32
_CHANNELS: Final = (64, 128, 256, 512)
_SLOPE: Final = 0.2


class OutputDiscriminator(nn.Module):
    """D of the baseline arm: five 4x4 convolutions with stride 2 on the class probabilities themselves.

    The layers of ``GroupDiscriminator`` on C instead of C * C channels, without groups; the same rule for short sides.
    Source: Tsai et al. 2018 (AdaptSegNet), as used by Li et al. 2019 (BDL), the stated baseline of Kim et al. 2021.

    Args:
        num_classes: C, at least 1.
    """

    def __init__(self, num_classes: int) -> None:
        assert num_classes >= 1, num_classes
        super().__init__()
        self.num_classes = num_classes
        self.first, self.rest = _convolutions(num_classes)

    def forward(self, prob_BCHW: Tensor) -> Tensor:
        """The scores before the sigmoid; positive means source.

        Args:
            prob_BCHW: Class probabilities in [0, 1]; each side at least 16.

        Returns:
            (B, 1, h, w), h = H // 32 and w = W // 32, at least 1.

        Raises:
            UsageError: A side is below 16.
        """
        height, width = prob_BCHW.shape[-2:]
        _check_size(height, width)
        padding = _padding(height), _padding(width)
        hidden_BOhw = F.conv2d(prob_BCHW, self.first.weight, self.first.bias, stride=2, padding=padding)
        logits_B1hw: Tensor = self.rest(hidden_BOhw)
        return logits_B1hw


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
        detach_q: Let no gradient pass through Q, as in CDAN (Long et al. 2018). The paper does not say.
    """

    def __init__(self, num_classes: int, *, detach_q: bool = True) -> None:
        assert num_classes >= 1, num_classes
        super().__init__()
        self.num_classes = num_classes
        self.detach_q = detach_q
        self.first, self.rest = _convolutions(num_classes**2)

    def forward(self, prob_BCHW: Tensor, group_BKHW: Tensor, q_BKC: Tensor) -> Tensor:
        """The scores of every group before the sigmoid; positive means source.

        Args:
            prob_BCHW: Class probabilities in [0, 1]; each side at least 16.
            group_BKHW: Group probabilities in [0, 1], at the same resolution.
            q_BKC: ``losses.group_distribution`` of the two; a constant here if ``detach_q``.

        Returns:
            (B, K, h, w), h = H // 32 and w = W // 32, at least 1.

        Raises:
            UsageError: A side is below 16.
        """
        _check_size(*prob_BCHW.shape[-2:])
        weight_BKOCuv = self._folded(q_BKC.detach() if self.detach_q else q_BKC)
        logits_G1hw: Tensor = self.rest(self._first_layer(prob_BCHW, group_BKHW, weight_BKOCuv))
        return logits_G1hw.view(*q_BKC.shape[:2], *logits_G1hw.shape[-2:])

    def _folded(self, q_BKC: Tensor) -> Tensor:
        """(B, K, O, C, 4, 4) kernels: the first layer's weight summed over j with each group's Q, in full precision."""
        weight_OIJuv = self.first.weight.view(-1, self.num_classes, self.num_classes, 4, 4)
        with torch.autocast(q_BKC.device.type, enabled=False):
            return torch.einsum("oijuv,bkj->bkoiuv", weight_OIJuv, q_BKC.to(weight_OIJuv.dtype))

    def _first_layer(self, prob_BCHW: Tensor, group_BKHW: Tensor, weight_BKOCuv: Tensor) -> Tensor:
        """(B * K, O, h, w): the first convolution, one group at a time.

        A 4x4 convolution with stride 2 is a 2x2 convolution with stride 1 on the 2x2 blocks of its padded input
        (S = 4 values a block and channel), and of its kernel likewise.
        """
        # Cost on a CPU, forward and backward: 0.69 of the time of 4x4 convolutions for 8 groups of 19 x 256 x 512 (19
        # channels fill vectors worse than 76), 0.72 for 2 x 8 of 19 x 64 x 128, 1.1 for 4 x 8 of 19 x 16 x 32. As one
        # convolution with B * K channel groups: 1.6, 1.6 and 1.2.
        prob_BCShw, group_BKShw = _blocks(prob_BCHW), _blocks(group_BKHW)
        weight_BKORUV = F.pixel_unshuffle(weight_BKOCuv, 2)
        return torch.stack(
            [
                F.conv2d((group_Shw * prob_CShw).flatten(0, 1), weight_ORUV, self.first.bias)
                for prob_CShw, group_KShw, weight_KORUV in zip(prob_BCShw, group_BKShw, weight_BKORUV, strict=True)
                for group_Shw, weight_ORUV in zip(group_KShw, weight_KORUV, strict=True)
            ]
        )


def _convolutions(channels_in: int) -> tuple[nn.Conv2d, nn.Sequential]:
    """The first of the five convolutions, and the others with the rectifiers before them."""
    first = nn.Conv2d(channels_in, _CHANNELS[0], 4, stride=2, padding=1)
    layers: list[nn.Module] = [nn.LeakyReLU(_SLOPE, inplace=True)]
    for above, below in pairwise(_CHANNELS):
        layers += [nn.Conv2d(above, below, 4, stride=2, padding=1), nn.LeakyReLU(_SLOPE, inplace=True)]
    return first, nn.Sequential(*layers, nn.Conv2d(_CHANNELS[-1], 1, 4, stride=2, padding=1))


def _blocks(maps_BXHW: Tensor) -> Tensor:
    """(B, X, S, h, w): the first layer's zero padding added, an unread last row or column dropped, in blocks of 2x2."""
    top, left = (_padding(side) for side in maps_BXHW.shape[-2:])
    bottom, right = top - maps_BXHW.shape[-2] % 2, left - maps_BXHW.shape[-1] % 2
    blocks_BRhw = F.pixel_unshuffle(F.pad(maps_BXHW, (left, right, top, bottom)), 2)
    return blocks_BRhw.reshape(*maps_BXHW.shape[:2], 4, *blocks_BRhw.shape[2:])


def _padding(side: int) -> int:
    """The first layer's padding: 1, and for a short side what makes it behave like one of 32."""
    return 1 + (max(0, _FULL_SIDE - side) + 1) // 2


def _check_size(height: int, width: int) -> None:
    if min(height, width) < MIN_SIDE:
        raise UsageError(
            f"the discriminator got maps of {width}x{height}, and each side must be at least {MIN_SIDE}",
            fix="use a larger imgsz, or align_resolution=input",
        )
