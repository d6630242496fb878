"""Each part of the page on facts written by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cdga_sdk.labels import CITYSCAPES_PALETTE_RGB, CLASS_SETS
from cdga_sdk.metrics import ConfusionMatrix
from cdga_sdk.preprocess import UInt8Array
from cdga_train.config import ScoreConfig, TrainConfig
from cdga_train.curves import Metrics
from cdga_train.data.base import Sample
from cdga_train.page import page
from cdga_train.panels import Groups, Look, group_palette_rgb
from cdga_train.report import (
    Choice,
    PseudoClass,
    PseudoLabels,
    choice_part,
    confusion_part,
    curves_part,
    group_part,
    head_part,
    legend_part,
    oracle_part,
    panel_part,
    pseudo_label_part,
    score_part,
)
from cdga_train.selection import CandidateScores
from tests.html_page import ParsedPage, decoded

HOSTILE = "<img src=x onerror=alert(1)>"


def matrix_by_hand() -> ConfusionMatrix:
    """road: 3 of 4 right, 1 taken for sky; sky: 1 of 1; bus: 0 of 2, one taken for car, one for nothing."""
    matrix = ConfusionMatrix(CLASS_SETS["19"])
    label, mask = [[0, 0, 0, 0, 10, 15, 15, 255]], [[0, 0, 0, 10, 10, 13, 255, 0]]
    matrix.add(np.array(mask, np.uint8), np.array(label, np.uint8))
    return matrix


def look_of(
    image_bgr: UInt8Array, *, name: str = "frame", label: UInt8Array | None = None, groups: Groups | None = None
) -> Look:
    mask: UInt8Array = np.array([[0, 10], [13, 0]], np.uint8)
    confidence: UInt8Array = np.array([[255, 51], [102, 0]], np.uint8)
    sample = Sample(name=name, image_bgr=image_bgr, label=label)
    return Look(sample=sample, mask_HW=mask, confidence_HW=confidence, groups=groups)


def candidate(iteration: int, **values: float) -> CandidateScores:
    made = CandidateScores(
        file=Path(f"{iteration:06d}.safetensors"),
        iteration=iteration,
        snd=1.0,
        entropy=0.2,
        diversity=0.3,
        infomax=0.1,
        mirror_agreement=0.5,
    )
    return replace(made, **values)  # type: ignore[arg-type]  # floats for float fields


def test_head_says_what_it_is_given() -> None:
    parsed = ParsedPage(head_part([("seed", 3), ("source", HOSTILE)], "cdga train x 'a b'"))
    assert parsed.tables[0].by_first() == {"seed": ["3"], "source": [HOSTILE]}
    assert "cdga train x 'a b'" in parsed.text
    assert not parsed.images


def test_curves_say_which_lines_are_damaged() -> None:
    good = Metrics(rows=({"seg": 1.5},), iterations=(10,), damaged=tuple(range(2, 14)))
    text = ParsedPage(curves_part(TrainConfig(), {"the run": good})).text
    assert "Damaged lines in the log of the run, left out (12): 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, ..." in text
    empty = Metrics(rows=(), iterations=(), damaged=())
    assert "The log of round 2 holds nothing yet." in ParsedPage(curves_part(TrainConfig(), {"round 2": empty})).text


def test_a_row_shows_what_was_seen() -> None:
    image: UInt8Array = np.full((2, 2, 3), 200, np.uint8)
    label: UInt8Array = np.array([[0, 0], [255, 13]], np.uint8)
    groups = Groups(map_hw=np.array([[2, 0]]), share_K=np.zeros(3), q_KC=np.zeros((3, 19)))
    parsed = ParsedPage(panel_part([look_of(image, label=label, groups=groups)], truth="truth", num_groups=3))
    assert parsed.captions == ["frame", "truth", "prediction", "confidence, mean 0.40", "groups"]
    road, sky, car = (CITYSCAPES_PALETTE_RGB[i][::-1] for i in (0, 10, 13))
    np.testing.assert_array_equal(decoded(parsed.images[1]), [[road, road], [(0, 0, 0), car]])
    np.testing.assert_array_equal(decoded(parsed.images[2]), [[road, sky], [car, road]])
    colours = [colour[::-1] for colour in group_palette_rgb(3)]
    np.testing.assert_array_equal(decoded(parsed.images[4]), [[colours[2], colours[0]]] * 2)


def test_a_row_without_labels_or_groups_is_shorter() -> None:
    image: UInt8Array = np.zeros((2, 2, 3), np.uint8)
    parsed = ParsedPage(panel_part([look_of(image, name=HOSTILE)], truth="truth", num_groups=0))
    assert parsed.captions == [HOSTILE, "prediction", "confidence, mean 0.40"]
    assert len(parsed.images) == 3  # the name made none


@pytest.mark.parametrize(
    ("size_hw", "shown_wh"), [((1024, 2048), ("512", "256")), ((30, 20), ("20", "30")), ((1, 5000), ("512", "1"))]
)
def test_pictures_are_of_moderate_size(size_hw: tuple[int, int], shown_wh: tuple[str, str]) -> None:
    look = look_of(np.zeros((*size_hw, 3), np.uint8))
    for image in ParsedPage(panel_part([look], truth="", num_groups=0)).images:
        assert (image["width"], image["height"]) == shown_wh


def test_four_rows_of_noise_stay_below_five_megabytes() -> None:
    random = np.random.default_rng(0)
    looks = [
        Look(
            sample=Sample(
                name=str(i),
                image_bgr=random.integers(0, 256, (512, 1024, 3), np.uint8),
                label=random.integers(0, 19, (512, 1024), np.uint8),
            ),
            mask_HW=random.integers(0, 19, (512, 1024), np.uint8),
            confidence_HW=random.integers(0, 256, (512, 1024), np.uint8),
            groups=Groups(
                map_hw=random.integers(0, 8, (512, 1024)), share_K=np.full(8, 1 / 8), q_KC=np.full((8, 19), 1 / 152)
            ),
        )
        for i in range(4)
    ]
    whole = page("noise", [("pictures", "Pictures", panel_part(looks, truth="truth", num_groups=8))])
    assert len(whole) < 5_000_000  # nothing that a network sees is as hard to compress


def test_group_table_by_hand() -> None:
    def groups(share: list[float], q: list[list[float]]) -> Groups:
        return Groups(map_hw=np.zeros((1, 1), np.int64), share_K=np.array(share), q_KC=np.array(q))

    target = [groups([0.25, 0.75], [[0.3, 0.1], [0.0, 0.6]])]
    source = [groups([1.0, 0.0], [[0.8, 0.2], [0.0, 0.0]]), groups([0.0, 1.0], [[0.8, 0.2], [0.0, 0.0]])]
    parsed = ParsedPage(group_part({"target": target, "source": source}, (HOSTILE, "sky"), 2))
    assert parsed.table("Groups").rows == [
        ["group", "target: pixels", "target: classes by Q", "source: pixels", "source: classes by Q"],
        ["1", "25.0 %", f"{HOSTILE} 75 %, sky 25 %", "50.0 %", f"{HOSTILE} 80 %, sky 20 %"],
        ["2", "75.0 %", "sky 100 %", "50.0 %", "-"],
    ]
    assert not parsed.images


def test_choice_marks_the_chosen_one() -> None:
    choice = Choice(rule="label_free", iteration=20, candidates=(candidate(10, infomax=0.25), candidate(20, snd=7.5)))
    table = ParsedPage(choice_part("round 1", choice, None, "19 classes")).table("round 1: rule label_free")
    assert table.rows == [
        ["iteration", "infomax", "mirror agreement", "SND", "entropy", "chosen"],
        ["10", "0.2500", "0.5000", "1.0000", "0.2000", ""],
        ["20", "0.1000", "0.5000", "7.5000", "0.2000", "chosen"],
    ]
    assert table.chosen == [2]
    with_oracle = ParsedPage(choice_part("round 1", choice, {10: 12.345}, "19 classes")).table("round 1")
    assert with_oracle.column("oracle mIoU, 19 classes") == ["12.35", "-"]


def test_oracle_alone() -> None:
    table = ParsedPage(oracle_part("the run", {10: 1.0, 20: float("nan")}, "13 classes")).table("the run: candidates")
    assert table.rows == [["iteration", "oracle mIoU, 13 classes"], ["10", "1.00"], ["20", "-"]]


def test_scores_in_every_column_by_hand() -> None:
    config = TrainConfig(score=ScoreConfig(data="folder:x", split="dusk", protocol="published"))
    parsed = ParsedPage(score_part(matrix_by_hand(), config))
    assert "1 frame of folder:x, split dusk. Protocol published" in parsed.text
    rows = parsed.table("IoU, percent").by_first()
    assert rows["class"] == ["19 classes", "16 classes", "13 classes"]
    assert rows["road"] == ["75.0"] * 3
    assert rows["sky"] == ["50.0"] * 3
    assert rows["car"] == rows["bus"] == ["0.0"] * 3
    assert rows["wall"] == ["-", "-", ""]  # not one of the 13
    assert rows["truck"] == ["-", "", ""]
    assert rows["mIoU"] == ["31.25"] * 3  # of road, sky, car and bus
    assert rows["pixel accuracy"] == ["57.14"] * 3  # 4 of 7
    assert [t.caption for t in parsed.tables] == ["IoU, percent; -: in no label and no prediction"]


def test_common_classes_come_first_where_they_are_the_runs_own() -> None:
    config = TrainConfig(score=ScoreConfig(data="camvid:x", classes="common11"))
    parsed = ParsedPage(score_part(matrix_by_hand(), config))
    rows = parsed.table("IoU over the common 11").by_first()
    assert rows["vehicle"] == ["50.0"]  # a bus taken for a car is one
    assert rows["mIoU"] == ["58.33"]
    assert parsed.tables[1].by_first()["bus"] == ["0.0"] * 3


def test_confusion_by_hand() -> None:
    parsed = ParsedPage(confusion_part(matrix_by_hand(), CLASS_SETS["19"]))
    table = parsed.table("Confusion")
    header, rows = table.rows[0], table.by_first()
    assert (header[1], header[-2:]) == ("road", ["none of them", "pixels"])
    road = dict(zip(header[1:], rows["road"], strict=True))
    assert {name: cell for name, cell in road.items() if cell} == {"road": "75", "sky": "25", "pixels": "4"}
    bus = dict(zip(header[1:], rows["bus"], strict=True))
    assert {name: cell for name, cell in bus.items() if cell} == {"car": "50", "none of them": "50", "pixels": "2"}
    assert set(rows["wall"]) == {"-", "0"}  # never labelled: no share of nothing
    merged = ParsedPage(confusion_part(matrix_by_hand(), CLASS_SETS["common11"])).table("Confusion")
    assert len(merged.rows) == 12


def test_pseudo_labels_by_hand() -> None:
    classes = {
        HOSTILE: PseudoClass(threshold=0.9, predicted=0.995, kept=0.51),
        "sky": PseudoClass(threshold=0.432, predicted=0.005, kept=1.0),
        "bus": PseudoClass(threshold=0.9, predicted=0.0, kept=0.0),
    }
    parsed = ParsedPage(pseudo_label_part(PseudoLabels(rule=HOSTILE, iteration=120, kept=0.5125, classes=classes)))
    assert parsed.table("Pseudo-labels").rows[1:] == [
        [HOSTILE, "0.900", "99.50", "51.0"],
        ["sky", "0.432", "0.50", "100.0"],
        ["bus", "0.900", "0.00", "-"],
    ]
    assert "at iteration 120; 51.2 % of all pixels keep their label" in parsed.text
    assert "it has collapsed" in parsed.text
    assert not parsed.images
    some = PseudoLabels(rule="r", iteration=1, kept=0.5, classes={"sky": replace(classes["sky"], predicted=0.6)})
    assert "collapsed" not in ParsedPage(pseudo_label_part(some)).text
    none = PseudoLabels(rule="r", iteration=1, kept=0.0, classes={})
    assert len(ParsedPage(pseudo_label_part(none)).table("Pseudo-labels").rows) == 1


def test_legend_has_every_class() -> None:
    parsed = ParsedPage(legend_part())
    assert all(name in parsed.text for name in (*CLASS_SETS["19"].names, "ignored"))
