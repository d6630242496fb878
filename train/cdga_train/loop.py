"""The training loop, readable top to bottom. The only file that calls backward."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

import torch

from cdga_sdk.errors import DegradedError, InterruptedRunError, ResourceError
from cdga_train.checkpoint import LAST, Checkpoint, save_checkpoint
from cdga_train.config import TrainConfig
from cdga_train.data.base import Dataset
from cdga_train.data.batches import Batch, Batches, prefetched
from cdga_train.data.spec import open_labelled, open_unlabelled
from cdga_train.metrics_log import MetricsLog
from cdga_train.models.fused import normalise
from cdga_train.state import TrainingState, choose_device
from cdga_train.step import TensorBatch, adaptation_losses, discriminator_loss, segmentation_loss

__all__ = ["METRICS", "Progress", "train"]

METRICS: Final = "metrics.jsonl"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What the loop tells while it runs: iterations done and in all, and the latest logged values."""

    iteration: int
    iters: int
    values: dict[str, float]


def train(
    config: TrainConfig,
    folder: Path,
    *,
    resume_from: Checkpoint | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Path:
    """Train under ``config``, writing ``metrics.jsonl`` and ``last.safetensors`` into ``folder``.

    The first SIGINT or SIGTERM ends the run after the iteration in hand, with a checkpoint.

    Args:
        config: The run; on a resume it may differ from the checkpoint's in length and machine settings.
        folder: An existing folder.
        resume_from: Go on from this state.
        on_progress: Called after every iteration.

    Returns:
        The last checkpoint.

    Raises:
        InterruptedRunError: Stopped by a signal; a checkpoint was written.
        DegradedError: A loss or weight became NaN or infinite; the last good checkpoint is kept.
        InputError: Data cannot be read.
    """
    device = choose_device(config.device)
    state = TrainingState.resumed(resume_from, config, device) if resume_from else TrainingState.new(config, device)
    source = open_labelled(config.source, config.source_split, config.imgsz)
    target = _open_target(config)
    batches = Batches(source, target, config)
    last = folder / LAST
    # prefetched() comes last: leaving the block first stops its threads, then closes the log.
    with _stop_signal() as stopped_by, MetricsLog(folder / METRICS, keep_until=state.iteration) as log:
        waited_since = time.perf_counter()
        for batch in prefetched(batches.__getitem__, state.iteration, config.iters, workers=config.workers):
            waited_s = time.perf_counter() - waited_since
            torch.manual_seed(config.seed * 1_000_003 + state.iteration)
            try:
                values = _iterate(state, _on_device(batch, state, device))
            except torch.OutOfMemoryError as error:
                raise ResourceError("out of GPU memory", where=device, fix="lower batch or imgsz") from error
            log.add(values, waited_s=waited_s, lr=state.optimisers["network"].param_groups[0]["lr"])
            stopping, ending = bool(stopped_by), state.iteration == config.iters
            if state.iteration % config.log_every == 0 or stopping or ending:
                _refuse_nan(log.write(state.iteration), state, last)
            if state.iteration % config.save_every == 0 or stopping or ending:
                _save(state, last)
            on_progress(Progress(iteration=state.iteration, iters=config.iters, values=log.latest))
            if stopping and not ending:
                raise InterruptedRunError(
                    f"stopped at iteration {state.iteration} of {config.iters}; checkpoint written",
                    where=last,
                    fix=f"go on with: cdga train --resume {folder}",
                    terminated=stopped_by[0] == signal.SIGTERM,
                )
            waited_since = time.perf_counter()
    return last


def _iterate(state: TrainingState, batch: TensorBatch) -> dict[str, torch.Tensor]:
    """One iteration: G and C on the losses with D frozen, then D on detached inputs (cdga.md, Kim et al. 2021)."""
    networks, optimisers = state.networks, state.optimisers
    state.set_learning_rates()
    for optimiser in optimisers.values():
        optimiser.zero_grad(set_to_none=True)
    values: dict[str, torch.Tensor] = {}

    networks.discriminator.requires_grad_(requires_grad=False)
    loss_seg, source_logits_BChw = segmentation_loss(networks.network, batch)
    total = loss_seg
    values["seg"] = loss_seg.detach()
    if state.config.arm == "cdga":
        adaptation = adaptation_losses(networks, batch, source_logits_BChw, state.config)
        total = total + adaptation.weighted_sum()
        values |= adaptation.watched()
    total.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped

    if state.config.arm == "cdga":
        networks.discriminator.requires_grad_(requires_grad=True)
        loss_d = discriminator_loss(networks.discriminator, adaptation.source.detached(), adaptation.target.detached())
        loss_d.backward()  # type: ignore[no-untyped-call]  # as above
        values["d"] = loss_d.detach() / state.config.num_groups
    for optimiser in optimisers.values():
        optimiser.step()
    state.iteration += 1
    return values


def _open_target(config: TrainConfig) -> Dataset | None:
    """The target, where the run looks at it at all: its images, or (FDA) only their amplitude."""
    config.require_target()
    if config.target is None or (config.arm == "source_only" and config.translate == "none"):
        return None
    return open_unlabelled(config.target, config.target_split, config.imgsz)


def _on_device(batch: Batch, state: TrainingState, device: torch.device) -> TensorBatch:
    def images(frames_BHWC: torch.Tensor) -> torch.Tensor:
        return normalise(frames_BHWC.to(device, non_blocking=True), state.preprocess)

    return TensorBatch(
        source_B3HW=images(torch.from_numpy(batch.source_BHWC)),
        label_BHW=torch.from_numpy(batch.label_BHW).to(device, non_blocking=True).long(),
        target_B3HW=None if batch.target_BHWC is None else images(torch.from_numpy(batch.target_BHWC)),
    )


def _refuse_nan(values: dict[str, float], state: TrainingState, last: Path) -> None:
    bad = [name for name, value in values.items() if value != value or abs(value) == float("inf")]
    if bad or not state.is_finite():
        kept = f"the last good checkpoint is {last}" if last.is_file() else "no checkpoint had been written"
        raise DegradedError(
            f"{', '.join(bad) or 'a weight'} became NaN or infinite by iteration {state.iteration}; {kept}",
            fix="lower optim.lr or losses.class_equivalence",
        )


def _save(state: TrainingState, last: Path) -> None:
    _refuse_nan({}, state, last)
    save_checkpoint(last, state.checkpoint())


@contextmanager
def _stop_signal() -> Iterator[list[int]]:
    """Collect the first SIGINT or SIGTERM instead of dying of it; a second one acts as usual."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def receive(number: int, _: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, receive)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
