"""Choosing a checkpoint without target labels: scores of its predictions on unlabelled target images, and rules.

No such score is an accuracy, and each is fooled by something, which its docstring says; the default rule joins two
that are fooled by different things. All are computed at the head's resolution, on the same images and pixels for every
candidate, and may be compared between candidates of one run only.

Axes: B images, C classes, h x w the head's pixels, P sampled pixels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np
import torch
from torch import Tensor

from cdga_sdk.atomic import write_text
from cdga_sdk.errors import InputError, ModelError, UsageError
from cdga_sdk.labels import CLASS_SETS
from cdga_sdk.metrics import ConfusionMatrix
from cdga_sdk.preprocess import UInt8Array, resize_image
from cdga_train.checkpoint import load_checkpoint
from cdga_train.data.base import Dataset
from cdga_train.models.fused import FusedNetwork
from cdga_train.predict import predict_head_prob
from cdga_train.run_layout import CANDIDATES, DAMAGE
from cdga_train.state import build_network

__all__ = [
    "RULES",
    "CandidateScores",
    "agreement",
    "choose",
    "diversity",
    "entropy",
    "evenly_spaced",
    "find_candidates",
    "infomax",
    "infomax_gain",
    "read_selection",
    "sampled_pixels",
    "score_candidates",
    "soft_neighbourhood_density",
    "write_selection",
]

_TEMPERATURE: Final = 0.05  # Saito et al. 2021
_NUM_PIXELS: Final = 4096  # P: the P x P similarities take 0.3 s on one core, in slices of 4 MB
_SLICE: Final = 256
_PROOF_IN_ERRORS: Final = 3.0  # not 2: frames of one drive are alike, so the error is larger than it looks


def entropy(prob_BChw: Tensor) -> float:
    """Mean entropy of the pixels' predictions, ``mean of -sum_c p_c log p_c``, over log C.

    Range 0 to 1; smaller is better: a network that fits the target is sure of itself there. Known values: 0 for one-hot
    predictions, 1 for uniform ones. Fooled by over-confidence: a network that has collapsed to one class wins.

    Source: Grandvalet & Bengio 2004; as a criterion, Morerio et al. 2018 (arXiv 1711.10288).
    """
    return float(torch.special.entr(prob_BChw).sum(dim=1).mean()) / math.log(prob_BChw.shape[1])


def diversity(prob_BChw: Tensor) -> float:
    """Entropy of the mean prediction over log C: how many classes are used in all.

    Range 0 to 1. Known values: 0 where one class is predicted everywhere with certainty, 1 where the mean is uniform.
    Not a score of its own, for a street is not made of equal parts; it tells collapse from confidence.
    """
    return float(torch.special.entr(prob_BChw.mean(dim=(0, 2, 3))).sum()) / math.log(prob_BChw.shape[1])


def infomax(prob_BChw: Tensor) -> float:
    """Mutual information of pixel and class, ``H(mean p) - mean H(p)``, over log C: sure of each pixel, and diverse.

    Range 0 to 1; larger is better. Known values: 1 for balanced one-hot predictions, 0 for any constant one, sure or
    not. Fooled by confident noise, and by a network that spreads its classes evenly: rare classes are over-called.

    Source: Bridle et al. 1991; Shi & Sha 2012 (arXiv 1206.6438); as a criterion, Musgrave et al. 2022 (arXiv
    2208.07360).
    """
    return max(0.0, diversity(prob_BChw) - entropy(prob_BChw))  # negative by rounding only


def infomax_gain(prob_BChw: Tensor, given_BChw: Tensor) -> tuple[float, float]:
    """`infomax` of one network less that of another on the same images, and its standard error.

    The error is the jackknife's over images: of the differences that are found without each of them in turn.

    Source: Tukey 1958; Efron & Stein 1981.

    Args:
        prob_BChw: Class probabilities of at least 2 images.
        given_BChw: The other network's.
    """
    num_images = len(prob_BChw)
    assert num_images >= 2, num_images
    gain_B = _infomax_without_each(prob_BChw) - _infomax_without_each(given_BChw)
    variance = (num_images - 1) / num_images * float((gain_B - gain_B.mean()).square().sum())
    return infomax(prob_BChw) - infomax(given_BChw), math.sqrt(variance)


def _infomax_without_each(prob_BChw: Tensor) -> Tensor:
    """(B,) float64."""
    mean_BC = prob_BChw.mean(dim=(2, 3), dtype=torch.float64)
    entropy_B = torch.special.entr(prob_BChw).sum(dim=1).mean(dim=(1, 2), dtype=torch.float64)
    others = len(prob_BChw) - 1
    mean_of_others_BC = (mean_BC.sum(dim=0) - mean_BC) / others
    entropy_of_others_B = (entropy_B.sum() - entropy_B) / others
    diversity_B = torch.special.entr(mean_of_others_BC).sum(dim=1)
    infomax_B: Tensor = (diversity_B - entropy_of_others_B) / math.log(prob_BChw.shape[1])
    return infomax_B


def soft_neighbourhood_density(prob_PC: Tensor, temperature: float = _TEMPERATURE) -> float:
    """SND: mean entropy of each pixel's soft neighbours, ``D_i = softmax over j != i of cos(p_i, p_j) / temperature``.

    Range 0 to log(P - 1), in nats, so comparable for equal P only; larger is better: predictions of one class lie
    densely together. Known values: log(P - 1) where all predictions are equal; about log(m - 1) for one-hot predictions
    of m pixels a class. Fooled by few, large clusters: a network that has collapsed to one class reaches the maximum.

    Source: Saito et al. 2021, "Tune it the Right Way" (arXiv 2108.10860), on L2-normalised softmax outputs. That
    pixels are sampled (`sampled_pixels`) is ours: all pairs of pixels are too many.

    Args:
        prob_PC: Class probabilities of at least 2 pixels.
        temperature: 0.05 in the paper.
    """
    num_pixels = len(prob_PC)
    assert num_pixels >= 2, num_pixels
    unit_PC = torch.nn.functional.normalize(prob_PC, dim=1)
    total = 0.0
    for start in range(0, num_pixels, _SLICE):
        cosine_SP = unit_PC[start : start + _SLICE] @ unit_PC.T
        rows = torch.arange(len(cosine_SP), device=cosine_SP.device)
        cosine_SP[rows, start + rows] = -math.inf  # no pixel is its own neighbour
        total += float(torch.special.entr((cosine_SP / temperature).softmax(dim=1)).sum(dtype=torch.float64))
    return total / num_pixels


def sampled_pixels(prob_BChw: Tensor, num_pixels: int = _NUM_PIXELS) -> Tensor:
    """(P, C): at most ``num_pixels`` pixels of all images, without repetition; the same places for the same shape."""
    prob_NC = prob_BChw.movedim(1, 3).flatten(0, 2)
    generator = torch.Generator().manual_seed(0)
    return prob_NC[torch.randperm(len(prob_NC), generator=generator)[:num_pixels]]


def agreement(mask_Bhw: UInt8Array, other_Bhw: UInt8Array) -> float:
    """Stability: IoU of two sets of masks, summed over the classes and divided by 19; there is no truth in it.

    Range 0 to 1; larger is better. Known values: 1 for equal masks of all classes, 1/19 for equal masks of one
    class, 0 for masks that agree nowhere. A class that occurs in neither counts as 0: a mean over those that occur
    would praise a network for knowing few classes, and so would pixel agreement, which the road rules. Used between an
    image and its mirror image, and a candidate and the one before. Fooled by stable mistakes and, between candidates,
    by a small learning rate: late ones agree with each other however good they are.

    Source: consistency under a change that keeps the labels, as in Sajjadi et al. 2016 (arXiv 1606.04586); dividing by
    all classes is ours.
    """
    matrix = ConfusionMatrix(CLASS_SETS["19"])
    matrix.add(mask_Bhw, other_Bhw)
    iou = list(matrix.scores().iou.values())
    return float(np.nansum(iou)) / (100 * len(iou))


@dataclass(frozen=True, kw_only=True)
class CandidateScores:
    """What is known of a checkpoint.

    Attributes:
        file: The checkpoint.
        iteration: Iterations done.
        snd: `soft_neighbourhood_density`, nats.
        entropy: `entropy`.
        diversity: `diversity`.
        infomax: `infomax`.
        mirror_agreement: `agreement` of each image's mask with that of its mirror image.
        previous_agreement: `agreement` with the candidate before; None for the first.
        infomax_gain: Over the weights given; None where there are none, for these themselves, and with one image.
        infomax_gain_error: Its standard error.
    """

    file: Path
    iteration: int
    snd: float
    entropy: float
    diversity: float
    infomax: float
    mirror_agreement: float
    previous_agreement: float | None = None
    infomax_gain: float | None = None
    infomax_gain_error: float | None = None

    @property
    def is_given(self) -> bool:
        """Whether these are the weights that the run was given."""
        return self.iteration == 0


def find_candidates(run_folder: Path) -> list[Path]:
    """``RUN/checkpoints/ITERATION.safetensors``, by iteration.

    Raises:
        InputError: There is none.
    """
    folder = run_folder / CANDIDATES
    files = [p for p in folder.glob("*.safetensors") if p.stem.isdecimal() and p.is_file()]
    if not files:
        raise InputError("no checkpoints to choose from", where=folder, fix="name the folder of a run that kept some")
    return sorted(files, key=lambda p: int(p.stem))


def evenly_spaced(length: int, limit: int) -> list[int]:
    """At most ``limit`` indices below ``length``, evenly spread, the first and the last among them."""
    assert length >= 1, length
    assert limit >= 1, limit
    return sorted({int(i) for i in np.linspace(0, length - 1, min(limit, length)).round()})


def score_candidates(
    files: Sequence[Path],
    dataset: Dataset,
    *,
    device: torch.device,
    max_images: int = 32,
    on_candidate: Callable[[int], None] = lambda _: None,
) -> list[CandidateScores]:
    """Score checkpoints of one run on the same images, in the order given.

    Costs two forward passes an image and candidate. Holds the images at the network's size (1.5 MB each for 1024x512)
    and at the head's the probabilities of one candidate, and of the weights given (0.6 MB each at stride 8).

    Args:
        files: At least one checkpoint, by iteration.
        dataset: The target; labels are never looked at.
        device: Where the networks run.
        max_images: Evenly spaced images of ``dataset``.
        on_candidate: Called with the number of candidates done.

    Raises:
        InputError: An image cannot be read, or there is no checkpoint.
        ModelError: A checkpoint is refused, gives NaN, or is of another network or input size than the first.
    """
    if not files:
        raise InputError("no checkpoints to choose from")
    first = load_checkpoint(files[0])
    size_hw = first.preprocess.imgsz_hw
    images = [resize_image(dataset[i].image_bgr, size_hw) for i in evenly_spaced(len(dataset), max_images)]
    scored: list[CandidateScores] = []
    before: UInt8Array | None = None
    given_BChw: Tensor | None = None
    for file in files:
        checkpoint = load_checkpoint(file)
        if (checkpoint.config.model, checkpoint.preprocess) != (first.config.model, first.preprocess):
            raise ModelError("is of another network or input size than the first candidate", where=file)
        fused = FusedNetwork(build_network(checkpoint), checkpoint.preprocess).to(device)
        scores, prob_BChw = _scored(fused, images, before, file=file, iteration=checkpoint.iteration)
        before = _masks(prob_BChw)
        if scores.is_given:
            given_BChw = prob_BChw
        elif given_BChw is not None and len(images) > 1:
            gain, error = infomax_gain(prob_BChw, given_BChw)
            scores = replace(scores, infomax_gain=gain, infomax_gain_error=error)
        scored.append(scores)
        on_candidate(len(scored))
    return scored


def choose(scores: Sequence[CandidateScores], rule: str = "label_free") -> CandidateScores:
    """The candidate that ``rule`` prefers; of equal ones the one trained longest.

    Rules:
        label_free: The best mean of the ranks in ``infomax`` and ``mirror_agreement``; ranks, because the two have no
            common unit. Each is near its least for a collapsed network, and confident noise, which fools the first,
            fails the second. Left out: ``snd``, which prefers an early network that knows few classes;
            ``entropy``, which is in ``infomax``; ``previous_agreement``, which grows as the learning rate falls.
            Weights that were given are left only where the best of the others has proof: more ``infomax``, by three
            standard errors, and no less ``mirror_agreement``. They were trained in another way, and may be sure of
            themselves in another way; what the ranks tell of one run's candidates says little of them.
        snd, infomax, entropy, mirror: That score alone.
        last: The one trained longest: what is done where nothing is chosen.

    Raises:
        InputError: There is no candidate.
        UsageError: No such rule.
    """
    if not scores:
        raise InputError("no checkpoints to choose from")
    if rule not in RULES:
        raise UsageError(f"unknown rule '{rule}'", fix=f"use one of {', '.join(RULES)}")
    merits = RULES[rule](scores)
    return max(zip(merits, scores, strict=True), key=lambda pair: (pair[0], pair[1].iteration))[1]


def write_selection(path: Path, scores: Sequence[CandidateScores], rule: str = "label_free") -> CandidateScores:
    """Write ``selection.json``: the chosen candidate, the rule, and every candidate's scores. Returns the chosen one.

    Raises:
        InputError: There is no candidate.
        UsageError: No such rule, or the place cannot be written to.
        ResourceError: The disk is full.
    """
    chosen = choose(scores, rule)
    record = {
        "rule": rule,
        "chosen": chosen.file.name,
        "iteration": chosen.iteration,
        "candidates": [{**asdict(s), "file": s.file.name} for s in scores],
    }
    write_text(path, json.dumps(record, indent=1, allow_nan=False) + "\n")
    return chosen


def read_selection(path: Path) -> list[CandidateScores] | None:
    """The scores that a choice rested on; None where there is no such file, or one of a version with other scores."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        candidates = [CandidateScores(**{**one, "file": Path(one["file"])}) for one in record["candidates"]]
    except DAMAGE:
        return None
    has_all = all(one.keys() == CandidateScores.__annotations__.keys() for one in record["candidates"])
    return candidates if has_all else None


def _label_free(scores: Sequence[CandidateScores]) -> list[float]:
    trained = [s for s in scores if not s.is_given]
    given = [s for s in scores if s.is_given]
    merits = _mean_ranks(trained)
    if not given or not trained:
        return merits or [0.0] * len(given)
    _, best = max(zip(merits, trained, strict=True), key=lambda pair: (pair[0], pair[1].iteration))
    of_given = -math.inf if _is_proven(best, over=given[0]) else math.inf
    of_trained = iter(merits)
    return [of_given if s.is_given else next(of_trained) for s in scores]


def _mean_ranks(scores: Sequence[CandidateScores]) -> list[float]:
    ranks = zip(_ranks([s.infomax for s in scores]), _ranks([s.mirror_agreement for s in scores]), strict=True)
    return [(first + second) / 2 for first, second in ranks]


def _is_proven(candidate: CandidateScores, *, over: CandidateScores) -> bool:
    gain, error = candidate.infomax_gain, candidate.infomax_gain_error
    if gain is None or error is None:
        return False
    return gain > _PROOF_IN_ERRORS * error and candidate.mirror_agreement >= over.mirror_agreement


def _ranks(values: Sequence[float]) -> list[float]:
    """0 for the smallest; equal values share the mean of their ranks."""
    return [sum(v < value for v in values) + (sum(v == value for v in values) - 1) / 2 for value in values]


RULES: Final[Mapping[str, Callable[[Sequence[CandidateScores]], list[float]]]] = MappingProxyType(
    {
        "label_free": _label_free,
        "snd": lambda scores: [s.snd for s in scores],
        "infomax": lambda scores: [s.infomax for s in scores],
        "entropy": lambda scores: [-s.entropy for s in scores],
        "mirror": lambda scores: [s.mirror_agreement for s in scores],
        "last": lambda scores: [float(s.iteration) for s in scores],
    }
)
"""Merit of every candidate by the name of the rule; the largest wins."""


def _scored(
    fused: FusedNetwork, images_bgr: Sequence[UInt8Array], before_Bhw: UInt8Array | None, *, file: Path, iteration: int
) -> tuple[CandidateScores, Tensor]:
    """One candidate's scores, and its probabilities (B, C, h, w)."""
    mirrored_bgr = [np.ascontiguousarray(image_bgr[:, ::-1]) for image_bgr in images_bgr]
    mirror_Bhw = _masks(_probabilities(fused, mirrored_bgr, file))[:, :, ::-1]
    prob_BChw = _probabilities(fused, images_bgr, file)
    mask_Bhw = _masks(prob_BChw)
    scores = CandidateScores(
        file=file,
        iteration=iteration,
        snd=soft_neighbourhood_density(sampled_pixels(prob_BChw)),
        entropy=entropy(prob_BChw),
        diversity=diversity(prob_BChw),
        infomax=infomax(prob_BChw),
        mirror_agreement=agreement(mask_Bhw, mirror_Bhw),
        previous_agreement=None if before_Bhw is None else agreement(mask_Bhw, before_Bhw),
    )
    return scores, prob_BChw


def _probabilities(fused: FusedNetwork, images_bgr: Sequence[UInt8Array], file: Path) -> Tensor:
    """(B, C, h, w) float32 on the CPU."""
    try:
        return torch.stack([predict_head_prob(fused, image_bgr).cpu() for image_bgr in images_bgr])
    except ModelError as error:
        raise ModelError(error.what, where=file, fix="remove it from the candidates") from error


def _masks(prob_BChw: Tensor) -> UInt8Array:
    return prob_BChw.argmax(dim=1).byte().numpy()
