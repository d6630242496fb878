"""What do the label maps of a video cost as one label stream, and as one PNG a frame: time, cores and bytes?

A bundle segments a video once; its label maps are then written and read again and again, as ``cdga segment --save
labels`` and ``--save masks`` do. A run of a variant is all maps::

    python -m benchmarks.label_stream --model city.cdga --video ride.mp4 --json benchmarks/results/label_stream.json

Before anything is timed both must give back every map as it was. Times are paired within rounds
(``benchmarks.protocol``). The stream is coded and decoded by as many threads as FFmpeg likes, PNGs by one, so the time
of the cores is told beside the clock's; it is also forced to the disk at its end, which PNGs are not. Files go to a
temporary folder: ``--folder`` says on which disk.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import torch
from rich.console import Console

from benchmarks.protocol import Record, environment, interleaved, load, paired_ratio, side_by_side, side_by_side_table
from cdga_sdk import Segmenter, read_labels
from cdga_sdk.atomic import write_text
from cdga_sdk.image import read_label, write_png
from cdga_sdk.preprocess import UInt8Array
from cdga_sdk.video.label_stream import LabelSink

OURS: Final = "stream"
AGAIN: Final = "stream again"
RATE: Final = Fraction(25)


def write_stream(labels: Sequence[UInt8Array], folder: Path) -> None:
    """One ``labels.nut``."""
    height, width = labels[0].shape
    with LabelSink(folder / "labels.nut", size_wh=(width, height), rate=RATE, time_base=1 / RATE) as sink:
        for tick, label_HW in enumerate(labels):
            sink.write(label_HW, tick)


def write_pngs(labels: Sequence[UInt8Array], folder: Path) -> None:
    """One PNG a map."""
    for index, label_HW in enumerate(labels):
        write_png(folder / "masks" / f"{index:06d}.png", label_HW)


def read_stream(folder: Path) -> Iterable[UInt8Array]:
    """The maps of ``labels.nut``."""
    return (frame.label_HW for frame in read_labels(folder / "labels.nut"))


def read_pngs(folder: Path) -> Iterable[UInt8Array]:
    """The maps of the PNGs."""
    return (read_label(path) for path in sorted((folder / "masks").iterdir()))


WRITERS: Final[Mapping[str, Callable[[Sequence[UInt8Array], Path], None]]] = {
    "png": write_pngs,
    OURS: write_stream,
    AGAIN: write_stream,
}
READERS: Final[Mapping[str, Callable[[Path], Iterable[UInt8Array]]]] = {
    "png": read_pngs,
    OURS: read_stream,
    AGAIN: read_stream,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Segment, check, time in turn, print the tables, write the JSON."""
    options = parsed(arguments)
    report, is_void = measured(options)
    if is_void:
        sys.exit("void, nothing written: a null pair differs by more than 3 %; repeat on a calmer machine")
    if options.json is not None:
        write_text(options.json, json.dumps(report, indent=1) + "\n")


def measured(options: argparse.Namespace) -> tuple[Record, bool]:
    """The report, and whether a null pair says that it is worth nothing."""
    labels = segmented(options.model, options.video, options.frames)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folders = {variant: Path(name) / variant.replace(" ", "_") for variant in WRITERS}
        sizes = checked(labels, folders)
        questions: dict[str, Mapping[str, Callable[[], object]]] = {
            "written": {v: partial(write, labels, folders[v]) for v, write in WRITERS.items()},
            "read": {v: partial(_exhaust, read, folders[v]) for v, read in READERS.items()},
        }
        records, is_void = _asked(questions, len(labels), options)
    facts: Record = {"frames": len(labels), "shape_hw": labels[0].shape, "bytes_per_frame": sizes}
    return _environment(options) | facts | records, is_void


def segmented(model: Path, video: Path, frames: int) -> list[UInt8Array]:
    """The label maps of the video's first frames."""
    with Segmenter(model, device="cpu") as segmenter:
        return [result.mask for result in segmenter.stream(video, max_frames=frames)]


def checked(labels: Sequence[UInt8Array], folders: Mapping[str, Path]) -> dict[str, int]:
    """Bytes a map by variant; ends the run where one gives back other maps than it was given."""
    sizes = {}
    for name, folder in folders.items():
        folder.mkdir()
        WRITERS[name](labels, folder)
        found = list(READERS[name](folder))
        if len(found) != len(labels) or not all(map(np.array_equal, found, labels)):
            sys.exit(f"{name} gives other label maps back than it was given")
        sizes[name] = round(sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / len(labels))
    return sizes


def _exhaust(read: Callable[[Path], Iterable[UInt8Array]], folder: Path) -> None:
    for _ in read(folder):
        pass


def _asked(
    questions: Mapping[str, Mapping[str, Callable[[], object]]], frames: int, options: argparse.Namespace
) -> tuple[Record, bool]:
    records: Record = {}
    is_void = False
    for title, variants in questions.items():
        before = load()
        times = interleaved(variants, rounds=options.rounds, warm_up=options.warm_up, device=torch.device("cpu"))
        records[title] = side_by_side(times, of=OURS, per=frames) | {"load_before": before, "load_after": load()}
        Console(stderr=True).print(side_by_side_table(title, times, of=OURS, per=frames))
        is_void |= not paired_ratio(times[AGAIN].wall_s, times[OURS].wall_s).is_null
    return records, is_void


def _environment(options: argparse.Namespace) -> Record:
    # Where the reader keeps the data is nobody's business, so the command names files only.
    command = ["--model", options.model.name, "--video", options.video.name, "--frames", str(options.frames)]
    packages = ("av", "numpy", "opencv-python")
    return {
        "what": "the label maps of a video as one label stream and as one PNG each, over the stream's time",
        **environment("benchmarks.label_stream", [*command, "--json", "PATH"], packages, torch.device("cpu")),
    }


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What the words on the command line ask for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.label_stream",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, required=True, help="a bundle")
    parser.add_argument("--video", type=Path, required=True)
    parser.add_argument("--frames", type=int, default=100, help="at most; their maps are held in memory")
    parser.add_argument("--folder", type=Path, default=None, help="where the temporary files go")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warm-up", type=int, default=2, help="rounds that do not count")
    parser.add_argument("--json", type=Path, default=None)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
