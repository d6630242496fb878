"""Where ``cdga`` begins: ahead of the imports of the command line, which take long enough to be interrupted."""

from __future__ import annotations

import os
import signal
from types import FrameType

__all__ = ["main"]


def main() -> None:
    """Entry point of ``cdga``: Ctrl-C while it loads is exit code 130; the rest is `cdga_sdk.cli.main`'s."""
    # No exception: a library that is being imported may take it for a failure of its own. Nothing is made by then.
    is_usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_usual:
        signal.signal(signal.SIGINT, _leave_at_once)
    from cdga_sdk import cli

    if is_usual:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    cli.main()


def _leave_at_once(number: int, frame: FrameType | None) -> None:
    os._exit(130)
