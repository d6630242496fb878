"""``cdga bench``: a bar while it measures, then one table per scope, or JSON."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from dataclasses import asdict
from typing import Final

import typer
from rich.console import Console
from rich.table import Table

from cdga_sdk.bench import AGAIN, BenchReport, BenchRequest, ScopeTimes, bench
from cdga_sdk.errors import DegradedError, one_line
from cdga_sdk.machine import this_machine
from cdga_sdk.progress import progress_bar

__all__ = ["run_bench"]

_PACKAGES: Final = ("numpy", "opencv-python", "av", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt")


def run_bench(request: BenchRequest, *, as_json: bool, quiet: bool) -> None:
    """Measure and tell.

    Raises:
        DegradedError: Measured and told, but the null pair differs: the ratios say nothing.
        CdgaError: As `bench` does.
    """
    with progress_bar("bench", None, quiet=quiet or as_json) as advance:
        report = bench(request, on_run=lambda done, total: advance(done, f"of {total} runs"))
    if as_json:
        sys.stdout.write(json.dumps(_record(report, request)) + "\n")
    else:
        _print(report)
    if report.is_void:
        raise DegradedError(
            "measured, but the same contender twice differs by more than 3 %: the ratios say nothing",
            where=request.model,
            fix="repeat when the machine is idle, or with more --rounds",
        )


def _record(report: BenchReport, request: BenchRequest) -> dict[str, object]:
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "command": _command(request),
        "machine": f"{platform.machine()}, {this_machine().cpu}, {os.cpu_count()} cores",
        "threads": request.threads,
        "python": platform.python_version(),
        "packages": _versions(),
        "model": report.model,
        "imgsz_hw": report.imgsz_hw,
        "video": report.video,
        "size_hw": report.size_hw,
        "frames": report.frames,
        "rounds": request.rounds,
        "load_before": report.load_before,
        "contenders": [asdict(one) for one in report.contenders],
        "left_out": report.left_out,
        "scopes": {scope.scope: scope.record() for scope in report.scopes},
    }


def _command(request: BenchRequest) -> str:
    """The line that measures the same, files by their names."""
    words = ["cdga", "bench", request.named or request.model.name]
    if request.video is not None:
        words += ["--video", request.video.name]
    words += [word for backend in request.backends for word in ("--backend", backend)]
    words += [word for precision in request.precisions for word in ("--precision", precision)]
    words += [] if request.threads is None else ["--threads", str(request.threads)]
    words += ["--device", request.device, "--rounds", str(request.rounds)]
    words += [] if request.video is None else ["--frames", str(request.clip_frames)]
    return shlex.join([*words, "--json"])


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _print(report: BenchReport) -> None:
    height, width = report.size_hw
    frames = "golden frames" if report.video is None else f"frames of {report.video}"
    typer.echo(one_line(f"{report.model}: {report.frames} {frames}, {width}x{height}; {this_machine().cpu}"), err=True)
    console = Console(stderr=True, markup=False, emoji=False)
    for scope in report.scopes:
        console.print(_table(scope))
    for contender in report.contenders:
        agreement, gate = 100 * contender.agreement, 100 * contender.min_agreement
        line = f"{contender.name}: {agreement:.3f} % as trained on the worst golden frame (gate {gate:g} %)"
        typer.echo(line, err=True)
    for name, reason in report.left_out.items():
        typer.echo(one_line(f"left out: {name}: {reason}"), err=True)


def _table(scope: ScopeTimes) -> Table:
    table = Table(title=f"{scope.scope}, milliseconds a frame", title_justify="left")
    table.add_column("runtime")
    for column in ("median", "5 %", "95 %", "frames/s", "speed-up [95 %]"):
        table.add_column(column, justify="right")
    rows = scope.record()["contenders"]
    assert isinstance(rows, dict)
    for name, row in rows.items():
        cells = [f"{row[key]:.2f}" for key in ("median_ms", "p5_ms", "p95_ms")]
        table.add_row(name, *cells, f"{row['frames_per_s']:.1f}", _speed(scope, name))
    return table


def _speed(scope: ScopeTimes, name: str) -> str:
    if name == scope.first:
        return "1"
    if name == AGAIN:
        return f"{scope.speed_up(name)}{' void' if scope.is_void else ''}"
    ratio = scope.speed_up(name)
    return str(ratio) if ratio.is_resolved and not scope.is_void else "not resolved"
