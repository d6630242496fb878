"""Segment one image with this bundle. Needed: NumPy, OpenCV and ONNX Runtime, nothing else.

    pip install numpy opencv-python-headless onnxruntime
    python deploy/run_onnx.py image.jpg overlay.png
    python deploy/run_onnx.py image.jpg overlay.png --mask mask.png --provider CUDAExecutionProvider

The mask holds the class ids that manifest.json names, at the image's size.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime

RESIZE = "cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)"
OPACITY = 0.5


def main() -> None:
    """Write the overlay of an image and, where it is asked for, its mask."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path)
    parser.add_argument("overlay", type=Path, help="PNG to write: class colours over the image")
    parser.add_argument("--mask", type=Path, help="PNG to write: class ids")
    parser.add_argument("--bundle", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--precision", default="fp32", help="one of the manifest's precisions")
    parser.add_argument("--provider", default="CPUExecutionProvider", help="or CUDAExecutionProvider")
    options = parser.parse_args()

    place = options.bundle / "manifest.json"
    if not place.is_file():
        sys.exit(f"{place}: no such file; --bundle wants the folder of a bundle")
    manifest = json.loads(place.read_text(encoding="utf-8"))
    if options.precision not in manifest["precisions"]:
        sys.exit(f"no precision {options.precision} in this bundle, it has {', '.join(manifest['precisions'])}")
    if options.precision == "bf16":
        sys.exit("bf16 graphs are for OpenVINO; ONNX Runtime cannot run them on a CPU")
    if options.mask is not None and options.mask.suffix.lower() != ".png":
        sys.exit(f"{options.mask}: wanted NAME.png, which keeps class ids as they are")
    image = cv2.imread(str(options.image), cv2.IMREAD_COLOR)
    if image is None:
        sys.exit(f"{options.image}: no image that OpenCV can read")
    graph = "model.onnx" if options.precision == "fp32" else f"model.{options.precision}.onnx"
    session = open_session(options.bundle / graph, options.provider)

    mask = segment(session, manifest, image)
    write(options.overlay, paint(image, mask, manifest["palette_rgb"]))
    if options.mask is not None:
        write(options.mask, mask)
    shares = np.bincount(mask.ravel(), minlength=256)[: len(manifest["names"])] / mask.size
    for share, name in sorted(zip(shares, manifest["names"], strict=True), reverse=True)[:5]:
        print(f"{name:<14} {100 * share:5.1f} %")


def open_session(model: Path, provider: str) -> Any:
    """A session on the provider that was asked for: ONNX Runtime alone would take the CPU and not say so."""
    if provider not in onnxruntime.get_available_providers():
        sys.exit(f"asked for {provider}, this onnxruntime has {', '.join(onnxruntime.get_available_providers())}")
    # TF32 changes labels.
    settings = {"use_tf32": "0"} if provider == "CUDAExecutionProvider" else {}
    session = onnxruntime.InferenceSession(str(model), providers=[(provider, settings)], enable_fallback=0)
    got = session.get_providers()
    print(f"{model.name}: asked for {provider}, got {', '.join(got)}")
    if got[0] != provider:
        sys.exit(f"{provider} cannot be used here: are the driver and libraries that this onnxruntime wants installed?")
    return session


def segment(session: Any, manifest: dict[str, Any], image_bgr: np.ndarray) -> np.ndarray:
    """The class ids (H, W) uint8 of an image (H, W, 3) uint8 BGR."""
    preprocess = manifest["preprocess"]
    if (preprocess["resize"], preprocess["color"]) != (RESIZE, "rgb"):
        sys.exit(f"this script resizes by {RESIZE} and gives RGB, the manifest wants {preprocess}")
    height, width = preprocess["imgsz_hw"]
    resized = cv2.resize(image_bgr, (width, height), interpolation=cv2.INTER_LINEAR)
    frame = np.ascontiguousarray(resized[np.newaxis, :, :, ::-1])
    mask: np.ndarray = session.run(["mask"], {"frame": frame})[0][0]
    return cv2.resize(mask, image_bgr.shape[1::-1], interpolation=cv2.INTER_NEAREST_EXACT)


def paint(image_bgr: np.ndarray, mask: np.ndarray, palette_rgb: list[list[int]]) -> np.ndarray:
    """Class colours over the image; ids without a colour are black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette_rgb)] = np.array(palette_rgb, np.uint8)[:, ::-1]
    return cv2.addWeighted(table[mask], OPACITY, image_bgr, 1 - OPACITY, 0.0)


def write(path: Path, image: np.ndarray) -> None:
    """Write an image, or stop and say that it could not be written."""
    try:
        written = cv2.imwrite(str(path), image)
    except cv2.error:  # a name whose ending is no image's
        written = False
    if not written:
        sys.exit(f"{path}: cannot be written; wanted NAME.png in a folder that is there")


if __name__ == "__main__":
    main()
