"""A server that plays one script for each connection: bytes are sent, numbers are seconds of silence."""

from __future__ import annotations

import base64
import contextlib
import io
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from fractions import Fraction
from types import TracebackType
from typing import Self

import av
import numpy as np

Script = Sequence[bytes | float]

HTTP_STREAM = b"HTTP/1.0 200 OK\r\nContent-Type: video/mp2t\r\n\r\n"
HOLD = 60.0  # longer than any test waits; a server that closes lets go at once


def packets_of_ts(
    num_frames: int, *, size_wh: tuple[int, int] = (64, 48), rate: int = 25, first: int = 0, sound_s: float = 0
) -> list[bytes]:
    """An MPEG-TS stream of H.264, cut behind each frame: frame ``i`` is grey by ``grey_of(first + i)``.

    With ``sound_s`` so many seconds of silence follow the last frame, cut behind each of its packets.
    """
    file = io.BytesIO()
    pieces: list[bytes] = []

    def cut() -> None:
        pieces.append(file.getvalue())
        file.seek(0)
        file.truncate()

    with av.open(file, "w", format="mpegts", options={"flush_packets": "1"}) as container:
        video = container.add_stream("libx264", rate=rate, options={"preset": "ultrafast", "tune": "zerolatency"})
        video.width, video.height, video.pix_fmt = *size_wh, "yuv420p"
        video.codec_context.gop_size = 10
        sound = container.add_stream("mp2", rate=48_000, layout="mono") if sound_s else None
        for index in range(num_frames):
            image = np.full((size_wh[1], size_wh[0], 3), grey_of(first + index), np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="bgr24")
            frame.pts, frame.time_base = index, Fraction(1, rate)
            container.mux(video.encode(frame))
            cut()
        container.mux(video.encode(None))
        if sound is not None:
            for index in range(round(sound_s * 48_000 / 1152)):
                silence = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.int16), format="s16", layout="mono")
                silence.sample_rate, silence.pts, silence.time_base = 48_000, index * 1152, Fraction(1, 48_000)
                container.mux(sound.encode(silence))
                cut()
    cut()
    return [piece for piece in pieces if piece]


def grey_of(index: int) -> int:
    """Brightness of frame ``index``."""
    return 24 + index * 8 % 208


def ts(num_frames: int, **options: object) -> bytes:
    """The same in one piece."""
    return b"".join(packets_of_ts(num_frames, **options))  # type: ignore[arg-type]


def paced(pieces: Sequence[bytes], pause_s: float) -> list[bytes | float]:
    """A pause behind each piece."""
    return [part for piece in pieces for part in (piece, pause_s)]


class LiveServer:
    """A context manager; gone, so that nobody can connect, once the last script is through.

    Args:
        scripts: One for each connection.
        is_http: It reads a request first, and keeps it in ``requests``.
        down_s: Seconds between two connections in which the port is closed.
    """

    def __init__(self, *scripts: Script, is_http: bool = False, down_s: float = 0) -> None:
        self.connections = 0
        self.requests: list[bytes] = []
        self._scripts, self.is_http, self._down_s = scripts, is_http, down_s
        self._listener: socket.socket | None = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def url(self) -> str:
        """Where it is, over plain TCP."""
        return f"tcp://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_closed.set()
        self._hang_up()
        self._thread.join(5)
        assert not self._thread.is_alive()

    def _hang_up(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes an accept
            listener.close()

    def _serve(self) -> None:
        for number, script in enumerate(self._scripts):
            if number and self._down_s:
                self._hang_up()
                if self._is_closed.wait(self._down_s):
                    return
                self._listener = socket.create_server(("127.0.0.1", self.port))
            listener = self._listener
            if listener is None:
                return
            with contextlib.suppress(OSError):  # hung up by one side or the other
                listener.settimeout(20)
                connection, _ = listener.accept()
                self.connections += 1
                if number == len(self._scripts) - 1:
                    self._hang_up()
                with connection:
                    connection.settimeout(20)
                    self._play(connection, script)
        self._hang_up()

    def _play(self, connection: socket.socket, script: Script) -> None:
        if self.is_http:
            self.requests.append(connection.recv(65536))
        for part in script:
            if isinstance(part, bytes):
                connection.sendall(part)
            elif not self._waited(connection, part):
                return

    def _waited(self, connection: socket.socket, pause_s: float) -> bool:
        """False where the other side, or this one, hung up."""
        end_s = time.monotonic() + pause_s
        while (left_s := end_s - time.monotonic()) > 0:
            readable, _, _ = select.select([connection], [], [], min(left_s, 0.05))
            if self._is_closed.is_set() or (readable and not connection.recv(65536)):
                return False
        return True


@contextlib.contextmanager
def closed_port() -> Iterator[int]:
    """A port at which nobody listens, and nobody else will."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


class RtspServer(LiveServer):
    """RTSP as cameras speak it: a password is asked for, and MPEG-TS comes in RTP packets over the same connection.

    A script's bytes are sent in packets of seven TS packets, as RFC 2250 has it.
    """

    @property
    def url(self) -> str:
        """Where it is, for who may see it."""
        return f"rtsp://user:s3cr3t@127.0.0.1:{self.port}/front"

    def _play(self, connection: socket.socket, script: Script) -> None:
        lines = connection.makefile("rb")
        method = b""
        while method != b"PLAY":
            method = lines.readline().split(b" ")[0]
            fields = dict(line.split(b": ", 1) for line in iter(lambda: lines.readline().strip(), b""))
            if not fields:
                return
            connection.sendall(self._answer(method, fields))
        for sequence, part in enumerate(self._cut(script)):
            if isinstance(part, bytes):
                packet = struct.pack(">BBHII", 0x80, 33, sequence & 0xFFFF, sequence * 3600, 1) + part
                connection.sendall(b"$\0" + struct.pack(">H", len(packet)) + packet)
            elif not self._waited(connection, part):
                return

    @staticmethod
    def _cut(script: Script) -> Iterator[bytes | float]:
        for part in script:
            if isinstance(part, bytes):
                yield from (part[start : start + 7 * 188] for start in range(0, len(part), 7 * 188))
            else:
                yield part

    @staticmethod
    def _answer(method: bytes, fields: dict[bytes, bytes]) -> bytes:
        status, head, body = b"200 OK", b"Session: 1\r\n", b""
        if method == b"DESCRIBE" and fields.get(b"Authorization") != b"Basic " + base64.b64encode(b"user:s3cr3t"):
            status, head = b"401 Unauthorized", b'WWW-Authenticate: Basic realm="camera"\r\n'
        elif method == b"DESCRIBE":
            head = b"Content-Type: application/sdp\r\n"
            body = b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\na=control:track\r\n"
        elif method == b"SETUP":
            assert b"TCP" in fields[b"Transport"]
            head += b"Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n"
        length = b"Content-Length: %d\r\n" % len(body)
        return b"RTSP/1.0 %s\r\nCSeq: %s\r\n%s%s\r\n%s" % (status, fields[b"CSeq"], head, length, body)
