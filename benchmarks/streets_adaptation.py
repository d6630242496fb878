"""Does adaptation help? Streets by day (labelled) to streets at dusk (unlabelled), scored on held-out labelled dusk.

The demo runs one seed and shows the whole chain; the committed table is made by::

    python benchmarks/streets_adaptation.py --seeds 0,1,2 --output runs/streets_adaptation \
        --json benchmarks/results/streets_adaptation.json

Arms, each with the same data, seeds and number of iterations: the labelled source alone; FDA translation of the source
alone; the CDGA recipe (the same translation and the five losses). Nothing is selected: the last iteration is scored.
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib.metadata
import json
import platform
import shlex
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from cdga_export.export import ExportOptions, export_checkpoint
from cdga_sdk import Segmenter
from cdga_sdk.atomic import write_text
from cdga_sdk.errors import CdgaError
from cdga_sdk.image import write_png
from cdga_sdk.labels import CLASS_SETS
from cdga_sdk.opencv import cv2
from cdga_sdk.overlay import color_map_bgr
from cdga_sdk.preprocess import UInt8Array
from cdga_sdk.progress import progress_bar
from cdga_sdk.video.sink import VideoSink
from cdga_train.checkpoint import load_checkpoint, load_newest
from cdga_train.config import TrainConfig, load_config
from cdga_train.data.spec import open_labelled
from cdga_train.data.streets import render_clip
from cdga_train.evaluate import evaluate
from cdga_train.loop import Progress
from cdga_train.models.fused import FusedNetwork
from cdga_train.panels import GroupedNetwork, group_palette_rgb
from cdga_train.predict import predict_mask
from cdga_train.presets import PRESETS
from cdga_train.rounds import Watcher, train_run
from cdga_train.run_layout import LAST
from cdga_train.state import build_network

PRESET_OF = {"source_only": "streets_source_only", "fda": "streets_translation", "cdga": "streets_cdga"}
ARMS = {"source_only": "labelled day alone", "fda": "FDA translation alone", "cdga": "CDGA recipe (FDA + losses)"}
CLIP_SEED = 77
CLIP_FRAMES = 75
TITLE_PX = 26

Record = dict[str, object]


def main() -> None:
    """Train what is missing, score everything, print the table; with ``--show``, export and segment too."""
    options = _options()
    output: Path = options.output
    scores: dict[str, list[float]] = {}
    rows: list[Record] = []
    for seed in options.seeds:
        for arm in options.arms:
            config = _config(arm, seed, options.overrides)
            record = _run(config, arm, output / f"{arm}-seed{seed}")
            rows.append(record)
            scores.setdefault(arm, []).append(float(str(record["target_miou"])))
            print(f"{arm} seed {seed}: mIoU {record['target_miou']} on dusk", file=sys.stderr)
    if options.json is not None:
        write_text(options.json, json.dumps(_report(rows, scores, options.overrides), indent=1) + "\n")
    paths = _show(output, options.seeds[0]) if options.show else []
    _print_table(scores)
    for path in paths:
        print(path, file=sys.stderr)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=lambda text: [int(s) for s in text.split(",")], default=[0])
    parser.add_argument("--arms", type=lambda text: text.split(","), default=list(ARMS))
    parser.add_argument("--output", type=Path, default=Path("runs/streets_adaptation"))
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--show", action="store_true", help="export, segment a clip and draw the picture")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_args()
    unknown = set(options.arms) - set(ARMS)
    if unknown or (options.show and set(options.arms) != set(ARMS)):
        parser.error(f"arms are {','.join(ARMS)}; --show needs all of them")
    return options


def _config(arm: str, seed: int, overrides: Sequence[str]) -> TrainConfig:
    return load_config(replace(PRESETS[PRESET_OF[arm]](), seed=seed, candidates=0), None, overrides)


def _run(config: TrainConfig, arm: str, folder: Path) -> Record:
    """Train unless a finished run is there, then score on both domains' held-out frames."""
    checkpoint = load_newest(folder)
    if checkpoint is not None and checkpoint.config != config:
        sys.exit(f"{folder} holds a run of another configuration; choose another --output")
    if checkpoint is None or checkpoint.iteration < config.iters:
        folder.mkdir(parents=True, exist_ok=True)
        with progress_bar(folder.name, config.iters) as advance:

            def show(_: str, progress: Progress) -> None:
                advance(progress.iteration, f"seg {progress.values.get('seg', float('nan')):.2f}")

            train_run(config, folder, watcher=Watcher(progress=show))
    record: Record = {"arm": arm, "seed": config.seed}
    fused = _fused(folder / LAST)
    for domain, spec in (("source", config.source), ("target", str(config.target))):
        dataset = open_labelled(spec, "val", config.imgsz)
        result = evaluate(partial(predict_mask, fused), dataset, CLASS_SETS["19"])
        record[f"{domain}_miou"] = round(result.miou, 2)
        record[f"{domain}_accuracy"] = round(result.accuracy, 2)
        record[f"{domain}_iou"] = {k: round(v, 2) for k, v in result.iou.items() if v == v}
    return record


def _fused(checkpoint_path: Path) -> FusedNetwork:
    checkpoint = load_checkpoint(checkpoint_path)
    return FusedNetwork(build_network(checkpoint), checkpoint.preprocess)


def _report(rows: list[Record], scores: dict[str, list[float]], overrides: Sequence[str]) -> Record:
    config = _config("cdga", 0, overrides)
    packages = ("torch", "timm", "numpy", "opencv-python")
    return {
        "what": "mIoU over the 19 classes that occur, percent, on 100 held-out frames of streets:dusk; last iteration",
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "command": shlex.join(["python", *sys.argv]),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, Python {platform.python_version()}",
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "source": config.source,
        "target": config.target,
        "iters": config.iters,
        "imgsz_hw": config.imgsz,
        "batch": config.batch,
        "summary": {
            arm: {
                "seeds": len(values),
                "mean": round(statistics.mean(values), 2),
                "sd": round(statistics.stdev(values), 2) if len(values) > 1 else None,
            }
            for arm, values in scores.items()
        },
        "runs": rows,
    }


def _print_table(scores: dict[str, list[float]]) -> None:
    table = Table(title="mIoU on held-out streets:dusk, percent", title_justify="left")
    for column in ("arm", "mIoU", "against source only"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    floor = statistics.mean(scores["source_only"]) if "source_only" in scores else float("nan")
    for arm, values in scores.items():
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        mean = statistics.mean(values)
        table.add_row(ARMS[arm], f"{mean:.1f}{spread}", f"{mean - floor:+.1f}")
    Console(stderr=True).print(table)


def _show(output: Path, seed: int) -> list[str]:
    """Export the adapted network, segment a clip of a place that no split holds, and draw before and after."""
    cdga, source_only = output / f"cdga-seed{seed}", output / f"source_only-seed{seed}"
    bundle = output / "model.cdga"
    export_checkpoint(cdga, bundle, ExportOptions(overwrite=True))
    clip = output / "clip.mp4"
    _write_clip(clip, load_checkpoint(cdga).config)
    with Segmenter(bundle) as segmenter:
        summary = segmenter.process_video(clip, output / "segmented", exist_ok=True)
    picture = output / "before_after.png"
    write_png(picture, before_after(source_only, cdga))
    return [f"video    {summary.folder}/overlay.mp4", f"bundle   {bundle}", f"picture  {picture}"]


def _write_clip(path: Path, config: TrainConfig) -> None:
    size_wh = (2 * config.imgsz[1], 2 * config.imgsz[0])
    rate = Fraction(25)
    domain = str(config.target).partition(":")[2]
    with VideoSink(path, size_wh=size_wh, rate=rate, time_base=1 / rate) as sink:
        frames = render_clip(seed=CLIP_SEED, num_frames=CLIP_FRAMES, domain=domain, size_wh=size_wh, fps=rate)
        for index, frame in enumerate(frames):
            sink.write(np.ascontiguousarray(frame.image_rgb[:, :, ::-1]), index)


def before_after(
    before: Path, after: Path, *, with_groups: bool = False, num_frames: int = 3, width_px: int = 480
) -> UInt8Array:
    """Image, classes before and after, and ground truth of frames of ``after``'s target that no training saw.

    Args:
        before: The folder of a run.
        after: Another.
        with_groups: Also show each pixel's most probable group; ``after`` has a grouping network.
        num_frames: Rows of the picture.
        width_px: Of a panel.

    Returns:
        (H, W, 3) uint8 BGR.
    """
    networks = {"before: source only": _fused(before / LAST), "after: CDGA recipe": _fused(after / LAST)}
    checkpoint = load_checkpoint(after / LAST)
    grouped = GroupedNetwork(checkpoint) if with_groups else None
    dataset = open_labelled(str(checkpoint.config.target), "val", checkpoint.config.imgsz)
    rows = []
    for index in np.linspace(5, len(dataset) - 5, num_frames).astype(int):
        sample = dataset[int(index)]
        assert sample.label is not None
        panels = {"unlabelled target": sample.image_bgr}
        for title, fused in networks.items():
            panels[title] = color_map_bgr(predict_mask(fused, sample.image_bgr))
        if grouped is not None:
            group_hw = grouped.groups(sample.image_bgr).map_hw.astype(np.uint8)
            panels[f"groups of C, K = {grouped.num_groups}"] = color_map_bgr(
                group_hw, group_palette_rgb(grouped.num_groups)
            )
        panels["ground truth (scoring only)"] = color_map_bgr(sample.label)
        size_wh = (width_px, round(sample.label.shape[0] * width_px / sample.label.shape[1]))
        rows.append(np.hstack([_panel(title, image, size_wh) for title, image in panels.items()]))
    return np.vstack(rows)


def _panel(title: str, image_bgr: UInt8Array, size_wh: tuple[int, int]) -> UInt8Array:
    large = cv2.resize(image_bgr, size_wh, interpolation=cv2.INTER_NEAREST)
    cv2.rectangle(large, (0, 0), (size_wh[0], TITLE_PX), (0, 0, 0), cv2.FILLED)
    cv2.putText(large, title, (8, 19), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
    return np.asarray(cv2.copyMakeBorder(large, 0, 4, 0, 4, cv2.BORDER_CONSTANT, value=(255, 255, 255)), np.uint8)


if __name__ == "__main__":
    try:
        main()
    except CdgaError as error:
        sys.exit(f"error[{error.code}]: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
