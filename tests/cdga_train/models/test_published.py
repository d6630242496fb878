"""Published tensors under our names: what is taken, converted, left out and refused, on a network of four tensors."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from cdga_sdk.errors import ModelError
from cdga_train.models.published import PublishedNames, renamed_state

NAMES = PublishedNames(
    of="Toy",
    fix="give a toy",
    renames=((r"body(\d)\.", r"backbone.\1."), (r"old\.", "backbone.0."), (r"top\.", "head.")),
    left_out=r"fc\.(weight|bias)",
)
NAMES_OF_ANY_CLASSES = PublishedNames(of="Toy", fix="give a toy", renames=NAMES.renames, class_axis="head.bias")
BACKBONE = {"backbone.0.weight", "backbone.0.num_batches_tracked"}


def wanted() -> dict[str, Tensor]:
    with torch.device("meta"):
        return {
            "backbone.0.weight": torch.zeros(2, 3),
            "backbone.0.num_batches_tracked": torch.zeros((), dtype=torch.int64),
            "head.bias": torch.zeros(19),
            "head.scale": torch.zeros(1),
        }


def file(*without: str, **changed: Tensor) -> dict[str, Tensor]:
    whole = {
        "body0.weight": torch.arange(6.0).view(2, 3),
        "body0.num_batches_tracked": torch.tensor(7),
        "top.bias": torch.ones(19),
        "top.scale": torch.tensor([3.0]),
    }
    return {key: value for key, value in (whole | changed).items() if key not in without}


def refused(state: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ModelError, match=rf"^these are not the published weights of Toy: {message}; give a toy$"):
        renamed_state(NAMES, state, wanted())


def test_a_whole_file_is_renamed_without_a_copy() -> None:
    state = file()
    renamed = renamed_state(NAMES, state, wanted())
    assert renamed.keys() == wanted().keys()
    assert renamed["backbone.0.weight"] is state["body0.weight"]
    assert int(renamed["backbone.0.num_batches_tracked"]) == 7
    assert renamed["head.scale"] is state["top.scale"]


def test_a_file_of_the_backbone_gives_exactly_that() -> None:
    assert renamed_state(NAMES, file("top.bias", "top.scale"), wanted()).keys() == BACKBONE


def test_part_of_a_head_or_of_a_backbone_is_refused() -> None:
    refused(file("top.scale"), "'head.scale' is missing")
    refused(file("body0.weight"), "'backbone.0.weight' is missing")
    refused(file("body0.weight", "top.bias", "top.scale"), "'backbone.0.weight' is missing")
    refused(file("body0.weight", "body0.num_batches_tracked"), "'backbone.0.weight' is missing")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_other_floating_types_become_float32(dtype: torch.dtype) -> None:
    weight = torch.arange(6.0).view(2, 3)
    renamed = renamed_state(NAMES, file() | {"body0.weight": weight.to(dtype)}, wanted())
    assert renamed["backbone.0.weight"].dtype == torch.float32
    assert torch.equal(renamed["backbone.0.weight"], weight)


def test_a_missing_counter_is_zero() -> None:
    counter = renamed_state(NAMES, file("body0.num_batches_tracked"), wanted())["backbone.0.num_batches_tracked"]
    assert (counter.dtype, counter.device.type, int(counter)) == (torch.int64, "cpu", 0)


def test_what_has_no_place_here_is_left_out_by_its_whole_name() -> None:
    extra = {"fc.weight": torch.zeros(1000, 2), "fc.bias": torch.zeros(1000)}
    assert renamed_state(NAMES, file() | extra, wanted()).keys() == wanted().keys()
    for name in ("fc.weight2", "my.fc.weight", "fc.running_mean"):
        refused(file() | {name: torch.zeros(1)}, f"'{re.escape(name)}' is unknown")


@pytest.mark.parametrize("name", ["extra", "head.scale", "body1.weight", "", "not body0.weight"])
def test_an_unknown_name_is_named(name: str) -> None:
    state = file("top.scale") if name == "head.scale" else file()
    refused(state | {name: torch.zeros(1)}, rf"'{name}' is unknown|'backbone.1.weight' is unknown")


def test_two_names_for_one_tensor_are_refused() -> None:
    refused(file() | {"old.weight": torch.zeros(2, 3)}, "'backbone.0.weight' is there twice")


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(3, 2), r"has shape \(3, 2\), wanted \(2, 3\)"),
        (torch.tensor(1.0), r"has shape \(\), wanted \(2, 3\)"),
        (torch.full((2, 3), torch.nan), "holds NaN or infinity"),
        (torch.full((2, 3), torch.inf, dtype=torch.float16), "holds NaN or infinity"),
        (torch.full((2, 3), 1e300, dtype=torch.float64), "holds NaN or infinity"),
        (torch.zeros(2, 3, dtype=torch.int8), r"is torch.int8 \(torch.strided, cpu\), wanted plain torch.float32"),
        (torch.zeros(2, 3, dtype=torch.complex64), r"is torch.complex64 \(.*\), wanted plain torch.float32"),
        (torch.zeros(2, 3).to_sparse(), r"is torch.float32 \(torch.sparse_coo, cpu\), wanted plain torch.float32"),
        (torch.zeros(2, 3, device="meta"), r"is torch.float32 \(torch.strided, meta\), wanted plain torch.float32"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(tensor: Tensor, message: str) -> None:
    refused(file() | {"body0.weight": tensor}, f"'backbone.0.weight' {message}")


def test_three_problems_are_named_and_the_rest_counted() -> None:
    refused({f"a{i}": torch.zeros(1) for i in range(4)}, r"'backbone.0.weight' is missing, 'a0' .*, 'a1' .* and 2 more")
    refused({}, "'backbone.0.weight' is missing")


def test_a_head_of_other_classes_is_left_out_where_the_names_say_so() -> None:
    other = file() | {"top.bias": torch.ones(21)}
    refused(other, r"'head.bias' has shape \(21,\), wanted \(19,\)")
    assert renamed_state(NAMES_OF_ANY_CLASSES, other, wanted()).keys() == BACKBONE
    assert renamed_state(NAMES_OF_ANY_CLASSES, file(), wanted()).keys() == wanted().keys()
    with pytest.raises(ModelError, match=r"'head.scale' has shape \(2,\)"):
        renamed_state(NAMES_OF_ANY_CLASSES, file() | {"top.scale": torch.ones(2)}, wanted())
    with pytest.raises(ModelError, match="'extra' is unknown"):
        renamed_state(NAMES_OF_ANY_CLASSES, other | {"extra": torch.ones(2)}, wanted())
