"""Networks by name: one contract for all of them, strict sizes, and published weights that go where they should."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdga_sdk.errors import InputError, ModelError, UsageError
from cdga_train.models.base import SegmentationNetwork
from cdga_train.models.registry import NETWORKS, network_spec

CLASSES = 5
every_network = pytest.mark.parametrize("name", NETWORKS)


@pytest.fixture(scope="module", params=NETWORKS)
def name(request: pytest.FixtureRequest) -> str:
    """Module-wide, so that pytest sorts the tests by network and builds each network once."""
    return str(request.param)


@pytest.fixture(scope="module")
def built(name: str) -> SegmentationNetwork:
    torch.manual_seed(0)
    return NETWORKS[name].build(CLASSES)


@pytest.fixture
def network(built: SegmentationNetwork) -> SegmentationNetwork:
    """Whatever mode a test left it in, the next one gets it for inference and without gradients."""
    built.zero_grad()
    return built.eval()


def images(network: SegmentationNetwork, *, batch: int = 2) -> Tensor:
    """Of two by three times the multiple of sides."""
    generator = torch.Generator().manual_seed(1)
    height, width = 2 * network.size_multiple, 3 * network.size_multiple
    return torch.randn(batch, 3, height, width, generator=generator)


# ---------------------------------------------------------------- contract


def test_logits_are_finite_on_the_stated_grid(network: SegmentationNetwork) -> None:
    image_BCHW = images(network)
    with torch.inference_mode():
        logits_BChw = network(image_BCHW)
    height, width = image_BCHW.shape[-2:]
    stride = network.output_stride
    assert stride == 8
    assert logits_BChw.shape == (2, CLASSES, height // stride, width // stride)
    assert logits_BChw.dtype == torch.float32
    assert logits_BChw.isfinite().all()
    assert len(logits_BChw.unique()) > CLASSES


def test_the_smallest_image_gives_the_smallest_grid(network: SegmentationNetwork) -> None:
    side = network.size_multiple
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, side, side)).shape == (1, CLASSES, side // 8, side // 8)


def test_backbone_and_head_are_all_there_is(name: str, network: SegmentationNetwork) -> None:
    assert [child for child, _ in network.named_children()] == ["backbone", "head"]
    parts = [[id(p) for p in part.parameters()] for part in (network.backbone, network.head)]
    assert all(parts)
    assert parts[0] + parts[1] == [id(p) for p in network.parameters()]
    assert not set(parts[0]) & set(parts[1])
    assert network.num_classes == CLASSES
    assert NETWORKS[name].size_multiple == network.size_multiple
    assert NETWORKS[name].output_stride == network.output_stride


def test_the_head_alone_knows_the_classes(name: str, network: SegmentationNetwork) -> None:
    with torch.device("meta"):
        other = NETWORKS[name].build(CLASSES + 1).state_dict()
    differ = {key.partition(".")[0] for key, t in network.state_dict().items() if t.shape != other[key].shape}
    assert differ == {"head"}


def test_gradients_reach_every_parameter(network: SegmentationNetwork) -> None:
    network.train()
    logits_BChw = network(images(network))
    label_Bhw = torch.arange(logits_BChw[:, 0].numel()).view_as(logits_BChw[:, 0]) % CLASSES
    F.cross_entropy(logits_BChw, label_Bhw).backward()  # type: ignore[no-untyped-call]
    without = [
        key
        for key, parameter in network.named_parameters()
        if parameter.grad is None or not parameter.grad.isfinite().all() or not parameter.grad.any()
    ]
    assert without == []


def test_training_moves_the_running_statistics_and_inference_does_not(network: SegmentationNetwork) -> None:
    means = [m.running_mean for m in network.modules() if isinstance(m, nn.BatchNorm2d) and m.running_mean is not None]
    assert means
    image_BCHW = images(network)
    with torch.inference_mode():
        before = [mean.clone() for mean in means]
        first_BChw = network(image_BCHW)
        assert all(torch.equal(mean, old) for mean, old in zip(means, before, strict=True))
        assert torch.equal(network(image_BCHW), first_BChw)
        network.train()(image_BCHW)
        assert not any(torch.equal(mean, old) for mean, old in zip(means, before, strict=True))


def test_images_of_a_batch_do_not_touch_each_other(network: SegmentationNetwork) -> None:
    image_BCHW = images(network)
    with torch.inference_mode():
        alone_BChw, both_BChw = network(image_BCHW[1:]), network(image_BCHW)[1:]
    torch.testing.assert_close(both_BChw, alone_BChw, rtol=1e-3, atol=1e-4 * float(alone_BChw.abs().max()))


def test_mixed_precision_gives_logits_of_its_type(network: SegmentationNetwork) -> None:
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        logits_BChw = network(images(network))
    assert logits_BChw.dtype == torch.bfloat16
    assert logits_BChw.isfinite().all()


@pytest.mark.parametrize(("height", "width"), [(1.5, 2), (2, 1.125), (0.5, 1), (0, 1)])
def test_a_side_that_does_not_fit_is_refused(network: SegmentationNetwork, height: float, width: float) -> None:
    multiple = network.size_multiple
    image_BCHW = torch.zeros(1, 3, int(height * multiple), int(width * multiple))
    message = rf"{image_BCHW.shape[3]}x{image_BCHW.shape[2]} \(width x height\).*multiples of {multiple}$"
    with pytest.raises(InputError, match=message):
        network(image_BCHW)


@every_network
def test_nothing_is_downloaded_and_the_seed_decides(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    states = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        states.append(NETWORKS[name].build(CLASSES).state_dict())
    assert not list(tmp_path.iterdir())
    first, again, other = states
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first if first[key].ndim == 4)


# ---------------------------------------------------------------- published weights


def published_name(name: str, ours: str) -> str:
    """What the published file calls our tensor of the backbone."""
    if name.startswith("deeplab"):
        return ours.removeprefix("backbone.")
    if name == "lraspp_mobilenet_v3":
        return ours.replace("backbone.", "features.")
    if name == "lite0_fpn":
        return published_lite0_name(ours)
    for mine, theirs in (
        ("backbone.stem_in_conv.", "backbone.input_stem.op_list.0."),
        ("backbone.stem_res0.", "backbone.input_stem.op_list.1."),
        ("backbone.stages_", "backbone.stages."),
        (".blocks.", ".op_list."),
    ):
        ours = ours.replace(mine, theirs)
    return ours


def published_lite0_name(ours: str) -> str:
    layers = {
        "expand.conv": "_expand_conv",
        "expand.norm": "_bn0",
        "depthwise.conv": "_depthwise_conv",
        "depthwise.norm": "_bn1",
        "project.conv": "_project_conv",
        "project.norm": "_bn2",
        "stem.conv": "_conv_stem",
        "stem.norm": "_bn0",
    }
    for mine, theirs in layers.items():
        ours = ours.replace(mine, theirs)
    return ours.replace("backbone.blocks.", "_blocks.").replace("backbone.", "")


def published_backbone(name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {published_name(name, key): tensor for key, tensor in state.items() if key.startswith("backbone.")}


@every_network
def test_a_backbone_alone_leaves_the_head_as_it_was(name: str) -> None:
    spec = NETWORKS[name]
    network = spec.build(19)
    donor = {key: tensor + 1 for key, tensor in network.state_dict().items()}
    head = {key: tensor.clone() for key, tensor in network.head.state_dict().items()}
    file = published_backbone(name, donor)
    assert spec.published_state(file).keys() == {key for key in donor if key.startswith("backbone.")}
    assert spec.load_published(network, file) == "backbone"
    state = network.state_dict()
    assert all(torch.equal(state[key], donor[key]) for key in donor if key.startswith("backbone."))
    assert all(torch.equal(tensor, head[key]) for key, tensor in network.head.state_dict().items())


@every_network
def test_a_file_that_does_not_fit_changes_nothing(name: str) -> None:
    spec = NETWORKS[name]
    network = spec.build(19)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    file = published_backbone(name, {key: tensor + 1 for key, tensor in before.items()})
    lost = next(key for key in file if key.endswith("weight"))
    del file[lost]
    with pytest.raises(ModelError, match=r"'backbone\.\S+weight' is missing; give "):
        spec.load_published(network, file)
    for hopeless in ({}, {"extra": torch.zeros(1)}):
        with pytest.raises(ModelError, match="not the published weights of"):
            spec.load_published(network, hopeless)
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())


# ---------------------------------------------------------------- names and sizes


def test_the_networks_have_these_names() -> None:
    assert set(NETWORKS) == {
        "deeplabv2_resnet101",
        "deeplabv2_resnet50",
        "deeplabv2_resnet101_caffe",
        "deeplabv2_resnet50_caffe",
        "lraspp_mobilenet_v3",
        "lite0_fpn",
        "efficientvit_b0",
    }


@pytest.mark.parametrize(
    ("model", "imgsz_hw", "suggestion"),
    [
        ("efficientvit_b0", (360, 480), "use 352,480"),
        ("efficientvit_b0", (64, 100), "use 64,96"),
        ("efficientvit_b0", (64, 113), "use 64,128"),
        ("efficientvit_b0", (33, 31), "use 32,32"),
        ("efficientvit_b0", (1, 0), "use 32,32"),
        ("efficientvit_b0", (-64, 64), "use 32,64"),
        ("lraspp_mobilenet_v3", (360, 480), "use 352,480"),
        ("deeplabv2_resnet101", (357, 480), "use 360,480"),
    ],
)
def test_size_that_does_not_fit_has_a_suggestion_that_does(
    model: str, imgsz_hw: tuple[int, int], suggestion: str
) -> None:
    with pytest.raises(UsageError) as caught:
        network_spec(model, imgsz_hw)
    assert caught.value.fix == f"{suggestion} (height,width)"
    assert caught.value.where == "imgsz"
    height, width = map(int, suggestion.removeprefix("use ").split(","))
    assert network_spec(model, (height, width)) is NETWORKS[model]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("efficientvit_b1", "did you mean 'efficientvit_b0'"),
        ("deeplabv2_resnet_101", "did you mean 'deeplabv2_resnet101'"),
        ("zzz", "use one of deeplabv2_resnet101, .*efficientvit_b0"),
        ("", "use one of"),
    ],
)
def test_unknown_network(name: str, hint: str) -> None:
    with pytest.raises(UsageError, match=hint):
        network_spec(name, (64, 64))
