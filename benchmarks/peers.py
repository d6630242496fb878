"""The same network and the same clip through what people would write or pick instead, against this project.

naive
    OpenCV reads and writes, numpy normalises, torch runs eagerly, logits are upsampled to the frame, numpy takes the
    largest, a palette is indexed and blended in numpy;
torch.compile
    the same around a compiled network;
torch post-processing
    as Hugging Face's image processors do: resized and normalised by torch, logits interpolated and argmax in torch;
ONNX Runtime script
    a graph as `torch.onnx.export` gives it (image in, upsampled logits out), numpy and OpenCV around it;
OpenVINO Model API
    its SegmentationModel on that graph, float32 asked for, OpenCV around it;
supervision
    its threaded ``process_video`` and MaskAnnotator around the ONNX Runtime script;
cdga
    `Segmenter.process_video`, once as it is and once more (the null pair), once with ONNX Runtime, once in bf16 where
    the network's gate admits that and the CPU has it, and once in int8 where the gate is passed in OpenVINO too.

Two scopes: *frame* (a frame in host memory to its class map, at the frame's own size) and *file* (a file to an overlay
video; this project writes its statistics too, and H.264 where OpenCV writes MPEG-4 Part 2). Every variant has a process
of its own, all cores, and rests while another is measured. Nothing is timed that does not give naive's labels on 99 %
of the pixels. The torch variants upsample logits to the frame's own size; the others give the class map at the
network's size, enlarged by its nearest pixels, as the exported graphs do. The clip comes in two sizes, 960x540 and
1920x1080::

    pip install --no-deps -r benchmarks/peers-requirements.txt
    python -m benchmarks.peers --weights efficientvit_seg_b0_cityscapes.pt --checkpoint runs/train/lraspp \
        --video ride.mp4 --json benchmarks/results/peers.json

The checkpoint is a training of minutes, for a LR-ASPP network whose labels are not noise; it sees 1024x512 here all
the same::

    cdga train streets_source_only --source camvid:PATH --target camvid:PATH model=lraspp_mobilenet_v3 translate=none \
        imgsz=192,256 batch=8 iters=700 flip=true candidates=0 score.data=none --name lraspp
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, Final, Protocol, Self, cast

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.protocol import Record, environment
from cdga_export.export import ExportOptions, export_checkpoint, export_weights
from cdga_sdk.atomic import write_text
from cdga_sdk.bundle import Bundle, Precision
from cdga_sdk.errors import GateError
from cdga_sdk.labels import CITYSCAPES_NAMES, CITYSCAPES_PALETTE_RGB
from cdga_sdk.measure import in_rounds, load, paired_ratio
from cdga_sdk.opencv import cv2
from cdga_sdk.precision import computes_bf16
from cdga_sdk.preprocess import UInt8Array
from cdga_sdk.segmenter import Segmenter
from cdga_sdk.video.pipeline import VideoOptions
from cdga_sdk.video.sink import VideoSink, probe
from cdga_sdk.video.source import VideoSource
from cdga_train.checkpoint import load_checkpoint, read_published_weights
from cdga_train.models.registry import network_spec
from cdga_train.state import build_network

PUBLISHED: Final = "efficientvit_b0"
IMGSZ_HW: Final = (512, 1024)
SIZES_WH: Final = ((960, 540), (1920, 1080))
RATE: Final = Fraction(25)
MEAN: Final = np.array([0.485, 0.456, 0.406], np.float32)
STD: Final = np.array([0.229, 0.224, 0.225], np.float32)
OURS: Final = "cdga"
AGAIN: Final = "cdga, again"
BF16: Final = "cdga, bf16"
INT8: Final = "cdga, int8"
MIN_AGREEMENT: Final = 0.99
GRAPH: Final = "plain.onnx"

Float32Array = np.typing.NDArray[np.float32]
Labels = Callable[[UInt8Array], UInt8Array]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network, as each variant wants it.

    Attributes:
        name: Of the architecture.
        weights: Published weights, or the folder of a run.
        is_published: Which of the two.
        folder: Where `prepared` puts the plain graph and the bundles.
    """

    name: str
    weights: Path
    is_published: bool
    folder: Path

    def bundle(self, precision: Precision) -> Path:
        """With that precision; not there where the network's gate refuses it."""
        return self.folder / f"{precision}.cdga"

    def network(self) -> nn.Module:
        """The torch network: normalised RGB (N, 3, H, W) to logits (N, 19, h, w)."""
        if not self.is_published:
            return build_network(load_checkpoint(self.weights)).eval()
        spec = network_spec(self.name, IMGSZ_HW)
        network = spec.build(len(CITYSCAPES_NAMES))
        spec.load_published(network, read_published_weights(self.weights))
        return network.eval()


class Peer(Protocol):
    """One variant."""

    def labels(self, image_bgr: UInt8Array) -> UInt8Array:
        """The class map (H, W) of a frame, at its own size."""
        ...

    def file(self, video: Path, output: Path) -> Record:
        """Write the overlay video; milliseconds of the stages where they are known."""
        ...


class Clocks:
    """Milliseconds by stage; `mark` ends one."""

    def __init__(self) -> None:
        self._ms: dict[str, list[float]] = {}
        self._last_s = time.perf_counter()

    def mark(self, stage: str | None = None) -> None:
        """What went by since the last mark was ``stage``; None forgets it."""
        now_s = time.perf_counter()
        if stage is not None:
            self._ms.setdefault(stage, []).append(1e3 * (now_s - self._last_s))
        self._last_s = now_s

    def medians(self) -> Record:
        """By stage."""
        return {stage: round(median(ms), 3) for stage, ms in self._ms.items()}


class Script(ABC):
    """What a script around a network looks like: OpenCV in, OpenCV out, one frame after the other."""

    def labels(self, image_bgr: UInt8Array) -> UInt8Array:
        """See `Peer`."""
        return self.segmented(image_bgr, Clocks())

    @abstractmethod
    def segmented(self, image_bgr: UInt8Array, clocks: Clocks) -> UInt8Array:
        """The class map, and the stages marked."""

    def file(self, video: Path, output: Path) -> Record:
        """See `Peer`."""
        reader = cv2.VideoCapture(str(video))
        size_wh = (int(reader.get(cv2.CAP_PROP_FRAME_WIDTH)), int(reader.get(cv2.CAP_PROP_FRAME_HEIGHT)))
        writer = cv2.VideoWriter(str(output), cv2.VideoWriter.fourcc(*"mp4v"), reader.get(cv2.CAP_PROP_FPS), size_wh)
        palette_bgr = np.array(CITYSCAPES_PALETTE_RGB, np.uint8)[:, ::-1]
        clocks = Clocks()
        while True:
            clocks.mark()
            more, image_bgr = reader.read()
            if not more:
                break
            clocks.mark("decode")
            label = self.segmented(np.asarray(image_bgr, np.uint8), clocks)
            clocks.mark()
            overlay = (palette_bgr[label] * 0.5 + image_bgr * 0.5).astype(np.uint8)
            clocks.mark("overlay")
            writer.write(overlay)
            clocks.mark("encode")
        writer.release()
        reader.release()
        return clocks.medians()


def normalised(image_bgr: UInt8Array) -> Float32Array:
    """(1, 3, H, W) at the network's size, by OpenCV and numpy."""
    resized = cv2.resize(image_bgr, IMGSZ_HW[::-1], interpolation=cv2.INTER_LINEAR)
    image = (cv2.cvtColor(resized, cv2.COLOR_BGR2RGB).astype(np.float32) / 255 - MEAN) / STD
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None])


class Naive(Script):
    """Eager torch and numpy."""

    def __init__(self, case: Case) -> None:
        self._network = case.network()

    def segmented(self, image_bgr: UInt8Array, clocks: Clocks) -> UInt8Array:
        """See `Script`."""
        clocks.mark()
        image = torch.from_numpy(normalised(image_bgr))
        clocks.mark("preprocess")
        with torch.no_grad():
            logits = self._network(image)
            clocks.mark("inference")
            upsampled = F.interpolate(logits, image_bgr.shape[:2], mode="bilinear", align_corners=False)
            label = np.argmax(upsampled[0].numpy(), axis=0).astype(np.uint8)
        clocks.mark("postprocess")
        return np.asarray(label)


class Compiled(Naive):
    """Naive around a compiled network."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self._network = cast("nn.Module", torch.compile(self._network))


class TorchPostProcessing(Script):
    """Everything but decoding and encoding in torch."""

    def __init__(self, case: Case) -> None:
        self._network = case.network().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch leaves it out
        self._mean, self._std = (torch.from_numpy(one).view(1, 3, 1, 1) for one in (MEAN, STD))

    def segmented(self, image_bgr: UInt8Array, clocks: Clocks) -> UInt8Array:
        """See `Script`."""
        clocks.mark()
        with torch.inference_mode():
            image = torch.from_numpy(image_bgr).flip(2).permute(2, 0, 1)[None].float()
            image = F.interpolate(image, IMGSZ_HW, mode="bilinear", align_corners=False)
            image = ((image / 255 - self._mean) / self._std).contiguous(memory_format=torch.channels_last)
            clocks.mark("preprocess")
            logits = self._network(image)
            clocks.mark("inference")
            upsampled = F.interpolate(logits, image_bgr.shape[:2], mode="bilinear", align_corners=False)
            label = upsampled[0].argmax(dim=0).to(torch.uint8).numpy()
        clocks.mark("postprocess")
        return np.asarray(label, np.uint8)


class OnnxRuntimeScript(Script):
    """A plain graph, numpy and OpenCV."""

    def __init__(self, case: Case) -> None:
        import onnxruntime

        self._session = onnxruntime.InferenceSession(case.folder / GRAPH, providers=["CPUExecutionProvider"])

    def segmented(self, image_bgr: UInt8Array, clocks: Clocks) -> UInt8Array:
        """See `Script`."""
        clocks.mark()
        image = normalised(image_bgr)
        clocks.mark("preprocess")
        (logits,) = self._session.run(None, {"image": image})
        clocks.mark("inference")
        label = np.argmax(logits[0], axis=0).astype(np.uint8)
        height, width = image_bgr.shape[:2]
        label = cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST)
        clocks.mark("postprocess")
        return np.asarray(label, np.uint8)


class ModelApi(Script):
    """Intel's wrapper; its default on a CPU that has bfloat16 is other labels, so float32 is asked for."""

    def __init__(self, case: Case) -> None:
        from model_api.adapters import OpenvinoAdapter, create_core
        from model_api.models import SegmentationModel

        adapter = OpenvinoAdapter(
            create_core(), str(case.folder / GRAPH), device="CPU", plugin_config={"INFERENCE_PRECISION_HINT": "f32"}
        )
        configuration = {
            "mean_values": [float(255 * value) for value in MEAN],
            "scale_values": [float(255 * value) for value in STD],
            "reverse_input_channels": True,
            "blur_strength": -1,
            "return_soft_prediction": False,
        }
        self._model: Any = SegmentationModel(adapter, configuration, preload=True)

    def segmented(self, image_bgr: UInt8Array, clocks: Clocks) -> UInt8Array:
        """See `Script`."""
        clocks.mark()
        label = self._model(image_bgr)
        clocks.mark("inference")
        return np.asarray(label, np.uint8)


class Supervision(OnnxRuntimeScript):
    """The ONNX Runtime script in supervision's pipeline, drawn by its annotator."""

    def file(self, video: Path, output: Path) -> Record:
        """See `Peer`."""
        import supervision

        palette = supervision.ColorPalette([supervision.Color(*rgb) for rgb in CITYSCAPES_PALETTE_RGB])
        annotator = supervision.MaskAnnotator(color=palette, opacity=0.5)

        def annotated(image_bgr: UInt8Array, _: int) -> UInt8Array:
            label = self.labels(image_bgr)
            present = np.unique(label)
            masks = label[None] == present[:, None, None]
            detections = supervision.Detections(
                xyxy=supervision.mask_to_xyxy(masks), mask=masks, class_id=present.astype(int)
            )
            return np.asarray(annotator.annotate(image_bgr.copy(), detections), np.uint8)

        supervision.process_video(str(video), str(output), annotated)
        return {}


class Ours:
    """This project, opened for single frames and, as ``cdga segment`` does, for files."""

    def __init__(self, backend: str, precision: Precision, case: Case) -> None:
        settings: Any = {"backend": backend, "precision": precision, "device": "cpu"}
        self._for_frames = Segmenter(case.bundle(precision), **settings)
        self._for_files = Segmenter(case.bundle(precision), **settings, throughput=True)

    def labels(self, image_bgr: UInt8Array) -> UInt8Array:
        """See `Peer`."""
        return self._for_frames(image_bgr).mask

    def file(self, video: Path, output: Path) -> Record:
        """See `Peer`."""
        summary = self._for_files.process_video(video, output, exist_ok=True, options=VideoOptions())
        at_once = {"preprocess", "inference", "postprocess"}
        return {
            stage: round(ms / (summary.frames_at_once if stage in at_once else 1), 3)
            for stage, ms in summary.stage_ms_p50.items()
        }


PEERS: Final[Mapping[str, Callable[[Case], Peer]]] = {
    "naive": Naive,
    "torch.compile": Compiled,
    "torch post-processing": TorchPostProcessing,
    "ONNX Runtime script": OnnxRuntimeScript,
    "OpenVINO Model API": ModelApi,
    "supervision": Supervision,
    "cdga, onnxruntime": partial(Ours, "onnxruntime", "fp32"),
    BF16: partial(Ours, "auto", "bf16"),
    INT8: partial(Ours, "auto", "int8"),
    OURS: partial(Ours, "auto", "fp32"),
    AGAIN: partial(Ours, "auto", "fp32"),
}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One run of one variant: milliseconds a frame of the clock and of all cores, and of the stages."""

    wall_ms: float
    cpu_ms: float
    stages_ms: Record


class Worker:
    """A variant in a process of its own; a context manager.

    Args:
        build: Makes the variant, over there.
    """

    def __init__(self, build: Callable[[], Peer]) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._theirs = theirs
        self._process = context.Process(target=_serve, args=(theirs, build), daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        self._theirs.close()  # so that a process that died is an end of file here
        return self

    def ask(self, question: str, *arguments: object) -> Any:
        """What `_serve` answers.

        Raises:
            RuntimeError: The variant failed.
            EOFError: Its process died.
        """
        self._ours.send((question, *arguments))
        answer = self._ours.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.join()


def _serve(pipe: Connection, build: Callable[[], Peer]) -> None:
    peer: Peer | None = None
    while True:
        question, *arguments = pipe.recv()
        try:
            peer = peer or build()
            pipe.send(_ANSWERS[question](peer, *arguments))
        except Exception as error:  # noqa: BLE001 - told over there
            pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))


def _labels(peer: Peer, video: Path, frames: int) -> list[UInt8Array]:
    return [peer.labels(image_bgr) for image_bgr in _decoded(video, frames)]


def _frame(peer: Peer, video: Path, frames: int) -> Sample:
    images_bgr = _decoded(video, frames)

    def all_of_them() -> Record:
        for image_bgr in images_bgr:
            peer.labels(image_bgr)
        return {}

    return _sampled(all_of_them, len(images_bgr))


def _file(peer: Peer, video: Path, frames: int) -> Sample:
    with tempfile.TemporaryDirectory() as folder:
        return _sampled(partial(peer.file, video, Path(folder) / "overlay.mp4"), frames)


def _peak_mb(_: Peer) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


_ANSWERS: Final[Mapping[str, Callable[..., object]]] = {
    "labels": _labels,
    "frame": _frame,
    "file": _file,
    "peak_mb": _peak_mb,
}


def _sampled(action: Callable[[], Record], frames: int) -> Sample:
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    stages_ms = action()
    wall_ms, cpu_ms = 1e3 * (time.perf_counter() - wall_s) / frames, 1e3 * (time.process_time() - cpu_s) / frames
    return Sample(wall_ms=wall_ms, cpu_ms=cpu_ms, stages_ms=stages_ms)


def _decoded(video: Path, frames: int) -> list[UInt8Array]:
    with VideoSource(video, max_frames=frames) as source:
        return [frame.image_bgr for frame in source]


def prepared(case: Case, video: Path) -> Case:
    """Write the plain graph, and a bundle for each precision whose gate admits it, into the case's folder."""
    case.folder.mkdir()
    _export(case, "fp32", video)
    for precision in ("bf16", "int8"):
        with suppress(GateError):
            _export(case, precision, video)
    image = torch.zeros(1, 3, *IMGSZ_HW)
    torch.onnx.export(
        _Upsampled(case.network()),
        (image,),
        case.folder / GRAPH,
        input_names=["image"],
        output_names=["logits"],
        dynamo=False,
    )
    return case


def _export(case: Case, precision: Precision, video: Path) -> None:
    options = ExportOptions(golden=f"video:{video}", precisions=(precision,))
    if case.is_published:
        export_weights(case.weights, case.name, IMGSZ_HW, case.bundle(precision), options)
    else:
        export_checkpoint(case.weights, case.bundle(precision), options, imgsz_hw=IMGSZ_HW)


class _Upsampled(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._network = network

    def forward(self, image_NCHW: Tensor) -> Tensor:
        return F.interpolate(self._network(image_NCHW), IMGSZ_HW, mode="bilinear", align_corners=False)


def clip(video: Path, target: Path, size_wh: tuple[int, int], frames: int) -> None:
    """The first frames of a video in another size, H.264 of high quality."""
    with VideoSink(target, size_wh=size_wh, rate=RATE, time_base=1 / RATE, crf=18) as sink:
        for tick, image_bgr in enumerate(_decoded(video, frames)):
            resized = cv2.resize(image_bgr, size_wh, interpolation=cv2.INTER_CUBIC)
            sink.write(np.asarray(resized, np.uint8), tick)


@contextmanager
def _workers(case: Case, names: Sequence[str]) -> Iterator[dict[str, Worker]]:
    with ExitStack() as stack:
        yield {name: stack.enter_context(Worker(partial(PEERS[name], case))) for name in names}


def question(case: Case, video: Path, options: argparse.Namespace, frames: int) -> Record:
    """One network on one clip: labels compared, then both scopes timed."""
    with _workers(case, [name for name in options.peer if takes_part(name, case)]) as workers:
        agreement = _agreements(workers, video, options.labels)
        admitted = {name: worker for name, worker in workers.items() if agreement[name] >= MIN_AGREEMENT}
        scopes: Record = {}
        before = load()
        for scope, count in (("frame", options.labels), ("file", frames)):
            runs = {name: partial(worker.ask, scope, video, count) for name, worker in admitted.items()}
            samples = in_rounds(runs, rounds=options.rounds, warm_up=1)
            scopes[scope] = _record(samples)
            Console(stderr=True).print(_table(f"{case.name}, {video.name}, {scope}", samples))
        return {
            "network": case.name,
            "clip": video.name,
            "frames": frames,
            "agreement": {name: round(share, 5) for name, share in agreement.items()},
            "load_before": before,
            "peak_mb": {name: round(worker.ask("peak_mb"), 1) for name, worker in admitted.items()},
            "scopes": scopes,
        }


def takes_part(name: str, case: Case) -> bool:
    """Whether this network has the variant's precision, and what it is run with here computes it."""
    if name == BF16:
        return case.bundle("bf16").exists() and computes_bf16()
    if name == INT8:
        place = case.bundle("int8")
        return place.exists() and Bundle.open(place).is_proven_in_openvino_too("int8")
    return True


def _agreements(workers: Mapping[str, Worker], video: Path, frames: int) -> dict[str, float]:
    """Share of naive's labels that each variant gives."""
    found = {name: np.stack(worker.ask("labels", video, frames)) for name, worker in workers.items()}
    return {name: float((masks == found["naive"]).mean()) for name, masks in found.items()}


def _record(samples: Mapping[str, Sequence[Sample]]) -> Record:
    wall = {name: [one.wall_ms for one in of_name] for name, of_name in samples.items()}
    null_pair = paired_ratio(wall[AGAIN], wall[OURS])
    rows = {}
    for name, of_name in samples.items():
        speed_up = paired_ratio(wall[name], wall[OURS])
        stages = [one.stages_ms for one in of_name]
        rows[name] = {
            "median_ms": round(median(wall[name]), 2),
            "frames_per_s": round(1e3 / median(wall[name]), 2),
            "cpu_ms": round(median(one.cpu_ms for one in of_name), 2),
            "time_of_cdga": speed_up.record(),
            "is_resolved": speed_up.is_resolved and null_pair.is_null,
            "stages_ms": {key: round(median(cast("float", one[key]) for one in stages), 2) for key in stages[0]},
            "wall_ms": [round(value, 3) for value in wall[name]],
        }
    return {"null_pair": null_pair.record(), "is_void": not null_pair.is_null, "peers": rows}


def _table(title: str, samples: Mapping[str, Sequence[Sample]]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in ("variant", "ms a frame", "frames/s", "CPU ms", "time of cdga [95 %]"):
        table.add_column(column, justify="left" if column == "variant" else "right")
    ours = [one.wall_ms for one in samples[OURS]]
    for name, of_name in samples.items():
        wall = [one.wall_ms for one in of_name]
        cpu_ms = median(one.cpu_ms for one in of_name)
        ratio = str(paired_ratio(wall, ours))
        table.add_row(name, f"{median(wall):.1f}", f"{1e3 / median(wall):.2f}", f"{cpu_ms:.1f}", ratio)
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepare, compare, time, print and write."""
    options = _options(arguments)
    facts = _environment(options)  # what cannot be told is found before what takes long
    with tempfile.TemporaryDirectory(prefix="cdga-peers-") as name:
        folder = Path(name)
        cases = [Case(name=PUBLISHED, weights=options.weights, is_published=True, folder=folder / PUBLISHED)]
        for place in options.checkpoint:
            model = load_checkpoint(place).config.model
            cases.append(Case(name=model, weights=place, is_published=False, folder=folder / model))
        questions = []
        for size_wh in SIZES_WH:
            video = folder / f"{size_wh[0]}x{size_wh[1]}.mp4"
            clip(options.video, video, size_wh, options.frames)
            questions += [(case, video) for case in cases]
        for case in cases:
            prepared(case, options.video)
        found = [question(case, video, options, probe(video).num_frames) for case, video in questions]
    if options.json is not None:
        write_text(options.json, json.dumps(facts | {"questions": found}, indent=1) + "\n")
    void = [one for one in found if any(scope["is_void"] for scope in cast("dict[str, Any]", one["scopes"]).values())]
    if void:
        sys.exit(f"void: in {len(void)} of {len(found)} questions the null pair differs by more than 3 %")


def _environment(options: argparse.Namespace) -> Record:
    # Where the reader keeps the data is nobody's business, so the command names none.
    command = ["--weights", options.weights.name]
    for place in options.checkpoint:
        command += ["--checkpoint", place.name]
    command += ["--video", options.video.name]
    for name in ("rounds", "frames", "labels"):
        command += [f"--{name}", str(getattr(options, name))]
    packages = ("torch", "onnxruntime-gpu", "openvino", "opencv-python", "av", "openvino-model-api", "supervision")
    return {
        "what": "frame to class map, and file to overlay video; milliseconds a frame; time over cdga's, paired",
        "imgsz_hw": IMGSZ_HW,
        "min_agreement": MIN_AGREEMENT,
        **environment("benchmarks.peers", [*command, "--json", "PATH"], packages, torch.device("cpu")),
    }


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, action="append", default=[])
    parser.add_argument("--video", type=Path, required=True)
    parser.add_argument("--peer", action="append", choices=list(PEERS), help="only these; naive and cdga always")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--frames", type=int, default=48, help="of the clip, in the scope file")
    parser.add_argument("--labels", type=int, default=6, help="frames in the scope frame")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args(arguments)
    always = {"naive", OURS, AGAIN}
    options.peer = [name for name in PEERS if name in always or name in (options.peer or PEERS)]
    return options


if __name__ == "__main__":
    main()
