"""Stages of a pipeline on threads of their own, with bounded queues between them.

Nothing piles up and nothing overtakes. An exception of a stage reaches the caller. No wait is for ever: each looks up
every tenth of a second whether the other side is still there.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Generic, Self, TypeVar

__all__ = ["BUSY_S", "LIVE", "MAY_BE_LEFT", "POLL_S", "STOP_S", "ReadAhead", "WriteBehind", "in_order"]

Item = TypeVar("Item")
Made = TypeVar("Made")

IN_ORDER: Final = "in-order"
READ_AHEAD: Final = "read-ahead"
WRITE_BEHIND: Final = "write-behind"
LIVE: Final = "live-source"
MAY_BE_LEFT: Final = (IN_ORDER, READ_AHEAD, WRITE_BEHIND, LIVE)
"""How the names of threads begin that may be stuck in native code when a process ends."""
POLL_S: Final = 0.1
BUSY_S: Final = 0.3
"""Seconds to wait for a thread that is inside FFmpeg, before what it works with is left open instead of closed."""
STOP_S: Final = 1.5
"""Seconds that a stage has to come to an end when the caller fails or is interrupted."""


@dataclass(frozen=True)
class _End:
    """Nothing comes after this.

    Attributes:
        error: That ended it; None where the items came to an end.
    """

    error: BaseException | None


class ReadAhead(Generic[Item]):
    """Takes items on a thread, some ahead of the one in hand; a context manager that can be iterated once.

    Args:
        items: What is taken, on that thread only.
        depth: Items that may wait.
    """

    def __init__(self, items: Iterable[Item], *, depth: int = 2) -> None:
        self._items = items
        self._waiting: queue.Queue[tuple[Item, float] | _End] = queue.Queue(depth)
        self._is_stopped = threading.Event()
        self._thread = threading.Thread(target=self._take, name=READ_AHEAD, daemon=True)

    def __enter__(self) -> Self:
        # The thread starts later, inside the block: an interruption just before that would leave it behind for ever.
        return self

    def __iter__(self) -> Iterator[tuple[Item, float]]:
        """Each item in turn, and the milliseconds that it took.

        Raises:
            BaseException: What ended ``items``, behind the last item.
        """
        self._thread.start()
        while True:
            try:
                item = self._waiting.get(timeout=POLL_S)
            except queue.Empty:
                assert self._thread.is_alive() or not self._waiting.empty(), "the thread ended without a word"
                continue
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item

    def _take(self) -> None:
        end = _End(None)
        try:
            clock = time.perf_counter()
            for item in self._items:
                if not self._put((item, 1e3 * (time.perf_counter() - clock))):
                    return
                clock = time.perf_counter()
        except BaseException as error:  # noqa: BLE001 - the caller gets it
            end = _End(error)
        self._put(end)

    def _put(self, item: tuple[Item, float] | _End) -> bool:
        """False where nobody wants it any more."""
        while not self._is_stopped.is_set():
            try:
                self._waiting.put(item, timeout=POLL_S)
            except queue.Full:
                continue
            return True
        return False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_stopped.set()
        if self._thread.is_alive():
            self._thread.join(STOP_S)


def in_order(make: Callable[[Item], Made], items: Iterable[Item], *, at_once: int) -> Iterator[Made]:
    """What ``make`` makes of each item, in their order.

    Args:
        make: Called on threads where several items are made at once.
        items: Taken as they are needed, on the caller's thread.
        at_once: Items that are made at a time.

    Raises:
        BaseException: Of ``make`` or ``items``, behind what came before it; what is being made then is waited for, but
            for no longer than `STOP_S`.
    """
    if at_once == 1:
        yield from map(make, items)
        return
    pool = ThreadPoolExecutor(at_once, thread_name_prefix=IN_ORDER)
    begun: deque[Future[Made]] = deque()
    ended_by: Exception | None = None
    try:
        waiting = iter(items)
        while True:
            try:
                item = next(waiting)
            except StopIteration:
                break
            except Exception as error:  # noqa: BLE001 - it comes behind what was begun before it
                ended_by = error
                break
            begun.append(pool.submit(make, item))
            if len(begun) > at_once:
                yield _made(begun.popleft())
        while begun:
            yield _made(begun.popleft())
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        _, stuck = wait([one for one in begun if not one.cancelled()], timeout=STOP_S)  # a cancelled one is never done
        if not stuck:
            pool.shutdown()  # its threads have nothing more to do
    if ended_by is not None:
        raise ended_by


def _made(future: Future[Made]) -> Made:
    while True:  # in steps: a signal must be able to come between
        done, _ = wait([future], timeout=POLL_S)
        if done:
            return future.result()


class WriteBehind(Generic[Item]):
    """Hands items to a function on a thread, in order; a context manager.

    Leaving the block waits until everything is written. Where the block fails, what waits is still written, but for no
    longer than `STOP_S`.

    Args:
        write: Called with each item, on that thread only.
        depth: Items that may wait.
        abandon: Called where ``write`` does not return in time: what it works with must then be left alone.
    """

    def __init__(self, write: Callable[[Item], None], *, depth: int = 2, abandon: Callable[[], None]) -> None:
        self._write, self._abandon = write, abandon
        self._waiting: queue.Queue[Item | _End] = queue.Queue(depth)
        self._is_stopped = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name=WRITE_BEHIND, daemon=True)

    def __enter__(self) -> Self:
        # See `ReadAhead`.
        return self

    def put(self, item: Item) -> None:
        """Give an item away; waits while ``depth`` of them do.

        Raises:
            BaseException: What ``write`` raised, of an earlier item; nothing is written after that.
        """
        if self._thread.ident is None:
            self._thread.start()
        self._put(item)
        self._raise_error()

    def _put(self, item: Item | _End) -> None:
        while self._thread.is_alive():
            try:
                self._waiting.put(item, timeout=POLL_S)
            except queue.Full:
                continue
            return

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            while not self._is_stopped.is_set():
                item = self._next()
                if isinstance(item, _End):
                    return
                if item is not None:
                    self._write(item)
        except BaseException as error:  # noqa: BLE001 - the caller gets it
            self._error = error

    def _next(self) -> Item | _End | None:
        try:
            return self._waiting.get(timeout=POLL_S)
        except queue.Empty:
            return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._put(_End(None))
                while self._thread.is_alive():  # in steps: a signal must be able to come between
                    self._thread.join(POLL_S)
                self._raise_error()
        finally:
            self._stop()

    def _stop(self) -> None:
        deadline_s = time.monotonic() + STOP_S
        try:  # a second interruption may come at any point
            while self._thread.is_alive() and not self._waiting.empty() and time.monotonic() < deadline_s:
                self._thread.join(POLL_S / 10)
            self._is_stopped.set()
            if self._thread.is_alive():
                self._thread.join(max(0.0, deadline_s - time.monotonic()) + POLL_S)
        finally:
            self._is_stopped.set()
            if self._thread.is_alive():
                self._abandon()
