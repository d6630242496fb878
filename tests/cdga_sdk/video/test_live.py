"""LiveSource, on streams that real servers send: order, time, drops, losses, and an end to every wait."""

from __future__ import annotations

import math
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest

from cdga_sdk.errors import InputError, UsageError
from cdga_sdk.video.live import LiveSource
from cdga_sdk.video.live_clock import LiveClock, ticks
from cdga_sdk.video.source import Frame
from cdga_sdk.video.stages import STOP_S
from tests.live_server import HOLD, HTTP_STREAM, LiveServer, RtspServer, closed_port, grey_of, paced, packets_of_ts, ts

Clip = Callable[..., Path]

STEP = 3600  # ticks between frames at 25 per second


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence is noticed after half a second."""
    monkeypatch.setattr("cdga_sdk.video.live._OPEN_S", 0.5)
    monkeypatch.setattr("cdga_sdk.video.live._STALL_S", 0.5)


def source_of(server: LiveServer, **options: Any) -> LiveSource:
    wanted: dict[str, Any] = {"mode": "every-frame", "reconnect_s": 0}
    url = f"http://127.0.0.1:{server.port}/live" if server.is_http else server.url
    return LiveSource(url, **(wanted | options))


def read(server: LiveServer, **options: Any) -> tuple[LiveSource, list[Frame]]:
    with source_of(server, **options) as source:
        return source, list(source)


def shown(frames: list[Frame]) -> list[float]:
    return [float(f.image_bgr.mean()) for f in frames]


def greys(*indices: int) -> Any:
    return pytest.approx([grey_of(i) for i in indices], abs=5)


def test_every_frame_of_a_stream_with_its_time() -> None:
    with LiveServer([ts(30)]) as server:
        source, frames = read(server)
    assert shown(frames) == greys(*range(30))
    assert [f.index for f in frames] == list(range(30))
    assert [f.pts for f in frames] == [STEP * i for i in range(30)]
    assert frames[29].time_s == pytest.approx(29 / 25)
    assert frames[0].image_bgr.shape == (48, 64, 3)
    assert (source.size_wh, source.codec, source.average_rate) == ((64, 48), "h264", Fraction(25))
    assert (source.dropped_frames, source.reconnects, source.corrupt_packets, source.is_lost) == (0, 0, 0, True)


def test_shape_of_pixels(clip: Clip) -> None:
    stream = clip("a.ts", num_frames=5, sample_aspect_ratio=Fraction(4, 3)).read_bytes()
    with LiveServer([stream]) as server:
        source, frames = read(server)
    assert (source.sample_aspect_ratio, len(frames)) == (Fraction(4, 3), 5)


# In a process of its own: PyAV keeps the interpreter's lock while it waits for somebody to connect.
SERVE = """
import sys, av
with av.open(sys.argv[1]) as reader, av.open(sys.argv[2] + "?listen=1", "w", format="mpegts") as writer:
    stream = reader.streams.video[0]
    copy = writer.add_stream_from_template(stream)
    for packet in reader.demux(stream):
        if packet.size:
            packet.stream = copy
            writer.mux(packet)
"""


def test_a_stream_that_a_muxer_of_ffmpeg_serves(clip: Clip) -> None:
    with closed_port() as port:
        url = f"tcp://127.0.0.1:{port}"
    path = clip("in.mp4", num_frames=20)
    with subprocess.Popen([sys.executable, "-c", SERVE, str(path), url]) as process:
        try:
            frames = frames_of_first_answer(url)
            assert process.wait(10) == 0
        finally:
            process.kill()
    assert [f.pts for f in frames] == [STEP * i for i in range(20)]


def frames_of_first_answer(url: str) -> list[Frame]:
    deadline_s = time.monotonic() + 15
    while True:
        try:
            with LiveSource(url, mode="every-frame", reconnect_s=0) as source:
                return list(source)
        except InputError:  # it does not listen yet
            assert time.monotonic() < deadline_s
            time.sleep(0.05)


def test_a_clock_that_starts_again_goes_on_by_what_has_passed() -> None:
    scripts = ([ts(5)], [ts(5, first=5)], [ts(5, first=10)])
    with LiveServer(*scripts, down_s=0.4) as server, source_of(server, reconnect_s=2) as source:
        seen = [(time.monotonic(), frame) for frame in source]
    frames = [frame for _, frame in seen]
    assert shown(frames) == greys(*range(15))
    steps = [b.pts - a.pts for a, b in pairwise(frames)]
    assert min(steps) > 0
    assert [step for i, step in enumerate(steps) if i not in {4, 9}] == [STEP] * 12
    for index in (5, 10):
        passed_s = seen[index][0] - seen[0][0]
        assert passed_s > 0.4
        assert frames[index].time_s == pytest.approx(passed_s, abs=0.2)
    assert (source.reconnects, source.is_lost, source.corrupt_packets) == (2, True, 0)


def test_the_freshest_frame_and_an_exact_count_of_the_others() -> None:
    with LiveServer(paced(packets_of_ts(60), 0.01)) as server, source_of(server, mode="freshest") as source:
        frames = []
        for frame in source:
            frames.append(frame)
            time.sleep(0.06)
    assert 3 < len(frames) < 40
    assert len(frames) + source.dropped_frames == 60
    assert frames[-1].index == 59
    assert shown(frames) == greys(*[f.index for f in frames])
    assert [f.pts for f in frames] == [STEP * f.index for f in frames]


def test_what_comes_behind_the_last_frame_is_not_dropped() -> None:
    script = paced(packets_of_ts(60), 0.01)
    with LiveServer(script) as server, source_of(server, mode="freshest", max_frames=2) as source:
        first, last = frames = list(islice(source, 2))
        time.sleep(0.3)  # it is segmented, and the files are made whole
    assert shown(frames) == greys(first.index, last.index)
    assert source.dropped_frames == last.index - 1


@pytest.mark.usefixtures("quick")
def test_freshest_is_fresh_behind_a_slow_caller() -> None:
    script = [*paced(packets_of_ts(60), 0.01), 1.0]
    with LiveServer(script) as server, source_of(server, mode="freshest") as source:
        frames = iter(source)
        next(frames)
        time.sleep(1.2)
        assert next(frames).index >= 57  # FFmpeg waits for what follows a frame before it gives it away


def test_every_frame_makes_the_sender_wait() -> None:
    pieces = packets_of_ts(80)
    with LiveServer([b"".join(pieces)]) as server, source_of(server) as source:
        frames = []
        for frame in source:
            frames.append(frame)
            time.sleep(0.01)
            assert source._decoded <= len(frames) + 5  # four wait, one waits to wait
    assert [f.index for f in frames] == list(range(80))
    assert source.dropped_frames == 0


def test_stride_and_range() -> None:
    options: list[tuple[dict[str, Any], list[int]]] = [
        ({"vid_stride": 3}, [0, 3, 6, 9]),
        ({"max_frames": 2}, [0, 1]),
        ({"start_s": 0.2}, [5, 6, 7, 8, 9]),
        ({"end_s": 0.2}, [0, 1, 2, 3, 4]),
        ({"start_s": 0.12, "vid_stride": 2, "max_frames": 3}, [3, 5, 7]),
    ]
    for wanted, indices in options:
        with LiveServer([ts(10)]) as server:
            source, frames = read(server, **wanted)
        assert shown(frames) == greys(*indices), wanted
        assert [f.pts for f in frames] == [STEP * i for i in indices]
        assert source.is_lost == (not {"max_frames", "end_s"} & wanted.keys())
        assert source.dropped_frames == 0


@pytest.mark.usefixtures("quick")
def test_silence_is_a_loss_too() -> None:
    with LiveServer([ts(5), HOLD], [ts(5, first=5)]) as server:
        source, frames = read(server, reconnect_s=1.5)
    assert shown(frames) == greys(*range(10))
    assert (source.reconnects, source.is_lost) == (1, True)


@pytest.mark.usefixtures("quick")
def test_sound_without_pictures_is_a_loss_too() -> None:
    pieces = packets_of_ts(5, sound_s=2)
    with LiveServer([b"".join(pieces[:5]), *paced(pieces[5:], 0.05), HOLD], [ts(5, first=5)]) as server:
        clock_s = time.monotonic()
        source, frames = read(server, reconnect_s=1.5)
    assert shown(frames) == greys(*range(10))
    assert source.reconnects == 1
    assert time.monotonic() - clock_s < 15


def test_given_up_after_the_time_that_was_set() -> None:
    with LiveServer([ts(5)]) as server, source_of(server, reconnect_s=1) as source:
        for _ in source:
            clock_s = time.monotonic()
        given_up_s = time.monotonic() - clock_s
    assert 0.8 < given_up_s < 2.5
    assert source.is_lost


def test_damage_counts_only_between_frames() -> None:
    pieces = packets_of_ts(30)
    middle = [b"\xff" * len(piece) if index in {14, 15} else piece for index, piece in enumerate(pieces)]
    with LiveServer([b"".join(middle)]) as server:
        source, frames = read(server)
    assert 20 <= len(frames) < 30
    assert source.corrupt_packets + source.corrupt_frames > 0
    with LiveServer([b"".join(pieces[5:])]) as server:  # joined midway: nothing to see before the next keyframe
        source, frames = read(server)
    assert shown(frames)[-20:] == greys(*range(10, 30))
    assert source.corrupt_packets == 0


def test_frames_of_another_size_are_counted() -> None:
    with LiveServer([ts(8)], [ts(8, size_wh=(32, 64))]) as server:
        source, frames = read(server, reconnect_s=1)
    assert [f.image_bgr.shape[:2] for f in frames] == [(48, 64)] * 8 + [(64, 32)] * 8
    assert (source.size_changes, source.size_wh) == (1, (64, 48))


def test_a_camera_that_speaks_rtsp() -> None:
    """The last frame of a connection stays in FFmpeg, which waits for what follows it."""
    pieces = packets_of_ts(41)
    with RtspServer(paced(pieces[:20], 0.01), paced(pieces[20:], 0.01)) as server:
        source, frames = read(server, reconnect_s=1)
    assert source.address.place == f"rtsp://***@127.0.0.1:{server.port}/front"
    assert shown(frames) == greys(*range(19), *range(20, 40))
    assert [b.pts - a.pts for a, b in pairwise(frames[:19])] == [STEP] * 18
    assert (source.reconnects, source.is_lost, source.corrupt_packets) == (1, True, 0)
    with RtspServer([], []) as server:
        assert "401 unauthorized" in str(refusal(server.url.replace("s3cr3t", "guess")))


@pytest.mark.usefixtures("quick")
def test_datagrams() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for piece in packets_of_ts(30):
                for start in range(0, len(piece), 1316):
                    sender.sendto(piece[start : start + 1316], ("127.0.0.1", port))
                time.sleep(0.02)

    thread = threading.Timer(0.3, send)
    thread.start()
    with LiveSource(f"udp://127.0.0.1:{port}", mode="every-frame", reconnect_s=0) as source:
        frames = list(source)
    thread.join(10)
    assert shown(frames)[:28] == greys(*range(28))
    assert source.is_lost


def slowly(frame: Frame) -> Frame:
    time.sleep(0.005)
    return frame


def test_a_recording_behind_an_address_ends() -> None:
    """It is read as it is: again from its start, or its newest frame, would make no sense."""
    data = ts(25)
    head = f"HTTP/1.0 200 OK\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    for mode in ("freshest", "every-frame"):
        with LiveServer([head + data], [head + data], is_http=True) as server:
            with source_of(server, mode=mode, reconnect_s=5) as source:
                frames = [slowly(frame) for frame in source]
            assert shown(frames) == greys(*range(25))
            assert (source.is_lost, source.reconnects, source.dropped_frames) == (False, 0, 0)
            assert len(server.requests) == 1


def test_a_live_stream_over_http_comes_back() -> None:
    with LiveServer([HTTP_STREAM + ts(5)], [HTTP_STREAM + ts(5, first=5)], is_http=True) as server:
        source, frames = read(server, reconnect_s=1)
    assert shown(frames) == greys(*range(10))
    assert (source.reconnects, source.is_lost) == (1, True)


def test_a_stream_without_a_clock_is_timed_by_what_comes(clip: Clip) -> None:
    """MJPEG over HTTP: FFmpeg counts 25 frames as a second, whatever has passed."""
    import cv2
    import numpy as np

    parts = []
    for index in range(14):
        jpeg = cv2.imencode(".jpg", np.full((48, 64, 3), grey_of(index), np.uint8))[1].tobytes()
        parts.append(b"--b\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(jpeg) + jpeg + b"\r\n")
    head = b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=b\r\n\r\n"
    with LiveServer([head, *paced(parts, 0.1)], is_http=True) as server:
        _, frames = read(server)
    assert shown(frames) == greys(*range(14))
    assert frames[-1].time_s - frames[-5].time_s == pytest.approx(4 * 0.1, abs=0.1)


def refusal(url: str, **options: Any) -> InputError:
    with pytest.raises(InputError) as caught, LiveSource(url, **options):
        pytest.fail("it opened")
    return caught.value


def test_nobody_there() -> None:
    with closed_port() as port:
        error = refusal(f"tcp://user:s3cr3t@127.0.0.1:{port}/?k=s3cr3t")
    assert str(error).startswith(f"tcp://***@127.0.0.1:{port}/?***: connection refused; check the address")
    assert error.__cause__ is None
    assert error.__context__ is None


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("scheme", ["tcp", "http", "rtsp", "rtmp", "https", "rtsps"])
def test_nobody_answers(scheme: str) -> None:
    with LiveServer([HOLD], [HOLD]) as server:
        clock_s = time.monotonic()
        error = refusal(f"{scheme}://127.0.0.1:{server.port}/x")
        assert time.monotonic() - clock_s < 3
    assert "no answer in 0.5 s" in str(error)


@pytest.mark.usefixtures("quick")
def test_what_is_no_video() -> None:
    with LiveServer([b"hello\n" * 1000]) as server:
        assert "invalid data found" in str(refusal(server.url))
    with LiveServer([b"HTTP/1.0 401 Unauthorized\r\n\r\n"], is_http=True) as server:
        assert "401 unauthorized" in str(refusal(f"http://127.0.0.1:{server.port}/x"))
    assert "no such file" in str(refusal("/dev/video987"))
    assert "srt://127.0.0.1:9: " in str(refusal("srt://127.0.0.1:9"))  # not every PyAV knows it


def test_an_address_cannot_lead_to_a_file(clip: Clip) -> None:
    path = clip("private.ts", num_frames=10)
    listing = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{path}\n#EXT-X-ENDLIST\n".encode()
    head = b"HTTP/1.0 200 OK\r\nContent-Type: application/vnd.apple.mpegurl\r\n\r\n"
    with LiveServer([head + listing], is_http=True) as server:
        refusal(f"http://127.0.0.1:{server.port}/live.m3u8")


def test_wrong_options() -> None:
    wrong: list[dict[str, Any]] = [{"mode": "sometimes"}, {"reconnect_s": -1}, {"reconnect_s": math.nan}]
    wrong += [{"vid_stride": 0}, {"end_s": math.inf}, {"end_s": math.nan}, {"start_s": math.inf}]
    for options in wrong:
        with pytest.raises(UsageError):
            LiveSource("tcp://127.0.0.1:9", **options)
    with pytest.raises(UsageError, match="neither an address nor a camera"):
        LiveSource("ride.mp4")


def test_close_without_entering() -> None:
    source = LiveSource("tcp://127.0.0.1:9")
    source.close()
    source.close()
    with pytest.raises(UsageError, match="can be opened once"):
        source.__enter__()


def test_it_is_read_once() -> None:
    with LiveServer([ts(8)]) as server, source_of(server) as source:
        assert len(list(source)) == 8
        with pytest.raises(UsageError, match="read once"):
            iter(source)


def test_stop_from_another_thread_and_a_reader_that_does_not_come_back() -> None:
    with LiveServer([ts(20), HOLD]) as server:
        with source_of(server, reconnect_s=60) as source:
            timer = threading.Timer(0.3, source.stop)
            timer.start()
            frames = list(source)
            clock_s = time.monotonic()
        took_s = time.monotonic() - clock_s
        assert source._thread.is_alive()  # it waits in FFmpeg, for ten seconds at most
        assert took_s < STOP_S + 0.5
    source._thread.join(5)
    assert 0 < len(frames) <= 20
    assert (source.is_lost, source.is_stopped) == (False, True)


def test_a_reader_that_is_stuck_for_good_is_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver can hang where no time limit reaches."""
    monkeypatch.setattr("cdga_sdk.video.live._OPEN_S", 0.2)
    go_on = threading.Event()
    with LiveServer([ts(8)]) as server, source_of(server, reconnect_s=0.5) as source:
        monkeypatch.setattr("cdga_sdk.video.live.Connection", lambda *_: go_on.wait(20))
        assert len(list(source)) == 8
        assert source.is_lost
        go_on.set()


def test_an_error_of_the_reader_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: LiveClock, pts: int | None, now_s: float) -> int:
        raise ZeroDivisionError

    with LiveServer([ts(8)]) as server:
        monkeypatch.setattr(LiveClock, "place", broken)
        with pytest.raises(ZeroDivisionError), source_of(server):
            pytest.fail("it opened")


def placed(clock: LiveClock, *frames: tuple[float | None, float]) -> list[float]:
    return [clock.place(None if pts is None else ticks(pts), now_s) / 90_000 for pts, now_s in frames]


def test_the_clock_begins_at_0_and_follows_the_camera() -> None:
    clock = LiveClock(0.04)
    assert placed(clock, (7, 100), (7.04, 100.3), (7.08, 100.3), (7.5, 100.3)) == [0, 0.04, 0.08, 0.5]
    assert clock.repaired == 0


def test_the_clock_goes_on_after_a_loss() -> None:
    clock = LiveClock(0.04)
    placed(clock, (7, 100), (7.04, 100.04))
    clock.restart()
    assert placed(clock, (0, 105), (0.04, 105)) == [5, 5.04]
    clock.restart()  # the last connection began with a burst: time has not come so far yet
    assert placed(clock, (900, 105.01), (900.04, 105.02)) == [5.08, 5.12]
    clock.restart()
    assert placed(clock, (900.08, 107)) == [7]  # that it would fit says nothing
    assert clock.repaired == 0


def test_the_clock_mends_what_jumps_within_a_connection() -> None:
    clock = LiveClock(0.04)
    tick = 1 / 90_000
    assert placed(clock, (5, 0), (5, 0.04), (4.99, 0.08), (5.04, 0.1)) == pytest.approx([0, tick, 2 * tick, 0.04])
    assert placed(clock, (1, 3), (1.04, 3.04)) == pytest.approx([3, 3.04])
    assert placed(clock, (1e6, 3.1), (1e6 + 0.04, 3.14)) == pytest.approx([3.1, 3.14])
    assert placed(clock, (1e6 + 59, 3.2)) == pytest.approx([3.1 + 59])
    assert clock.repaired == 4


def test_frames_without_a_time_get_that_of_their_coming() -> None:
    clock = LiveClock(0.04)
    assert placed(clock, (None, 50), (None, 50.5), (None, 50.5)) == pytest.approx([0, 0.5, 0.5 + 1 / 90_000])
