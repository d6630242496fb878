"""Run a bundle's ONNX with nothing but onnxruntime, OpenCV and numpy: no part of this project is imported.

python examples/plain_onnxruntime.py model.cdga/model.onnx image.jpg mask.png
"""

from __future__ import annotations

import sys

import cv2
import onnxruntime


def main(model: str, image: str, mask: str) -> None:
    """Write the class map of one image as a PNG of train ids, at the image's size."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    _, height, width, _ = session.get_inputs()[0].shape
    bgr = cv2.imread(image)
    assert bgr is not None, f"cannot read {image}"
    frame = cv2.cvtColor(cv2.resize(bgr, (width, height), interpolation=cv2.INTER_LINEAR), cv2.COLOR_BGR2RGB)
    classes, confidence = session.run(["mask", "conf"], {"frame": frame[None]})
    cv2.imwrite(mask, cv2.resize(classes[0], bgr.shape[1::-1], interpolation=cv2.INTER_NEAREST_EXACT))
    print(f"mean confidence {confidence.mean() / 255:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:4])
