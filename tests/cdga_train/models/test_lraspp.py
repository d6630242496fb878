"""LR-ASPP: torchvision's network before its upsampling, and both kinds of published weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models import mobilenet_v3_large
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

from cdga_sdk.errors import ModelError
from cdga_train.models.lraspp import LRASPPMobileNetV3
from cdga_train.models.registry import NETWORKS

SPEC = NETWORKS["lraspp_mobilenet_v3"]


def torchvisions(num_classes: int) -> Any:
    return lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=num_classes).eval()


def test_it_has_as_many_parameters_as_published() -> None:
    assert sum(p.numel() for p in LRASPPMobileNetV3(21).parameters()) == 3_221_538  # stated by torchvision


def test_the_whole_file_gives_torchvisions_output() -> None:
    torch.manual_seed(0)
    published = torchvisions(19)
    network = SPEC.build(19).eval()
    assert SPEC.load_published(network, published.state_dict()) == "network"
    image_BCHW = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        logits_BChw = network(image_BCHW)
        upsampled_BCHW = F.interpolate(logits_BChw, size=(64, 96), mode="bilinear", align_corners=False)
        assert torch.equal(upsampled_BCHW, published(image_BCHW)["out"])


def test_a_whole_file_of_other_classes_gives_its_backbone() -> None:
    torch.manual_seed(0)
    published = torchvisions(21)
    network = SPEC.build(19).eval()
    head = {key: tensor.clone() for key, tensor in network.head.state_dict().items()}
    assert SPEC.load_published(network, published.state_dict()) == "backbone"
    assert all(torch.equal(tensor, head[key]) for key, tensor in network.head.state_dict().items())
    image_BCHW = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        wanted = published.backbone(image_BCHW)
        assert all(torch.equal(x_BChw, wanted[key]) for key, x_BChw in network.backbone(image_BCHW).items())


def test_a_classification_file_gives_the_backbone() -> None:
    torch.manual_seed(0)
    published: Any = mobilenet_v3_large(weights=None).eval()
    network = SPEC.build(19).eval()
    assert SPEC.load_published(network, published.state_dict()) == "backbone"
    image_BCHW = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():  # up to stride 8 the dilated backbone is the ordinary one
        assert torch.equal(network.backbone(image_BCHW)["low"], published.features[:5](image_BCHW))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classifier.scale.1.weight": None}, "'head.scale.1.weight' is missing"),
        ({"classifier.low_classifier.weight": None}, "'head.low_classifier.weight' is missing"),
        ({"classifier.cbr.0.weight": torch.zeros(64, 960, 1, 1)}, r"'head.cbr.0.weight' has shape \(64, 960, 1, 1\)"),
        ({"classifier.high_classifier.bias": torch.zeros(21)}, r"'head.high_classifier.bias' has shape \(21,\)"),
        ({"backbone.16.1.running_var": None}, "'backbone.16.1.running_var' is missing"),
        ({"aux_classifier.0.weight": torch.zeros(1)}, "'aux_classifier.0.weight' is unknown"),
        ({"features.0.0.weight": torch.zeros(16, 3, 3, 3)}, "'backbone.0.0.weight' is there twice"),
    ],
)
def test_a_whole_file_that_differs_is_refused(change: dict[str, Tensor | None], message: str) -> None:
    state = {k: v for k, v in (torchvisions(19).state_dict() | change).items() if v is not None}
    with pytest.raises(ModelError, match=rf"weights of LR-ASPP or MobileNetV3-Large: .*{message}"):
        SPEC.published_state(state)


def test_another_mobilenet_is_refused() -> None:
    state = {k: v for k, v in mobilenet_v3_large(weights=None).state_dict().items() if not k.startswith("features.9.")}
    with pytest.raises(ModelError, match=r"'backbone.9.block.0.0.weight' is missing"):
        SPEC.published_state(state)
