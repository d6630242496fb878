"""The work of ``cdga study``: what a plan lacks is trained and scored, and the tables are written after each run."""

from __future__ import annotations

import datetime as dt
import hashlib
import importlib.metadata
import json
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import torch
from pydantic import TypeAdapter, ValidationError

from cdga_sdk import __version__
from cdga_sdk.atomic import write_text
from cdga_sdk.errors import DegradedError, InterruptedRunError, ResourceError, Terminated, counted
from cdga_sdk.hashes import file_sha256
from cdga_sdk.labels import CLASS_SETS
from cdga_sdk.progress import progress_bar
from cdga_train.checkpoint import load_checkpoint
from cdga_train.config import TrainConfig, config_as_dict
from cdga_train.curves import read_metrics
from cdga_train.data.base import Dataset
from cdga_train.evaluate import count
from cdga_train.models.fused import FusedNetwork
from cdga_train.predict import predictor
from cdga_train.processes import ALONE
from cdga_train.rounds import is_finished, round_folders
from cdga_train.run import trained
from cdga_train.run_layout import DAMAGE, LAST, METRICS, SELECTION
from cdga_train.selection import CandidateScores, choose, find_candidates, score_candidates
from cdga_train.state import build_network, choose_device
from cdga_train.study import (
    CheckpointScores,
    Choice,
    Pace,
    RunResult,
    Study,
    StudyPlan,
    class_sets_of,
)
from cdga_train.study_table import as_html, as_markdown, as_record

__all__ = ["SCORES", "worked_through"]

SCORES: Final = "scores.json"


@dataclass(frozen=True, kw_only=True)
class _Cache:
    """What ``scores.json`` keeps: scores by a checkpoint's sha256 and the data, choices by that of all they rest on."""

    checkpoints: dict[str, CheckpointScores]
    choices: dict[str, Choice]


def worked_through(study: Study, plan: StudyPlan) -> Study:
    """``study`` with a result or a failure for every run of the plan.

    Raises:
        InterruptedRunError: Stopped by a signal.
        CdgaError: As `cdga_train.rounds.train_run` does.
    """
    return _finished(_described(study, plan), plan)


def _described(study: Study, plan: StudyPlan) -> Study:
    config = next(iter(plan.configs.values()))
    score = config.score
    return replace(
        study,
        classes=score.classes if plan.labelled is not None else None,
        scored_on="nothing" if plan.labelled is None else _told_of_score(config, len(plan.labelled), study.arms),
        facts={
            "date": dt.datetime.now(dt.UTC).isoformat(timespec="minutes"),
            "machine": _machine(config.device),
            "cdga_sdk": __version__,
            "python": platform.python_version(),
            "packages": {p: importlib.metadata.version(p) for p in ("torch", "torchvision", "numpy")},
            "configs": {
                plan.arms[run]: config_as_dict(config) | {"seed": None} for run, config in plan.configs.items()
            },
        },
    )


def _told_of_score(config: TrainConfig, frames: int, arms: Sequence[str]) -> str:
    score = config.score
    told = f"{score.data} {score.split}, {counted(frames, 'frames')}, {score.protocol} protocol"
    if (score.data, score.split) == (config.target, config.target_split):
        told += "; the same images, without labels, are the target that arms adapt to"
        if "target_supervised" in arms:
            told += ", and target_supervised was trained on their labels: a ceiling, and no result"
    return told


def _machine(device_name: str) -> str:
    device = choose_device(device_name)
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {platform.system()} {platform.machine()}"
    return f"CPU, {torch.get_num_threads()} threads, {platform.system()} {platform.machine()}"


def _finished(study: Study, plan: StudyPlan) -> Study:
    """Runs that are finished come first, so that the tables never lose what they had."""
    done = [run for run, config in plan.configs.items() if _is_done(config, plan.folder / run)]
    for run in done:
        study = _with_result(study, _scored(plan, run))
    _write_tables(study, plan.folder)
    for run, config in plan.configs.items():
        if run in done:
            continue
        try:
            _train(config, plan.folder / run, quiet=plan.quiet)
        except DegradedError as error:
            study = replace(study, failures={**study.failures, run: str(error)})
        else:
            study = _with_result(study, _scored(plan, run))
        _write_tables(study, plan.folder)
    return study


def _is_done(config: TrainConfig, folder: Path) -> bool:
    return folder.is_dir() and is_finished(config, folder)


def _train(config: TrainConfig, folder: Path, *, quiet: bool) -> None:
    folder.mkdir(exist_ok=True)
    try:
        trained(config, folder, ALONE, quiet=quiet)
    except Terminated as error:
        what = "terminated; what was finished is kept"
        raise InterruptedRunError(what, fix="the same command goes on from here", terminated=True) from error
    except InterruptedRunError as error:
        raise InterruptedRunError(
            error.what, where=error.where, fix="the same command goes on from here", terminated=error.exit_code == 143
        ) from error


def _with_result(study: Study, result: RunResult) -> Study:
    return replace(study, results=(*study.results, result))


def _write_tables(study: Study, folder: Path) -> None:
    write_text(folder / "study.json", json.dumps(as_record(study), indent=1, allow_nan=False) + "\n")
    write_text(folder / "study.md", as_markdown(study))
    write_text(folder / "study.html", as_html(study))


def _scored(plan: StudyPlan, run: str) -> RunResult:
    """A finished run's choice and scores; what ``scores.json`` knows already is not computed again."""
    config, folder = plan.configs[run], plan.folder / run
    last_round = round_folders(config, folder)[-1]
    files = find_candidates(last_round) if config.candidates else [last_round / LAST]
    by_digest = {file_sha256(file): file for file in files}
    cache = _read_cache(folder / SCORES)
    try:
        choice = _choice(plan, run, by_digest, cache) if config.candidates > 1 else None
        if plan.labelled is not None:
            _score_missing(plan, run, plan.labelled, by_digest, cache)
    except torch.OutOfMemoryError as error:
        raise ResourceError("out of GPU memory while scoring", where=folder, fix="use --device cpu") from error
    scored_on = _scored_on(config, plan.labelled)
    scores = tuple(cache.checkpoints[f"{d} on {scored_on}"] for d in by_digest) if plan.labelled is not None else ()
    pace = _pace(config, folder)
    return RunResult(arm=plan.arms[run], seed=config.seed, choice=choice, checkpoints=scores, pace=pace)


def _pace(config: TrainConfig, folder: Path) -> Pace | None:
    seconds, shares = 0.0, []
    for round_folder in round_folders(config, folder):
        log, done = read_metrics(round_folder / METRICS), 0
        for iteration, row in zip(log.iterations, log.rows, strict=True):
            rate, share = row.get("it_per_s"), row.get("data_wait_share")
            if not rate or share is None:
                return None
            seconds += (iteration - done) / rate
            shares.append(share)
            done = iteration
        if log.damaged or done < config.iters:
            return None
    return Pace(trained_s=seconds, largest_data_wait_share=max(shares))


def _score_missing(plan: StudyPlan, run: str, labelled: Dataset, by_digest: Mapping[str, Path], cache: _Cache) -> None:
    """Score the checkpoints that the cache lacks, writing it after each: one may take minutes."""
    scored_on = _scored_on(plan.configs[run], labelled)
    missing = [digest for digest in by_digest if f"{digest} on {scored_on}" not in cache.checkpoints]
    with progress_bar(f"score {run}", len(missing) * len(labelled), quiet=plan.quiet) as advance:
        for number, digest in enumerate(missing):

            def frame(done: int, before: int = number * len(labelled)) -> None:
                advance(before + done)

            scores = _scores(plan.configs[run], by_digest[digest], digest, labelled, frame)
            cache.checkpoints[f"{digest} on {scored_on}"] = scores
            _write_cache(plan.folder / run / SCORES, cache)


def _scores(
    config: TrainConfig, file: Path, digest: str, labelled: Dataset, on_frame: Callable[[int], None]
) -> CheckpointScores:
    checkpoint = load_checkpoint(file)
    fused = FusedNetwork(build_network(checkpoint), checkpoint.preprocess).to(choose_device(config.device))
    own = CLASS_SETS[config.score.classes]
    matrix = count(predictor(fused, config.score.protocol), labelled, own, on_frame=on_frame)
    scores = matrix.scores()
    return CheckpointScores(
        file=file.name,
        sha256=digest,
        iteration=checkpoint.iteration,
        frames=scores.frames,
        accuracy=_known(scores.accuracy),
        miou={name: _known(matrix.scores_over(CLASS_SETS[name]).miou) for name in class_sets_of(own.name)},
        iou={name: _known(value) for name, value in scores.iou.items()},
    )


def _choice(plan: StudyPlan, run: str, by_digest: Mapping[str, Path], cache: _Cache) -> Choice:
    """The run's own choice, or the study's where the run made none: it never looked at the target."""
    files = list(by_digest.values())
    own = _choice_of_run(files[-1].parents[1] / SELECTION)
    if own is not None:
        return own
    rests_on = [*by_digest, plan.target.identity(), *CandidateScores.__annotations__]
    key = hashlib.sha256("\n".join(rests_on).encode()).hexdigest()
    if key not in cache.choices:
        device = choose_device(plan.configs[run].device)
        chosen = choose(score_candidates(files, plan.target, device=device))
        cache.choices[key] = Choice(
            iteration=chosen.iteration, infomax=chosen.infomax, mirror_agreement=chosen.mirror_agreement
        )
        _write_cache(plan.folder / run / SCORES, cache)
    return cache.choices[key]


def _choice_of_run(selection: Path) -> Choice | None:
    try:
        record = json.loads(selection.read_text(encoding="utf-8"))
        chosen = next(c for c in record["candidates"] if c["iteration"] == record["iteration"])
        return Choice(**{key: chosen[key] for key in ("iteration", "infomax", "mirror_agreement")})
    except (*DAMAGE, StopIteration):
        return None


def _scored_on(config: TrainConfig, labelled: Dataset | None) -> str:
    """A text that differs whenever a checkpoint's scores could."""
    if labelled is None:
        return "nothing"
    score = config.score
    identity = hashlib.sha256(labelled.identity().encode()).hexdigest()
    return f"{score.data} {score.split} {score.classes} {score.protocol} {identity}"


def _read_cache(file: Path) -> _Cache:
    """What is known already; nothing where the file is damaged."""
    try:
        return TypeAdapter(_Cache).validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return _Cache(checkpoints={}, choices={})


def _write_cache(file: Path, cache: _Cache) -> None:
    write_text(file, json.dumps(asdict(cache), indent=1, allow_nan=False) + "\n")


def _known(value: float) -> float | None:
    """JSON has no NaN: a class that occurs nowhere has no score."""
    return value if math.isfinite(value) else None
