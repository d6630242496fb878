"""Half precision as it is, where CPU kernels compute it in float32."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from cdga_export.frames import Frame
from cdga_export.judge import Judge
from cdga_export.parity import Reference
from cdga_export.rounded import with_rounding
from cdga_export.to_onnx import checked_bytes, onnx_from_fused, onnx_of
from cdga_export.typed_fp16 import channel_statistics, typed_fp16
from cdga_sdk.errors import GateError
from cdga_train.models.fused import FusedNetwork
from cdga_train.models.registry import NETWORKS
from cdga_train.predict import predict_frames
from tests.cdga_export.test_to_onnx import MANIFEST, PREPROCESS, calibrated
from tests.cdga_export.test_typed_fp16 import FRAMES, JUDGED, SEEN, agreement, masks


class Overflowing(nn.Module):
    """Weights that float16 holds exactly, and activations far above 65504 between them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.grow = nn.Conv2d(3, 32, 3, padding=1, stride=2, bias=False)
        self.shrink = nn.Conv2d(32, 19, 3, padding=1, bias=False)
        with torch.no_grad():
            for conv, scale in ((self.grow, 2.0**17), (self.shrink, 2.0**-8)):
                conv.weight.copy_((64 * conv.weight).round() / 64 * scale)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        logits: Tensor = self.shrink(self.grow(image_BCHW).relu())
        return logits


def halved(network: nn.Module) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    model = onnx_of(onnx_from_fused(FusedNetwork(network, PREPROCESS), MANIFEST))
    return model, typed_fp16(model, channel_statistics(model, SEEN))


def test_an_overflow_that_a_cpu_hides_is_seen() -> None:
    model, half = halved(Overflowing())
    assert agreement(half, model) == 1.0
    rounded = with_rounding(half)
    onnx.checker.check_model(rounded, full_check=True)
    assert agreement(rounded, model) < 0.01


def test_the_gate_sees_it_too(tmp_path_factory: pytest.TempPathFactory) -> None:
    network = Overflowing()
    model, half = halved(network)
    references = []
    for number, frame_rgb in enumerate(JUDGED):
        mask, conf = predict_frames(FusedNetwork(network, PREPROCESS), frame_rgb[np.newaxis])
        frame = Frame(name=str(number), image_bgr=frame_rgb[:, :, ::-1], frame_rgb=frame_rgb)
        references.append(Reference(frame=frame, mask=mask[0], conf=conf[0], image_mask=mask[0]))
    judge = Judge(references, checked_bytes(model), None, tmp_path_factory.mktemp("judged") / "a.cdga")
    with pytest.raises(GateError, match=r"onnxruntime cpu fp16 \(rounded\) differs"):
        judge.proven("fp16", checked_bytes(half))


def test_rounding_is_that_of_torch_in_half_precision() -> None:
    torch.manual_seed(3)
    fused = calibrated(NETWORKS["lraspp_mobilenet_v3"].build(19), FRAMES)
    model = onnx_of(onnx_from_fused(fused, MANIFEST))
    half = typed_fp16(model, channel_statistics(model, SEEN))
    rounded = masks(with_rounding(half))
    assert (rounded != masks(half)).any()  # a CPU's kernels leave roundings out
    assert 0.75 < (rounded == masks(model)).mean() < 1.0  # random weights: all pixels are near ties


def test_the_half_graph_is_left_alone() -> None:
    _, half = halved(Overflowing())
    before = half.SerializeToString(deterministic=True)
    with_rounding(half)
    assert half.SerializeToString(deterministic=True) == before
