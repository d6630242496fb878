"""What bfloat16 costs in labels and gains in time on a CPU that has it, in OpenVINO, on CamVid val.

Each network is run in five ways. *fp32*, twice, so that the null pair tells what the clock is worth. *hint*: all of it
in bf16, as OpenVINO does by itself where it is let. *whole*: all convolutions but those of the logits typed bf16, with
means taken out. *half*: the last ones with half of the multiplications, the least that is called a bf16 network.
*admitted*: what the export admits, or what it says instead.

Agreement is with the float32 graph, on frames of CamVid train that set nothing; mIoU over the common 11 classes.
LR-ASPP is trained as in `benchmarks.export_precisions`, for 700 iterations::

    python -m benchmarks.bf16 --weights efficientvit_seg_b0_cityscapes.pt --checkpoint runs/train/lraspp \
        --camvid PATH --json benchmarks/results/bf16.json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
import torch

from benchmarks.protocol import Record, environment, interleaved, load, paired_ratio
from cdga_export.export import Exported, ExportOptions, export_checkpoint, export_weights
from cdga_export.frames import calibration_frames, golden_frames
from cdga_export.lowered import MIN_SHARE, multiplications, share_of
from cdga_export.to_onnx import checked_bytes, onnx_of
from cdga_export.typed_fp16 import channel_statistics, making_logits, typed_fp16
from cdga_sdk.atomic import write_text
from cdga_sdk.backends.openvino_cpu import OpenVinoBackend, cpu_has_bf16
from cdga_sdk.bundle import Bundle
from cdga_sdk.errors import GateError, ResourceError
from cdga_sdk.labels import class_set
from cdga_sdk.preprocess import UInt8Array, resize_image, resize_label
from cdga_train.checkpoint import load_checkpoint
from cdga_train.data.spec import open_labelled
from cdga_train.evaluate import evaluate

CITY_MODEL: Final = "efficientvit_b0"
CITY_SIZE_HW: Final = (512, 1024)
THREADS: Final = (1, 2)

Export = Callable[[Path, ExportOptions], Exported]
Open = Callable[[int], OpenVinoBackend]
"""A way of running a network, on so many threads."""


class Hinted(OpenVinoBackend):
    """A float32 graph, computed in bf16 throughout."""

    _hint: ClassVar[str] = "bf16"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every network in every way, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, action="append", default=[])
    parser.add_argument("--camvid", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args(arguments)
    if not cpu_has_bf16():
        raise ResourceError("this CPU has no bf16: there is nothing to measure")
    data = f"camvid:{options.camvid}"
    city = partial(_published, options.weights)
    rows = rows_of(city, data, {"model": CITY_MODEL, "weights": "published, Cityscapes"}, options.rounds)
    for place in options.checkpoint:
        state = load_checkpoint(place)
        facts: Record = {"model": state.config.model, "weights": f"CamVid, {state.iteration} iterations"}
        rows += rows_of(partial(export_checkpoint, place), data, facts, options.rounds)
    command = ["--weights", options.weights.name, "--camvid", "PATH", "--rounds", str(options.rounds)]
    command[2:2] = [word for place in options.checkpoint for word in ("--checkpoint", place.name)]
    report: Record = {
        "what": "CamVid val, common 11 classes; agreement in shares, mIoU in percent, time over fp32's in pairs",
        **environment("benchmarks.bf16", command, ("openvino", "onnx"), torch.device("cpu")),
        **load(),
        "rows": rows,
    }
    text = json.dumps(report, indent=1) + "\n"
    if options.json is None:
        sys.stdout.write(text)
    else:
        write_text(options.json, text)


def _published(weights: Path, output: Path, options: ExportOptions) -> Exported:
    return export_weights(weights, CITY_MODEL, CITY_SIZE_HW, output, options)


def rows_of(export: Export, data: str, facts: Record, rounds: int) -> list[Record]:
    """A row for each way of running one network.

    Args:
        export: Writes the bundle to the path that it is given.
        data: Where golden, calibration and scored frames come from.
        facts: What each row begins with.
        rounds: Rounds that are timed.
    """
    with tempfile.TemporaryDirectory() as folder:
        bundle = export(Path(folder) / "fp32.cdga", ExportOptions(golden=data)).bundle
        ways = _ways(bundle, data)
        try:
            done = export(Path(folder) / "bf16.cdga", ExportOptions(golden=data, precisions=("bf16",), quiet=False))
            ways["admitted"] = (str(done.parity["bf16"].arithmetic), _opens(done.bundle.graph("bf16")))
            refused = None
        except GateError as error:
            refused = error.what
        frames = [np.ascontiguousarray(f.image_bgr[np.newaxis, :, :, ::-1]) for f in bundle.golden_frames()]
        facts = facts | {"imgsz_hw": bundle.manifest.imgsz_hw}
        times = _times({way: opens for way, (_, opens) in ways.items()}, frames[0], rounds)
        exact = ways["fp32"][1](1)
        rows: list[Record] = []
        for way, (arithmetic, opens) in ways.items():
            backend = opens(1)
            agreement = [float((backend.infer(f).mask_NHW == exact.infer(f).mask_NHW).mean()) for f in frames]
            rows.append(
                facts
                | {"way": way, "arithmetic": arithmetic}
                | {"worst_frame_agreement": round(min(agreement), 6), "agreement": round(float(np.mean(agreement)), 6)}
                | {"miou": round(_miou(backend, data, bundle.manifest.imgsz_hw), 2), "time_of_fp32": times[way]}
            )
        return rows if refused is None else [*rows, facts | {"way": "admitted", "refused": refused}]


def _ways(bundle: Bundle, data: str) -> dict[str, tuple[str, Open]]:
    """What is in bf16, and how to open it, by name."""
    model = onnx_of(bundle.model_bytes)
    size_hw = bundle.manifest.imgsz_hw
    seen = [frame.frame_rgb for frame in calibration_frames(data, golden_frames(data, size_hw), size_hw)]
    statistics, cost = channel_statistics(model, seen), multiplications(model)
    names, stay = list(cost), making_logits(model)
    at_half = max(k for k in range(len(names)) if share_of(set(names[k:]) - stay, cost) >= MIN_SHARE)
    ways: dict[str, tuple[str, Open]] = {
        "fp32": ("none", _opens(bundle.model_bytes)),
        "fp32 again": ("none", _opens(bundle.model_bytes)),
        "hint": ("everything", lambda threads: Hinted(bundle.model_bytes, threads=threads)),
    }
    for way, num_fp32 in (("whole", 0), ("half", at_half)):
        graph = checked_bytes(typed_fp16(model, statistics, num_fp32=num_fp32, half="bfloat16"))
        ways[way] = (f"all but the first {num_fp32} of {len(names)} convolutions and the logits", _opens(graph))
    return ways


def _opens(graph: bytes) -> Open:
    return lambda threads: OpenVinoBackend(graph, threads=threads)


def _times(ways: Mapping[str, Open], frame_1HWC: UInt8Array, rounds: int) -> dict[str, Record]:
    """Time over that of float32 by way, and by number of threads."""
    found: dict[str, Record] = {way: {} for way in ways}
    for threads in THREADS:
        variants = {way: partial(opens(threads).infer, frame_1HWC) for way, opens in ways.items()}
        samples = interleaved(variants, rounds=rounds, warm_up=2, device=torch.device("cpu"))
        for way, times in samples.items():
            found[way][f"threads_{threads}"] = paired_ratio(times.wall_s, samples["fp32"].wall_s).record()
    return found


def _miou(backend: OpenVinoBackend, data: str, imgsz_hw: tuple[int, int]) -> float:
    def mask_of(image_bgr: UInt8Array) -> UInt8Array:
        frame_rgb = np.ascontiguousarray(resize_image(image_bgr, imgsz_hw)[:, :, ::-1])
        return resize_label(backend.infer(frame_rgb[np.newaxis]).mask_NHW[0], image_bgr.shape[:2])

    return evaluate(mask_of, open_labelled(data, "val", imgsz_hw), class_set("common11")).miou


if __name__ == "__main__":
    main()
