"""Checkpoint or published weights to a bundle, proven before it takes its name."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import nn

from cdga_export.card import render_card
from cdga_export.deploy import deployment_texts
from cdga_export.parity import MIN_AGREEMENT, ParityReport, compare, refuse_below_gate, side_by_side
from cdga_export.quantize import quantized
from cdga_export.to_onnx import checked_bytes, onnx_from_fused, onnx_of
from cdga_export.typed_fp16 import channel_statistics, typed_fp16
from cdga_sdk import __version__
from cdga_sdk.backends.onnx_runtime import OnnxRuntimeBackend
from cdga_sdk.bundle import (
    PRECISIONS,
    SUMS,
    Bundle,
    GoldenFrame,
    Manifest,
    Precision,
    Provenance,
    preprocess_block,
    write_bundle,
)
from cdga_sdk.errors import InputError, ModelError, UsageError
from cdga_sdk.image import write_png
from cdga_sdk.labels import CITYSCAPES_NAMES, CITYSCAPES_PALETTE_RGB
from cdga_sdk.preprocess import Preprocess, UInt8Array, resize_image
from cdga_train.checkpoint import load_checkpoint, read_published_weights
from cdga_train.data.spec import open_unlabelled
from cdga_train.data.streets import DOMAINS, render_frame
from cdga_train.models.fused import FusedNetwork
from cdga_train.models.registry import network_spec
from cdga_train.predict import predict_frames
from cdga_train.state import build_network

__all__ = ["ExportOptions", "Exported", "export_checkpoint", "export_weights"]

NUM_GOLDEN: Final = 8
NUM_CALIB: Final = 32
_Frames = list[tuple[str, UInt8Array]]


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How to export.

    Attributes:
        precisions: Beside fp32, which is always there.
        golden: Data whose frames the parity is judged on and that travel in the bundle; streets by default.
        calib: Data whose frames set the ranges of int8 and the means of fp16; by default other frames of ``golden``.
        overwrite: Replace an existing bundle.
    """

    precisions: tuple[Precision, ...] = ()
    golden: str | None = None
    calib: str | None = None
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A written bundle and the reports that admitted its graphs, by precision."""

    bundle: Bundle
    parity: Mapping[Precision, ParityReport]


def export_checkpoint(checkpoint: str | Path, output: Path, options: ExportOptions = ExportOptions()) -> Exported:
    """Export a checkpoint of ``cdga train``, or the result of a run's folder.

    Args:
        checkpoint: File or folder.
        output: The bundle's folder, by convention NAME.cdga.
        options: Precisions, and the data that they are judged and set by.

    Raises:
        InputError: No checkpoint, or frames cannot be read.
        ModelError: The checkpoint is refused.
        GateError: A graph does not agree with the network; nothing is written but, beside the bundle's place, a
            picture of the worst frame.
        UsageError: The output exists and is not to be replaced.
    """
    _refuse_existing(output, options)
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
    return _export(network, state.preprocess, provenance, output, options)


def export_weights(
    weights: str | Path, model: str, imgsz_hw: tuple[int, int], output: Path, options: ExportOptions = ExportOptions()
) -> Exported:
    """Export weights published elsewhere for a network of `cdga_train.models.registry`.

    The file is read without running code in it. Raises as `export_checkpoint` does; a file without a head, such as
    weights of ImageNet, is a `ModelError`.
    """
    _refuse_existing(output, options)
    spec = network_spec(model, imgsz_hw)
    network = spec.build(len(CITYSCAPES_NAMES))
    if spec.load_published(network, read_published_weights(weights)) == "backbone":
        raise ModelError(
            f"holds a backbone for {model} and no head of {len(CITYSCAPES_NAMES)} classes: there is nothing to export",
            where=weights,
            fix=f"train from it: cdga train PRESET model={model} weights=FILE, then export the checkpoint",
        )
    provenance = _provenance(network, model, source=f"published weights {Path(weights).name}")
    return _export(network, Preprocess(imgsz_hw=imgsz_hw), provenance, output, options)


def _export(
    network: nn.Module, preprocess: Preprocess, provenance: Provenance, output: Path, options: ExportOptions
) -> Exported:
    if not all(bool(torch.isfinite(p).all()) for p in network.state_dict().values()):
        raise ModelError("the network's weights hold NaN or infinity", fix="export an older checkpoint")
    fused = FusedNetwork(network, preprocess)
    precisions: tuple[Precision, ...] = ("fp32", *(p for p in PRECISIONS[1:] if p in options.precisions))
    manifest = Manifest(
        names=CITYSCAPES_NAMES,
        palette_rgb=CITYSCAPES_PALETTE_RGB,
        preprocess=preprocess_block(preprocess),
        precisions=precisions,
        provenance=provenance,
    )
    golden = _golden_frames(options.golden, preprocess.imgsz_hw)
    masks = [predict_frames(fused, frame[np.newaxis])[0][0] for _, frame in golden]
    graphs = _graphs(onnx_from_fused(fused, manifest), precisions, options, preprocess.imgsz_hw)
    parity: dict[Precision, ParityReport] = {}
    worst_bgr: dict[str, UInt8Array] = {}
    for precision, data in graphs.items():
        backend = OnnxRuntimeBackend(data, device="cpu")
        parity[precision] = _judged(fused, backend, golden, precision)
        if precision == "fp32":
            refuse_below_gate(parity[precision])
            continue
        worst_bgr[precision] = _worst(parity[precision], backend, golden, masks)
        if parity[precision].faults:
            picture = output.with_name(f"{output.name}.refused.{precision}.png")
            write_png(picture, worst_bgr[precision])
            refuse_below_gate(parity[precision], picture)
    bundle = write_bundle(
        output,
        manifest=manifest,
        graphs=graphs,
        golden=[
            GoldenFrame(name=name, image_bgr=np.ascontiguousarray(frame[:, :, ::-1]), mask=mask)
            for (name, frame), mask in zip(golden, masks, strict=True)
        ],
        parity={precision: report.as_dict() for precision, report in parity.items()},
        card=render_card(manifest, parity, graphs),
        worst_bgr=worst_bgr,
        texts=deployment_texts(manifest),
        overwrite=options.overwrite,
    )
    return Exported(bundle=bundle, parity=parity)


def _graphs(
    fp32: bytes, precisions: Sequence[Precision], options: ExportOptions, imgsz_hw: tuple[int, int]
) -> dict[Precision, bytes]:
    graphs: dict[Precision, bytes] = {"fp32": fp32}
    if len(precisions) == 1:
        return graphs
    model = onnx_of(fp32)
    frames_rgb = _calibration_frames(options, imgsz_hw)
    statistics = channel_statistics(model, frames_rgb)
    for precision in precisions[1:]:
        if precision == "fp16":
            made = typed_fp16(model, statistics)
        else:
            made = quantized(model, frames_rgb, statistics, "cpu" if precision == "int8" else "tensorrt")
        graphs[precision] = checked_bytes(made)
    return graphs


def _judged(fused: FusedNetwork, backend: OnnxRuntimeBackend, golden: _Frames, precision: Precision) -> ParityReport:
    return compare(
        golden,
        partial(predict_frames, fused),
        backend.infer,
        names=CITYSCAPES_NAMES,
        reference_name=f"torch {torch.__version__.partition('+')[0]} fp32",
        candidate_name=f"onnxruntime cpu {precision}",
        min_agreement=MIN_AGREEMENT[precision],
    )


def _worst(
    report: ParityReport, backend: OnnxRuntimeBackend, golden: _Frames, masks: Sequence[UInt8Array]
) -> UInt8Array:
    number = [name for name, _ in golden].index(report.worst_frame)
    frame = golden[number][1]
    found = backend.infer(frame[np.newaxis])[0][0]
    return side_by_side(frame, masks[number], found, CITYSCAPES_PALETTE_RGB)


def _golden_frames(spec: str | None, imgsz_hw: tuple[int, int]) -> _Frames:
    """Named RGB frames at network size: spread over ``spec``, or of every domain of the streets."""
    if spec is None:
        return _streets(range(NUM_GOLDEN), imgsz_hw)
    return _frames_of(spec, imgsz_hw, NUM_GOLDEN, part=0)


def _calibration_frames(options: ExportOptions, imgsz_hw: tuple[int, int]) -> list[UInt8Array]:
    """RGB frames at network size that are no golden ones: what is tuned on is not what is judged on."""
    spec = options.calib or options.golden
    if spec is None:
        frames = _streets(range(NUM_GOLDEN, NUM_GOLDEN + NUM_CALIB), imgsz_hw)
    else:
        frames = _frames_of(spec, imgsz_hw, NUM_CALIB, part=0 if options.calib else 1)
    return [frame for _, frame in frames]


def _streets(seeds: range, imgsz_hw: tuple[int, int]) -> _Frames:
    size_wh = (imgsz_hw[1], imgsz_hw[0])
    drawn = [(DOMAINS[seed % len(DOMAINS)], seed) for seed in seeds]
    return [
        (f"streets_{domain}_{seed}", render_frame(seed=seed, domain=domain, size_wh=size_wh).image_rgb)
        for domain, seed in drawn
    ]


def _frames_of(spec: str, imgsz_hw: tuple[int, int], wanted: int, *, part: int) -> _Frames:
    """Frames spread over a data set: of ``part`` 0, or of 1, which shares none with it."""
    data = open_unlabelled(spec, "val" if spec.startswith("streets:") else "train", imgsz_hw)
    golden = _spread(len(data), NUM_GOLDEN)
    if part == 0:
        numbers = _spread(len(data), wanted)
    else:
        others = [i for i in range(len(data)) if i not in golden]
        if not others:
            raise InputError(
                f"has {len(data)} frames, all golden: none is left to calibrate on",
                where=spec,
                fix="give --calib",
            )
        numbers = [others[i] for i in _spread(len(others), wanted)]
    samples = [data[i] for i in numbers]
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


def _refuse_existing(output: Path, options: ExportOptions) -> None:
    if output.exists() and not options.overwrite:
        raise UsageError("already exists", where=output, fix="choose another -o, or pass --exist-ok to replace it")
    if output.exists() and not (output / SUMS).is_file():
        raise UsageError("exists and is no bundle: it is not replaced", where=output, fix="choose another -o")
