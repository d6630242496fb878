"""What tells of work while it goes on, on stderr: a line, or a bar on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from cdga_sdk.errors import one_line

__all__ = ["Advance", "progress_bar", "tell_on_stderr"]


class Advance(Protocol):
    """Tells the bar how far the work is."""

    def __call__(self, done: int, note: str = "") -> None:
        """``done`` units are finished; ``note`` is shown behind the bar."""
        ...


def tell_on_stderr(line: str) -> None:
    """Say one line where logs go."""
    sys.stderr.write(line + "\n")


@contextmanager
def progress_bar(title: str, total: int | None, *, quiet: bool = False) -> Iterator[Advance]:
    """Show a bar while the block runs; nothing when quiet, or when stderr is not a terminal.

    Args:
        title: Shown before the bar; a file's name may hold anything, and is shown as `one_line` has it.
        total: Units of work, where known.
        quiet: Show nothing.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda done, note="": None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    bar = Progress(*columns, console=Console(stderr=True))
    task = bar.add_task(one_line(title), total=total, note="")

    def advance(done: int, note: str = "") -> None:
        bar.update(task, completed=done, note=one_line(note))

    bar.start()
    try:
        yield advance
    finally:
        with suppress(OSError):  # the terminal was closed: what ends the block is to be told instead
            bar.stop()
