"""Which x264 preset an overlay should be written with: time, cores, bytes and fidelity of each, side by side.

A bundle segments the first frames of a clip once; the overlays are then written with every preset at the same constant
quality: as ``cdga segment`` writes them, where the deblocking filter, CABAC and a macroblock tree that looks five
frames ahead are on for every preset, and plain, as x264 has them; and as ``--quality fast`` and ``high`` have them,
each at a constant quality of its own. Fidelity is the mean PSNR of what can be read back, in decibels::

    python -m benchmarks.encoder --model city.cdga --video ride.mp4 --json benchmarks/results/encoder.json

Times are paired within rounds (``benchmarks.protocol``). x264 takes as many threads as it likes, so the time of the
cores is what counts: on a machine whose cores the network needs too, that is the price.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Final

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from rich.console import Console

from benchmarks.protocol import Record, environment, interleaved, load, paired_ratio, side_by_side, side_by_side_table
from cdga_sdk import Segmenter
from cdga_sdk.atomic import write_text
from cdga_sdk.opencv import cv2
from cdga_sdk.preprocess import UInt8Array
from cdga_sdk.video.pipeline import VideoOptions, of_quality
from cdga_sdk.video.sink import VideoSink
from cdga_sdk.video.source import VideoSource

BASE: Final = VideoOptions().preset
AGAIN: Final = f"{BASE} again"
PLAIN: Final = ", plain"
PRESETS: Final = ("ultrafast", "superfast", "veryfast")
OPTIONS: Final[Mapping[str, VideoOptions]] = MappingProxyType(
    {preset: VideoOptions(preset=preset) for preset in PRESETS}
    | {"--quality fast": of_quality(VideoOptions(), "fast"), "--quality high": of_quality(VideoOptions(), "high")}
)
VARIANTS: Final = (*(preset + PLAIN for preset in PRESETS), *OPTIONS)
SIZES_WH: Final = ((960, 540), (1920, 1080))
RATE: Final = Fraction(25)


def overlays(model: Path, video: Path, frames: int, size_wh: tuple[int, int]) -> list[UInt8Array]:
    """Frames of one size with class colours over them."""
    with Segmenter(model, device="cpu") as segmenter, VideoSource(video, max_frames=frames) as source:
        resized = (cv2.resize(f.image_bgr, size_wh, interpolation=cv2.INTER_CUBIC) for f in source)
        return [segmenter(np.asarray(image_bgr, np.uint8)).plot() for image_bgr in resized]


def write(images_bgr: Sequence[UInt8Array], path: Path, variant: str) -> None:
    """One H.264 video: the product's own, or plain."""
    height, width = images_bgr[0].shape[:2]
    options = OPTIONS[variant.removesuffix(PLAIN)]
    if variant.endswith(PLAIN):
        write_plainly(images_bgr, path, {"preset": options.preset, "crf": str(options.crf), "bf": "0"})
        return
    sink = VideoSink(
        path, size_wh=(width, height), rate=RATE, time_base=1 / RATE, crf=options.crf, preset=options.preset
    )
    with sink:
        for tick, image_bgr in enumerate(images_bgr):
            sink.write(image_bgr, tick)


def write_plainly(images_bgr: Sequence[UInt8Array], path: Path, x264: dict[str, str]) -> None:
    """The same with nothing of this project's: the preset as x264 has it, frames copied into FFmpeg's."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options=x264)
        stream.height, stream.width = images_bgr[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = Colorspace.ITU709, ColorRange.MPEG
        to_yuv = VideoReformatter()
        for image_bgr in images_bgr:
            frame = av.VideoFrame.from_ndarray(image_bgr, format="bgr24")
            frame = to_yuv.reformat(
                frame, format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def psnr_db(images_bgr: Sequence[UInt8Array], path: Path) -> float:
    """Mean over frames of what can be read back."""
    with VideoSource(path) as source:
        read = [frame.image_bgr for frame in source]
    return float(np.mean([cv2.PSNR(one, other) for one, other in zip(images_bgr, read, strict=True)]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Segment, write in turn, print the tables, write the JSON."""
    options = _options(arguments)
    sizes: Record = {}
    is_void = False
    with tempfile.TemporaryDirectory() as name:
        paths = {variant: Path(name) / f"{variant.replace(PLAIN, '_plain')}.mp4" for variant in VARIANTS}
        for size_wh in SIZES_WH:
            images_bgr = overlays(options.model, options.video, options.frames, size_wh)
            runs = {variant: partial(write, images_bgr, path, variant) for variant, path in paths.items()}
            runs[AGAIN] = runs[BASE]
            before = load()
            times = interleaved(runs, rounds=options.rounds, warm_up=1, device=torch.device("cpu"))
            title = f"{size_wh[0]}x{size_wh[1]}"
            Console(stderr=True).print(side_by_side_table(title, times, of=BASE, per=len(images_bgr)))
            sizes[title] = {
                "frames": len(images_bgr),
                "bytes_per_frame": {v: round(path.stat().st_size / len(images_bgr)) for v, path in paths.items()},
                "psnr_db": {variant: round(psnr_db(images_bgr, path), 2) for variant, path in paths.items()},
                "load_before": before,
                **side_by_side(times, of=BASE, per=len(images_bgr)),
            }
            is_void |= not paired_ratio(times[AGAIN].cpu_s, times[BASE].cpu_s).is_null
    if is_void:
        sys.exit("void, nothing written: a null pair differs by more than 3 %; repeat on a calmer machine")
    if options.json is not None:
        command = ["--model", options.model.name, "--video", options.video.name]
        for name in ("frames", "rounds"):
            command += [f"--{name}", str(getattr(options, name))]
        crf = VideoOptions().crf
        report = {
            "what": f"overlays by x264, no B-frames, at crf {crf} (--quality: its own); CPU time over {BASE}'s",
            **environment("benchmarks.encoder", [*command, "--json", "PATH"], ("av",), torch.device("cpu")),
            "sizes": sizes,
        }
        write_text(options.json, json.dumps(report, indent=1) + "\n")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.encoder", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="a bundle")
    parser.add_argument("--video", type=Path, required=True)
    parser.add_argument("--frames", type=int, default=50, help="of the clip, from its start")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, default=None)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
