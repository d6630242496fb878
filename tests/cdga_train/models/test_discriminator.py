"""The discriminators: the folded first layer against the explicit outer product, and their contracts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cdga_sdk.errors import UsageError
from cdga_train.losses import group_distribution
from cdga_train.models.discriminator import GroupDiscriminator, OutputDiscriminator


def maps(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(*shape, generator=generator, dtype=torch.float64)).softmax(1).to(dtype)


def explicit(network: GroupDiscriminator, prob: Tensor, group: Tensor, q: Tensor) -> Tensor:
    """D on the outer product itself, channel i * C + j = group * prob[i] * q[j], zero-padded to sides of 32."""
    images, classes, height, width = prob.shape
    outer = torch.stack(
        [
            group[b, k] * prob[b, i] * q[b, k, j]
            for b in range(images)
            for k in range(group.shape[1])
            for i in range(classes)
            for j in range(classes)
        ]
    ).view(images * group.shape[1], classes**2, height, width)
    rows, columns = (max(0, 32 - height) + 1) // 2, (max(0, 32 - width) + 1) // 2
    logits: Tensor = network.rest(network.first(F.pad(outer, (columns, columns, rows, rows))))
    return logits.view(images, -1, *logits.shape[-2:])


@pytest.mark.parametrize("detach_q", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize(
    ("images", "classes", "groups", "height", "width"),
    [(2, 3, 4, 32, 64), (1, 19, 8, 32, 64), (1, 19, 2, 16, 32), (2, 2, 1, 17, 31), (1, 4, 3, 65, 47)],
)
def test_folded_equals_the_explicit_outer_product(
    images: int,
    classes: int,
    groups: int,
    height: int,
    width: int,
    dtype: torch.dtype,
    tolerance: float,
    detach_q: bool,
) -> None:
    torch.manual_seed(0)
    network = GroupDiscriminator(classes, detach_q=detach_q).to(dtype)
    prob = maps(1, images, classes, height, width, dtype=dtype).requires_grad_()
    group = maps(2, images, groups, height, width, dtype=dtype).requires_grad_()
    q = group_distribution(prob, group).detach().requires_grad_()
    leaves = [prob, group, *([] if detach_q else [q]), *network.parameters()]
    outputs = [network(prob, group, q), explicit(network, prob, group, q)]
    assert outputs[0].shape == (images, groups, max(1, height // 32), max(1, width // 32))
    folded, plain = ([y.detach(), *torch.autograd.grad(y.square().sum() + y.sum(), leaves)] for y in outputs)
    for one, other in zip(folded, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * float(other.abs().max()))


def test_an_attached_q_passes_its_gradient_on_to_its_origin() -> None:
    torch.manual_seed(0)
    network, prob, group = GroupDiscriminator(3, detach_q=False), maps(1, 1, 3, 32, 32), maps(2, 1, 2, 32, 32)
    for tensor in (prob, group):
        tensor.requires_grad_()
    folded = network(prob, group, group_distribution(prob, group)).sum()
    # Q written out as the mean over pixels.
    plain = explicit(network, prob, group, (group[:, :, None] * prob[:, None]).mean((3, 4))).sum()
    apart = GroupDiscriminator(3)
    apart.load_state_dict(network.state_dict())
    detached = apart(prob, group, group_distribution(prob, group)).sum()
    got, wanted, other = (torch.autograd.grad(y, (prob, group)) for y in (folded, plain, detached))
    for one, two, three in zip(got, wanted, other, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-5 * float(two.abs().max()))
        assert float((one - three).abs().max()) > 1e-2 * float(two.abs().max())


def test_the_first_layer_is_one_weight_with_the_default_initialisation() -> None:
    torch.manual_seed(5)
    parameters = dict(GroupDiscriminator(19).named_parameters())
    torch.manual_seed(5)
    conv = nn.Conv2d(361, 64, 4)
    assert torch.equal(parameters["first.weight"], conv.weight)
    assert conv.bias is not None
    assert torch.equal(parameters["first.bias"], conv.bias)
    shapes = [tuple(p.shape) for name, p in parameters.items() if name.endswith("weight")]
    assert shapes == [(64, 361, 4, 4), (128, 64, 4, 4), (256, 128, 4, 4), (512, 256, 4, 4), (1, 512, 4, 4)]


def test_four_leaky_rectifiers_of_slope_a_fifth_and_none_at_the_end() -> None:
    layers = list(GroupDiscriminator(2).rest)
    assert [type(layer) for layer in layers] == [nn.LeakyReLU, nn.Conv2d] * 4
    assert {layer.negative_slope for layer in layers if isinstance(layer, nn.LeakyReLU)} == {0.2}
    assert {(layer.stride, layer.padding) for layer in layers if isinstance(layer, nn.Conv2d)} == {((2, 2), (1, 1))}


def test_no_gradient_passes_through_q() -> None:
    torch.manual_seed(0)
    network, prob, group = GroupDiscriminator(3), maps(1, 1, 3, 32, 32), maps(2, 1, 2, 32, 32)
    for tensor in (prob, group):
        tensor.requires_grad_()
    attached = group_distribution(prob, group)
    assert attached.requires_grad
    through = torch.autograd.grad(network(prob, group, attached).sum(), (prob, group))
    apart = torch.autograd.grad(network(prob, group, attached.detach()).sum(), (prob, group))
    assert all(torch.equal(one, other) for one, other in zip(through, apart, strict=True))
    q = attached.detach().requires_grad_()
    (to_q,) = torch.autograd.grad(network(prob, group, q).sum(), q, allow_unused=True)
    assert to_q is None


def test_groups_and_images_are_scored_apart_and_in_order() -> None:
    torch.manual_seed(0)
    network = GroupDiscriminator(3)
    prob, group = maps(1, 2, 3, 32, 64), maps(2, 2, 4, 32, 64)
    q = group_distribution(prob, group)
    logits = network(prob, group, q)
    for b in range(2):
        for k in range(4):
            alone = network(prob[b : b + 1], group[b : b + 1, k : k + 1], q[b : b + 1, k : k + 1])
            torch.testing.assert_close(logits[b : b + 1, k : k + 1], alone)
    assert len(logits.unique()) == logits.numel()


@pytest.mark.parametrize(("height", "width"), [(15, 64), (64, 15)])
def test_maps_below_the_minimum_are_refused(height: int, width: int) -> None:
    prob, group = maps(1, 1, 3, height, width), maps(2, 1, 2, height, width)
    message = rf"maps of {width}x{height}, and each side must be at least 16; use a larger imgsz"
    with pytest.raises(UsageError, match=message):
        GroupDiscriminator(3)(prob, group, group_distribution(prob, group))
    with pytest.raises(UsageError, match=message):
        OutputDiscriminator(3)(prob)


@pytest.mark.parametrize(("height", "width"), [(32, 64), (16, 32), (17, 31), (65, 47)])
def test_the_output_discriminator_is_five_convolutions_on_the_probabilities(height: int, width: int) -> None:
    torch.manual_seed(0)
    network = OutputDiscriminator(5).double()
    prob = maps(1, 2, 5, height, width, dtype=torch.float64).requires_grad_()
    rows, columns = (max(0, 32 - height) + 1) // 2, (max(0, 32 - width) + 1) // 2
    x = F.pad(prob, (columns, columns, rows, rows))
    weights = list(network.parameters())
    for layer in range(5):
        x = F.conv2d(x, weights[2 * layer], weights[2 * layer + 1], stride=2, padding=1)
        x = x if layer == 4 else torch.maximum(x, 0.2 * x)
    logits = network(prob)
    assert logits.shape == (2, 1, max(1, height // 32), max(1, width // 32))
    leaves = [prob, *weights]
    got, wanted = ([y.detach(), *torch.autograd.grad(y.square().sum(), leaves)] for y in (logits, x))
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12 * float(other.abs().max()))


def test_the_output_discriminator_differs_from_the_other_in_its_first_layers_channels_alone() -> None:
    one, other = (
        {name: tuple(p.shape) for name, p in network.named_parameters()}
        for network in (OutputDiscriminator(19), GroupDiscriminator(19))
    )
    assert one.pop("first.weight") == (64, 19, 4, 4)
    assert other.pop("first.weight") == (64, 361, 4, 4)
    assert one == other


def test_kernels_are_folded_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    network, prob, group = GroupDiscriminator(19), maps(1, 1, 19, 32, 32), maps(2, 1, 8, 32, 32)
    q = group_distribution(prob, group)
    with torch.autocast("cpu", torch.bfloat16):
        folded = network._folded(q)
        logits = network(prob, group, q)
    assert folded.dtype == torch.float32
    assert torch.equal(folded, network._folded(q))
    assert bool(logits.isfinite().all())
    torch.testing.assert_close(logits.float(), network(prob, group, q), rtol=0.05, atol=2e-3)


class _LargestTensor(TorchDispatchMode):  # type: ignore[no-untyped-call]
    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            self.numel = max(self.numel, tensor.numel() if isinstance(tensor, Tensor) else 0)
        return result


def test_the_outer_product_is_never_built() -> None:
    prob, group = maps(1, 1, 19, 64, 64).requires_grad_(), maps(2, 1, 2, 64, 64)
    network = GroupDiscriminator(19)
    with _LargestTensor() as largest:  # type: ignore[no-untyped-call]
        network(prob, group, group_distribution(prob, group)).sum().backward()
    assert max(p.numel() for p in network.parameters()) <= largest.numel < 2 * 361 * 64 * 64
