"""``cdga info``: what a bundle, an engine or a checkpoint is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from cdga_sdk.bundle import EXTRA, SUMS, Bundle, ExtraBlock
from cdga_sdk.errors import counted

__all__ = ["describe", "size_line"]


def describe(path: Path) -> dict[str, object]:
    """Facts of a verified bundle, engine or checkpoint, by name.

    Raises:
        CdgaError: As `Bundle.open`, `cdga_sdk.backends.engine_cache.read_engine` or
            `cdga_train.checkpoint.load_checkpoint` do.
    """
    if os.path.lexists(path / SUMS) or path.suffix == ".cdga":
        return _describe_bundle(Bundle.open(path))
    if path.suffix == ".engine":
        return _describe_engine(path)
    from cdga_train.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(path)
    config = checkpoint.config
    return {
        "kind": "checkpoint",
        "path": str(path),
        "model": config.model,
        "imgsz": size_line(checkpoint.preprocess.imgsz_hw),
        "classes": len(checkpoint.names),
        "arm": config.arm,
        "translate": config.translate,
        "source": config.source,
        "target": config.target,
        "iteration": f"{checkpoint.iteration} of {config.iters}",
        "weights": config.weights_kept,
        "seed": config.seed,
    }


def _describe_bundle(bundle: Bundle) -> dict[str, object]:
    manifest = bundle.manifest
    origin = manifest.provenance.model_dump(exclude_none=True)
    return {
        "kind": "bundle",
        "path": str(bundle.path),
        "sha256": bundle.sha256,
        **{f"{precision}_mb": round(len(data) / 1e6, 2) for precision, data in bundle.graphs.items()},
        "imgsz": size_line(manifest.imgsz_hw),
        "classes": len(manifest.names),
        **({} if manifest.extra is None else {"extra": _extra_line(manifest.extra)}),
        "golden_frames": len(bundle.golden_frames()),
        **{f"{precision}_parity": _parity_line(bundle.parity[precision]) for precision in manifest.precisions},
        **_scores(bundle),
        **origin,
        **({} if manifest.about is None else manifest.about.model_dump(exclude_none=True)),
    }


def _describe_engine(path: Path) -> dict[str, object]:
    """What the sidecar says of an engine whose hash is right; the engine itself is code, and is not loaded."""
    from cdga_sdk.backends.engine_cache import read_engine

    return {"kind": "engine", "path": str(path), **read_engine(path).sidecar.model_dump()}


def size_line(imgsz_hw: tuple[int, int]) -> str:
    """Height and width, pixels, as a fact."""
    return f"{imgsz_hw[0]},{imgsz_hw[1]} (height,width)"


def _extra_line(extra: ExtraBlock) -> str:
    size = "fixed size" if extra.size == "fixed" else f"any size in multiples of {extra.size_multiple}"
    return f"{EXTRA}: {', '.join(('mask', 'conf', *extra.outputs))}; {size}"


def _scores(bundle: Bundle) -> dict[str, str]:
    """What the export scored each graph, where it was given labelled data."""
    lines = {}
    for precision in bundle.manifest.precisions:
        report = bundle.parity[precision]
        assert isinstance(report, Mapping)
        if labels := report.get("labels"):
            frames = counted(labels["frames"], "frames")
            lines[f"{precision}_score"] = f"mIoU {labels['miou']:.2f} on {frames} of {labels['data']}"
    return lines


def _parity_line(report: object) -> str:
    assert isinstance(report, Mapping)
    return f"{report['candidate']} = {report['reference']} on {report['agreement']} of pixels"
