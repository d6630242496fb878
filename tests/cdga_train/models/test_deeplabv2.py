"""DeepLab-v2: dilation that changes no feature, the sum of four dilations, the published size, and real weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet50, resnet101

from cdga_sdk.errors import ModelError
from cdga_sdk.image import read_image_bgr
from cdga_sdk.preprocess import Preprocess, resize_image
from cdga_train.checkpoint import read_published_weights
from cdga_train.models.deeplabv2 import DeepLabV2, Depth
from cdga_train.models.fused import Normalise
from cdga_train.models.registry import NETWORKS

V15, CAFFE = NETWORKS["deeplabv2_resnet50"], NETWORKS["deeplabv2_resnet50_caffe"]


def scrambled(module: nn.Module) -> nn.Module:
    """Every BatchNorm with statistics and an affine map that matter."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor, low, high in (
                (norm.weight, 0.5, 1.5),
                (norm.bias, -0.5, 0.5),
                (norm.running_mean, -0.5, 0.5),
                (norm.running_var, 0.5, 2.0),
            ):
                assert tensor is not None
                nn.init.uniform_(tensor, low, high)
    return module


# ---------------------------------------------------------------- dilation


def strided_features(depth: Depth, *, caffe_strides: bool, state: dict[str, Tensor], image: Tensor) -> Tensor:
    """The ordinary ResNet at output stride 32, its strides on the 3x3 as torchvision has them, or on the 1x1."""
    network: Any = (resnet50 if depth == 50 else resnet101)(weights=None)
    network.fc = nn.Identity()
    if caffe_strides:
        for layer in (network.layer2, network.layer3, network.layer4):
            layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)
    network.double().eval().load_state_dict(state)
    x_BCHW = network.maxpool(network.relu(network.bn1(network.conv1(image))))
    features: Tensor = network.layer4(network.layer3(network.layer2(network.layer1(x_BCHW))))
    return features


@pytest.mark.parametrize(("depth", "height", "width"), [(50, 64, 96), (50, 72, 104), (101, 40, 72)])
@pytest.mark.parametrize("caffe_strides", [False, True])
def test_dilated_features_are_the_strided_ones_and_those_between(
    depth: Depth, caffe_strides: bool, height: int, width: int
) -> None:
    torch.manual_seed(0)
    backbone = scrambled(DeepLabV2(3, depth=depth, caffe_strides=caffe_strides).backbone).double().eval()
    image_BCHW = torch.randn(1, 3, height, width, dtype=torch.float64)
    state = dict(backbone.state_dict())
    with torch.inference_mode():
        dilated_BChw = backbone(image_BCHW)
        strided_BChw = strided_features(depth, caffe_strides=caffe_strides, state=state, image=image_BCHW)
        other_BChw = strided_features(depth, caffe_strides=not caffe_strides, state=state, image=image_BCHW)
    assert dilated_BChw.shape == (1, 2048, height // 8, width // 8)
    assert strided_BChw.shape == (1, 2048, -(-height // 32), -(-width // 32))
    at_its_grid_BChw = dilated_BChw[:, :, ::4, ::4]
    scale = float(strided_BChw.abs().max())
    torch.testing.assert_close(at_its_grid_BChw, strided_BChw, rtol=1e-9, atol=1e-12 * scale)
    assert float((at_its_grid_BChw - other_BChw).abs().max()) > 0.01 * scale


# ---------------------------------------------------------------- classifier


def test_the_classifier_sums_four_dilations() -> None:
    torch.manual_seed(0)
    head = DeepLabV2(3, depth=50, caffe_strides=False).head.double()
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.01)
    weights, biases = ([p for name, p in head.named_parameters() if name.endswith(end)] for end in ("weight", "bias"))
    feature_Chw = torch.randn(2048, 30, 40, dtype=torch.float64)
    with torch.inference_mode():
        logits_BChw = head(feature_Chw[None])
        for y, x in ((0, 0), (15, 20), (29, 39), (20, 3)):
            by_hand_C = torch.stack(list(biases)).sum(0)
            for dilation, weight in zip((6, 12, 18, 24), weights, strict=True):
                for row in range(3):
                    for column in range(3):
                        at_y, at_x = y + dilation * (row - 1), x + dilation * (column - 1)
                        if 0 <= at_y < 30 and 0 <= at_x < 40:
                            by_hand_C = by_hand_C + weight[:, :, row, column] @ feature_Chw[:, at_y, at_x]
            torch.testing.assert_close(logits_BChw[0, :, y, x], by_hand_C)


def test_the_classifier_starts_small_and_unbiased() -> None:
    torch.manual_seed(0)
    head = DeepLabV2(19, depth=50, caffe_strides=False).head
    shapes = {(tuple(p.shape), name.rpartition(".")[2]) for name, p in head.named_parameters()}
    assert shapes == {((19, 2048, 3, 3), "weight"), ((19,), "bias")}
    assert len(list(head.parameters())) == 8
    for name, parameter in head.state_dict().items():
        if name.endswith("weight"):  # 350,208 draws: the deviation's own error is 0.0012 of it
            assert float(parameter.std()) == pytest.approx(0.01, rel=0.01)
            assert float(parameter.mean()) == pytest.approx(0, abs=1e-4)
        else:
            assert not parameter.any()


# ---------------------------------------------------------------- size


@pytest.mark.parametrize(
    ("name", "parameters", "gmac"),
    [
        # ResNet-101: 44,549,160 parameters, 2,049,000 of them in fc. Classifier: 4 x (2048 x 19 x 9 + 19).
        ("deeplabv2_resnet101", 43_901_068, 366.0),
        ("deeplabv2_resnet101_caffe", 43_901_068, 365.2),
        # ResNet-50: 25,557,032.
        ("deeplabv2_resnet50_caffe", 24_908_940, 210.0),
    ],
)
def test_parameters_and_cost_at_1024x512(name: str, parameters: int, gmac: float) -> None:
    with torch.device("meta"):
        network = NETWORKS[name].build(19).eval()
        assert sum(p.numel() for p in network.parameters()) == parameters
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, 3, 512, 1024))
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmac, abs=0.05)


# ---------------------------------------------------------------- published weights


@pytest.mark.parametrize("name", ["deeplabv2_resnet50", "deeplabv2_resnet50_caffe"])
def test_torchvisions_resnet_is_taken_without_its_classifier(name: str) -> None:
    torch.manual_seed(0)
    published: Any = scrambled(resnet50(weights=None)).eval()
    network = NETWORKS[name].build(19).eval()
    assert NETWORKS[name].load_published(network, published.state_dict()) == "backbone"
    children: Any = dict(network.backbone.named_children())
    x_BCHW = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        stem_BChw = published.maxpool(published.relu(published.bn1(published.conv1(x_BCHW))))
        wanted_BChw = published.layer1(stem_BChw)
        got_BChw = children["layer1"](network.backbone[:4](x_BCHW))  # type: ignore[index]  # a Sequential
    assert torch.equal(got_BChw, wanted_BChw)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer4.2.conv3.weight": None}, "'backbone.layer4.2.conv3.weight' is missing"),
        ({"layer4.3.conv1.weight": torch.zeros(512, 2048, 1, 1)}, "'layer4.3.conv1.weight' is unknown"),
        ({"conv1.weight": torch.zeros(64, 1, 7, 7)}, r"'backbone.conv1.weight' has shape \(64, 1, 7, 7\)"),
        ({"layer1.0.bn1.running_var": torch.full((64,), torch.inf)}, "running_var' holds NaN or infinity"),
        ({"fc2.weight": torch.zeros(1)}, "'fc2.weight' is unknown"),
    ],
)
def test_a_resnet_that_differs_is_refused(change: dict[str, Tensor | None], message: str) -> None:
    state = {k: v for k, v in (resnet50(weights=None).state_dict() | change).items() if v is not None}
    with pytest.raises(ModelError, match=rf"weights of ResNet-50: .*{message}.*torchvision's resnet50"):
        V15.published_state(state)


def test_a_resnet_of_another_depth_is_refused() -> None:
    state = resnet50(weights=None).state_dict()
    with pytest.raises(ModelError, match=r"ResNet-101: 'backbone.layer3.6.conv1.weight' is missing.* and \d+ more"):
        NETWORKS["deeplabv2_resnet101"].published_state(state)


def test_the_caffe_weights_load_in_float32(caffe_weights: Path) -> None:
    published = read_published_weights(caffe_weights)
    network = CAFFE.build(19)
    assert CAFFE.load_published(network, published) == "backbone"
    state = network.backbone.state_dict()
    assert {tensor.dtype for tensor in state.values()} == {torch.float32, torch.int64}
    assert all(torch.equal(state[name], tensor.float()) for name, tensor in published.items())
    largest = max(float(tensor.max()) for name, tensor in state.items() if name.endswith("running_var"))
    assert largest == pytest.approx(83_614, abs=1)  # float16 ends at 65,504


def variance_error(network: DeepLabV2, image_BCHW: Tensor) -> float:
    """Mean |log ratio| of the inputs' variance and the one that training saw, over layer2 and layer3."""
    errors = []

    def compare(norm: Any, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        alive = norm.running_var > 1e-3
        errors.append(float((inputs[0].var((0, 2, 3)) / norm.running_var)[alive].log().abs().mean()))

    for name, module in network.backbone.named_modules():
        if name.startswith(("layer2", "layer3")) and isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(compare)
    with torch.inference_mode():
        network.backbone[:7](image_BCHW)  # type: ignore[index]  # a Sequential, up to layer3
    return float(np.mean(errors))


def test_the_caffe_weights_know_where_their_strides_sat(caffe_weights: Path, camvid: Path) -> None:
    published = read_published_weights(caffe_weights)
    files = sorted((camvid / "images" / "val").glob("*.jpg"))[::50]
    frames_rgb = [resize_image(read_image_bgr(file), (240, 320))[:, :, ::-1] for file in files]
    image_BCHW = Normalise(Preprocess(imgsz_hw=(240, 320)))(torch.from_numpy(np.stack(frames_rgb)))
    errors = []
    for caffe_strides in (True, False):
        network = DeepLabV2(19, depth=50, caffe_strides=caffe_strides).eval()
        CAFFE.load_published(network, published)
        errors.append(variance_error(network, image_BCHW))
    assert errors[0] < 0.75 * errors[1]
