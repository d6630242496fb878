"""What does the folded first layer of the group discriminator save against building the outer product?

Forward and backward of the whole D at 512x256, 8 groups, 19 classes, float32, with gradients to the probabilities, the
group maps and every weight. The committed figures are made by::

    python -m benchmarks.discriminator --json benchmarks/results/discriminator.json

Both variants must agree in output and gradients before anything is timed. Times are paired within rounds
(``benchmarks.protocol``); each variant's peak memory is that of a process of its own.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.protocol import (
    Ratio,
    Record,
    Times,
    environment,
    interleaved,
    load,
    paired_ratio,
    peak_bytes,
    run_alone,
)
from cdga_sdk.atomic import write_text
from cdga_train.losses import group_distribution
from cdga_train.models.discriminator import GroupDiscriminator

CLASSES: Final = 19
PARITY: Final = 1e-4
PROCESSES: Final = 3


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the command line chose."""

    device: str
    threads: int
    rounds: int
    warm_up: int
    size_wh: tuple[int, int]
    num_groups: int


@dataclass(frozen=True, kw_only=True)
class Section:
    """One question's answer: everything for the JSON, and the lines for the reader."""

    record: Record
    table: Table
    is_void: bool


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """A discriminator and one image's maps, all of which want gradients; Q is a constant."""

    network: GroupDiscriminator
    prob_BCHW: Tensor
    group_BKHW: Tensor
    q_BKC: Tensor

    @classmethod
    def random(cls, size_wh: tuple[int, int], num_groups: int, device: torch.device) -> Inputs:
        """Softmaxes of noise from a fixed seed."""
        generator = torch.Generator().manual_seed(0)
        torch.manual_seed(0)
        prob_BCHW, group_BKHW = (
            (2 * torch.randn(1, channels, size_wh[1], size_wh[0], generator=generator))
            .softmax(1)
            .to(device)
            .requires_grad_()
            for channels in (CLASSES, num_groups)
        )
        return cls(
            network=GroupDiscriminator(CLASSES).to(device),
            prob_BCHW=prob_BCHW,
            group_BKHW=group_BKHW,
            q_BKC=group_distribution(prob_BCHW.detach(), group_BKHW.detach()),
        )

    def leaves(self) -> list[Tensor]:
        """Everything that gets a gradient."""
        return [self.prob_BCHW, self.group_BKHW, *self.network.parameters()]


def folded(inputs: Inputs) -> Tensor:
    """The product's way: (B, K, h, w) logits."""
    logits_BKhw: Tensor = inputs.network(inputs.prob_BCHW, inputs.group_BKHW, inputs.q_BKC)
    return logits_BKhw


def explicit(inputs: Inputs) -> Tensor:
    """The equation's way: the C * C channels of F (x) Q as one tensor, and plain convolutions on it."""
    f_BKCHW = inputs.group_BKHW[:, :, None] * inputs.prob_BCHW[:, None]
    outer_BKIJHW = f_BKCHW[:, :, :, None] * inputs.q_BKC[:, :, None, :, None, None]
    logits_G1hw: Tensor = inputs.network.rest(inputs.network.first(outer_BKIJHW.flatten(2, 3).flatten(0, 1)))
    return logits_G1hw.view(*inputs.q_BKC.shape[:2], *logits_G1hw.shape[-2:])


VARIANTS: Final[Mapping[str, Callable[[Inputs], Tensor]]] = {"folded": folded, "explicit": explicit}


def forward_backward(variant: str, inputs: Inputs) -> list[Tensor]:
    """Logits, and the gradients of a sum of squares and values."""
    logits_BKhw = VARIANTS[variant](inputs)
    gradients = torch.autograd.grad(logits_BKhw.square().sum() + logits_BKhw.sum(), inputs.leaves())
    return [logits_BKhw.detach(), *gradients]


def main() -> None:
    """Answer every question, print the tables, write the JSON."""
    options, arguments = _options(), sys.argv[1:]
    settings = Settings(**{name: value for name, value in vars(options).items() if name != "json"})
    _prepare(settings)
    device = torch.device(settings.device)
    report = environment("benchmarks.discriminator", arguments, ("torch", "numpy"), device)
    sections = {name: question(settings) for name, question in QUESTIONS.items()}
    for section in sections.values():
        Console(stderr=True).print(section.table)
    if any(section.is_void for section in sections.values()):
        sys.exit("void, nothing written: a null pair differs by more than 3 %; repeat on a calmer machine")
    if options.json is not None:
        text = json.dumps({**report, **{name: section.record for name, section in sections.items()}}, indent=1)
        write_text(options.json, text + "\n")


def folded_against_explicit(settings: Settings) -> Section:
    """Time and peak memory of the folded first layer against the explicit outer product."""
    # First the processes that are measured alone, as long as this one is small.
    peaks = {name: [run_alone(partial(peak_of, name, settings)) for _ in range(PROCESSES)] for name in VARIANTS}
    device = torch.device(settings.device)
    inputs = Inputs.random(settings.size_wh, settings.num_groups, device)
    difference = _largest_difference(inputs)
    before = load()
    runs: dict[str, Callable[[], object]] = {name: partial(forward_backward, name, inputs) for name in VARIANTS}
    runs["folded again"] = runs["folded"]
    times = interleaved(runs, rounds=settings.rounds, warm_up=settings.warm_up, device=device)
    slower = paired_ratio(times["explicit"].wall_s, times["folded"].wall_s)
    null = paired_ratio(times["folded again"].wall_s, times["folded"].wall_s)
    larger = paired_ratio(peaks["explicit"], peaks["folded"])
    record: Record = {
        "what": "forward and backward of D in float32, gradients to P, H and all weights; explicit over folded",
        "settings": {"classes": CLASSES, "images": 1, **asdict(settings)},
        "largest_relative_difference": float(f"{difference:.2g}"),
        "load_before": before,
        "load_after": load(),
        "time_ratio": slower.record(),
        "cpu_time_ratio": paired_ratio(times["explicit"].cpu_s, times["folded"].cpu_s).record(),
        "null_ratio": null.record(),
        "peak_memory_ratio": larger.record(),
        "times": {name: _rounded(samples) for name, samples in times.items()},
        "peak_bytes": peaks,
    }
    return Section(record=record, table=_table(settings, times, peaks, slower, larger, null), is_void=not null.is_null)


QUESTIONS: Final[Mapping[str, Callable[[Settings], Section]]] = {"folded_against_explicit": folded_against_explicit}


def peak_of(variant: str, settings: Settings) -> int:
    """Peak bytes of one forward and backward; libraries are warmed up on small maps before."""
    _prepare(settings)
    device = torch.device(settings.device)
    forward_backward(variant, Inputs.random((32, 32), settings.num_groups, device))
    inputs = Inputs.random(settings.size_wh, settings.num_groups, device)
    return peak_bytes(partial(forward_backward, variant, inputs), device)


def _prepare(settings: Settings) -> None:
    torch.set_num_threads(settings.threads)
    torch.backends.cudnn.allow_tf32 = False


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.discriminator",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warm-up", type=int, default=2, help="rounds that do not count")
    parser.add_argument("--size-wh", type=_size, default=(512, 256), metavar="W,H")
    parser.add_argument("--num-groups", type=int, default=8)
    parser.add_argument("--json", type=Path, default=None)
    return parser.parse_args()


def _size(text: str) -> tuple[int, int]:
    width, height = text.split(",")
    return int(width), int(height)


def _largest_difference(inputs: Inputs) -> float:
    """Of logits and gradients, relative to the largest entry of each; ends the run if the variants disagree."""
    pairs = zip(forward_backward("folded", inputs), forward_backward("explicit", inputs), strict=True)
    difference = max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs)
    if not difference <= PARITY:
        sys.exit(f"the variants differ by {difference:.1e} of the largest entry, more than {PARITY:.0e}")
    return difference


def _rounded(times: Times) -> Record:
    return {name: [round(value, 6) for value in samples] for name, samples in asdict(times).items()}


def _table(
    settings: Settings,
    times: Mapping[str, Times],
    peaks: Mapping[str, list[int]],
    slower: Ratio,
    larger: Ratio,
    null: Ratio,
) -> Table:
    width, height = settings.size_wh
    title = f"D, forward and backward, {width}x{height}, {settings.num_groups} groups, {settings.device}"
    table = Table(title=title, title_justify="left", caption=f"null pair {null}", caption_justify="left")
    for column in ("first layer", "median ms", "of folded [95 %]", "peak MB", "of folded"):
        table.add_column(column, justify="left" if column == "first layer" else "right")
    ratios = {"folded": ("1", "1"), "explicit": (str(slower), f"{larger.median:.1f}")}
    for name, (time_ratio, memory_ratio) in ratios.items():
        milliseconds, megabytes = 1e3 * median(times[name].wall_s), median(peaks[name]) / 1e6
        table.add_row(name, f"{milliseconds:.0f}", time_ratio, f"{megabytes:.0f}", memory_ratio)
    return table


if __name__ == "__main__":
    main()
