"""``run.json``: what makes a run: its configuration, versions, machine and times."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any, Final

from cdga_sdk import __version__
from cdga_sdk.atomic import write_text
from cdga_sdk.errors import InputError, ModelError, UsageError
from cdga_sdk.hashes import file_sha256
from cdga_train.config import IMAGENET, TrainConfig, config_as_dict, config_from_dict
from cdga_train.run_layout import DAMAGE, find_checkpoint

__all__ = ["MANIFEST", "read_run", "refuse_other_weights", "write_manifest"]

MANIFEST: Final = "run.json"


def read_run(folder: Path) -> TrainConfig:
    """The configuration of the run in ``folder``.

    Raises:
        InputError: There is no run.
        ModelError: Its description is damaged, or of another version.
    """
    file = folder / MANIFEST
    if not file.is_file():
        raise InputError(f"no {MANIFEST} in this folder", where=folder, fix="name the folder of a run of cdga train")
    try:
        return config_from_dict(json.loads(file.read_text(encoding="utf-8"))["config"])
    except DAMAGE as error:
        raise ModelError(
            "the run's description is damaged",
            where=file,
            fix=f"its checkpoints can be exported and evaluated all the same; train on with weights={folder}",
        ) from error
    except UsageError as error:
        raise ModelError(
            f"its configuration is not one of this version ({error})",
            where=file,
            fix="use the version that wrote it, or train again",
        ) from error


def write_manifest(folder: Path, config: TrainConfig) -> None:
    """Write ``run.json``; of a run that goes on it keeps the start, and adds when and under what it was resumed."""
    packages = ("torch", "torchvision", "timm", "numpy", "opencv-python")
    now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    before = _before(folder / MANIFEST)
    manifest = {
        "config": config_as_dict(config),
        "cdga_sdk": __version__,
        "packages": {p: importlib.metadata.version(p) for p in packages if _installed(p)},
        "python": platform.python_version(),
        "machine": platform.platform(),
        "weights_sha256": before.get("weights_sha256") if before else _sha256_of(config.weights),
        "started": before.get("started", now),
        "resumed": [*before.get("resumed", []), {"at": now, "iters_before": before["config"]["iters"]}]
        if before
        else [],
    }
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def refuse_other_weights(folder: Path, config: TrainConfig) -> None:
    """Hold a round that begins to the weights that the run in ``folder`` began with: the file may have changed since.

    Raises:
        ModelError: They are others.
        InputError: They are gone.
    """
    began_with = _before(folder / MANIFEST).get("weights_sha256")
    if began_with is not None and _sha256_of(config.weights) != began_with:
        raise ModelError(
            "not the weights that the run began with: they were changed since",
            where=config.weights,
            fix="put those back, or start a new run",
        )


def _sha256_of(weights: str | None) -> str | None:
    """Of the file that the run begins with: which one a run's folder stands for may change."""
    if weights is None or weights == IMAGENET:
        return None
    return file_sha256(find_checkpoint(Path(weights)))


def _before(file: Path) -> dict[str, Any]:
    """What an earlier call wrote; nothing where it cannot be told."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        return record if isinstance(record["config"]["iters"], int) else {}
    except DAMAGE:
        return {}


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
