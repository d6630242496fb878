"""A whole run: round 1, the choice among its checkpoints, pseudo-labels, round 2; resumes from what its folder holds.

::

    RUN/run.json             what was asked for
    RUN/metrics.jsonl        the log; last.safetensors, previous.safetensors; checkpoints/; selection.json
    RUN/report.html          by cdga report

With two rounds the second line's files lie in RUN/round1 and RUN/round2, and RUN/pseudo_labels between them. Each phase
leaves something that exists only when it is complete, so a run that was killed in any of them is simply started again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import filelock

from cdga_sdk.atomic import error_from_os
from cdga_sdk.errors import ModelError, UsageError, counted
from cdga_sdk.hashes import file_sha256
from cdga_sdk.machine import this_machine
from cdga_train.checkpoint import Checkpoint, load_checkpoint, load_newest, put_previous_back
from cdga_train.config import TrainConfig
from cdga_train.data.base import Dataset
from cdga_train.data.paired_files import PairedFiles
from cdga_train.data.pseudo import COLLAPSED_SHARE, PseudoLabelled
from cdga_train.data.spec import open_labelled, open_unlabelled
from cdga_train.data.translated import TranslatedFiles
from cdga_train.loop import Progress, train
from cdga_train.manifest import refuse_other_weights, write_manifest
from cdga_train.models.fused import FusedNetwork
from cdga_train.processes import ALONE, Processes
from cdga_train.pseudo_labels import LabelSource, write_pseudo_labels
from cdga_train.run_layout import LAST, ROUNDS, SELECTION, find_checkpoint
from cdga_train.selection import find_candidates, read_selection, score_candidates, write_selection
from cdga_train.state import build_network, choose_device, refuse_sizes

__all__ = ["PSEUDO_LABELS", "Watcher", "is_finished", "locked", "round_folders", "train_run"]

PSEUDO_LABELS: Final = "pseudo_labels"


@dataclass(frozen=True, kw_only=True)
class Watcher:
    """Who is told what a run does.

    Attributes:
        progress: Called after every iteration, with the name of the round.
        note: Called with a line for people.
    """

    progress: Callable[[str, Progress], None] = lambda _name, _progress: None
    note: Callable[[str], None] = lambda _line: None


@dataclass(frozen=True, kw_only=True)
class _Run:
    config: TrainConfig
    folder: Path
    processes: Processes
    watcher: Watcher
    source: Dataset
    target: Dataset | None


def round_folders(config: TrainConfig, folder: Path) -> tuple[Path, ...]:
    """Where each round of a run keeps its files."""
    return (folder,) if config.rounds == 1 else tuple(folder / name for name in ROUNDS)


def is_finished(config: TrainConfig, folder: Path) -> bool:
    """Whether the last round of the run in ``folder`` is trained to its end and its checkpoint chosen."""
    last_round = round_folders(config, folder)[-1]
    checkpoint = load_newest(last_round)
    is_trained = checkpoint is not None and checkpoint.iteration >= config.iters
    return is_trained and (not _is_choosing(config) or read_selection(last_round / SELECTION) is not None)


def train_run(
    config: TrainConfig, folder: Path, *, processes: Processes = ALONE, watcher: Watcher | None = None
) -> Path:
    """Train all rounds of ``config`` in ``folder``, going on from what an earlier call left there.

    Args:
        config: The run; beside the run's length and the machine's settings it must be the earlier call's.
        folder: An existing folder.
        processes: This process among those that train together.
        watcher: Who is told.

    Returns:
        The checkpoint that the run ends with: the one chosen without labels, else the last.

    Raises:
        UsageError: Another process trains in ``folder``, or the arm needs a target.
        CdgaError: As `cdga_train.loop.train`, `write_pseudo_labels` and `score_candidates` do.
    """
    config.require_target()
    watcher = watcher or Watcher()
    with _alone_in(folder, processes):
        _refuse_before_data(config, processes, watcher.note)
        run = _Run(
            config=config,
            folder=folder,
            processes=processes,
            watcher=watcher,
            source=_open_source(config),
            target=_open_target(config),
        )
        if (folder / PSEUDO_LABELS).is_dir():
            _refuse_longer_round(config, folder / ROUNDS[0])
        if processes.is_first and not is_finished(config, folder):  # now that nothing is left to be refused
            write_manifest(folder, config)
        first, *second = round_folders(config, folder)
        _round(run, first, run.target)
        if second:
            assert run.target is not None
            labels = _pseudo_labels(run, first, folder / PSEUDO_LABELS)
            _round(run, second[0], labels, pseudo_labels=labels.sha256)
    return find_checkpoint(folder)


def _refuse_before_data(config: TrainConfig, processes: Processes, on_note: Callable[[str], None]) -> None:
    """Opening the data may take minutes: a video is decoded."""
    refuse_sizes(config)
    device = choose_device(processes.device_name(config.device))
    if device.type == "cpu" and config.precision == "fp16":
        raise UsageError(
            "fp16 is for GPUs: on a CPU an iteration can take minutes",
            where="precision",
            fix="use precision=fp32, or device=cuda",
        )
    if device.type == "cpu" and config.precision == "bf16":
        known = this_machine().instruction_sets
        if known is not None and not any("BF16" in name for name in known):
            on_note("this CPU has no instructions for bf16, which will be slow: precision=fp32 is faster here")


def _round(run: _Run, folder: Path, target: Dataset | None, *, pseudo_labels: str | None = None) -> None:
    folder.mkdir(exist_ok=True)
    checkpoint = _newest(run, folder)
    _refuse_other_labels(checkpoint, pseudo_labels, folder)
    if checkpoint is None:
        refuse_other_weights(run.folder, run.config)
    if checkpoint is None or checkpoint.iteration < run.config.iters:
        (folder / SELECTION).unlink(missing_ok=True)
        train(
            run.config,
            folder,
            run.source,
            target,
            resume_from=checkpoint,
            pseudo_labels=pseudo_labels,
            is_end_of_run=not _is_choosing(run.config) and (run.config.rounds == 1 or pseudo_labels is not None),
            processes=run.processes,
            on_progress=lambda progress: run.watcher.progress(folder.name, progress),
            on_note=run.watcher.note,
        )
    if _is_choosing(run.config) and read_selection(folder / SELECTION) is None:
        _choose(run, folder)
    run.processes.wait()


def _newest(run: _Run, folder: Path) -> Checkpoint | None:
    damage: list[str] = []
    checkpoint = load_newest(folder, damage.append)
    run.processes.wait()  # until all have read
    if damage and run.processes.is_first:
        run.watcher.note(damage[0])
        put_previous_back(folder)
    return checkpoint


def _is_choosing(config: TrainConfig) -> bool:
    return config.is_adapting and config.candidates > 1


def _choose(run: _Run, folder: Path) -> None:
    if not run.processes.is_first:
        return
    assert run.target is not None
    files = find_candidates(folder)
    run.watcher.note(f"choosing among {counted(len(files), 'checkpoints')} without labels")
    device = choose_device(run.processes.device_name(run.config.device))
    scores = score_candidates(files, run.target, device=device)
    chosen = write_selection(folder / SELECTION, scores)
    is_last_round = run.config.rounds == 1 or folder.name == ROUNDS[-1]
    run.watcher.note(_told(chosen.iteration, run.config, is_last_round=is_last_round))


def _told(iteration: int, config: TrainConfig, *, is_last_round: bool) -> str:
    if iteration > 0:
        return f"chosen without labels: iteration {iteration} of {config.iters}"
    if is_last_round:
        return f"no proof without labels that adaptation helped: the weights given are kept; {LAST} is the run's end"
    return "chosen without labels: the weights given; they label the target for the next round"


def _pseudo_labels(run: _Run, round_folder: Path, folder: Path) -> PseudoLabelled:
    assert run.target is not None
    if run.processes.is_first and not folder.is_dir():
        run.watcher.note(f"labelling {counted(len(run.target), 'target images')}")
        file = find_checkpoint(round_folder)
        checkpoint = load_checkpoint(file)
        device = choose_device(run.processes.device_name(run.config.device))
        fused = FusedNetwork(build_network(checkpoint), checkpoint.preprocess).to(device)
        made_by = LabelSource(checkpoint_sha256=file_sha256(file), iteration=checkpoint.iteration)
        stats = write_pseudo_labels(fused, run.target, folder, source=made_by)
        run.watcher.note(f"pseudo-labels keep {100 * stats.kept_in_all:.1f} % of the pixels")
        name, share = max(stats.predicted.items(), key=lambda item: item[1])
        if share > COLLAPSED_SHARE:
            run.watcher.note(f"round 1 sees '{name}' in {100 * share:.1f} % of the pixels: it has collapsed")
    run.processes.wait()
    return PseudoLabelled(run.target, folder)


def _refuse_longer_round(config: TrainConfig, first: Path) -> None:
    checkpoint = load_newest(first)
    if checkpoint is not None and checkpoint.iteration < config.iters:
        raise UsageError(
            f"round 2's labels were made after {counted(checkpoint.iteration, 'iterations')} of round 1, "
            f"got iters={config.iters}",
            where=first.parent,
            fix=f"resume with iters={checkpoint.iteration}, or start a new run",
        )


def _refuse_other_labels(checkpoint: Checkpoint | None, pseudo_labels: str | None, folder: Path) -> None:
    if checkpoint is not None and checkpoint.pseudo_labels != pseudo_labels:
        raise ModelError(
            "the checkpoint was trained on other pseudo-labels than those in the run's folder",
            where=folder / LAST,
            fix="start a new run, or put the run's own pseudo_labels back",
        )


def _open_source(config: TrainConfig) -> Dataset:
    source = open_labelled(config.source, config.source_split, config.source_size)
    if config.translated is None:
        return source
    if not isinstance(source, PairedFiles):
        raise UsageError(f"'{config.source}' is not made of image files", where="translated")
    return TranslatedFiles(source, Path(config.translated))


def _open_target(config: TrainConfig) -> Dataset | None:
    """The target, where the run looks at it at all."""
    if config.target is None or not config.looks_at_target:
        return None
    return open_unlabelled(config.target, config.target_split, config.imgsz)


@contextmanager
def _alone_in(folder: Path, processes: Processes) -> Iterator[None]:
    """Keep other runs out of ``folder``, and clear away what a killed one left half written."""
    if not processes.is_first:
        yield
        return
    with locked(folder):
        for leftover in _leftovers(folder):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        yield


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes that train out of ``folder``.

    Raises:
        UsageError: One is there, or the folder cannot be written to.
    """
    try:
        lock = filelock.FileLock(folder / ".lock").acquire(timeout=0)
    except filelock.Timeout as error:
        raise UsageError(
            "another process trains in this folder", where=folder, fix="wait until it ends, or stop it first"
        ) from error
    except OSError as error:
        raise error_from_os(error, folder) from error
    with lock:
        yield


def _leftovers(folder: Path) -> list[Path]:
    """The temporary names of `cdga_sdk.atomic`: a dot, the final name, a dot, and a random end."""
    names = ("last.safetensors", SELECTION, "metrics.jsonl", "run.json", PSEUDO_LABELS, "[0-9]*.safetensors")
    return [path for name in names for path in sorted(folder.rglob(f".{name}.*"))]
