"""The documents' tables are the committed JSON's, row by row; their commands parse; their code runs."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import fields
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import typer
from torch.distributed.run import get_args_parser
from typer.exceptions import TyperException

from benchmarks import pages
from benchmarks.studies import DEEPLAB, differences, interval, scores, standard_error, whole
from benchmarks.study_curves import PICTURES
from cdga_export.deploy import deployment_texts, trtexec_command
from cdga_export.parity import MIN_AGREEMENT
from cdga_sdk.bundle import Bundle
from cdga_sdk.cli import app
from cdga_sdk.errors import CdgaError
from cdga_sdk.labels import class_set
from cdga_sdk.video.sink import VideoSink
from cdga_train import losses
from cdga_train.config import LossWeights, load_preset
from cdga_train.data.streets import render_clip
from cdga_train.presets import FAMILIES, PRESETS
from cdga_train.study import parse_arms, parse_family, parse_seeds, study_config

ROOT: Final = Path(__file__).parents[1]
README: Final = (ROOT / "README.md").read_text(encoding="utf-8")
METHOD: Final = (ROOT / "train/README.md").read_text(encoding="utf-8")
DEPLOYMENT: Final = (ROOT / "export/README.md").read_text(encoding="utf-8")
PERFORMANCE: Final = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
RESULTS: Final = (ROOT / "docs/results.md").read_text(encoding="utf-8")
DOCUMENTS: Final = {
    "README.md": README,
    "train/README.md": METHOD,
    "export/README.md": DEPLOYMENT,
    "docs/performance.md": PERFORMANCE,
    "docs/results.md": RESULTS,
}


def results(name: str) -> Any:
    return json.loads((ROOT / "benchmarks/results" / name).read_text(encoding="utf-8"))


def prose(text: str) -> str:
    """Without line breaks, which may lie anywhere in a sentence."""
    return " ".join(text.split())


def rows_below(header: str, document: str = README) -> list[str]:
    """The rows of a document's only table with this header line."""
    lines = document.splitlines()
    assert lines.count(header) == 1, header
    start = lines.index(header) + 2
    end = next(i for i in range(start, len(lines)) if not lines[i].startswith("|"))
    return lines[start:end]


def spread(values: Any, *, signed: bool = False) -> str:
    return f"{values['mean']:{'+' if signed else ''}.1f} ± {values['sd']:.1f}"


# --- numbers


def test_the_demo_s_table_is_the_json() -> None:
    summary = results("streets_adaptation.json")["summary"]
    labels = {
        "source_only": "labelled day alone",
        "fda": "FDA translation alone",
        "cdga": "CDGA recipe (FDA + losses)",
    }
    assert set(summary) == set(labels)
    floor = summary["source_only"]["mean"]
    wanted = [f"| {label} | {spread(summary[a])} | {summary[a]['mean'] - floor:+.1f} |" for a, label in labels.items()]
    assert rows_below("| arm | mIoU, % | against source only |") == wanted


def test_what_is_said_of_the_demo_s_table() -> None:
    report = results("streets_adaptation.json")
    mean = {arm: values["mean"] for arm, values in report["summary"].items()}
    sd = {arm: values["sd"] for arm, values in report["summary"].items()}
    assert mean["cdga"] - mean["source_only"] > sd["cdga"] + sd["source_only"]
    assert "The translation brings most of the gain" in prose(README)
    assert mean["fda"] - mean["source_only"] > (mean["cdga"] - mean["source_only"]) / 2
    height, width = report["imgsz_hw"]
    assert f"a short run ({report['iters']} iterations at {width}x{height})" in prose(README)
    assert {values["seeds"] for values in report["summary"].values()} == {3}
    assert "over three seeds" in prose(README)


def test_the_reference_table_is_the_json() -> None:
    wanted = []
    for run in results("camvid_reference.json")["runs"]:
        height, width = run["imgsz_hw"]
        pairs = [f"{run[way][key]:.2f}" for key in ("miou", "accuracy") for way in ("bundle", "plain_torch")]
        wanted.append(f"| {width}x{height} | {' | '.join(pairs)} |")
    assert rows_below("| network input | mIoU, % | plain PyTorch | pixel accuracy, % | plain PyTorch |") == wanted


def test_the_precisions_table_is_the_json() -> None:
    rows = results("export_precisions.json")["rows"]
    assert len({row["model"] for row in rows}) == 3
    wanted = [" | ".join(precision_cells(row)) for row in rows]
    header = (
        "| network | input | precision | share, % | agreement, worst golden frame, % | fp32's mIoU, % | mIoU, % | MB "
        "| time of fp32's |"
    )
    assert rows_below(header, DEPLOYMENT) == [f"| {row} |" for row in wanted]


def precision_cells(row: dict[str, Any]) -> list[str]:
    height, width = row["imgsz_hw"]
    begin = [row["model"], f"{width}x{height}", row["precision"]]
    if not row["passed"]:
        return [*begin, "refused", *"-----"]
    share = row["arithmetic"].partition(" %")[0] if row["arithmetic"] else "100"
    mious = [f"{row[key]:.2f}" for key in ("miou_fp32", "miou")]
    time = f"{row['time_of_fp32']:.2f}" if row["time_of_fp32"] else "-"
    return [*begin, share, f"{100 * row['worst_frame_agreement']:.2f}", *mious, f"{row['size_bytes'] / 1e6:.1f}", time]


def test_the_bf16_record_s_table_is_the_json() -> None:
    record = (ROOT / "docs/decisions/0015-bf16.md").read_text(encoding="utf-8")
    header = "| network | input | way | worst golden frame, % | mIoU, % | time of fp32's |"
    rows = [row for row in results("bf16.json")["rows"] if row["way"] != "fp32 again"]
    assert [row.strip("| ") for row in rows_below(header, record)] == [" | ".join(bf16_cells(row)) for row in rows]


def bf16_cells(row: dict[str, Any]) -> list[str]:
    height, width = row["imgsz_hw"]
    begin = [row["model"], f"{width}x{height}", row["way"]]
    if "refused" in row:
        return [*begin, "refused", "-", "-"]
    time = row["time_of_fp32"]["threads_1"]["median"]
    return [*begin, f"{100 * row['worst_frame_agreement']:.2f}", f"{row['miou']:.2f}", f"{time:.2f}"]


def test_every_page_s_tables_are_the_json() -> None:
    texts = [page.read_text(encoding="utf-8") for page in pages.PAGES]
    assert [pages.rendered(text) for text in texts] == texts
    assert set(re.findall("<!-- table: (.*) -->", "".join(texts))) == pages.TABLES.keys()
    for place, draw in PICTURES.items():
        assert (ROOT / place).read_text(encoding="utf-8") == draw(), place
        assert f"]({Path(place).relative_to('docs')})" in RESULTS


def test_what_is_said_of_the_encoder_s_presets_follows_from_the_json() -> None:
    """That ultrafast is about as large and as good as superfast and plain veryfast, for less of the CPU."""
    for record in results("encoder.json")["sizes"].values():
        size, cpu_ms, psnr_db = (record[key] for key in ("bytes_per_frame", "cpu_ms_per_frame", "psnr_db"))
        assert size["ultrafast"] < 1.25 * size["veryfast, plain"] < 0.75 * size["ultrafast, plain"]
        assert size["ultrafast"] < 1.1 * size["superfast"]
        assert cpu_ms["ultrafast"] < 0.9 * cpu_ms["superfast"] < 0.75 * cpu_ms["veryfast, plain"]
        assert cpu_ms["--quality fast"] < cpu_ms["ultrafast"] < cpu_ms["--quality high"]
        assert psnr_db["ultrafast"] > max(psnr_db["superfast"], psnr_db["veryfast, plain"]) - 0.4


def test_the_gates_are_the_code_s() -> None:
    rows = [row.strip("| ").split(" | ") for row in rows_below("| precision | made for | gate, % |", DEPLOYMENT)]
    assert {precision: float(gate) for precision, _, gate in rows} == {p: 100 * g for p, g in MIN_AGREEMENT.items()}


def test_what_is_said_of_deeplab_follows_from_its_runs() -> None:
    study, text = whole(DEEPLAB), prose(RESULTS)
    assert "in every column the seeds put different arms first" in text
    for way in ("last", "label-free", "oracle"):
        of_arms = {arm: scores(study, arm, way) for arm in study["arms"]}
        assert all(sorted(by_seed) == [0, 1, 2] for by_seed in of_arms.values())
        assert len({max(of_arms, key=lambda arm: of_arms[arm][seed]) for seed in range(3)}) > 1
    assert "the baseline is above the source alone with every seed, CDGA with two of three" in text
    gains = {arm: differences(study, arm, "source_only", "label-free") for arm in ("baseline", "cdga")}
    assert [sum(gain > 0 for gain in gains[arm]) for arm in gains] == [3, 2]


def test_a_study_s_deltas_follow_from_its_runs() -> None:
    study = results(f"{DEEPLAB}.json")
    miou = {(run["arm"], run["seed"]): run for run in study["runs"]}
    for arm in ("source_only", "translation", "cdga"):
        for way in ("last", "label-free", "oracle"):
            of_seeds = [miou[arm, seed][way] - miou["baseline", seed][way] for seed in study["seeds"]]
            committed = study["summary"][arm][way]["delta"]["common11"]
            assert committed["mean"] == pytest.approx(np.mean(of_seeds))
            assert committed["sd"] == pytest.approx(np.std(of_seeds, ddof=1))


def test_what_is_said_of_the_studies_follows_from_their_json() -> None:
    day_dusk, synthetic, strong = (results(f"study_{n}.json") for n in ("day_dusk", "streets_camvid", "strong_start"))

    def errors_apart(study: Any, one: str, other: str) -> float:
        own, others = (list(scores(study, arm, "label-free").values()) for arm in (one, other))
        return float((np.mean(own) - np.mean(others)) / standard_error(own, others))

    assert errors_apart(day_dusk, "cdga", "source_only") > 2
    assert errors_apart(day_dusk, "cdga", "baseline") < 2
    assert all(gain < 0 for gain in differences(day_dusk, "cdga", "self_training", "last"))
    changed = results("statistics_day_dusk.json")["runs"]
    mean = {a: np.mean([r["with_targets"] for r in changed if r["arm"] == a]) for a in day_dusk["arms"]}
    best = max((arm for arm in mean if arm not in {"target_supervised", "self_training"}), key=lambda arm: mean[arm])
    assert best == "translation"
    assert mean["cdga"] < mean["translation"]
    arms = synthetic["arms"]
    assert all(abs(errors_apart(synthetic, a, b)) < 2 for a in arms for b in arms if a != b)
    runs = results("statistics_streets_camvid.json")["runs"]
    for arm in arms:
        change = [r["with_targets"] - r["as_trained"] for r in runs if r["arm"] == arm]
        assert abs(np.mean(change)) < np.std(change, ddof=1)
    for run in strong["runs"]:
        given, *adapted = run["checkpoints"]
        assert given["iteration"] == 0
        assert all(c["miou"]["common11"] < given["miou"]["common11"] for c in adapted)
        assert run["choice"]["iteration"] == 0


def test_what_is_said_of_given_weights_follows_from_the_json() -> None:
    runs = results("verdict.json")["runs"]
    made_from = {"day-day-dusk", "dusk-day-dusk", "strong_start"}
    assert [run["case"] for run in runs][:2] == ["day-day-dusk", "dusk-day-dusk"]
    assert all(run["is_right"] for run in runs if run["case"] in made_from)
    afterwards = [run for run in runs if run["case"] not in made_from]
    assert len(afterwards) == 4
    (wrong,) = (run for run in afterwards if not run["is_right"])
    assert not wrong["is_left"]
    assert wrong["trained_miou"] - wrong["given_miou"] < 1.5
    of_c = [run for run in runs if run["case"] == "strong_start"]
    assert len(of_c) == 3
    lost = [run["given_miou"] - run["trained_miou"] for run in of_c]
    record = (ROOT / "docs/decisions/0007-choice-without-labels.md").read_text(encoding="utf-8")
    assert f"worse by {min(lost):.1f} to {max(lost):.1f} mIoU" in prose(record)


def test_what_is_said_of_groups_follows_from_the_json() -> None:
    told: dict[float, list[float]] = {}
    for row in results("groups.json")["rounds"]:
        told.setdefault(row["grouping_lr"], []).append(row["told"])
    assert max(told[1e-3]) < 0.15
    assert min(told[0.1]) > 1.5 * max(told[1e-3])
    sharper, plain = (scores(results(f"study_streets_camvid{n}.json"), "cdga", "last") for n in ("_sharper", ""))
    assert np.mean([sharper[seed] - plain[seed] for seed in sharper]) < 0.5


def test_what_is_said_of_two_rounds_follows_from_the_json() -> None:
    study = results("study_streets_camvid_two_rounds.json")
    gains = differences(study, "cdga", "source_only", "label-free")
    assert len(gains) == 3
    assert min(gains) > 0
    own, others = (list(scores(study, arm, "label-free").values()) for arm in ("cdga", "source_only"))
    assert np.mean(gains) > 3 * standard_error(own, others)
    assert interval(gains)[0] < 0
    own, others = (list(scores(study, arm, "label-free").values()) for arm in ("cdga", "self_training"))
    assert abs(np.mean(own) - np.mean(others)) < standard_error(own, others)


def test_what_is_said_of_single_parts_follows_from_the_json() -> None:
    plain, changed = results("study_day_dusk.json"), results("study_day_dusk_changed.json")
    every = {"runs": plain["runs"] + changed["runs"]}
    best = scores(every, "cdga_no_cadv", "last")
    assert sorted(best) == [0, 1, 2]
    losses_out = [arm for arm in changed["arms"] if arm.startswith("cdga_no_") and arm != "cdga_no_cadv"]
    for arm in {*plain["arms"], *losses_out} - {"target_supervised"}:
        assert all(best[seed] > score for seed, score in scores(every, arm, "last").items()), arm
    assert min(differences(every, "cdga_k16", "baseline", "last")) > 0
    assert interval(differences(every, "cdga_k16", "cdga", "last"))[0] > 0
    with_targets = {
        (run["arm"], run["seed"]): run["with_targets"]
        for name in ("statistics_day_dusk.json", "statistics_day_dusk_changed.json")
        for run in results(name)["runs"]
    }
    for (arm, seed), miou in with_targets.items():
        assert arm in {"cdga_no_cadv", "target_supervised"} or miou < with_targets["cdga_no_cadv", seed]
    of_sixteen = [miou for (arm, _), miou in with_targets.items() if arm == "cdga_k16"]
    of_baseline = [miou for (arm, _), miou in with_targets.items() if arm == "baseline"]
    assert len(of_sixteen) == len(of_baseline) == 3
    assert np.mean(of_sixteen) < np.mean(of_baseline)
    for arm in set(changed["arms"]) - {"cdga_no_cadv", "cdga_k16"}:
        low, high = interval(differences(every, arm, "cdga", "last"))
        assert low < 0 < high, arm
    rounds = [results(f"study_streets_camvid_two_rounds{name}.json")["runs"] for name in ("", "_changed")]
    both = {"runs": rounds[0] + rounds[1]}
    for other in ("cdga", "self_training"):
        gains = differences(both, "cdga_no_cadv", other, "last")
        low, high = interval(gains)
        assert low < 0 < sum(gains)
        assert high > 0


def test_what_is_said_of_the_default_model_follows_from_the_json() -> None:
    report = results("default_model.json")
    text = prose(README)
    minutes = sum(report["trained_minutes"].values())
    assert f"It trained for {minutes:.0f} minutes on one thread of a CPU" in text
    assert len(report["trained_minutes"]) == 1
    assert report["machine"].endswith("1 threads")
    best = max(run["bundle"]["miou"] for run in results("camvid_reference.json")["runs"])
    said = f"It scores {report['camvid_val_common11']['miou']:.1f} mIoU on CamVid's validation clip (11 classes), "
    assert f"{said}where the network below, trained on Cityscapes, has {best:.1f} at its best size" in text


def test_what_chose_the_default_model_is_the_json_s() -> None:
    report = results("default_model.json")
    text = prose((ROOT / "docs/decisions/0018-default-model.md").read_text(encoding="utf-8"))
    day = report["camvid_day_train_common11"]
    twice = ("two_times_1000_streets_all", "two_times_2000_streets_all", "two_times_2000_streets_year")
    names = (*twice, "one_time_4000_streets_year", "default")
    first, second, third, longer, made = (f"{day[name]['miou']:.1f}" for name in names)
    assert max(run["miou"] for run in day.values()) == day["default"]["miou"]
    assert f"compared on CamVid's {day['default']['frames']} day frames" in text
    assert f"Two rounds of 1,000 iterations on `streets:all` score {first} mIoU there" in text
    assert f"of 2,000 iterations {second}, of 2,000 iterations on `streets:year` {third}; one round" in text
    assert f"{longer} of 4,000 iterations, {made} of 2,000. The last was taken" in text


def test_what_averaging_gives_is_the_json_s() -> None:
    runs = results("averaging.json")["runs"]
    assert [run["iterations"] for run in runs] == [1000, 1000, 2000, 4000]
    day, clip = (
        [f"{one['average']['miou'] - one['iterate']['miou']:+.1f}" for one in (run["splits"][split] for run in runs)]
        for split in ("day_train", "val")
    )
    text = prose(RESULTS)
    assert f"{day[0]} and {day[1]} mIoU on the day frames, {clip[0]} and {clip[1]} on the validation clip" in text
    assert f"it is worth {day[2]} and {day[3]}, and {clip[2]} and {clip[3]}" in text


def test_deeplab_s_settings_are_the_json_s() -> None:
    parts = [results(f"{DEEPLAB}{name}.json") for name in ("", "_seed2")]
    since = {"augment": False}  # a setting that came between the two, and is off
    assert {arm: {**since, **config} for arm, config in parts[0]["configs"].items()} == parts[1]["configs"]
    for config in parts[0]["configs"].values():
        assert (config["imgsz"], config["iters"], config["batch"], config["rounds"]) == ([184, 240], 300, 1, 1)
        assert config["model"].startswith("deeplabv2_resnet50")
    text = prose(RESULTS)
    assert "300 iterations of one 240x184 image of each domain, one round, three seeds" in text
    frames = {c["frames"] for part in parts for run in part["runs"] for c in run["checkpoints"]}
    assert f"on the {frames.pop()} dusk frames" in text
    assert not frames


def test_the_method_s_exactness_is_the_tests_and_the_benchmark_s() -> None:
    source = (ROOT / "tests/cdga_train/test_losses.py").read_text(encoding="utf-8")
    text = prose(METHOD)
    for line, said in (
        ("[(torch.float64, 1e-12), (torch.float32, 1e-6)]", "literal float64 reference: 1e-6 ("),
        ("(torch.float32, 1e-5, 1e-4)]", "1e-5 in the losses and the gradients of the logits, 1e-4 in those of C's"),
    ):
        assert source.count(line) == 1
        assert said in text
    folded = results("discriminator.json")["folded_against_explicit"]
    width, height = folded["settings"]["size_wh"]
    largest = folded["largest_relative_difference"]
    assert f"outer product at {width}x{height}, output and gradients: {largest:.1e} at most" in text


def test_the_method_s_settings_are_the_presets() -> None:
    config = PRESETS["gta5_cityscapes_cdga"]()
    weights = config.losses
    own = (weights.semantic_consistency, weights.orthogonality, weights.adversarial, weights.class_equivalence)
    assert own == (1e-3, 1e-3, 1e-3, 1e-4)
    assert "L_seg + 1e-3 L_co + 1e-3 L_orth + 1e-3 L_cadv + 1e-4 L_cl" in METHOD
    assert f"τ = {weights.tau}, K = {config.num_groups}" in METHOD
    assert f"`candidates={config.candidates}`" in METHOD
    total = config.rounds * config.iters
    assert f"two rounds are {total:,} iterations, so {total / 3600:.0f} / (iterations per second) hours" in METHOD


# --- names


def test_every_preset_is_in_its_arm_s_column() -> None:
    arms = {
        "source alone": "source_only",
        "translated by FDA": "translation",
        "baseline (BDL)": "baseline",
        "CDGA": "cdga",
    }
    families = set(FAMILIES) - {"footage", "day_dusk", "streets_camvid", "strong_start"}  # these are cdga's alone
    wanted = [" | ".join(f"`{family}_{arm}`" for arm in arms.values()) for family in families]
    assert sorted(rows_below(f"| {' | '.join(arms)} |")) == sorted(f"| {row} |" for row in wanted)
    for name in PRESETS:
        assert f"`{name}`" in README


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_are_named_exist(document: str) -> None:
    named = re.findall(r"`((?:[\w.-]+/)*\w+\.py)\b[^`]*`|`(benchmarks/results/\w+\.json)`", DOCUMENTS[document])
    assert named
    # What a bundle has as deploy/run_onnx.py is run_onnx.py of the exporter.
    folders = [ROOT, ROOT / "train/cdga_train", ROOT / "export/cdga_export"]
    for pair in named:
        name = "".join(pair).removeprefix("deploy/")
        assert any((folder / name).is_file() for folder in folders), name


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    found = re.findall(r"\]\((?!http)([^)#]+)(?:#([^)]+))?\)", DOCUMENTS[document])
    for path, heading in found:
        target = (ROOT / document).parent / path
        assert target.exists(), path
        if heading:
            titles = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, heading


@pytest.mark.parametrize("document", DOCUMENTS)
def test_extras_that_are_named_exist(document: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = ",".join(re.findall(r"[.`]\[([a-z,-]+)\]", DOCUMENTS[document]))
    assert set(filter(None, named.split(","))) <= set(extras)


def test_losses_that_are_named_exist() -> None:
    keys = {field.name for field in fields(LossWeights)}
    named = re.findall(r"\blosses\.([a-z_]+)", METHOD)
    assert len(named) > 8
    for name in named:
        assert name in keys or name in losses.__all__, name


@pytest.mark.parametrize("document", ["README.md", "train/README.md"])
def test_settings_in_the_text_are_accepted(document: str) -> None:
    words = [word for word in in_backticks(DOCUMENTS[document]) if re.match(r"[a-z_.]+=", word) and word != "key=value"]
    assert words
    for together in words:
        overrides = together.replace("=N", "=2").split()
        assert load_preset(PRESETS["gta5_cityscapes_cdga"](), overrides) is not None


# --- commands


def blocks(text: str, language: str = "") -> list[str]:
    # Every block is read, that the end of one in another language is not taken for a beginning.
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [block for of_language, block in found if of_language == language]


def in_backticks(text: str) -> list[str]:
    without_blocks = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [prose(found) for found in re.findall(r"`([^`]+)`", without_blocks)]


def words_of(line: str) -> list[str]:
    return [word for word in shlex.split(line, comments=True) if word != "..."]


def command_lines(text: str) -> list[str]:
    lines = [line for block in blocks(text) for line in block.replace("\\\n", "").splitlines()]
    return [line for line in lines if re.match(r"(cdga|torchrun|docker run) ", line)]


def parsed(words: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """A command's name and parameters, as the command line parses them; nothing is run."""
    command: Any = typer.main.get_command(app)
    for depth, word in enumerate(words):
        command = command.commands[word]
        if not hasattr(command, "commands"):
            return word, command.make_context(word, list(words[depth + 1 :])).params
    raise KeyError(" ".join(words))


def cdga_words(line: str) -> list[str]:
    """The words behind ``cdga``, whatever starts it."""
    program, *words = words_of(line)
    if program == "cdga":
        return words
    if program == "docker":
        (image,) = [word for word in words if word.startswith("cdga:")]
        return words[words.index(image) + 1 :]
    options = get_args_parser().parse_args(words)
    assert options.module
    assert options.training_script == "cdga_sdk"
    return list(options.training_script_args)


def refuse_unknown_settings(words: Sequence[str]) -> None:
    """Refuse what the parser lets through: presets, arms, seeds, keys and class sets."""
    name, given = parsed(words)
    flags = [f"{key}={given[key]}" for key in ("source", "target", "iters", "seed", "device") if given.get(key)]
    match name:
        case "train" if given["words"]:
            load_preset(PRESETS[given["words"][0]](), [*given["words"][1:], *flags])
        case "study":
            family, overrides = parse_family([*given["words"], *flags])
            for arm in parse_arms(given["arms"]):
                study_config(family, arm, parse_seeds(given["seeds"])[0], overrides)
        case "evaluate":
            class_set(given["classes"])


@pytest.mark.parametrize("line", [line for text in DOCUMENTS.values() for line in command_lines(text)])
def test_commands_parse_and_name_what_there_is(line: str) -> None:
    refuse_unknown_settings(cdga_words(line))


@pytest.mark.parametrize(
    "line",
    [
        "cdga trane streets_cdga",
        "cdga train streets_cgda",
        "cdga train streets_cdga --iterations 5",
        "cdga train streets_cdga itres=5",
        "cdga study streets --arms source_onyl",
        "cdga study street",
        "cdga segment",
        "cdga evaluate a.cdga --data camvid:PATH --classes common12",
        "cdga data chek gta5:PATH",
        "torchrun --nproc-per-nod 4 -m cdga_sdk train streets_cdga --sauce x",
        "torchrun --nproc-per-processor 4 -m cdga_sdk train streets_cdga",
        "torchrun --nproc-per-node 4 cdga_sdk train streets_cdga",
        "docker run --rm cdga:cpu segment ride.mp4 --modell city.cdga",
        "docker run --rm ubuntu segment ride.mp4 --model city.cdga",
    ],
)
def test_the_check_of_commands_can_fail(line: str) -> None:
    with pytest.raises((TyperException, CdgaError, KeyError, SystemExit, AssertionError, ValueError)):
        refuse_unknown_settings(cdga_words(line))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_in_the_text_have_their_options(document: str) -> None:
    commands: Any = typer.main.get_command(app)
    found = [text for text in in_backticks(DOCUMENTS[document]) if text.startswith("cdga ")]
    assert found
    for text in found:
        command = commands
        for word in text.split()[1:]:
            command = command.commands[word] if hasattr(command, "commands") else command
        known = {option for parameter in command.params for option in parameter.opts}
        assert set(re.findall(r"(?<= )--?[a-z][a-z-]*", text)) <= known, text


def test_torchrun_in_the_method_s_text() -> None:
    (torchrun,) = [text for text in in_backticks(METHOD) if text.startswith("torchrun ")]
    refuse_unknown_settings(cdga_words(torchrun))


@pytest.mark.parametrize("document", ["train/README.md", "export/README.md"])
def test_benchmarks_in_the_text_have_their_options(document: str) -> None:
    found = [text for text in in_backticks(DOCUMENTS[document]) if text.startswith("python -m benchmarks.")]
    assert found
    for text in found:
        _, _, module, *words = words_of(text)
        assert flags_of(importlib.import_module(module).main) >= {w for w in words if w.startswith("--")}


def flags_of(main: Callable[..., object]) -> set[str]:
    """The options that a benchmark's ``main`` asks argparse for."""
    file = sys.modules[main.__module__].__file__
    assert file is not None
    return set(re.findall(r'add_argument\(\s*"(--[a-z-]+)"', Path(file).read_text(encoding="utf-8")))


def test_trtexec_is_called_as_the_bundles_say() -> None:
    (command,) = [block for block in blocks(DEPLOYMENT) if block.startswith("trtexec ")]
    assert command == trtexec_command("model.fp16.onnx", "model.plan", (704, 960), (1, 4, 8)) + "\n"


def test_images_that_are_named_exist() -> None:
    builds = re.findall(r"^docker build -f (\S+) -t cdga:(\w+) \.$", README, flags=re.MULTILINE)
    assert builds
    for file, tag in builds:
        assert file == f"docker/{tag}.Dockerfile"
        assert (ROOT / file).is_file()
    assert {tag for line in command_lines(README) for tag in re.findall(r" cdga:(\w+) ", line)} == {"cpu", "gpu"}


# --- code


def test_the_code_runs(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rate = Fraction(25)
    frames = [
        np.ascontiguousarray(f.image_rgb[:, :, ::-1]) for f in render_clip(seed=5, num_frames=3, size_wh=(96, 64))
    ]
    with VideoSink(tmp_path / "ride.mp4", size_wh=(96, 64), rate=rate, time_base=1 / rate) as sink:
        for index, frame in enumerate(frames):
            sink.write(frame, index)
    shutil.copytree(tiny_bundle, tmp_path / "city.cdga")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"image_bgr": frames[0]}
    for code in blocks(README, "python"):
        exec(compile(code, "README.md", "exec"), names)
    assert names["result"].mask.shape == (64, 96)
    assert names["result"].confidence.dtype == np.uint8
    assert 0 <= names["free"] <= 1
    assert np.array_equal(names["frame"].label_HW, names["result"].mask)
    assert names["frame"].time_s == names["result"].time_s == 2 / 25
    assert not blocks(METHOD, "python")


def test_triton_s_model_repository_is_made_as_it_is_told(tiny_bundle: Path, tmp_path: Path) -> None:
    (script,) = blocks(DEPLOYMENT, "sh")
    copying, found, serving = script.partition("docker run ")
    assert found
    assert "-e NVIDIA_TF32_OVERRIDE=0" in serving
    shutil.copytree(tiny_bundle, tmp_path / "mine.cdga")
    subprocess.run(["bash", "-euc", copying], cwd=tmp_path, check=True)
    config = tmp_path / "models/efficientvit_b0/config.pbtxt"
    bundle = Bundle.open(tiny_bundle)
    assert config.read_text(encoding="utf-8") == deployment_texts(bundle.manifest)["deploy/triton/config.pbtxt"]
    assert 'name: "efficientvit_b0"' in config.read_text(encoding="utf-8").splitlines()
    assert (tmp_path / "models/efficientvit_b0/1/model.onnx").read_bytes() == bundle.model_bytes


def test_deepstream_s_file_names_the_graph_s_tensors() -> None:
    (config,) = blocks(DEPLOYMENT, "protobuf")
    assert re.findall(r'tensor_name: "(\w+)"', config) == ["frame"]
    assert re.findall(r'outputs \[ \{ name: "(\w+)" \}, \{ name: "(\w+)" \} \]', config) == [("mask", "conf")]
    assert 'model_name: "efficientvit_b0"' in config
