"""``cdga segment``: from words on the command line to run folders."""

from __future__ import annotations

import glob
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType

import typer

from cdga_sdk.atomic import new_run_folder
from cdga_sdk.bundle import Manifest
from cdga_sdk.errors import InputError, UsageError, one_line
from cdga_sdk.image import is_image_file
from cdga_sdk.models.catalogue import DEFAULT
from cdga_sdk.progress import progress_bar
from cdga_sdk.segmenter import Segmenter
from cdga_sdk.video.address import LiveAddress, live_address
from cdga_sdk.video.container import is_video_file
from cdga_sdk.video.live import LiveSource
from cdga_sdk.video.pipeline import VideoOptions, live_source, segment_images, segment_video
from cdga_sdk.video.run_folder import RunSummary, SaveWhat, raise_if_degraded, refuse_labels_of_images
from cdga_sdk.video.source import VideoSource

__all__ = ["SegmentRequest", "Work", "find_work", "plan_work", "run_segment"]


@dataclass(frozen=True, kw_only=True)
class SegmentRequest:
    """What the command line asked for; see ``cdga segment --help``. The default model is told of, by its name."""

    sources: tuple[str, ...]
    output: Path | None
    save: tuple[SaveWhat, ...]
    project: Path
    name: str | None
    exist_ok: bool
    options: VideoOptions
    as_json: bool = False
    quiet: bool = False
    model: str = ""


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
        UsageError: The output cannot be used, or a live source is not the only one.
    """
    works = find_work(request.sources)
    if any(work.images for work in works):
        refuse_labels_of_images(request.save)
        if request.options.smooth is not None:
            raise UsageError("--smooth is of a video, and these are images", fix="leave it out")
    if request.output is not None and len(works) > 1:
        raise UsageError(f"--output names one place, got {len(works)} sources", fix="use --project and --name")
    if len(works) > 1 and any(work.live for work in works):
        raise UsageError(f"a live source goes alone, got {len(works)} sources", fix="start one command for each")
    return works


def run_segment(segmenter: Segmenter, request: SegmentRequest, works: Sequence[Work]) -> None:
    """Segment what `plan_work` found; print a line each, or JSON.

    Raises:
        InputError: A source cannot be read.
        UsageError: The output cannot be used.
        DegradedError: At least one source lost frames; all outputs are written.
    """
    segmenter.smoother(request.options.smooth)  # refuses a runtime that cannot
    if len(works) > 1:  # sources may share a name: each gets a folder of its own
        request = replace(request, exist_ok=False)
    if request.model == DEFAULT and not request.quiet:
        typer.echo(_model_line(segmenter.manifest), err=True)
    summaries = [_run_one(segmenter, work, request) for work in works]
    for summary in summaries:
        raise_if_degraded(summary)


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
    """
    works: list[Work] = []
    for source in sources:
        address = live_address(source)
        if address is not None:
            works.append(Work(name=address.name, live=address))
            continue
        works += _work_of_folder(Path(source)) if Path(source).is_dir() else _work_of_files(source, _expand(source))
    return works


def _work_of_folder(folder: Path) -> list[Work]:
    works = _group(folder.resolve().name, sorted(p for p in folder.iterdir() if p.is_file()))
    if not works:
        raise InputError("no images and no videos in this folder", where=folder)
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
    found = sorted(Path(p) for p in glob.glob(source, recursive=True) if Path(p).is_file())  # noqa: PTH207 - may be absolute
    if not found:
        what = "nothing matches" if glob.has_magic(source) else "no such file or folder"
        raise InputError(what, where=source)
    return found


def _run_one(segmenter: Segmenter, work: Work, request: SegmentRequest) -> RunSummary:
    # The source is opened before a folder is made for it: a bad one leaves nothing behind.
    if work.live is not None:
        with live_source(work.live, request.options) as source, _ended_by_signals(source.stop):
            return _run(segmenter, work, request, source, None)
    return _run(segmenter, work, request, work.video, _length(work.video) if work.video else len(work.images))


def _run(
    segmenter: Segmenter, work: Work, request: SegmentRequest, source: Path | LiveSource | None, total: int | None
) -> RunSummary:
    folder, video_path = _places(work, request)
    with progress_bar(work.name, total, quiet=request.quiet or request.as_json) as advance:
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
                video_path=video_path,
                on_frame=on_frame,
                may_paint=False,
            )
        else:
            summary = segment_images(
                segmenter,
                work.images,
                folder,
                save=request.save,
                alpha=request.options.alpha,
                on_frame=on_frame,
            )
    if request.as_json:
        sys.stdout.write(json.dumps({**asdict(summary), "fps": summary.fps}) + "\n")
    elif not request.quiet:
        typer.echo(one_line(summary.line()), err=True)
    return summary


@contextmanager
def _ended_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Within, the first Ctrl-C or SIGTERM calls ``stop``: it is how a live run ends. The next one works as before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

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


def _length(video: Path) -> int | None:
    with VideoSource(video) as source:
        return source.num_frames_hint


def _places(work: Work, request: SegmentRequest) -> tuple[Path, Path | None]:
    """The run's folder, and the overlay's own path where ``-o NAME.mp4`` gave one."""
    output = request.output
    if output is not None and output.suffix.lower() == ".mp4":
        if work.images:
            raise UsageError("-o NAME.mp4 is for a video", where=output, fix="name a folder for images")
        if output.exists() and not request.exist_ok:
            raise UsageError("already exists", where=output, fix="choose another -o, or pass --exist-ok")
        return new_run_folder(request.project, request.name or work.name, exist_ok=request.exist_ok), output
    if output is not None:
        if (output / "summary.json").exists() and not request.exist_ok:
            raise UsageError("holds an earlier run", where=output, fix="choose another -o, or pass --exist-ok")
        return new_run_folder(output.parent, output.name, exist_ok=True), None
    return new_run_folder(request.project, request.name or work.name, exist_ok=request.exist_ok), None
