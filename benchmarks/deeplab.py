"""DeepLab-v2 of the paper on a CPU, frame of the network's size to class map: PyTorch against this project's runtime.

*torch eager*: the network that is exported, in float32. *cdga*: the exported graph in OpenVINO, float32, its end by
`cdga_sdk.tail`; twice, so that the null pair tells what the clock is worth. *cdga, bf16*: the same with everything in
bf16, where the CPU has it.

The weights are random: they cost the same time as any, and say nothing about labels. So bf16 is a bound on what its
gate can admit for a trained network (`benchmarks.bf16`), and there is no int8 here: what may be in 8 bits depends on
the weights (`benchmarks.export_precisions`)::

    python -m benchmarks.deeplab --json benchmarks/results/deeplab.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import torch

from benchmarks.bf16 import Hinted
from benchmarks.protocol import Record, environment, interleaved, load, paired_ratio, side_by_side
from cdga_export.to_onnx import checked_bytes, traced
from cdga_sdk.atomic import write_text
from cdga_sdk.backends.openvino_cpu import OpenVinoBackend, cpu_has_bf16
from cdga_sdk.labels import CITYSCAPES_NAMES
from cdga_sdk.preprocess import Preprocess, UInt8Array
from cdga_train.models.fused import FusedNetwork
from cdga_train.models.registry import network_spec
from cdga_train.predict import predict_frames

NETWORKS: Final = ("deeplabv2_resnet101", "deeplabv2_resnet50")
IMGSZ_HW: Final = (512, 1024)
OURS: Final = "cdga"
AGAIN: Final = "cdga, again"
EAGER: Final = "torch eager"
BF16: Final = "cdga, bf16"


def main(arguments: Sequence[str] | None = None) -> None:
    """Time every network in every way, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--imgsz", type=int, nargs=2, default=IMGSZ_HW, metavar=("H", "W"))
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args(arguments)
    height, width = options.imgsz
    rows = [row_of(name, (height, width), options.rounds) for name in NETWORKS]
    if any(row["is_void"] for row in rows):
        sys.exit("void, nothing written: a null pair differs by more than 3 %; repeat on a calmer machine")
    command = ["--rounds", str(options.rounds), "--imgsz", str(height), str(width)]
    report: Record = {
        "what": "frame of the network's size to class map, milliseconds; time over cdga's in pairs; random weights",
        **environment("benchmarks.deeplab", [*command, "--json", "PATH"], ("openvino", "torch"), torch.device("cpu")),
        "imgsz_hw": (height, width),
        "rows": rows,
    }
    write_text(options.json, json.dumps(report, indent=1) + "\n")


def row_of(name: str, imgsz_hw: tuple[int, int], rounds: int) -> Record:
    """One network, every way in turn."""
    torch.manual_seed(0)
    network = network_spec(name, imgsz_hw).build(len(CITYSCAPES_NAMES)).eval()
    fused = FusedNetwork(network, Preprocess(imgsz_hw=imgsz_hw)).eval()
    frame_NHWC = np.random.default_rng(0).integers(0, 256, (1, *imgsz_hw, 3), np.uint8)
    before, times = (
        load(),
        interleaved(
            {way: partial(run, frame_NHWC) for way, run in _ways(fused, imgsz_hw).items()},
            rounds=rounds,
            warm_up=1,
            device=torch.device("cpu"),
        ),
    )
    is_null = paired_ratio(times[AGAIN].wall_s, times[OURS].wall_s).is_null
    return {"network": name, "is_void": not is_null, "load_before": before, **side_by_side(times, of=OURS, per=1)}


def _ways(fused: FusedNetwork, imgsz_hw: tuple[int, int]) -> dict[str, Callable[[UInt8Array], object]]:
    axes = {"frame": {0: "N"}, "mask": {0: "N"}, "conf": {0: "N"}}
    graph = checked_bytes(traced(fused, imgsz_hw, axes))
    ways: dict[str, Callable[[UInt8Array], object]] = {EAGER: partial(predict_frames, fused)}
    for way in (OURS, AGAIN):
        ways[way] = OpenVinoBackend(graph).infer
    if cpu_has_bf16():
        ways[BF16] = Hinted(graph).infer
    return ways


if __name__ == "__main__":
    main()
