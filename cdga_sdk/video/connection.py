"""One connection to a live source: opened, read and decoded with an end to every wait."""

from __future__ import annotations

import time
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, cast

import av
from av.codec.context import ThreadType

from cdga_sdk.errors import InputError
from cdga_sdk.video.address import LiveAddress
from cdga_sdk.video.container import MAX_PIXELS, video_stream
from cdga_sdk.video.live_clock import TIME_BASE

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

__all__ = ["Connection"]

# Whatever an address leads to, it cannot name a file of this machine.
_PROTOCOLS = "rtsp,rtsps,rtp,srtp,rtmp,rtmps,rtmpt,http,https,httpproxy,hls,tls,tcp,udp,srt,crypto"
# These demuxers count frames and call that time: when a frame comes is nearer to the truth.
_WITHOUT_CLOCK = frozenset({"mpjpeg", "mjpeg", "jpeg_pipe", "h264", "hevc", "m4v"})

# Over HTTP these are live although the play list has a size, or the server makes one up.
_LIVE_OVER_HTTP = frozenset({"hls", "mpjpeg"})


class Connection:
    """One open stream; its frames as they come, damage skipped and counted.

    Args:
        address: Where it is.
        open_s: Seconds for an answer.
        stall_s: Seconds without a frame before it counts as lost.

    Raises:
        InputError: It cannot be opened, or has no video that can be decoded.

    Attributes:
        corrupt_packets: Those that were marked or refused, up to the last frame.
        stream: The video.
        has_end: It is no live stream, but a recording.
    """

    def __init__(self, address: LiveAddress, open_s: float, stall_s: float) -> None:
        self.corrupt_packets = 0
        self._open_s, self._stall_s, self._last_s = open_s, stall_s, 0.0
        self._damaged, self._has_begun = 0, False
        self._container = _open(address, open_s, stall_s)
        try:
            self.stream: VideoStream = video_stream(self._container, address.place)
        except BaseException:
            self.close()
            raise
        self.stream.thread_type = ThreadType.SLICE  # frames on several threads would come late by one each
        self.stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        self.has_end = _has_end(self._container, address)
        self._has_clock = self._container.format.name not in _WITHOUT_CLOCK

    def close(self) -> None:
        """Hang up."""
        self._container.close()

    @property
    def rate(self) -> Fraction:
        """Frames per second, as the stream says or hints; 25 where that cannot be."""
        rates = (self.stream.average_rate, self.stream.guessed_rate)
        return next((rate for rate in rates if rate and Fraction(1, 10) <= rate <= 240), Fraction(25))

    def ticks_of(self, frame: VideoFrame) -> int | None:
        """The camera's time of a frame in ticks of `TIME_BASE`; None where it tells none."""
        if frame.pts is None or not self._has_clock:
            return None
        return round(frame.pts * Fraction(self.stream.time_base or 0) / TIME_BASE)

    def frames(self) -> Iterator[tuple[VideoFrame, float]]:
        """Each frame and the milliseconds that decoding took, until the stream ends.

        Raises:
            InputError: The connection broke, or no frame came in time.
        """
        self._last_s = time.monotonic()
        for packet in self._packets():
            clock = time.perf_counter()
            for frame in self._frames_of(packet):
                yield frame, 1e3 * (time.perf_counter() - clock)
                self._last_s, clock = time.monotonic(), time.perf_counter()

    def _packets(self) -> Iterator[Packet[VideoStream] | None]:
        """Packets of the stream, and None at the end: the decoder is to be drained."""
        broken: av.FFmpegError | None = None
        try:
            for packet in self._container.demux():  # sound too: PyAV would skip it for as long as there is nothing else
                if packet.size and packet.stream is self.stream:  # an empty packet would end the decoder
                    yield cast("Packet[VideoStream]", packet)
                patience_s = self._stall_s if self._has_begun else max(self._open_s, self._stall_s)  # for a keyframe
                if time.monotonic() - self._last_s > patience_s:
                    raise InputError(f"data, but no picture in {patience_s:.3g} s")
        except av.FFmpegError as error:
            broken = error
        except IndexError:  # PyAV, at the end of a stream in which another began midway
            pass
        yield None
        if broken is not None:
            raise InputError(_reason(broken))

    def _frames_of(self, packet: Packet[VideoStream] | None) -> list[VideoFrame]:
        """Damage is counted once a frame follows it: who joins midway, and is cut off, has lost nothing by that."""
        try:
            frames = self.stream.decode(packet)
        except av.FFmpegError:
            self._damaged += self._has_begun
            return []
        if frames:
            self.corrupt_packets += self._damaged
            self._damaged, self._has_begun = 0, True
        self._damaged += self._has_begun and packet is not None and packet.is_corrupt
        return frames


def _open(address: LiveAddress, open_s: float, stall_s: float) -> InputContainer:
    started_s = time.monotonic()
    try:
        return av.open(
            address.url,
            format="v4l2" if address.is_camera else None,
            options=_options(address, stall_s),
            metadata_errors="replace",
            timeout=(open_s, stall_s),
        )
    except (av.FFmpegError, ValueError) as error:
        is_late = time.monotonic() - started_s >= open_s
        raise InputError(f"no answer in {open_s:.3g} s" if is_late else _reason(error)) from None  # it tells the URL


def _has_end(container: InputContainer, address: LiveAddress) -> bool:
    """Whether a recording lies behind an address: its length is known, in seconds or in bytes."""
    is_file = address.url.startswith("http") and container.format.name not in _LIVE_OVER_HTTP and container.size > 0
    return bool(container.duration) or is_file


def _options(address: LiveAddress, stall_s: float) -> dict[str, str]:
    # FFmpeg would look at 20 frames, four seconds of a slow camera, to learn the rate: for us it is a hint.
    options = {"max_pixels": str(MAX_PIXELS), "fpsprobesize": "5", "analyzeduration": "2000000"}
    if address.is_camera:
        return options
    options["protocol_whitelist"] = _PROTOCOLS
    if address.url.startswith("rtsp"):  # through most routers only TCP comes; and hanging up must not wait either
        options |= {"rtsp_flags": "prefer_tcp", "timeout": str(round(1e6 * stall_s))}
    return options


def _reason(error: av.FFmpegError | ValueError) -> str:
    """What FFmpeg says, without the address."""
    if isinstance(error, av.error.ExitError):
        return "it fell silent"
    if isinstance(error, av.error.ProtocolNotFoundError):
        return "the FFmpeg inside this PyAV cannot read addresses of this kind"
    return (getattr(error, "strerror", None) or "it cannot be opened").lower()
