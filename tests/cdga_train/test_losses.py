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
from cdga_train.models.discriminator import GroupDiscriminator
from cdga_train.models.grouping import GroupingNetwork

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
    # Both signs: the gradient of a normalised Q is a difference from a mean, and all but vanishes for near-equal ones.
    cotangent = torch.randn(value.shape, generator=torch.Generator().manual_seed(9)).to(dtype)
    return [value.detach(), *gradients(value, leaves, cotangent)]


def gradients(value: Tensor, leaves: Sequence[Tensor], cotangent: Tensor | None = None) -> list[Tensor]:
    """One per leaf; zeros where none arrives."""
    found = torch.autograd.grad(value, leaves, cotangent, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True)]


def assert_near(got: Tensor, wanted: Tensor, tolerance: float) -> None:
    """Every entry within ``tolerance`` of the largest one."""
    atol = tolerance * float(wanted.detach().abs().max())
    torch.testing.assert_close(got.double(), wanted.double(), rtol=0, atol=atol)


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


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", CASES)
def test_value_and_gradients_equal_the_literal_reference(
    name: str, seed: int, dtype: torch.dtype, tolerance: float
) -> None:
    function, reference, inputs_of = CASES[name]
    inputs = [tensor.to(dtype) for tensor in inputs_of(seed)]
    got = value_and_gradients(function, inputs, dtype)
    wanted = value_and_gradients(reference, inputs, torch.float64)
    for one, other in zip(got, wanted, strict=True):
        assert_near(one, other, tolerance)


# The whole chain at once: logits -> P -> C -> H -> F, Q, M, D -> every loss. The reference builds F and the outer
# product, and takes nothing but the parameters from the networks.

CLASSES, GROUPS, HEIGHT, WIDTH = 7, 4, 32, 64
TAU, WEIGHTS = 0.05, {"seg": 1.0, "co": 1e-3, "orth": 1e-3, "cl": 1e-4, "cadv": 1e-3}


def chain(
    logits: Sequence[Tensor], label: Tensor, grouping: GroupingNetwork, discriminator: GroupDiscriminator
) -> dict[str, Tensor]:
    """Every loss, by the modules under test; logits of the source and of the target."""
    prob = [one.softmax(1) for one in logits]
    group = [grouping(one) for one in prob]
    q = [losses.group_distribution(*pair) for pair in zip(prob, group, strict=True)]
    m = [losses.group_peak(*pair) for pair in zip(prob, group, strict=True)]
    real, fake = (discriminator(*domain) for domain in zip(prob, group, q, strict=True))
    return {
        "seg": losses.segmentation(logits[0], label),
        "co": losses.semantic_consistency(*q),
        "orth": losses.orthogonality(q[0]) + losses.orthogonality(q[1]),
        "cl": losses.class_equivalence(m[0], m[1], TAU),
        "cadv": losses.adversarial(fake, is_source=True),
        "d, source": losses.adversarial(real, is_source=True),
        "d, target": losses.adversarial(fake, is_source=False),
    }


def literal_groups(prob: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    w1, b1, gamma, beta, w2, b2 = parameters
    hidden = torch.relu(torch.einsum("oi,bihw->bohw", w1[:, :, 0, 0], prob) + b1[:, None, None])
    centred = hidden - hidden.mean((0, 2, 3), keepdim=True)
    deviation = (centred.square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()
    hidden = gamma[:, None, None] * centred / deviation + beta[:, None, None]
    exponentials = torch.exp(torch.einsum("oi,bihw->bohw", w2[:, :, 0, 0], hidden) + b2[:, None, None])
    return exponentials / exponentials.sum(1, keepdim=True)


def literal_d(f: Tensor, q: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """D = sigmoid of five convolutions on F (x) Q, (B, K, positions)."""
    x = torch.einsum("bkihw,bkj->bkijhw", f, q).flatten(2, 3).flatten(0, 1)
    for layer in range(5):
        x = torch.nn.functional.conv2d(x, parameters[2 * layer], parameters[2 * layer + 1], stride=2, padding=1)
        x = x if layer == 4 else torch.maximum(x, 0.2 * x)
    return (1 / (1 + torch.exp(-x))).reshape(*f.shape[:2], -1)


def literal_chain(
    logits: Sequence[Tensor], label: Tensor, grouping: Sequence[Tensor], discriminator: Sequence[Tensor], detach_q: bool
) -> dict[str, Tensor]:
    prob = [torch.exp(one) / torch.exp(one).sum(1, keepdim=True) for one in logits]
    f = [literal_groups(one, grouping)[:, :, None] * one[:, None] for one in prob]
    q, m = [one.mean((3, 4)) for one in f], [one.amax((3, 4)) for one in f]
    norm = [one.square().sum(2).sqrt() for one in q]
    cosine = [torch.einsum("bic,bjc,bi,bj->bij", one, one, 1 / n, 1 / n) for one, n in zip(q, norm, strict=True)]
    other_pairs = 1 - torch.eye(GROUPS, dtype=torch.float64)
    d = [literal_d(one, q_one.detach() if detach_q else q_one, discriminator) for one, q_one in zip(f, q, strict=True)]
    true_class = torch.nn.functional.one_hot(label.long() % 255, CLASSES).movedim(3, 1)
    return {
        "seg": -(torch.log(prob[0]) * true_class).sum(1)[label != 255].mean(),
        "co": (q[0] - q[1]).square().sum() / B,
        "orth": sum(((one * other_pairs).sum() / B for one in cosine), torch.zeros(())),
        "cl": -torch.log(m[1])[m[0] >= TAU].sum() / B,
        "cadv": -torch.log(d[1]).mean((0, 2)).sum(),
        "d, source": -torch.log(d[0]).mean((0, 2)).sum(),
        "d, target": -torch.log(1 - d[1]).mean((0, 2)).sum(),
    }


# In float32, the gradients of C's weights are small differences of large sums, as BatchNorm centres them.
@pytest.mark.parametrize(
    ("dtype", "on_logits", "on_weights"), [(torch.float64, 1e-11, 1e-11), (torch.float32, 1e-5, 1e-4)]
)
@pytest.mark.parametrize("detach_q", [True, False])
def test_the_chain_from_logits_to_losses_equals_a_literal_one(
    detach_q: bool, dtype: torch.dtype, on_logits: float, on_weights: float
) -> None:
    # Of 1.5 million pre-activations, this seed's nearest to a kink of ReLU or LeakyReLU is 5 float32 rounding errors
    # away: nearer than one, float32 takes the other slope, and a gradient is rightly another.
    torch.manual_seed(5)
    networks = GroupingNetwork(CLASSES, GROUPS).to(dtype), GroupDiscriminator(CLASSES, detach_q=detach_q).to(dtype)
    logits = [(3 * torch.randn(B, CLASSES, HEIGHT, WIDTH)).to(dtype).requires_grad_() for _ in range(2)]
    label = torch.randint(0, CLASSES, (B, HEIGHT, WIDTH))
    label[0, :5] = 255
    leaves = [*logits, *(p for network in networks for p in network.parameters())]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    got = chain(logits, label, *networks)
    wanted = literal_chain(exact[:2], label, exact[2:8], exact[8:], detach_q)
    for values in (got, wanted):
        values["all"] = torch.stack([weight * values[name] for name, weight in WEIGHTS.items()]).sum()
    tolerances = [on_logits] * 2 + [on_weights] * (len(leaves) - 2)
    for name, loss in wanted.items():
        assert_near(got[name].detach(), loss.detach(), on_logits)
        pairs = zip(gradients(got[name], leaves), gradients(loss, exact), tolerances, strict=True)
        for one, other, tolerance in pairs:
            assert_near(one, other, tolerance)


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


@pytest.mark.parametrize("wrong", [C, 254, -1, -100])
def test_a_label_that_is_no_class_and_not_ignored_is_refused(wrong: int) -> None:
    label = labels(0).long()
    label[1, 2, 3] = wrong
    with pytest.raises(RuntimeError, match=f"index {wrong} is out of bounds"):
        losses.segmentation(scores(0, C), label)


def test_an_ignored_pixel_counts_for_nothing_whatever_its_scores() -> None:
    label = labels(0)
    logits = scores(0, C).requires_grad_()
    assert int((label == 255).sum()) == 3
    with torch.no_grad():
        other = logits.where(label[:, None] != 255, 50.0)
        other[:, 0] = other[:, 0].where(label != 255, -50.0)
    other.requires_grad_()
    (one,), (two,) = (torch.autograd.grad(losses.segmentation(x, label), x) for x in (logits, other))
    assert torch.equal(losses.segmentation(logits, label), losses.segmentation(other, label))
    assert torch.equal(one, two)
    assert bool((one.movedim(1, 3)[label == 255] == 0).all())


@pytest.mark.parametrize("is_source", [True, False])
@pytest.mark.parametrize("groups", [1, 8])
def test_a_blind_discriminator_costs_log_two_per_group(is_source: bool, groups: int) -> None:
    loss = losses.adversarial(torch.zeros(2, groups, 1, 3), is_source)
    assert float(loss) == pytest.approx(groups * 0.693147, rel=1e-6)


def test_adversarial_rewards_the_true_label_and_stays_finite() -> None:
    sure_of_source = torch.full((1, 2, 1, 1), 200.0)
    assert float(losses.adversarial(sure_of_source, is_source=True)) == 0
    assert float(losses.adversarial(sure_of_source, is_source=False)) == pytest.approx(400)


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the names of all operations, forward and backward."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.__dict__.setdefault("names", set()).add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_segmentation_has_deterministic_operations_on_every_device() -> None:
    logits = scores(0, C).requires_grad_()
    with _Operations() as seen:  # type: ignore[no-untyped-call]
        torch.autograd.grad(losses.segmentation(logits, labels(0)), logits)
    assert {"gather", "_log_softmax_backward_data"} <= seen.names
    # torch.use_deterministic_algorithms: "NLLLoss when called on a CUDA tensor" raises.
    assert not {name for name in seen.names if "nll" in name}


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
