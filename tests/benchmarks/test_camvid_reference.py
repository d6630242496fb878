"""The bundle against plain PyTorch: the reference is torch's own, and committed scores follow from their classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.camvid_reference import compared, plain_mask
from cdga_sdk.labels import CLASS_SETS
from cdga_sdk.preprocess import UInt8Array
from tests.published_layouts import some_of_camvid

RESULTS = Path(__file__).parents[2] / "benchmarks/results/camvid_reference.json"


@pytest.fixture(scope="module")
def results() -> Any:
    return json.loads(RESULTS.read_text(encoding="utf-8"))


class Strongest(nn.Module):
    """Logits are the normalised channels at half the size: class 0 where red is strongest, 1 green, 2 blue."""

    def forward(self, image_BCHW: Tensor) -> Tensor:
        self.seen_BCHW = image_BCHW
        return nn.functional.avg_pool2d(image_BCHW, 2)


def image_of(*columns_rgb: tuple[int, int, int]) -> UInt8Array:
    """Four rows, and four columns of each colour, BGR."""
    row = np.repeat(np.array(columns_rgb, np.uint8), 4, axis=0)[:, ::-1]
    return np.repeat(row[np.newaxis], 4, axis=0)


def test_plain_torch_by_hand() -> None:
    network = Strongest()
    image_bgr = image_of((255, 0, 0), (0, 255, 0), (0, 0, 255))
    mask = plain_mask(network, (4, 12), image_bgr)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, np.repeat([[0, 1, 2]], 4, axis=1).repeat(4, axis=0))
    wanted = torch.tensor([(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225])
    torch.testing.assert_close(network.seen_BCHW[0, :, 0, 0], wanted)


def test_plain_torch_gives_the_image_s_own_size() -> None:
    image_bgr = image_of((255, 0, 0), (0, 0, 255))
    assert plain_mask(Strongest(), (8, 8), image_bgr).shape == (4, 8)


@pytest.mark.slow
def test_both_ways_agree_on_a_few_real_frames(city_weights: Path, camvid: Path, tmp_path: Path) -> None:
    found: Any = compared(city_weights, f"camvid:{some_of_camvid(camvid, tmp_path, slice(3))}", (352, 480))
    assert found["frames"] == 3
    assert found["bundle"]["backend"] == "onnxruntime cpu fp32"
    for key in ("miou", "accuracy"):
        assert found["bundle"][key] == pytest.approx(found["plain_torch"][key], abs=1)
    assert found["bundle"]["iou"] != found["plain_torch"]["iou"]  # two computations, not one printed twice


def test_committed_scores_follow_from_their_classes(results: Any) -> None:
    assert [run["imgsz_hw"] for run in results["runs"]] == [[352, 480], [704, 960]]
    for run in results["runs"]:
        assert run["frames"] == 101
        assert run["parity_agreement"] >= 0.9999
        for scores in (run["bundle"], run["plain_torch"]):
            assert tuple(scores["iou"]) == CLASS_SETS["common11"].names
            assert scores["miou"] == pytest.approx(np.mean(list(scores["iou"].values())), abs=0.011)


def test_the_bundle_scores_what_plain_torch_scores(results: Any) -> None:
    for run in results["runs"]:
        for key in ("miou", "accuracy"):
            assert run["bundle"][key] == pytest.approx(run["plain_torch"][key], abs=0.3)
