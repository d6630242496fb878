"""Where this user's copies of what can be made again are kept."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["user_cache"]


def user_cache() -> Path:
    """``$CDGA_CACHE`` if that is set, else ``cdga`` in the user's cache folder of this system; it may not exist yet."""
    if chosen := os.environ.get("CDGA_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local") / "cdga"
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/cdga"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cdga"
