"""fp16 and int8-trt graphs of each family of networks, parsed and built by TensorRT for RTX, without a GPU."""

from __future__ import annotations

import hashlib
from typing import Literal

import pytest
import torch

from cdga_export.quantize import Quantizer
from cdga_export.to_onnx import checked_bytes, onnx_from_fused, onnx_of
from cdga_export.typed_fp16 import channel_statistics, convolutions, typed_fp16
from cdga_sdk.backends.tensorrt_build import BuildFlags, build_plan, key_ahead_of_time
from cdga_train.models.registry import NETWORKS
from tests.cdga_export.test_to_onnx import MANIFEST, calibrated
from tests.cdga_export.test_typed_fp16 import FRAMES, SEEN

pytest.importorskip("tensorrt_rtx", reason="needs the package tensorrt-rtx")


@pytest.mark.parametrize(("precision", "num_fp32"), [("fp16", 0), ("fp16", 3), ("int8-trt", 0), ("int8-trt", 3)])
@pytest.mark.parametrize("name", ["efficientvit_b0", "lraspp_mobilenet_v3", "deeplabv2_resnet50"])
def test_a_graph_is_parsed_and_built(name: str, precision: Literal["fp16", "int8-trt"], num_fp32: int) -> None:
    torch.manual_seed(3)
    fp32 = onnx_from_fused(calibrated(NETWORKS[name].build(19), FRAMES), MANIFEST)
    model = onnx_of(fp32)
    if precision == "fp16":
        graph = checked_bytes(typed_fp16(model, channel_statistics(model, SEEN), num_fp32=num_fp32))
    else:  # a network with random weights loses its labels at any rounding: what goes into 8 bits is named here
        names = [conv.name for conv in convolutions(model)][num_fp32:]
        graph = checked_bytes(Quantizer(model, SEEN, "tensorrt").graph(names))
    sha256 = hashlib.sha256(graph).hexdigest()
    for sm in ("89", "120"):
        key = key_ahead_of_time(sha256, precision=precision, sm=sm, flags=BuildFlags())
        assert len(build_plan(graph, key)) > 100_000
