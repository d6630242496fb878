"""The progress bar, on a real terminal and away from one."""

from __future__ import annotations

import os
import pty
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from cdga_sdk.progress import progress_bar


@contextmanager
def terminal() -> Iterator[Callable[[], str]]:
    """A pseudo-terminal as stderr; yields what tells the text that came out so far."""
    reader, writer = pty.openpty()
    with os.fdopen(writer, "w") as stream, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        patch.setenv("TERM", "xterm")

        def shown() -> str:
            stream.write("<end>")
            stream.flush()
            text = ""
            while "<end>" not in text:
                text += os.read(reader, 10_000).decode()
            return text.removesuffix("<end>")

        yield shown
    os.close(reader)


def test_on_a_terminal() -> None:
    with terminal() as shown:
        with progress_bar("ride", 4) as advance:
            advance(1)
            advance(4, "loss 0.5")
        text = shown()
    assert "ride" in text
    assert "4/4" in text
    assert "loss 0.5" in text


def test_unknown_length() -> None:
    with terminal() as shown:
        with progress_bar("ride", None) as advance:
            advance(7)
        assert "7/?" in shown()


def test_names_are_no_markup() -> None:
    with terminal() as shown:
        with progress_bar("[/day] ride", 2) as advance:
            advance(2, "[/note]")
        text = shown()
    assert "[/day] ride" in text
    assert "[/note]" in text


def test_names_cannot_speak_to_the_terminal() -> None:
    with terminal() as shown:
        with progress_bar("a\x1b]0;b\x07\nc", 2) as advance:
            advance(2, "d\x1b[2Je")
        text = shown()
    assert "a ]0;b c" in text
    assert "d [2Je" in text
    assert not any(code in text for code in ("\x1b]", "\x1b[2J", "\x07"))


def test_quiet_on_a_terminal() -> None:
    with terminal() as shown:
        with progress_bar("ride", 4, quiet=True) as advance:
            advance(4)
        assert shown() == ""


def test_away_from_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("ride", 4) as advance:
        advance(1)
        advance(2, "note")
    assert capsys.readouterr() == ("", "")
