"""The page of ``cdga report``, computed from the files of a run. What is missing is said, and the rest is shown."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import TypeAdapter, ValidationError

from cdga_sdk.atomic import write_text
from cdga_sdk.errors import InputError, IntegrityError, ModelError, ResourceError, UsageError, counted, one_line
from cdga_sdk.labels import CLASS_SETS
from cdga_sdk.metrics import ConfusionMatrix
from cdga_sdk.progress import progress_bar
from cdga_train.checkpoint import Checkpoint, load_checkpoint, load_newest
from cdga_train.config import TrainConfig
from cdga_train.curves import Metrics, read_metrics
from cdga_train.data.base import Dataset, Sample
from cdga_train.data.pseudo import MANIFEST as PSEUDO_MANIFEST
from cdga_train.data.spec import open_labelled, open_unlabelled
from cdga_train.evaluate import count
from cdga_train.manifest import MANIFEST
from cdga_train.page import Html, joined, missing, page, paragraph, subheading
from cdga_train.panels import GroupedNetwork, Groups, fused_network, look_at
from cdga_train.predict import predictor
from cdga_train.report import (
    Choice,
    PseudoLabels,
    choice_part,
    confusion_part,
    curves_part,
    group_part,
    head_part,
    legend_part,
    oracle_part,
    panel_part,
    pseudo_label_part,
    score_part,
)
from cdga_train.report_run import ReportRequest
from cdga_train.reproduce import reproduce_command
from cdga_train.rounds import PSEUDO_LABELS, round_folders
from cdga_train.run_layout import LAST, METRICS, SELECTION, find_checkpoint
from cdga_train.selection import evenly_spaced, find_candidates
from cdga_train.state import choose_device

__all__ = ["write_report"]

_Record = TypeVar("_Record")


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """The checkpoint that the page is about, its round's folder, and why it is this one."""

    checkpoint: Checkpoint
    folder: Path
    file: str
    why: str


@dataclass(frozen=True, kw_only=True)
class _Domain:
    """Images to look at: what they are, what their labels are called, and what reads them."""

    name: str
    title: str
    truth: str = ""
    samples: Callable[[], Sequence[Sample]]


@dataclass(frozen=True, kw_only=True)
class _Job:
    """A report in the making.

    Attributes:
        request: What was asked for.
        config: The run.
        device: Where networks run.
        rounds: The folder of each round by its name.
        lacks: What could not be shown, and why; grows.
        matrices: What was counted, by folder and iteration: the chosen checkpoint is one of the candidates. Grows.
    """

    request: ReportRequest
    config: TrainConfig
    device: torch.device
    rounds: dict[str, Path]
    lacks: list[str] = field(default_factory=list)
    matrices: dict[tuple[Path, int], ConfusionMatrix] = field(default_factory=dict)

    def part(self, what: str, make: Callable[[], Html]) -> Html:
        """What ``make`` makes, or a line that says why it could not."""
        try:
            return make()
        except (InputError, UsageError, ModelError) as error:
            self.lacks.append(one_line(f"{what} missing: {error}"))
            return missing(what, error)


def write_report(request: ReportRequest, config: TrainConfig, output: Path, given: Sequence[Sample]) -> list[str]:
    """Write the page of the run in ``request.run_folder`` to ``output``.

    Args:
        request: What was asked for.
        config: The run.
        output: The page.
        given: Further images to look at.

    Returns:
        What could not be shown, and why, a line each.

    Raises:
        UsageError: There is no such device.
        ResourceError: The disk is full, or the GPU's memory does not suffice.
    """
    names = ["the run"] if config.rounds == 1 else ["round 1", "round 2"]
    job = _Job(
        request=request,
        config=config,
        device=choose_device(request.device),
        rounds=dict(zip(names, round_folders(config, request.run_folder), strict=True)),
    )
    try:
        write_text(output, _page(job, given))
    except torch.OutOfMemoryError as error:
        raise ResourceError("out of GPU memory", where=job.device, fix="use --device cpu") from error
    return job.lacks


def _page(job: _Job, given: Sequence[Sample]) -> str:
    logs = {name: read_metrics(folder / METRICS) for name, folder in job.rounds.items()}
    shown, why_none = _shown(job)
    command = reproduce_command(job.config)
    sections = [
        ("run", "The run", head_part(_facts(job, logs, shown, why_none), command)),
        ("curves", "Curves", curves_part(job.config, logs)),
    ]
    if shown is None:
        job.lacks.append(one_line(f"pictures and scores missing: {why_none}"))
        sections.append(("pictures", "Pictures", missing("Pictures and scores", why_none)))
    else:
        sections += [
            ("pictures", "Pictures", job.part("pictures", partial(_pictures, job, shown, given))),
            ("scores", "Scores", job.part("scores", partial(_scores, job, shown))),
        ]
    sections.insert(3, ("choice", "Choice without labels", _choices(job)))
    if job.config.rounds == 2:
        sections.append(("pseudo", "Pseudo-labels", _pseudo_labels(job)))
    return page(f"{job.request.run_folder.resolve().name}: {job.config.arm}, {job.config.model}", sections)


def _shown(job: _Job) -> tuple[_Shown | None, str]:
    """The checkpoint to show; None, and why, where there is none that can be read."""
    try:
        file = find_checkpoint(job.request.run_folder)
    except InputError as error:
        return None, f"no checkpoint yet ({error.what})"
    folder = file.parent if file.name == LAST else file.parents[1]
    why = f"the last; {_why_not_chosen(job.config, folder)}" if file.name == LAST else "chosen without labels"
    try:
        return _Shown(checkpoint=load_checkpoint(file), folder=folder, file=file.name, why=why), ""
    except (ModelError, InputError) as error:
        damage = str(error)
    job.lacks.append(damage)
    try:
        newest = load_newest(folder)
    except (ModelError, InputError) as error:
        return None, str(error)
    assert newest is not None  # a file of it was found
    return _Shown(checkpoint=newest, folder=folder, file="the newest training state", why=damage), ""


def _why_not_chosen(config: TrainConfig, folder: Path) -> str:
    if (folder / SELECTION).is_file():
        return f"{SELECTION} names no checkpoint that is there"
    if not config.is_adapting:
        return "this arm looks at no target image, so nothing is chosen"
    if config.candidates < 2:
        return f"candidates={config.candidates} keeps nothing to choose from"
    return "nothing is chosen before the round is finished"


def _facts(job: _Job, logs: dict[str, Metrics], shown: _Shown | None, why_none: str) -> list[tuple[str, object]]:
    config, score = job.config, job.config.score
    done = [f"{log.last_iteration} of {config.iters}" for log in logs.values()]
    if shown is None:
        about = why_none
    else:
        place = next(name for name, folder in job.rounds.items() if folder == shown.folder)
        about = f"{shown.file} of {place}, iteration {shown.checkpoint.iteration}: {shown.why}"
    height, width = config.imgsz
    source_height, source_width = config.source_size
    groups = counted(config.num_groups, "groups")
    arm = f"cdga, {groups}, aligned at {config.align_resolution}" if config.arm == "cdga" else config.arm
    domains = "each domain" if config.is_adapting else "the source"
    return [
        ("arm", arm),
        ("network", f"{config.model}, from {config.weights or 'random weights'}"),
        ("source", f"{config.source}, split {config.source_split}, {source_width}x{source_height}"),
        ("translation", config.translate if config.translate != "fda" else f"fda, beta {config.fda_beta:g}"),
        ("target", "none" if config.target is None else f"{config.target}, split {config.target_split}"),
        ("target size", f"{width}x{height}"),
        (
            "scored on",
            "nothing" if score.data is None else f"{score.data}, split {score.split}, {score.classes} classes",
        ),
        ("iterations logged", " and ".join(done)),
        ("weights", config.weights_kept),
        ("images a step", f"{config.batch * config.accumulate} of {domains} in each process"),
        ("seed", config.seed),
        ("shown", about),
        *_made_with(job.request.run_folder),
    ]


def _made_with(folder: Path) -> list[tuple[str, object]]:
    """Versions, machine and time from ``run.json``, as far as they are there."""
    record = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    packages = record.get("packages")
    versions = [f"cdga-sdk {record.get('cdga_sdk', 'unknown')}", f"Python {record.get('python', 'unknown')}"]
    versions += [f"{name} {version}" for name, version in packages.items()] if isinstance(packages, dict) else []
    return [
        ("versions", ", ".join(versions)),
        ("machine", record.get("machine", "unknown")),
        ("started", record.get("started", "unknown")),
    ]


def _pictures(job: _Job, shown: _Shown, given: Sequence[Sample]) -> Html:
    fused = fused_network(shown.checkpoint, job.device)
    parts, grouped = [legend_part()], None
    try:
        grouped = _grouped(job, shown)
    except (InputError, ModelError) as error:
        job.lacks.append(one_line(f"group maps missing: {error}"))
        parts.append(missing("Group maps", error))
    if grouped is not None:
        made_by = f"G and C at iteration {grouped.iteration}, predictions by G at {shown.checkpoint.iteration}"
        parts.append(paragraph(f"Groups: each pixel's most probable one, by {made_by}.", "note"))
    groups: dict[str, list[Groups]] = {}

    def rows(domain: _Domain) -> Html:
        looks = [look_at(sample, fused, grouped) for sample in domain.samples()]
        groups[domain.name] = [look.groups for look in looks if look.groups is not None]
        return panel_part(looks, truth=domain.truth, num_groups=0 if grouped is None else grouped.num_groups)

    for domain in _domains(job, given):
        parts += [subheading(domain.title), job.part(domain.name, partial(rows, domain))]
    if grouped is not None and groups:
        parts.append(subheading(f"Groups of C at iteration {grouped.iteration} (Kim et al. 2021, Fig. 3)"))
        parts.append(group_part(groups, grouped.names, grouped.num_groups))
    return joined(parts)


def _grouped(job: _Job, shown: _Shown) -> GroupedNetwork | None:
    """G and C of the newest training state of the shown round; candidates hold no C."""
    if job.config.arm != "cdga":
        return None
    if shown.checkpoint.part("grouping"):
        return GroupedNetwork(shown.checkpoint, job.device)
    newest = load_newest(shown.folder, job.lacks.append)
    assert newest is not None  # a candidate counts only beside one
    return GroupedNetwork(newest, job.device)


def _domains(job: _Job, given: Sequence[Sample]) -> list[_Domain]:
    """What to look at."""
    config, score = job.config, job.config.score
    domains = [_Domain(name="images given", title="Images given", samples=lambda: given)] if given else []
    if score.data is not None:
        title = f"Target images: {score.data}, split {score.split}; their labels only score"
        truth, samples = "ground truth (scoring only)", partial(_score_samples, job)
        domains.append(_Domain(name="target images", title=title, truth=truth, samples=samples))
    elif config.target is not None:
        title = f"Target images: {config.target}, split {config.target_split}"
        domains.append(_Domain(name="target images", title=title, samples=partial(_target_samples, job)))
    title = f"Source images: {config.source}, split {config.source_split}, before any translation"
    samples = partial(_source_samples, job)
    return [*domains, _Domain(name="source images", title=title, truth="ground truth", samples=samples)]


def _score_samples(job: _Job) -> list[Sample]:
    return _spread(_score_data(job.config), job.request.frames)


def _target_samples(job: _Job) -> list[Sample]:
    config = job.config
    assert config.target is not None
    return _spread(open_unlabelled(config.target, config.target_split, config.imgsz), job.request.frames)


def _source_samples(job: _Job) -> list[Sample]:
    config = job.config
    return _spread(open_labelled(config.source, config.source_split, config.source_size), job.request.frames)


def _spread(dataset: Dataset, frames: int) -> list[Sample]:
    return [dataset[index] for index in evenly_spaced(len(dataset), frames)]


def _score_data(config: TrainConfig) -> Dataset:
    assert config.score.data is not None
    return open_labelled(config.score.data, config.score.split, config.imgsz)


def _scores(job: _Job, shown: _Shown) -> Html:
    if job.config.score.data is None:
        return paragraph("The run names no labelled data to score on (score.data): nothing is scored.")
    matrix = _counted(job, shown.folder, shown.checkpoint)
    classes = CLASS_SETS[job.config.score.classes]
    return joined([score_part(matrix, job.config), confusion_part(matrix, classes)])


def _counted(job: _Job, folder: Path, checkpoint: Checkpoint) -> ConfusionMatrix:
    """The confusion matrix over 19 classes of a round's checkpoint."""
    key = folder, checkpoint.iteration
    if key not in job.matrices:
        dataset = _score_data(job.config)
        predict = predictor(fused_network(checkpoint, job.device), job.config.score.protocol)
        title = f"score iteration {checkpoint.iteration}"
        with progress_bar(title, len(dataset), quiet=job.request.quiet) as advance:
            job.matrices[key] = count(predict, dataset, CLASS_SETS["19"], on_frame=advance)
    return job.matrices[key]


def _choices(job: _Job) -> Html:
    tables = [job.part(f"choice of {name}", partial(_choice, job, name, folder)) for name, folder in job.rounds.items()]
    return joined([*tables, _about_oracle(job)])


def _choice(job: _Job, name: str, folder: Path) -> Html:
    classes = f"{job.config.score.classes} classes"
    parts, oracle = [], None
    if job.request.oracle and job.config.score.data is not None:
        try:
            oracle = _oracle(job, folder)
        except (InputError, UsageError, ModelError) as error:
            job.lacks.append(one_line(f"oracle mIoU of {name} missing: {error}"))
            parts.append(missing(f"Oracle mIoU of {name}", error))
    if (folder / SELECTION).is_file():
        return joined([*parts, choice_part(name, _read(folder / SELECTION, TypeAdapter(Choice)), oracle, classes)])
    parts.append(paragraph(f"{name}: nothing chosen; {_why_not_chosen(job.config, folder)}."))
    return joined(parts if oracle is None else [*parts, oracle_part(name, oracle, classes)])


def _oracle(job: _Job, folder: Path) -> dict[int, float]:
    """mIoU of a round's candidates by iteration, in percent, over the run's own classes."""
    classes = CLASS_SETS[job.config.score.classes]
    checkpoints = map(load_checkpoint, find_candidates(folder))
    return {c.iteration: _counted(job, folder, c).scores_over(classes).miou for c in checkpoints}


def _about_oracle(job: _Job) -> Html:
    if job.config.score.data is None:
        return paragraph("Without labels (score.data) there is no oracle mIoU to compare with.", "note")
    if job.request.oracle:
        return paragraph("The oracle mIoU is shown to judge the choice; the choice never looked at it.", "note")
    again = f"cdga report {shlex.quote(str(job.request.run_folder))} --oracle"
    return paragraph(f"To see every candidate's mIoU on the labels (a pass over them for each): {again}", "note")


def _pseudo_labels(job: _Job) -> Html:
    file = job.request.run_folder / PSEUDO_LABELS / PSEUDO_MANIFEST
    if not file.is_file():
        return paragraph("None yet: they are made when round 1 is finished.")
    return job.part("pseudo-label statistics", lambda: pseudo_label_part(_read(file, TypeAdapter(PseudoLabels))))


def _read(file: Path, kind: TypeAdapter[_Record]) -> _Record:
    try:
        return kind.validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        raise IntegrityError(f"damaged ({one_line(error)[:120]})", where=file) from error
