"""How the bundle in the package is made, and that the committed figures are its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.default_model import ABOUT, SIZES_HW, draw_golden, logs_of, scores_at, trained_s
from benchmarks.markdown import results
from cdga_sdk.bundle import Bundle
from cdga_sdk.models.catalogue import default_bundle
from cdga_train.checkpoint import load_checkpoint
from cdga_train.data.spec import open_labelled, open_unlabelled
from tests.published_layouts import make_camvid_segnet


def test_golden_frames_are_drawn(tmp_path: Path) -> None:
    draw_golden(tmp_path, (64, 128))
    golden = open_unlabelled(f"folder:{tmp_path}", "train", (64, 128))
    assert len(golden) == 4
    assert all(golden[i].name.startswith("streets_day_") for i in range(4))


def test_the_size_is_judged_on_labels(tiny_run: Path, tmp_path: Path) -> None:
    data = make_camvid_segnet(tmp_path, counts={"val": 2})
    scores = [
        scores_at(load_checkpoint(tiny_run), size_hw, open_labelled(f"camvid:{data}", "val", size_hw)).miou
        for size_hw in ((64, 128), (32, 64))
    ]
    assert all(0 < score < 100 for score in scores)
    assert scores[0] != scores[1]


def test_the_time_is_the_logs(tmp_path: Path) -> None:
    for name, lines in (
        ("round1", '{"iteration": 10, "it_per_s": 2}\n{"iteration": 14, "it_per_s": 0.5}\n'),
        ("round2", ""),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(lines)
    first, second = logs_of(tmp_path)
    assert (first.parent.name, trained_s(first)) == ("round1", 5 + 8)
    assert (second.parent.name, trained_s(second)) == ("round2", 0)


def test_the_committed_figures_are_the_bundles() -> None:
    report, bundle = results("default_model"), Bundle.open(default_bundle())
    assert tuple(report["imgsz_hw"]) == bundle.manifest.imgsz_hw
    assert bundle.manifest.imgsz_hw in SIZES_HW
    assert bundle.manifest.about == ABOUT
    assert bundle.manifest.provenance.iterations == report["iterations"]
    parity = bundle.parity["fp32"]
    assert isinstance(parity, dict)
    assert report["camvid_val_common11"]["miou"] == pytest.approx(parity["labels"]["miou"], abs=0.05)
    best = max(report["by_size"], key=report["by_size"].get)
    height, width = report["imgsz_hw"]
    assert best == f"{width}x{height}"
