"""metrics.jsonl: means by hand, and what a resume keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cdga_sdk.errors import ResourceError, UsageError
from cdga_train.metrics_log import MetricsLog
from tests.conftest import file_size_limit


def lines(path: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_lines_hold_means_since_the_last(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path, keep_until=0) as log:
        for value in (1.0, 2.0, 6.0):
            log.add({"seg": torch.tensor(value), "d": torch.tensor(0.5)}, waited_s=0.0, lr=0.1)
        assert log.write(3) == {"seg": 3.0, "d": 0.5}
        log.add({"seg": torch.tensor(7.0)}, waited_s=0.0, lr=0.05)
        assert log.write(4) == {"seg": 7.0}
        assert log.latest["seg"] == 7.0
    first, second = lines(path)
    assert (first["iteration"], first["seg"], first["d"], first["lr"]) == (3, 3.0, 0.5, 0.1)
    assert (second["iteration"], second["seg"], second["lr"]) == (4, 7.0, 0.05)
    assert first["it_per_s"] > 0
    assert 0 <= first["data_wait_share"] <= 1


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "m.jsonl", keep_until=0) as log:
        log.add({"seg": torch.tensor(1.0)}, waited_s=0.0, lr=0.1)
        log.write(1)
        assert len(lines(tmp_path / "m.jsonl")) == 1


def test_nan_is_null(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "m.jsonl", keep_until=0) as log:
        log.add({"seg": torch.tensor(float("nan")), "cl": torch.tensor(float("inf"))}, waited_s=0.0, lr=0.1)
        means = log.write(1)
    assert means["seg"] != means["seg"]
    assert means["cl"] == float("inf")
    assert lines(tmp_path / "m.jsonl")[0]["seg"] is None
    assert lines(tmp_path / "m.jsonl")[0]["cl"] is None


def test_resume_drops_later_and_broken_lines(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    kept = ['{"iteration": 5, "seg": 1.0}', '{"iteration": 10, "seg": 1.0}']
    broken = ["[]", "3", '{"seg": 1}', '{"iteration": null}', '{"iteration": 15}', "", "\x00"]
    path.write_bytes("\n".join([*kept, *broken]).encode() + b'\n\xff\xfe\n{"iteration": 9, "se')
    with MetricsLog(path, keep_until=10) as log:
        log.add({"seg": torch.tensor(2.0)}, waited_s=0.0, lr=0.1)
        log.write(15)
    assert [line["iteration"] for line in lines(path)] == [5, 10, 15]
    assert path.read_text().splitlines()[:2] == kept


def test_a_full_disk_is_told_of_and_leaves_the_lines_before(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"

    def fill(log: MetricsLog) -> None:
        for iteration in range(1, 100):
            log.add({"seg": torch.tensor(1.0)}, waited_s=0.0, lr=0.1)
            log.write(iteration)

    with (
        file_size_limit(1000),
        pytest.raises(ResourceError, match="cannot write"),
        MetricsLog(path, keep_until=0) as log,
    ):
        fill(log)
    with MetricsLog(path, keep_until=100):
        kept = [line["iteration"] for line in lines(path)]
    assert kept == [*range(1, len(kept) + 1)] != []


def test_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").mkdir()
    with pytest.raises(UsageError, match="cannot write"), MetricsLog(tmp_path / "m.jsonl", keep_until=0):
        pass
