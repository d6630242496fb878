"""Every error that is the user's to mend, and the exit code that each one owns.

The tree::

    CdgaError
    ├── UsageError              2    wrong flag, key, value or name
    │   └── MissingExtraError   2    an optional library is not installed
    ├── InputError              3    a file, folder or data set cannot be read or is refused
    ├── DegradedError           4    finished, but frames were lost or concealed; or training diverged
    ├── ModelError              5    a model, checkpoint or bundle is refused
    │   └── IntegrityError      5    its bytes are not the bytes that were written
    ├── ResourceError           6    disk, memory or device ran out
    ├── GateError               7    a quality gate failed (parity, a minimum score)
    └── InterruptedRunError   130    stopped by the user; what was made is finalised (143 on SIGTERM and SIGHUP)

A broken invariant of our own is an ``assert``, never a ``CdgaError``: it ends with exit code 1. `Terminated` is no
error: like Ctrl-C it comes at any point, so nothing that deals with failures may take it for one.
"""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches

__all__ = [
    "CdgaError",
    "DegradedError",
    "GateError",
    "InputError",
    "IntegrityError",
    "InterruptedRunError",
    "MissingExtraError",
    "ModelError",
    "ResourceError",
    "Terminated",
    "UsageError",
    "counted",
    "did_you_mean",
    "one_line",
]


def one_line(text: object) -> str:
    """Fold ``text`` to one printable line: control characters and line breaks become spaces."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def counted(number: int, plural: str) -> str:
    """``number`` and what there are so many of: "1 frame", "2 frames"."""
    return f"{number} {plural.removesuffix('s') if number == 1 else plural}"


def did_you_mean(word: str, known: Collection[str]) -> str:
    """What to do about a word that is not one of those ``known``: the nearest, or else all of them."""
    near = get_close_matches(word, known, n=1)
    return f"did you mean '{near[0]}'?" if near else f"use one of {', '.join(known)}"


class Terminated(BaseException):
    """SIGTERM, or SIGHUP of a terminal that was closed, came while a command ran.

    Not a KeyboardInterrupt: Typer makes exit code 130 of every one of these.
    """


class CdgaError(Exception):
    """What went wrong, where, and what to do about it, as one line.

    Args:
        what: What was found and, where it helps, what was wanted.
        where: The file, key or frame it is about.
        fix: What the user can do next.
    """

    exit_code = 1
    code = "E-BUG"

    def __init__(self, what: object, *, where: object = None, fix: str | None = None) -> None:
        self.what = one_line(what)
        self.where = None if where is None else one_line(where)
        self.fix = None if fix is None else one_line(fix)
        place = f"{self.where}: " if self.where else ""
        super().__init__(f"{place}{self.what}" + (f"; {self.fix}" if self.fix else ""))

    def told_after(self, what: object, where: object) -> CdgaError:
        """This error, class and exit code kept, with what was already done said first."""
        CdgaError.__init__(self, f"{one_line(what)}: {self.what}", where=self.where or where, fix=self.fix)
        return self

    def told_with(self, advice: object) -> CdgaError:
        """This error, class and exit code kept, with more to do about it said last."""
        CdgaError.__init__(
            self, self.what, where=self.where, fix=f"{self.fix}; {one_line(advice)}" if self.fix else one_line(advice)
        )
        return self

    def __reduce__(self) -> tuple[object, ...]:
        # Unpickling calls no __init__, whose arguments differ from class to class and are not kept.
        return _bare, (type(self), self.args), vars(self)


def _bare(kind: type[CdgaError], line: tuple[str, ...]) -> CdgaError:
    return kind.__new__(kind, *line)


class UsageError(CdgaError):
    """A flag, key, value or name that the command does not take."""

    exit_code = 2
    code = "E-USAGE"


class MissingExtraError(UsageError):
    """A library that an optional extra brings is not installed.

    Args:
        library: The import name that is missing.
        extra: The extra of this distribution that installs it.
    """

    code = "E-EXTRA"

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(f"'{library}' is needed here", fix=f"pip install 'cdga-sdk[{extra}]'")


class InputError(CdgaError):
    """A file, folder, video or data set that cannot be read, or is refused."""

    exit_code = 3
    code = "E-INPUT"


class DegradedError(CdgaError):
    """The work was finished, but frames were lost or concealed; the outputs are valid."""

    exit_code = 4
    code = "E-DEGRADED"


class ModelError(CdgaError):
    """A model, checkpoint or bundle that is refused."""

    exit_code = 5
    code = "E-MODEL"


class IntegrityError(ModelError):
    """Bytes that differ from those that were written."""

    code = "E-INTEGRITY"


class ResourceError(CdgaError):
    """The disk, the memory or the device ran out."""

    exit_code = 6
    code = "E-RESOURCE"


class GateError(CdgaError):
    """A quality gate failed: parity below its bound, or a score below the wanted minimum."""

    exit_code = 7
    code = "E-GATE"


class InterruptedRunError(CdgaError):
    """The user stopped the run; what had been made is finalised."""

    exit_code = 130
    code = "E-INTERRUPTED"

    def __init__(self, what: object, *, where: object = None, fix: str | None = None, terminated: bool = False) -> None:
        super().__init__(what, where=where, fix=fix)
        if terminated:
            self.exit_code = 143
