"""Videos that grow as ``NAME.partial.EXT`` beside their final file, which exists only when it is whole.

The growing file can be read even after a ``kill -9``, as far as its container had been flushed: a label stream to its
last frames or nearly, an overlay to its last keyframe, which is nothing at all of its first seconds. On success its
packets are copied, without encoding again, to a file that takes the final name in one rename.
"""

from __future__ import annotations

import contextlib
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import av

from cdga_sdk.atomic import RESOURCE_ERRNOS, sync_folder
from cdga_sdk.errors import CdgaError, ResourceError, UsageError
from cdga_sdk.video.stages import BUSY_S

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

__all__ = ["PartialVideo", "growing_path", "refuse_own_input"]


def refuse_own_input(source: Path, final: Path) -> None:
    """Make sure that writing ``final``, whose suffix names its container, leaves ``source`` as it is.

    Raises:
        UsageError: ``source`` is that file, or one of those beside it that are replaced at once.
    """
    for place in (final, *_places_beside(final, _container_of(final))):
        if place.exists() and source.exists() and place.samefile(source):
            raise UsageError("would write over its own input", where=source, fix="choose another output")


def growing_path(final: Path) -> Path:
    """Where a video grows that is to be ``final``, whose suffix names its container."""
    return _places_beside(final, _container_of(final))[0]


def _container_of(final: Path) -> str:
    return final.suffix.lower().removeprefix(".")


def _places_beside(final: Path, container: str) -> tuple[Path, Path]:
    """Where a video grows, and where it is made whole."""
    growing = final.with_name(f"{final.stem}.partial.{container}")
    return growing, growing.with_name(f"{final.stem}.partial.whole.{container}")


class PartialVideo(ABC):
    """What video sinks have in common; a context manager.

    A kind of sink says which stream it writes (`_add_stream`) and how a whole file is made of the growing one
    (`_copy_to`), and writes each frame inside `_writing`.

    Args:
        path: the final file. Replaced on success only. A partial file of an earlier run is replaced at once; that it
            is not the input is for the caller to check, by `refuse_own_input`.
        what: is written, in errors: "the video".
        container: FFmpeg's name of the container; also the extension of the growing file.
        options: of the growing file's container.
        time_base: seconds of one tick of ``pts``.

    Attributes:
        path: the file that there is: the final name after success, the ``.partial`` name otherwise.
        frames_written: frames taken so far.
    """

    def __init__(self, path: Path, *, what: str, container: str, options: dict[str, str], time_base: Fraction) -> None:
        self._final = path
        self._partial, self._whole = _places_beside(path, container)
        self.path = self._partial
        self.frames_written = 0
        self._what, self._format, self._options, self._time_base = what, container, options, time_base
        self._last_pts = 0
        self._container: OutputContainer | None = None
        self._in_use = threading.Lock()

    @abstractmethod
    def _add_stream(self, container: OutputContainer) -> VideoStream:
        """Add the one stream that is written."""

    @abstractmethod
    def _copy_to(self, whole: Path) -> None:
        """Copy the packets of the growing file, which is closed, to a file that can take the final name."""

    def __enter__(self) -> Self:
        if self._final.is_dir():
            raise UsageError("there is a folder of that name", where=self._final, fix="name another file")
        try:
            self._open()
        except BaseException:
            self._close_quietly()
            raise
        return self

    def _open(self) -> None:
        with self._named_errors(self._partial):
            self._partial.unlink(missing_ok=True)
            self._container = av.open(
                str(self._partial.absolute()), "w", format=self._format, options=dict(self._options)
            )
            self._stream = self._add_stream(self._container)
            self._container.start_encoding()

    @contextlib.contextmanager
    def _writing(self, pts: int) -> Iterator[None]:
        """Encode one frame, shown at ``pts``, inside this."""
        assert self._container is not None, f"use it as: with {type(self).__name__}(...) as sink"
        if self.frames_written and pts <= self._last_pts:
            raise UsageError(f"pts {pts} is not later than {self._last_pts}", where=self._partial)
        with self._in_use, self._named_errors(self._partial):
            yield
        self._last_pts = pts
        self.frames_written += 1

    def _mux(self, packets: list[Packet[VideoStream]]) -> None:
        assert self._container is not None
        for packet in packets:
            self._container.mux(packet)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._close_quietly()
        else:
            self._close_partial()
            if self.frames_written:
                self._publish()

    def _close_quietly(self) -> None:
        with contextlib.suppress(CdgaError, OSError):  # the error that is on its way matters more
            self._close_partial()

    def _close_partial(self) -> None:
        # Left open where another thread is inside FFmpeg and does not come back: to what was freed, it would crash.
        if self._container is None or not self._in_use.acquire(timeout=BUSY_S):
            return
        container, self._container = self._container, None
        self._in_use.release()
        with self._named_errors(self._partial):
            try:
                if self.frames_written:
                    container.mux(self._stream.encode(None))
            finally:
                container.close()
                if not self.frames_written:
                    self._partial.unlink(missing_ok=True)

    def _publish(self) -> None:
        """Make the whole file, force it to the disk, and only then give it the final name."""
        try:
            with self._named_errors(self._final, kept=self._partial):
                self._copy_to(self._whole)
                _sync(self._whole)
                self._whole.replace(self._final)
            sync_folder(self._final.absolute().parent)
        finally:
            self._whole.unlink(missing_ok=True)
        self._partial.unlink(missing_ok=True)
        self.path = self._final

    @contextlib.contextmanager
    def _named_errors(self, path: Path, kept: Path | None = None) -> Iterator[None]:
        """Turn what the system and FFmpeg raise while writing ``path`` into one line of ours."""
        try:
            yield
        except (OSError, av.FFmpegError) as error:
            reason = error.strerror or str(error)
            rest = f"; what was written is kept in {kept.name}" if kept is not None else ""
            message = f"{self._what} cannot be written ({reason}){rest}"
            if error.errno in RESOURCE_ERRNOS:
                raise ResourceError(message, where=path, fix="free space on that disk") from error
            raise UsageError(message, where=path, fix="name a folder that can be written to") from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
