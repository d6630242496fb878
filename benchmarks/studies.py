"""The tables of docs/results.md, from the JSON that ``cdga study`` wrote; `benchmarks.pages` puts them there.

A run is picked from its checkpoints in three ways: the last one, the one chosen without labels, and the best one by the
labels it is scored on, which is a bound and no result. Differences are taken seed by seed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from benchmarks.markdown import results, table

__all__ = [
    "DAY_DUSK",
    "DEEPLAB",
    "TABLES",
    "TWO_ROUNDS",
    "called",
    "differences",
    "interval",
    "scores",
    "standard_error",
    "whole",
]

DAY_DUSK: Final = "study_day_dusk"
STREETS_CAMVID: Final = "study_streets_camvid"
TWO_ROUNDS: Final = "study_streets_camvid_two_rounds"
SHARPER: Final = "study_streets_camvid_sharper"
STRONG_START: Final = "study_strong_start"
DEEPLAB: Final = "camvid_day_dusk_short"
_SEED_2: Final = {DEEPLAB: "camvid_day_dusk_short_seed2"}  # run later: a seed does not know of the others
_CHANGED: Final = {
    DAY_DUSK: "study_day_dusk_changed",
    TWO_ROUNDS: "study_streets_camvid_two_rounds_changed",
}
_WITH_STATISTICS: Final = (DAY_DUSK, STREETS_CAMVID, TWO_ROUNDS)
_HELD_AGAINST: Final = ("cdga", "baseline", "self_training")
_BELOW: Final = ("source_only", "translation", "self_training", "baseline")  # CDGA, each with less of it
_GROUPING_LR: Final = 1e-3  # of every study but SHARPER

_ARMS: Final = {
    "source_only": "source alone",
    "translation": "FDA alone",
    "self_training": "FDA, target forwarded",
    "baseline": "baseline",
    "cdga": "CDGA",
    "target_supervised": "trained on the target's labels",
    "cdga_no_co": "CDGA without L_co (semantic consistency)",
    "cdga_no_orth": "CDGA without L_orth (orthogonality)",
    "cdga_no_cadv": "CDGA without L_cadv (discriminator)",
    "cdga_no_cl": "CDGA without L_cl (class equivalence)",
    "cdga_k1": "CDGA with 1 group",
    "cdga_k4": "CDGA with 4 groups",
    "cdga_k16": "CDGA with 16 groups",
    "cdga_normalised": "CDGA, each group's distribution divided by its sum",
}
_CALLED: Final = {
    DAY_DUSK: "day_dusk",
    STREETS_CAMVID: "streets_camvid, one round",
    TWO_ROUNDS: "streets_camvid, two rounds",
    STRONG_START: "strong_start",
    DEEPLAB: "camvid_day_dusk, DeepLab-v2",
}
_CASES: Final = {
    "day-day-dusk": "knows streets by day; to streets at dusk",
    "dusk-day-dusk": "knows streets at dusk; to the same, from day",
    "all-day-rain": "knows streets in all looks; to rain, from day",
    "day-day-fog": "knows streets by day; to streets in fog",
    "weak_start": "knows CamVid by day; to CamVid at dusk",
    "strong_start": "knows Cityscapes; to CamVid by day, from streets (study C)",
    "strong_start_dusk": "knows Cityscapes; to CamVid at dusk, from streets",
}
_T_95: Final = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571}  # Student's t, 97.5 %, by degrees of freedom


def whole(name: str) -> Mapping[str, Any]:
    """The study, with the runs of a seed that has a file of its own."""
    study = results(name)
    return {**study, "runs": study["runs"] + results(_SEED_2[name])["runs"]} if name in _SEED_2 else study


def scores(study: Mapping[str, Any], arm: str, way: str) -> dict[int, float]:
    """mIoU by seed, percent; ``way`` is last, label-free or oracle."""
    return {run["seed"]: run[way] for run in study["runs"] if run["arm"] == arm and run[way] is not None}


def differences(study: Mapping[str, Any], arm: str, other: str, way: str) -> list[float]:
    """What ``arm`` has over ``other``, for the seeds that both have."""
    own, others = scores(study, arm, way), scores(study, other, way)
    return [own[seed] - others[seed] for seed in sorted(own.keys() & others.keys())]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean by Student's t."""
    mean = statistics.fmean(values)
    half = _T_95[len(values) - 1] * statistics.stdev(values) / len(values) ** 0.5
    return mean - half, mean + half


def standard_error(one: Sequence[float], other: Sequence[float]) -> float:
    """Of the difference of two means, from the spread of each."""
    return math.sqrt(statistics.variance(one) / len(one) + statistics.variance(other) / len(other))


def _spread(values: Sequence[float], *, signed: bool = False) -> str:
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):{'+' if signed else ''}.1f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.1f}"


def called(name: str) -> dict[str, str]:
    """A study's arms as people call them: what only forwards the target in one round, learns from it in the second."""
    return _ARMS | ({"self_training": "FDA and pseudo-labels"} if name == TWO_ROUNDS else {})


def _arms(name: str) -> str:
    """Arms by ways of picking, and the difference to the source alone."""
    study, names = whole(name), called(name)
    rows = []
    for arm in study["arms"]:
        ways = {way: scores(study, arm, way) for way in ("last", "label-free", "oracle")}
        over = _spread(differences(study, arm, "source_only", "label-free"), signed=True)
        cells = [_spread(list(by_seed.values())) for by_seed in ways.values()]
        rows.append((names[arm], str(len(ways["last"])), *cells, "" if arm == "source_only" else over))
        if arm == "source_only" and name in _WITH_STATISTICS:
            rows.append(_adabn(name))
    header = ("arm", "seeds", "last", "chosen without labels", "best by labels (a bound)", "chosen, over source alone")
    return table(header, rows)


def _adabn(name: str) -> tuple[str, ...]:
    """The source alone with BatchNorm's statistics of the target: the last checkpoint alone was looked at."""
    found = [run["with_targets"] for run in _statistics_of(name) if run["arm"] == "source_only"]
    return ("source alone, target's statistics (AdaBN)", str(len(found)), _spread(found), "", "", "")


def _statistics_of(name: str) -> list[Mapping[str, Any]]:
    runs: list[Mapping[str, Any]] = results(name.replace("study", "statistics"))["runs"]
    return runs


def _changed() -> str:
    """CDGA with one part changed, against CDGA as it is and the arms below it, which the study of all arms has."""
    rows = []
    for name, changed in _CHANGED.items():
        study, without = results(name), results(changed)
        every = {"runs": study["runs"] + without["runs"]}
        for arm in ("cdga", *without["arms"]):
            last, chosen = (list(scores(every, arm, way).values()) for way in ("last", "label-free"))
            gains = {other: differences(every, arm, other, "last") for other in _HELD_AGAINST if other != arm}
            over = (_with_interval(gains[other]) if gains.get(other) else "" for other in _HELD_AGAINST)
            rows.append((_CALLED[name], _ARMS[arm], str(len(last)), _spread(last), _spread(chosen), *over))
    against = ("over CDGA [95 %]", "over baseline [95 %]", "over FDA with the same rounds [95 %]")
    return table(("study", "arm", "seeds", "last", "chosen without labels", *against), rows)


def _with_interval(gains: Sequence[float]) -> str:
    low, high = interval(gains)
    return f"{statistics.fmean(gains):+.1f} [{low:+.1f}, {high:+.1f}]"


def _costs() -> str:
    """Minutes of training, all rounds, by arm."""
    rows = []
    for name in (DAY_DUSK, STREETS_CAMVID, TWO_ROUNDS, DEEPLAB, STRONG_START):
        study = whole(name)
        for arm in study["arms"]:
            minutes = [run["pace"]["trained_s"] / 60 for run in study["runs"] if run["arm"] == arm]
            cells = (f"{statistics.median(minutes):.1f}", f"{min(minutes):.1f} to {max(minutes):.1f}")
            rows.append((_CALLED[name], called(name)[arm], str(len(minutes)), *cells))
    return table(("study", "arm", "seeds", "minutes, median", "from, to"), rows)


def _claims(*studies: str) -> str:
    """What CDGA adds, to the source alone and to the baseline, in the checkpoints chosen without labels."""
    rows = []
    for name in studies:
        study, names = whole(name), called(name)
        for other in (arm for arm in _BELOW if arm in study["arms"]):
            gains = differences(study, "cdga", other, "label-free")
            own, others = (list(scores(study, arm, "label-free").values()) for arm in ("cdga", other))
            low, high = interval(gains)
            gain, error = statistics.fmean(gains), standard_error(own, others)
            cells = (f"{gain:+.1f}", f"[{low:+.1f}, {high:+.1f}]", f"{gain / error:.1f}")
            rows.append((_CALLED[name], f"CDGA over {names[other]}", *cells))
    return table(("study", "", "mIoU", "95 % interval, by seed", "in standard errors"), rows)


def _classes(name: str) -> str:
    """IoU by class of what is chosen without labels."""
    study = results(name)
    names = list(study["summary"][study["arms"][0]]["label-free"]["iou"])
    rows = []
    for arm in study["arms"]:
        iou = study["summary"][arm]["label-free"]["iou"]
        cells = ("-" if iou[c] is None else f"{iou[c]['mean']:.1f}" for c in names)
        rows.append((called(name)[arm], *cells))
    return table(("arm", *(n.replace("_", " ") for n in names)), rows)


def _choices() -> str:
    """What the choice without labels costs against the best checkpoint of each run."""
    rows = []
    for name in (DAY_DUSK, STREETS_CAMVID, TWO_ROUNDS, DEEPLAB, STRONG_START):
        study = whole(name)
        for arm in study["arms"]:
            best, chosen = scores(study, arm, "oracle"), scores(study, arm, "label-free")
            lost = [best[seed] - chosen[seed] for seed in chosen]
            worst = f"{max(lost):.1f}"
            rows.append((_CALLED[name], called(name)[arm], f"{statistics.fmean(lost):.1f}", worst))
    return table(("study", "arm", "mIoU lost by the choice, mean", "worst seed"), rows)


def _verdicts() -> str:
    """What the choice without labels says of weights that were given, and what labels say."""
    rows = []
    for run in results("verdict")["runs"]:
        in_errors = run["infomax_gain_in_errors"]
        gain = "-" if in_errors is None else f"{in_errors:+.1f}"
        miou = (f"{run['given_miou']:.1f}", f"{run['trained_miou']:.1f}")
        said = "left" if run["is_left"] else "kept"
        case = (_CASES[run["case"]], str(run["seed"]), *miou)
        rows.append((*case, gain, f"{run['mirror_gain']:+.3f}", said, "yes" if run["is_right"] else "no"))
    header = ("the network", "seed", "given, mIoU", "adapted", "infomax, in errors", "mirror", "given is", "right")
    return table(header, rows)


def _groups() -> str:
    """What C's groups are, and what the network scores with them."""
    rows = []
    found: dict[tuple[float, int], list[Mapping[str, Any]]] = {}
    for row in results("groups")["rounds"]:
        found.setdefault((row["grouping_lr"], row["round"]), []).append(row)
    for (lr, number), of_seeds in found.items():
        study = results(SHARPER if lr != _GROUPING_LR else TWO_ROUNDS if number == 2 else STREETS_CAMVID)
        miou = _spread(list(scores(study, "cdga", "last").values()))
        cells = (f"{statistics.fmean(row[key] for row in of_seeds):.2f}" for key in ("largest", "entropy", "told"))
        rows.append((f"{lr:g}", str(number), str(len(of_seeds)), *cells, miou))
    return table(("its rate", "round", "seeds", "largest", "entropy", "told of the class", "mIoU, last"), rows)


def _strong_start() -> str:
    """Every checkpoint of study C, so that the weights as they were given stand beside what became of them."""
    study = results(STRONG_START)
    rows = []
    for run in study["runs"]:
        for checkpoint in run["checkpoints"]:
            iteration = checkpoint["iteration"]
            mark = "chosen without labels" if run["choice"]["iteration"] == iteration else ""
            title = "as given" if iteration == 0 else str(iteration)
            name = _ARMS[run["arm"]]
            rows.append((name, str(run["seed"]), title, f"{checkpoint['miou']['common11']:.1f}", mark))
    return table(("arm", "seed", "iterations", "mIoU, %", ""), rows)


def _statistics() -> str:
    """Last checkpoints as they are, and with BatchNorm's statistics of the target alone."""
    rows = []
    for name in (*_WITH_STATISTICS, _CHANGED[DAY_DUSK]):
        runs = _statistics_of(name)
        for arm in dict.fromkeys(run["arm"] for run in runs):
            own = [run for run in runs if run["arm"] == arm]
            cells = (_spread([run[key] for run in own]) for key in ("as_trained", "with_targets"))
            change = _spread([run["with_targets"] - run["as_trained"] for run in own], signed=True)
            rows.append((_CALLED.get(name, _CALLED[DAY_DUSK]), called(name)[arm], str(len(own)), *cells, change))
    return table(("study", "arm", "seeds", "as trained", "target's statistics", "change"), rows)


def _default_model() -> str:
    """What the model in the package was chosen among, by class on CamVid's day frames, and its validation clip."""
    report = results("default_model")
    day = report["camvid_day_train_common11"]
    columns = {
        "2 x 1,000, no winter": day["two_times_1000_streets_all"],
        "2 x 2,000, no winter": day["two_times_2000_streets_all"],
        "2 x 2,000": day["two_times_2000_streets_year"],
        "1 x 4,000, averaged": day["one_time_4000_streets_year"],
        "1 x 2,000, averaged: taken": day["default"],
        "taken, validation clip": report["camvid_val_common11"],
    }
    rows = [("mIoU", *(f"{column['miou']:.1f}" for column in columns.values()))]
    rows += [(name, *(f"{column['iou'][name]:.1f}" for column in columns.values())) for name in day["default"]["iou"]]
    return table(("%", *columns), rows)


def _averaging() -> str:
    """What the average is above the last iterate of the same run, run by run."""
    rows = []
    for run in results("averaging")["runs"]:
        cells = []
        for split in ("day_train", "val"):
            average, iterate = (run["splits"][split][name]["miou"] for name in ("average", "iterate"))
            cells += [f"{iterate:.1f}", f"{average:.1f}", f"{average - iterate:+.1f}"]
        rows.append((f"{run['iterations']:,}, seed {run['seed']}", *cells))
    of_split = [f"{name}, {split}" for split in ("day", "val") for name in ("last iterate", "average", "gain")]
    return table(("iterations", *of_split), rows)


def _smoothing() -> str:
    rows = []
    for way in results("smoothing")["ways"]:
        small = (f"{way['iou'][name]:.1f}" for name in ("pole", "sign", "person", "vehicle"))
        took = f"{way['smoothing_ms']:.1f}" if "smoothing_ms" in way else ""
        rows.append((way["way"], f"{way['miou']:.1f}", f"{way['consistency']:.1f}", *small, took))
    return table(("way", "mIoU, %", "consistency, %", "pole", "sign", "person", "vehicle", "smoothing, ms"), rows)


TABLES: Final[Mapping[str, Callable[[], str]]] = {
    "day-dusk": partial(_arms, DAY_DUSK),
    "day-dusk-classes": partial(_classes, DAY_DUSK),
    "streets-camvid": partial(_arms, STREETS_CAMVID),
    "streets-camvid-classes": partial(_classes, STREETS_CAMVID),
    "two-rounds": partial(_arms, TWO_ROUNDS),
    "two-rounds-classes": partial(_classes, TWO_ROUNDS),
    "deeplab-arms": partial(_arms, DEEPLAB),
    "changed": _changed,
    "costs": _costs,
    "strong-start": _strong_start,
    "verdicts": _verdicts,
    "groups": _groups,
    "claims": partial(_claims, DAY_DUSK, STREETS_CAMVID, TWO_ROUNDS),
    "deeplab-claims": partial(_claims, DEEPLAB),
    "choices": _choices,
    "statistics": _statistics,
    "default-model": _default_model,
    "averaging": _averaging,
    "smoothing": _smoothing,
}
