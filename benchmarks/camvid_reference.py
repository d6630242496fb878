"""Do the published EfficientViT-B0 weights, exported and run by ONNX Runtime, score what plain PyTorch scores?

CamVid val, common 11 classes, two input sizes. The reference was measured independently with plain PyTorch: image
resized bilinearly, logits upsampled bilinearly to 480x360::

    python benchmarks/camvid_reference.py --weights PATH/efficientvit_seg_b0_cityscapes.pt --camvid PATH/camvid \
        --json benchmarks/results/camvid_reference.json
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib.metadata
import json
import platform
import tempfile
from pathlib import Path

from cdga_export.export import export_weights
from cdga_sdk.atomic import write_text
from cdga_sdk.labels import CLASS_SETS
from cdga_train.evaluate_run import run_evaluate

REFERENCE = {(352, 480): (59.6, 90.5), (704, 960): (69.4, 93.2)}


def main() -> None:
    """Export at both sizes, evaluate, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--camvid", required=True)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    rows = [_score(options.weights, options.camvid, size) for size in REFERENCE]
    report = {
        "what": "CamVid val, 101 frames, common 11 classes, percent; bundle on onnxruntime, mask resized to 480x360",
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "command": "python benchmarks/camvid_reference.py --weights efficientvit_seg_b0_cityscapes.pt --camvid camvid",
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "packages": {n: importlib.metadata.version(n) for n in ("torch", "timm", "onnxruntime-gpu", "opencv-python")},
        "runs": rows,
    }
    print(json.dumps(report, indent=1))
    if options.json is not None:
        write_text(options.json, json.dumps(report, indent=1) + "\n")


def _score(weights: str, camvid: str, imgsz_hw: tuple[int, int]) -> dict[str, object]:
    miou, accuracy = REFERENCE[imgsz_hw]
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "city.cdga"
        parity = export_weights(weights, "efficientvit_b0", imgsz_hw, bundle).parity
        scores, backend = run_evaluate(
            str(bundle),
            f"camvid:{camvid}",
            "val",
            CLASS_SETS["common11"],
            backend="onnxruntime",
            device="cpu",
            quiet=True,
        )
    return {
        "imgsz_hw": imgsz_hw,
        "backend": backend,
        "miou": round(scores.miou, 2),
        "accuracy": round(scores.accuracy, 2),
        "reference_miou": miou,
        "reference_accuracy": accuracy,
        "parity_agreement": parity.agreement,
        "iou": {name: round(value, 2) for name, value in scores.iou.items()},
    }


if __name__ == "__main__":
    main()
