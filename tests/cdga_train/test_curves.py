"""Logs with every kind of fault, and charts measured back into values."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from cdga_train.config import LossWeights, TrainConfig
from cdga_train.curves import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Metrics,
    Point,
    Reference,
    Watched,
    chart,
    charts,
    read_metrics,
    watched,
)
from tests.html_page import ParsedPage

SEG = Watched(key="seg", title="L_seg")


def log_of(**series: list[float | None]) -> Metrics:
    """A log of iterations 10, 20 ..."""
    length = len(next(iter(series.values())))
    return Metrics(
        rows=tuple({name: values[i] for name, values in series.items()} for i in range(length)),
        iterations=tuple(10 * (i + 1) for i in range(length)),
        damaged=(),
    )


def drawn(line: list[Point], item: Watched = SEG) -> ET.Element:
    return ET.fromstring(chart({"the run": line}, item))


def measured(points: str, end: int, high: float) -> list[tuple[float, float]]:
    """Coordinates of a line back to iterations and values, for a chart that begins at 0."""
    found = []
    for pair in points.split():
        x, y = map(float, pair.split(","))
        at = (x - LEFT) / (WIDTH - LEFT - RIGHT) * end
        found.append((at, high * (1 - (y - TOP) / (HEIGHT - TOP - BOTTOM))))
    return found


def highest_tick(svg: ET.Element) -> float:
    return max(float(t.text or "nan") for t in svg.iter("text") if t.get("text-anchor") == "end" and t.get("x") == "40")


def test_a_damaged_log_keeps_its_good_lines(tmp_path: Path) -> None:
    lines = [
        '{"iteration": 10, "seg": 2.5, "lr": 0.1}',
        '{"iteration": 20, "seg": nul',
        "",
        '{"iteration": 30, "seg": null, "d": 1e999}',
        '{"iteration": 31, "d": -1.7e308}',
        '{"seg": 1.0}',
        '{"iteration": -1, "seg": 1.0}',
        '{"iteration": 35.5, "seg": 1.0}',
        '{"iteration": 36, "seg": true}',
        '{"iteration": 37, "seg": "1.0"}',
        '{"iteration": 38, "seg": 1' + "0" * 400 + "}",
        "[1]",
        "\x00\xff",
        '{"iteration": 40, "seg": 1}',
        '{"iteration": 50, "se',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines), encoding="utf-8")
    log = read_metrics(tmp_path / "metrics.jsonl")
    assert log.series("seg") == [(10, 2.5), (30, None), (40, 1.0)]
    assert log.series("d") == [(30, None), (31, None)]
    assert log.series("absent") == []
    assert log.damaged == (2, 6, 7, 8, 9, 10, 11, 12, 13)  # the last line is still being written
    assert log.last_iteration == 40


def test_no_log_is_an_empty_log(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\n\x80\n")
    for name, damaged in (("absent", ()), ("empty", ()), (".", ()), ("bytes", (1, 2))):
        log = read_metrics(tmp_path / name)
        assert (log.rows, log.last_iteration, log.damaged) == ((), 0, damaged)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            TrainConfig(num_groups=8),
            {"orth": 112, "cadv": 8 * 0.693147, "d": 0.693147, "group_entropy": 2.079442, "data_wait_share": 0.02},
        ),
        (TrainConfig(num_groups=1), {"orth": 0, "cadv": 0.693147, "group_entropy": 0}),
        (TrainConfig(num_groups=4, losses=LossWeights(adversarial_domains="both")), {"cadv": 8 * 0.693147}),
        (TrainConfig(arm="baseline", num_groups=8), {"adv": 0.693147, "d": 0.693147}),
    ],
)
def test_what_values_are_held_against(config: TrainConfig, expected: dict[str, float]) -> None:
    found = {item.key: item.reference for item in watched(config)}
    for key, value in expected.items():
        reference = found[key]
        assert reference is not None
        assert reference.value == pytest.approx(value, abs=1e-5)
    assert found["seg"] is None


def test_a_line_is_where_its_values_are() -> None:
    line: list[Point] = [(10, 2.9), (20, 1.0), (30, 0.5), (40, 0.0)]
    svg = drawn(line)
    assert highest_tick(svg) == 3
    (polyline,) = svg.iter("polyline")
    for found, wanted in zip(measured(polyline.attrib["points"], end=40, high=3), line, strict=True):
        assert found == pytest.approx(wanted, abs=0.02)
    assert not list(svg.iter("polygon"))  # every point is drawn: no band


def test_a_value_that_is_not_finite_leaves_a_gap() -> None:
    svg = drawn([(1, 1.0), (2, 2.0), (3, None), (4, 1.0), (5, 1.0), (6, None), (7, 3.0)])
    assert len(list(svg.iter("polyline"))) == 2
    assert len(list(svg.iter("circle"))) == 1  # a single point is no line
    assert not list(drawn([(1, None), (2, None)]).iter("polyline"))


def test_many_points_become_a_mean_in_a_band() -> None:
    values = np.sin(np.arange(6000)) + 2
    values[3001] = 90.0  # a spike of one line: the band reaches it, and the mean is not carried away
    svg = drawn([(i + 1, float(v)) for i, v in enumerate(values)])
    high = highest_tick(svg)
    (polyline,), (polygon,) = list(svg.iter("polyline")), list(svg.iter("polygon"))
    mean = measured(polyline.attrib["points"], end=6000, high=high)
    assert len(mean) == 300
    assert mean[150][1] == pytest.approx(values[3000:3020].mean(), abs=0.05 * high / 10)
    band = measured(polygon.attrib["points"], end=6000, high=high)
    assert max(value for _, value in band) == pytest.approx(90, abs=0.1 * high / 10)
    assert len(chart({"the run": [(i, float(v)) for i, v in enumerate(values)]}, SEG)) < 15_000


@pytest.mark.parametrize(
    "values", [[0.0], [-3.0, 4.0], [3.6e-6, 1e-6], [1e30, 5e-324], [5e-324], [9e299, -9e299], [1.2e5]]
)
def test_any_range_has_round_ticks_around_it(values: list[float]) -> None:
    svg = drawn([(i + 1, v) for i, v in enumerate(values)], Watched(key="x", title="x"))
    numbers = [float(n) for line in svg.iter("polyline") for n in line.attrib["points"].replace(",", " ").split()]
    numbers += [float(c.attrib["cy"]) for c in svg.iter("circle")]
    assert all(0 <= n <= WIDTH for n in numbers)
    ticks = [t.text for t in svg.iter("text") if t.get("x") == "40"]
    assert 2 <= len(ticks) <= 8
    assert len(set(ticks)) == len(ticks)


def test_the_reference_is_inside_the_chart() -> None:
    item = Watched(key="orth", title="L_orth", reference=Reference(value=112, meaning="bound"))
    svg = drawn([(1, 10.0), (2, 9.0)], item)
    (line,) = [p for p in svg.iter("path") if p.get("class") == "reference"]
    y = float(line.attrib["d"].split()[1].partition("H")[0])
    assert highest_tick(svg) * (1 - (y - TOP) / (HEIGHT - TOP - BOTTOM)) == pytest.approx(112, abs=1)


def test_charts_are_of_what_the_log_holds() -> None:
    first = log_of(seg=[2.0, 1.5], orth=[100.0, 90.0], it_per_s=[5.0, 5.0])
    second = log_of(seg=[2.0, None], ssl=[1.0, 0.5])
    parsed = ParsedPage(charts(TrainConfig(num_groups=8), {"round 1": first, "round 2": second}))
    keys = [value for tag, name, value in parsed.attributes if (tag, name) == ("svg", "data-key")]
    assert keys == ["seg", "ssl", "orth"]
    assert "(seg) · last 1.5 and not finite" in parsed.captions[0]
    assert "(ssl) · last 0.5" in parsed.captions[1]
    assert "last 90 · dashed: 2K(K-1): all groups equal" in parsed.captions[2]
    assert "round 1" in parsed.text
    assert "round 1" not in ParsedPage(charts(TrainConfig(), {"round 1": first})).text  # alone it needs no name


def test_entropy_reference_is_that_of_equal_groups() -> None:
    (entropy,) = [item for item in watched(TrainConfig(num_groups=4)) if item.key == "group_entropy"]
    assert entropy.reference is not None
    assert entropy.reference.value == pytest.approx(-4 * (0.25 * math.log(0.25)))
