"""The signals that ask a command to end."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from typing import Final

__all__ = ["TERMINATING", "heeded"]

TERMINATING: Final = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Ctrl-C apart: the second comes when a terminal is closed, and not every platform has it."""


def heeded(numbers: Iterable[int]) -> list[int]:
    """Those that are not ignored: what ``nohup`` or a shell's ``&`` makes a process ignore stays so."""
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
