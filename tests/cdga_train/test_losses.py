"""Every loss against a literal float64 reference in explicit loops, and against values known by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cdga_train import losses

B, C, K, H, W = 2, 4, 3, 3, 5
Function = Callable[..., Tensor]


# The references: scalars and loops only, one line per symbol of the paper.


def reference_q(prob: Tensor, group: Tensor) -> Tensor:
    q = [
        [[sum(group[b, k, y, x] * prob[b, c, y, x] for y in range(H) for x in range(W)) / (H * W) for c in range(C)]
         for k in range(K)]
        for b in range(B)
    ]  # fmt: skip
    return stacked(q)


def reference_normalised_q(prob: Tensor, group: Tensor) -> Tensor:
    q = reference_q(prob, group)
    return stacked([[[q[b, k, c] / sum(q[b, k]) for c in range(C)] for k in range(K)] for b in range(B)])


def reference_m(prob: Tensor, group: Tensor) -> Tensor:
    m = [
        [[max(group[b, k, y, x] * prob[b, c, y, x] for y in range(H) for x in range(W)) for c in range(C)]
         for k in range(K)]
        for b in range(B)
    ]  # fmt: skip
    return stacked(m)


def reference_co(q_source: Tensor, q_target: Tensor) -> Tensor:
    terms = [(q_source[b, k, c] - q_target[b, k, c]) ** 2 for b in range(B) for k in range(K) for c in range(C)]
    return torch.stack(terms).sum() / B


def reference_orth(q: Tensor) -> Tensor:
    total = torch.zeros((), dtype=q.dtype)
    for b in range(B):
        for j1 in range(K):
            for j2 in range(K):
                if j1 != j2:
                    dot = sum(q[b, j1, c] * q[b, j2, c] for c in range(C))
                    norms = [sum(q[b, j, c] ** 2 for c in range(C)) ** 0.5 for j in (j1, j2)]
                    total = total + dot / (norms[0] * norms[1])
    return total / B


def reference_cl(m_source: Tensor, m_target: Tensor, tau: float) -> Tensor:
    total = torch.zeros((), dtype=m_target.dtype)
    for b in range(B):
        for k in range(K):
            for u in range(C):
                if m_source[b, k, u] >= tau:
                    total = total - torch.log(m_target[b, k, u])
    return total / B


def reference_seg(logits: Tensor, label: Tensor) -> Tensor:
    terms = []
    for b in range(B):
        for y in range(H):
            for x in range(W):
                if int(label[b, y, x]) != 255:
                    exponentials = [torch.exp(logits[b, c, y, x]) for c in range(C)]
                    terms.append(-torch.log(exponentials[int(label[b, y, x])] / sum(exponentials)))
    return torch.stack(terms).sum() / len(terms)


def reference_adversarial(logits: Tensor, is_source: bool) -> Tensor:
    total = torch.zeros((), dtype=logits.dtype)
    for b in range(B):
        for k in range(K):
            for y in range(H):
                for x in range(W):
                    d = 1 / (1 + torch.exp(-logits[b, k, y, x]))
                    total = total - torch.log(d if is_source else 1 - d) / (H * W)
    return total / B


def stacked(nested: Sequence[Any]) -> Tensor:
    return torch.stack([entry if isinstance(entry, Tensor) else stacked(entry) for entry in nested])


def probabilities(seed: int, channels: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(B, channels, *shape, generator=generator, dtype=torch.float64)).softmax(1)


def q_like(seed: int) -> Tensor:
    return probabilities(seed, K * C).view(B, K, C)


def labels(seed: int) -> Tensor:
    label = torch.randint(0, C, (B, H, W), generator=torch.Generator().manual_seed(seed))
    label[0, 0, :3] = 255
    return label.to(torch.uint8)


def scores(seed: int, channels: int) -> Tensor:
    return torch.randn(B, channels, H, W, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def value_and_gradients(function: Function, inputs: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    leaves = [tensor.to(dtype).requires_grad_() for tensor in inputs]
    value = function(*leaves)
    assert value.dtype == dtype
    cotangent = torch.linspace(0.5, 2, value.numel(), dtype=dtype).view(value.shape)
    gradients = torch.autograd.grad(value, leaves, cotangent, allow_unused=True)
    zeros = [torch.zeros_like(leaf) for leaf in leaves]
    return [value.detach(), *(zero if g is None else g for g, zero in zip(gradients, zeros, strict=True))]


CASES: dict[str, tuple[Function, Function, Callable[[int], list[Tensor]]]] = {
    "Q": (
        losses.group_distribution,
        reference_q,
        lambda seed: [probabilities(seed, C, H, W), probabilities(seed + 100, K, H, W)],
    ),
    "Q normalised": (
        lambda prob, group: losses.group_distribution(prob, group, group_normalise=True),
        reference_normalised_q,
        lambda seed: [probabilities(seed, C, H, W), probabilities(seed + 100, K, H, W)],
    ),
    "M": (
        losses.group_peak,
        reference_m,
        lambda seed: [probabilities(seed, C, H, W), probabilities(seed + 100, K, H, W)],
    ),
    "co": (losses.semantic_consistency, reference_co, lambda seed: [q_like(seed), q_like(seed + 100)]),
    "orth": (losses.orthogonality, reference_orth, lambda seed: [q_like(seed)]),
    "cl": (
        lambda source, target: losses.class_equivalence(source, target, 0.05),
        lambda source, target: reference_cl(source, target, 0.05),
        lambda seed: [q_like(seed), q_like(seed + 100)],
    ),
    "seg": (
        lambda logits: losses.segmentation(logits, labels(7)),
        lambda logits: reference_seg(logits, labels(7)),
        lambda seed: [scores(seed, C)],
    ),
    "adversarial, source": (
        lambda logits: losses.adversarial(logits, is_source=True),
        lambda logits: reference_adversarial(logits, is_source=True),
        lambda seed: [scores(seed, K)],
    ),
    "adversarial, target": (
        lambda logits: losses.adversarial(logits, is_source=False),
        lambda logits: reference_adversarial(logits, is_source=False),
        lambda seed: [scores(seed, K)],
    ),
}


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradients_equal_the_literal_reference(name: str, seed: int, dtype: torch.dtype, rtol: float) -> None:
    function, reference, inputs_of = CASES[name]
    inputs = inputs_of(seed)
    got = value_and_gradients(function, inputs, dtype)
    wanted = value_and_gradients(reference, inputs, torch.float64)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=rtol, atol=rtol * float(other.abs().max()))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CASES)
def test_computed_in_float32_under_autocast_and_from_half_inputs(name: str, half: torch.dtype) -> None:
    function, _, inputs_of = CASES[name]
    halves = [tensor.to(half) for tensor in inputs_of(3)]
    singles = [tensor.float() for tensor in halves]
    plain = function(*singles)
    assert plain.dtype == torch.float32
    assert torch.equal(function(*halves), plain)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(function(*singles), plain)
        assert torch.equal(function(*halves), plain)


# Two pixels, two classes, two groups, by hand.
PROB = torch.tensor([[0.8, 0.3], [0.2, 0.7]]).view(1, 2, 1, 2)
GROUP = torch.tensor([[0.5, 0.1], [0.5, 0.9]]).view(1, 2, 1, 2)


def test_group_statistics_by_hand() -> None:
    q = losses.group_distribution(PROB, GROUP)
    torch.testing.assert_close(q, torch.tensor([[[0.215, 0.085], [0.335, 0.365]]]))
    normalised = losses.group_distribution(PROB, GROUP, group_normalise=True)
    torch.testing.assert_close(normalised[0, 0], torch.tensor([0.215 / 0.3, 0.085 / 0.3]))
    torch.testing.assert_close(losses.group_peak(PROB, GROUP), torch.tensor([[[0.4, 0.1], [0.4, 0.63]]]))


def test_q_sums_to_one_per_image() -> None:
    prob, group = probabilities(0, C, H, W), probabilities(1, K, H, W)
    torch.testing.assert_close(losses.group_distribution(prob, group).sum((1, 2)), torch.ones(B).double())
    normalised = losses.group_distribution(prob, group, group_normalise=True)
    torch.testing.assert_close(normalised.sum(2), torch.ones(B, K).double())


def test_an_empty_group_is_finite_everywhere() -> None:
    group = torch.zeros(1, 2, 1, 2)
    group[:, 0] = 1
    group.requires_grad_()
    q = losses.group_distribution(PROB, group, group_normalise=True)
    total = q.sum() + losses.orthogonality(losses.group_distribution(PROB, group))
    (gradient,) = torch.autograd.grad(total, group)
    assert q[0, 1].tolist() == [0, 0]
    assert bool(gradient.isfinite().all())


def test_consistency_is_zero_for_equal_domains_and_counts_squares() -> None:
    q = q_like(0)
    assert float(losses.semantic_consistency(q, q)) == 0
    # Moving 0.1 from one class to another in each of the B pairs: 2 * 0.1 ^ 2.
    other = q.clone()
    other[:, 0, 0] += 0.1
    other[:, 0, 1] -= 0.1
    assert float(losses.semantic_consistency(q, other)) == pytest.approx(0.02)


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_orthogonality_is_all_pairs_for_equal_groups_and_zero_for_disjoint_ones(groups: int) -> None:
    equal = torch.rand(3, 1, 19, generator=torch.Generator().manual_seed(0)).expand(3, groups, 19)
    assert float(losses.orthogonality(equal)) == pytest.approx(groups * (groups - 1), rel=1e-6)
    disjoint = torch.eye(19)[:groups].expand(3, groups, 19) * 0.01
    assert float(losses.orthogonality(disjoint)) == 0


def test_equivalence_sends_no_gradient_to_the_source() -> None:
    source, target = q_like(0).requires_grad_(), q_like(1).requires_grad_()
    loss = losses.class_equivalence(source, target, 0.05)
    to_source, to_target = torch.autograd.grad(loss, (source, target), allow_unused=True)
    assert to_source is None
    assert bool((to_target != 0).any())


def test_equivalence_by_hand() -> None:
    source = torch.tensor([[[0.05, 0.04, 0.9, 0.9]]])
    target = torch.tensor([[[0.5, 0.1, 0.0, 1.0]]])
    # Present: the first (tau is included), the third (clamped to 1e-6) and the fourth (log 1 = 0).
    wanted = -log(0.5) - log(1e-6)
    assert float(losses.class_equivalence(source, target, 0.05)) == pytest.approx(wanted)
    assert float(losses.class_equivalence(source, target, 0.95)) == 0


def test_segmentation_known_values() -> None:
    label = labels(0)
    assert float(losses.segmentation(torch.zeros(B, C, H, W), label)) == pytest.approx(log(C))
    hopeless = torch.zeros(B, C, H, W)
    hopeless[:, 0] = 1e4
    assert float(losses.segmentation(hopeless, torch.full((B, H, W), 1))) == pytest.approx(1e4)


def test_an_all_ignored_batch_gives_zero_and_a_zero_gradient() -> None:
    logits = scores(0, C).requires_grad_()
    loss = losses.segmentation(logits, torch.full((B, H, W), 255, dtype=torch.uint8))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert float(loss.detach()) == 0
    assert torch.equal(gradient, torch.zeros_like(logits))


@pytest.mark.parametrize("is_source", [True, False])
@pytest.mark.parametrize("groups", [1, 8])
def test_a_blind_discriminator_costs_log_two_per_group(is_source: bool, groups: int) -> None:
    loss = losses.adversarial(torch.zeros(2, groups, 1, 3), is_source)
    assert float(loss) == pytest.approx(groups * 0.693147, rel=1e-6)


def test_adversarial_rewards_the_true_label_and_stays_finite() -> None:
    sure_of_source = torch.full((1, 2, 1, 1), 200.0)
    assert float(losses.adversarial(sure_of_source, is_source=True)) == 0
    assert float(losses.adversarial(sure_of_source, is_source=False)) == pytest.approx(400)


class _LargestTensor(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the largest number of elements that any operation returned, forward and backward."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            self.numel = max(self.numel, tensor.numel() if isinstance(tensor, Tensor) else 0)
        return result


@pytest.mark.parametrize("function", [losses.group_distribution, losses.group_peak])
def test_no_tensor_of_groups_times_classes_times_pixels(function: Function) -> None:
    prob, group = torch.rand(1, 19, 16, 16, requires_grad=True), torch.rand(1, 8, 16, 16, requires_grad=True)
    with _LargestTensor() as largest:  # type: ignore[no-untyped-call]
        torch.autograd.grad(function(prob, group).sum(), (prob, group))
    assert 0 < largest.numel <= 19 * 16 * 16
