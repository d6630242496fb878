"""What a run of ``cdga segment`` leaves behind.

The folder that a run fills::

    overlay.mp4       frames with class colours over them (images: overlay/NAME.jpg)
    masks/NAME.png    train ids at source size, 255 ignored
    labels.nut        the same for a whole video, lossless, with its times; see `cdga_sdk.read_labels`
    conf/NAME.png     confidence, 0 to 255
    stats.jsonl       one line per frame
    summary.json      totals, times, what was lost, and what made it

An interrupted or failed run leaves ``overlay.partial.mp4`` (playable), ``labels.partial.nut`` (readable),
``stats.partial.jsonl`` and a summary that says how far it came.
"""

from __future__ import annotations

import json
import platform
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Final, Literal, Protocol, get_args

import numpy as np

from cdga_sdk.atomic import error_from_os, write_bytes, write_text
from cdga_sdk.backends.choice import Candidate
from cdga_sdk.errors import DegradedError, InputError, InterruptedRunError, UsageError, counted
from cdga_sdk.image import write_png
from cdga_sdk.opencv import cv2
from cdga_sdk.prediction import PredictedFrame
from cdga_sdk.preprocess import UInt8Array
from cdga_sdk.result import SegResult
from cdga_sdk.smoothing import Smoother
from cdga_sdk.video.label_stream import LabelSink
from cdga_sdk.video.output_lock import alone_at
from cdga_sdk.video.partial import growing_path
from cdga_sdk.video.sink import VideoSink
from cdga_sdk.video.yuv_overlay import Picture, draw_overlay_yuv

__all__ = [
    "FrameSegmenter",
    "Percentiles",
    "RunFolder",
    "RunPlan",
    "RunSummary",
    "SaveWhat",
    "SourceCounts",
    "check_save",
    "is_overlay_alone",
    "parse_save",
    "raise_if_degraded",
    "refuse_earlier",
    "refuse_labels_of_images",
    "refuse_own_images",
    "refuse_too_large_for_jpeg",
]

SaveWhat = Literal["video", "masks", "labels", "conf", "json"]
_OUTPUTS: Final = ("overlay.mp4", "overlay", "masks", "labels.nut", "conf", "stats.jsonl", "summary.json")
_ALWAYS: Final = ("stats.jsonl", "summary.json")  # no run leaves them beside what another one has left
_PARTIAL: Final = re.compile(r"\.partial(\.whole)?(?=\.\w+$)")
_MAX_JPEG_SIDE: Final = 65_500
STAGES = ("decode", "preprocess", "inference", "postprocess", "write")


class FrameSegmenter(Protocol):
    """What the pipeline needs of a `Segmenter`."""

    @property
    def backend_name(self) -> str:
        """Runtime, device and arithmetic."""
        ...

    @property
    def precision(self) -> str:
        """That arithmetic."""
        ...

    @property
    def frames_at_once(self) -> int:
        """Frames to segment at a time, from threads."""
        ...

    @property
    def backend_choice(self) -> tuple[Candidate, ...]:
        """Why it is this runtime."""
        ...

    @property
    def model_id(self) -> str:
        """Names the exact bundle."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """Class names."""
        ...

    def segment(
        self, image_bgr: UInt8Array, *, source: str = "", frame: int = 0, time_s: float | None = None
    ) -> SegResult:
        """One frame."""
        ...

    def predict(self, image_bgr: UInt8Array) -> PredictedFrame:
        """Its first part, on any thread."""
        ...

    def finish(
        self,
        predicted: PredictedFrame,
        *,
        source: str = "",
        frame: int = 0,
        time_s: float | None = None,
        smoother: Smoother | None = None,
    ) -> SegResult:
        """Its second part, for the frames of a stream with a smoother in order."""
        ...

    def smoother(self, share: float | None) -> Smoother | None:
        """A new one for a stream; refused where the runtime gives no logits."""
        ...


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What ``summary.json`` holds.

    Attributes:
        status: ``done``, ``degraded`` (frames were lost or concealed), ``interrupted`` or ``failed``.
        source: The file, folder or live source that was segmented, without its secrets.
        folder: Where the outputs are, but for an overlay that was given a place of its own.
        frames: Frames segmented and written.
        expected_frames: Frames that the container's index names, or that its header claims where the file was cut
            short; None where neither says. Of images their number.
        wall_s: Seconds from the first frame to the last.
        stage_ms_p50: Median milliseconds of each stage.
        stage_ms_p95: 95th percentile of each stage.
        mean_share: Mean share of the frame per class, 0 to 1.
        mean_confidence: Mean over frames, 0 to 1.
        lost: Counts of what was lost: ``corrupt_packets`` that the decoder refused or marked, ``corrupt_frames`` that
            it concealed, ``missing_frames`` that the container had announced, or that a leap of the times bears out
            (see `VideoSource`); of images, ``unreadable_images``. ``lost_source`` is 1 where a live one was given up.
            Any makes the run ``degraded``.
        mended: Counts of what was set right, with nothing lost: ``repaired_pts``, frames whose time was changed so that
            times increase; ``size_changes`` of the picture in mid-stream; ``resized_frames`` that were scaled to the
            first one's size for the overlay or the labels. None of images.
        dropped_frames: Frames of a live source that came while another was segmented.
        reconnects: How often a live source was lost and came back.
        overlay_start_s: ``time_s`` of the frame at which the overlay video's own clock starts, at 0, seconds; None
            without such a video. The label stream and stats.jsonl have the source's times.
        outputs: Files and folders that this run has written, relative to ``folder``; an overlay that lies elsewhere by
            its whole path.
        backend: Runtime, device and arithmetic.
        precision: That arithmetic.
        frames_at_once: Frames that were segmented at a time.
        smooth: Share of the present frame where probabilities were averaged over time, None where not.
        backend_choice: Every runtime that was considered, in order, and why it was taken or not.
        model: Names the exact bundle.
        machine: Platform and Python version.
    """

    status: str
    source: str
    folder: str
    frames: int
    expected_frames: int | None = None
    wall_s: float = 0.0
    stage_ms_p50: dict[str, float] = field(default_factory=dict)
    stage_ms_p95: dict[str, float] = field(default_factory=dict)
    mean_share: dict[str, float] = field(default_factory=dict)
    mean_confidence: float = 0.0
    lost: dict[str, int] = field(default_factory=dict)
    mended: dict[str, int] = field(default_factory=dict)
    dropped_frames: int = 0
    reconnects: int = 0
    overlay_start_s: float | None = None
    outputs: list[str] = field(default_factory=list)
    backend: str = ""
    precision: str = ""
    frames_at_once: int = 1
    smooth: float | None = None
    backend_choice: tuple[Candidate, ...] = ()
    model: str = ""
    machine: str = ""

    @property
    def fps(self) -> float:
        """Frames per second of the whole chain."""
        return self.frames / self.wall_s if self.wall_s else 0.0

    def line(self) -> str:
        """The summary in one line."""
        stages = " / ".join(f"{name} {ms:.1f}" for name, ms in self.stage_ms_p50.items())
        at_once = f", {self.frames_at_once} at once" if self.frames_at_once > 1 else ""
        counts = {"dropped": self.dropped_frames, "reconnects": self.reconnects}
        live = "".join(f", {counted(count, name)}" for name, count in counts.items() if count)
        return (
            f"{counted(self.frames, 'frames')}{live} in {self.wall_s:.1f} s ({self.fps:.1f} fps; {stages} ms p50; "
            f"{self.backend}{at_once}) · {self._where()}"
        )

    def _where(self) -> str:
        if len(self.outputs) == 1:
            return str(Path(self.folder, self.outputs[0]))
        return ", ".join([*(output for output in self.outputs if Path(output).is_absolute()), self.folder])


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What is known of a run before its first frame.

    Attributes:
        folder: Where the outputs go, but for an overlay that has a place of its own.
        owns_folder: The folder is the run's, and made where it is missing.
        is_new_folder: It was made for this run: it is taken away where nothing comes of it, as one that is missing is.
        video_path: The overlay of a video; None without one.
        exist_ok: What an earlier run has left there may be written over.
        save: What to write.
        source: See `RunSummary`, as for the others.
        expected_frames: None where nobody knows.
        frames_at_once: 1 or more.
        smooth: None where probabilities are not averaged.
    """

    folder: Path
    owns_folder: bool = True
    video_path: Path | None = None
    exist_ok: bool = True
    is_new_folder: bool = False
    save: tuple[SaveWhat, ...]
    source: str
    expected_frames: int | None = None
    frames_at_once: int = 1
    smooth: float | None = None


@dataclass(frozen=True, kw_only=True)
class SourceCounts:
    """What a source has counted up to now; see `RunSummary`."""

    lost: dict[str, int] = field(default_factory=dict)
    mended: dict[str, int] = field(default_factory=dict)
    dropped_frames: int = 0
    reconnects: int = 0


def parse_save(text: str) -> tuple[SaveWhat, ...]:
    """``"video,masks"`` as a tuple.

    Raises:
        UsageError: A word that is not one of video, masks, labels, conf, json; or no word at all.
    """
    return check_save([w.strip() for w in text.split(",") if w.strip()], where="--save")


def check_save(save: Sequence[str], *, where: str | None = None) -> tuple[SaveWhat, ...]:
    """What there is to save, each once and always in the same order.

    Raises:
        UsageError: A word that is not one of video, masks, labels, conf, json; no word at all; or one text instead.
    """
    allowed: tuple[SaveWhat, ...] = get_args(SaveWhat)
    fix = f"use any of {','.join(allowed)}"
    if isinstance(save, str):
        raise UsageError(f"save is one text, '{save}'", where=where, fix=f"give words, as in ('{save}',)")
    for word in save:
        if word not in allowed:
            raise UsageError(f"cannot save '{word}'", where=where, fix=fix)
    if not save:
        raise UsageError("nothing to save", where=where, fix=fix)
    return tuple(w for w in allowed if w in save)


def is_overlay_alone(save: Sequence[SaveWhat]) -> bool:
    """A video's overlay is all there is to save: where it has a place of its own, no folder is needed."""
    return all(word == "video" for word in save)


def refuse_labels_of_images(save: Sequence[SaveWhat]) -> None:
    """A label stream is of a video.

    Raises:
        UsageError: ``save`` holds "labels".
    """
    if "labels" in save:
        raise UsageError("'labels' makes one file of a video's frames, and these are images", fix="save masks instead")


def refuse_own_images(images: Sequence[Path], folder: Path, save: Sequence[SaveWhat]) -> None:
    """Keep a run's pictures away from its images: one of the same name would be written over.

    Raises:
        UsageError: An image lies where the run would write.
    """
    places = {"video": "overlay", "masks": "masks", "conf": "conf"}
    for written in (folder / places[word] for word in save if word in places):
        for parent in {image.parent for image in images}:
            if written.exists() and parent.exists() and written.samefile(parent):
                raise UsageError("would write among its own images", where=parent, fix="choose another output")


def refuse_too_large_for_jpeg(path: Path, image_bgr: UInt8Array) -> None:
    """The overlay of an image is a JPEG.

    Raises:
        InputError: One of its sides is longer than a JPEG's can be in OpenCV.
    """
    height, width = image_bgr.shape[:2]
    if max(height, width) > _MAX_JPEG_SIDE:
        raise InputError(
            f"it has {width}x{height} pixels; an overlay has {_MAX_JPEG_SIDE} a side at most",
            where=path,
            fix="save masks alone",
        )


def _earlier_outputs(folder: Path, save: Sequence[SaveWhat]) -> list[str]:
    """Names in ``folder`` that a run of ``save`` would write to, and those that tell of an earlier run, whole or not.

    Raises:
        UsageError: The folder cannot be read.
    """
    places = {
        "video": ("overlay.mp4", "overlay"),
        "masks": ("masks",),
        "labels": ("labels.nut",),
        "conf": ("conf",),
        "json": _ALWAYS,
    }
    written = {*_ALWAYS, *(place for word in save for place in places[word])}
    with _named_errors(folder):
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(name for name in names if name in written or (_PARTIAL.search(name) and _final(name) in _OUTPUTS))


def _final(name: str) -> str:
    return _PARTIAL.sub("", name)


def refuse_earlier(folder: Path | None, video_path: Path | None, save: Sequence[SaveWhat], *, fix: str) -> None:
    """Refuse places that hold what a run of ``save`` would write over.

    Raises:
        UsageError: They do, or the folder cannot be read.
    """
    for path in (video_path, growing_path(video_path)) if video_path is not None else ():
        if path.exists():
            raise UsageError("already exists", where=path, fix=fix)
    found = _earlier_outputs(folder, save) if folder is not None else []
    if found:
        raise UsageError(f"holds an earlier run ({', '.join(found)})", where=folder, fix=fix)


def raise_if_degraded(summary: RunSummary) -> None:
    """Exit code 4 for a run that finished with losses.

    Raises:
        DegradedError: Frames were lost or concealed.
    """
    if summary.status == "degraded":
        counts = ", ".join(counted(n, name.replace("_", " ")) for name, n in summary.lost.items() if n)
        fix = "see summary.json" if "summary.json" in summary.outputs else None
        raise DegradedError(f"finished, but {counts}", where=summary.source, fix=fix)


class RunFolder:
    """The files of one run; finalises them whatever happens, and keeps other runs out until then.

    Args:
        plan: What is known beforehand.
        segmenter: Named in the summary.
        counts_of: Called at the end, with the frames that were written and whether the run came to its own end:
            tells what the source has counted.

    Raises:
        UsageError: on entering, where another run writes there, or an earlier one's files may not be written over.

    Attributes:
        plan: As it was given.
        frames: Written so far.
        summary: Whole when the run has ended.
    """

    def __init__(
        self,
        plan: RunPlan,
        segmenter: FrameSegmenter,
        counts_of: Callable[[int, bool], SourceCounts] = lambda written, is_whole: SourceCounts(),
    ) -> None:
        self.plan = plan
        self.frames = 0
        self.summary = RunSummary(
            status="failed",
            source=plan.source,
            folder=str(plan.folder),
            frames=0,
            expected_frames=plan.expected_frames,
            frames_at_once=plan.frames_at_once,
            smooth=plan.smooth,
            backend=segmenter.backend_name,
            precision=segmenter.precision,
            backend_choice=segmenter.backend_choice,
            model=segmenter.model_id,
            machine=f"{platform.platform()} python {platform.python_version()}",
        )
        self._folder, self._save = plan.folder, plan.save
        self._counts_of = counts_of
        self._unreadable: dict[str, int] = {}
        self._folders: set[str] = set()
        self._names = segmenter.names
        self._has_made_folder = plan.owns_folder and plan.is_new_folder
        self._alone, self._stack = ExitStack(), ExitStack()
        self._stats: IO[str] | None = None
        self._sink: VideoSink | None = None
        self._labels: LabelSink | None = None
        self._times = {stage: Percentiles() for stage in STAGES}
        self._shares = np.zeros(len(self._names))
        self._confidence = 0.0
        self._started_s = 0.0

    def __enter__(self) -> RunFolder:
        if self.plan.owns_folder:
            with _named_errors(self._folder):
                self._has_made_folder |= not self._folder.exists()
                self._folder.mkdir(parents=True, exist_ok=True)
        try:
            self._take_place()
            if "json" in self._save:
                self._stats = self._stack.enter_context(_partial_text(self._folder / "stats.jsonl"))
        except BaseException:
            self._leave_place()
            raise
        self._started_s = time.perf_counter()
        return self

    def _take_place(self) -> None:
        video_path = self.plan.video_path
        if self.plan.owns_folder:
            self._alone.enter_context(alone_at(self._folder))
        if video_path is not None:  # may lie elsewhere, or in a folder that is another run's
            self._alone.enter_context(alone_at(video_path))
        if not self.plan.exist_ok:
            fix = "choose another output, or pass exist_ok=True (--exist-ok)"
            refuse_earlier(self._folder if self.plan.owns_folder else None, video_path, self._save, fix=fix)

    def attach(self, sink: VideoSink) -> None:
        """Take over a video sink: opened here, closed with the run."""
        self._sink = self._stack.enter_context(sink)

    def attach_labels(self, sink: LabelSink) -> None:
        """The same for a label sink."""
        self._labels = self._stack.enter_context(sink)

    def abandon(self) -> None:
        """Leave every file as it is, open: somebody is stuck in one. A partial video is playable as it lies there."""
        self._left_open = self._stack.pop_all(), self._alone.pop_all()  # held, for what is let go of is closed

    def write(
        self,
        result: SegResult,
        name: str,
        decode_ms: float,
        alpha: float,
        *,
        pts: int | None = None,
        picture: Picture | None = None,
    ) -> None:
        """Write everything asked for of one frame, and count it; the overlay goes on ``picture`` where it can."""
        clock = time.perf_counter()
        if self._sink is not None and pts is not None:
            _write_overlay(self._sink, result, alpha, pts, picture)
        elif "video" in self._save:
            _write_jpeg(self._inner("overlay") / f"{name}.jpg", result.plot(alpha))
        if self._labels is not None and pts is not None:
            self._labels.write(result.mask, pts)
        if "masks" in self._save:
            write_png(self._inner("masks") / f"{name}.png", result.mask)
        if "conf" in self._save:
            write_png(self._inner("conf") / f"{name}.png", result.confidence)
        shares = result.shares()
        write_ms = 1e3 * (time.perf_counter() - clock)
        times_ms = {"decode": decode_ms, **result.speed_ms, "write": write_ms}
        self._count(result, shares, times_ms)
        self._write_line(
            {
                "source": result.source,
                "frame": result.frame,
                "time_s": result.time_s,
                "share": {k: round(v, 5) for k, v in shares.items()},
                "mean_confidence": round(result.mean_confidence, 4),
                "ms": {k: round(v, 2) for k, v in times_ms.items()},
            }
        )

    def lose(self, path: Path, error: InputError) -> None:
        """Count an input that could not be read, and say why in stats.jsonl."""
        self._unreadable["unreadable_images"] = self._unreadable.get("unreadable_images", 0) + 1
        self._write_line({"source": str(path), "error": error.what})

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        wall_s = time.perf_counter() - self._started_s
        status, counts = "failed", None
        try:
            self._stack.__exit__(kind, error, None)
            if kind is None:
                counts = self._counted(is_whole=True)
                status = "degraded" if any(counts.lost.values()) else "done"
        finally:
            if kind is not None:
                stopped = issubclass(kind, InterruptedRunError) or not issubclass(kind, Exception)
                status = "interrupted" if stopped else "failed"
            try:
                self._finish(status, wall_s, counts or self._counted_so_far())
            finally:
                self._leave_place()

    def _counted(self, *, is_whole: bool) -> SourceCounts:
        counts = self._counts_of(self.frames, is_whole)
        return replace(counts, lost=counts.lost | self._unreadable)

    def _counted_so_far(self) -> SourceCounts:
        with suppress(Exception):  # the error that is on its way matters more
            return self._counted(is_whole=False)
        return SourceCounts(lost=dict(self._unreadable))

    def _inner(self, name: str) -> Path:
        """A folder within this one, which is made with the first file in it."""
        self._folders.add(name)
        return self._folder / name

    def _leave_place(self) -> None:
        """Let others write there; a run without a single frame takes away what it made."""
        is_empty = not self.frames and self.plan.owns_folder
        if is_empty and self._stats is not None:
            _partial_of(self._folder / "stats.jsonl").unlink(missing_ok=True)
        self._alone.close()
        if is_empty and self._has_made_folder:
            with suppress(OSError):  # something else is in it
                self._folder.rmdir()

    def _count(self, result: SegResult, shares: dict[str, float], times_ms: dict[str, float]) -> None:
        self.frames += 1
        for stage, ms in times_ms.items():
            self._times[stage].add(ms)
        for name, share in shares.items():
            self._shares[self._names.index(name)] += share
        self._confidence += result.mean_confidence

    def _write_line(self, record: dict[str, object]) -> None:
        if self._stats is not None:
            with _named_errors(self._folder / "stats.jsonl"):
                self._stats.write(json.dumps(record) + "\n")

    def _outputs(self) -> list[str]:
        paths = {self._folder / name for name in self._folders}
        paths |= {sink.path for sink in self._sinks() if sink.frames_written}
        if self._stats is not None:
            stats = self._folder / "stats.jsonl"
            partial = _partial_of(stats)
            paths |= {self._folder / "summary.json", partial if partial.exists() else stats}
        return sorted(p.name if p.parent == self._folder else str(p.absolute()) for p in paths)

    def _sinks(self) -> list[VideoSink | LabelSink]:
        return [sink for sink in (self._sink, self._labels) if sink is not None]

    def _finish(self, status: str, wall_s: float, counts: SourceCounts) -> None:
        count = max(self.frames, 1)
        resized = {"resized_frames": max(sink.resized_frames for sink in self._sinks())} if self._sinks() else {}
        summary = replace(
            self.summary,
            status=status,
            frames=self.frames,
            wall_s=wall_s,
            stage_ms_p50={s: round(t.at(0.50), 2) for s, t in self._times.items()},
            stage_ms_p95={s: round(t.at(0.95), 2) for s, t in self._times.items()},
            mean_share={n: round(float(s / count), 5) for n, s in zip(self._names, self._shares, strict=True)},
            mean_confidence=round(self._confidence / count, 4),
            lost=counts.lost,
            mended=counts.mended | resized,
            dropped_frames=counts.dropped_frames,
            reconnects=counts.reconnects,
            overlay_start_s=self._sink.start_s if self._sink else None,
            outputs=self._outputs() if self.frames else [],
        )
        self.summary = summary
        if "json" in self._save and self.frames:
            record = {**asdict(summary), "fps": round(summary.fps, 2)}
            write_text(self._folder / "summary.json", json.dumps(record, indent=1) + "\n")


class Percentiles:
    """Percentiles of positive milliseconds in constant memory: a histogram with bins 2 % wide."""

    _STEP = np.log(1.02)
    _LOWEST_MS = 1e-3

    def __init__(self) -> None:
        self._counts = np.zeros(1200, np.int64)  # up to 1e-3 * 1.02**1200 ms, five months

    def add(self, ms: float) -> None:
        """Count one value."""
        position = int(np.log(max(ms, self._LOWEST_MS) / self._LOWEST_MS) / self._STEP)
        self._counts[min(position, self._counts.size - 1)] += 1

    def at(self, share: float) -> float:
        """The value below which ``share`` of the counted values lie; 0 where nothing was counted."""
        total = int(self._counts.sum())
        if not total:
            return 0.0
        position = int(np.searchsorted(np.cumsum(self._counts), share * total))
        return float(self._LOWEST_MS * np.exp((position + 0.5) * self._STEP))


@contextmanager
def _partial_text(path: Path) -> Iterator[IO[str]]:
    """A text file under ``NAME.partial.EXT`` until the block ends well."""
    partial = _partial_of(path)
    with _named_errors(path):
        stream = partial.open("w", encoding="utf-8")
    try:
        yield stream
    except BaseException:
        with suppress(OSError):  # the error that is on its way matters more
            stream.close()
        raise
    with _named_errors(path):
        stream.close()
        partial.replace(path)


def _partial_of(path: Path) -> Path:
    return path.with_suffix(f".partial{path.suffix}")


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise error_from_os(error, path) from error


def _write_overlay(sink: VideoSink, result: SegResult, alpha: float, pts: int, picture: Picture | None) -> None:
    if picture is not None and sink.takes(picture):
        sink.write_picture(draw_overlay_yuv(picture, result.mask, result.palette_rgb, alpha=alpha), pts)
    else:
        sink.write(result.plot(alpha), pts)


def _write_jpeg(path: Path, image_bgr: UInt8Array) -> None:
    done, data = cv2.imencode(".jpg", image_bgr, [cv2.IMWRITE_JPEG_QUALITY, 92])
    assert done, f"JPEG encoder refused an array of shape {image_bgr.shape}"
    write_bytes(path, data.tobytes(), durable=False)
