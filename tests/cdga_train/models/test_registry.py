"""Networks by name: built without a download, and strict about sizes."""

from __future__ import annotations

import pytest
import torch

from cdga_sdk.errors import UsageError
from cdga_train.models.registry import NETWORKS, network_spec


@pytest.mark.parametrize("name", NETWORKS)
def test_contract_of_every_network(name: str) -> None:
    spec = network_spec(name, (64, 96))
    torch.manual_seed(0)
    network = spec.build(5).eval()
    with torch.inference_mode():
        logits_BChw = network(torch.zeros(2, 3, 64, 96))
    batch, classes, height, width = logits_BChw.shape
    assert (batch, classes) == (2, 5)
    assert 64 // height == 96 // width
    assert torch.isfinite(logits_BChw).all()


@pytest.mark.parametrize(
    ("imgsz_hw", "suggestion"),
    [
        ((360, 480), "use 352,480"),
        ((64, 100), "use 64,96"),
        ((64, 113), "use 64,128"),
        ((33, 31), "use 32,32"),
        ((1, 0), "use 32,32"),
        ((-64, 64), "use 32,64"),
    ],
)
def test_size_that_does_not_fit_has_a_suggestion_that_does(imgsz_hw: tuple[int, int], suggestion: str) -> None:
    with pytest.raises(UsageError) as caught:
        network_spec("efficientvit_b0", imgsz_hw)
    assert caught.value.fix == f"{suggestion} (height,width)"
    assert caught.value.where == "imgsz"
    height, width = map(int, suggestion.removeprefix("use ").split(","))
    assert network_spec("efficientvit_b0", (height, width)) is NETWORKS["efficientvit_b0"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [("efficientvit_b1", "did you mean 'efficientvit_b0'"), ("zzz", "use one of efficientvit_b0"), ("", "use one of")],
)
def test_unknown_network(name: str, hint: str) -> None:
    with pytest.raises(UsageError, match=hint):
        network_spec(name, (64, 64))
