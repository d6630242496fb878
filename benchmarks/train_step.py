"""What does a whole training step cost: 8 groups against 1, bf16 and torch.compile against eager float32?

A step is forward, backward and update of G, C and D on one source and one target image of random numbers, so no data
are read. The committed figures are made by::

    python -m benchmarks.train_step --json benchmarks/results/train_step.json

and, on a CUDA machine, at the paper's sizes::

    python -m benchmarks.train_step --device cuda --model deeplabv2_resnet101 \
        --source-hw 720,1280 --target-hw 512,1024 \
        --variants K1,K8,K1-bf16,K8-bf16,K1-bf16-compiled,K8-bf16-compiled \
        --json benchmarks/results/train_step_cuda.json

Times are paired within rounds (``benchmarks.protocol``).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.protocol import Record, Times, environment, interleaved, load, paired_ratio, peak_bytes
from cdga_sdk.atomic import write_text
from cdga_train.config import OptimConfig, TrainConfig
from cdga_train.data.batches import Batch
from cdga_train.loop import iterate
from cdga_train.state import TrainingState

CLASSES: Final = 19
BASE: Final = "K1"
AGAIN: Final = "K1 again"


def main() -> None:
    """Time the variants in turn, print the table, write the JSON."""
    options, arguments = _options(), sys.argv[1:]
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    report = environment("benchmarks.train_step", arguments, ("torch", "torchvision", "timm"), device)
    batch = random_batch(options.source_hw, options.target_hw)
    states = {name: TrainingState.new(config_of(name, options), device) for name in options.variants}
    steps: dict[str, Callable[[], object]] = {name: partial(step, state, batch) for name, state in states.items()}
    peaks = {name: peak_bytes(run, device) for name, run in steps.items()} if device.type == "cuda" else {}
    before = load()
    times = interleaved({**steps, AGAIN: steps[BASE]}, rounds=options.rounds, warm_up=options.warm_up, device=device)
    record = {**report, **_record(options, times, peaks), "load_before": before, "load_after": load()}
    Console(stderr=True).print(_table(options, times))
    if not paired_ratio(times[AGAIN].wall_s, times[BASE].wall_s).is_null:
        sys.exit("void, nothing written: the null pair differs by more than 3 %; repeat on a calmer machine")
    if options.json is not None:
        write_text(options.json, json.dumps(record, indent=1) + "\n")


def config_of(variant: str, options: argparse.Namespace) -> TrainConfig:
    """``K8-bf16-compiled``: the number of groups, then the precision, then whether it is compiled."""
    groups, *words = variant.split("-")
    return TrainConfig(
        arm="cdga",
        model=options.model,
        imgsz=options.target_hw,
        source_imgsz=options.source_hw,
        num_groups=int(groups.removeprefix("K")),
        align_resolution=options.align,
        precision="bf16" if "bf16" in words else "fp32",
        compile="compiled" in words,
        freeze_bn_affine=True,
        optim=OptimConfig(head_lr_factor=10.0),
    )


def random_batch(source_hw: tuple[int, int], target_hw: tuple[int, int]) -> Batch:
    """One image of each domain and a label, of random numbers from a fixed seed."""
    rng = np.random.default_rng(0)
    return Batch(
        source_BHWC=rng.integers(0, 256, (1, *source_hw, 3), dtype=np.uint8),
        label_BHW=rng.integers(0, CLASSES, (1, *source_hw), dtype=np.uint8),
        target_BHWC=rng.integers(0, 256, (1, *target_hw, 3), dtype=np.uint8),
    )


def step(state: TrainingState, batch: Batch) -> None:
    """One iteration; the schedule's position is put back, so that every step is the same work."""
    iterate(state, (batch,))
    state.iteration = 0


def _record(options: argparse.Namespace, times: Mapping[str, Times], peaks: Mapping[str, int]) -> Record:
    base = times[BASE].wall_s
    return {
        "what": "one CDGA training step (G, C and D) on 1 + 1 images; each variant's time over K1's of the same round",
        "settings": {name: value for name, value in vars(options).items() if name != "json"},
        "iterations_per_s": {name: round(1 / median(samples.wall_s), 3) for name, samples in times.items()},
        "of_K1": {name: paired_ratio(samples.wall_s, base).record() for name, samples in times.items()},
        "peak_bytes": dict(peaks),
        "times": {name: {k: [round(v, 6) for v in s] for k, s in asdict(t).items()} for name, t in times.items()},
    }


def _table(options: argparse.Namespace, times: Mapping[str, Times]) -> Table:
    (source_h, source_w), (target_h, target_w) = options.source_hw, options.target_hw
    title = (
        f"{options.model}, {source_w}x{source_h} + {target_w}x{target_h}, C and D at {options.align} resolution, "
        f"{options.device}"
    )
    table = Table(title=title, title_justify="left")
    for column in ("step", "median ms", "it/s", "of K1 [95 %]"):
        table.add_column(column, justify="left" if column == "step" else "right")
    for name, samples in times.items():
        seconds = median(samples.wall_s)
        ratio = paired_ratio(samples.wall_s, times[BASE].wall_s)
        table.add_row(name, f"{1e3 * seconds:.0f}", f"{1 / seconds:.2f}", str(ratio))
    return table


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train_step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warm-up", type=int, default=2, help="rounds that do not count")
    parser.add_argument("--model", default="efficientvit_b0")
    parser.add_argument("--source-hw", type=_size, default=(256, 512), metavar="H,W")
    parser.add_argument("--target-hw", type=_size, default=(256, 512), metavar="H,W")
    parser.add_argument("--align", default="input", choices=("input", "head"), help="where C and D see P")
    parser.add_argument("--variants", type=lambda text: text.split(","), default=[BASE, "K8"])
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    if BASE not in options.variants:
        parser.error(f"--variants needs {BASE}, which the others are compared with")
    return options


def _size(text: str) -> tuple[int, int]:
    height, width = text.split(",")
    return int(height), int(width)


if __name__ == "__main__":
    main()
