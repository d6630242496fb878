"""The losses of CDGA and the group statistics that they are made of, as pure functions.

Axes: B images, C classes, K groups, H x W pixels, h x w output positions of the discriminator. The B images (or B
pairs of a source and a target image) are independent of each other, and every loss is their mean. Weights are applied
by the caller, never here.

Precision: every function raises bfloat16 and float16 inputs to float32 and computes in float32, under autocast too;
float64 inputs stay float64.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from cdga_sdk.labels import IGNORE

__all__ = [
    "adversarial",
    "class_equivalence",
    "group_distribution",
    "group_peak",
    "orthogonality",
    "segmentation",
    "semantic_consistency",
]

_NORM_EPS: Final = 1e-8
_PEAK_FLOOR: Final = 1e-6


def _raised(tensor: Tensor) -> Tensor:
    """``tensor`` in float32 if it has half precision, else as it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def group_distribution(prob_BCHW: Tensor, group_BKHW: Tensor, *, group_normalise: bool = False) -> Tensor:
    """Class distribution of every group: ``Q[b, k, c] = mean over pixels of group[b, k] * prob[b, c]``.

    Source: Kim et al. 2021, the average pooling before eq. 1.

    Args:
        prob_BCHW: Class probabilities in [0, 1], summing to 1 over C.
        group_BKHW: Group probabilities in [0, 1], summing to 1 over K, at the same resolution.
        group_normalise: Divide every group's vector by its sum, so that it sums to 1 (not in the paper).

    Returns:
        (B, K, C) in [0, 1]. Known value: sums to 1 over K and C for each image; with ``group_normalise``, to 1 over C.
    """
    prob_BCN, group_BKN = _raised(prob_BCHW).flatten(2), _raised(group_BKHW).flatten(2)
    # One (K x N) by (N x C) product per image: the K * C * N products are never held. Autocast would run it in half.
    with torch.autocast(prob_BCN.device.type, enabled=False):
        q_BKC = torch.bmm(group_BKN, prob_BCN.transpose(1, 2)) / prob_BCN.shape[2]
    return q_BKC / q_BKC.sum(2, keepdim=True).clamp_min(_NORM_EPS) if group_normalise else q_BKC


def group_peak(prob_BCHW: Tensor, group_BKHW: Tensor) -> Tensor:
    """Strongest evidence of every class in every group: ``M[b, k, c] = max over pixels of group[b, k] * prob[b, c]``.

    Source: Kim et al. 2021, the max pooling before eq. 5.

    Args:
        prob_BCHW: Class probabilities in [0, 1].
        group_BKHW: Group probabilities in [0, 1], at the same resolution.

    Returns:
        (B, K, C) in [0, 1]. The gradient reaches one maximal pixel of each (k, c). Known value: with one-hot inputs, 1
        where the group and the class meet at some pixel, 0 elsewhere.
    """
    prob_BCN, group_BKN = _raised(prob_BCHW).flatten(2), _raised(group_BKHW).flatten(2)
    at_BKC = _peak_positions(prob_BCN.detach(), group_BKN.detach())
    prob_BKC = prob_BCN.gather(2, at_BKC.transpose(1, 2)).transpose(1, 2)
    return group_BKN.gather(2, at_BKC) * prob_BKC


def _peak_positions(prob_BCN: Tensor, group_BKN: Tensor) -> Tensor:
    """(B, K, C) int64: the pixel at which ``group[b, k] * prob[b, c]`` is largest."""
    # Cost: B*K*C*N products, in K rounds that each hold one tensor of prob's size (40 MB for 19 x 512 x 1024). Searched
    # without a graph: autograd through the maximum would keep all K of those tensors until the backward.
    product_BCN = torch.empty_like(prob_BCN)
    rounds = (torch.mul(prob_BCN, group_BN[:, None], out=product_BCN).argmax(2) for group_BN in group_BKN.unbind(1))
    return torch.stack([*rounds], 1)


def semantic_consistency(q_source_BKC: Tensor, q_target_BKC: Tensor) -> Tensor:
    """L_co: ``sum over k of || Q_S[k] - Q_T[k] ||^2``, the squared L2 norm; mean over B.

    Source: Kim et al. 2021, eq. 1.

    Args:
        q_source_BKC: ``group_distribution`` of the source images.
        q_target_BKC: That of the target images, paired by position in the batch.

    Returns:
        Scalar in [0, 2], or [0, 2K] for normalised groups. Known value: 0 for equal inputs.
    """
    assert q_source_BKC.shape == q_target_BKC.shape, (q_source_BKC.shape, q_target_BKC.shape)
    return (_raised(q_source_BKC) - _raised(q_target_BKC)).square().sum((1, 2)).mean()


def orthogonality(q_BKC: Tensor) -> Tensor:
    """L_orth of one domain: ``sum over ordered pairs j1 != j2 of cos(Q[j1], Q[j2])``; mean over B.

    Source: Kim et al. 2021, eq. 2-3, without the constant diagonal; the paper's loss is the sum over both domains.
    A norm below 1e-8 counts as 1e-8, so an empty group gives 0 and no NaN.

    Args:
        q_BKC: ``group_distribution`` of one domain, not negative.

    Returns:
        Scalar in [0, K(K-1)]. Known values: K(K-1) when all groups are equal, 0 when no two share a class.
    """
    unit_BKC = F.normalize(_raised(q_BKC), dim=2, eps=_NORM_EPS)
    # Not a matmul, which autocast would run in half precision; K * K * C numbers.
    cosine_BKK = (unit_BKC[:, :, None] * unit_BKC[:, None]).sum(3)
    return 2 * cosine_BKK.triu(diagonal=1).sum((1, 2)).mean()


def class_equivalence(m_source_BKC: Tensor, m_target_BKC: Tensor, tau: float) -> Tensor:
    """L_cl: ``- sum over k and c of [M_S[k, c] >= tau] * log M_T[k, c]``; mean over B.

    Source: Kim et al. 2021, eq. 5. M_T is clamped to [1e-6, 1]. No gradient reaches ``m_source_BKC``; a target peak
    below 1e-6 gets none either.

    Args:
        m_source_BKC: ``group_peak`` of the source images.
        m_target_BKC: That of the target images, paired by position in the batch.
        tau: From which source peak on a class counts as present in a group, in [0, 1]; 0.05 in the paper.

    Returns:
        Scalar in [0, 13.82 * K * C]. Known values: 0 if no source peak reaches ``tau``; -log(p) for each present class
        whose target peak is p.
    """
    assert m_source_BKC.shape == m_target_BKC.shape, (m_source_BKC.shape, m_target_BKC.shape)
    present_BKC = _raised(m_source_BKC) >= tau
    log_BKC = _raised(m_target_BKC).clamp(_PEAK_FLOOR, 1).log()
    return -(present_BKC * log_BKC).sum((1, 2)).mean()


def segmentation(logits_BCHW: Tensor, label_BHW: Tensor) -> Tensor:
    """L_seg: ``mean over labelled pixels of -log softmax(logits)[label]``.

    Source: Kim et al. 2021, L_seg. The mean is over the labelled pixels of the whole batch, so an image with few of
    them weighs little.

    Args:
        logits_BCHW: Scores before the softmax.
        label_BHW: Integers of any type: train ids 0 to C-1, or 255 for "ignored".

    Returns:
        Scalar, not negative. Known values: log(C) for equal logits; 0 with zero gradient if every pixel is ignored.

    Raises:
        RuntimeError: A label is neither a train id nor 255 (on CUDA, whenever the device reports it).
    """
    labelled_BHW = label_BHW != IGNORE
    at_BHW = label_BHW.long().where(labelled_BHW, 0)
    # Not F.cross_entropy, which has no deterministic implementation on CUDA. Cost, forward and backward of 19 x 512 x
    # 1024 on a CPU: 1.05 of its time on one core, 1.00 on two.
    log_BHW = _raised(logits_BCHW).log_softmax(1).gather(1, at_BHW[:, None]).squeeze(1)
    return -log_BHW.where(labelled_BHW, 0).sum() / labelled_BHW.sum().clamp_min(1)


def adversarial(logits_BKhw: Tensor, is_source: bool) -> Tensor:
    """One domain's half of L_cadv: ``- sum over k of log D`` (source) or ``- sum over k of log(1 - D)`` (target).

    Source: Kim et al. 2021, eq. 4, with D = sigmoid(logits): the binary cross-entropy against a constant label, as a
    mean over B and D's output positions and a sum over K. The discriminator is trained with the true label; the
    networks that must deceive it get the target's logits with ``is_source=True``.

    Args:
        logits_BKhw: The discriminator's output before the sigmoid.
        is_source: The label: source (1) or target (0).

    Returns:
        Scalar, not negative. Known value: K * log(2) = 0.693 * K for zero logits, whichever the label.
    """
    logits_BKhw = _raised(logits_BKhw)
    return -F.logsigmoid(logits_BKhw if is_source else -logits_BKhw).mean((0, 2, 3)).sum()
