"""metrics.jsonl: one line of averaged values every so many iterations."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from torch import Tensor

from cdga_sdk.atomic import error_from_os, write_text

__all__ = ["MetricsLog"]


class MetricsLog:
    """Averages values between two lines; on a resume, drops the lines that lie after the checkpoint.

    Args:
        path: The file, appended to; None writes nothing (the other processes of a run).
        keep_until: Lines of later iterations are removed on opening.
    """

    def __init__(self, path: Path | None, *, keep_until: int) -> None:
        self._path = path
        self._keep_until = keep_until
        self._stream: IO[str] | None = None
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._waited_s = 0.0
        self._lr = 0.0
        self._since = time.perf_counter()
        self.latest: dict[str, float] = {}

    def __enter__(self) -> Self:
        if self._path is None:
            return self
        if self._path.is_file():
            text = self._path.read_text(encoding="utf-8", errors="replace")
            lines = [line for line in text.splitlines() if self._is_kept(line)]
            write_text(self._path, "".join(f"{line}\n" for line in lines))
        try:
            self._stream = self._path.open("a", encoding="utf-8")
        except OSError as error:
            raise error_from_os(error, self._path) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is None:
            return
        assert self._path is not None
        try:
            self._stream.close()
        except OSError as failed:
            if kind is None:  # else this is about what a failed write left, which has been told
                raise error_from_os(failed, self._path) from failed

    def add(self, values: dict[str, Tensor], *, waited_s: float, lr: float) -> None:
        """Count one iteration. Tensors are summed where they are: no wait for the device until `write`."""
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._count += 1
        self._waited_s += waited_s
        self._lr = lr

    def write(
        self, iteration: int, averaged: Callable[[dict[str, float]], dict[str, float]] = lambda means: means
    ) -> dict[str, float]:
        """Write the mean of what was added since the last line, ``averaged`` over the processes, and return it."""
        assert self._count
        means = averaged({name: float(total) / self._count for name, total in self._sums.items()})
        elapsed_s = time.perf_counter() - self._since
        self.latest = {
            **means,
            "lr": self._lr,
            "it_per_s": self._count / elapsed_s,
            "data_wait_share": self._waited_s / elapsed_s,
        }
        # JSON has no NaN: null stands for it.
        rounded = {name: float(f"{v:.6g}") if math.isfinite(v) else None for name, v in self.latest.items()}
        self._append(json.dumps({"iteration": iteration, **rounded}) + "\n")
        self._sums, self._count, self._waited_s = {}, 0, 0.0
        self._since = time.perf_counter()
        return means

    def _append(self, line: str) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(line)
            self._stream.flush()
        except OSError as error:
            assert self._path is not None
            raise error_from_os(error, self._path) from error

    def _is_kept(self, line: str) -> bool:
        try:
            return int(json.loads(line)["iteration"]) <= self._keep_until
        except (ValueError, KeyError, TypeError):  # a line cut short by a crash
            return False
