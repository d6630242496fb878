"""What the peers benchmark compares gives the same labels, and what it says follows from its samples."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from benchmarks import peers, performance
from benchmarks.peers import AGAIN, OURS, Case, Naive, Peer, Sample, TorchPostProcessing, Worker
from cdga_sdk.opencv import cv2
from cdga_sdk.preprocess import UInt8Array
from cdga_sdk.video.sink import VideoSink, probe
from cdga_train.run_layout import find_checkpoint


@pytest.fixture
def case(tiny_run: Path, tmp_path: Path) -> Case:
    return Case(name="efficientvit_b0", weights=find_checkpoint(tiny_run), is_published=False, folder=tmp_path)


@pytest.fixture
def image_bgr() -> UInt8Array:
    coarse = np.random.default_rng(0).integers(0, 256, (4, 8, 3), np.uint8)
    return np.asarray(cv2.resize(coarse, (240, 136), interpolation=cv2.INTER_CUBIC), np.uint8)


@pytest.mark.parametrize("build", [TorchPostProcessing])
def test_variants_give_naive_s_labels(build: Callable[[Case], Peer], case: Case, image_bgr: UInt8Array) -> None:
    wanted, given = Naive(case).labels(image_bgr), build(case).labels(image_bgr)
    assert given.shape == (136, 240)
    assert given.dtype == np.uint8
    assert len(np.unique(wanted)) > 1
    assert (given == wanted).mean() > peers.MIN_AGREEMENT


def test_a_script_writes_every_frame_and_tells_its_stages(case: Case, image_bgr: UInt8Array, tmp_path: Path) -> None:
    with VideoSink(tmp_path / "in.mp4", size_wh=(240, 136), rate=peers.RATE, time_base=1 / peers.RATE) as sink:
        for tick in range(5):
            sink.write(image_bgr, tick)
    stages_ms = Naive(case).file(tmp_path / "in.mp4", tmp_path / "out.mp4")
    assert list(stages_ms) == ["decode", "preprocess", "inference", "postprocess", "overlay", "encode"]
    assert probe(tmp_path / "out.mp4").num_frames == 5


def test_what_a_variant_raises_is_told_here(tmp_path: Path) -> None:
    case = Case(name="efficientvit_b0", weights=tmp_path / "absent.pt", is_published=True, folder=tmp_path)
    with Worker(partial(Naive, case)) as worker, pytest.raises(RuntimeError, match=r"absent\.pt"):
        worker.ask("labels", tmp_path / "in.mp4", 1)


def test_a_precision_that_no_gate_admitted_takes_no_part(case: Case) -> None:
    assert [name for name in peers.PEERS if not peers.takes_part(name, case)] == [peers.BF16, peers.INT8]


def test_a_table_takes_variants_that_only_some_networks_have(monkeypatch: pytest.MonkeyPatch) -> None:
    variants = {"naive": samples(8, 8, 8), OURS: samples(2, 2, 2), AGAIN: samples(2, 2, 2)}
    questions = [
        {
            "network": network,
            "clip": "960x540.mp4",
            "agreement": dict.fromkeys(of_network, 1.0),
            "scopes": {scope: peers._record(of_network) for scope in ("frame", "file")},
        }
        for network, of_network in (("one", variants), ("other", {**variants, peers.INT8: samples(1, 1, 1)}))
    ]
    monkeypatch.setattr(performance, "results", lambda name: {"questions": questions})
    for title in ("peers-file", "peers-frame"):
        (row,) = [line for line in performance.TABLES[title]().splitlines() if peers.INT8 in line]
        assert row.startswith("| other, 960x540 | cdga, int8 | 1.0 | 2.0 | 1000.0 | 0.50 [0.50, 0.50] |")
    assert peers.INT8 not in performance.TABLES["speed"]()


def samples(*wall_ms: float) -> list[Sample]:
    return [Sample(wall_ms=ms, cpu_ms=2 * ms, stages_ms={"decode": ms / 2}) for ms in wall_ms]


def test_ratios_are_paired_and_against_ours() -> None:
    record = peers._record({"naive": samples(8, 16, 24), OURS: samples(2, 4, 6), AGAIN: samples(2, 4, 6)})
    assert not record["is_void"]
    rows = record["peers"]
    assert isinstance(rows, dict)
    assert rows["naive"]["time_of_cdga"] == {"median": 4, "low": 4, "high": 4}
    assert rows["naive"]["is_resolved"]
    assert (rows["naive"]["median_ms"], rows["naive"]["cpu_ms"]) == (16, 32)
    assert rows[OURS]["stages_ms"] == {"decode": 2}


def test_a_null_pair_that_differs_is_void() -> None:
    record = peers._record({OURS: samples(2, 2, 2), AGAIN: samples(2.2, 2.2, 2.2), "naive": samples(8, 8, 8)})
    assert record["is_void"]
    rows = record["peers"]
    assert isinstance(rows, dict)
    assert not rows["naive"]["is_resolved"]
