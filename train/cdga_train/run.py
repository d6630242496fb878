"""``cdga train``: from words on the command line to a run's folder."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from cdga_sdk.atomic import check_folder_name, new_run_folder
from cdga_sdk.errors import (
    CdgaError,
    InputError,
    InterruptedRunError,
    ResourceError,
    Terminated,
    UsageError,
    counted,
    one_line,
)
from cdga_sdk.progress import progress_bar
from cdga_train.config import TrainConfig, config_as_dict, load_config, load_preset
from cdga_train.data.spec import refuse_unknown, require_data
from cdga_train.manifest import MANIFEST, read_run
from cdga_train.presets import PRESETS, require_weights
from cdga_train.run_layout import LAST, PREVIOUS, find_checkpoint, has_begun

if TYPE_CHECKING:
    from cdga_train.loop import Progress
    from cdga_train.processes import Processes

__all__ = ["configure", "run_training", "trained"]

_FREE_ON_RESUME: Final = (
    "iters",
    "device",
    "workers",
    "cache_gib",
    "cache_dir",
    "log_every",
    "save_every",
    "candidates",
    "compile",
    "score",
)


def run_training(
    words: Sequence[str], flags: Sequence[str], *, resume: str | None, project: Path, name: str | None, quiet: bool
) -> Path:
    """Train and return the run's result. Overrides: first ``words`` behind the preset or file, then ``flags``.

    A run that is finished already is left as it is.

    Raises:
        UsageError: An unknown preset, key or value.
        CdgaError: As `cdga_train.rounds.train_run` does.
    """
    before = None
    if name is not None:
        check_folder_name(name)
    if resume is None:
        preset, config = configure(words, flags)
        require_weights(config)
        _require_data(config)
    else:
        _refuse_resume(resume, name, words)
        before = read_run(_folder_of(Path(resume)))
        config = load_config(before, None, [*words, *flags])
        _refuse_other_run(before, config)
    # These bring torch, which takes seconds: mistakes are told of before.
    from cdga_train.processes import process_group
    from cdga_train.rounds import is_finished

    with process_group(config.device) as processes:
        is_quiet = quiet or not processes.is_first
        if resume is None:
            folder = _new_folder(project, preset if name is None else name, processes)
        else:
            folder = _folder_of(Path(resume))
            if is_finished(config, folder):
                if not is_quiet:
                    done = f"nothing to do: iteration {config.iters} of {config.iters} is done"
                    typer.echo(one_line(f"{done} · {find_checkpoint(folder)}"), err=True)
                return find_checkpoint(folder)
        if not is_quiet:
            if resume is None and all("=" in word for word in words):
                typer.echo(f"no preset named: training {preset}, {_told(config)}", err=True)
            _note_what_is_amiss(before, config)
        with _stopped_in(folder), _gone_if_nothing_came(folder, is_new=resume is None and processes.is_first):
            result = trained(config, folder, processes, quiet=is_quiet)
    if not is_quiet:
        typer.echo(one_line(f"{_told(config)} · {result}"), err=True)
    return result


def trained(config: TrainConfig, folder: Path, processes: Processes, *, quiet: bool) -> Path:
    """`cdga_train.rounds.train_run` with a progress bar and its notes on stderr."""
    import torch

    from cdga_train.rounds import Watcher, round_folders, train_run

    iters = config.iters * config.rounds
    offsets = {f.name: number * config.iters for number, f in enumerate(round_folders(config, folder))}
    with progress_bar(folder.name, iters, quiet=quiet) as advance:

        def show(round_name: str, progress: Progress) -> None:
            advance(offsets[round_name] + progress.iteration, _losses(progress.values))

        def note(line: str) -> None:
            if not quiet:
                typer.echo(one_line(f"{folder.name}: {line}"), err=True)

        try:
            return train_run(config, folder, processes=processes, watcher=Watcher(progress=show, note=note))
        except torch.OutOfMemoryError as error:  # beside the iterations: networks made, checkpoints chosen, labels made
            fix = "free the GPU for this, or lower batch or imgsz"
            raise ResourceError("out of GPU memory", where=folder, fix=fix) from error


def configure(words: Sequence[str], flags: Sequence[str]) -> tuple[str, TrainConfig]:
    """The name and the configuration that a command line asks for; ``streets_cdga`` when it names none.

    Raises:
        UsageError: An unknown preset, key or value, or two presets.
        InputError: The configuration file cannot be read.
    """
    bases = [w for w in words if "=" not in w]
    overrides = [w for w in words if "=" in w]
    if len(bases) > 1:
        raise UsageError(f"got two presets or files: {bases[0]} and {bases[1]}", fix="name one")
    base = bases[0] if bases else "streets_cdga"
    if base in PRESETS:
        return base, load_preset(PRESETS[base](), [*overrides, *flags])
    file = Path(base)
    if file.suffix.lower() not in {".yaml", ".yml", ".toml"}:
        near = get_close_matches(base, PRESETS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"presets: {', '.join(PRESETS)}; or name a YAML or TOML file"
        raise UsageError(f"unknown preset '{base}'", fix=hint)
    if not file.is_file():
        raise InputError("no such configuration file", where=file)
    return file.stem, load_config(TrainConfig(), file, [*overrides, *flags])


def _require_data(config: TrainConfig) -> None:
    require_data(config.source, config.source_split, with_labels=True)
    if config.target is not None:
        refuse_unknown(config.target)
        if config.looks_at_target:
            require_data(config.target, config.target_split, with_labels=False)


def _refuse_resume(resume: str, name: str | None, words: Sequence[str]) -> None:
    if not resume.strip():
        raise UsageError("is an empty text", where="--resume", fix="is a variable of your shell not set?")
    if name is not None:
        raise UsageError("a run that goes on keeps its name", where="--name", fix="leave it out, or start a new run")
    bases = [word for word in words if "=" not in word]
    if bases:
        raise UsageError(f"a run that goes on has its preset, got '{bases[0]}'", where="--resume", fix="leave it out")


def _told(config: TrainConfig) -> str:
    return f"{counted(config.iters, 'iterations')} of {config.arm}"


def _folder_of(path: Path) -> Path:
    """The run's folder, given it, its ``last.safetensors``, or one of its rounds."""
    if not path.exists():
        raise InputError("no such run", where=path, fix="name the folder of a run of cdga train")
    if path.is_file() and path.name != LAST:
        fix = "name the run's folder"
        if path.name != PREVIOUS:  # that one is taken by itself where the last is damaged
            fix += f", or start a new run with weights={path}"
        raise UsageError(f"a run goes on from its {LAST} alone", where=path, fix=fix)
    inside = [path, *path.parents] if path.is_dir() else list(path.parents)
    return next((folder for folder in inside[:3] if (folder / MANIFEST).is_file()), inside[0])


def _new_folder(project: Path, name: str, processes: Processes) -> Path:
    if not processes.is_first:
        text = processes.word("")
        if not text:
            raise UsageError("the first process could not make the run's folder", where=project)
        return Path(text)
    try:
        folder = new_run_folder(project, name)
    except CdgaError:
        processes.word("")
        raise
    return Path(processes.word(str(folder)))


def _note_what_is_amiss(before: TrainConfig | None, config: TrainConfig) -> None:
    """Say at the start what would surprise at the end."""
    from cdga_train.data.spec import open_labelled

    if before is not None and before.iters != config.iters and config.optim.poly_iters is None:
        typer.echo(
            f"note: from here the learning rate follows {counted(config.iters, 'iterations')}, not {before.iters}: "
            "the result is not that of one run of this length",
            err=True,
        )
    if config.score.data is not None:
        try:
            open_labelled(config.score.data, config.score.split, config.imgsz)
        except CdgaError as error:
            typer.echo(f"note: nothing will be scored (score.data): {error}", err=True)


@contextmanager
def _stopped_in(folder: Path) -> Iterator[None]:
    """What an interruption outside the loop means: the loop itself says where it stopped."""
    try:
        yield
    except (KeyboardInterrupt, Terminated) as error:
        is_kept = folder.is_dir()
        raise InterruptedRunError(
            "stopped; what was finished is kept" if is_kept else "stopped before anything was made",
            where=folder if is_kept else None,
            fix=f"go on with: cdga train --resume {shlex.quote(str(folder))}" if is_kept else None,
            terminated=isinstance(error, Terminated),
        ) from error


@contextmanager
def _gone_if_nothing_came(folder: Path, *, is_new: bool) -> Iterator[None]:
    """Remove a new run's folder if the run ends before it has anything to go on from."""
    try:
        yield
    except BaseException:
        if is_new and not has_begun(folder):
            shutil.rmtree(folder)
        raise


def _refuse_other_run(before: TrainConfig, after: TrainConfig) -> None:
    """Hold a resumed run to its own configuration; its length and the machine's settings are free.

    Raises:
        UsageError: Something else was changed.
    """
    old, new = config_as_dict(before), config_as_dict(after)
    changed = [key for key in old if key not in _FREE_ON_RESUME and old[key] != new[key]]
    if changed:
        raise UsageError(
            f"a resumed run keeps its {', '.join(changed)}",
            where="--resume",
            fix=f"start a new run, or change only {', '.join(_FREE_ON_RESUME)}",
        )


def _losses(values: dict[str, float]) -> str:
    shown = ("seg", "ssl", "co", "orth", "adv", "cadv", "cl", "d")
    return "  ".join(f"{name} {values[name]:.3g}" for name in shown if name in values)
