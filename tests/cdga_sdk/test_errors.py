"""Exit codes, and the one line that each error is."""

from __future__ import annotations

import pickle

import pytest

from cdga_sdk import errors
from cdga_sdk.errors import (
    CdgaError,
    InputError,
    InterruptedRunError,
    MissingExtraError,
    Terminated,
    UsageError,
    counted,
    did_you_mean,
    one_line,
)

EXIT_CODES = {
    "CdgaError": (1, "E-BUG"),
    "UsageError": (2, "E-USAGE"),
    "MissingExtraError": (2, "E-EXTRA"),
    "InputError": (3, "E-INPUT"),
    "DegradedError": (4, "E-DEGRADED"),
    "ModelError": (5, "E-MODEL"),
    "IntegrityError": (5, "E-INTEGRITY"),
    "ResourceError": (6, "E-RESOURCE"),
    "GateError": (7, "E-GATE"),
    "InterruptedRunError": (130, "E-INTERRUPTED"),
}
PARENTS = {"MissingExtraError": "UsageError", "IntegrityError": "ModelError", "CdgaError": "Exception"}


def test_every_public_error_owns_its_exit_code() -> None:
    public = set(errors.__all__) - {"Terminated", "counted", "did_you_mean", "one_line"}
    assert public == EXIT_CODES.keys()
    for name, (exit_code, code) in EXIT_CODES.items():
        kind = getattr(errors, name)
        assert (kind.exit_code, kind.code) == (exit_code, code), name
        assert kind.__bases__[0].__name__ == PARENTS.get(name, "CdgaError")


def test_termination_has_a_code_of_its_own() -> None:
    assert InterruptedRunError("stopped").exit_code == 130
    assert InterruptedRunError("stopped", terminated=True).exit_code == 143
    assert InterruptedRunError.exit_code == 130


@pytest.mark.parametrize(
    "error",
    [
        *(getattr(errors, name)("found\nx", where="a", fix="do") for name in EXIT_CODES if name != "MissingExtraError"),
        MissingExtraError("torch", "train"),
        MissingExtraError("torch", "train").told_after("x is converted", "place"),
        InterruptedRunError("stopped", terminated=True),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_come_whole_from_another_process(error: CdgaError) -> None:
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert vars(back) == vars(error)
    assert back.exit_code == error.exit_code


def test_termination_is_nothing_that_a_handler_of_failures_takes() -> None:
    assert not issubclass(Terminated, Exception)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("file is empty"), "file is empty"),
        (InputError("file is empty", where="a.png"), "a.png: file is empty"),
        (InputError("file is empty", fix="copy it again"), "file is empty; copy it again"),
        (UsageError("bad", where="--conf", fix="use 0 to 1"), "--conf: bad; use 0 to 1"),
        (MissingExtraError("torch", "train"), "'torch' is needed here; pip install 'cdga-sdk[train]'"),
    ],
)
def test_what_where_and_what_to_do(error: CdgaError, line: str) -> None:
    assert str(error) == line


def test_parts_stay_readable() -> None:
    error = InputError("two\nlines", where="a\tb", fix=" x  y ")
    assert (error.what, error.where, error.fix) == ("two lines", "a b", "x y")
    assert (InputError("x").where, InputError("x").fix) == (None, None)


def test_one_line_folds_what_a_terminal_would_obey() -> None:
    assert one_line("a\r\nb\x1b[31mc\x00d\u2028e\u202ef") == "a b [31mc d e f"
    assert one_line("Straße 東京 °") == "Straße 東京 °"
    assert one_line(13) == "13"
    assert one_line("\udcff.mp4") == ".mp4"


def test_one_is_singular() -> None:
    told = [counted(n, what) for n, what in ((0, "frames"), (1, "frames"), (2, "frames"), (1, "dropped"))]
    assert told == ["0 frames", "1 frame", "2 frames", "1 dropped"]


def test_an_unknown_word_is_told_the_nearest_or_all() -> None:
    assert did_you_mean("dya", ("day", "dusk")) == "did you mean 'day'?"
    assert did_you_mean("xyz", ("day", "dusk")) == "use one of day, dusk"
