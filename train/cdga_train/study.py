"""Arms times seeds: which configurations a study trains, and what its numbers say. Needs no torch.

A claim about an arm is made of the same seeds and data as its rivals', as a mean and a spread over seeds; differences
are taken seed by seed, for arms of one seed share their images, windows and order (with ``augment``, light and colours
change otherwise in arms without a target). Where the family has two rounds, only ``self_training``, ``baseline`` and
the CDGA arms have the second: hold these against each other.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeVar

from cdga_sdk.errors import UsageError, did_you_mean
from cdga_train.config import TrainConfig, load_preset
from cdga_train.data.base import Dataset
from cdga_train.presets import ARMS, FAMILIES, PRESETS

__all__ = [
    "SELECTIONS",
    "CheckpointScores",
    "Choice",
    "Pace",
    "RunResult",
    "Spread",
    "Study",
    "StudyPlan",
    "class_sets_of",
    "parse_arms",
    "parse_family",
    "parse_seeds",
    "study_config",
]

SELECTIONS: Final = ("last", "label-free", "oracle")
_SEED_DIGITS: Final = 10  # of the largest
_Item = TypeVar("_Item", int, str)

_REFERENCES: Final = ("baseline", "source_only")  # what deltas are against: the first of them that is there
_ALSO_OVER: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType({"19": ("16", "13")})


@dataclass(frozen=True, kw_only=True)
class CheckpointScores:
    """What labels say of a checkpoint, percent; None where nothing can be said (a class that occurs nowhere).

    Attributes:
        file: Its name.
        sha256: Of the file.
        iteration: Iterations done.
        frames: Labelled frames.
        accuracy: Share of labelled pixels whose class is right.
        miou: Mean IoU by the name of the class set, the study's own first.
        iou: IoU by class, over the study's own class set.
    """

    file: str
    sha256: str
    iteration: int
    frames: int
    accuracy: float | None
    miou: dict[str, float | None]
    iou: dict[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The checkpoint that is chosen without labels, and the criteria it was chosen by, 0 to 1."""

    iteration: int
    infomax: float
    mirror_agreement: float


@dataclass(frozen=True, kw_only=True)
class Pace:
    """What a run's log says of its time.

    Attributes:
        trained_s: Seconds of all rounds' iterations at their logged rates: no choosing, labelling or scoring.
        largest_data_wait_share: Share of a line's time that was spent waiting for data, 0 to 1; the largest of all.
    """

    trained_s: float
    largest_data_wait_share: float


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """A finished run.

    Attributes:
        arm: Its arm.
        seed: Its seed.
        choice: What is chosen without labels; None where no two checkpoints were kept.
        checkpoints: Those that were kept, by iteration, the last one at the end; none where there are no labels.
        pace: How long it took; None where the log is not whole.
    """

    arm: str
    seed: int
    choice: Choice | None
    checkpoints: tuple[CheckpointScores, ...]
    pace: Pace | None = None

    def selected(self, selection: str) -> CheckpointScores | None:
        """The checkpoint that one of `SELECTIONS` picks; None where it has none to pick."""
        if not self.checkpoints:
            return None
        match selection:
            case "last":
                return self.checkpoints[-1]
            case "label-free":
                return next((c for c in self.checkpoints if self.choice and c.iteration == self.choice.iteration), None)
            case _:
                return max(self.checkpoints, key=_oracle_merit)

    def miou(self, selection: str, class_set: str) -> float | None:
        """The picked checkpoint's mIoU over a class set, percent."""
        checkpoint = self.selected(selection)
        return None if checkpoint is None else checkpoint.miou.get(class_set)

    def iou(self, selection: str, class_name: str) -> float | None:
        """The picked checkpoint's IoU of a class, percent."""
        checkpoint = self.selected(selection)
        return None if checkpoint is None else checkpoint.iou.get(class_name)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean and sample standard deviation (n - 1) of ``count`` numbers; no deviation of a single one."""

    mean: float
    sd: float | None
    count: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """Of those that are there; None where none is."""
        known = [v for v in values if v is not None]
        if not known:
            return None
        sd = statistics.stdev(known) if len(known) > 1 else None
        return cls(mean=statistics.fmean(known), sd=sd, count=len(known))


@dataclass(frozen=True, kw_only=True)
class Study:
    """Everything that a study's tables are made of.

    Attributes:
        family: The presets' family.
        command: The line that reproduces it.
        arms: Those asked for, in the order of the tables.
        seeds: Those asked for.
        classes: The class set that scores are over; None where there are no labels to score on.
        scored_on: Data, split and protocol of the scores, for people.
        results: One for each run that is finished.
        failures: What became of runs that cannot be finished, by run.
        facts: Date, machine and versions.
    """

    family: str
    command: str
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    classes: str | None
    scored_on: str
    results: tuple[RunResult, ...]
    failures: Mapping[str, str]
    facts: Mapping[str, object]

    @property
    def class_sets(self) -> tuple[str, ...]:
        """The study's own class set, and those that its counts can be read for too; none without labels."""
        return () if self.classes is None else class_sets_of(self.classes)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The scored classes."""
        return next((tuple(r.checkpoints[-1].iou) for r in self.results if r.checkpoints), ())

    @property
    def reference(self) -> str | None:
        """The arm that deltas are against."""
        return next((arm for arm in _REFERENCES if arm in self.arms), None)

    def of_arm(self, arm: str) -> list[RunResult]:
        """The arm's finished runs, by seed."""
        return sorted((r for r in self.results if r.arm == arm), key=lambda r: r.seed)

    def miou(self, arm: str, selection: str, class_set: str) -> Spread | None:
        """mIoU of an arm over its seeds, percent."""
        return Spread.of(r.miou(selection, class_set) for r in self.of_arm(arm))

    def iou(self, arm: str, selection: str, class_name: str) -> Spread | None:
        """IoU of a class over the arm's seeds that have one, percent."""
        return Spread.of(r.iou(selection, class_name) for r in self.of_arm(arm))

    def delta(self, arm: str, selection: str, class_set: str) -> Spread | None:
        """mIoU against the reference arm's, seed by seed; None for the reference itself and without common seeds."""
        if self.reference is None or arm == self.reference:
            return None
        floor = {r.seed: r.miou(selection, class_set) for r in self.of_arm(self.reference)}
        pairs = ((r.miou(selection, class_set), floor.get(r.seed)) for r in self.of_arm(arm))
        return Spread.of(own - other for own, other in pairs if own is not None and other is not None)


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """The runs of a study by their folders' names, and the data that all of them are judged on."""

    configs: Mapping[str, TrainConfig]
    arms: Mapping[str, str]
    folder: Path
    target: Dataset
    labelled: Dataset | None
    quiet: bool


def class_sets_of(classes: str) -> tuple[str, ...]:
    """A class set's name, and the names of those that its counts are read for too."""
    return (classes, *_ALSO_OVER.get(classes, ()))


def _oracle_merit(checkpoint: CheckpointScores) -> tuple[float, int]:
    miou = next(iter(checkpoint.miou.values()))
    return (float("-inf") if miou is None else miou, checkpoint.iteration)


def parse_family(words: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """The family that a command line names, itself or by its ``_cdga`` preset, and the KEY=VALUE words behind it.

    Raises:
        UsageError: None, more than one, an unknown one, or a key that is the study's own.
    """
    names = [w for w in words if "=" not in w]
    overrides = tuple(w for w in words if "=" in w)
    if len(names) != 1:
        found = "no family of presets" if not names else f"more than one family: {' and '.join(names)}"
        raise UsageError(f"got {found}", fix=f"name one of {', '.join(FAMILIES)}")
    family = names[0].removesuffix("_cdga")
    if family not in FAMILIES:
        raise UsageError(f"unknown family of presets '{names[0]}'", fix=did_you_mean(family, FAMILIES))
    for key in ("arm", "seed"):
        if any(w.partition("=")[0].strip() == key for w in overrides):
            raise UsageError(f"a study sets {key} itself", where=key, fix=f"use --{key}s")
    return family, overrides


def parse_arms(text: str) -> tuple[str, ...]:
    """Arms from ``a,b,c``.

    Raises:
        UsageError: None, an unknown one, or one twice.
    """
    arms = tuple(part.strip() for part in text.split(",") if part.strip())
    for arm in arms:
        if arm not in ARMS:
            raise UsageError(f"unknown arm '{arm}'", where="--arms", fix=did_you_mean(arm, tuple(ARMS)))
    return _distinct(arms, "--arms", fix=f"name some of {', '.join(ARMS)}")


def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds from ``0,1,2``.

    Raises:
        UsageError: None, something that is not a whole number of at least 0, or one twice.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    for part in parts:
        if not (part.isascii() and part.isdecimal() and len(part) <= _SEED_DIGITS):
            raise UsageError(f"'{part}' is not a seed", where="--seeds", fix="e.g. --seeds 0,1,2")
    return _distinct(tuple(int(part) for part in parts), "--seeds", fix="e.g. --seeds 0,1,2")


def study_config(family: str, arm: str, seed: int, overrides: Sequence[str]) -> TrainConfig:
    """The configuration of one run: the family's ``_cdga`` preset, the overrides, then what makes the arm.

    Raises:
        UsageError: An unknown key, or a value that is refused.
    """
    return replace(ARMS[arm](load_preset(PRESETS[f"{family}_cdga"](), overrides)), seed=seed)


def _distinct(items: tuple[_Item, ...], where: str, *, fix: str) -> tuple[_Item, ...]:
    if not items:
        raise UsageError("names nothing", where=where, fix=fix)
    twice = [item for item in items if items.count(item) > 1]
    if twice:
        raise UsageError(f"names {twice[0]} twice", where=where)
    return items
