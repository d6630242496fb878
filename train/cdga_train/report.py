"""The parts of a run's report as HTML, each made from plain facts; `cdga_train.report_page` gathers them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from cdga_sdk.errors import counted
from cdga_sdk.labels import CITYSCAPES_NAMES, CITYSCAPES_PALETTE_RGB, CLASS_SETS, ClassSet
from cdga_sdk.metrics import ConfusionMatrix, Scores
from cdga_sdk.opencv import cv2
from cdga_sdk.overlay import color_map_bgr
from cdga_sdk.preprocess import UInt8Array, resize_image, resize_label
from cdga_train.config import TrainConfig
from cdga_train.curves import Metrics, charts
from cdga_train.data.pseudo import COLLAPSED_SHARE
from cdga_train.page import Html, bullets, figure, joined, paragraph, picture, table, text
from cdga_train.panels import Groups, GroupShare, Look, group_palette_rgb, group_shares
from cdga_train.selection import CandidateScores

__all__ = [
    "Choice",
    "PseudoClass",
    "PseudoLabels",
    "choice_part",
    "confusion_part",
    "curves_part",
    "group_part",
    "head_part",
    "legend_part",
    "oracle_part",
    "panel_part",
    "pseudo_label_part",
    "score_part",
]

_SHOWN_PX: Final = 512  # the longer side of a picture
_HEAT_RGB: Final = "31,95,168"
_PROTOCOLS: Final[Mapping[str, str]] = {
    "deployed": "the class of the largest probability at the network's size, then nearest to the label's, as a bundle "
    "works",
    "published": "probabilities bilinearly to the label's size, then the largest, as papers state mIoU",
}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What ``selection.json`` holds."""

    rule: str
    iteration: int
    candidates: tuple[CandidateScores, ...]


@dataclass(frozen=True, kw_only=True)
class PseudoClass:
    """A class among the pseudo-labels: threshold, share of all pixels predicted, share of those kept; all 0 to 1."""

    threshold: float
    predicted: float
    kept: float


@dataclass(frozen=True, kw_only=True)
class PseudoLabels:
    """What ``pseudo_labels.json`` says about its labels."""

    rule: str
    iteration: int
    kept: float
    classes: dict[str, PseudoClass]


def head_part(facts: Sequence[tuple[str, object]], command: str) -> Html:
    """What was trained, and how to do it again."""
    again = Html(f"<pre>{text(command)}</pre>")
    return joined([table((), facts, kind="facts"), paragraph("Reproduce with:"), again])


def curves_part(config: TrainConfig, rounds: Mapping[str, Metrics]) -> Html:
    """Every watched value of the log over the iterations, and which lines of it could not be read."""
    parts = [charts(config, rounds)]
    for name, log in rounds.items():
        if log.damaged:
            lines = ", ".join(map(str, log.damaged[:10])) + (", ..." if len(log.damaged) > 10 else "")
            parts.append(paragraph(f"Damaged lines in the log of {name}, left out ({len(log.damaged)}): {lines}"))
        if not log.rows:
            parts.append(paragraph(f"The log of {name} holds nothing yet."))
    return joined(parts)


def panel_part(looks: Sequence[Look], *, truth: str, num_groups: int) -> Html:
    """A row of pictures for each image: itself, ground truth, prediction, confidence, groups.

    Args:
        looks: The images.
        truth: What to call the ground truth.
        num_groups: K.
    """
    return joined(_row(look, truth, num_groups) for look in looks)


def legend_part() -> Html:
    """What the colours mean."""
    items = (
        f'<li><span class="swatch" style="background:rgb{colour}"></span>{text(name)}</li>'
        for name, colour in zip(CITYSCAPES_NAMES, CITYSCAPES_PALETTE_RGB, strict=True)
    )
    ignored = '<li><span class="swatch" style="background:#000"></span>ignored</li>'
    legend = Html(f'<ul class="legend">{"".join(items)}{ignored}</ul>')
    return joined([legend, paragraph("Confidence: the probability of the predicted class, dark 0, yellow 1.", "note")])


def group_part(domains: Mapping[str, Sequence[Groups]], names: Sequence[str], num_groups: int) -> Html:
    """The groups: how much of each domain's pixels is theirs, and which classes they hold.

    Args:
        domains: The groups of the shown images of each domain, at least one image each.
        names: Class names, C of them.
        num_groups: K.
    """
    shares = {domain: group_shares(groups, names) for domain, groups in domains.items()}
    header = ["group", *(title for domain in domains for title in (f"{domain}: pixels", f"{domain}: classes by Q"))]
    rows = [
        [_swatch(k, num_groups), *(cell for group in shares.values() for cell in _group_cells(group[k]))]
        for k in range(num_groups)
    ]
    caption = "Groups over the images shown; of the classes, each one's part of the group's Q"
    return table(header, rows, caption=caption, kind="words")


def choice_part(name: str, choice: Choice, oracle: Mapping[int, float] | None, classes: str) -> Html:
    """A round's candidates and what the choice saw of them.

    Args:
        name: The round.
        choice: Its candidates and the chosen one.
        oracle: mIoU in percent by iteration, where it was counted.
        classes: The class set of that mIoU.
    """
    header = ["iteration", "infomax", "mirror agreement", "SND", "entropy", "chosen"]
    header += [f"oracle mIoU, {classes}"] if oracle is not None else []
    rows, chosen_row = [], None
    for number, c in enumerate(choice.candidates):
        is_chosen = c.iteration == choice.iteration
        chosen_row = number if is_chosen else chosen_row
        numbers = [f"{value:.4f}" for value in (c.infomax, c.mirror_agreement, c.snd, c.entropy)]
        row = [str(c.iteration), *numbers, "chosen" if is_chosen else ""]
        rows.append(row + ([_percent(oracle.get(c.iteration, math.nan), 2)] if oracle is not None else []))
    return table(header, rows, caption=f"{name}: rule {choice.rule}", chosen_row=chosen_row)


def oracle_part(name: str, oracle: Mapping[int, float], classes: str) -> Html:
    """The mIoU of candidates among which nothing was chosen."""
    rows = [(str(iteration), _percent(miou, 2)) for iteration, miou in oracle.items()]
    return table(("iteration", f"oracle mIoU, {classes}"), rows, caption=f"{name}: candidates")


def score_part(matrix: ConfusionMatrix, config: TrainConfig) -> Html:
    """IoU by class over the class sets, from one count over the 19 classes."""
    score = config.score
    facts = f"{counted(matrix.frames, 'frames')} of {score.data}, split {score.split}. Protocol {score.protocol}"
    parts = [paragraph(f"Counted in one confusion matrix on {facts}: {_PROTOCOLS[score.protocol]}.")]
    if score.classes == "common11":
        parts.append(_score_table(matrix, [CLASS_SETS["common11"]], "IoU over the common 11 classes, percent"))
        parts.append(paragraph("Labels need not tell apart the classes that the common 11 merge.", "note"))
    parts.append(_score_table(matrix, [CLASS_SETS[name] for name in ("19", "16", "13")], "IoU, percent"))
    return joined(parts)


def confusion_part(matrix: ConfusionMatrix, classes: ClassSet) -> Html:
    """The confusion matrix, each row in percent of its labelled pixels."""
    counts = matrix.counts_over(classes)
    labelled = counts.sum(axis=1)
    columns = [*classes.names, "none of them"] if counts[:, -1].any() else list(classes.names)
    header = [Html("label \\ predicted"), *(Html(f"<span>{text(name)}</span>") for name in columns), "pixels"]
    rows = []
    for name, row, total in zip(classes.names, counts, labelled, strict=True):
        cells = [_heat(100 * count / total if total else math.nan) for count in row[: len(columns)]]
        rows.append([name, *cells, f"{total:,}"])
    return table(header, rows, caption="Confusion, percent of the labelled pixels of a class", kind="matrix")


def pseudo_label_part(labels: PseudoLabels) -> Html:
    """Thresholds of the pseudo-labels, and what they keep."""
    lines = [
        f"Rule: {labels.rule}.",
        f"Made by round 1 at iteration {labels.iteration}; {100 * labels.kept:.1f} % of all pixels keep their label.",
    ]
    name, most = max(labels.classes.items(), key=lambda item: item[1].predicted, default=("", None))
    if most is not None and most.predicted > COLLAPSED_SHARE:
        lines.append(f"Round 1 sees '{name}' in {100 * most.predicted:.1f} % of the pixels: it has collapsed.")
    rows = [
        (name, f"{c.threshold:.3f}", f"{100 * c.predicted:.2f}", f"{100 * c.kept:.1f}" if c.predicted else "-")
        for name, c in labels.classes.items()
    ]
    header = ("class", "threshold", "predicted, % of all pixels", "kept, % of the class")
    return joined([bullets(lines), table(header, rows, caption="Pseudo-labels by class")])


def _row(look: Look, truth: str, num_groups: int) -> Html:
    image_bgr, label = look.sample.image_bgr, look.sample.label
    size_hw = _shown_size(image_bgr.shape[:2])
    name = look.sample.name
    shown = _shrunk(image_bgr, size_hw)
    cells = [figure(picture(shown, f"{name}, image", "photo"), name)]
    if label is not None:
        cells.append(_map_figure(color_map_bgr(label), size_hw, name, truth))
    cells.append(_map_figure(color_map_bgr(look.mask_HW), size_hw, name, "prediction"))
    heat_bgr = np.asarray(cv2.applyColorMap(look.confidence_HW, cv2.COLORMAP_VIRIDIS), np.uint8)
    mean = look.confidence_HW.mean() / 255
    photo = picture(resize_image(heat_bgr, size_hw), f"{name}, confidence", "photo")
    cells.append(figure(photo, f"confidence, mean {mean:.2f}"))
    if look.groups is not None:
        palette_K3 = np.asarray(group_palette_rgb(num_groups), np.uint8)[:, ::-1]
        cells.append(_map_figure(palette_K3[look.groups.map_hw], size_hw, name, "groups"))
    return Html(f'<div class="row">{"".join(cells)}</div>')


def _map_figure(map_bgr: UInt8Array, size_hw: tuple[int, int], name: str, caption: str) -> Html:
    # Nearest, so that no colours arise that mean nothing.
    planes = [resize_label(np.ascontiguousarray(map_bgr[:, :, channel]), size_hw) for channel in range(3)]
    return figure(picture(np.stack(planes, axis=2), f"{name}, {caption}", "map"), caption)


def _shown_size(size_hw: tuple[int, ...]) -> tuple[int, int]:
    scale = min(1.0, _SHOWN_PX / max(size_hw))
    height, width = (max(1, round(side * scale)) for side in size_hw)
    return height, width


def _shrunk(image_bgr: UInt8Array, size_hw: tuple[int, int]) -> UInt8Array:
    height, width = size_hw
    return np.asarray(cv2.resize(image_bgr, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def _swatch(group: int, num_groups: int) -> Html:
    colour = group_palette_rgb(num_groups)[group]
    return Html(f'<span class="swatch" style="background:rgb{colour}"></span>{group + 1}')


def _group_cells(share: GroupShare) -> tuple[str, str]:
    classes = ", ".join(f"{name} {100 * part:.0f} %" for name, part in share.top)
    return f"{100 * share.share:.1f} %", classes or "-"


def _score_table(matrix: ConfusionMatrix, sets: Sequence[ClassSet], caption: str) -> Html:
    columns = [matrix.scores_over(classes) for classes in sets]
    rows: list[list[object]] = [
        [name, *(_percent(scores.iou[name], 1) if name in scores.iou else "" for scores in columns)]
        for name in sets[0].names
    ]
    rows.append(["mIoU", *(_percent(scores.miou, 2) for scores in columns)])
    rows.append(["pixel accuracy", *(_percent(scores.accuracy, 2) for scores in columns)])
    header = ["class", *(f"{classes.name} classes" if len(sets) > 1 else classes.name for classes in sets)]
    return table(header, rows, caption=caption + _unseen(columns[0]))


def _unseen(scores: Scores) -> str:
    return "" if all(value == value for value in scores.iou.values()) else "; -: in no label and no prediction"


def _percent(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"


def _heat(percent: float) -> Html:
    if not percent >= 0.5:
        return Html("" if percent == percent else "-")
    ink = "#fff" if percent > 55 else "#222"
    style = f"display:block;padding:0 .2em;background:rgba({_HEAT_RGB},{percent / 100:.2f});color:{ink}"
    return Html(f'<span style="{style}">{percent:.0f}</span>')
