"""Where this user's copies of what can be made again are kept."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

from cdga_sdk.errors import UsageError

__all__ = ["OTHER_CACHE", "user_cache"]

OTHER_CACHE: Final = "set CDGA_CACHE to a folder that you may write to"
"""What to do where this one cannot be written to."""


def user_cache() -> Path:
    """``$CDGA_CACHE`` if that is set, else ``cdga`` in the user's cache folder of this system; it may not exist yet.

    Raises:
        UsageError: The user has no home folder, as in a container that runs as a number.
    """
    if chosen := os.environ.get("CDGA_CACHE"):
        return Path(chosen)
    try:
        if sys.platform == "win32":
            return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local") / "cdga"
        if sys.platform == "darwin":
            return Path.home() / "Library/Caches/cdga"
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cdga"
    except RuntimeError as error:
        raise UsageError("no home folder to keep anything in", fix="set CDGA_CACHE to a folder") from error
