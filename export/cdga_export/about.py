"""``cdga export --about FILE.toml``: what a bundle is to say of itself beside what the export measures."""

from __future__ import annotations

import tomllib
from pathlib import Path

from pydantic import ValidationError

from cdga_sdk.bundle import About
from cdga_sdk.errors import InputError, UsageError

__all__ = ["read_about"]


def read_about(path: Path) -> About:
    """Read a TOML file with the keys of `About`.

    Raises:
        InputError: It cannot be read.
        UsageError: It is no TOML, lacks a key, or has one that is not known.
    """
    try:
        return About.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(f"cannot read ({error.strerror})", where=path) from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UsageError(
            f"key '{key}': {first['msg']}", where=path, fix=f"the keys are {', '.join(About.model_fields)}"
        ) from error
    except ValueError as error:  # of TOML, and of UTF-8
        raise UsageError(f"not a TOML file ({error})", where=path) from error
