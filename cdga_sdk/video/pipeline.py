"""Source to outputs. Frames are decoded ahead on one thread, segmented on the caller's or on as many as the runtime
likes, and drawn and written behind on another; a few wait between them, and nothing grows with the length of the video.
A live source reads on its own thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

from cdga_sdk.errors import CdgaError, InputError, InterruptedRunError, UsageError
from cdga_sdk.image import read_image_bgr
from cdga_sdk.prediction import PredictedFrame
from cdga_sdk.result import SegResult
from cdga_sdk.smoothing import Smoother, check_share
from cdga_sdk.video.address import LiveAddress, live_address
from cdga_sdk.video.gaps import is_large
from cdga_sdk.video.label_stream import LabelSink
from cdga_sdk.video.live import RECONNECT_S, LiveMode, LiveSource, check_live
from cdga_sdk.video.output import make_folder_of
from cdga_sdk.video.partial import refuse_own_input
from cdga_sdk.video.run_folder import (
    FrameSegmenter,
    RunFolder,
    RunPlan,
    RunSummary,
    SaveWhat,
    SourceCounts,
    check_save,
    is_overlay_alone,
    refuse_labels_of_images,
    refuse_own_images,
    refuse_too_large_for_jpeg,
)
from cdga_sdk.video.sink import MAX_SIDE, VideoSink, check_encoding
from cdga_sdk.video.source import Frame, VideoSource, check_range
from cdga_sdk.video.stages import ReadAhead, WriteBehind, in_order
from cdga_sdk.video.yuv_overlay import Picture

__all__ = [
    "Quality",
    "VideoOptions",
    "live_source",
    "of_quality",
    "open_video",
    "segment_images",
    "segment_video",
    "segmented",
]

OnFrame = Callable[[SegResult], None]


Quality = Literal["fast", "balanced", "high"]
# Preset and constant quality of x264, chosen by benchmarks/encoder.py.
_QUALITIES: Final[Mapping[Quality, tuple[str, int]]] = MappingProxyType(
    {"fast": ("ultrafast", 24), "balanced": ("ultrafast", 20), "high": ("veryfast", 14)}
)


@dataclass(frozen=True, kw_only=True)
class VideoOptions:
    """How a video is read and how the overlay is written.

    Attributes:
        alpha: Opacity of the class colours, 0 to 1.
        vid_stride: Segment every n-th frame.
        start_s: Skip what lies before this time, seconds.
        end_s: Stop at this time, seconds.
        max_frames: Stop after this many frames.
        crf: x264's constant quality, 0 (lossless) to 51.
        preset: x264's speed preset; see `VideoSink`.
        live: Of a live source: ``freshest`` frame, dropping those that came meanwhile, or ``every-frame``.
        reconnect_s: Seconds without a frame after which a live source is given up.
        smooth: Average class probabilities over time, each carried along by optical flow: the share of the present
            frame, above 0 and up to 1, less for steadier masks. None takes each frame as the network sees it.
    """

    alpha: float = 0.5
    vid_stride: int = 1
    start_s: float | None = None
    end_s: float | None = None
    max_frames: int | None = None
    crf: int = 20
    preset: str = "ultrafast"
    live: LiveMode = "freshest"
    reconnect_s: float = RECONNECT_S
    smooth: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise UsageError(f"alpha is {self.alpha}, wanted 0 to 1")
        check_range(self.vid_stride, self.start_s, self.end_s, self.max_frames)
        check_encoding(self.crf, self.preset)
        check_live(self.live, self.reconnect_s)
        check_share(self.smooth)


def of_quality(options: VideoOptions, quality: Quality) -> VideoOptions:
    """The same with the encoder set for ``fast`` (coarser), ``balanced`` (the default) or ``high`` (finer, slower)."""
    preset, crf = _QUALITIES[quality]
    return replace(options, preset=preset, crf=crf)


def open_video(
    source: str | Path | VideoSource | LiveSource, options: VideoOptions
) -> AbstractContextManager[VideoSource | LiveSource]:
    """What reads ``source``, a video file, an address or a camera; it opens on entering.

    What is open already is read as it is, and stays open.

    Raises:
        UsageError: An option is out of range, or a source that was given is not open.
        InputError: An address of a kind that is not read; on entering, a source that cannot be opened.
    """
    if isinstance(source, VideoSource | LiveSource):
        if not source.is_open:
            raise UsageError("the source is not open", where=_place(source), fix="open it first: with source: ...")
        return nullcontext(source)
    address = live_address(source)
    if address is None:
        return VideoSource(
            source,
            vid_stride=options.vid_stride,
            start_s=options.start_s,
            end_s=options.end_s,
            max_frames=options.max_frames,
        )
    return live_source(address, options)


def live_source(address: LiveAddress, options: VideoOptions) -> LiveSource:
    """The source that reads ``address``; it opens on entering."""
    return LiveSource(
        address,
        mode=options.live,
        reconnect_s=options.reconnect_s,
        vid_stride=options.vid_stride,
        start_s=options.start_s,
        end_s=options.end_s,
        max_frames=options.max_frames,
    )


@dataclass(frozen=True)
class Made:
    """A result on its way to the files.

    Attributes:
        result: Of one frame.
        decode_ms: How long that took to decode.
        pts: The ticks it is at.
        picture: See `Frame`.
    """

    result: SegResult
    decode_ms: float
    pts: int
    picture: Picture | None


def segmented(
    segmenter: FrameSegmenter,
    timed: Iterable[tuple[Frame, float]],
    *,
    place: str,
    at_once: int,
    smoother: Smoother | None,
) -> Iterator[Made]:
    """The result of each frame of one stream, in order.

    Args:
        segmenter: Used on threads where several frames are segmented at once.
        timed: Frames with the milliseconds that decoding them took.
        place: Names the stream in the results.
        at_once: Frames that are segmented at a time.
        smoother: Of this stream. It has to see one frame after the other, so the caller's thread finishes them then.
    """

    def predicted(one: tuple[Frame, float]) -> tuple[Frame, float, PredictedFrame]:
        return *one, segmenter.predict(one[0].image_bgr)

    def finished(one: tuple[Frame, float, PredictedFrame]) -> Made:
        frame, decode_ms, seen = one
        result = segmenter.finish(seen, source=place, frame=frame.index, time_s=frame.time_s, smoother=smoother)
        return Made(result, decode_ms, frame.pts, frame.picture)

    if smoother is None:
        return in_order(lambda one: finished(predicted(one)), timed, at_once=at_once)
    return map(finished, in_order(predicted, timed, at_once=at_once))


def segment_video(
    segmenter: FrameSegmenter,
    source: str | Path | VideoSource | LiveSource,
    folder: Path,
    *,
    save: Sequence[SaveWhat],
    options: VideoOptions,
    exist_ok: bool = True,
    video_path: Path | None = None,
    is_new_folder: bool = False,
    on_frame: OnFrame | None = None,
    may_paint: bool = True,
) -> RunSummary:
    """Segment a video or a live source into ``folder``; see `Segmenter.process_video`.

    A source that is open already has to be open with the same ``options``. For ``is_new_folder`` see `RunPlan`.

    Where ``on_frame`` is given and ``may_paint``, the overlay is drawn on ``image_bgr``, so that it shows what the
    callback changed there. A callback that changes nothing says so by ``may_paint=False``: drawing on the decoded
    picture, where that can be, is faster.
    """
    save = check_save(save)
    owns_folder = video_path is None or not is_overlay_alone(save)
    video_path, labels_path = video_path or folder / "overlay.mp4", folder / "labels.nut"
    _refuse_own_input(source, [p for what, p in (("video", video_path), ("labels", labels_path)) if what in save])
    smoother = segmenter.smoother(options.smooth)  # refused before anything is made
    if not owns_folder:
        folder = video_path.parent

    def expected_of(frames: VideoSource | LiveSource) -> int | None:
        return frames.num_frames_expected if options == _whole_video(options) else None

    def plan(frames: VideoSource | LiveSource) -> RunPlan:
        is_in_own_folder = owns_folder and video_path.parent == folder  # which the run makes, and takes away if empty
        if "video" in save and not is_in_own_folder:  # not before the source is open: a bad one leaves nothing behind
            make_folder_of(video_path)
        return RunPlan(
            folder=folder,
            owns_folder=owns_folder,
            video_path=video_path if "video" in save else None,
            exist_ok=exist_ok,
            is_new_folder=is_new_folder,
            save=save,
            source=_place(frames),
            expected_frames=expected_of(frames),
            frames_at_once=1 if isinstance(frames, LiveSource) else segmenter.frames_at_once,
            smooth=options.smooth,
        )

    with (
        open_video(source, options) as frames,
        RunFolder(plan(frames), segmenter, partial(_counts_of, frames, expected_of(frames))) as outputs,
    ):
        if "video" in save:
            outputs.attach(_overlay_sink(frames, video_path, options))
        if "labels" in save:
            outputs.attach_labels(_label_sink(frames, labels_path, options))
        is_painted = on_frame is not None and may_paint

        def write(made: Made) -> None:
            picture = None if is_painted else made.picture
            name = f"{_stem(frames)}_{made.result.frame:06d}"
            outputs.write(made.result, name, made.decode_ms, options.alpha, pts=made.pts, picture=picture)

        place, at_once = outputs.plan.source, outputs.plan.frames_at_once
        with _timed(frames) as decoded, WriteBehind(write, abandon=outputs.abandon) as behind:
            for made in segmented(segmenter, decoded, place=place, at_once=at_once, smoother=smoother):
                if on_frame:
                    on_frame(made.result)
                behind.put(made)
        if not outputs.frames:
            raise _nothing_from(frames)
    return outputs.summary


def _refuse_own_input(source: str | Path | VideoSource | LiveSource, outputs: Sequence[Path]) -> None:
    if isinstance(source, LiveSource):
        return
    for output in outputs:
        refuse_own_input(source.path if isinstance(source, VideoSource) else Path(source), output)


def _overlay_sink(frames: VideoSource | LiveSource, path: Path, options: VideoOptions) -> VideoSink:
    width, height = frames.size_wh
    if max(width, height) > MAX_SIDE:
        raise InputError(
            f"its frames are {width}x{height}; an overlay has {MAX_SIDE} a side at most",
            where=_place(frames),
            fix="save masks or labels instead",
        )
    return VideoSink(
        path,
        size_wh=frames.size_wh,
        rate=_nominal_rate(frames, options),
        time_base=frames.time_base,
        crf=options.crf,
        preset=options.preset,
        tags=frames.overlay_tags,
        sample_aspect_ratio=frames.sample_aspect_ratio,
    )


def _label_sink(frames: VideoSource | LiveSource, path: Path, options: VideoOptions) -> LabelSink:
    width, height = frames.size_wh
    if min(width, height) < 2:
        raise InputError(
            f"its frames are {width}x{height}; 'labels' wants 2x2 or more",
            where=_place(frames),
            fix="save masks instead",
        )
    return LabelSink(path, size_wh=(width, height), rate=_nominal_rate(frames, options), time_base=frames.time_base)


def _nominal_rate(frames: VideoSource | LiveSource, options: VideoOptions) -> Fraction:
    """Frames per second, for players; no further from 1 and no finer than an encoder's integers hold."""
    rate = frames.average_rate / options.vid_stride
    return min(max(rate, Fraction(1, 10_000)), Fraction(100_000)).limit_denominator(10_000)


def segment_images(
    segmenter: FrameSegmenter,
    images: Sequence[Path],
    folder: Path,
    *,
    save: Sequence[SaveWhat],
    exist_ok: bool = True,
    alpha: float = 0.5,
    is_new_folder: bool = False,
    on_frame: OnFrame | None = None,
) -> RunSummary:
    """Segment still images into ``folder``: overlay/NAME.jpg, masks/NAME.png, conf/NAME.png, stats.jsonl, summary.json.

    An image that cannot be read, or is too large for the overlay that is asked for, is counted in ``summary.lost`` and
    named in stats.jsonl; the others are segmented.

    Raises:
        UsageError: ``save`` holds "labels" or an unknown word, or is empty; or an image lies where it would be written.
        InputError: Not one image could be read.
    """
    save = check_save(save)
    refuse_labels_of_images(save)
    refuse_own_images(images, folder, save)
    first_error: InputError | None = None
    plan = RunPlan(
        folder=folder,
        exist_ok=exist_ok,
        is_new_folder=is_new_folder,
        save=save,
        source=str(images[0] if len(images) == 1 else images[0].parent),
        expected_frames=len(images),
        frames_at_once=segmenter.frames_at_once,
    )
    with RunFolder(plan, segmenter) as outputs:

        def segmented(numbered: tuple[int, Path]) -> tuple[SegResult, float] | InputError:
            index, path = numbered
            clock = time.perf_counter()
            try:
                image_bgr = read_image_bgr(path)
                if "video" in save:
                    refuse_too_large_for_jpeg(path, image_bgr)
            except InputError as error:
                return error
            decode_ms = 1e3 * (time.perf_counter() - clock)
            return segmenter.segment(image_bgr, source=str(path), frame=index), decode_ms

        made = in_order(segmented, enumerate(images), at_once=plan.frames_at_once)
        for path, name, found in zip(images, _unique_stems(images), made, strict=True):
            if isinstance(found, InputError):
                first_error = first_error or found
                outputs.lose(path, found)
                continue
            result, decode_ms = found
            if on_frame:
                on_frame(result)
            outputs.write(result, name, decode_ms, alpha)
        if first_error and not outputs.frames:
            raise first_error
    return outputs.summary


def _unique_stems(paths: Iterable[Path]) -> list[str]:
    """Stems, made unique by the suffix and, where folders differ too, by a number."""
    taken: set[str] = set()
    names = []
    for path in paths:
        choices = [path.stem, path.name.replace(".", "_")]
        name = next((c for c in choices if c not in taken), f"{choices[1]}_{len(taken):06d}")
        taken.add(name)
        names.append(name)
    return names


def _whole_video(options: VideoOptions) -> VideoOptions:
    return replace(options, vid_stride=1, start_s=None, end_s=None, max_frames=None)


def _timed(frames: VideoSource | LiveSource) -> AbstractContextManager[Iterable[tuple[Frame, float]]]:
    """Frames with the milliseconds that each took: of a file some ahead, of a live source the freshest when asked."""
    if isinstance(frames, LiveSource):
        return nullcontext(frames.timed())
    return ReadAhead(frames)


def _nothing_from(frames: VideoSource | LiveSource) -> CdgaError:
    if isinstance(frames, LiveSource) and frames.is_stopped:
        return InterruptedRunError("stopped before the first frame", where=_place(frames))
    return InputError("no frame lies in the range asked for", where=_place(frames), fix="check --start and --end")


def _place(frames: VideoSource | LiveSource) -> str:
    return frames.address.place if isinstance(frames, LiveSource) else str(frames.path)


def _stem(frames: VideoSource | LiveSource) -> str:
    return frames.address.name if isinstance(frames, LiveSource) else frames.path.stem


def _counts_of(frames: VideoSource | LiveSource, expected: int | None, written: int, is_whole: bool) -> SourceCounts:
    live = frames if isinstance(frames, LiveSource) else None
    return SourceCounts(
        lost=_losses_of(frames, written, expected if is_whole else None, is_whole=is_whole),
        mended={"repaired_pts": frames.repaired_pts, "size_changes": frames.size_changes},
        dropped_frames=live.dropped_frames if live else 0,
        reconnects=live.reconnects if live else 0,
    )


def _losses_of(frames: VideoSource | LiveSource, read: int, expected: int | None, *, is_whole: bool) -> dict[str, int]:
    damaged = {"corrupt_packets": frames.corrupt_packets, "corrupt_frames": frames.corrupt_frames}
    if isinstance(frames, LiveSource):
        return damaged | {"lost_source": int(frames.is_lost)}
    # Some of the expected frames cannot be shown: an encoder left them out, or they refer to what was cut away before
    # them. A shortage beyond that is a loss that no packet told of.
    missing = max(0, (expected or 0) - read)
    counted = missing if is_large(missing, expected or 0) else 0
    return damaged | {"missing_frames": max(counted, frames.skipped_frames if is_whole else 0)}
