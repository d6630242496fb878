"""What does it cost to go from a head's logits to exact labels and confidences, on one core?

EfficientViT-B0 with its published Cityscapes weights sees 8 frames of each data set; its logits (19 classes) are
upsampled eightfold. Labels: by plain numpy, by OpenCV (every class resized, then numpy's argmax), by torch, and by
`cdga_sdk.tail`. Labels and confidence together: by torch, as the exported graph has them, and by `cdga_sdk.tail`.
Labels of noise: where no cell is spared::

    python -m benchmarks.tail --weights efficientvit_seg_b0_cityscapes.pt --data camvid:PATH --data video:FILE \
        --json benchmarks/results/tail.json

Before anything is timed all variants must give torch's labels, but for pixels whose two best logits tie within
float32's rounding, and confidences within 1 of 255. Times are paired within rounds (``benchmarks.protocol``); a run
of a variant is all frames.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from rich.console import Console

from benchmarks.protocol import Record, environment, interleaved, load, paired_ratio, side_by_side, side_by_side_table
from cdga_export.frames import golden_frames
from cdga_sdk.atomic import write_text
from cdga_sdk.opencv import cv2
from cdga_sdk.preprocess import Preprocess, UInt8Array
from cdga_sdk.tail import Float32Array, confidence, labels
from cdga_train.checkpoint import read_published_weights
from cdga_train.models.fused import Normalise, classified
from cdga_train.models.registry import network_spec

MODEL: Final = "efficientvit_b0"
CLASSES: Final = 19
TIE: Final = 1e-5
OURS: Final = "cdga"
AGAIN: Final = "cdga again"

Size = tuple[int, int]
Index = npt.NDArray[np.intp]
Labels = Callable[[Float32Array, Size], UInt8Array]
Both = Callable[[Float32Array, Size], tuple[UInt8Array, UInt8Array]]


def numpy_labels(logits_Chw: Float32Array, size_hw: Size) -> UInt8Array:
    """Every class at every pixel in plain numpy."""
    (y0, y1, v), (x0, x1, u) = (_between(head, size) for head, size in zip(logits_Chw.shape[1:], size_hw, strict=True))
    left, right = logits_Chw[:, :, x0], logits_Chw[:, :, x1]
    row_ChW = left + (right - left) * u
    upper, lower = row_ChW[:, y0], row_ChW[:, y1]
    return np.asarray(np.argmax(upper + (lower - upper) * v[:, np.newaxis], axis=0), np.uint8)


def _between(head: int, size: int) -> tuple[Index, Index, Float32Array]:
    position = np.clip((np.arange(size) + 0.5) * (head / size) - 0.5, 0, head - 1)
    low = position.astype(np.intp)
    return low, np.minimum(low + 1, head - 1), (position - low).astype(np.float32)


def opencv_labels(logits_Chw: Float32Array, size_hw: Size) -> UInt8Array:
    """Every class resized by OpenCV."""
    resized = [cv2.resize(logit_hw, size_hw[::-1], interpolation=cv2.INTER_LINEAR) for logit_hw in logits_Chw]
    return np.asarray(np.argmax(np.stack(resized), axis=0), np.uint8)


def torch_labels(logits_Chw: Float32Array, size_hw: Size) -> UInt8Array:
    """torch's interpolate and argmax."""
    with torch.inference_mode():
        logits_1CHW = F.interpolate(torch.from_numpy(logits_Chw)[None], size_hw, mode="bilinear", align_corners=False)
        return np.asarray(logits_1CHW.argmax(1)[0].to(torch.uint8).numpy())


def torch_both(logits_Chw: Float32Array, size_hw: Size) -> tuple[UInt8Array, UInt8Array]:
    """Labels and confidence as the exported graph computes them."""
    with torch.inference_mode():
        mask_1HW, conf_1HW = classified(torch.from_numpy(logits_Chw)[None], size_hw)
        return np.asarray(mask_1HW[0].numpy()), np.asarray(conf_1HW[0].numpy())


def our_both(logits_Chw: Float32Array, size_hw: Size) -> tuple[UInt8Array, UInt8Array]:
    """Labels and confidence by `cdga_sdk.tail`."""
    return labels(logits_Chw, size_hw), confidence(logits_Chw, size_hw)


LABELS: Final[Mapping[str, Labels]] = {
    "numpy": numpy_labels,
    "opencv": opencv_labels,
    "torch": torch_labels,
    OURS: labels,
    AGAIN: labels,
}
BOTH: Final[Mapping[str, Both]] = {"torch": torch_both, OURS: our_both, AGAIN: our_both}


def main(arguments: Sequence[str] | None = None) -> None:
    """Check, time in turn, print the tables, write the JSON."""
    options = _options(arguments)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    frames = [one for data in options.data for one in real_logits(options.weights, data, options.size_hw)]
    exactness = checked(frames, options.size_hw)
    questions: dict[str, Record] = {}
    void = False
    asked: list[tuple[str, Mapping[str, Labels | Both], Sequence[Float32Array]]] = [
        ("labels", LABELS, frames),
        ("labels and confidence", BOTH, frames),
        ("labels of noise", LABELS, [noise(frames[0].shape)]),
    ]
    for title, variants, logits in asked:
        before = load()
        runs = {name: partial(_over, variant, logits, options.size_hw) for name, variant in variants.items()}
        times = interleaved(runs, rounds=options.rounds, warm_up=options.warm_up, device=torch.device("cpu"))
        questions[title] = side_by_side(times, of=OURS, per=len(logits)) | {"load_before": before, "load_after": load()}
        Console(stderr=True).print(side_by_side_table(title, times, of=OURS, per=len(logits)))
        void |= not paired_ratio(times[AGAIN].wall_s, times[OURS].wall_s).is_null
    if void:
        sys.exit("void, nothing written: a null pair differs by more than 3 %; repeat on a calmer machine")
    if options.json is not None:
        report = _environment(options) | {"frames": len(frames), "size_hw": options.size_hw, **exactness, **questions}
        write_text(options.json, json.dumps(report, indent=1) + "\n")


def real_logits(weights: Path, data: str, size_hw: Size) -> list[Float32Array]:
    """What the published network gives for frames spread over ``data``, (C, h, w) each."""
    spec = network_spec(MODEL, size_hw)
    network = spec.build(CLASSES).eval()
    spec.load_published(network, read_published_weights(weights))
    normalise = Normalise(Preprocess(imgsz_hw=size_hw))
    with torch.inference_mode():
        images = (normalise(torch.from_numpy(frame.frame_rgb)[None]) for frame in golden_frames(data, size_hw))
        return [np.asarray(network(image_1CHW)[0].numpy(), np.float32) for image_1CHW in images]


def noise(shape_Chw: tuple[int, ...]) -> Float32Array:
    """Logits of which nearly every cell is mixed, the worst that can come."""
    return np.random.default_rng(0).standard_normal(shape_Chw).astype(np.float32)


def checked(frames: Sequence[Float32Array], size_hw: Size) -> Record:
    """How far the variants are from torch, and how many cells have corners of different classes.

    Ends the run where a label differs without a tie, or a confidence by more than 1.
    """
    differing, farthest, mixed = 0, 0, []
    for logits_Chw in frames:
        wanted, wanted_conf = torch_both(logits_Chw, size_hw)
        for name, variant in LABELS.items():
            given = variant(logits_Chw, size_hw)
            if _gap(logits_Chw, size_hw, given) > TIE * np.abs(logits_Chw).max():
                sys.exit(f"{name} gives other labels than torch, and not by a tie")
            differing = max(differing, int((given != wanted).sum())) if name == OURS else differing
        farthest = max(farthest, int(np.abs(confidence(logits_Chw, size_hw).astype(int) - wanted_conf).max()))
        top = logits_Chw.argmax(axis=0)
        corners = np.stack([top[:-1, :-1], top[:-1, 1:], top[1:, :-1], top[1:, 1:]])
        mixed.append(float((corners != corners[0]).any(axis=0).mean()))
    if farthest > 1:
        sys.exit(f"a confidence differs from torch's by {farthest} of 255")
    return {
        "most_pixels_of_a_frame_with_another_label": differing,
        "largest_confidence_difference": farthest,
        "mixed_cells": round(float(np.mean(mixed)), 4),
    }


def _gap(logits_Chw: Float32Array, size_hw: Size, mask: UInt8Array) -> float:
    """How far the logits of ``mask`` lie below the best ones, at most."""
    with torch.inference_mode():
        logits = F.interpolate(torch.from_numpy(logits_Chw)[None], size_hw, mode="bilinear", align_corners=False)[0]
        chosen = logits.gather(0, torch.from_numpy(mask)[None].long())[0]
        return float((logits.amax(0) - chosen).max())


def _over(variant: Labels | Both, frames: Sequence[Float32Array], size_hw: Size) -> None:
    for logits_Chw in frames:
        variant(logits_Chw, size_hw)


def _environment(options: argparse.Namespace) -> Record:
    # Where the reader keeps the data is nobody's business, so the command names none.
    command = ["--weights", options.weights.name]
    for data in options.data:
        command += ["--data", f"{data.partition(':')[0]}:PATH"]
    packages = ("numpy", "opencv-python", "torch")
    return {
        "what": "from logits (19, h, w) to labels, and to labels and confidence; one thread, each over cdga's time",
        **environment("benchmarks.tail", [*command, "--json", "PATH"], packages, torch.device("cpu")),
    }


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tail", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", action="append", required=True, help="camvid:PATH, video:FILE, streets:DOMAIN, ...")
    parser.add_argument("--size-hw", type=_size, default=(512, 1024), metavar="H,W")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warm-up", type=int, default=2, help="rounds that do not count")
    parser.add_argument("--json", type=Path, default=None)
    return parser.parse_args(arguments)


def _size(text: str) -> Size:
    height, width = text.split(",")
    return int(height), int(width)


if __name__ == "__main__":
    main()
