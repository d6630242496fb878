"""The training loop, readable top to bottom. The only file that calls backward."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor

from cdga_sdk.errors import CdgaError, DegradedError, InterruptedRunError, ResourceError, UsageError, counted
from cdga_sdk.signals import TERMINATING, heeded
from cdga_train.checkpoint import Checkpoint, Draws, save_checkpoint, save_keeping_previous
from cdga_train.config import TrainConfig
from cdga_train.data.base import Dataset
from cdga_train.data.batches import Batch, Batches, prefetched
from cdga_train.metrics_log import MetricsLog
from cdga_train.processes import ALONE, Processes
from cdga_train.run_layout import CANDIDATES, LAST, METRICS, candidate_file
from cdga_train.state import TrainingState, choose_device
from cdga_train.step import TensorBatch, adaptation_losses, discriminator_loss, segmentation_loss

__all__ = ["Progress", "iterate", "train"]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What the loop tells while it runs: iterations done and in all, and the latest logged values."""

    iteration: int
    iters: int
    values: dict[str, float]


def train(
    config: TrainConfig,
    folder: Path,
    source: Dataset,
    target: Dataset | None = None,
    *,
    resume_from: Checkpoint | None = None,
    pseudo_labels: str | None = None,
    is_end_of_run: bool = True,
    processes: Processes = ALONE,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_note: Callable[[str], None] = lambda _: None,
) -> Path:
    """Train one round under ``config``, writing ``metrics.jsonl``, ``last.safetensors`` and candidates into ``folder``.

    The first SIGINT, SIGTERM or SIGHUP ends it after the iteration in hand, with a checkpoint.

    Args:
        config: The run; on a resume it may differ from the checkpoint's in length and machine settings.
        folder: An existing folder.
        source: Labelled samples.
        target: Samples of the target; their labels, if any, are pseudo-labels. None where the run looks at none.
        resume_from: Go on from this state.
        pseudo_labels: sha256 of the target's pseudo-labels.
        is_end_of_run: Nothing follows, so that a signal in the last iteration has nothing left to stop.
        processes: This process among those that train together; the first one writes.
        on_progress: Called after every iteration.
        on_note: Called with a line for people.

    Returns:
        The last checkpoint.

    Raises:
        InterruptedRunError: Stopped by a signal; a checkpoint was written.
        DegradedError: A loss or weight became NaN or infinite; the last good checkpoint is kept.
        CdgaError: Data cannot be read; a checkpoint was written, where one process trains.
        UsageError: ``resume_from`` drew from another number of images, or made another number of forward passes.
    """
    batches = Batches(source, target, config, processes.slots(config.accumulate))
    state = _state(config, resume_from, processes, len(source), len(target) if target else 0)
    state.pseudo_labels = pseudo_labels
    log_file = folder / METRICS if processes.is_first else None
    # prefetched() comes last: leaving the block first stops its threads, then closes the log.
    with _kernels(config), _stop_signal() as stopped_by, MetricsLog(log_file, keep_until=state.iteration) as log:
        if resume_from is None and processes.is_first:  # an earlier run may have ended before it kept a state
            shutil.rmtree(folder / CANDIDATES, ignore_errors=True)
        _keep_what_was_given(state, folder, processes)
        waited_since = time.perf_counter()
        coming = prefetched(batches.__getitem__, state.iteration, config.iters, workers=config.workers)
        for batch in _keeping(state, coming, folder, processes):
            waited_s = time.perf_counter() - waited_since
            torch.manual_seed(config.seed * 1_000_003 + state.iteration)
            values = iterate(state, batch, processes)
            log.add(values, waited_s=waited_s, lr=state.optimisers["network"].param_groups[0]["lr"])
            stopping, ending = processes.any(bool(stopped_by)), state.iteration == config.iters
            if state.iteration % config.log_every == 0 or stopping or ending:
                _refuse_nan(log.write(state.iteration, processes.average_values), state, folder / LAST)
            _save_what_is_due(state, folder, processes, is_leaving=stopping or ending)
            on_progress(Progress(iteration=state.iteration, iters=config.iters, values=log.latest))
            if stopping and not ending:
                raise _interrupted(state, folder, stopped_by)
            waited_since = time.perf_counter()
        if not is_end_of_run and processes.any(bool(stopped_by)):  # one may have come while the last state was written
            raise _interrupted(state, folder, stopped_by)
    _note_full_cache(batches, config, on_note)
    return folder / LAST


def iterate(state: TrainingState, batches: Sequence[Batch], processes: Processes = ALONE) -> dict[str, Tensor]:
    """One iteration: the gradients of its forward passes, averaged over them and the processes, then every step.

    Returns:
        The unweighted losses and what is watched beside them, by the names of the log; scalars on the device.

    Raises:
        ResourceError: The GPU's memory does not suffice.
    """
    state.set_learning_rates()
    for optimiser in state.optimisers.values():
        optimiser.zero_grad(set_to_none=True)
    values: dict[str, Tensor] = {}
    try:
        for batch in batches:
            for name, value in _backward(state, _on_device(batch, state), share=1 / len(batches)).items():
                values[name] = values.get(name, 0) + value / len(batches)
    except torch.OutOfMemoryError as error:
        raise ResourceError("out of GPU memory", where=state.device, fix="lower batch or imgsz") from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # the only sign that torch's CPU allocator gives
            raise
        raise ResourceError("out of memory", where=state.device, fix="lower batch, imgsz or num_groups") from error
    for name, optimiser in state.optimisers.items():
        parameters = list(state.networks.parts()[name].parameters())
        if any(p.grad is not None for p in parameters):  # without any, as with weights of 0, the scaler refuses to step
            processes.average_gradients(parameters)
            state.scaler.step(optimiser)
    state.scaler.update()
    state.iteration += 1
    state.average_weights()
    return values


def _backward(state: TrainingState, batch: TensorBatch, share: float) -> dict[str, Tensor]:
    """Gradients of one forward pass: G and C on the losses with D frozen, then D on detached inputs."""
    config, networks, scaler = state.config, state.networks, state.scaler
    _train_discriminator(state, is_trained=False)
    with state.autocast():
        total, source_logits = segmentation_loss(networks.network, batch)
        values = {"seg": total.detach()}
        adaptation = None
        if config.is_adapting:
            adaptation = adaptation_losses(networks, batch, source_logits, config)
            total = total + adaptation.weighted_sum()
            values |= adaptation.logged()
    scaler.scale(total * share).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped

    if adaptation is not None and networks.discriminator is not None and config.losses.adversarial:
        _train_discriminator(state, is_trained=True)
        with state.autocast():
            loss_d = discriminator_loss(networks.discriminator, adaptation.source_view, adaptation.target_view)
        scaler.scale(loss_d * share).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        num_groups = config.num_groups if config.arm == "cdga" else 1
        values["d"] = loss_d.detach() / num_groups
    return values


def _train_discriminator(state: TrainingState, *, is_trained: bool) -> None:
    if state.networks.discriminator is not None:
        state.networks.discriminator.requires_grad_(requires_grad=is_trained)


def _on_device(batch: Batch, state: TrainingState) -> TensorBatch:
    def moved(tensor: Tensor) -> Tensor:
        # From pinned memory the copy is only queued, and Python goes on to launch what follows it.
        return (tensor.pin_memory() if state.device.type == "cuda" else tensor).to(state.device, non_blocking=True)

    def images(frames_BHWC: Tensor) -> Tensor:
        image_B3HW: Tensor = state.normalise(moved(frames_BHWC))
        layout = torch.channels_last if state.config.channels_last else torch.contiguous_format
        return image_B3HW.contiguous(memory_format=layout)

    pseudo_BHW = batch.target_label_BHW
    return TensorBatch(
        source_B3HW=images(torch.from_numpy(batch.source_BHWC)),
        label_BHW=moved(torch.from_numpy(batch.label_BHW)).long(),
        target_B3HW=None if batch.target_BHWC is None else images(torch.from_numpy(batch.target_BHWC)),
        target_label_BHW=None if pseudo_BHW is None else moved(torch.from_numpy(pseudo_BHW)).long(),
    )


def _refuse_nan(values: dict[str, float], state: TrainingState, last: Path) -> None:
    bad = [name for name, value in values.items() if value != value or abs(value) == float("inf")]
    if bad or not state.is_finite():
        kept = f"the last good checkpoint is {last}" if last.is_file() else "no checkpoint had been written"
        raise DegradedError(
            f"{', '.join(bad) or 'a weight'} became NaN or infinite by iteration {state.iteration}; {kept}",
            fix="lower optim.lr or losses.class_equivalence",
        )


def _note_full_cache(batches: Batches, config: TrainConfig, on_note: Callable[[str], None]) -> None:
    if batches.is_disk_cache_full:
        on_note(f"{config.cache_dir} is full or cannot be written to: images were kept in memory only")


def _state(
    config: TrainConfig, resume_from: Checkpoint | None, processes: Processes, source_images: int, target_images: int
) -> TrainingState:
    device = choose_device(processes.device_name(config.device))
    draws = Draws(
        source_images=source_images,
        target_images=target_images,
        forward_passes=config.accumulate * processes.count,
    )
    if resume_from is None:
        state = TrainingState.new(config, device)
    elif resume_from.draws not in {None, draws}:
        raise UsageError(
            f"a resumed run draws as it began: it had {resume_from.draws}, now there are {draws}",
            where="--resume",
            fix="put the data back as they were, and keep processes x accumulate",
        )
    else:
        state = TrainingState.resumed(resume_from, config, device)
    state.draws = draws
    return state


def _interrupted(state: TrainingState, folder: Path, stopped_by: Sequence[int]) -> InterruptedRunError:
    return InterruptedRunError(
        f"stopped at iteration {state.iteration} of {state.config.iters}; checkpoint written",
        where=folder / LAST,
        fix=_how_to_go_on(state, folder),
        terminated=any(number in TERMINATING for number in stopped_by),
    )


def _how_to_go_on(state: TrainingState, folder: Path) -> str:
    run_folder = folder if state.config.rounds == 1 else folder.parent
    return f"go on with: cdga train --resume {shlex.quote(str(run_folder))}"


def _keeping(
    state: TrainingState, coming: Iterator[Sequence[Batch]], folder: Path, processes: Processes
) -> Iterator[Sequence[Batch]]:
    """What is coming; where it cannot be read, the iterations done are written first, to go on from once it is mended.

    Not where several processes train: those whose data are well would wait for this one in vain.
    """
    began = state.iteration
    try:
        yield from coming
    except CdgaError as error:
        if processes.count == 1 and state.iteration > began and state.is_finite():
            save_keeping_previous(folder, state.checkpoint())
            kept = f"the first {counted(state.iteration, 'iterations')} are kept"
            held = "with the file mended in its place, for a run draws from as many images as it began with"
            error.told_with(f"{kept}: {held}, {_how_to_go_on(state, folder)}")
        raise


def _keep_what_was_given(state: TrainingState, folder: Path, processes: Processes) -> None:
    """Weights of a whole network are a candidate too: the choice may prefer them, and a study scores them."""
    if state.starts_whole and state.config.candidates > 1 and processes.is_first:
        save_checkpoint(candidate_file(folder, 0), state.candidate())


def _save_what_is_due(state: TrainingState, folder: Path, processes: Processes, *, is_leaving: bool) -> None:
    """Write the whole state every so often and at the end, and the network alone where it is a candidate."""
    is_candidate = state.iteration in state.config.candidate_iterations()
    is_due = is_leaving or state.iteration % state.config.save_every == 0
    if not (is_candidate or is_due):
        return
    processes.average_buffers(state.modules().values())
    _refuse_nan({}, state, folder / LAST)
    if is_candidate and processes.is_first:
        save_checkpoint(candidate_file(folder, state.iteration), state.candidate())
    if is_due and processes.is_first:
        save_keeping_previous(folder, state.checkpoint())


@contextmanager
def _kernels(config: TrainConfig) -> Iterator[None]:
    """Kernels that give the same bits each time, where asked for; else the fastest that cuDNN finds.

    fp32 means fp32: TF32, which rounds a convolution's inputs to 10 bits, is for the half precisions' leftovers alone.
    """
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), cudnn.benchmark, cudnn.allow_tf32
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses to be deterministic
    torch.use_deterministic_algorithms(config.deterministic)
    cudnn.benchmark, cudnn.allow_tf32 = not config.deterministic, config.precision != "fp32"
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        _, cudnn.benchmark, cudnn.allow_tf32 = before


@contextmanager
def _stop_signal() -> Iterator[list[int]]:
    """Collect the first SIGINT, SIGTERM or SIGHUP instead of dying of it; a second one acts as usual."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.getsignal(number) for number in heeded((signal.SIGINT, *TERMINATING))}

    def receive(number: int, _: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, receive)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
