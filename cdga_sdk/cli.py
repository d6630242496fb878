"""The command line. Training and export are imported inside their own commands, so that `cdga segment` needs no torch.

stdout carries what other programs read: ``--json``, and the answers of ``info``, ``models``, ``--version`` and
``--help``. The rest goes to stderr. Exit codes: see `cdga_sdk.errors`.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import threading
import traceback
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Literal, TextIO

import typer
from typer.exceptions import TyperException

from cdga_sdk import __version__
from cdga_sdk.atomic import RESOURCE_ERRNOS, error_from_os
from cdga_sdk.errors import (
    CdgaError,
    InputError,
    InterruptedRunError,
    MissingExtraError,
    Terminated,
    UsageError,
    one_line,
)
from cdga_sdk.signals import TERMINATING, heeded
from cdga_sdk.video.stages import MAY_BE_LEFT

if TYPE_CHECKING:
    from cdga_sdk.metrics import Scores

__all__ = ["app", "main"]

_SOURCES = "Videos, images, folders, globs; or one camera (/dev/video0) or stream (rtsp://, http://, udp:// ...)."
_NAMED = "default, or another name that cdga models lists"
_TAKEN = "a bundle, a checkpoint or a run"
_KEPT = "what was finished is kept"
_INTERRUPTED = 130  # also what Typer turns Ctrl-C into

# Of a file or folder that only its user can mend: no right to it, or a name that the file system does not take.
_OF_A_NAME = frozenset({errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG})

# Libraries that a base install lacks, and the extra that brings each.
_EXTRA_OF = {"onnx": "export", "safetensors": "train", "timm": "train", "torch": "train", "yaml": "train"}


def _output(text: str) -> Path:
    """Not of an empty text: that is a shell's variable that is not set, and would be the current folder."""
    if not text.strip():
        raise typer.BadParameter("is an empty text; is a variable of your shell not set?")
    return Path(text)


_EXIT_CODES = (
    "Exit codes: 0 done; 2 wrong words; 3 input; 4 done, but something was lost; 5 model; 6 disk, memory or device; "
    "7 a quality gate; 130 Ctrl-C; 143 terminated or hung up; 141 nobody reads the output; 1 a bug, to be reported "
    "with what cdga --debug COMMAND shows."
)

app = typer.Typer(
    name="cdga",
    help="Adapt a segmentation network to your own unlabelled driving footage, export it, segment video fast.",
    epilog=_EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"]},
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

data_app = typer.Typer(help="Look at data sets before training.", invoke_without_command=True)
app.add_typer(data_app, name="data")

ExistOk = Annotated[bool, typer.Option("--exist-ok", help="Write into, or replace, what exists.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar and no summary.")]
BackendName = Annotated[str, typer.Option(help="auto, onnxruntime, openvino, tensorrt or tensorrt_rtx.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
ExportedPrecisions = Annotated[
    list[str] | None, typer.Option(help="Beside fp32, some of fp16,bf16,int8,int8-trt; each must pass its gate.")
]
GraphPrecision = Annotated[
    str,
    typer.Option(
        help="Which graph of a bundle: fp32, fp16, bf16, int8, int8-trt; auto: bf16 if it runs here, or fp32."
    ),
]
Calib = Annotated[str | None, typer.Option(help="Frames to set fp16, bf16 and int8 by; by default others of --golden.")]
Score = Annotated[
    str | None, typer.Option(help="Labelled data; a precision that loses 0.3 mIoU on its val is refused.")
]
ExtraOutputs = Annotated[
    list[str] | None, typer.Option(help="Add logits or features: an extra graph for programs of your own.")
]
Threads = Annotated[
    int | None, typer.Option(min=1, max=1024, help="CPU threads of the runtime; by default every CPU there is.")
]
OnIncompatible = Annotated[
    str, typer.Option(help="No kept TensorRT engine fits: rebuild, fallback (another runtime) or error.")
]
TrtRtx = Annotated[
    bool, typer.Option("--trt-rtx", help="Also build engines of TensorRT for RTX beside the bundle; needs no GPU.")
]
QualityName = Annotated[
    Literal["fast", "balanced", "high"],
    typer.Option(help="Of the video: fast is coarser and takes least of the CPU, high keeps detail in a larger file."),
]
Live = Annotated[
    Literal["freshest", "every-frame"],
    typer.Option(help="Of a live source: freshest frame, dropping those that came meanwhile, or every-frame."),
]
SegmentOutput = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        metavar="PATH",
        parser=_output,
        help="Folder of the run; or NAME.mp4 for one video, and the folder NAME beside it takes the rest.",
    ),
]
Smooth = Annotated[
    float | None,
    typer.Option(help="Steadier masks of a video: share of the present frame, above 0 to 1, e.g. 0.5. Off by default."),
]
Reconnect = Annotated[float, typer.Option(min=0, help="Give a live source up after so many seconds without a frame.")]
Offline = Annotated[bool, typer.Option("--offline", help="Never fetch a model; CDGA_OFFLINE=1 says so too.")]
About = Annotated[
    Path | None, typer.Option(help="A TOML file with trained_on, licence, adapted_to and limits, for the card.")
]
VersionCompatible = Annotated[
    bool, typer.Option("--version-compatible", help="With --trt: loads in later TensorRT too; runs slower.")
]


@app.command()
def train(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PRESET|FILE] [KEY=VALUE]...",
            help="A preset (streets_cdga if none is named) or a YAML/TOML file, then overrides.",
        ),
    ] = None,
    source: Annotated[str | None, typer.Option(help="Labelled data, e.g. streets:all, camvid:PATH.")] = None,
    target: Annotated[str | None, typer.Option(help="Unlabelled data, e.g. video:ride.mp4.")] = None,
    arm: Annotated[str | None, typer.Option(help="source_only, baseline or cdga.")] = None,
    iters: Annotated[int | None, typer.Option(help="Iterations.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    resume: Annotated[str | None, typer.Option(help="Go on with this run's folder or checkpoint.")] = None,
    project: Annotated[Path, typer.Option(help="Folder of runs.")] = Path("runs/train"),
    name: Annotated[str | None, typer.Option(help="Name of this run; numbered when taken.")] = None,
    quiet: Quiet = False,
) -> None:
    """Train on a labelled world and adapt to unlabelled footage: cdga train streets_cdga --target video:ride.mp4."""
    from cdga_train.run import run_training

    flags = {"source": source, "target": target, "arm": arm, "iters": iters, "seed": seed, "device": device}
    overrides = [f"{key}={value}" for key, value in flags.items() if value is not None]
    run_training(words or [], overrides, resume=resume, project=project, name=name, quiet=quiet)


@app.command()
def study(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="FAMILY [KEY=VALUE]...", help="A family of presets, e.g. streets, then overrides."),
    ] = None,
    seeds: Annotated[str, typer.Option(help="One run of each arm for each of these seeds.")] = "0,1,2",
    arms: Annotated[
        str,
        typer.Option(
            help="Also self_training, target_supervised, cdga_no_co, _no_orth, _no_cadv, _no_cl, _k1, _k4, _k16, "
            "_normalised."
        ),
    ] = "source_only,translation,baseline,cdga",
    source: Annotated[str | None, typer.Option(help="Labelled data, e.g. gta5:PATH.")] = None,
    target: Annotated[str | None, typer.Option(help="Unlabelled data, e.g. cityscapes:PATH.")] = None,
    iters: Annotated[int | None, typer.Option(help="Iterations of each round.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    project: Annotated[Path, typer.Option(help="Folder of studies.")] = Path("runs/study"),
    name: Annotated[str | None, typer.Option(help="Name of this study; one that exists goes on.")] = None,
    quiet: Quiet = False,
) -> None:
    """Train arms over seeds, score them and write one table: cdga study streets --seeds 0,1,2."""
    from cdga_train.study_run import run_study

    flags = {"source": source, "target": target, "iters": iters, "device": device}
    overrides = [f"{key}={value}" for key, value in flags.items() if value is not None]
    run_study(words or [], overrides, seeds=seeds, arms=arms, project=project, name=name, quiet=quiet)


@app.command()
def export(
    checkpoint: Annotated[str | None, typer.Argument(help="A checkpoint, or the folder of a run.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The bundle to make: NAME.cdga.")] = None,
    weights: Annotated[str | None, typer.Option(help="Published weights instead of a checkpoint (.pt, safe).")] = None,
    model: Annotated[str | None, typer.Option(help="The network that --weights belong to.")] = None,
    imgsz: Annotated[str | None, typer.Option(help="H,W that the network sees; as in training by default.")] = None,
    precision: ExportedPrecisions = None,
    golden: Annotated[str | None, typer.Option(help="Frames to prove parity on: folder:PATH, video:FILE ...")] = None,
    calib: Calib = None,
    score: Score = None,
    classes: Annotated[str | None, typer.Option(help="Of --score: 19 (the default), 16, 13 or common11.")] = None,
    about: About = None,
    outputs: ExtraOutputs = None,
    dynamic_size: Annotated[bool, typer.Option("--dynamic-size", help="Let that extra graph take any size.")] = False,
    trt: Annotated[bool, typer.Option("--trt", help="Build a TensorRT engine too, of int8-trt, fp16 or fp32.")] = False,
    trt_rtx: TrtRtx = False,
    sm: Annotated[str | None, typer.Option(help="Compute capabilities for --trt-rtx, 86,89,120 by default.")] = None,
    batch: Annotated[str | None, typer.Option(help="Of an engine: SMALLEST:BEST:LARGEST, e.g. 1:4:8; else 1.")] = None,
    workspace: Annotated[float | None, typer.Option(help="Scratch memory for building an engine, GiB.")] = None,
    hw_compat: Annotated[str | None, typer.Option(help="With --trt: none, same-cc or ampere+; runs slower.")] = None,
    version_compatible: VersionCompatible = False,
    timing_cache: Annotated[Path | None, typer.Option(help="With --trt: file that makes later builds faster.")] = None,
    exist_ok: ExistOk = False,
    quiet: Quiet = False,
) -> None:
    """Turn a checkpoint into a bundle whose ONNX graph is proven equal: cdga export runs/train/x -o model.cdga."""
    from cdga_export.run import run_export
    from cdga_export.to_tensorrt import engine_request, require_libraries, run_engines

    engines = engine_request(
        output,
        trt=trt,
        trt_rtx=trt_rtx,
        sm=sm,
        batch=batch,
        workspace=workspace,
        hw_compat=hw_compat,
        version_compatible=version_compatible,
        timing_cache=timing_cache,
        overwrite=exist_ok,
    )
    if engines is not None:
        require_libraries(engines)
    done = run_export(
        checkpoint,
        output,
        weights=weights,
        model=model,
        imgsz=imgsz,
        precision=",".join(precision or ()),
        golden=golden,
        calib=calib,
        score=score,
        score_classes=classes,
        about=about,
        outputs=",".join(outputs or ()),
        dynamic_size=dynamic_size,
        overwrite=exist_ok,
        quiet=quiet,
    )
    if engines is not None:
        run_engines(done.bundle, engines, quiet=quiet)


@app.command()
def segment(
    context: typer.Context,
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...", help=_SOURCES)],
    model: Annotated[str, typer.Option(help=f"A bundle, e.g. model.cdga; or {_NAMED}.")] = "default",
    output: SegmentOutput = None,
    save: Annotated[str, typer.Option(help="Any of video,masks,labels,conf,json.")] = "video,json",
    project: Annotated[Path | None, typer.Option(help="Folder of runs; runs/segment by default.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of this run; numbered when taken.")] = None,
    exist_ok: ExistOk = False,
    alpha: Annotated[float, typer.Option(help="Opacity of the class colours, 0 to 1.")] = 0.5,
    quality: QualityName = "balanced",
    conf: Annotated[float, typer.Option(help="Pixels less sure than this become 255, 0 to 1.")] = 0.0,
    classes: Annotated[str | None, typer.Option(help="Keep these only, e.g. road,car or 0,13.")] = None,
    backend: BackendName = "auto",
    device: Device = "auto",
    precision: GraphPrecision = "fp32",
    threads: Threads = None,
    on_incompatible: OnIncompatible = "rebuild",
    vid_stride: Annotated[int, typer.Option(min=1, help="Segment every n-th frame.")] = 1,
    start: Annotated[float | None, typer.Option(min=0, help="Start at this second.")] = None,
    end: Annotated[float | None, typer.Option(min=0, help="Stop at this second.")] = None,
    max_frames: Annotated[int | None, typer.Option(min=1, help="Stop after this many frames.")] = None,
    smooth: Smooth = None,
    live: Live = "freshest",
    reconnect: Reconnect = 60.0,
    offline: Offline = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summaries as JSON on stdout.")] = False,
    quiet: Quiet = False,
) -> None:
    """Segment videos and images: cdga segment ride.mp4."""
    from cdga_sdk.models.model_path import model_path
    from cdga_sdk.segment_run import SegmentRequest, plan_work, run_segment, stopped_in
    from cdga_sdk.segmenter import Segmenter
    from cdga_sdk.video.pipeline import VideoOptions, of_quality
    from cdga_sdk.video.run_folder import parse_save

    options = VideoOptions(alpha=alpha, vid_stride=vid_stride, start_s=start, end_s=end, max_frames=max_frames)
    request = SegmentRequest(
        sources=tuple(sources),
        output=output,
        save=parse_save(save),
        project=project,
        name=name,
        exist_ok=exist_ok,
        options=replace(of_quality(options, quality), live=live, reconnect_s=reconnect, smooth=smooth),
        as_json=as_json,
        quiet=quiet,
        model=model,
        given=_given(context),
    )
    kept = _class_words(classes)
    works = plan_work(request)  # before a model that may have to be fetched
    with stopped_in([]):
        segmenter = Segmenter(
            model_path(model, offline=offline),
            precision=precision,
            backend=backend,
            device=device,
            threads=threads,
            throughput=all(work.live is None for work in works),
            on_incompatible=on_incompatible,
            conf=conf,
            classes=kept,
        )
    with segmenter:
        run_segment(segmenter, request, works)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help=f"A bundle, a checkpoint, the folder of a run; or {_NAMED}.")],
    data: Annotated[str, typer.Option(help="Labelled data, e.g. camvid:PATH.")],
    split: Annotated[str, typer.Option(help="Part of the data.")] = "val",
    classes: Annotated[str, typer.Option(help="19, 16, 13 or common11.")] = "19",
    backend: BackendName = "auto",
    device: Device = "auto",
    protocol: Annotated[
        str, typer.Option(help="deployed (as a bundle works) or published (as papers state it; checkpoints only).")
    ] = "deployed",
    precision: GraphPrecision = "fp32",
    on_incompatible: OnIncompatible = "rebuild",
    min_miou: Annotated[float | None, typer.Option(help="Exit 7 below this mIoU, percent.")] = None,
    offline: Offline = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON on stdout.")] = False,
    quiet: Quiet = False,
) -> None:
    """Score a model on labelled data: cdga evaluate model.cdga --data camvid:PATH --split val --classes common11."""
    from cdga_sdk.labels import class_set
    from cdga_sdk.models.model_path import model_path
    from cdga_train.evaluate_run import refuse_below, refuse_request, run_evaluate

    wanted = class_set(classes)  # before a model that may have to be fetched
    refuse_request(data, split, protocol, min_miou)
    scores, used = run_evaluate(
        model_path(model, offline=offline, taken=_TAKEN),
        data,
        split,
        wanted,
        backend=backend,
        device=device,
        quiet=quiet,
        protocol=protocol,
        precision=precision,
        on_incompatible=on_incompatible,
    )
    if as_json:
        facts = {"model": model, "data": data, "split": split, "classes": classes, "backend": used}
        _print_json(_scores_record(scores, facts | {"protocol": protocol}))
    elif not quiet:
        _print_scores(scores, f"{model} on {data} {split}, {classes} classes, {used}, {protocol} protocol")
    refuse_below(scores, min_miou)


@app.command()
def verify(
    model: Annotated[str, typer.Argument(help=f"A bundle; or {_NAMED}.")],
    precision: GraphPrecision = "fp32",
    backend: BackendName = "auto",
    device: Device = "auto",
    on_incompatible: OnIncompatible = "rebuild",
    offline: Offline = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
    quiet: Quiet = False,
) -> None:
    """Replay a bundle's golden frames here: agreement and time, exit 7 below its gate: cdga verify model.cdga."""
    from cdga_sdk.models.model_path import model_path
    from cdga_sdk.verify import refuse_below_gate
    from cdga_sdk.verify import verify as verified

    place = model_path(model, offline=offline)
    found = verified(place, precision=precision, backend=backend, device=device, on_incompatible=on_incompatible)
    if as_json:
        _print_json(found.as_dict())
    elif not quiet:
        worst = 100 * min(found.agreement.values())
        typer.echo(
            f"{model}: {found.backend}, {len(found.agreement)} golden frames, worst frame {worst:.4f} % as trained "
            f"(gate {100 * found.min_agreement:.2f} %), {found.latency_ms:.1f} ms a frame",
            err=True,
        )
    refuse_below_gate(found)


@app.command()
def bench(
    model: Annotated[str, typer.Argument(help=f"A bundle; or {_NAMED}.")],
    video: Annotated[Path | None, typer.Option(help="A clip; by default the bundle's golden frames.")] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(help="Of these; may be given again. By default auto, onnxruntime, openvino."),
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="Only this graph of the bundle; may be given again. By default all.")
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    rounds: Annotated[int, typer.Option(help="Rounds that count; each runs everything once.")] = 9,
    frames: Annotated[int | None, typer.Option(help="Frames of the clip in a run; by default 32.")] = None,
    offline: Offline = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print every sample as JSON on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Time a bundle here, every runtime and precision side by side: cdga bench model.cdga --video ride.mp4."""
    from cdga_sdk.bench import BenchRequest
    from cdga_sdk.bench_run import run_bench
    from cdga_sdk.models.model_path import model_path

    request = BenchRequest(
        model=model_path(model, offline=offline),
        named=Path(model).name,
        video=video,
        backends=tuple(backend or ("auto", "onnxruntime", "openvino")),
        precisions=tuple(precision or ()),
        device=device,
        threads=threads,
        rounds=rounds,
        frames=frames,
    )
    run_bench(request, as_json=as_json, quiet=quiet)


@app.command()
def report(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run of cdga train.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The page to write; RUN/report.html by default.")
    ] = None,
    image: Annotated[list[Path] | None, typer.Option(help="Show this image too; may be given again.")] = None,
    frames: Annotated[int, typer.Option(min=1, max=32, help="Images of each domain to show.")] = 4,
    oracle: Annotated[bool, typer.Option("--oracle", help="Score every candidate on the labels; slow.")] = False,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Show a run, finished or not, on one page of HTML: cdga report runs/train/x."""
    from cdga_train.report_run import ReportRequest, run_report

    run_report(
        ReportRequest(
            run_folder=run_folder,
            output=output,
            images=tuple(image or ()),
            frames=frames,
            oracle=oracle,
            device=device,
            quiet=quiet,
        )
    )


@data_app.command("check")
def check_data(
    data: Annotated[str, typer.Argument(help="A data set made of files, e.g. gta5:PATH; or video:FILE.")],
    split: Annotated[str, typer.Option(help="Part of the data.")] = "train",
    against: Annotated[str | None, typer.Option(help="Another data set that must not hold the same images.")] = None,
    against_split: Annotated[str, typer.Option(help="Its part.")] = "val",
    limit: Annotated[int | None, typer.Option(min=1, help="Open only so many frames, spread evenly.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout.")] = False,
    quiet: Quiet = False,
) -> None:
    """Find all that would stop or spoil training, in one pass over the files: cdga data check gta5:PATH."""
    from cdga_train.data_check_run import run_data_check

    run_data_check(data, split, against=against, against_split=against_split, as_json=as_json, limit=limit, quiet=quiet)


@app.command()
def info(
    model: Annotated[str, typer.Argument(help=f"A bundle, an engine, a checkpoint, the folder of a run; or {_NAMED}.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON on stdout.")] = False,
) -> None:
    """Say what a bundle, an engine or a checkpoint is, after verifying it; nothing is fetched for that."""
    from cdga_sdk.info import describe
    from cdga_sdk.models.listing import stated_of
    from cdga_sdk.models.model_path import model_path

    facts = stated_of(model) or describe(model_path(model, offline=True, taken=f"an engine, {_TAKEN}"))
    if as_json:
        _print_json(facts)
        return
    width = max(map(len, facts))
    for key, value in facts.items():
        typer.echo(f"{key:<{width}}  {one_line(value)}")


@app.command()
def models(as_json: Annotated[bool, typer.Option("--json", help="Print as JSON on stdout.")] = False) -> None:
    """List the models that have a name: what each was trained on, its licence, and where it lies or is fetched from."""
    from cdga_sdk.models.listing import list_models

    listed = list_models()
    if as_json:
        _print_json({"models": [model.as_dict() for model in listed]})
        return
    for model in listed:
        typer.echo(model.name)
        for key, value in model.facts().items():
            typer.echo(f"  {key:<10}  {one_line(value)}")


@app.command()
def doctor(
    model: Annotated[str | None, typer.Option(help=f"A bundle, or {_NAMED}, to verify and to try here.")] = None,
    offline: Offline = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout.")] = False,
) -> None:
    """Say whether this machine can segment, with which runtime and why; exit 6 if not: cdga doctor --model x.cdga."""
    from cdga_sdk.doctor import examine, print_report, refuse_unfit

    report = examine(model, offline=offline)
    if as_json:
        _print_json(report.as_dict())
    else:
        print_report(report)
    refuse_unfit(report)


def _given(context: typer.Context) -> frozenset[str]:
    """The parameters that stand on the command line, also where they are what they would be anyway."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return frozenset(name for name, source in sources.items() if source and source.name == "COMMANDLINE")


def _class_words(text: str | None) -> list[str] | None:
    """``"road, car"`` as a list."""
    if text is None:
        return None
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise UsageError("no class to keep", where="--classes", fix="name some, or leave it out for all of them")
    return words


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cdga-sdk {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks; goes ahead of the command: cdga --debug segment ...")
    ] = False,
) -> None:
    if debug:
        os.environ["CDGA_DEBUG"] = "1"
    _help_without_command(context)


@data_app.callback()
def _data(context: typer.Context) -> None:
    _help_without_command(context)


def _help_without_command(context: typer.Context) -> None:
    """As Typer's own ``no_args_is_help`` does, whose help comes as an error that is hard to tell from others."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


def main() -> None:
    """Run the command in ``sys.argv``, and turn what went wrong into one line and an exit code."""
    for number in heeded(TERMINATING):
        signal.signal(number, _terminate)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # started with it closed
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - as long as the process
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # a bad image is told of in one line, and by us
    _leave(run(sys.argv[1:]))


def _leave(exit_code: int) -> None:
    """End the process; at once where a thread is left in native code, for it crashes when it comes back too late."""
    if any(thread.name.startswith(MAY_BE_LEFT) for thread in threading.enumerate()):
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(exit_code)
    sys.exit(exit_code)


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code; errors are printed to stderr as one line each."""
    try:
        code = app(arguments, standalone_mode=False)
        sys.stdout.flush()  # here, where a reader that has gone is still caught
        return _interrupted() if code == _INTERRUPTED else int(code or 0)
    except typer.Exit as error:
        return error.exit_code
    except TyperException as error:
        return _fail("E-USAGE", one_line(error.format_message().replace("Value error, ", "")), 2)
    except CdgaError as error:
        return _fail(error.code, str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except Terminated:
        stopped = InterruptedRunError(f"terminated; {_KEPT}", terminated=True)
        return _fail(stopped.code, str(stopped), stopped.exit_code)
    except (BrokenPipeError, SystemExit):  # Typer turns the first into the second
        _silence(sys.stdout)
        _silence(sys.stderr)
        return 141
    except OSError as error:
        return _failed_file(error)
    except ModuleNotFoundError as error:
        return _missing_module(error)
    except MemoryError:
        return _fail("E-RESOURCE", "out of memory; use a smaller imgsz or batch", 6)
    except Exception as error:  # noqa: BLE001 - the last door: a bug of ours, said in one line
        return _bug(error)


def _fail(code: str, message: str, exit_code: int) -> int:
    try:
        if os.environ.get("CDGA_DEBUG"):
            traceback.print_exc()
        typer.echo(f"error[{code}]: {message}", err=True)
    except OSError:  # nobody reads it
        _silence(sys.stderr)
    return exit_code


def _silence(stream: TextIO) -> None:
    """Let what a stream still holds go nowhere: the interpreter would fail over it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _failed_file(error: OSError) -> int:
    if error.errno in _OF_A_NAME and error.filename:
        refused = InputError(f"cannot be used ({error.strerror})", where=os.fsdecode(error.filename))
        return _fail(refused.code, str(refused), refused.exit_code)
    if error.errno not in RESOURCE_ERRNOS:
        return _bug(error)
    failed = error_from_os(error, Path(os.fsdecode(error.filename or "output")))
    exit_code = _fail(failed.code, str(failed), failed.exit_code)
    try:
        sys.stdout.flush()
    except OSError:
        _silence(sys.stdout)
    return exit_code


def _missing_module(error: ModuleNotFoundError) -> int:
    if error.name not in _EXTRA_OF:
        return _bug(error)
    missing = MissingExtraError(error.name, _EXTRA_OF[error.name])
    return _fail(missing.code, str(missing), missing.exit_code)


def _bug(error: Exception) -> int:
    what = f"internal error ({type(error).__name__}: {one_line(error)})"
    return _fail("E-BUG", f"{what}; please report it with what cdga --debug COMMAND shows", 1)


def _interrupted() -> int:
    return _fail("E-INTERRUPTED", f"interrupted; {_KEPT}", _INTERRUPTED)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _print_json(record: dict[str, object]) -> None:
    print(json.dumps(record))  # noqa: T201 - data for another program is what stdout is for


def _scores_record(scores: Scores, facts: dict[str, str]) -> dict[str, object]:
    return {
        **facts,
        "frames": scores.frames,
        "miou": _rounded(scores.miou),
        "accuracy": _rounded(scores.accuracy),
        "iou": {name: _rounded(value) for name, value in scores.iou.items()},
    }


def _rounded(percent: float) -> float | None:
    """NaN, which JSON does not have, as null."""
    return None if percent != percent else round(percent, 3)


def _print_scores(scores: Scores, title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("class")
    table.add_column("IoU %", justify="right")
    for name, value in scores.iou.items():
        table.add_row(name, "-" if value != value else f"{value:.2f}")
    table.add_section()
    table.add_row("mIoU", f"{scores.miou:.2f}")
    table.add_row("pixel accuracy", f"{scores.accuracy:.2f}")
    table.add_row("frames", str(scores.frames))
    Console(stderr=True, markup=False, emoji=False).print(table)
