"""A result's numbers, counted by hand on masks small enough to see."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from cdga_sdk.errors import UsageError
from cdga_sdk.image import read_label
from cdga_sdk.labels import CITYSCAPES_NAMES, CITYSCAPES_PALETTE_RGB
from cdga_sdk.overlay import draw_overlay
from cdga_sdk.prediction import FrameConfidence, Known
from cdga_sdk.result import Rle, SegResult

MASK = np.array([[0, 0, 13, 255], [0, 13, 13, 255], [10, 10, 10, 10]], np.uint8)


def result_of(mask: NDArray[np.uint8], confidence: NDArray[np.uint8] | None = None) -> SegResult:
    image = np.random.default_rng(0).integers(0, 256, (*mask.shape, 3), dtype=np.uint8)
    conf = np.full(mask.shape, 255, np.uint8) if confidence is None else confidence
    return SegResult(
        mask=mask,
        sureness=FrameConfidence(Known(mask[None], conf[None]), 0, mask.shape),
        image_bgr=image,
        names=CITYSCAPES_NAMES,
        palette_rgb=CITYSCAPES_PALETTE_RGB,
        source="a.png",
        frame=3,
        time_s=0.12,
        speed_ms={"inference": 1.23456},
    )


def decode(rle: Rle) -> NDArray[np.bool_]:
    """COCO's uncompressed run lengths back to a mask: zeros and ones in turn, down the columns."""
    height, width = rle["size"]
    flat = np.repeat(np.arange(len(rle["counts"])) % 2 == 1, rle["counts"])
    return flat.reshape(width, height).T


def test_shape_and_probability() -> None:
    result = result_of(MASK, np.full(MASK.shape, 51, np.uint8))
    assert result.orig_shape == (3, 4)
    assert result.probability.dtype == np.float32
    assert result.probability[0, 0] == pytest.approx(0.2)


def test_shares_of_a_mask_too_large_to_count_in_float32() -> None:
    mask = np.zeros((4096, 4100), np.uint8)
    mask[:, 4096:] = 10
    mask[0, 0] = 13
    shares = result_of(mask).shares()
    assert shares["road"] == (4096 * 4096 - 1) / mask.size  # 2 ** 24 + 1 has no float32
    assert shares["car"] == 1 / mask.size
    small = result_of(mask[:4000, :4000]).shares()
    assert small["road"] == (4000 * 4000 - 1) / 4000**2


def test_shares() -> None:
    assert result_of(MASK).shares() == pytest.approx({"sky": 4 / 12, "road": 3 / 12, "car": 3 / 12})
    assert list(result_of(MASK).shares()) == ["sky", "road", "car"]
    assert result_of(np.full((2, 2), 255, np.uint8)).shares() == {}


def test_stats() -> None:
    confidence = np.zeros((3, 4), np.uint8)
    confidence[0, 0] = 153
    stats = result_of(MASK, confidence).stats()
    assert list(stats) == ["road", "sky", "car"]
    assert stats["road"] == {
        "pixels": 3,
        "share": 0.25,
        "mean_confidence": pytest.approx(0.2),
        "box_xywh": (0, 0, 2, 2),
    }
    assert stats["car"]["box_xywh"] == (1, 0, 2, 2)
    assert stats["sky"]["box_xywh"] == (0, 2, 4, 1)


def test_is_class() -> None:
    result = result_of(MASK)
    np.testing.assert_array_equal(result.is_class("road", 13), np.isin(MASK, [0, 13]))
    assert result.is_class().sum() == 0
    with pytest.raises(UsageError, match="did you mean 'road'"):
        result.is_class("roads")


def test_run_lengths_by_hand() -> None:
    by_name = {rle["name"]: rle for rle in result_of(MASK).to_rle()}
    # Down the columns: 0 0 10 | 0 13 10 | 13 13 10 | 255 255 10
    assert by_name["road"] == {"category_id": 0, "name": "road", "size": (3, 4), "counts": [0, 2, 1, 1, 8]}
    assert by_name["car"]["counts"] == [4, 1, 1, 2, 4]
    assert by_name["sky"]["counts"] == [2, 1, 2, 1, 2, 1, 2, 1]
    assert len(by_name) == 3


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (17, 31)])
def test_run_lengths_decode_to_the_mask(shape: tuple[int, int]) -> None:
    mask = np.random.default_rng(2).choice(np.array([0, 1, 18, 255], np.uint8), shape)
    rles = result_of(mask).to_rle()
    assert {r["category_id"] for r in rles} == set(np.unique(mask)) - {255}
    for rle in rles:
        assert sum(rle["counts"]) == mask.size
        np.testing.assert_array_equal(decode(rle), mask == rle["category_id"])


def test_polygons_of_a_square() -> None:
    mask = np.full((40, 60), 255, np.uint8)
    mask[10:21, 30:46] = 13
    mask[0:3, 0:3] = 0  # too small to be told
    (polygon,) = result_of(mask).to_polygons()
    assert (polygon["category_id"], polygon["name"]) == (13, "car")
    assert set(polygon["points_xy"]) == {(30, 10), (45, 10), (45, 20), (30, 20)}
    assert len(result_of(mask).to_polygons(min_area_px=1)) == 2
    assert result_of(mask).to_polygons(min_area_px=1000) == []


@pytest.mark.parametrize("seed", range(8))
def test_a_region_s_area_is_its_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    blobs = cv2.GaussianBlur(rng.standard_normal((60, 80)).astype(np.float32), (0, 0), 3) > 0.02
    outside = np.pad(blobs, 1).astype(np.uint8)
    cv2.floodFill(outside, None, (0, 0), 2, flags=4)
    filled = outside[1:-1, 1:-1] != 2
    _, _, stats, _ = cv2.connectedComponentsWithStats(filled.astype(np.uint8), connectivity=8)
    areas = [int(area) for area in stats[1:, cv2.CC_STAT_AREA]]
    result = result_of(np.where(blobs, 0, 255).astype(np.uint8))
    for area in {area for area in areas if area > 40}:  # thinner ones may be lines, which are left out
        for least, of_these in ((area, [a for a in areas if a >= area]), (area + 1, [a for a in areas if a > area])):
            assert len(result.to_polygons(min_area_px=least)) == len(of_these), least


def test_polygons_leave_lines_out() -> None:
    mask = np.full((9, 9), 255, np.uint8)
    mask[4, :] = 0
    assert result_of(mask).to_polygons(min_area_px=0) == []


def test_json_is_one_line_without_pixels() -> None:
    text = result_of(MASK).to_json()
    assert "\n" not in text
    record = json.loads(text)
    assert record["source"] == "a.png"
    assert (record["frame"], record["time_s"], record["shape_hw"]) == (3, 0.12, [3, 4])
    assert record["classes"]["road"]["pixels"] == 3
    assert record["speed_ms"] == {"inference": 1.235}
    assert set(record) == {"source", "frame", "time_s", "shape_hw", "classes", "speed_ms"}


def test_png_round_trip(tmp_path: Path) -> None:
    result_of(MASK).to_png(str(tmp_path / "new/mask.png"))
    np.testing.assert_array_equal(read_label(tmp_path / "new/mask.png"), MASK)


def test_plot_is_the_overlay() -> None:
    result = result_of(MASK)
    np.testing.assert_array_equal(result.plot(0.3), draw_overlay(result.image_bgr, MASK, alpha=0.3))


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_an_opacity_that_cannot_be(alpha: float) -> None:
    with pytest.raises(UsageError, match="wanted 0 to 1"):
        result_of(MASK).plot(alpha)


def test_results_can_be_compared_and_kept_in_sets() -> None:
    one, other = result_of(MASK), result_of(MASK)
    assert one != other
    assert [one, other].index(other) == 1
    assert len({one, other, one}) == 2


def test_repr_is_no_flood() -> None:
    assert "image_bgr" not in repr(result_of(MASK))
