"""Threads and queues: order, errors from either side, ends that come in time, nothing left behind."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

import pytest

from cdga_sdk.video.stages import STOP_S, ReadAhead, WriteBehind, in_order


class Mine(Exception):  # noqa: N818 - a name for what this file raises
    """An error of this file."""


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def nothing() -> None:
    pytest.fail("nobody was stuck")


def counted(count: int, taken: list[int], error: BaseException | None = None) -> Iterator[int]:
    for number in range(count):
        taken.append(number)
        yield number
    if error is not None:
        raise error


def test_items_come_in_order_with_their_times() -> None:
    def slow() -> Iterator[int]:
        yield 0
        time.sleep(0.05)
        yield 1

    with ReadAhead(slow()) as ahead:
        (first, first_ms), (second, second_ms) = ahead
    assert (first, second) == (0, 1)
    assert first_ms < 50 <= second_ms


def test_no_more_is_taken_ahead_than_may_wait() -> None:
    taken: list[int] = []
    with ReadAhead(counted(100, taken), depth=3) as ahead:
        items = iter(ahead)
        assert next(items)[0] == 0
        time.sleep(0.2)
        assert len(taken) == 5  # one in hand, three wait, one waits to wait
        assert [number for number, _ in items] == list(range(1, 100))


def test_the_source_s_error_comes_behind_its_last_item() -> None:
    error = Mine()
    with ReadAhead(counted(3, [], error)) as ahead:
        items = iter(ahead)
        assert [next(items)[0] for _ in range(3)] == [0, 1, 2]
        with pytest.raises(Mine) as caught:
            next(items)
    assert caught.value is error


def test_a_reader_that_nobody_listens_to_ends() -> None:
    taken: list[int] = []
    before = threading.active_count()
    with ReadAhead(counted(10**9, taken)) as ahead:
        next(iter(ahead))
    assert threading.active_count() == before
    assert len(taken) <= 5


def test_everything_is_written_in_order() -> None:
    written: list[int] = []

    def write(number: int) -> None:
        time.sleep(0.001 * (number % 3))
        written.append(number)

    with WriteBehind(write, abandon=nothing) as behind:
        for number in range(50):
            behind.put(number)
    assert written == list(range(50))


def test_a_slow_writer_holds_the_caller_back() -> None:
    gate, written = threading.Event(), []

    def write(number: int) -> None:
        gate.wait(5)
        written.append(number)

    put: list[int] = []

    def caller() -> None:
        with WriteBehind(write, depth=2, abandon=nothing) as behind:
            for number in range(10):
                behind.put(number)
                put.append(number)

    thread = threading.Thread(target=caller)
    thread.start()
    time.sleep(0.3)
    assert put == [0, 1, 2]  # one is being written, two wait
    gate.set()
    thread.join(5)
    assert written == list(range(10))


@pytest.mark.parametrize("at", [0, 4, 9])
def test_the_writer_s_error_reaches_the_caller(at: int) -> None:
    error, written = Mine(), []

    def write(number: int) -> None:
        if number == at:
            raise error
        written.append(number)

    with pytest.raises(Mine) as caught, WriteBehind(write, abandon=nothing) as behind:  # noqa: PT012 - any put may raise
        for number in range(10):
            behind.put(number)
    assert caught.value is error
    assert written == list(range(at))


@pytest.mark.parametrize("error", [Mine(), KeyboardInterrupt()])
def test_what_waits_is_written_when_the_caller_fails(error: BaseException) -> None:
    written: list[int] = []

    def write(number: int) -> None:
        time.sleep(0.05)
        written.append(number)

    with pytest.raises(type(error)) as caught, WriteBehind(write, abandon=nothing) as behind:  # noqa: PT012 - as above
        for number in range(3):
            behind.put(number)
        raise error
    assert caught.value is error
    assert written == [0, 1, 2]


def test_the_caller_s_error_is_the_one_that_comes_out() -> None:
    def write(number: int) -> None:
        del number
        raise Mine

    with pytest.raises(KeyboardInterrupt), WriteBehind(write, abandon=nothing) as behind:  # noqa: PT012 - as above
        behind._waiting.put(0)
        time.sleep(0.05)
        raise KeyboardInterrupt


def fail_while(write: Callable[[int], None], abandoned: list[bool]) -> float:
    """Seconds until the error of a caller with items in hand comes out."""
    started_s = time.monotonic()
    with (  # noqa: PT012 - the error is this block's own
        pytest.raises(Mine),
        WriteBehind(write, depth=2, abandon=lambda: abandoned.append(True)) as behind,
    ):
        for number in range(3):
            behind.put(number)
        started_s = time.monotonic()
        raise Mine
    return time.monotonic() - started_s


def test_a_writer_too_slow_for_what_waits_drops_it() -> None:
    written: list[int] = []
    abandoned: list[bool] = []

    def write(number: int) -> None:
        time.sleep(1.0)
        written.append(number)

    assert fail_while(write, abandoned) <= 2.0 + 0.2
    assert written == [0, 1] or written == [0]
    time.sleep(1.0)
    assert 2 not in written


def test_a_stuck_writer_is_abandoned_in_time() -> None:
    gate = threading.Event()
    abandoned: list[bool] = []

    def write(number: int) -> None:
        del number
        gate.wait(30)

    assert STOP_S <= fail_while(write, abandoned) <= 2.0
    assert abandoned == [True]
    gate.set()
    time.sleep(0.2)


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_what_is_made_at_once_comes_in_order(at_once: int) -> None:
    delays_s = [0.03, 0.0, 0.02, 0.01, 0.0, 0.03, 0.0, 0.0]
    busy, most, taken = 0, 0, 0
    lock = threading.Lock()

    def items() -> Iterator[int]:
        nonlocal taken
        for item in range(len(delays_s)):
            taken = item
            yield item

    def make(item: int) -> int:
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        time.sleep(delays_s[item])
        with lock:
            busy -= 1
        return item

    for number, made in enumerate(in_order(make, items(), at_once=at_once)):
        assert made == number
        assert taken <= number + at_once + 1
    assert number == len(delays_s) - 1
    assert most <= at_once
    assert (most > 1) == (at_once > 1)


@pytest.mark.parametrize("at_once", [1, 2])
def test_an_error_of_what_makes_comes_behind_what_was_made_before(at_once: int) -> None:
    def make(item: int) -> int:
        if item == 4:
            raise Mine
        return item

    made = in_order(make, range(100), at_once=at_once)
    assert [next(made) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(Mine):
        next(made)


def test_a_caller_that_leaves_waits_for_what_is_being_made_only() -> None:
    begun = []

    def make(item: int) -> int:
        begun.append(item)
        time.sleep(0.02)
        return item

    made = in_order(make, range(100), at_once=2)
    next(made)
    made.close()  # type: ignore[attr-defined]
    ended = len(begun)
    assert ended <= 5
    time.sleep(0.1)
    assert len(begun) == ended


@pytest.mark.parametrize("at_once", [1, 3])
def test_an_error_of_the_items_comes_behind_what_was_begun(at_once: int) -> None:
    made = in_order(str, counted(5, [], Mine()), at_once=at_once)
    assert [next(made) for _ in range(5)] == list("01234")
    with pytest.raises(Mine):
        next(made)


@pytest.mark.signals
def test_an_interruption_does_not_wait_for_what_was_never_begun() -> None:
    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    def make(_: int) -> None:
        time.sleep(0.5)

    handler = signal.signal(signal.SIGALRM, interrupt)
    started_s = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, 0.2)  # two are being made then, and one waits
    try:
        with pytest.raises(KeyboardInterrupt):
            next(in_order(make, range(9), at_once=2))
    finally:
        signal.signal(signal.SIGALRM, handler)
    assert time.monotonic() - started_s < STOP_S


def test_a_second_interruption_abandons_a_busy_writer_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    let_go = threading.Event()
    abandoned = []

    def stuck(_: int) -> None:
        let_go.wait(20)

    behind = WriteBehind(stuck, abandon=lambda: abandoned.append(True))

    def interrupted(self: threading.Thread, timeout: float | None = None) -> None:
        raise KeyboardInterrupt

    def use() -> None:
        with behind:
            behind.put(0)
            time.sleep(0.1)
            monkeypatch.setattr(threading.Thread, "join", interrupted)
            raise Mine

    with pytest.raises(KeyboardInterrupt):
        use()
    monkeypatch.undo()
    assert abandoned == [True]
    let_go.set()
    time.sleep(0.3)
