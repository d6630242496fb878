"""The tables of docs/performance.md, and README's of speed; `benchmarks.pages` puts them there."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.markdown import results, table

__all__ = ["TABLES"]

OURS: Final = "cdga"
BEFORE: Final = "naive"

# What naive's script and this project call the same work.
_STAGES: Final = {
    "decode": ("decode",),
    "resize, normalise": ("preprocess",),
    "network": ("inference",),
    "logits to class map": ("postprocess",),
    "overlay, encode": ("overlay", "encode", "write"),
}


def ratio(record: Mapping[str, float]) -> str:
    """A paired ratio with its interval."""
    digits = 2 if record["median"] < 10 else 1
    return f"{record['median']:.{digits}f} [{record['low']:.{digits}f}, {record['high']:.{digits}f}]"


def _speed() -> str:
    """README's: how many times as long as this project each other one takes for a file."""
    questions = results("peers")["questions"]
    names = dict.fromkeys(name for one in questions for name in one["scopes"]["file"]["peers"])
    others = [name for name in names if not name.startswith(OURS)]
    rows: list[tuple[str, ...]] = []
    for one in questions:
        peers = one["scopes"]["file"]["peers"]
        is_void = one["scopes"]["file"]["is_void"]
        times = (
            "-" if is_void or name not in peers else f"{peers[name]['time_of_cdga']['median']:.1f}" for name in others
        )
        case = f"{one['network']}, {Path(one['clip']).stem}"
        rows.append((case, f"{peers[OURS]['frames_per_s']:.1f}", *times))
    return table(("network, frames", "cdga, frames/s", *others), rows)


def _peers(scope: str) -> str:
    rows: list[tuple[str, ...]] = []
    for one in results("peers")["questions"]:
        of_scope = one["scopes"][scope]
        for name, row in of_scope["peers"].items():
            rows.append(
                (
                    f"{one['network']}, {Path(one['clip']).stem}",
                    name,
                    f"{row['median_ms']:.1f}",
                    f"{row['cpu_ms']:.1f}",
                    f"{row['frames_per_s']:.1f}",
                    "void" if of_scope["is_void"] else ratio(row["time_of_cdga"]),
                    f"{100 * one['agreement'][name]:.2f}",
                )
            )
    header = ("network, frames", "variant", "ms", "CPU ms", "frames/s", "time of cdga [95 %]", "naive's labels, %")
    return table(header, rows)


def _stages() -> str:
    rows: list[tuple[str, ...]] = []
    report = results("peers")
    cores = _cores(report["machine"])
    for one in report["questions"]:
        peers = one["scopes"]["file"]["peers"]
        case = f"{one['network']}, {Path(one['clip']).stem}"
        for title, names in _STAGES.items():
            before, after = (_sum(peers[variant]["stages_ms"], names) for variant in (BEFORE, OURS))
            rows.append((case, title, f"{before:.1f}", f"{after:.1f}"))
        whole = (f"{peers[variant]['median_ms']:.1f}" for variant in (BEFORE, OURS))
        rows.append((case, "**file, a frame**", *whole))
        rows.append((case, "**file over its slowest stage**", "", f"{_of_slowest_stage(peers[OURS]):.2f}"))
        of_floor = (f"{cores * peers[v]['median_ms'] / peers[v]['cpu_ms']:.2f}" for v in (BEFORE, OURS))
        rows.append((case, "**file over its CPU time on all cores**", *of_floor))
    return table(("network, frames", "stage", "naive, ms", "cdga, ms"), rows)


def _cores(machine: str) -> int:
    """Of a report's machine: ``x86_64, AMD EPYC, 2 cores, 2 threads``."""
    found = re.search(r"(\d+) cores", machine)
    assert found is not None, machine
    return int(found[1])


def _of_slowest_stage(row: Mapping[str, Any]) -> float:
    """How much longer a frame takes than the slowest of the stages that overlap."""
    threads = (("decode",), ("preprocess", "inference", "postprocess"), ("write",))
    return float(row["median_ms"] / max(_sum(row["stages_ms"], names) for names in threads))


def _sum(stages_ms: Mapping[str, float], names: Sequence[str]) -> float:
    return sum(stages_ms.get(name, 0.0) for name in names)


def _tail() -> str:
    report = results("tail")
    rows: list[tuple[str, ...]] = []
    for question in ("labels", "labels and confidence", "labels of noise"):
        record = report[question]
        for name, ms in record["ms_per_frame"].items():
            rows.append((question, name, f"{ms:.2f}", ratio(record["of_cdga"][name])))
    return table(("from logits to", "by", "ms", "time of cdga [95 %]"), rows)


def _encoder() -> str:
    rows: list[tuple[str, ...]] = []
    base = ""
    for size, record in results("encoder")["sizes"].items():
        (base,) = (key.removeprefix("cpu_of_") for key in record if key.startswith("cpu_of_"))
        for preset, bytes_per_frame in record["bytes_per_frame"].items():
            rows.append(
                (
                    size,
                    preset,
                    f"{record['cpu_ms_per_frame'][preset]:.1f}",
                    ratio(record[f"cpu_of_{base}"][preset]),
                    f"{bytes_per_frame / 1e3:.1f}",
                    f"{record['psnr_db'][preset]:.1f}",
                )
            )
    return table(("frames", "preset", "CPU ms", f"CPU time of {base} [95 %]", "kB a frame", "PSNR, dB"), rows)


def _deeplab() -> str:
    rows: list[tuple[str, ...]] = []
    for row in results("deeplab")["rows"]:
        for way, ms in row["ms_per_frame"].items():
            rows.append((row["network"], way, f"{ms:.0f}", ratio(row["of_cdga"][way])))
    return table(("network", "by", "ms", "time of cdga [95 %]"), rows)


def _bundles() -> str:
    """Runtimes and precisions of a bundle, as ``cdga bench`` has measured them."""
    rows: list[tuple[str, ...]] = []
    for name in ("bench_efficientvit_b0", "bench_lraspp"):
        report = results(name)
        scopes = report["scopes"]
        agreement = {one["name"]: one["agreement"] for one in report["contenders"]}
        height, width = report["size_hw"]
        for contender, row in scopes["file"]["contenders"].items():
            times = (
                f"{scopes[scope]['contenders'][contender]['median_ms']:.1f}" for scope in ("model", "frame", "file")
            )
            faster = "void" if scopes["file"]["is_void"] else ratio(row["speed_up"])
            labels = f"{100 * agreement[contender]:.2f}" if contender in agreement else ""
            of_stage = f"{row['of_slowest_stage']['median']:.2f}"
            case = f"{name.removeprefix('bench_')}, {width}x{height}, {report['frames']} frames"
            rows.append((case, contender, *times, f"{row['frames_per_s']:.1f}", of_stage, faster, labels))
    header = ("network, clip", "runtime", "model, ms", "frame, ms", "file, ms", "file, frames/s", "over slowest stage")
    return table((*header, "speed-up [95 %]", "worst golden frame, %"), rows)


def _label_stream() -> str:
    report = results("label_stream")
    rows: list[tuple[str, ...]] = []
    for question in ("written", "read"):
        record = report[question]
        for name, ms in record["cpu_ms_per_frame"].items():
            size = report["bytes_per_frame"][name]
            rows.append((question, name, f"{ms:.2f}", ratio(record["cpu_of_stream"][name]), str(size)))
    return table(("label maps", "as", "CPU ms a frame", "CPU time of the stream [95 %]", "bytes a frame"), rows)


TABLES: Final[Mapping[str, Callable[[], str]]] = {
    "speed": _speed,
    "peers-file": lambda: _peers("file"),
    "peers-frame": lambda: _peers("frame"),
    "stages": _stages,
    "tail": _tail,
    "encoder": _encoder,
    "deeplab": _deeplab,
    "bundles": _bundles,
    "label-stream": _label_stream,
}
