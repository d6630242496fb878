"""float16 for as much as keeps its labels."""

from __future__ import annotations

import onnx
import pytest
import torch
from onnx import TensorProto
from torch import Tensor, nn

from cdga_export.halved import halved
from cdga_export.rounded import with_rounding
from cdga_export.to_onnx import checked_bytes, onnx_from_fused, onnx_of
from cdga_export.typed_fp16 import convolutions
from cdga_train.models.fused import FusedNetwork
from tests.cdga_export.test_to_onnx import MANIFEST, PREPROCESS
from tests.cdga_export.test_typed_fp16 import SEEN, agreement


class FineAtFirst(nn.Module):
    """The second convolution takes small differences of large values, through a border; two robust ones follow."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.raise_ = nn.Conv2d(3, 4, 1)
        self.compare = nn.Conv2d(4, 8, 3, padding=1)
        self.widen = nn.Conv2d(8, 64, 3, padding=1, stride=2)
        self.name_ = nn.Conv2d(64, 19, 3, padding=1)
        with torch.no_grad():
            self.raise_.bias = nn.Parameter(torch.full((4,), 2000.0))
            self.compare.weight.sub_(self.compare.weight.mean(dim=(1, 2, 3), keepdim=True))

    def forward(self, image_BCHW: Tensor) -> Tensor:
        logits: Tensor = self.name_(self.widen(self.compare(self.raise_(image_BCHW))).relu())
        return logits


@pytest.fixture(scope="module")
def fp32() -> onnx.ModelProto:
    return onnx_of(onnx_from_fused(FusedNetwork(FineAtFirst(), PREPROCESS), MANIFEST))


def half_convolutions(model: onnx.ModelProto) -> set[str]:
    half = {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT16}
    return {conv.name for conv in convolutions(model) if conv.input[1] in half}


def test_the_first_convolutions_stay_where_all_is_too_much(fp32: onnx.ModelProto) -> None:
    names = [conv.name for conv in convolutions(fp32)]
    everything = halved(fp32, SEEN, "float16", min_agreement=0.0)
    assert (everything.names, everything.share) == (frozenset(names), 1.0)
    assert agreement(with_rounding(everything.model), fp32) < 0.9
    found = halved(fp32, SEEN, "float16", min_agreement=0.95)
    assert found.names == half_convolutions(found.model) == set(names[2:])
    assert 0.9 < found.share < 1
    assert str(found).endswith("in float16 (2 of 4 convolutions)")
    assert agreement(with_rounding(found.model), fp32) >= 0.95
    onnx.checker.check_model(onnx_of(checked_bytes(found.model)), full_check=True)


def test_what_cannot_be_half_goes_whole_to_the_judge(fp32: onnx.ModelProto) -> None:
    found = halved(fp32, SEEN, "float16", min_agreement=1.0)
    assert found.names == {conv.name for conv in convolutions(fp32)}
    assert found.share == 1.0
