"""Group maps against the networks' own tensors, layer by layer, in numpy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from cdga_sdk.errors import ModelError
from cdga_sdk.preprocess import UInt8Array
from cdga_train.checkpoint import Checkpoint, load_checkpoint
from cdga_train.data.base import Sample
from cdga_train.data.street_frames import StreetsDataset
from cdga_train.panels import (
    Float64Array,
    GroupedNetwork,
    Groups,
    fused_network,
    group_palette_rgb,
    group_shares,
    look_at,
)
from cdga_train.predict import predict_head_prob, predict_mask, predict_prob

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(tiny_run: Path) -> Checkpoint:
    return load_checkpoint(tiny_run / "last.safetensors")


@pytest.fixture(scope="module")
def image_bgr() -> UInt8Array:
    """Of another size than the network's."""
    return StreetsDataset("dusk", "val", (90, 150))[3].image_bgr


def literal_groups(checkpoint: Checkpoint, prob_Chw: Float64Array) -> Float64Array:
    """C as cdga.md states it, from its tensors: conv1x1, ReLU, BatchNorm by running statistics, conv1x1, softmax."""
    part = {name: tensor.double().numpy() for name, tensor in checkpoint.part("grouping").items()}
    hidden = np.tensordot(part["layers.0.weight"][:, :, 0, 0], prob_Chw, axes=1) + part["layers.0.bias"][:, None, None]
    hidden = np.maximum(hidden, 0)
    mean, var = part["layers.2.running_mean"], part["layers.2.running_var"]
    hidden = (hidden - mean[:, None, None]) / np.sqrt(var[:, None, None] + 1e-5)
    hidden = hidden * part["layers.2.weight"][:, None, None] + part["layers.2.bias"][:, None, None]
    logits = np.tensordot(part["layers.3.weight"][:, :, 0, 0], hidden, axes=1) + part["layers.3.bias"][:, None, None]
    weights = np.exp(logits - logits.max(axis=0))
    return np.asarray(weights / weights.sum(axis=0))


def maps_of(checkpoint: Checkpoint, image_bgr: UInt8Array) -> npt.NDArray[np.float32]:
    _, group_Khw = GroupedNetwork(checkpoint)(image_bgr)
    return np.asarray(group_Khw)


def test_group_maps_are_c_of_p(checkpoint: Checkpoint, image_bgr: UInt8Array) -> None:
    maps = maps_of(checkpoint, image_bgr)
    assert maps.shape == (2, 64, 128)
    assert maps.dtype == np.float32
    np.testing.assert_allclose(maps.sum(axis=0), 1, atol=1e-6)
    prob = predict_prob(fused_network(checkpoint, CPU), image_bgr).double().numpy()
    expected = literal_groups(checkpoint, prob)
    assert expected.std() > 1e-4  # not the same everywhere
    np.testing.assert_allclose(maps, expected, atol=1e-5)


def test_a_run_that_aligned_at_the_head_is_grouped_there(checkpoint: Checkpoint, image_bgr: UInt8Array) -> None:
    at_head = replace(checkpoint, config=replace(checkpoint.config, align_resolution="head"))
    maps = maps_of(at_head, image_bgr)
    prob = predict_head_prob(fused_network(checkpoint, CPU), image_bgr).double().numpy()
    assert maps.shape[1:] == prob.shape[1:]
    assert maps.shape[1] < 64
    np.testing.assert_allclose(maps, literal_groups(checkpoint, prob), atol=1e-5)


def test_groups_summed_up_by_loops(checkpoint: Checkpoint, image_bgr: UInt8Array) -> None:
    network = GroupedNetwork(checkpoint)
    prob, group = (tensor.double().numpy() for tensor in network(image_bgr))
    groups = network.groups(image_bgr)
    np.testing.assert_array_equal(groups.map_hw, group.argmax(axis=0))
    for k in range(2):
        assert groups.share_K[k] == pytest.approx((group.argmax(axis=0) == k).mean())
        for c in range(19):
            assert groups.q_KC[k, c] == pytest.approx((group[k] * prob[c]).mean(), abs=1e-6)
    assert groups.q_KC.sum() == pytest.approx(1, abs=1e-5)
    assert (network.num_groups, network.iteration) == (2, 12)


def test_a_checkpoint_without_c_has_no_groups(checkpoint: Checkpoint, tiny_run: Path) -> None:
    candidate = load_checkpoint(tiny_run / "checkpoints" / "000012.safetensors")
    with pytest.raises(ModelError, match=r"holds no grouping network \(arm cdga, iteration 12\); name last"):
        GroupedNetwork(candidate)
    other = replace(checkpoint, config=replace(checkpoint.config, num_groups=5))
    with pytest.raises(ModelError, match="grouping network does not fit"):
        GroupedNetwork(other)


def test_a_look_is_what_the_network_predicts(checkpoint: Checkpoint, image_bgr: UInt8Array) -> None:
    fused = fused_network(checkpoint, CPU)
    sample = Sample(name="x", image_bgr=image_bgr[:64].repeat(2, axis=1)[:, :128].copy(), label=None)
    look = look_at(sample, fused, None)
    np.testing.assert_array_equal(look.mask_HW, predict_mask(fused, sample.image_bgr))
    best = predict_prob(fused, sample.image_bgr).amax(dim=0).numpy()
    np.testing.assert_allclose(look.confidence_HW / 255, best, atol=0.5 / 255 + 1e-6)
    assert look.groups is None
    grouped = look_at(sample, fused, GroupedNetwork(checkpoint))
    assert grouped.groups is not None


def test_a_network_that_gives_nan_is_refused(checkpoint: Checkpoint, image_bgr: UInt8Array) -> None:
    broken = {k: v * float("nan") if v.is_floating_point() else v for k, v in checkpoint.tensors.items()}
    with pytest.raises(ModelError, match="NaN"):
        GroupedNetwork(replace(checkpoint, tensors=broken))(image_bgr)


def groups_of(share: list[float], q: list[list[float]]) -> Groups:
    return Groups(map_hw=np.zeros((1, 1), np.int64), share_K=np.array(share), q_KC=np.array(q))


def test_shares_by_hand() -> None:
    first = groups_of([1.0, 0.0], [[0.3, 0.1, 0.0], [0.0, 0.0, 0.6]])
    second = groups_of([0.5, 0.5], [[0.1, 0.1, 0.2], [0.0, 0.0, 0.6]])
    front, back = group_shares([first, second], ["road", "sky", "car"], num_top=2)
    assert front.share == 0.75
    # Q of the first group: 0.2, 0.1, 0.1, of 0.4 in all; of equal classes the first.
    assert [name for name, _ in front.top] == ["road", "sky"]
    assert [part for _, part in front.top] == pytest.approx([0.5, 0.25])
    assert back.share == 0.25
    assert [name for name, _ in back.top] == ["car"]  # classes without any part are left out
    assert back.top[0][1] == pytest.approx(1.0)


def test_an_empty_group_holds_nothing() -> None:
    (share,) = group_shares([groups_of([0.0], [[0.0, 0.0]])], ["road", "sky"])
    assert share.top == ()


@pytest.mark.parametrize("num_groups", [1, 2, 8, 16, 40])
def test_every_group_has_its_own_colour(num_groups: int) -> None:
    colours = group_palette_rgb(num_groups)
    assert len(set(colours)) == len(colours) == num_groups
    assert all(0 <= value <= 255 for colour in colours for value in colour)
