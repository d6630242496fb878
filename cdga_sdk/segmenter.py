"""Segmenter: what an application embeds."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Self, overload

import numpy as np
import numpy.typing as npt

from cdga_sdk.backends.choice import Candidate
from cdga_sdk.bundle import Bundle, Manifest
from cdga_sdk.errors import InputError, UsageError
from cdga_sdk.image import read_image_bgr
from cdga_sdk.labels import IGNORE, train_id_of
from cdga_sdk.models.model_path import model_path
from cdga_sdk.opencv import cv2
from cdga_sdk.precision import open_precision
from cdga_sdk.prediction import FrameConfidence, PredictedFrame
from cdga_sdk.preprocess import UInt8Array, resize_image, resize_label
from cdga_sdk.result import SegResult
from cdga_sdk.smoothing import Smoother
from cdga_sdk.video.live import RECONNECT_S, LiveMode, LiveSource
from cdga_sdk.video.output import output_places
from cdga_sdk.video.pipeline import VideoOptions, open_video, segment_video, segmented
from cdga_sdk.video.run_folder import RunSummary, SaveWhat
from cdga_sdk.video.stages import in_order

__all__ = ["Segmenter"]

# What OpenCV reads is typed as any numbers; that they are uint8 is looked at when they come.
ImageArray = npt.NDArray[np.generic]
Image = ImageArray | str | Path

_OF_PIL: Final = "of a PIL image give np.asarray(image.convert('RGB')) and color='rgb'"


class Segmenter:
    """Segments images and video with a bundle made by ``cdga export``.

    Safe to call from several threads. A context manager; `close` may be called instead, and more than once. A process
    that is forked while it is open needs one of its own: a runtime's threads are not copied.

    Args:
        model: The bundle's folder, or the name of a model: ``default`` is the one inside this package, others
            (`cdga_sdk.models.catalogue.NAMED`) are fetched once, converted in a process of its own, and kept; with
            ``CDGA_OFFLINE=1`` in the environment nothing is fetched. A `Path`, and ``./NAME``, is never a name.
        precision: Which of the bundle's graphs to run, e.g. ``fp16``; fp32 by default. ``auto`` takes bf16 where the
            bundle has it and float32 would run in OpenVINO on a CPU that computes it, else fp32. `backend_name` tells.
        backend: ``auto``, ``onnxruntime``, ``openvino``, ``tensorrt`` or ``tensorrt_rtx``.
        device: ``auto``, ``cpu`` or ``cuda``.
        threads: CPU threads of the runtime; by default all that this process may use.
        throughput: Compute several frames of a file or a list at a time, each more slowly, where that gives more of
            them a second. By default a frame is done as soon as can be: for live sources and single images.
        on_incompatible: When no kept TensorRT engine fits: ``rebuild`` it, ``fallback`` to another runtime, ``error``.
        conf: Pixels whose probability is below this (0 to 1) become 255 in the mask.
        classes: Keep only these classes (names or train ids); other pixels become 255. None keeps all.

    Raises:
        InputError: No such model, or one that has a name cannot be fetched or is not to be.
        ModelError: Not a bundle, damaged, or refused by the runtime.
        UsageError: An argument out of range, or a precision that the bundle does not have.
        MissingExtraError: The backend asked for, or what a fetched model is converted with, is not installed.
        ResourceError: The device asked for cannot be had.
    """

    def __init__(
        self,
        model: str | Path = "default",
        *,
        precision: str = "fp32",
        backend: str = "auto",
        device: str = "auto",
        threads: int | None = None,
        throughput: bool = False,
        on_incompatible: str = "rebuild",
        conf: float = 0.0,
        classes: Sequence[int | str] | None = None,
    ) -> None:
        if not 0.0 <= conf <= 1.0:
            raise UsageError(f"conf is {conf}, wanted 0 to 1")
        self.bundle = Bundle.open(model_path(model))
        self._conf = conf
        self._kept = _kept_table(classes, self.bundle.manifest.names)
        self._opened = open_precision(
            self.bundle,
            precision,
            backend=backend,
            device=device,
            threads=threads,
            throughput=throughput,
            on_incompatible=on_incompatible,
        )
        self._backend = self._opened.backend
        self._closed = False
        self._process = os.getpid()

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself."""
        return self.bundle.manifest

    @property
    def names(self) -> tuple[str, ...]:
        """Class name by train id."""
        return self.manifest.names

    @property
    def imgsz(self) -> tuple[int, int]:
        """Height and width that the network sees, pixels."""
        return self.manifest.imgsz_hw

    @property
    def backend_name(self) -> str:
        """Runtime, device and arithmetic in use."""
        return self._backend.name

    @property
    def precision(self) -> str:
        """Of the graph in use, which with ``auto`` is not what was asked for."""
        return self._opened.precision

    @property
    def frames_at_once(self) -> int:
        """Frames that the runtime computes at a time; 1 but for ``throughput``."""
        return self._backend.frames_at_once

    @property
    def backend_choice(self) -> tuple[Candidate, ...]:
        """Every runtime that was considered, in order, and why it was taken or not."""
        return self._opened.choice.walk

    @property
    def model_id(self) -> str:
        """The bundle's folder name and the start of its hash."""
        return f"{self.bundle.path.name} {self.bundle.sha256[:12]}"

    # mypy: a path is also a sequence of strings; it takes the first form.
    @overload
    def __call__(self, image: Image, *, color: str = "bgr") -> SegResult: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, image: Sequence[Image] | Iterator[Image], *, color: str = "bgr") -> list[SegResult]: ...

    def __call__(
        self, image: Image | Sequence[Image] | Iterator[Image], *, color: str = "bgr"
    ) -> SegResult | list[SegResult]:
        """Segment one image or a list of images.

        Args:
            image: An (H, W, 3) uint8 array, a path, or a list or an iterator of these. Results keep arrays as they
                are: copy one whose memory is used again before its result is.
            color: Channel order of arrays, ``bgr`` (OpenCV's) or ``rgb``.

        Raises:
            UsageError: An array of another shape or type, or an unknown colour order.
            InputError: A file that cannot be read.
        """
        if isinstance(image, (str, Path)):
            return self.segment(read_image_bgr(Path(image)), source=str(image))
        if isinstance(image, np.ndarray):
            return self.segment(_bgr(image, color))
        if not isinstance(image, (Sequence, Iterator)):
            raise UsageError(
                f"got {type(image).__name__}, wanted an (H, W, 3) uint8 array, a path, or a list of these", fix=_OF_PIL
            )
        return list(in_order(partial(self, color=color), image, at_once=self.frames_at_once))

    def segment(
        self, image_bgr: ImageArray, *, source: str = "", frame: int = 0, time_s: float | None = None
    ) -> SegResult:
        """Segment one (H, W, 3) uint8 BGR frame; the keywords are carried into the result.

        Raises:
            UsageError: No array, or one of another shape or type.
        """
        return self.finish(self.predict(image_bgr), source=source, frame=frame, time_s=time_s)

    def predict(self, image_bgr: ImageArray) -> PredictedFrame:
        """The first part of `segment`: all that may be done to several frames of a stream at once.

        Raises:
            UsageError: No array, or one of another shape or type.
        """
        if self._closed:
            raise UsageError("this Segmenter is closed", fix="open a new one")
        if os.getpid() != self._process:  # it would wait for ever for threads that a fork does not copy
            raise UsageError("this Segmenter was opened before this process was forked", fix="open one in each process")
        frame_bgr = _checked(image_bgr)
        clock = [time.perf_counter()]
        seen_bgr = resize_image(frame_bgr, self.imgsz)
        seen_rgb = np.asarray(cv2.cvtColor(seen_bgr, cv2.COLOR_BGR2RGB), np.uint8)
        clock.append(time.perf_counter())
        prediction = self._backend.infer(seen_rgb[np.newaxis])
        clock.append(time.perf_counter())
        speed_ms = {"preprocess": 1e3 * (clock[1] - clock[0]), "inference": 1e3 * (clock[2] - clock[1])}
        return PredictedFrame(image_bgr=frame_bgr, seen_bgr=seen_bgr, prediction=prediction, speed_ms=speed_ms)

    def finish(
        self,
        predicted: PredictedFrame,
        *,
        source: str = "",
        frame: int = 0,
        time_s: float | None = None,
        smoother: Smoother | None = None,
    ) -> SegResult:
        """The second part of `segment`; with a stream's own ``smoother`` for its frames in order."""
        clock = time.perf_counter()
        prediction, (height, width) = predicted.prediction, predicted.image_bgr.shape[:2]
        if smoother is not None:
            prediction = smoother.smoothed(predicted.seen_bgr, prediction)
        sureness = FrameConfidence(prediction, 0, (height, width))
        mask = self._ignore(resize_label(prediction.mask_NHW[0], (height, width)), sureness)
        return SegResult(
            mask=mask,
            sureness=sureness,
            image_bgr=predicted.image_bgr,
            names=self.names,
            palette_rgb=self.manifest.palette_rgb,
            source=source,
            frame=frame,
            time_s=time_s,
            speed_ms={**predicted.speed_ms, "postprocess": 1e3 * (time.perf_counter() - clock)},
        )

    def smoother(self, share: float | None) -> Smoother | None:
        """A new one for the frames of one stream, which `finish` takes; None without a share.

        Raises:
            UsageError: ``share`` is out of range, or the runtime in use does not hand over the network's logits.
        """
        if share is None:
            return None
        if not self._backend.gives_logits:
            fix = "export the model again" if "openvino" in self.backend_name else "use --backend openvino --device cpu"
            raise UsageError(f"smoothing needs the network's logits, which {self.backend_name} does not give", fix=fix)
        return Smoother(share)

    def stream(
        self,
        source: str | Path | LiveSource,
        *,
        vid_stride: int = 1,
        start_s: float | None = None,
        end_s: float | None = None,
        max_frames: int | None = None,
        live: LiveMode = "freshest",
        reconnect_s: float = RECONNECT_S,
        smooth: float | None = None,
    ) -> Iterator[SegResult]:
        """Segment a video or a live source frame by frame; memory does not grow with its length.

        Args:
            source: A video file, an address such as ``rtsp://...``, a camera such as ``/dev/video0``, or an open
                `LiveSource`, to which the arguments below but ``smooth`` do not apply.
            vid_stride: Segment every n-th frame.
            start_s: Skip what lies before this time, seconds.
            end_s: Stop at this time, seconds.
            max_frames: Stop after this many frames.
            live: Of a live source: ``freshest`` frame, or ``every-frame``.
            reconnect_s: Seconds without a frame after which a live source is given up.
            smooth: See `VideoOptions`.

        Raises:
            InputError: The source cannot be opened or decoded; or, behind the last result, a live one was given up.
            UsageError: An argument out of range, or ``smooth`` with a runtime that cannot.
        """
        options = VideoOptions(
            vid_stride=vid_stride,
            start_s=start_s,
            end_s=end_s,
            max_frames=max_frames,
            live=live,
            reconnect_s=reconnect_s,
            smooth=smooth,
        )
        smoother = self.smoother(smooth)
        with open_video(source, options) as frames:
            place = frames.address.place if isinstance(frames, LiveSource) else str(source)
            at_once = 1 if isinstance(frames, LiveSource) else self.frames_at_once
            untimed = ((frame, 0.0) for frame in frames)
            for made in segmented(self, untimed, place=place, at_once=at_once, smoother=smoother):
                yield made.result
            if isinstance(frames, LiveSource) and frames.is_lost:
                raise InputError("the source was lost and did not come back", where=place)

    def process_video(
        self,
        source: str | Path | LiveSource,
        output: str | Path,
        *,
        save: Sequence[SaveWhat] = ("video", "json"),
        exist_ok: bool = False,
        options: VideoOptions | None = None,
        on_frame: Callable[[SegResult], None] | None = None,
    ) -> RunSummary:
        """Segment a video into the folder ``output``: overlay.mp4, stats.jsonl, summary.json and more.

        A live source ends by ``options.end_s`` or ``max_frames``, when it is lost for good (then the summary's status
        is ``degraded``), or by `LiveSource.stop` of one that the caller has opened.

        Args:
            source: A video file, an address such as ``rtsp://...``, a camera such as ``/dev/video0``, or an open
                `LiveSource`.
            output: Folder for the outputs, made if missing; or NAME.mp4 for the overlay, and then the folder NAME
                beside it takes the rest, if there is any.
            save: What to write: any of ``video``, ``masks``, ``labels`` (all masks in one ``labels.nut``, see
                `cdga_sdk.read_labels`), ``conf``, ``json``.
            exist_ok: Write over what an earlier run, a stopped one too, has left at ``output``; what this run does not
                write stays.
            options: Opacity, stride, range, smoothing, encoder quality, and how a live source is read.
            on_frame: Called with each result before it is written. What it changes in ``image_bgr``, such as faces that
                it blurs, is seen in the overlay, which is drawn on that then. Without it the overlay is drawn on the
                decoded picture where that can be, which is faster.

        Raises:
            InputError: The source cannot be opened or decoded; no folder is made then.
            UsageError: An unknown word in ``save``, or none; the output cannot be written, holds an earlier run, is
                named as another kind of file is, is NAME.mp4 with no video to save, or another run, of any process,
                writes there; or ``options.smooth`` with a runtime that cannot. Nothing is made.
            ResourceError: The disk is full; what was made is kept under a ``.partial`` name.
        """
        folder, video_path = output_places(Path(output), save)
        return segment_video(
            self,
            source,
            folder,
            save=save,
            exist_ok=exist_ok,
            options=options or VideoOptions(),
            video_path=video_path,
            on_frame=on_frame,
        )

    def close(self) -> None:
        """Free the runtime; closing twice is harmless, calling afterwards is a UsageError."""
        self._closed = True
        if os.getpid() == self._process:  # else freeing it would wait too; see `predict`
            self._backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ignore(self, mask: UInt8Array, sureness: FrameConfidence) -> UInt8Array:
        if self._kept is not None:
            mask = np.asarray(cv2.LUT(mask, self._kept), np.uint8)
        if self._conf > 0:
            mask = np.where(sureness.pixels < self._conf * 255, np.uint8(IGNORE), mask)
        return mask


def _kept_table(classes: Sequence[int | str] | None, names: Sequence[str]) -> UInt8Array | None:
    if classes is None:
        return None
    if isinstance(classes, (str, int)):
        raise UsageError(
            f"classes is {classes!r}, wanted a list of names or train ids", fix=f"write classes=[{classes!r}]"
        )
    table = np.full(256, IGNORE, np.uint8)
    for label in classes:
        train_id = train_id_of(label, names)
        table[train_id] = train_id
    return table


def _checked(image: ImageArray) -> UInt8Array:
    if not isinstance(image, np.ndarray):
        raise UsageError(f"got {type(image).__name__}, wanted an (H, W, 3) uint8 array", fix=_OF_PIL)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise UsageError(f"image has shape {image.shape} and type {image.dtype}, wanted (H, W, 3) uint8")
    return np.asarray(image, np.uint8)


def _bgr(image: ImageArray, color: str) -> UInt8Array:
    if color not in {"bgr", "rgb"}:
        raise UsageError(f"unknown colour order '{color}'", fix="use 'bgr' or 'rgb'")
    checked = _checked(image)
    return checked if color == "bgr" else np.ascontiguousarray(checked[:, :, ::-1])
