"""``cdga evaluate``: a bundle through its runtime, or a checkpoint through torch, on labelled data."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cdga_sdk.bundle import SUMS
from cdga_sdk.errors import GateError, ResourceError, UsageError, did_you_mean
from cdga_sdk.labels import ClassSet
from cdga_sdk.metrics import Scores
from cdga_sdk.progress import progress_bar
from cdga_sdk.segmenter import Segmenter
from cdga_train.data.spec import open_labelled
from cdga_train.evaluate import evaluate

__all__ = ["PROTOCOLS", "refuse_below", "refuse_request", "run_evaluate"]

PROTOCOLS: Final = ("deployed", "published")
_ANY_SIZE_HW: Final = (64, 128)


def run_evaluate(
    model: Path,
    data: str,
    split: str,
    classes: ClassSet,
    *,
    backend: str,
    device: str,
    quiet: bool,
    protocol: str = "deployed",
    precision: str = "fp32",
    on_incompatible: str = "rebuild",
) -> tuple[Scores, str]:
    """Score ``model`` on ``data``; also returns what computed it. Only a checkpoint needs torch.

    Args:
        model: A bundle, a checkpoint or the folder of a run.
        data: Labelled data, KIND:PLACE.
        split: Its part.
        classes: What the score is stated over.
        backend: The runtime of a bundle.
        device: Where it runs; ``auto`` is a GPU where there is one.
        quiet: No progress bar.
        protocol: ``deployed``: argmax at the network's size, then nearest to the label's, as a bundle works.
            ``published``: probabilities bilinearly to the label's size, then argmax, as papers state mIoU.
        precision: Which graph of a bundle.
        on_incompatible: When no kept TensorRT engine fits a bundle: ``rebuild``, ``fallback`` or ``error``.

    Raises:
        UsageError: A model that cannot be scored so.
        CdgaError: As `Segmenter`, `load_checkpoint` and `open_labelled` do.
    """
    assert protocol in PROTOCOLS, protocol
    if not ((model / SUMS).is_file() or model.suffix == ".cdga"):
        if (backend, precision, on_incompatible) != ("auto", "fp32", "rebuild"):
            raise UsageError(
                "--backend, --precision and --on-incompatible are for bundles; torch scores a checkpoint", where=model
            )
        return _score_checkpoint(model, data, split, classes, device=device, quiet=quiet, protocol=protocol)
    if protocol == "published":
        raise UsageError(
            "a bundle gives classes; the published protocol upsamples probabilities, which only a checkpoint has",
            where=model,
            fix="name the checkpoint, or use --protocol deployed",
        )
    with Segmenter(
        model, precision=precision, backend=backend, device=device, on_incompatible=on_incompatible
    ) as segmenter:
        dataset = open_labelled(data, split, segmenter.imgsz)
        with progress_bar("evaluate", len(dataset), quiet=quiet) as advance:
            scores = evaluate(lambda image: segmenter(image).mask, dataset, classes, on_frame=advance)
        return scores, segmenter.backend_name


def _score_checkpoint(
    model: Path, data: str, split: str, classes: ClassSet, *, device: str, quiet: bool, protocol: str
) -> tuple[Scores, str]:
    import torch

    from cdga_train.checkpoint import load_checkpoint
    from cdga_train.models.fused import FusedNetwork
    from cdga_train.predict import predictor
    from cdga_train.state import build_network, choose_device

    chosen = choose_device(device)
    checkpoint = load_checkpoint(model)
    dataset = open_labelled(data, split, checkpoint.preprocess.imgsz_hw)
    try:
        fused = FusedNetwork(build_network(checkpoint), checkpoint.preprocess).to(chosen)
        with progress_bar("evaluate", len(dataset), quiet=quiet) as advance:
            scores = evaluate(predictor(fused, protocol), dataset, classes, on_frame=advance)
    except torch.OutOfMemoryError as error:
        raise ResourceError("out of GPU memory", where=chosen, fix="use --device cpu") from error
    # On a GPU torch's convolutions round their inputs to 10 bits unless told otherwise.
    precision = "tf32" if chosen.type == "cuda" and torch.backends.cudnn.allow_tf32 else "fp32"
    return scores, f"torch {chosen.type} {precision}"


def refuse_request(data: str, split: str, protocol: str, min_miou: float | None) -> None:
    """Refuse what can be refused before a model is looked for.

    Raises:
        UsageError: No such protocol, or a minimum that is no percentage.
        CdgaError: As `open_labelled` does.
    """
    if protocol not in PROTOCOLS:
        raise UsageError(f"unknown protocol '{protocol}'", fix=did_you_mean(protocol, PROTOCOLS))
    if min_miou is not None and not 0 <= min_miou <= 100:
        raise UsageError(f"got {min_miou}, wanted 0 to 100 percent", where="--min-miou")
    open_labelled(data, split, _ANY_SIZE_HW)


def refuse_below(scores: Scores, min_miou: float | None) -> None:
    """Hold a score against the wanted minimum, percent.

    Raises:
        GateError: It is below, or not a number.
    """
    if min_miou is not None and not scores.miou >= min_miou:
        raise GateError(f"mIoU {scores.miou:.2f} is below the wanted {min_miou:.2f}")
