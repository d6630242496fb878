"""``cdga evaluate``: a bundle through its runtime, or a checkpoint through torch, on labelled data."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from cdga_sdk.bundle import SUMS
from cdga_sdk.errors import GateError, UsageError
from cdga_sdk.labels import ClassSet
from cdga_sdk.metrics import Scores
from cdga_sdk.progress import progress_bar
from cdga_sdk.segmenter import Segmenter
from cdga_train.data.spec import open_labelled
from cdga_train.evaluate import evaluate

__all__ = ["refuse_below", "run_evaluate"]


def run_evaluate(
    model: str, data: str, split: str, classes: ClassSet, *, backend: str, device: str, quiet: bool
) -> tuple[Scores, str]:
    """Score ``model`` on ``data``; also returns what computed it. Only a checkpoint needs torch.

    Raises:
        CdgaError: As `Segmenter`, `load_checkpoint` and `open_labelled` do.
    """
    if (Path(model) / SUMS).is_file() or Path(model).suffix == ".cdga":
        with Segmenter(model, backend=backend, device=device) as segmenter:
            dataset = open_labelled(data, split, segmenter.imgsz)
            with progress_bar("evaluate", len(dataset), quiet=quiet) as advance:
                scores = evaluate(lambda image: segmenter(image).mask, dataset, classes, on_frame=advance)
            return scores, segmenter.backend_name
    if backend != "auto" or device not in {"auto", "cpu"}:
        raise UsageError("--backend and --device are for bundles; a checkpoint is scored by torch on the CPU")
    from cdga_train.checkpoint import load_checkpoint
    from cdga_train.models.fused import FusedNetwork
    from cdga_train.predict import predict_mask
    from cdga_train.state import build_network

    checkpoint = load_checkpoint(model)
    fused = FusedNetwork(build_network(checkpoint), checkpoint.preprocess)
    dataset = open_labelled(data, split, checkpoint.preprocess.imgsz_hw)
    with progress_bar("evaluate", len(dataset), quiet=quiet) as advance:
        return evaluate(partial(predict_mask, fused), dataset, classes, on_frame=advance), "torch cpu fp32"


def refuse_below(scores: Scores, min_miou: float | None) -> None:
    """Hold a score against the wanted minimum, percent.

    Raises:
        GateError: It is below, or not a number.
    """
    if min_miou is not None and not scores.miou >= min_miou:
        raise GateError(f"mIoU {scores.miou:.2f} is below the wanted {min_miou:.2f}")
