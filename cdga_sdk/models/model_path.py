"""What a user calls a model, as the path of a bundle or a checkpoint."""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path

from cdga_sdk.errors import InputError, UsageError
from cdga_sdk.models.catalogue import DEFAULT, NAMED, default_bundle

__all__ = ["model_path"]


def model_path(model: str | Path, *, offline: bool = False, taken: str = "a bundle") -> Path:
    """Where a model lies; one that has a name is fetched and converted if it is not here yet.

    Args:
        model: A name of the catalogue (``./NAME`` is a folder that is called so) or, like every `Path`, a path.
        offline: Never ask the network; ``CDGA_OFFLINE=1`` says so too.
        taken: What a path may be of, for the error.

    Raises:
        InputError: No such name, this installation has no default model, or a file cannot be had.
        UsageError: Neither a name nor a path.
        CdgaError: As `cdga_sdk.models.kept.kept_bundle` does.
    """
    if isinstance(model, os.PathLike):
        return Path(model)
    if not isinstance(model, str) or not model:
        fix = "is a variable of the environment not set? without a model the default one is taken"
        raise UsageError(f"model is {model!r}, wanted a name or the path of {taken}", fix=fix)
    if model == DEFAULT:
        return _default()
    if model in NAMED:
        from cdga_sdk.models.kept import kept_bundle  # brings HTTP and TLS, which nobody else needs at every start

        return kept_bundle(NAMED[model], offline=offline or os.environ.get("CDGA_OFFLINE", "0") not in {"", "0"})
    path = Path(model)
    if path.name == model and not path.suffix and not os.path.lexists(path):
        names = (DEFAULT, *NAMED)
        near = get_close_matches(model.lower(), names, n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"models by name are {', '.join(names)};"
        raise InputError("no such model", where=model, fix=f"{hint} the path of {taken} is taken too")
    return path


def _default() -> Path:
    path = default_bundle()
    if not path.is_dir():
        raise InputError(
            "this installation has no default model",
            where=path,
            fix=f"give --model model.cdga or a name ({', '.join(NAMED)}), or install the whole package again",
        )
    return path
