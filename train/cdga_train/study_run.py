"""``cdga study``: arms times seeds, trained one after another, scored, and put into one table.

::

    STUDY/ARM-seedN/         a run of cdga train each, and scores.json: its checkpoints' scores by their sha256
    STUDY/study.json         every number, the configurations, the command
    STUDY/study.md, .html    the tables

All of it is rewritten after every run, so that a study can be read while it goes on, and the same command goes on with
one that was stopped: finished runs and scored checkpoints are not done again.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import typer

from cdga_sdk.atomic import check_folder_name, new_run_folder
from cdga_sdk.errors import DegradedError, UsageError, counted, one_line
from cdga_sdk.labels import class_set
from cdga_train.config import TrainConfig, config_as_dict
from cdga_train.data.spec import open_labelled, open_unlabelled, require_data
from cdga_train.manifest import read_run
from cdga_train.presets import require_weights
from cdga_train.run_layout import DAMAGE, has_begun
from cdga_train.study import Study, StudyPlan, parse_arms, parse_family, parse_seeds, study_config
from cdga_train.study_table import print_study

__all__ = ["run_study"]

_FREE: Final = ("device", "workers", "cache_gib", "cache_dir", "log_every", "save_every", "compile", "score")


def run_study(
    words: Sequence[str],
    flags: Sequence[str],
    *,
    arms: str,
    seeds: str,
    project: Path,
    name: str | None,
    quiet: bool,
) -> Path:
    """Train what is missing, score it, and write the tables; see this module's docstring.

    Args:
        words: A family of presets, or its ``_cdga`` preset, and KEY=VALUE overrides for all arms.
        flags: More overrides.
        arms: ``a,b,c`` of `cdga_train.presets.ARMS`.
        seeds: ``0,1,2``.
        project: Where studies are kept.
        name: The study's folder there; the family's name by default. An existing study goes on.
        quiet: No progress and no table.

    Returns:
        The study's folder.

    Raises:
        UsageError: An unknown family, arm or key, or a folder that holds a run of another configuration.
        DegradedError: Runs diverged; the others are in the tables.
        InterruptedRunError: Stopped by a signal.
        CdgaError: As `cdga_train.rounds.train_run` does.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) != 1:
        raise UsageError("a study trains in one process", fix="give torchrun single runs: cdga train PRESET")
    family, overrides = parse_family([*words, *flags])
    study = Study(
        family=family,
        command=_command(family, overrides, arms=arms, seeds=seeds, project=project, name=name),
        arms=parse_arms(arms),
        seeds=parse_seeds(seeds),
        classes=None,
        scored_on="nothing",
        results=(),
        failures={},
        facts={},
    )
    folder_name = family if name is None else name
    check_folder_name(folder_name)
    plan = _planned(study, overrides, project / folder_name, quiet=quiet)
    from cdga_train.rounds import locked
    from cdga_train.state import choose_device
    from cdga_train.study_work import worked_through

    choose_device(next(iter(plan.configs.values())).device)
    new_run_folder(project, folder_name, exist_ok=True)
    with locked(plan.folder):  # two in one folder would write over each other's tables
        _refuse_smaller_study(study, plan.folder)
        study = worked_through(study, plan)
    if not quiet:
        print_study(study)
        typer.echo(one_line(plan.folder / "study.html"), err=True)
    if study.failures:
        raise DegradedError(
            f"{len(study.failures)} of {counted(len(plan.configs), 'runs')} could not be finished: "
            f"{', '.join(study.failures)}",
            where=plan.folder,
            fix="the tables hold the others; see study.md",
        )
    return plan.folder


def _planned(study: Study, overrides: Sequence[str], folder: Path, *, quiet: bool) -> StudyPlan:
    """Everything that can be refused is refused here, before the first iteration."""
    configs, arms = {}, {}
    for seed in study.seeds:  # all arms of a seed before the next: a study that was stopped compares what it has
        for arm in study.arms:
            run = f"{arm}-seed{seed}"
            configs[run], arms[run] = study_config(study.family, arm, seed, overrides), arm
    _refuse_smaller_study(study, folder)
    for run, config in configs.items():
        _refuse_other_run(config, folder / run)
    config = next(iter(configs.values()))
    score = config.score
    class_set(score.classes)
    assert config.target is not None  # a family's cdga arm has one
    return StudyPlan(
        configs=configs,
        arms=arms,
        folder=folder,
        target=open_unlabelled(config.target, config.target_split, config.imgsz),
        labelled=None if score.data is None else open_labelled(score.data, score.split, config.imgsz),
        quiet=quiet,
    )


def _refuse_smaller_study(study: Study, folder: Path) -> None:
    """A study may grow; one with fewer arms or seeds would take results out of its tables."""
    try:
        before = json.loads((folder / "study.json").read_text(encoding="utf-8"))
        there = {(str(run["arm"]), int(run["seed"])) for run in before["runs"]}
    except DAMAGE:
        return
    if any(arm not in study.arms or seed not in study.seeds for arm, seed in there):
        arms, seeds = sorted({arm for arm, _ in there}), sorted({seed for _, seed in there})
        raise UsageError(
            f"this study has results of the arms {','.join(arms)} and the seeds {','.join(map(str, seeds))}",
            where=folder,
            fix="name those too, or choose another --name",
        )


def _refuse_other_run(config: TrainConfig, folder: Path) -> None:
    if not has_begun(folder):  # a run that left nothing to go on from is free
        require_weights(config)
        require_data(config.source, config.source_split, with_labels=True)
        return
    old, new = config_as_dict(read_run(folder)), config_as_dict(config)
    changed = [key for key in old if key not in _FREE and old[key] != new[key]]
    if changed:
        key = changed[0]
        raise UsageError(
            f"holds a run with another {', '.join(changed)}: {old[key]} there, {new[key]} here",
            where=folder,
            fix="choose another --name, or remove that run",
        )


def _command(family: str, overrides: Sequence[str], *, arms: str, seeds: str, project: Path, name: str | None) -> str:
    place = ["--project", str(project), *(["--name", name] if name is not None else [])]
    return shlex.join(["cdga", "study", family, "--arms", arms, "--seeds", seeds, *place, *overrides])
