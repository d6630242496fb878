"""Checkpoint or published weights to a bundle, proven before it takes its name."""

from __future__ import annotations

import datetime as dt
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

import numpy as np
import torch
from torch import nn

from cdga_export.card import render_card
from cdga_export.deploy import deployment_texts
from cdga_export.extra import ExtraNetwork, ExtraOutput, extra_onnx, extra_parity
from cdga_export.frames import Frame, calibration_frames, golden_frames
from cdga_export.halved import halved
from cdga_export.judge import MAX_BATCH, Judge, Labels, Verdict
from cdga_export.parity import MIN_AGREEMENT, ParityReport, Reference
from cdga_export.quantize import Runtime, quantized
from cdga_export.to_onnx import checked_bytes, onnx_from_fused, onnx_of
from cdga_export.typed_fp16 import Half, convolutions
from cdga_sdk import __version__
from cdga_sdk.atomic import error_from_os
from cdga_sdk.bundle import (
    MANIFEST,
    MODEL,
    PRECISIONS,
    SUMS,
    About,
    Bundle,
    ExtraBlock,
    GoldenFrame,
    InputBlock,
    Manifest,
    Precision,
    Provenance,
    preprocess_block,
    write_bundle,
)
from cdga_sdk.errors import ModelError, UsageError, one_line
from cdga_sdk.labels import CITYSCAPES_NAMES, CITYSCAPES_PALETTE_RGB, class_set
from cdga_sdk.preprocess import Preprocess, UInt8Array
from cdga_sdk.progress import progress_bar
from cdga_train.checkpoint import load_checkpoint, read_published_weights
from cdga_train.data.spec import open_labelled, without_place
from cdga_train.models.base import SegmentationNetwork
from cdga_train.models.fused import FusedNetwork
from cdga_train.models.registry import network_spec
from cdga_train.predict import predict_frames, predict_mask_resized_by_torch
from cdga_train.state import build_network

__all__ = ["ExportOptions", "Exported", "export_checkpoint", "export_weights"]

_HALF: Final[Mapping[Precision, Half]] = MappingProxyType({"fp16": "float16", "bf16": "bfloat16"})


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How to export.

    Attributes:
        precisions: Beside fp32, which is always there.
        golden: Data whose frames the parity is judged on and that travel in the bundle; streets by default.
        calib: Data whose frames set the ranges of int8 and the means of fp16 and bf16; by default other frames of
            ``golden``.
        score: Labelled data, whose ``val`` part no precision may score much lower on than fp32 does.
        score_classes: What that score is stated over, a name of `cdga_sdk.labels.CLASS_SETS`.
        about: What the bundle is to say of itself beside what is measured.
        outputs: Of an extra graph for programs of one's own, beside mask and confidence.
        dynamic_size: Whether that graph takes frames of any size.
        overwrite: Replace an existing bundle.
        quiet: No progress bars.
    """

    precisions: tuple[Precision, ...] = ()
    golden: str | None = None
    calib: str | None = None
    score: str | None = None
    score_classes: str = "19"
    about: About | None = None
    outputs: tuple[ExtraOutput, ...] = ()
    dynamic_size: bool = False
    overwrite: bool = False
    quiet: bool = True

    def extra_block(self, size_multiple: int) -> ExtraBlock | None:
        """What the extra graph is, where one is wanted."""
        if not (self.outputs or self.dynamic_size):
            return None
        size: Literal["fixed", "dynamic"] = "dynamic" if self.dynamic_size else "fixed"
        return ExtraBlock(outputs=self.outputs, size=size, size_multiple=size_multiple)

    def labels(self, imgsz_hw: tuple[int, int]) -> Labels | None:
        """The labelled data, opened.

        Raises:
            CdgaError: As `open_labelled` and `class_set` do.
        """
        if self.score is None:
            return None
        return Labels(
            data=open_labelled(self.score, "val", imgsz_hw),
            classes=class_set(self.score_classes),
            title=f"{without_place(self.score)} val, {self.score_classes} classes",
        )


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A written bundle and the reports that admitted its graphs, by precision."""

    bundle: Bundle
    parity: Mapping[Precision, ParityReport]


def export_checkpoint(
    checkpoint: str | Path,
    output: Path,
    options: ExportOptions = ExportOptions(),
    *,
    imgsz_hw: tuple[int, int] | None = None,
) -> Exported:
    """Export a checkpoint of ``cdga train``, or the result of a run's folder.

    Args:
        checkpoint: File or folder.
        output: The bundle's folder, by convention NAME.cdga.
        options: Precisions, and the data that they are judged and set by.
        imgsz_hw: Height and width of the bundle's input; those of training by default. A larger one sees small things
            better, as far as training has shown the network things of many sizes (``augment``).

    Raises:
        InputError: No checkpoint, or frames cannot be read.
        ModelError: The checkpoint is refused.
        GateError: A graph does not agree with the network, or too little of it can be in 8 bits; nothing is written
            but, where a graph was judged, a picture of the worst frame beside the bundle's place.
        UsageError: The output exists and is not to be replaced, or the network does not take that size.
    """
    _refuse_existing(output, options)
    state = load_checkpoint(checkpoint)
    config = state.config
    preprocess = state.preprocess if imgsz_hw is None else replace(state.preprocess, imgsz_hw=imgsz_hw)
    network_spec(config.model, preprocess.imgsz_hw)
    network = build_network(state)
    provenance = _provenance(
        network,
        config.model,
        source=without_place(config.source),
        target=None if config.target is None else without_place(config.target),
        arm=config.arm
        + (" with FDA" if config.translate == "fda" else "")
        + (f", weights {config.weights_kept}" if config.average_power is not None else ""),
        iterations=state.iteration,
        seed=config.seed,
    )
    return _export(network, preprocess, provenance, output, options)


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
    provenance = _provenance(network, model, source=f"published weights {one_line(Path(weights).name)}")
    return _export(network, Preprocess(imgsz_hw=imgsz_hw), provenance, output, options)


def _export(
    network: SegmentationNetwork,
    preprocess: Preprocess,
    provenance: Provenance,
    output: Path,
    options: ExportOptions,
) -> Exported:
    if not all(bool(torch.isfinite(p).all()) for p in network.state_dict().values()):
        raise ModelError("the network's weights hold NaN or infinity", fix="export an older checkpoint")
    labels = options.labels(preprocess.imgsz_hw)  # what can be wrong is found before what takes long
    golden = golden_frames(options.golden, preprocess.imgsz_hw)
    seen = _calibration(options, golden, preprocess.imgsz_hw)
    fused = FusedNetwork(network, preprocess)
    manifest = Manifest(
        names=CITYSCAPES_NAMES,
        palette_rgb=CITYSCAPES_PALETTE_RGB,
        preprocess=preprocess_block(preprocess),
        input=InputBlock(batch_range=(1, MAX_BATCH)),
        precisions=("fp32", *(p for p in PRECISIONS[1:] if p in options.precisions)),
        extra=options.extra_block(network.size_multiple),
        provenance=provenance,
        about=options.about,
    )
    references = _references(fused, golden)
    fp32 = onnx_from_fused(fused, manifest)
    judge = Judge(references, fp32, labels, output, quiet=options.quiet)
    graphs: dict[Precision, bytes] = {"fp32": fp32}
    verdicts: dict[Precision, Verdict] = {"fp32": judge.fp32}
    for precision, graph, arithmetic in _other_graphs(fp32, manifest.precisions[1:], seen, quiet=options.quiet):
        graphs[precision] = graph
        verdicts[precision] = judge.proven(precision, graph, arithmetic)
    parity = {precision: verdict.report for precision, verdict in verdicts.items()}
    extra, extra_report = _extra_graph(network, fused, manifest, references)
    _refuse_existing(output, options)  # minutes have passed, and something else may have come there
    bundle = write_bundle(
        output,
        manifest=manifest,
        graphs=graphs,
        golden=[
            GoldenFrame(
                name=told.frame.name,
                image_bgr=np.ascontiguousarray(told.frame.frame_rgb[:, :, ::-1]),
                mask=told.mask,
            )
            for told in references
        ],
        parity={precision: report.as_dict() for precision, report in parity.items()} | extra_report,
        card=render_card(manifest, parity, graphs),
        worst_bgr={precision: verdict.worst_bgr for precision, verdict in verdicts.items() if precision != "fp32"},
        texts=deployment_texts(manifest),
        extra=extra,
        overwrite=options.overwrite,
    )
    return Exported(bundle=bundle, parity=parity)


def _extra_graph(
    network: SegmentationNetwork, fused: FusedNetwork, manifest: Manifest, references: Sequence[Reference]
) -> tuple[bytes | None, dict[str, object]]:
    """The extra graph and its part of the parity report, where the manifest names one."""
    if manifest.extra is None:
        return None, {}
    wanted = ExtraNetwork(network, fused, manifest.extra.outputs)
    graph = extra_onnx(wanted, manifest)
    return graph, {"extra": extra_parity(graph, wanted, manifest.extra, references)}


def _references(fused: FusedNetwork, frames: Sequence[Frame]) -> list[Reference]:
    references = []
    for frame in frames:
        mask_1HW, conf_1HW = predict_frames(fused, frame.frame_rgb[np.newaxis])
        is_resized = frame.image_bgr.shape != frame.frame_rgb.shape
        image_mask = predict_mask_resized_by_torch(fused, frame.image_bgr) if is_resized else None
        references.append(Reference(frame=frame, mask=mask_1HW[0], conf=conf_1HW[0], image_mask=image_mask))
    return references


def _calibration(options: ExportOptions, golden: Sequence[Frame], imgsz_hw: tuple[int, int]) -> list[UInt8Array]:
    """RGB frames at network size that set the other precisions, where there are any."""
    if not set(options.precisions) - {"fp32"}:
        return []
    spec = options.golden if options.calib is None else options.calib
    return [frame.frame_rgb for frame in calibration_frames(spec, golden, imgsz_hw)]


def _other_graphs(
    fp32: bytes, precisions: Sequence[Precision], seen: Sequence[UInt8Array], *, quiet: bool
) -> Iterator[tuple[Precision, bytes, str | None]]:
    """Precision, graph, and what is in that precision where that is not all; each made when it is asked for."""
    model = onnx_of(fp32)
    for precision in precisions:
        if precision in _HALF:
            half = halved(model, seen, _HALF[precision], min_agreement=MIN_AGREEMENT[precision])
            yield precision, checked_bytes(half.model), None if half.share == 1 else str(half)
            continue
        runtime: Runtime = "cpu" if precision == "int8" else "tensorrt"
        with progress_bar(precision, len(convolutions(model)), quiet=quiet) as advance:
            made = quantized(model, seen, runtime, min_agreement=MIN_AGREEMENT[precision], on_tried=advance)
        yield precision, checked_bytes(made.model), str(made)


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
    """Refuse, before what takes minutes, a place that the bundle cannot take."""
    if output.name in {"", ".."}:
        raise UsageError("is no name for a bundle", where=output, fix="pass -o NAME.cdga")
    try:
        above = next(parent for parent in output.absolute().parents if parent.exists())
        is_bundle = all((output / name).is_file() for name in (SUMS, MANIFEST, MODEL))
    except OSError as error:  # a name that is too long, or a folder that is closed to this user
        raise error_from_os(error, output) from error
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise UsageError("cannot be written to", where=above, fix="choose another -o")
    if os.path.lexists(output) and not options.overwrite:
        raise UsageError("already exists", where=output, fix="choose another -o, or pass --exist-ok to replace it")
    if os.path.lexists(output) and not is_bundle:
        raise UsageError("exists and is no bundle: it is not replaced", where=output, fix="choose another -o")
