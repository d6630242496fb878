"""The table of precisions, on the network and the data that the tests have."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from benchmarks import export_precisions
from benchmarks.protocol import Record
from cdga_export.export import export_checkpoint


def number(row: Record, key: str) -> float:
    value = row[key]
    assert isinstance(value, (int, float))
    return value


def test_rows_of_what_passes_and_of_what_is_refused(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_precisions, "PRECISIONS", ("fp32", "fp16"))
    export = partial(export_checkpoint, tiny_run)
    passed, refused = export_precisions.rows_of(export, "streets:day", {"model": "tiny"})
    assert (passed["model"], passed["precision"], passed["passed"]) == ("tiny", "fp32", True)
    assert number(passed, "worst_frame_agreement") >= 0.9999
    assert 0 < number(passed, "miou") < 100
    assert passed["miou"] == passed["miou_fp32"]
    assert number(passed, "size_bytes") > 1e6
    assert (refused["precision"], refused["passed"]) == ("fp16", False)  # it has hardly learned
    assert str(refused["refused"]).startswith("onnxruntime cpu fp16 (rounded) differs from torch")
