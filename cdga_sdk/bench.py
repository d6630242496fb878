"""How fast a bundle is on this machine: every runtime and precision that works here, in turn, in three scopes.

model
    the network's input frame in, its class map out;
frame
    a frame of the video in, its class map at the frame's own size out;
file
    a video file in, overlay video and statistics out, decoding and encoding included.

Nothing is timed before its golden frames pass their gate. Times of one round are paired (`cdga_sdk.measure`).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Final, Literal

import numpy as np

from cdga_sdk.backends.choice import BACKENDS
from cdga_sdk.bundle import Bundle
from cdga_sdk.errors import CdgaError, InputError, UsageError
from cdga_sdk.measure import Ratio, in_rounds, load, paired_ratio
from cdga_sdk.preprocess import UInt8Array
from cdga_sdk.segmenter import Segmenter
from cdga_sdk.verify import refuse_below_gate, verify
from cdga_sdk.video.pipeline import VideoOptions
from cdga_sdk.video.source import VideoSource

__all__ = ["AGAIN", "BenchReport", "BenchRequest", "Contender", "ScopeTimes", "bench"]

ScopeName = Literal["model", "frame", "file"]

AGAIN: Final = "the first, again"
_WARM_UP: Final = 1  # rounds; each runs every frame
_CLIP_FRAMES: Final = 32
_MIN_ROUNDS: Final = 5  # the median of fewer has no interval to speak of


@dataclass(frozen=True, kw_only=True)
class BenchRequest:
    """What to measure.

    Attributes:
        model: The bundle's folder.
        named: What the user called it, for the command that measures the same; None for the folder's name.
        video: A clip to take frames from, and for the scope ``file``; without one, the bundle's golden frames.
        backends: As `cdga_sdk.Segmenter` takes them; what cannot be had here is told and left out.
        precisions: Of the bundle's graphs; none for all of them.
        device: ``auto``, ``cpu`` or ``cuda``.
        threads: CPU threads of the runtime; None for all that this process may use.
        rounds: That count, 5 or more.
        frames: Of the clip, from its start; 32 where none are named. Golden frames are taken all.

    Raises:
        UsageError: No backend of that name, too few rounds or frames, or frames of no clip.
    """

    model: Path
    named: str | None = None
    video: Path | None = None
    backends: tuple[str, ...] = ("auto", "onnxruntime", "openvino")
    precisions: tuple[str, ...] = ()
    device: str = "auto"
    threads: int | None = None
    rounds: int = 9
    frames: int | None = None

    def __post_init__(self) -> None:
        if self.rounds < _MIN_ROUNDS:
            raise UsageError(f"rounds is {self.rounds}, wanted {_MIN_ROUNDS} or more", fix="9 resolve a few percent")
        if self.frames is not None and self.frames < 1:
            raise UsageError(f"frames is {self.frames}, wanted 1 or more")
        if self.frames is not None and self.video is None:
            raise UsageError("frames are of a clip, and none is named", fix="add --video CLIP, or leave --frames out")
        if unknown := [name for name in self.backends if name not in BACKENDS]:
            raise UsageError(f"unknown backend '{unknown[0]}'", fix=f"use some of {', '.join(BACKENDS)}")

    @property
    def clip_frames(self) -> int:
        """How many frames of the clip are taken, where it has as many."""
        return _CLIP_FRAMES if self.frames is None else self.frames


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A runtime with a precision that gives the right labels here.

    Attributes:
        name: Runtime, device and arithmetic.
        agreement: Share of the golden masks' pixels that it gives, on its worst frame.
        min_agreement: The gate that it passed.
    """

    name: str
    agreement: float
    min_agreement: float


@dataclass(frozen=True, kw_only=True)
class ScopeTimes:
    """One scope's samples.

    Attributes:
        scope: Which.
        samples_ms: By contender, and for `AGAIN`: mean milliseconds of a frame, one sample per round.
        slowest_stage_ms: Of ``file``, by contender: the slowest stage's median, one sample per round.
    """

    scope: ScopeName
    samples_ms: Mapping[str, Sequence[float]]
    slowest_stage_ms: Mapping[str, Sequence[float]]

    @property
    def null_pair(self) -> Ratio:
        """The first contender against itself."""
        return paired_ratio(self.samples_ms[AGAIN], self.samples_ms[self.first])

    @property
    def first(self) -> str:
        """The contender that the others are held against."""
        return next(iter(self.samples_ms))

    def speed_up(self, name: str) -> Ratio:
        """How many times the first contender's speed ``name`` has."""
        return paired_ratio(self.samples_ms[self.first], self.samples_ms[name])

    @property
    def is_void(self) -> bool:
        """Whether the machine was too restless: the null pair differs by more than 3 %."""
        return not self.null_pair.is_null

    def record(self) -> dict[str, object]:
        """Plain values that JSON can hold: every sample, and what is derived from them."""
        rows = {}
        for name, samples in self.samples_ms.items():
            p5, median, p95 = np.percentile(samples, [5, 50, 95])
            rows[name] = {
                "median_ms": round(median, 3),
                "p5_ms": round(p5, 3),
                "p95_ms": round(p95, 3),
                "frames_per_s": round(1e3 / median, 2),
                "speed_up": self.speed_up(name).record(),
                "is_resolved": self.speed_up(name).is_resolved and not self.is_void,
                "samples_ms": [round(sample, 4) for sample in samples],
            }
            if name in self.slowest_stage_ms:
                rows[name]["of_slowest_stage"] = paired_ratio(samples, self.slowest_stage_ms[name]).record()
        return {"null_pair": self.null_pair.record(), "is_void": self.is_void, "contenders": rows}


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """What was measured.

    Attributes:
        model: Names the exact bundle.
        imgsz_hw: What the network sees, pixels.
        video: The clip's name; None where the golden frames were taken.
        size_hw: Height and width of the frames, pixels.
        frames: Frames of a run.
        contenders: What took part; the first is what the others are held against.
        left_out: What did not, and why.
        load_before: The machine's load when the timing began.
        scopes: The samples.
    """

    model: str
    imgsz_hw: tuple[int, int]
    video: str | None
    size_hw: tuple[int, int]
    frames: int
    contenders: tuple[Contender, ...]
    left_out: Mapping[str, str]
    load_before: Mapping[str, object]
    scopes: tuple[ScopeTimes, ...]

    @property
    def is_void(self) -> bool:
        """Whether any scope's null pair differs."""
        return any(scope.is_void for scope in self.scopes)


def bench(request: BenchRequest, on_run: Callable[[int, int], None] | None = None) -> BenchReport:
    """Measure.

    Args:
        request: What.
        on_run: Called after each timed run with the number of runs done and the number of all.

    Raises:
        UsageError: The bundle does not have a precision that was asked for.
        CdgaError: As `cdga_sdk.Segmenter` does where nothing can take part; where the clip cannot be read.
    """
    bundle = Bundle.open(request.model)
    for precision in request.precisions:
        bundle.graph(precision)
    frames_bgr = _frames(request, bundle)
    with _contenders(request, bundle) as (opened, found, left_out):
        first = next(iter(opened))
        runs = dict(opened) | {AGAIN: opened[first]}
        total = len(runs) * (request.rounds + _WARM_UP) * (1 if request.video is None else 2)
        rounds = partial(in_rounds, rounds=request.rounds, warm_up=_WARM_UP, on_run=_counted(total, on_run))
        load_before = load()
        frame_runs = {name: partial(_run_frames, one.for_frames, frames_bgr) for name, one in runs.items()}
        scopes = _frame_scopes(rounds(frame_runs))
        if request.video is not None:
            file_runs = {
                n: partial(_run_file, one.for_files, request.video, request.clip_frames) for n, one in runs.items()
            }
            scopes += (_file_scope(rounds(file_runs)),)
        model_id = opened[first].for_frames.model_id
    return BenchReport(
        model=model_id,
        imgsz_hw=bundle.manifest.imgsz_hw,
        video=None if request.video is None else request.video.name,
        size_hw=(frames_bgr[0].shape[0], frames_bgr[0].shape[1]),
        frames=len(frames_bgr),
        contenders=found,
        left_out=left_out,
        load_before=load_before,
        scopes=scopes,
    )


def _frames(request: BenchRequest, bundle: Bundle) -> list[UInt8Array]:
    if request.video is None:
        return [golden.image_bgr for golden in bundle.golden_frames()]
    with VideoSource(request.video, max_frames=request.clip_frames) as source:
        frames = [frame.image_bgr for frame in source]
    if not frames:
        raise InputError("no frame can be decoded", where=request.video)
    return frames


@dataclass(frozen=True)
class _Opened:
    """As an application opens a bundle, and as ``cdga segment`` does for files."""

    for_frames: Segmenter
    for_files: Segmenter


@contextmanager
def _contenders(
    request: BenchRequest, bundle: Bundle
) -> Iterator[tuple[Mapping[str, _Opened], tuple[Contender, ...], Mapping[str, str]]]:
    """Everything that opens and passes its gate, each once; and why the rest does not."""
    opened: dict[str, _Opened] = {}
    found, left_out = [], {}
    errors: list[CdgaError] = []
    with ExitStack() as stack:
        for precision, backend in product(request.precisions or bundle.manifest.precisions, request.backends):
            try:
                with ExitStack() as own:
                    for_frames = own.enter_context(_segmenter(request, precision, backend, throughput=False))
                    if for_frames.precision != precision:
                        raise UsageError(f"{for_frames.backend_name} would run instead")
                    if for_frames.backend_name not in opened:
                        judged = _judged(request, precision, backend)
                        for_files = own.enter_context(_segmenter(request, precision, backend, throughput=True))
                        found.append(judged)
                        opened[for_frames.backend_name] = _Opened(for_frames, for_files)
                        stack.push(own.pop_all())
            except CdgaError as error:
                errors.append(error)
                left_out[f"{backend} {precision}"] = str(error)
        if not opened:
            raise errors[0]
        yield opened, tuple(found), left_out


def _segmenter(request: BenchRequest, precision: str, backend: str, *, throughput: bool) -> Segmenter:
    return Segmenter(
        request.model,
        precision=precision,
        backend=backend,
        device=request.device,
        threads=request.threads,
        throughput=throughput,
    )


def _judged(request: BenchRequest, precision: str, backend: str) -> Contender:
    seen = verify(request.model, precision=precision, backend=backend, device=request.device)
    refuse_below_gate(seen)
    return Contender(name=seen.backend, agreement=min(seen.agreement.values()), min_agreement=seen.min_agreement)


def _counted(total: int, on_run: Callable[[int, int], None] | None) -> Callable[[], None]:
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        if on_run:
            on_run(done, total)

    return count


def _run_frames(segmenter: Segmenter, frames_bgr: Sequence[UInt8Array]) -> tuple[float, float]:
    """Mean milliseconds of a frame within the runtime, and as a whole."""
    clock = time.perf_counter()
    inside_ms = [segmenter.segment(image_bgr).speed_ms["inference"] for image_bgr in frames_bgr]
    return mean(inside_ms), 1e3 * (time.perf_counter() - clock) / len(frames_bgr)


def _run_file(segmenter: Segmenter, video: Path, frames: int) -> tuple[float, float]:
    """Milliseconds of a frame from file to files, and the slowest stage's median."""
    with tempfile.TemporaryDirectory(prefix="cdga-bench-") as folder:
        clock = time.perf_counter()
        summary = segmenter.process_video(video, Path(folder) / "run", options=VideoOptions(max_frames=frames))
        wall_ms = 1e3 * (time.perf_counter() - clock)
    stages_ms = summary.stage_ms_p50
    segment_ms = stages_ms["preprocess"] + stages_ms["inference"] + stages_ms["postprocess"]
    segment_ms /= summary.frames_at_once
    return wall_ms / summary.frames, max(stages_ms["decode"], segment_ms, stages_ms["write"])


Samples = Mapping[str, Sequence[tuple[float, float]]]


def _frame_scopes(samples: Samples) -> tuple[ScopeTimes, ...]:
    inside = {name: [model_ms for model_ms, _ in one] for name, one in samples.items()}
    whole = {name: [frame_ms for _, frame_ms in one] for name, one in samples.items()}
    return (
        ScopeTimes(scope="model", samples_ms=inside, slowest_stage_ms={}),
        ScopeTimes(scope="frame", samples_ms=whole, slowest_stage_ms={}),
    )


def _file_scope(samples: Samples) -> ScopeTimes:
    return ScopeTimes(
        scope="file",
        samples_ms={name: [wall_ms for wall_ms, _ in one] for name, one in samples.items()},
        slowest_stage_ms={name: [stage_ms for _, stage_ms in one] for name, one in samples.items()},
    )
