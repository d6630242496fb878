"""The grouping network: its layers, their order, and what its output promises."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cdga_train.models.grouping import GroupingNetwork


def prob_of(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(1)


def reference(network: GroupingNetwork, prob: Tensor) -> Tensor:
    """Batch statistics, written out: W2 @ batchnorm(relu(W1 @ p + b1)) + b2, softmax over K."""
    w1, b1, gamma, beta, w2, b2 = (p.detach() for p in network.parameters())
    hidden = torch.einsum("oi,bihw->bohw", w1[:, :, 0, 0], prob) + b1[:, None, None]
    hidden = hidden.clamp_min(0)
    mean = hidden.mean((0, 2, 3), keepdim=True)
    variance = (hidden - mean).square().mean((0, 2, 3), keepdim=True)
    hidden = gamma[:, None, None] * (hidden - mean) / (variance + 1e-5).sqrt() + beta[:, None, None]
    exponentials = torch.exp(torch.einsum("oi,bihw->bohw", w2[:, :, 0, 0], hidden) + b2[:, None, None])
    return exponentials / exponentials.sum(1, keepdim=True)


def test_the_layers_are_those_of_the_paper_in_its_order() -> None:
    layers = list(GroupingNetwork(19, 8).layers)
    assert [type(layer) for layer in layers] == [nn.Conv2d, nn.ReLU, nn.BatchNorm2d, nn.Conv2d]
    shapes = [tuple(p.shape) for p in GroupingNetwork(19, 8).parameters()]
    assert shapes == [(64, 19, 1, 1), (64,), (64,), (64,), (8, 64, 1, 1), (8,)]


@pytest.mark.parametrize("groups", [1, 3, 8])
def test_output_equals_the_equations_written_out(groups: int) -> None:
    torch.manual_seed(groups)
    network = GroupingNetwork(5, groups).double()
    _, _, gamma, beta, _, _ = network.parameters()
    nn.init.uniform_(gamma, 0.5, 2)
    nn.init.uniform_(beta, -1, 1)
    prob = prob_of(0, 2, 5, 6, 7)
    torch.testing.assert_close(network(prob), reference(network, prob), rtol=1e-10, atol=1e-12)


def test_groups_sum_to_one_at_every_pixel() -> None:
    torch.manual_seed(0)
    group = GroupingNetwork(19, 8)(prob_of(0, 2, 19, 9, 4).float()).detach()
    assert group.shape == (2, 8, 9, 4)
    assert float(group.min()) >= 0
    torch.testing.assert_close(group.sum(1), torch.ones(2, 9, 4))


def test_one_group_takes_everything() -> None:
    assert torch.equal(GroupingNetwork(4, 1)(prob_of(0, 1, 4, 3, 3).float()), torch.ones(1, 1, 3, 3))


def test_gradients_reach_the_probabilities_and_every_weight() -> None:
    torch.manual_seed(0)
    network = GroupingNetwork(4, 3)
    prob = prob_of(0, 2, 4, 5, 5).float().requires_grad_()
    gradients = torch.autograd.grad(network(prob)[:, 0].square().sum(), (prob, *network.parameters()))
    for gradient in gradients:
        assert bool(gradient.isfinite().all())
        assert float(gradient.abs().max()) > 0


def test_softmax_is_float32_under_autocast() -> None:
    torch.manual_seed(0)
    network, prob = GroupingNetwork(19, 8).eval(), prob_of(0, 1, 19, 8, 8).float()
    with torch.autocast("cpu", torch.bfloat16):
        group = network(prob)
    assert group.dtype == torch.float32
    # A softmax in bfloat16 would miss 1 by about 4e-3.
    torch.testing.assert_close(group.sum(1), torch.ones(1, 8, 8), rtol=0, atol=1e-6)
