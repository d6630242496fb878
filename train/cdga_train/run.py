"""``cdga train``: from words on the command line to a run's folder."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import json
import platform
import shutil
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import typer

from cdga_sdk import __version__
from cdga_sdk.atomic import new_run_folder, write_text
from cdga_sdk.errors import InputError, UsageError
from cdga_sdk.progress import progress_bar
from cdga_train.config import TrainConfig, config_as_dict, load_config
from cdga_train.presets import PRESETS

__all__ = ["configure", "run_training"]

_FREE_ON_RESUME = ("iters", "device", "workers", "cache_gib", "log_every", "save_every")


def run_training(
    words: Sequence[str], flags: Sequence[str], *, resume: str | None, project: Path, name: str | None, quiet: bool
) -> Path:
    """Train and return the last checkpoint. Overrides: first ``words`` behind the preset or file, then ``flags``.

    Raises:
        UsageError: An unknown preset, key or value.
        CdgaError: As `cdga_train.loop.train` does.
    """
    from cdga_train.checkpoint import find_checkpoint, load_checkpoint
    from cdga_train.loop import METRICS, Progress, train

    checkpoint = load_checkpoint(resume) if resume is not None else None
    if checkpoint is None:
        preset, config = configure(words, flags)
        folder = new_run_folder(project, name or preset)
        write_text(folder / "run.json", json.dumps(_manifest(config), indent=1) + "\n")
    else:
        config = load_config(checkpoint.config, None, [*words, *flags])
        folder = find_checkpoint(Path(resume or "")).parent
        _refuse_other_run(checkpoint.config, config)
        if checkpoint.iteration >= config.iters:
            raise UsageError(
                f"nothing to do: {checkpoint.iteration} of {config.iters} iterations are done", where=resume
            )
    with progress_bar(folder.name, config.iters, quiet=quiet) as advance:

        def show(progress: Progress) -> None:
            advance(progress.iteration, _losses(progress.values))

        try:
            last = train(config, folder, resume_from=checkpoint, on_progress=show)
        except BaseException:
            log = folder / METRICS
            if checkpoint is None and not (log.is_file() and log.stat().st_size):  # ended before its first line
                shutil.rmtree(folder)
            raise
    if not quiet:
        typer.echo(f"{config.iters} iterations of {config.arm} · {last}", err=True)
    return last


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
        return base, load_config(PRESETS[base](), None, [*overrides, *flags])
    file = Path(base)
    if file.suffix.lower() not in {".yaml", ".yml", ".toml"}:
        near = get_close_matches(base, PRESETS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"presets: {', '.join(PRESETS)}; or name a YAML or TOML file"
        raise UsageError(f"unknown preset '{base}'", fix=hint)
    if not file.is_file():
        raise InputError("no such configuration file", where=file)
    return file.stem, load_config(TrainConfig(), file, [*overrides, *flags])


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
    shown = ("seg", "co", "orth", "cadv", "cl", "d")
    return "  ".join(f"{name} {values[name]:.3g}" for name in shown if name in values)


def _manifest(config: TrainConfig) -> dict[str, object]:
    """What made a run: configuration, versions, machine, time."""
    packages = ("torch", "torchvision", "timm", "numpy", "opencv-python")
    return {
        "config": config_as_dict(config),
        "cdga_sdk": __version__,
        "packages": {p: importlib.metadata.version(p) for p in packages if _installed(p)},
        "python": platform.python_version(),
        "machine": platform.platform(),
        "started": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    }


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
