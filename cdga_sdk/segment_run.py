"""``cdga segment``: from words on the command line to run folders."""

from __future__ import annotations

import glob
import itertools
import json
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from types import FrameType
from typing import Final

import typer

from cdga_sdk.atomic import check_folder_name, new_run_folder
from cdga_sdk.bundle import Manifest
from cdga_sdk.errors import DegradedError, InputError, InterruptedRunError, Terminated, UsageError, one_line
from cdga_sdk.image import is_image_file
from cdga_sdk.models.catalogue import DEFAULT
from cdga_sdk.progress import progress_bar, tell_on_stderr
from cdga_sdk.segmenter import Segmenter
from cdga_sdk.signals import TERMINATING
from cdga_sdk.video.address import LiveAddress, live_address
from cdga_sdk.video.container import is_video_file
from cdga_sdk.video.live import LiveSource
from cdga_sdk.video.output import names_video, output_places
from cdga_sdk.video.partial import growing_path, refuse_own_input
from cdga_sdk.video.pipeline import VideoOptions, live_source, open_video, segment_images, segment_video
from cdga_sdk.video.run_folder import (
    RunSummary,
    SaveWhat,
    is_overlay_alone,
    raise_if_degraded,
    refuse_earlier,
    refuse_labels_of_images,
    refuse_own_images,
)
from cdga_sdk.video.source import VideoSource

__all__ = ["RUNS", "SegmentRequest", "Work", "find_work", "plan_work", "run_segment", "stopped_in"]

RUNS: Final = Path("runs/segment")
"""Where runs go that are told no place."""
_OF_LIVE: Final = ("live", "reconnect")
_OF_VIDEO: Final = ("smooth", "start", "end", "vid_stride", "max_frames", *_OF_LIVE)
_OF_OVERLAY: Final = ("alpha", "quality")


@dataclass(frozen=True, kw_only=True)
class SegmentRequest:
    """What the command line asked for; see ``cdga segment --help``. The default model is told of, by its name.

    ``given`` are the parameters that stand there, and are not left at their default.
    """

    sources: tuple[str, ...]
    output: Path | None
    save: tuple[SaveWhat, ...]
    project: Path | None
    name: str | None
    exist_ok: bool
    options: VideoOptions
    as_json: bool = False
    quiet: bool = False
    model: str = ""
    given: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Work:
    """One run: a video, a live source, or images that belong together."""

    name: str
    video: Path | None = None
    live: LiveAddress | None = None
    images: tuple[Path, ...] = ()


def plan_work(request: SegmentRequest) -> list[Work]:
    """What there is to do, found without a model: a mistake shows before one is fetched.

    Raises:
        InputError: A source is missing.
        UsageError: The output or the name cannot be used, an option would have no effect, a source has no name, or a
            live source is not the only one.
    """
    works = find_work(request.sources)
    if request.name is not None:
        check_folder_name(request.name)
    if any(work.images for work in works):
        refuse_labels_of_images(request.save)
    _refuse_options(request, works)
    if request.output is not None:
        if len(works) > 1:
            are_images = all(work.images for work in works)
            fix = "give their folder, or quote the pattern, for one run" if are_images else "use --project and --name"
            raise UsageError(f"--output names one place, got {len(works)} sources", fix=fix)
        _refuse_output(request, request.output, works[0])
    if len(works) > 1 and any(work.live for work in works):
        raise UsageError(f"a live source goes alone, got {len(works)} sources", fix="start one command for each")
    return works


def _refuse_options(request: SegmentRequest, works: Sequence[Work]) -> None:
    """What would have no effect is refused."""
    images = [work for work in works if work.images]
    without_effect = (
        (_OF_VIDEO, bool(images), "is of a video, and these are images"),
        (("quality",), len(images) == len(works), "is of a video, and these are images"),
        (_OF_LIVE, not any(work.live for work in works), "is of a live source, and this is none"),
        (_OF_OVERLAY, "video" not in request.save, "is of the overlay, which --save leaves out"),
    )
    for names, is_without, reason in without_effect:
        for name in names:
            if is_without and name in request.given:
                raise UsageError(f"--{name.replace('_', '-')} {reason}", fix="leave it out")


def _refuse_output(request: SegmentRequest, output: Path, work: Work) -> None:
    for flag, value in (("--project", request.project), ("--name", request.name)):
        if value is not None:
            raise UsageError(f"{flag} and --output both say where the run goes", fix="give one of them")
    if work.images and names_video(output):
        raise UsageError("-o NAME.mp4 is for a video", where=output, fix="name a folder for images")
    folder, video = output_places(output, request.save)
    if work.video is not None and "video" in request.save:
        refuse_own_input(work.video, video or folder / "overlay.mp4")
    refuse_own_images(work.images, folder, request.save)
    if not request.exist_ok:
        fix = "choose another -o, or pass --exist-ok"
        refuse_earlier(None if _is_alone(request, video) else folder, video, request.save, fix=fix)


def run_segment(segmenter: Segmenter, request: SegmentRequest, works: Sequence[Work]) -> None:
    """Segment what `plan_work` found; print a line each, or JSON.

    Raises:
        InputError: No source can be read.
        UsageError: The output cannot be used.
        DegradedError: At least one of several sources could not be read, which is said at once, or lost frames, which
            is said of each; all other outputs are written.
    """
    segmenter.smoother(request.options.smooth)  # refuses a runtime that cannot
    if request.model == DEFAULT and not request.quiet:
        typer.echo(_model_line(segmenter.manifest), err=True)
    summaries: list[RunSummary] = []
    for work, name in zip(works, _names_of_runs(works, request), strict=True):
        try:
            summaries.append(_run_one(segmenter, work, request, name))
        except InputError as error:
            if len(works) == 1:
                raise
            tell_on_stderr(f"skipped: {error}")
    _raise_if_incomplete(summaries, len(works))


def _names_of_runs(works: Sequence[Work], request: SegmentRequest) -> list[str]:
    """Of the folders. Those that may exist have to differ; others are numbered when they are made."""
    names = [work.name if request.name is None else request.name for work in works]
    if not request.exist_ok:
        return names
    given: list[str] = []
    for name in names:
        numbered = (f"{name}{count}" for count in itertools.count(2))
        given.append(next(n for n in itertools.chain([name], numbered) if n not in given))
    return given


def _raise_if_incomplete(summaries: Sequence[RunSummary], of: int) -> None:
    """A loss that is the only one is the error itself; several are told of one by one, and the error counts them."""
    skipped, degraded = of - len(summaries), [summary for summary in summaries if summary.status == "degraded"]
    fix = "see the lines that begin with 'skipped' or 'degraded'"
    if skipped == of:
        raise InputError(f"none of the {of} sources could be segmented", fix=fix)
    if skipped + len(degraded) == 1:
        for summary in degraded:
            raise_if_degraded(summary)
    for summary in degraded:
        try:
            raise_if_degraded(summary)
        except DegradedError as error:
            tell_on_stderr(f"degraded: {error}")
    counts = ((skipped, "could not be segmented"), (len(degraded), "lost something"))
    if told := [f"{count} of {of} sources {what}" for count, what in counts if count]:
        raise DegradedError(", ".join(told), fix=fix)


def _model_line(manifest: Manifest) -> str:
    height, width = manifest.imgsz_hw
    trained = "" if manifest.about is None else f", trained on {manifest.about.trained_on}"
    return one_line(
        f"model: default ({manifest.provenance.model} at {width}x{height}{trained}); give --model for your own"
    )


def find_work(sources: Sequence[str]) -> list[Work]:
    """Sort files, folders and globs into videos (one run each) and groups of images (one run per source).

    Addresses and cameras are runs of their own.

    Raises:
        InputError: Nothing there, or nothing that can be segmented.
        UsageError: A source is an empty text.
    """
    works: list[Work] = []
    for source in sources:
        if not source.strip():
            raise UsageError("a source is an empty text", fix="is a variable of your shell not set?")
        address = live_address(source)
        if address is not None:
            works.append(Work(name=address.name, live=address))
            continue
        works += _work_of_folder(Path(source)) if Path(source).is_dir() else _work_of_files(source, _expand(source))
    return works


def _work_of_folder(folder: Path) -> list[Work]:
    # Hidden files are nobody's recordings: macOS leaves a ._ride.mp4 beside every ride.mp4.
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    works = _group(folder.resolve().name, files)
    if not works:
        has_folders = any(p.is_dir() for p in folder.iterdir())
        fix = f"its folders are not looked into: give '{folder}/**/*' for what lies in them" if has_folders else None
        raise InputError("no images and no videos in this folder", where=folder, fix=fix)
    return works


def _work_of_files(source: str, files: Sequence[Path]) -> list[Work]:
    works = _group(files[0].resolve().parent.name if len(files) > 1 else files[0].stem, files)
    # A name that says neither: let the decoder judge the file, and name what it found.
    return works or [Work(name=files[0].stem, video=files[0])]


def _group(name: str, files: Sequence[Path]) -> list[Work]:
    images = tuple(p for p in files if is_image_file(p))
    videos = [Work(name=p.stem, video=p) for p in files if is_video_file(p)]
    return ([Work(name=name or "images", images=images)] if images else []) + videos


def _expand(source: str) -> list[Path]:
    if Path(source).exists():
        return [Path(source)]
    matches = sorted(Path(p) for p in glob.glob(source, recursive=True))  # noqa: PTH207 - may be absolute
    found = [path for path in matches if path.is_file()]
    if not found and any(path.is_dir() for path in matches):
        raise InputError("only folders match", where=source, fix=f"give '{source.rstrip('/')}/*' for what lies in them")
    if not found:
        what = "nothing matches" if glob.has_magic(source) else "no such file or folder"
        raise InputError(what, where=source)
    return found


def _run_one(segmenter: Segmenter, work: Work, request: SegmentRequest, name: str) -> RunSummary:
    if work.images:
        return _run(segmenter, work, request, name, None)
    # The source is opened before a folder is made for it: a bad one leaves nothing behind.
    with (
        _opened(work, request.options) as source,
        _ended_by_signals(source.stop) if isinstance(source, LiveSource) else nullcontext(),
    ):
        return _run(segmenter, work, request, name, source)


def _opened(work: Work, options: VideoOptions) -> AbstractContextManager[VideoSource | LiveSource]:
    if work.live is not None:
        return live_source(work.live, options)
    assert work.video is not None, "neither images nor a video"
    return open_video(work.video, options)


def _run(
    segmenter: Segmenter, work: Work, request: SegmentRequest, name: str, source: VideoSource | LiveSource | None
) -> RunSummary:
    folder, video_path, is_new_folder = _places(request, name)
    places = [video_path and growing_path(video_path), None if _is_alone(request, video_path) else folder]
    total = len(work.images) if source is None else _num_frames(source, request.options)
    with (
        stopped_in([place for place in places if place is not None]),
        progress_bar(work.name, total, quiet=request.quiet or request.as_json) as advance,
    ):
        done = 0

        def on_frame(_: object) -> None:
            nonlocal done
            done += 1
            advance(done, "Ctrl-C ends it" if work.live else "")

        if source is not None:
            summary = segment_video(
                segmenter,
                source,
                folder,
                save=request.save,
                options=request.options,
                exist_ok=request.exist_ok,
                video_path=video_path,
                is_new_folder=is_new_folder,
                on_frame=on_frame,
                may_paint=False,
            )
        else:
            summary = segment_images(
                segmenter,
                work.images,
                folder,
                save=request.save,
                exist_ok=request.exist_ok,
                alpha=request.options.alpha,
                is_new_folder=is_new_folder,
                on_frame=on_frame,
            )
    if request.as_json:
        sys.stdout.write(json.dumps({**asdict(summary), "fps": summary.fps}) + "\n")
    elif not request.quiet:
        typer.echo(one_line(summary.line()), err=True)
    return summary


def _is_alone(request: SegmentRequest, video_path: Path | None) -> bool:
    """The overlay is all there is: no folder belongs to it."""
    return video_path is not None and is_overlay_alone(request.save)


@contextmanager
def stopped_in(places: Sequence[Path]) -> Iterator[None]:
    """An interruption inside the block is an InterruptedRunError that says where among ``places`` something is kept."""
    try:
        yield
    except (KeyboardInterrupt, Terminated) as error:
        is_terminated = isinstance(error, Terminated)
        kept = ", ".join(str(place) for place in places if place.exists())
        raise InterruptedRunError(
            f"{'terminated' if is_terminated else 'interrupted'}"
            + ("; what was finished is kept" if kept else " before anything was written"),
            where=kept or None,
            terminated=is_terminated,
        ) from error


@contextmanager
def _ended_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Within, the first Ctrl-C, SIGTERM or SIGHUP calls ``stop``: so a live run ends. The next one works as before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *TERMINATING)}

    def restore() -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)

    def end(number: int, frame: FrameType | None) -> None:
        restore()
        stop()

    try:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                if callable(handler):  # one that is ignored, or kills, is left so
                    signal.signal(number, end)
        yield
    finally:
        restore()


def _num_frames(source: VideoSource | LiveSource, options: VideoOptions) -> int | None:
    """About how many frames there are to segment; None where nobody knows."""
    if source.num_frames_hint is None:
        return options.max_frames

    def frames_before(seconds: float) -> int:
        return math.ceil(Fraction(seconds).limit_denominator(1_000_000) * source.average_rate)

    end = source.num_frames_hint
    if options.end_s is not None:
        end = min(end, frames_before(options.end_s))
    count = math.ceil(max(0, end - frames_before(options.start_s or 0)) / options.vid_stride)
    return count if options.max_frames is None else min(count, options.max_frames)


def _places(request: SegmentRequest, name: str) -> tuple[Path, Path | None, bool]:
    """The run's folder, the overlay's own path where ``-o NAME.mp4`` gave one, and whether the folder was just made."""
    if request.output is not None:
        return *output_places(request.output, request.save), False
    project = request.project or RUNS
    is_new = not (request.exist_ok and Path(project, name).exists())
    return new_run_folder(project, name, exist_ok=request.exist_ok), None, is_new
