"""Parity by hand, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from cdga_export.frames import Frame
from cdga_export.parity import (
    MAX_MIOU_LOSS,
    MIN_AGREEMENT,
    LabelParity,
    ParityReport,
    Reference,
    compare,
    refuse_below_gate,
    side_by_side,
    with_labels,
)
from cdga_sdk.errors import GateError
from cdga_sdk.prediction import Known, Prediction
from cdga_sdk.preprocess import UInt8Array

Infer = Callable[[UInt8Array], Prediction]


def frame(*values: int) -> UInt8Array:
    """(1, len(values), 3): what `told` reads as the mask."""
    return np.repeat(np.array(values, np.uint8)[None, :, None], 3, axis=2)


def told(frames_NHWC: UInt8Array) -> Known:
    """A network whose mask is the first channel and whose confidence is 200."""
    mask = frames_NHWC[..., 0]
    return Known(mask, np.full_like(mask, 200))


def off_by(wrong: dict[int, int], conf: int = 200) -> Infer:
    """``told``, with the mask's values replaced, and another confidence."""

    def infer(frames_NHWC: UInt8Array) -> Known:
        mask = frames_NHWC[..., 0].copy()
        for value, other in wrong.items():
            mask[frames_NHWC[..., 0] == value] = other
        return Known(mask, np.full_like(mask, conf))

    return infer


NAMES = tuple(f"class {i}" for i in range(12))
FRAMES = [("a", frame(1, 2, 3, 4)), ("b", frame(1, 1, 1, 5))]


def reference(name: str, frame_rgb: UInt8Array, image_in: dict[int, int]) -> Reference:
    answer = told(frame_rgb[None])
    mask, conf = answer.mask_NHW[0], answer.conf_NHW[0]
    image_mask = off_by(image_in)(frame_rgb[None]).mask_NHW[0]
    frame = Frame(name=name, image_bgr=frame_rgb, frame_rgb=frame_rgb)
    return Reference(frame=frame, mask=mask, conf=conf, image_mask=image_mask)


def judged(
    candidate: Infer,
    *,
    frames: list[tuple[str, UInt8Array]] = FRAMES,
    gate: float = 1.0,
    image_in: dict[int, int] | None = None,
) -> ParityReport:
    report, _ = compare(
        [reference(name, frame_rgb, image_in or {}) for name, frame_rgb in frames],
        candidate,
        names=NAMES,
        reference_name="torch",
        candidate_name="graph",
        min_agreement=gate,
        batch=5,
    )
    return report


def refuse(report: ParityReport) -> None:
    refuse_below_gate(report, "do this")


def test_agreement_by_hand() -> None:
    report = judged(off_by({3: 9, 1: 8}, conf=197), gate=0.25)
    assert [(f.name, f.agreement) for f in report.frames] == [("a", 0.5), ("b", 0.25)]
    assert [f.reference_classes for f in report.frames] == [4, 2]
    assert [f.max_confidence_difference for f in report.frames] == [3, 3]
    assert (report.agreement, report.worst_frame, report.faults) == (0.375, "b", ())
    refuse(report)


def test_frame_in_and_image_in_are_told_apart() -> None:
    report = judged(told, image_in={1: 7})
    assert report.agreement == 1.0
    assert [f.image_agreement for f in report.frames] == [0.75, 0.25]
    assert report.image_agreement == 0.5
    refuse(report)  # what resizing does is stated, not judged


def test_a_graph_that_mixes_up_a_batch_is_refused() -> None:
    def first_of_batch_for_all(frames_NHWC: UInt8Array) -> Known:
        answer = told(frames_NHWC)
        return Known(np.repeat(answer.mask_NHW[:1], len(frames_NHWC), axis=0), answer.conf_NHW)

    report = judged(first_of_batch_for_all, gate=0.5)
    assert (report.agreement, report.batch_agreement) == (1.0, 0.25)
    with pytest.raises(GateError, match=r"in a batch a frame keeps 25\.000 % of the classes it has alone"):
        refuse(report)


@pytest.mark.parametrize(("miou", "is_refused"), [(70.1, False), (70.0, False), (69.6, True), (float("nan"), True)])
def test_labels_are_a_gate_too(miou: float, is_refused: bool) -> None:
    labels = LabelParity(data="town val", frames=3, miou_fp32=70.0 + MAX_MIOU_LOSS - 0.001, miou=miou)
    report = with_labels(judged(told), labels)
    assert report.labels is labels
    if not is_refused:
        refuse(report)
        return
    with pytest.raises(GateError, match=r"mIoU .* on town val, wanted at least 70\.00 \(fp32 has 70\.30\)"):
        refuse(report)


def test_confidence_difference_does_not_wrap_around() -> None:
    assert judged(off_by({}, conf=255)).frames[0].max_confidence_difference == 55
    assert judged(off_by({}, conf=0)).frames[0].max_confidence_difference == 200


def test_one_frame_below_the_gate_is_enough() -> None:
    report = judged(off_by({5: 6}), gate=0.8)
    assert report.agreement == 0.875  # above the gate
    with pytest.raises(GateError, match=r"graph differs from torch: agreement 75\.000 % on frame b") as caught:
        refuse(report)
    assert caught.value.exit_code == 7
    assert caught.value.fix == "no bundle was written; do this"


def test_a_graph_s_masks_come_with_the_report() -> None:
    _, masks = compare(
        [reference(name, frame_rgb, {}) for name, frame_rgb in FRAMES],
        off_by({5: 6}),
        names=NAMES,
        reference_name="torch",
        candidate_name="graph",
        min_agreement=0.0,
        batch=1,
    )
    assert [mask.tolist() for mask in masks] == [[[1, 2, 3, 4]], [[1, 1, 1, 6]]]


def test_the_gate_itself_is_passed() -> None:
    refuse(judged(off_by({5: 6}), gate=0.75))


def test_the_gate_of_fp32_is_one_pixel_in_ten_thousand() -> None:
    assert MIN_AGREEMENT == {"fp32": 0.9999, "fp16": 0.999, "bf16": 0.999, "int8": 0.99, "int8-trt": 0.99}
    wide = [("w", frame(*[0] * 9998, 1, 2))]
    refuse(judged(off_by({1: 3}), frames=wide, gate=MIN_AGREEMENT["fp32"]))
    with pytest.raises(GateError):
        refuse(judged(off_by({1: 3, 2: 3}), frames=wide, gate=MIN_AGREEMENT["fp32"]))


def test_classes_are_told_apart() -> None:
    report = judged(off_by({1: 2}), gate=0.0)
    # Reference: 1 four times, 2 once; candidate: 2 five times.
    assert report.class_agreement == {"class 1": 0.0, "class 2": 0.2, "class 3": 1.0, "class 4": 1.0, "class 5": 1.0}
    with pytest.raises(GateError, match=r"least alike: class 1 0\.0 %, class 2 20\.0 %, class 3 100\.0 %"):
        refuse(judged(off_by({1: 2})))


def test_boundaries_are_what_lies_within_three_pixels_of_another_class() -> None:
    wide = [("w", frame(*[0] * 10, *[1] * 10))]

    def wrong_at(*columns: int) -> Infer:
        def infer(frames_NHWC: UInt8Array) -> Known:
            answer = told(frames_NHWC)
            mask = answer.mask_NHW.copy()
            mask[..., list(columns)] = 5
            return Known(mask, answer.conf_NHW)

        return infer

    assert judged(wrong_at(0, 6, 13, 19), frames=wide, gate=0.0).boundary_agreement == 1.0
    assert judged(wrong_at(0, 7, 12, 19), frames=wide, gate=0.0).boundary_agreement == pytest.approx(4 / 6)


def test_the_picture_shows_where_they_differ() -> None:
    (_, shown), *_ = FRAMES
    picture = side_by_side(
        shown,
        told(shown[None]).mask_NHW[0],
        off_by({3: 9})(shown[None]).mask_NHW[0],
        [(10 * i, 0, 1) for i in range(12)],
    )
    assert picture.shape == (1, 16, 3)
    assert picture[0, 4:8].tolist() == [[1, 0, 10], [1, 0, 20], [1, 0, 30], [1, 0, 40]]
    assert picture[0, 8:12, 2].tolist() == [10, 20, 90, 40]
    assert picture[0, 12:, 0].tolist() == [0, 0, 255, 0]


def test_a_constant_network_is_refused_though_both_agree() -> None:
    constant = [("a", frame(0, 0)), ("b", frame(0, 0))]
    report = judged(told, frames=constant)
    assert report.agreement == 1.0
    with pytest.raises(GateError, match="one class everywhere"):
        refuse(report)
    refuse(judged(told, frames=[*constant, ("c", frame(0, 1))]))


def test_report_is_plain_json() -> None:
    plain = json.loads(json.dumps(judged(told).as_dict()))
    assert plain["reference"] == "torch"
    assert plain["frames"][1] == {
        "name": "b",
        "agreement": 1.0,
        "image_agreement": 1.0,
        "boundary_agreement": 1.0,
        "max_confidence_difference": 0,
        "reference_classes": 2,
    }
