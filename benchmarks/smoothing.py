"""Do temporal smoothing and tiling help? CamVid val, one clip of 101 frames at 15 Hz with a label on every frame.

Four ways, each asked of the published EfficientViT-B0 weights in float32 on the CPU, common 11 classes:

- ``smooth``: class probabilities are averaged over time, ``p = a p_now + (1 - a) p_before``; ``p_before`` stays in its
  place, or is first carried along by optical flow (DIS, Kroeger et al. 2016), both at the frame's size;
- ``cdga``: what ``cdga segment --smooth`` does, by its own code: the same idea at the size of the network's head;
- ``tile``: the frame is cut into 2x2 parts that overlap by a quarter, each enlarged to the network's input;
- ``larger``: the whole frame is enlarged to twice the sides instead, for the same number of pixels to compute.

Beside mIoU, the temporal consistency: the mIoU of each mask with the one before carried along (Varghese et al. 2020).
Another flow does that than the one that smooths (Farneback 2003), lest it be judged by itself. The labels' own is there
too. ``smoothing_ms`` is the median time of the product's smoothing alone, on one thread. The committed figures are made
by::

    OMP_NUM_THREADS=1 python -m benchmarks.smoothing --weights efficientvit_seg_b0_cityscapes.pt --camvid PATH \
        --json benchmarks/results/smoothing.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.protocol import Record, environment
from cdga_sdk import tail
from cdga_sdk.atomic import write_text
from cdga_sdk.hashes import file_sha256
from cdga_sdk.labels import CITYSCAPES_NAMES, CLASS_SETS
from cdga_sdk.metrics import ConfusionMatrix
from cdga_sdk.opencv import cv2
from cdga_sdk.prediction import FromLogits
from cdga_sdk.preprocess import Preprocess, UInt8Array, resize_image, resize_label
from cdga_sdk.smoothing import Smoother
from cdga_sdk.tail import Float32Array
from cdga_train.checkpoint import read_published_weights
from cdga_train.data.base import Dataset
from cdga_train.data.spec import open_labelled
from cdga_train.models.registry import network_spec

MODEL: Final = "efficientvit_b0"
IMGSZ_HW: Final = (352, 480)
CLASSES: Final = CLASS_SETS["common11"]
SHARES: Final = (0.7, 0.5, 0.3)
OVERLAP: Final = 0.25

Number = TypeVar("Number", np.uint8, np.float32)
Flow = npt.NDArray[np.float32]
Probabilities = npt.NDArray[np.float32]
"""(H, W, 19) float32 at the frame's size."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One frame of the clip.

    Attributes:
        image_bgr: (H, W, 3) uint8.
        label: (H, W) uint8 train ids.
        flow_HW2: Where each pixel was in the frame before, as an offset (x, y) in pixels; zeros in the first frame.
        judging_flow_HW2: The same by the other method.
    """

    image_bgr: UInt8Array
    label: UInt8Array
    flow_HW2: Flow
    judging_flow_HW2: Flow


def main(arguments: Sequence[str] | None = None) -> None:
    """Score every way, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--camvid", type=Path, required=True)
    parser.add_argument("--frames", type=int, default=None, help="the first of the clip; all by default")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args(arguments)
    dataset = open_labelled(f"camvid:{options.camvid}", "val", IMGSZ_HW)
    frames = list(clip(dataset, options.frames))
    cv2.setNumThreads(1)  # for the times; the flows are there already
    report: Record = {
        "what": "CamVid val, common 11 classes, percent",
        **environment(
            "benchmarks.smoothing",
            ["--weights", options.weights.name, "--camvid", "PATH", "--json", "PATH"],
            ("torch", "timm", "opencv-python", "numpy"),
            torch.device("cpu"),
        ),
        "weights_sha256": file_sha256(options.weights),
        "imgsz_hw": IMGSZ_HW,
        "frames": len(frames),
        "smoothing_ms": "median of the wall time of smoothing a frame, one thread, on a machine that others used too",
        "consistency_of_labels": round(consistency(frames, [f.label for f in frames]), 2),
        "ways": scored(frames, published(options.weights)),
    }
    text = json.dumps(report, indent=1) + "\n"
    if options.json is None:
        sys.stdout.write(text)
    else:
        write_text(options.json, text)


def published(weights: Path) -> nn.Module:
    """The network with its published weights."""
    spec = network_spec(MODEL, IMGSZ_HW)
    network = spec.build(len(CITYSCAPES_NAMES)).eval()
    spec.load_published(network, read_published_weights(weights))
    return network


def clip(dataset: Dataset, limit: int | None) -> Iterator[Frame]:
    """The data set's frames in order, with the flow from each to the one before."""
    estimator = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    before: UInt8Array | None = None
    for index in range(min(limit or len(dataset), len(dataset))):
        sample = dataset[index]
        assert sample.label is not None
        grey = np.asarray(cv2.cvtColor(sample.image_bgr, cv2.COLOR_BGR2GRAY), np.uint8)
        flow, judging = np.zeros((*grey.shape, 2), np.float32), np.zeros((*grey.shape, 2), np.float32)
        if before is not None:
            flow = np.asarray(estimator.calc(grey, before, flow), np.float32)
            judging = _farneback(grey, before)
        yield Frame(image_bgr=sample.image_bgr, label=sample.label, flow_HW2=flow, judging_flow_HW2=judging)
        before = grey


def _farneback(grey_HW: UInt8Array, before_HW: UInt8Array) -> Flow:
    start = np.zeros((*grey_HW.shape, 2), np.float32)
    return np.asarray(cv2.calcOpticalFlowFarneback(grey_HW, before_HW, start, 0.5, 4, 21, 5, 7, 1.5, 0), np.float32)


def carried(array: npt.NDArray[Number], flow_HW2: Flow, interpolation: int) -> npt.NDArray[Number]:
    """What the frame before showed, (H, W) or (H, W, C), at the places where it is now."""
    height, width = flow_HW2.shape[:2]
    x = np.arange(width, dtype=np.float32) + flow_HW2[:, :, 0]
    y = np.arange(height, dtype=np.float32)[:, None] + flow_HW2[:, :, 1]
    moved = np.empty_like(array.reshape(height, width, -1))
    for channel in range(moved.shape[2]):
        plane = array.reshape(height, width, -1)[:, :, channel]
        moved[:, :, channel] = cv2.remap(plane, x, y, interpolation, borderMode=cv2.BORDER_REPLICATE)
    return moved.reshape(array.shape)


def head_logits(network: nn.Module, image_bgr: UInt8Array, imgsz_hw: tuple[int, int]) -> Tensor:
    """The network's answer to an image, (1, 19, h, w) float32 at the size of its head."""
    rgb_HWC = resize_image(image_bgr, imgsz_hw)[:, :, ::-1]
    mean, std = (np.array(values, np.float32) for values in (Preprocess.mean, Preprocess.std))
    image_HWC = (rgb_HWC.astype(np.float32) / 255 - mean) / std
    with torch.inference_mode():
        logits_1Chw: Tensor = network(torch.from_numpy(image_HWC.transpose(2, 0, 1)[None].copy()))
    return logits_1Chw


def probabilities(network: nn.Module, image_bgr: UInt8Array, imgsz_hw: tuple[int, int]) -> Probabilities:
    """Class probabilities of an image at its own size."""
    return _at_size_of(image_bgr, head_logits(network, image_bgr, imgsz_hw))


def _at_size_of(image_bgr: UInt8Array, logits_1Chw: Tensor) -> Probabilities:
    with torch.inference_mode():
        logits_1CHW = F.interpolate(logits_1Chw, image_bgr.shape[:2], mode="bilinear", align_corners=False)
        return np.asarray(logits_1CHW.softmax(1)[0].permute(1, 2, 0).contiguous().numpy())


def tiled(network: nn.Module, image_bgr: UInt8Array) -> Probabilities:
    """Probabilities of four parts that overlap, averaged where they do."""
    height, width = image_bgr.shape[:2]
    rows, columns = (round(side / (2 - OVERLAP)) for side in (height, width))
    total = np.zeros((height, width, len(CITYSCAPES_NAMES)), np.float32)
    count = np.zeros((height, width, 1), np.float32)
    for top in (0, height - rows):
        for left in (0, width - columns):
            part = np.s_[top : top + rows, left : left + columns]
            total[part] += probabilities(network, np.ascontiguousarray(image_bgr[part]), IMGSZ_HW)
            count[part] += 1
    return total / count


def smoothed(series: Sequence[Probabilities], frames: Sequence[Frame], share: float, *, flow: bool) -> list[UInt8Array]:
    """Masks of the running mean that gives the present frame ``share``."""
    masks, mean = [], series[0]
    for now, frame in zip(series, frames, strict=True):
        before = carried(mean, frame.flow_HW2, cv2.INTER_LINEAR) if flow else mean
        mean = np.asarray(share * now + (1 - share) * before, np.float32)
        masks.append(_argmax(mean))
    return masks


def by_product(
    logits: Sequence[Float32Array], frames: Sequence[Frame], share: float, imgsz_hw: tuple[int, int]
) -> tuple[list[UInt8Array], float]:
    """Masks that the product makes of the head's logits, and its median milliseconds of smoothing behind frame 1."""
    smoother, masks, times_ms = Smoother(share), [], []
    for logits_Chw, frame in zip(logits, frames, strict=True):
        seen_bgr = resize_image(frame.image_bgr, imgsz_hw)
        answer = FromLogits(tail.labels(logits_Chw, imgsz_hw)[None], logits_Chw[None])
        clock = time.perf_counter()
        mask_HW = smoother.smoothed(seen_bgr, answer).mask_NHW[0]
        times_ms.append(1e3 * (time.perf_counter() - clock))
        masks.append(resize_label(mask_HW, frame.label.shape))
    return masks, median(times_ms[1:])


def scored(frames: Sequence[Frame], network: nn.Module) -> list[Record]:
    """A row for each way."""
    logits = [head_logits(network, f.image_bgr, IMGSZ_HW) for f in frames]
    series = [_at_size_of(f.image_bgr, logits_1Chw) for f, logits_1Chw in zip(frames, logits, strict=True)]
    twice_hw = (2 * IMGSZ_HW[0], 2 * IMGSZ_HW[1])
    ways: dict[str, Callable[[], list[UInt8Array]]] = {
        "plain": lambda: [_argmax(p) for p in series],
        "tile": lambda: [_argmax(tiled(network, f.image_bgr)) for f in frames],
        "larger": lambda: [_argmax(probabilities(network, f.image_bgr, twice_hw)) for f in frames],
    }
    for share in SHARES:
        ways[f"smooth {share}"] = partial(smoothed, series, frames, share, flow=False)
        ways[f"smooth {share}, flow"] = partial(smoothed, series, frames, share, flow=True)
    rows = [_row(way, frames, masks()) for way, masks in ways.items()]
    for share in SHARES:
        masks, smoothing_ms = by_product([one[0].numpy() for one in logits], frames, share, IMGSZ_HW)
        rows.append({**_row(f"cdga {share}", frames, masks), "smoothing_ms": round(smoothing_ms, 1)})
    return rows


def _row(way: str, frames: Sequence[Frame], masks: Sequence[UInt8Array]) -> Record:
    matrix = ConfusionMatrix(CLASSES)
    for mask, frame in zip(masks, frames, strict=True):
        matrix.add(mask, frame.label)
    scores = matrix.scores()
    return {
        "way": way,
        "miou": round(scores.miou, 2),
        "consistency": round(consistency(frames, masks), 2),
        "iou": {name: round(value, 2) for name, value in scores.iou.items() if value == value},
    }


def consistency(frames: Sequence[Frame], masks: Sequence[UInt8Array]) -> float:
    """mIoU, percent, of each mask with the one before carried along."""
    matrix = ConfusionMatrix(CLASSES)
    for before, mask, frame in zip(masks, masks[1:], frames[1:], strict=False):
        matrix.add(carried(before, frame.judging_flow_HW2, cv2.INTER_NEAREST), mask)
    return matrix.scores().miou


def _argmax(prob_HWC: Probabilities) -> UInt8Array:
    return np.asarray(prob_HWC.argmax(axis=2), np.uint8)


if __name__ == "__main__":
    main()
