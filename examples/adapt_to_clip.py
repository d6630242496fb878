"""Adapt a network to your own clip, without labels, and export it.

python examples/adapt_to_clip.py ride.mp4 adapted.cdga [KEY=VALUE ...]
"""

from __future__ import annotations

import sys
from pathlib import Path

from cdga_export.export import ExportOptions, export_checkpoint
from cdga_sdk.atomic import new_run_folder
from cdga_train.config import load_config
from cdga_train.presets import PRESETS
from cdga_train.rounds import train_run


def main(video: str, bundle: str, *overrides: str) -> None:
    """Labelled streets are the source, the clip's frames the target."""
    config = load_config(PRESETS["footage_cdga"](), None, [f"target=video:{video}", *overrides])
    checkpoint = train_run(config, new_run_folder(Path("runs/train"), Path(video).stem))
    exported = export_checkpoint(checkpoint, Path(bundle), ExportOptions(golden=f"video:{video}"))
    print(f"{exported.bundle.path}: {exported.parity['fp32'].agreement:.4%} of pixels as trained")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: python examples/adapt_to_clip.py VIDEO BUNDLE [KEY=VALUE ...]")
    main(*sys.argv[1:])
