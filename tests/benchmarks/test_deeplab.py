"""Every way of running a network is timed, and the null pair stands beside it."""

from __future__ import annotations

from benchmarks.deeplab import AGAIN, EAGER, OURS, row_of


def test_a_row_has_every_way() -> None:
    row = row_of("lraspp_mobilenet_v3", (64, 128), 2)
    milliseconds = row["ms_per_frame"]
    assert isinstance(milliseconds, dict)
    assert {EAGER, OURS, AGAIN} <= milliseconds.keys()
    assert all(value > 0 for value in milliseconds.values())
    assert row["network"] == "lraspp_mobilenet_v3"
