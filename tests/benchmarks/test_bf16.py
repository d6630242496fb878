"""The study of bf16, on the network and the data that the tests have."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from benchmarks import bf16
from benchmarks.protocol import Record
from cdga_export.export import export_checkpoint
from cdga_sdk.precision import computes_bf16


def number(row: Record, key: str) -> float:
    value = row[key]
    assert isinstance(value, (int, float))
    return value


@pytest.mark.skipif(not computes_bf16(), reason="this CPU has no bf16, or OpenVINO is not installed")
def test_a_row_for_every_way(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bf16, "THREADS", (1,))
    rows = bf16.rows_of(partial(export_checkpoint, tiny_run), "streets:day", {"model": "tiny"}, rounds=2)
    by_way = {str(row["way"]): row for row in rows}
    assert list(by_way) == ["fp32", "fp32 again", "hint", "whole", "half", "admitted"]
    assert number(by_way["fp32 again"], "worst_frame_agreement") == 1.0
    assert all(0 < number(by_way[way], "worst_frame_agreement") < 1 for way in ("hint", "whole", "half"))
    assert str(by_way["admitted"]["refused"]).startswith(
        "openvino cpu bf16 differs from torch"
    )  # it has hardly learned
    for way in ("fp32", "hint", "whole", "half"):
        time = by_way[way]["time_of_fp32"]
        assert isinstance(time, dict)
        assert time["threads_1"]["median"] > 0
        assert 0 <= number(by_way[way], "miou") <= 100
    assert by_way["fp32"]["miou"] == by_way["fp32 again"]["miou"]
