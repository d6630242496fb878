"""Do the published EfficientViT-B0 weights, exported and run by ONNX Runtime, score what plain PyTorch scores?

CamVid val, common 11 classes, two input sizes, float32 on the CPU. Both columns are measured here, in one run. Plain
PyTorch shares with the bundle the network, its weights and the counting, and nothing between: torch resizes the image
bilinearly, and the logits go bilinearly to the label's size in one step (the bundle's mask is made at the network's
size and then resized). The committed figures are made by::

    python -m benchmarks.camvid_reference --weights efficientvit_seg_b0_cityscapes.pt --camvid PATH \
        --json benchmarks/results/camvid_reference.json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.protocol import Record, environment
from cdga_export.export import export_weights
from cdga_sdk.atomic import write_text
from cdga_sdk.hashes import file_sha256
from cdga_sdk.labels import CITYSCAPES_NAMES, CLASS_SETS
from cdga_sdk.metrics import Scores
from cdga_sdk.preprocess import UInt8Array
from cdga_train.checkpoint import read_published_weights
from cdga_train.data.spec import open_labelled
from cdga_train.evaluate import evaluate
from cdga_train.evaluate_run import run_evaluate
from cdga_train.models.registry import network_spec

MODEL: Final = "efficientvit_b0"
CLASSES: Final = CLASS_SETS["common11"]
SIZES_HW: Final = ((352, 480), (704, 960))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of RGB in [0, 1]


def main(arguments: Sequence[str] | None = None) -> None:
    """Export at both sizes, score both ways, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--camvid", type=Path, required=True)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args(arguments)
    # Where the reader keeps the data is nobody's business, so the command names none.
    command = ["--weights", options.weights.name, "--camvid", "PATH", "--json", "PATH"]
    packages = ("torch", "timm", "onnxruntime-gpu", "opencv-python", "numpy")
    report: Record = {
        "what": "CamVid val, common 11 classes, percent",
        **environment("benchmarks.camvid_reference", command, packages, torch.device("cpu")),
        "weights_sha256": file_sha256(options.weights),
        "runs": [compared(options.weights, f"camvid:{options.camvid}", size_hw) for size_hw in SIZES_HW],
    }
    text = json.dumps(report, indent=1)
    if options.json is None:
        sys.stdout.write(text + "\n")
    else:
        write_text(options.json, text + "\n")


def plain_mask(network: nn.Module, imgsz_hw: tuple[int, int], image_bgr: UInt8Array) -> UInt8Array:
    """The mask of an (H, W, 3) BGR image at its own size, by nothing but torch."""
    with torch.inference_mode():
        image_1CHW = torch.from_numpy(np.ascontiguousarray(image_bgr[:, :, ::-1])).permute(2, 0, 1)[None] / 255
        image_1CHW = F.interpolate(image_1CHW, imgsz_hw, mode="bilinear", align_corners=False)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        logits_1CHW = network((image_1CHW - mean) / std)
        logits_1CHW = F.interpolate(logits_1CHW, image_bgr.shape[:2], mode="bilinear", align_corners=False)
        return np.asarray(logits_1CHW.argmax(1)[0].numpy(), np.uint8)


def compared(weights: Path, data: str, imgsz_hw: tuple[int, int]) -> Record:
    """The scores of the bundle and of plain torch at one size of the network's input."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "city.cdga"
        parity = export_weights(weights, MODEL, imgsz_hw, bundle).parity["fp32"]
        scores, backend = run_evaluate(bundle, data, "val", CLASSES, backend="onnxruntime", device="cpu", quiet=True)
    return {
        "imgsz_hw": imgsz_hw,
        "frames": scores.frames,
        "parity_agreement": parity.agreement,
        "bundle": {"backend": backend, **_record(scores)},
        "plain_torch": _record(_plain_scores(weights, data, imgsz_hw)),
    }


def _plain_scores(weights: Path, data: str, imgsz_hw: tuple[int, int]) -> Scores:
    spec = network_spec(MODEL, imgsz_hw)
    network = spec.build(len(CITYSCAPES_NAMES)).eval()
    spec.load_published(network, read_published_weights(weights))
    dataset = open_labelled(data, "val", imgsz_hw)
    return evaluate(lambda image_bgr: plain_mask(network, imgsz_hw, image_bgr), dataset, CLASSES)


def _record(scores: Scores) -> Record:
    return {
        "miou": round(scores.miou, 2),
        "accuracy": round(scores.accuracy, 2),
        "iou": {name: round(value, 2) for name, value in scores.iou.items() if value == value},
    }


if __name__ == "__main__":
    main()
