"""Frames to H.264 in MP4: times from the first on, tick by tick; the final name exists only when the file is whole.

While frames come in, ``NAME.partial.mp4`` grows beside the final file (see `PartialVideo`) as a fragmented MP4, which
plays up to its last keyframe even after a ``kill -9``; before its second keyframe it holds none. The whole file is a
faststart MP4.
"""

from __future__ import annotations

import errno
import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Final

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from cdga_sdk.errors import InputError, UsageError, counted
from cdga_sdk.video.container import open_container, video_stream
from cdga_sdk.video.partial import PartialVideo
from cdga_sdk.video.upright import SQUARE
from cdga_sdk.video.yuv_overlay import BT709, ColorTags, Picture

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream
    from numpy.typing import NDArray

__all__ = ["MAX_SIDE", "VideoInfo", "VideoSink", "check_encoding", "probe"]

MAX_SIDE: Final = 16_384
"""Of a picture, pixels: x264 takes no more."""

PRESETS: Final = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")
# The fastest presets do without some of these, or all: deblocking, CABAC, a macroblock tree. With them their files are
# hardly larger, and their pictures hardly worse, than those of presets that take much longer (benchmarks/encoder.py).
# The tree looks at few frames, for those that the encoder holds are lost by a kill -9.
_ALWAYS: Final = "no-deblock=0:cabac=1:mbtree=1:rc-lookahead=5"
_KEYFRAME_EVERY_S: Final = 2  # also the most that a kill -9 can lose, beside the encoder's own few frames
# FFmpeg gives a frame that lies further behind the one before, in ticks, the next tick of all. With nanoseconds that
# would be two seconds, so that the overlay's own ticks are no finer than these.
_LONGEST_STEP: Final = 2**31 - 2
_FINEST_TICK: Final = Fraction(1, 10_000_000)
_FRAGMENTED: Final = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"}


class VideoSink(PartialVideo):
    """Writes frames to one H.264 MP4 (yuv420p); a context manager.

    B-frames are off: decoding order is then showing order, so that an MP4 can hold every gap of a
    variable frame rate exactly and a cut-off file loses less, for somewhat larger files.

    The file's clock starts at 0 with the first frame, whatever its ``pts``: players show nothing for as long as an MP4
    starts later. Its ticks are those of ``time_base``, or 100 ns where that is finer. A frame that comes 2**31 ticks or
    more behind the one before (6 hours at 90 kHz), which no MP4 holds, is shown earlier; those behind it are not.

    Args:
        path: the final file; its name ends in ``.mp4``. Replaced on success only. A ``.partial.mp4`` of an
            earlier run is replaced at once. That neither is the input is for the caller to check; see `PartialVideo`.
        size_wh: width and height of the frames. Odd sizes are padded by one repeated edge pixel.
        rate: nominal frames per second; only a hint where the frame rate varies.
        time_base: seconds of one tick of ``pts``.
        crf: x264 quality, 0 (lossless) to 51.
        preset: x264 speed, one of ``PRESETS``; all with the deblocking filter, CABAC and a macroblock tree that looks
            five frames ahead, which the fastest do without in x264 itself.
        tags: colours of the file: those of the pictures that are to be written as they are. The range is limited or
            not said, the matrix BT.601's, BT.709's or not said, and nothing is of a reserved value.
        sample_aspect_ratio: width by height of one pixel as it is shown.

    Raises:
        UsageError: a bad argument, or a folder that is missing or not writable.
        ResourceError: the disk is full or failing.

    Attributes:
        path: the file that there is: the final name after success, the ``.partial.mp4`` name otherwise.
        padded_wh: size of the encoded pictures.
        tags: colours of the file.
        frames_written: frames taken so far.
        resized_frames: frames that came in another size than announced and were scaled to it.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        size_wh: tuple[int, int],
        rate: Fraction,
        time_base: Fraction,
        crf: int = 20,
        preset: str = "ultrafast",
        tags: ColorTags = BT709,
        sample_aspect_ratio: Fraction = SQUARE,
    ) -> None:
        _check_arguments(Path(path), size_wh, rate, time_base, crf, preset, tags, sample_aspect_ratio)
        tick = max(time_base, _FINEST_TICK)
        options = _FRAGMENTED | _tick_options(tick)
        super().__init__(Path(path), what="the video", container="mp4", options=options, time_base=tick)
        self.size_wh = size_wh
        self.padded_wh = (size_wh[0] + size_wh[0] % 2, size_wh[1] + size_wh[1] % 2)
        self.tags = tags
        self._sample_aspect_ratio = sample_aspect_ratio
        self.resized_frames = 0
        self._source_tick = time_base
        self._first_pts, self._last_tick = 0, -1
        self._rate = rate
        self._x264 = {"crf": str(crf), "preset": preset, "forced-idr": "1", "bf": "0", "x264-params": _ALWAYS}
        self._keyframe_ticks = math.floor(_KEYFRAME_EVERY_S / time_base)
        self._keyframe_pts = 0
        self._to_yuv, self._to_size = VideoReformatter(), VideoReformatter()

    def _add_stream(self, container: OutputContainer) -> VideoStream:
        stream = container.add_stream("libx264", rate=self._rate, options=self._x264)
        stream.width, stream.height = self.padded_wh
        stream.pix_fmt = "yuv420p"
        stream.time_base = self._time_base
        codec = stream.codec_context
        codec.time_base = self._time_base
        codec.gop_size = max(1, math.floor(_KEYFRAME_EVERY_S * self._rate))
        codec.sample_aspect_ratio = self._sample_aspect_ratio
        codec.colorspace, codec.color_range = self.tags.matrix, self.tags.range
        codec.color_primaries, codec.color_trc = self.tags.primaries, self.tags.transfer
        return stream

    @property
    def start_s(self) -> float | None:
        """Seconds of ``pts`` at which the file's clock starts; None before the first frame."""
        return float(self._first_pts * self._source_tick) if self.frames_written else None

    def write(self, image_bgr: NDArray[np.uint8], pts: int) -> None:
        """Encode one frame.

        Args:
            image_bgr: ``(H, W, 3)`` uint8, BGR; of another size than announced it is scaled and counted.
            pts: presentation time in ticks of ``time_base``; later than that of the frame before.

        Raises:
            UsageError: the array is no such image, or ``pts`` does not increase.
            ResourceError: the disk is full or failing.
        """
        if image_bgr.ndim != 3 or image_bgr.shape[2] != 3 or image_bgr.dtype != np.uint8:
            raise UsageError(f"got an array {image_bgr.shape} of {image_bgr.dtype}; wanted (H, W, 3) of uint8")
        with self._writing(pts):
            self._mux(self._stream.encode(self._timed(self._frame(image_bgr), pts)))

    def takes(self, picture: Picture) -> bool:
        """Whether ``picture`` can be written as it is: it has the file's size and colours."""
        return picture.size_wh == self.size_wh and picture.tags == self.tags

    def write_picture(self, picture: Picture, pts: int) -> None:
        """Encode one picture as it is.

        Args:
            picture: one that it `takes`, and that nobody else uses: its time is set.
            pts: as for `write`.

        Raises:
            UsageError: it has another size or other colours, or ``pts`` does not increase.
            ResourceError: the disk is full or failing.
        """
        if not self.takes(picture):
            got, wanted = (picture.size_wh, picture.tags), (self.size_wh, self.tags)
            raise UsageError(f"got a picture of {got}; wanted {wanted}", fix="write it as an image")
        with self._writing(pts):
            self._mux(self._stream.encode(self._timed(picture.frame, pts)))

    def _frame(self, image_bgr: NDArray[np.uint8]) -> VideoFrame:
        image_bgr = self._padded(image_bgr)
        # A copy costs as much as the rest of this. But where lines are no multiple of 32 bytes FFmpeg reads on, beyond
        # the end of the array.
        is_safe = image_bgr.strides[0] % 32 == 0
        wrap = av.VideoFrame.from_numpy_buffer if is_safe else av.VideoFrame.from_ndarray
        frame = wrap(image_bgr, format="bgr24")
        matrix = Colorspace.ITU709 if self.tags.is_bt709 else Colorspace.ITU601
        return self._to_yuv.reformat(frame, format="yuv420p", dst_colorspace=matrix, dst_color_range=ColorRange.MPEG)

    def _timed(self, frame: VideoFrame, pts: int) -> VideoFrame:
        self._first_pts = self._first_pts if self.frames_written else pts
        tick = round((pts - self._first_pts) * self._source_tick / self._time_base)
        self._last_tick = max(self._last_tick + 1, min(tick, self._last_tick + _LONGEST_STEP))
        frame.pts, frame.time_base = self._last_tick, self._time_base
        if pts - self._keyframe_pts >= self._keyframe_ticks or not self.frames_written:
            frame.pict_type = PictureType.I
            self._keyframe_pts = pts
        return frame

    def _padded(self, image_bgr: NDArray[np.uint8]) -> NDArray[np.uint8]:
        width, height = self.size_wh
        if image_bgr.shape[:2] != (height, width):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image_bgr), format="bgr24")
            image_bgr = np.asarray(self._to_size.reformat(frame, width=width, height=height).to_ndarray(), np.uint8)
            self.resized_frames += 1
        if self.padded_wh != self.size_wh:
            image_bgr = np.pad(image_bgr, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        return np.ascontiguousarray(image_bgr)

    def _copy_to(self, whole: Path) -> None:
        copied = _remux(self._partial, whole, self._time_base)
        if copied != self.frames_written:  # FFmpeg tells of no failed write in the last fragment
            lost = self.frames_written - copied
            raise OSError(errno.EIO, f"its last {counted(lost, 'frames')} did not reach the disk")


def _check_arguments(
    path: Path,
    size_wh: tuple[int, int],
    rate: Fraction,
    time_base: Fraction,
    crf: int,
    preset: str,
    tags: ColorTags,
    sample_aspect_ratio: Fraction,
) -> None:
    wrong = (
        (path.suffix.lower() != ".mp4", f"the video's name ends in '{path.suffix}'; it must end in .mp4"),
        (min(size_wh) < 1 or max(size_wh) > MAX_SIDE, f"size_wh is {size_wh}; both must be 1 to {MAX_SIDE}"),
        (rate <= 0, f"rate is {rate}; it must be above 0"),
        (time_base <= 0, f"time_base is {time_base}; it must be above 0"),
        (not tags.can_be_written, f"tags are {tags}; wanted limited range, BT.601's or BT.709's matrix, none reserved"),
        (sample_aspect_ratio <= 0, f"sample_aspect_ratio is {sample_aspect_ratio}; it must be above 0"),
    )
    for is_wrong, message in wrong:
        if is_wrong:
            raise UsageError(message, where=path)
    check_encoding(crf, preset)


def check_encoding(crf: int, preset: str) -> None:
    """Raise a UsageError for an option of x264 that is out of range."""
    if not 0 <= crf <= 51:
        raise UsageError(f"crf is {crf}; it must be 0 to 51")
    if preset not in PRESETS:
        raise UsageError(f"preset is '{preset}'; it must be one of {', '.join(PRESETS)}")


def _tick_options(time_base: Fraction) -> dict[str, str]:
    """Let one tick of the track, and of its edit list, be exactly 1/denominator s: nothing is rounded."""
    ticks_per_s = str(time_base.denominator)
    return {"video_track_timescale": ticks_per_s, "movie_timescale": ticks_per_s}


def _remux(source: Path, target: Path, time_base: Fraction) -> int:
    """Copy packets as they are and count them; only their common offset changes, so that the first is at 0."""
    options = {"movflags": "faststart"} | _tick_options(time_base)
    copied = 0
    with (
        open_container(source) as reader,
        av.open(str(target.absolute()), "w", format="mp4", options=options) as writer,
    ):
        stream = video_stream(reader, source)
        copy = writer.add_stream_from_template(stream, opaque=True)
        shift: int | None = None
        for packet in reader.demux(stream):
            # The last one is empty; one of which the disk took a part only is marked.
            if packet.pts is None or packet.dts is None or packet.is_corrupt:
                continue
            assert packet.time_base == Fraction(1, time_base.denominator)
            shift = packet.pts if shift is None else shift
            packet.pts -= shift
            packet.dts -= shift
            packet.stream = copy
            writer.mux(packet)
            copied += 1
    return copied


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a video file holds, counted and not believed.

    Attributes:
        size_wh: width and height of the stored pictures, before any turn.
        average_rate: frames per second as the container gives it.
        num_frames: packets of the video stream.
        duration_s: from the first frame shown to the end of the last.
        codec: name of the decoder.
        pix_fmt: FFmpeg's name of the pixel format.
    """

    size_wh: tuple[int, int]
    average_rate: Fraction
    num_frames: int
    duration_s: float
    codec: str
    pix_fmt: str


def probe(path: str | Path) -> VideoInfo:
    """Describe a video file after reading all its packets; nothing is decoded.

    Raises:
        InputError: the file is missing, refused, or broken.
    """
    with open_container(path) as container:
        stream = video_stream(container, path)
        num_frames, duration_s = _counted(container, stream, Path(path))
        return VideoInfo(
            size_wh=(stream.width, stream.height),
            average_rate=stream.average_rate or Fraction(0),
            num_frames=num_frames,
            duration_s=duration_s,
            codec=stream.codec_context.name,
            pix_fmt=stream.pix_fmt or "unknown",
        )


def _counted(container: InputContainer, stream: VideoStream, path: Path) -> tuple[int, float]:
    num_frames, start, end = 0, math.inf, -math.inf
    try:
        for packet in container.demux(stream):
            if packet.size:
                num_frames += 1
                pts = packet.pts if packet.pts is not None else packet.dts
                if pts is not None:
                    start, end = min(start, pts), max(end, pts + (packet.duration or 0))
    except av.FFmpegError as error:
        raise InputError(f"reading stopped after {num_frames} frames ({error.strerror})", where=path) from error
    return num_frames, float((end - start) * (stream.time_base or 0)) if num_frames else 0.0
