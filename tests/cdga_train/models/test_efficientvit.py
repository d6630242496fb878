"""The real-time network: shapes, gradients, its linear attention, and the published weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from timm.models.efficientvit_mit import LiteMLA
from torch import Tensor, nn
from torch.nn import functional as F

from cdga_sdk.errors import ModelError
from cdga_sdk.labels import CAMVID_TO_TRAIN_ID, CLASS_SETS, IGNORE, lookup_table
from cdga_sdk.opencv import cv2
from cdga_train.models.efficientvit import ATTENTION_EPS, EfficientViTSeg, _LinearAttention, _Upsample
from cdga_train.models.registry import NETWORKS

SHARED = Path(__file__).parents[4] / "shared"
WEIGHTS = SHARED / "weights" / "efficientvit_seg_b0_cityscapes.pt"
CAMVID = SHARED / "data" / "camvid"
SPEC = NETWORKS["efficientvit_b0"]

needs_weights = pytest.mark.skipif(not WEIGHTS.is_file(), reason="the published weights are not in ../shared/weights")
needs_camvid = pytest.mark.skipif(not CAMVID.is_dir(), reason="CamVid is not in ../shared/data")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small gain nothing from threads, and on a busy machine their barriers cost a factor of ten."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def network() -> EfficientViTSeg:
    torch.manual_seed(0)
    return EfficientViTSeg().eval()


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(WEIGHTS, weights_only=True)["state_dict"]
    return state


def attention_of(network: EfficientViTSeg) -> nn.Module:
    return next(module for module in network.modules() if isinstance(module, _LinearAttention))


# ---------------------------------------------------------------- the network (its contract: test_registry.py)


def test_the_network_is_as_small_as_published(network: EfficientViTSeg) -> None:
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 3) == 0.707  # million, as the paper's 0.7


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Constant folding:UserWarning")
def test_the_exported_graph_takes_any_batch_and_agrees(network: EfficientViTSeg, tmp_path: Path) -> None:
    graph = tmp_path / "network.onnx"
    names: dict[str, Any] = {"input_names": ["image"], "output_names": ["logits"]}
    batch_axis = {"image": {0: "batch"}, "logits": {0: "batch"}}
    torch.onnx.export(
        network, (torch.zeros(1, 3, 64, 96),), graph, dynamo=False, opset_version=18, dynamic_axes=batch_axis, **names
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    images_BCHW = torch.randn(3, 3, 64, 96)
    images_BCHW[0] = 0.0
    (exported,) = session.run(None, {"image": images_BCHW.numpy()})
    with torch.inference_mode():
        torch.testing.assert_close(torch.from_numpy(exported), network(images_BCHW), rtol=1e-3, atol=1e-4)


# ---------------------------------------------------------------- training


def test_training_lowers_the_loss_and_moves_the_running_statistics(network: EfficientViTSeg) -> None:
    network.train()
    image_BCHW, label_BHW = torch.randn(2, 3, 64, 64), torch.randint(0, 19, (2, 8, 8))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = F.cross_entropy(network(image_BCHW), label_BHW)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    assert int(network.state_dict()["head.expand.norm.num_batches_tracked"]) == 8


# ---------------------------------------------------------------- linear attention


def attention_in_float64(attention: nn.Module, x_BCHW: Tensor, eps: float) -> Tensor:
    """Section 3.1 of the paper, written with every pair of pixels: sum_j w_ij v_j / (sum_j w_ij + eps)."""
    module: Any = copy.deepcopy(attention).double()
    qkv_BCHW = module.qkv(x_BCHW.double())
    scales_BCHW = torch.cat([qkv_BCHW, *(aggregate(qkv_BCHW) for aggregate in module.aggreg)], dim=1)
    batch, _, height, width = x_BCHW.shape
    per_head = scales_BCHW.reshape(batch, -1, 3, module.dim, height * width)
    q, k, v = per_head.transpose(-1, -2).unbind(2)
    weight = q.relu() @ k.relu().transpose(-1, -2)
    mixed = weight @ v / (weight.sum(-1, keepdim=True) + eps)
    out_BCHW: Tensor = module.proj(mixed.transpose(-1, -2).reshape(batch, -1, height, width))
    return out_BCHW


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_attention_agrees_with_float64(network: EfficientViTSeg, scale: float) -> None:
    attention = attention_of(network)
    x_BCHW = scale * torch.randn(2, 64, 6, 8)
    with torch.inference_mode():
        wanted_BCHW = attention_in_float64(attention, x_BCHW, ATTENTION_EPS)
        torch.testing.assert_close(attention(x_BCHW).double(), wanted_BCHW, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("stage", ["stages_2", "stages_3"])
def test_attention_is_timms_with_its_weights_and_gradients(network: EfficientViTSeg, stage: str) -> None:
    attention = network.get_submodule(f"backbone.{stage}.blocks.1.context_module.main")
    width: int = attention.proj.conv.out_channels  # type: ignore[union-attr,assignment]
    theirs = LiteMLA(width, width, dim=16, eps=ATTENTION_EPS, norm_layer=(None, nn.BatchNorm2d)).eval()
    theirs.load_state_dict(attention.state_dict(), strict=True)
    seen_BCHW, own_BCHW = (torch.randn(2, width, 6, 8).requires_grad_() for _ in range(2))
    own_BCHW.data.copy_(seen_BCHW.data)
    wanted_BCHW, found_BCHW = theirs(seen_BCHW), attention(own_BCHW)
    torch.testing.assert_close(found_BCHW, wanted_BCHW, rtol=1e-4, atol=1e-5)
    towards_BCHW = torch.randn_like(wanted_BCHW)
    for out_BCHW in (wanted_BCHW, found_BCHW):
        out_BCHW.backward(towards_BCHW)
    torch.testing.assert_close(own_BCHW.grad, seen_BCHW.grad, rtol=1e-3, atol=1e-4)
    for (name, own), (same, their) in zip(attention.named_parameters(), theirs.named_parameters(), strict=True):
        assert name == same
        torch.testing.assert_close(own.grad, their.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Constant folding:UserWarning")
def test_no_activation_is_transposed_but_for_a_product(network: EfficientViTSeg, tmp_path: Path) -> None:
    torch.onnx.export(network, (torch.zeros(1, 3, 64, 96),), tmp_path / "n.onnx", dynamo=False, opset_version=18)
    nodes = list(onnx.load_model(tmp_path / "n.onnx").graph.node)
    transposed = [node.output[0] for node in nodes if node.op_type == "Transpose"]
    users = [node.op_type for node in nodes for name in node.input if name in transposed]
    assert users == ["MatMul"] * 8  # two scales in each of four blocks; runtimes take the order into the product


def test_epsilon_does_not_bend_the_attention(network: EfficientViTSeg) -> None:
    attention = attention_of(network)
    x_BCHW = torch.randn(2, 64, 6, 8)
    with torch.inference_mode():
        exact_BCHW = attention_in_float64(attention, x_BCHW, 1e-15)
        torch.testing.assert_close(attention(x_BCHW).double(), exact_BCHW, rtol=1e-3, atol=1e-4)


def test_a_pixel_whose_query_is_silent_gives_zero_not_nan(network: EfficientViTSeg) -> None:
    attention: Any = attention_of(network)
    attention.proj = nn.Identity()
    with torch.inference_mode():
        assert not attention(torch.zeros(1, 64, 4, 4)).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_leaves_the_normalisation_in_float32(network: EfficientViTSeg, dtype: torch.dtype) -> None:
    attention: Any = attention_of(network)
    attention.proj = nn.Identity()
    x_BCHW = 300.0 * torch.randn(1, 64, 16, 16)  # sums of k v pass 65,504, the largest float16
    with torch.inference_mode(), torch.autocast("cpu", dtype=dtype):
        mixed_BCHW = attention(x_BCHW)
    with torch.inference_mode():
        wanted_BCHW = attention(x_BCHW)
    assert mixed_BCHW.isfinite().all()
    error = (mixed_BCHW.float() - wanted_BCHW).abs().mean() / wanted_BCHW.abs().mean()
    assert float(error) < 0.05


def test_epsilon_survives_half_precision_and_the_exporters() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert (torch.zeros((), dtype=dtype) + ATTENTION_EPS) > 0
    assert ATTENTION_EPS > 1e-8  # an exporter drops an addend closer to zero than this


# ---------------------------------------------------------------- upsampling


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("size_hw", [(1, 1), (2, 3), (11, 15)])
def test_upsampling_is_bicubic_with_its_gradient(factor: int, size_hw: tuple[int, int]) -> None:
    seen_BCHW, own_BCHW = (torch.zeros(2, 5, *size_hw, requires_grad=True) for _ in range(2))
    seen_BCHW.data.normal_()
    own_BCHW.data.copy_(seen_BCHW.data)
    wanted_BCHW = F.interpolate(seen_BCHW, scale_factor=float(factor), mode="bicubic", align_corners=False)
    found_BCHW = _Upsample(5, factor)(own_BCHW)
    torch.testing.assert_close(found_BCHW, wanted_BCHW, rtol=1e-5, atol=1e-5)
    towards_BCHW = torch.randn_like(wanted_BCHW)
    for out_BCHW in (wanted_BCHW, found_BCHW):
        out_BCHW.backward(towards_BCHW)
    torch.testing.assert_close(own_BCHW.grad, seen_BCHW.grad, rtol=1e-4, atol=1e-4)


def test_upsampling_stays_in_float32_and_out_of_the_state(network: EfficientViTSeg) -> None:
    x_BCHW = torch.randn(1, 5, 3, 4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed_BCHW = _Upsample(5, 4)(x_BCHW)
    torch.testing.assert_close(mixed_BCHW, _Upsample(5, 4)(x_BCHW.float()), rtol=0, atol=0)
    assert not any("upsample" in name for name in network.state_dict())


# ---------------------------------------------------------------- published weights


@needs_weights
def test_every_published_tensor_is_used_once(published: dict[str, Tensor]) -> None:
    renamed = SPEC.published_state(published)
    assert {id(tensor) for tensor in renamed.values()} == {id(tensor) for tensor in published.values()}
    assert len(renamed) == len(published)
    EfficientViTSeg().load_state_dict(renamed, strict=True)


@needs_weights
def test_a_missing_tensor_is_named(published: dict[str, Tensor]) -> None:
    del (state := dict(published))["head.input_ops.2.conv.weight"]
    with pytest.raises(ModelError, match=r"'head\.project\.2\.conv\.weight' is missing"):
        SPEC.published_state(state)


@needs_weights
@pytest.mark.parametrize("name", ["head.input_ops.3.conv.weight", "head.project.0.conv.weight", "extra"])
def test_an_unknown_tensor_is_named(published: dict[str, Tensor], name: str) -> None:
    with pytest.raises(ModelError, match=rf"'{name}' is unknown"):
        SPEC.published_state({**published, name: torch.zeros(32, 128, 1, 1)})


@needs_weights
def test_a_tensor_of_another_shape_is_named(published: dict[str, Tensor]) -> None:
    name = "head.output_ops.0.op_list.1.conv.bias"
    with pytest.raises(ModelError, match=r"'head\.classify\.bias' has shape \(11,\), wanted \(19,\)"):
        SPEC.published_state({**published, name: torch.zeros(11)})


def test_foreign_weights_are_refused_in_one_line() -> None:
    with pytest.raises(ModelError, match=r"'.*' is missing, '.*' is missing, '.*' is missing and \d+ more"):
        SPEC.published_state({})


@needs_weights
@needs_camvid
def test_the_published_weights_segment_a_real_frame(network: EfficientViTSeg, published: dict[str, Tensor]) -> None:
    assert SPEC.load_published(network, published) == "network"
    name = (CAMVID / "val.txt").read_text().split()[50]
    bgr = cv2.imread(str(CAMVID / "images" / "val" / f"{name}.jpg"))
    label_HW = cv2.imread(str(CAMVID / "labels" / "val" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
    assert bgr is not None
    assert label_HW is not None
    rgb = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
    resized_HWC = cv2.resize(rgb, (480, 352), interpolation=cv2.INTER_LINEAR) / 255.0
    normalised_HWC = (resized_HWC - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    with torch.inference_mode():
        logits_BCHW = network(torch.from_numpy(normalised_HWC.transpose(2, 0, 1).astype(np.float32))[None])
        logits_BCHW = F.interpolate(logits_BCHW, size=rgb.shape[:2], mode="bilinear", align_corners=False)
    to_common = CLASS_SETS["common11"].table
    mask_HW = to_common[logits_BCHW.argmax(1)[0].numpy()]
    truth_HW = to_common[lookup_table(CAMVID_TO_TRAIN_ID)[label_HW]]
    scored_HW = truth_HW != IGNORE
    assert np.mean(mask_HW[scored_HW] == truth_HW[scored_HW]) >= 0.85
