"""Checkpoint or published weights to a bundle, proven before it takes its name."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import nn

from cdga_export.card import render_card
from cdga_export.parity import FP32_MIN_AGREEMENT, ParityReport, compare, refuse_below_gate
from cdga_export.to_onnx import onnx_from_fused
from cdga_sdk import __version__
from cdga_sdk.backends.onnx_runtime import OnnxRuntimeBackend
from cdga_sdk.bundle import SUMS, Bundle, GoldenFrame, Manifest, Provenance, preprocess_block, write_bundle
from cdga_sdk.errors import ModelError, UsageError
from cdga_sdk.labels import CITYSCAPES_NAMES, CITYSCAPES_PALETTE_RGB
from cdga_sdk.preprocess import Preprocess, UInt8Array, resize_image
from cdga_train.checkpoint import load_checkpoint, read_published_weights
from cdga_train.data.spec import open_unlabelled
from cdga_train.data.streets import DOMAINS, render_frame
from cdga_train.models.fused import FusedNetwork
from cdga_train.models.registry import network_spec
from cdga_train.predict import predict_frames
from cdga_train.state import build_network

__all__ = ["Exported", "export_checkpoint", "export_weights"]

NUM_GOLDEN: Final = 8


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A written bundle and the report that admitted it."""

    bundle: Bundle
    parity: ParityReport


def export_checkpoint(
    checkpoint: str | Path, output: Path, *, golden: str | None = None, overwrite: bool = False
) -> Exported:
    """Export a checkpoint of ``cdga train``, or the last one of a run's folder.

    Args:
        checkpoint: File or folder.
        output: The bundle's folder, by convention NAME.cdga.
        golden: Data whose frames the parity is judged on and that travel in the bundle; streets by default.
        overwrite: Replace an existing bundle.

    Raises:
        InputError: No checkpoint, or the golden data cannot be read.
        ModelError: The checkpoint is refused.
        GateError: The exported graph does not agree with the network; nothing is written.
        UsageError: ``output`` exists and ``overwrite`` is off.
    """
    _refuse_existing(output, overwrite=overwrite)
    state = load_checkpoint(checkpoint)
    config = state.config
    network = build_network(state)
    provenance = _provenance(
        network,
        config.model,
        source=config.source,
        target=config.target,
        arm=config.arm + (" with FDA" if config.translate == "fda" else ""),
        iterations=state.iteration,
        seed=config.seed,
    )
    return _export(network, state.preprocess, provenance, output, golden=golden, overwrite=overwrite)


def export_weights(
    weights: str | Path,
    model: str,
    imgsz_hw: tuple[int, int],
    output: Path,
    *,
    golden: str | None = None,
    overwrite: bool = False,
) -> Exported:
    """Export weights published elsewhere for a network of `cdga_train.models.registry`.

    The file is read without running code in it. Raises as `export_checkpoint` does; a file without a head, such as
    weights of ImageNet, is a `ModelError`.
    """
    _refuse_existing(output, overwrite=overwrite)
    spec = network_spec(model, imgsz_hw)
    network = spec.build(len(CITYSCAPES_NAMES))
    if spec.load_published(network, read_published_weights(weights)) == "backbone":
        raise ModelError(
            f"holds a backbone for {model} and no head of {len(CITYSCAPES_NAMES)} classes: there is nothing to export",
            where=weights,
            fix=f"train from it: cdga train PRESET model={model} weights=FILE, then export the checkpoint",
        )
    provenance = _provenance(network, model, source=f"published weights {Path(weights).name}")
    return _export(network, Preprocess(imgsz_hw=imgsz_hw), provenance, output, golden=golden, overwrite=overwrite)


def _export(
    network: nn.Module,
    preprocess: Preprocess,
    provenance: Provenance,
    output: Path,
    *,
    golden: str | None,
    overwrite: bool,
) -> Exported:
    if not all(bool(torch.isfinite(p).all()) for p in network.state_dict().values()):
        raise ModelError("the network's weights hold NaN or infinity", fix="export an older checkpoint")
    fused = FusedNetwork(network, preprocess)
    manifest = Manifest(
        names=CITYSCAPES_NAMES,
        palette_rgb=CITYSCAPES_PALETTE_RGB,
        preprocess=preprocess_block(preprocess),
        provenance=provenance,
    )
    model_bytes = onnx_from_fused(fused, manifest)
    frames_rgb = _golden_frames(golden, preprocess.imgsz_hw)
    backend = OnnxRuntimeBackend(model_bytes, device="cpu")
    parity, masks = compare(
        frames_rgb,
        partial(predict_frames, fused),
        backend.infer,
        reference_name=f"torch {torch.__version__.partition('+')[0]} fp32",
        candidate_name=backend.name,
        min_agreement=FP32_MIN_AGREEMENT,
    )
    refuse_below_gate(parity)
    bundle = write_bundle(
        output,
        manifest=manifest,
        model_bytes=model_bytes,
        golden=[
            GoldenFrame(name=name, image_bgr=np.ascontiguousarray(frame[:, :, ::-1]), mask=mask)
            for (name, frame), mask in zip(frames_rgb, masks, strict=True)
        ],
        parity=parity.as_dict(),
        card=render_card(manifest, parity, len(model_bytes)),
        overwrite=overwrite,
    )
    return Exported(bundle=bundle, parity=parity)


def _golden_frames(spec: str | None, imgsz_hw: tuple[int, int]) -> list[tuple[str, UInt8Array]]:
    """Named RGB frames at network size: spread over ``spec``, or of every domain of the streets."""
    if spec is None:
        size_wh = (imgsz_hw[1], imgsz_hw[0])
        drawn = [(DOMAINS[i % len(DOMAINS)], i) for i in range(NUM_GOLDEN)]
        return [
            (f"streets_{domain}_{seed}", render_frame(seed=seed, domain=domain, size_wh=size_wh).image_rgb)
            for domain, seed in drawn
        ]
    data = open_unlabelled(spec, "val" if spec.startswith("streets:") else "train", imgsz_hw)
    samples = [data[i] for i in _spread(len(data), NUM_GOLDEN)]
    return [
        (f"{i:02d}_{_plain(s.name)}", np.ascontiguousarray(resize_image(s.image_bgr, imgsz_hw)[:, :, ::-1]))
        for i, s in enumerate(samples)
    ]


def _plain(name: str) -> str:
    """``name`` as it can stand in a file name and in SHA256SUMS: letters, digits, ``_`` and ``-``, not too many."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in name[:80])


def _spread(length: int, wanted: int) -> Sequence[int]:
    return sorted({int(i) for i in np.linspace(0, length - 1, min(length, wanted))})


def _provenance(network: nn.Module, model: str, **known: object) -> Provenance:
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return Provenance.model_validate(
        {
            "model": model,
            "weights_sha256": digest.hexdigest(),
            "made_by": f"cdga-sdk {__version__}",
            "made_on": dt.datetime.now(dt.UTC).date().isoformat(),
            **known,
        }
    )


def _refuse_existing(output: Path, *, overwrite: bool) -> None:
    if output.exists() and not overwrite:
        raise UsageError("already exists", where=output, fix="choose another -o, or pass --exist-ok to replace it")
    if output.exists() and not (output / SUMS).is_file():
        raise UsageError("exists and is no bundle: it is not replaced", where=output, fix="choose another -o")
