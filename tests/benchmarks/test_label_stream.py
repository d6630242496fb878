"""Both ways to keep label maps are measured on what they give back exactly, and one that does not is noticed."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from benchmarks import label_stream
from cdga_sdk.preprocess import UInt8Array
from cdga_sdk.video.sink import VideoSink


def folders_in(folder: Path) -> dict[str, Path]:
    return {name: folder / name for name in label_stream.WRITERS}


@pytest.fixture
def labels() -> list[UInt8Array]:
    return [np.kron(np.eye(5, dtype=np.uint8) * i, np.ones((9, 13), np.uint8)) for i in (0, 7, 255)]


def test_bytes_a_map_are_those_on_the_disk(tmp_path: Path, labels: list[UInt8Array]) -> None:
    sizes = label_stream.checked(labels, folders_in(tmp_path))
    assert sizes.keys() == {"png", "stream", "stream again"}
    assert sizes["stream"] == sizes["stream again"] == round((tmp_path / "stream/labels.nut").stat().st_size / 3)
    assert sizes["png"] == round(sum(p.stat().st_size for p in (tmp_path / "png/masks").iterdir()) / 3)


def test_a_way_to_other_maps_ends_the_run(
    tmp_path: Path, labels: list[UInt8Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(label_stream.WRITERS, "png", lambda maps, folder: label_stream.write_pngs(maps[:2], folder))
    with pytest.raises(SystemExit, match="png gives other label maps back"):
        label_stream.checked(labels, folders_in(tmp_path))


def test_report(tiny_bundle: Path, tmp_path: Path) -> None:
    ride = tmp_path / "ride.mp4"
    with VideoSink(ride, size_wh=(128, 64), rate=Fraction(25), time_base=Fraction(1, 25)) as sink:
        for tick in range(4):
            sink.write(np.full((64, 128, 3), 60 * tick, np.uint8), tick)
    words = ["--model", str(tiny_bundle), "--video", str(ride), "--frames", "3", "--rounds", "3", "--warm-up", "0"]
    options = label_stream.parsed([*words, "--folder", str(tmp_path)])
    made, _ = label_stream.measured(options)  # three short rounds on a shared machine may well be void
    text = json.dumps(made)
    report = json.loads(text)
    assert str(tmp_path) not in text
    assert (report["frames"], report["shape_hw"]) == (3, [64, 128])
    for question in ("written", "read"):
        assert report[question]["of_stream"]["stream"]["median"] == 1
        assert len(report[question]["times"]["png"]["wall_s"]) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ride.mp4"]
