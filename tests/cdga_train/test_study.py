"""``cdga study``: its arithmetic by hand, its runs resumed in every state, and every way to be refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cdga_sdk.cli import run
from cdga_sdk.errors import UsageError
from cdga_sdk.image import write_png
from cdga_sdk.labels import CLASS_SETS
from cdga_train.checkpoint import load_checkpoint
from cdga_train.config import TrainConfig
from cdga_train.data.spec import open_unlabelled
from cdga_train.evaluate_run import run_evaluate
from cdga_train.presets import PRESETS
from cdga_train.rounds import locked
from cdga_train.selection import choose, find_candidates, score_candidates
from cdga_train.study import CheckpointScores, Choice, RunResult, Spread, Study, parse_family, study_config
from cdga_train.study_table import as_html, as_markdown, as_record
from tests.published_layouts import frames, make_cityscapes

QUICK = ["imgsz=64,64", "align_resolution=input", "num_groups=2", "batch=1", "candidates=2", "log_every=1"]
SHORT = [*QUICK, "iters=4", "save_every=2"]
ARMS = ["--arms", "source_only,cdga"]


def study(project: Path, dusk: str, *words: str) -> int:
    data = f"score.data={dusk}"
    runs = [*ARMS, "--seeds", "0,1", "--project", str(project), "--quiet"]
    return run(["study", "streets", *SHORT, data, *runs, *words])


def record_of(project: Path, name: str = "streets") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((project / name / "study.json").read_text(encoding="utf-8"))
    return content


def weights(folder: Path) -> dict[str, str]:
    """Each run's last state; not the file's bytes, for safetensors orders its header by chance."""
    states = {p.parent.name: load_checkpoint(p).tensors for p in sorted(folder.glob("*/last.safetensors"))}
    return {
        run: hashlib.sha256(b"".join(state[k].numpy().tobytes() for k in sorted(state))).hexdigest()
        for run, state in states.items()
    }


@pytest.fixture(scope="module")
def dusk(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Five labelled frames to score on: the procedural world's own hundred are drawn anew for every checkpoint."""
    return f"cityscapes:{make_cityscapes(tmp_path_factory.mktemp('dusk'), {'val': 5}, (64, 64))}"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, dusk: str) -> Path:
    """The project of a study of two arms and two seeds; read only."""
    project = tmp_path_factory.mktemp("studies")
    assert study(project, dusk) == 0
    return project


@pytest.fixture
def project(made: Path, tmp_path: Path) -> Path:
    """A copy of `made` to spoil."""
    shutil.copytree(made, tmp_path / "studies")
    return tmp_path / "studies"


# --- arithmetic


def checkpoint(iteration: int, miou: float | None, **iou: float | None) -> CheckpointScores:
    return CheckpointScores(
        file=f"{iteration:06d}.safetensors",
        sha256="0",
        iteration=iteration,
        frames=1,
        accuracy=50.0,
        miou={"13": miou},
        iou=dict(iou),
    )


def result(arm: str, seed: int, chosen: int, *checkpoints: CheckpointScores) -> RunResult:
    choice = Choice(iteration=chosen, infomax=0.25 * (seed + 1), mirror_agreement=0.5)
    return RunResult(arm=arm, seed=seed, choice=choice, checkpoints=checkpoints)


def by_hand(**changes: Any) -> Study:
    """Baseline 10, 20, 30 at the end; cdga 13, 21, 38: 3, 1 and 8 more."""
    results = (
        *(
            result("baseline", s, 2, checkpoint(1, 40, road=1), checkpoint(2, v, road=8))
            for s, v in enumerate((10, 20))
        ),
        result("baseline", 2, 2, checkpoint(1, 5, road=1), checkpoint(2, 30, road=8)),
        *(
            result("cdga", s, 1, checkpoint(1, v - 3, road=r, car=None), checkpoint(2, v, road=9, car=None))
            for s, (v, r) in enumerate(((13, 2), (21, None), (38, 6)))
        ),
    )
    study = Study(
        family="streets",
        command="cdga study streets '<b>|&'",
        arms=("baseline", "cdga"),
        seeds=(0, 1, 2),
        classes="13",
        scored_on="nothing real",
        results=results,
        failures={},
        facts={"date": "today", "packages": {"torch": "1"}},
    )
    return replace(study, **changes)


def test_mean_and_deviation_over_seeds() -> None:
    spread = by_hand().miou("cdga", "last", "13")
    assert spread is not None
    assert spread.mean == pytest.approx(24)
    assert spread.sd == pytest.approx(((11**2 + 3**2 + 14**2) / 2) ** 0.5)
    assert spread.count == 3
    assert Spread.of([7.0, None]) == Spread(mean=7.0, sd=None, count=1)
    assert Spread.of([None]) is None


def test_deltas_are_taken_seed_by_seed() -> None:
    delta = by_hand().delta("cdga", "last", "13")
    assert delta is not None
    assert delta.mean == pytest.approx(4)
    assert delta.count == 3
    assert delta.sd == pytest.approx(((1 + 3**2 + 4**2) / 2) ** 0.5)
    assert by_hand().delta("baseline", "last", "13") is None


def test_a_seed_that_one_arm_lacks_is_in_no_delta() -> None:
    whole = by_hand()
    part = replace(whole, results=tuple(r for r in whole.results if (r.arm, r.seed) != ("baseline", 2)))
    delta = part.delta("cdga", "last", "13")
    assert delta is not None
    assert delta.mean == pytest.approx(2)
    assert delta.count == 2
    assert part.miou("cdga", "last", "13") == whole.miou("cdga", "last", "13")


def test_three_ways_to_pick_a_checkpoint() -> None:
    run_of_cdga = result("cdga", 0, 2, checkpoint(1, 9), checkpoint(2, 5), checkpoint(3, 7))
    assert {s: run_of_cdga.miou(s, "13") for s in ("last", "label-free", "oracle")} == {
        "last": 7,
        "label-free": 5,
        "oracle": 9,
    }
    assert run_of_cdga.miou("last", "16") is None
    nothing_known = result("cdga", 0, 1, checkpoint(1, None), checkpoint(2, 1))
    assert nothing_known.miou("oracle", "13") == 1
    assert nothing_known.miou("label-free", "13") is None


def test_the_reference_is_the_baseline_else_source_only_else_none() -> None:
    assert by_hand().reference == "baseline"
    assert by_hand(arms=("cdga", "source_only")).reference == "source_only"
    assert by_hand(arms=("cdga", "translation")).reference is None
    assert by_hand(arms=("cdga", "translation")).delta("cdga", "last", "13") is None


def test_the_tables_by_hand() -> None:
    lines = as_markdown(by_hand()).splitlines()
    assert lines[0] == "# Study of streets: 6 of 6 runs"
    assert "| arm | seeds | last | Δ last | label-free | Δ label-free | oracle |" in lines
    assert "| baseline | 3 | 20.0 ± 10.0 | - | 20.0 ± 10.0 | - | 36.7 ± 5.8 |" in lines
    assert "| cdga | 3 | 24.0 ± 12.8 | +4.0 ± 3.6 | 21.0 ± 12.8 | +1.0 ± 3.6 | 24.0 ± 12.8 |" in lines
    assert "| baseline, last | 8.0 |" in lines
    assert "| cdga, label-free | 4.0 |" in [line.replace(" - |", "") for line in lines]


def test_json_holds_every_number() -> None:
    record = json.loads(json.dumps(as_record(by_hand()), allow_nan=False))
    assert record["summary"]["cdga"]["last"]["delta"]["13"]["mean"] == pytest.approx(4)
    assert record["summary"]["cdga"]["oracle"]["miou"]["13"]["mean"] == pytest.approx(24)
    assert record["summary"]["cdga"]["label-free"]["iou"]["road"] == {"mean": 4.0, "sd": 8**0.5, "count": 2}
    assert record["runs"][0]["checkpoints"][0]["miou"] == {"13": 40}
    assert (record["runs"][0]["last"], record["runs"][0]["oracle"]) == (10, 40)
    assert (record["deltas_against"], record["packages"]) == ("baseline", {"torch": "1"})


def test_the_page_escapes_and_needs_nothing_else() -> None:
    page = as_html(by_hand(failures={"cdga-seed1": "<script>"}))
    assert "cdga study streets &#x27;&lt;b&gt;|&amp;&#x27;" in page
    assert "<script" not in page
    assert "http" not in page
    assert "<td>+4.0 ± 3.6</td>" in page


def test_a_place_that_is_no_text_can_be_written() -> None:
    study = replace(by_hand(), command="cdga study streets --project 'a\udcff\nb'", scored_on="folder:\udcff val")
    for text in (as_markdown(study), as_html(study)):
        assert b"cdga study streets --project" in text.encode()


# --- configurations


def test_arms_are_made_after_the_overrides() -> None:
    words = ("rounds=2", "num_groups=3", "losses.tau=0.1")
    floor, k4, cdga = (study_config("streets", arm, 5, words) for arm in ("source_only", "cdga_k4", "cdga"))
    assert (floor.rounds, floor.arm, floor.translate, floor.seed) == (1, "source_only", "none", 5)
    assert (k4.num_groups, k4.rounds, cdga.num_groups) == (4, 2, 3)
    assert floor.losses.tau == k4.losses.tau == 0.1


@pytest.mark.parametrize(
    ("words", "data"),
    [
        ((), "cityscapes:data/cityscapes"),
        (("target=cityscapes:mine",), "cityscapes:mine"),
        (("target=cityscapes:mine", "score.data=cityscapes:other"), "cityscapes:other"),
        (("target=video:ride.mp4",), None),
        (("target=video:ride.mp4", "score.data=camvid:x"), "camvid:x"),
        (("source=gta5:mine",), "cityscapes:data/cityscapes"),
    ],
)
def test_scores_follow_the_target(words: tuple[str, ...], data: str | None) -> None:
    assert study_config("gta5_cityscapes", "cdga", 0, words).score.data == data


def test_a_family_or_its_cdga_preset() -> None:
    assert parse_family(["camvid_day_dusk", "iters=3"]) == parse_family(["iters=3", "camvid_day_dusk_cdga"])
    with pytest.raises(UsageError, match=r"'camvid_day_dawn'; did you mean 'camvid_day_dusk'"):
        parse_family(["camvid_day_dawn"])


# --- whole studies


def test_a_study_from_end_to_end(dusk: str, made: Path) -> None:
    folder = made / "streets"
    runs = ["cdga-seed0", "cdga-seed1", "source_only-seed0", "source_only-seed1"]
    assert sorted(p.name for p in folder.iterdir()) == [".lock", *runs, "study.html", "study.json", "study.md"]
    record = record_of(made)
    assert sorted(f"{r['arm']}-seed{r['seed']}" for r in record["runs"]) == runs
    assert all([c["iteration"] for c in r["checkpoints"]] == [2, 4] for r in record["runs"])
    assert all(set(c["miou"]) == {"19", "16", "13"} for r in record["runs"] for c in r["checkpoints"])
    assert record["configs"]["source_only"]["arm"] == "source_only"
    assert record["deltas_against"] == "source_only"
    assert torch.__version__.startswith(record["packages"]["torch"])
    assert record["command"].startswith("cdga study streets --arms source_only,cdga --seeds 0,1 --project ")
    assert all(word in record["command"] for word in SHORT)
    text = (folder / "study.md").read_text(encoding="utf-8")
    assert "4 of 4 runs" in text
    assert f"Scored on {dusk} val, 5 frames, deployed protocol." in text


def test_scores_are_those_of_evaluate(dusk: str, made: Path) -> None:
    (of_seed1,) = [r for r in record_of(made)["runs"] if (r["arm"], r["seed"]) == ("cdga", 1)]
    last = made / "streets/cdga-seed1/last.safetensors"
    for name in ("19", "13"):
        scores, _ = run_evaluate(last, dusk, "val", CLASS_SETS[name], backend="auto", device="cpu", quiet=True)
        assert of_seed1["checkpoints"][-1]["miou"][name] == pytest.approx(scores.miou)
        if name == "19":
            wanted = {k: None if v != v else pytest.approx(v) for k, v in scores.iou.items()}
            assert of_seed1["checkpoints"][-1]["iou"] == wanted


@pytest.mark.parametrize("arm", ["source_only", "cdga"])
def test_all_arms_are_chosen_by_one_rule_on_the_same_images(made: Path, arm: str) -> None:
    folder = made / "streets" / f"{arm}-seed0"
    assert (folder / "selection.json").is_file() == (arm == "cdga")
    target = open_unlabelled("streets:dusk", "train", (64, 64))
    scores = score_candidates(find_candidates(folder), target, device=torch.device("cpu"), max_images=32)
    chosen = choose(scores)
    (found,) = [r["choice"] for r in record_of(made)["runs"] if (r["arm"], r["seed"]) == (arm, 0)]
    assert found["iteration"] == chosen.iteration
    assert found["infomax"] == pytest.approx(chosen.infomax)
    assert found["mirror_agreement"] == pytest.approx(chosen.mirror_agreement)


def test_only_what_is_missing_is_trained_again(dusk: str, project: Path) -> None:
    folder = project / "streets"
    before, record = weights(folder), record_of(project)
    written = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and p.suffix not in {".md", ".html"}}
    shutil.rmtree(folder / "cdga-seed1")
    assert study(project, dusk) == 0
    assert weights(folder) == before  # on a CPU a run is the same bit for bit
    kept = [p for p in written if p.name not in {"study.json", ".lock"} and "cdga-seed1" not in p.parts]
    assert {p: p.stat().st_mtime_ns for p in kept} == {p: written[p] for p in kept}
    assert record_of(project)["summary"] == record["summary"]


def test_a_run_that_was_killed_half_way_goes_on(dusk: str, project: Path) -> None:
    folder = project / "streets"
    before = weights(folder)
    killed = folder / "cdga-seed0"
    for name in ("last.safetensors", "checkpoints/000004.safetensors", "selection.json", "scores.json"):
        (killed / name).unlink()
    assert study(project, dusk) == 0
    assert weights(folder) == before
    lines = [json.loads(line) for line in (killed / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1, 2, 3, 4]
    assert json.loads((killed / "selection.json").read_text())["iteration"] in {2, 4}


def test_scores_are_kept_by_the_checkpoint_s_bytes(dusk: str, project: Path) -> None:
    file = project / "streets/cdga-seed0/scores.json"
    kept = json.loads(file.read_text())
    for scores in kept["checkpoints"].values():
        scores["miou"]["19"] = 77.0
    file.write_text(json.dumps(kept))
    assert study(project, dusk) == 0
    (found,) = [r for r in record_of(project)["runs"] if (r["arm"], r["seed"]) == ("cdga", 0)]
    assert found["last"] == 77.0
    assert study(project, dusk, "score.protocol=published") == 0  # other scores, the same runs
    (found,) = [r for r in record_of(project)["runs"] if (r["arm"], r["seed"]) == ("cdga", 0)]
    assert found["last"] < 77.0


def test_a_run_s_pace_is_its_log_s(dusk: str, project: Path) -> None:
    line = '{"iteration": %d, "it_per_s": %s, "data_wait_share": %s}\n'
    whole = [line % (1, 4, 0.25), line % (3, 0.5, 0.125), line % (4, 2, 0)]  # 1/4 s, 2/0.5 s and 1/2 s
    of_all = {"trained_s": 4.75, "largest_data_wait_share": 0.25}
    cases = {
        "".join(whole): of_all,
        "".join(whole[:2]): None,
        "".join([*whole[:1], "{\n", *whole[2:]]): None,
        "".join([line % (1, "null", 0.25), *whole[1:]]): None,
        "".join([line % (1, 4, "null"), *whole[1:]]): None,
        "": None,
    }
    for text, wanted in cases.items():
        (project / "streets/cdga-seed0/metrics.jsonl").write_text(text)
        assert study(project, dusk) == 0
        paces = {(r["arm"], r["seed"]): r["pace"] for r in record_of(project)["runs"]}
        assert paces.pop(("cdga", 0)) == wanted
        assert all(p["trained_s"] > 0 and 0 <= p["largest_data_wait_share"] < 1 for p in paces.values())


def test_damaged_scores_are_made_anew(dusk: str, project: Path) -> None:
    before = record_of(project)["summary"]
    (project / "streets/cdga-seed0/scores.json").write_text("{")
    assert study(project, dusk) == 0
    assert record_of(project)["summary"] == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["losses.tau=0.1"], "holds a run with another losses: "),
        (["iters=5"], "holds a run with another iters: 4 there, 5 here"),
        (["candidates=3"], "another candidates"),
    ],
)
def test_a_folder_with_another_configuration_is_refused(
    dusk: str, made: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = weights(made / "streets")
    assert study(made, dusk, *words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "source_only-seed0" in error
    assert "choose another --name" in error
    assert weights(made / "streets") == before


def test_a_study_may_grow_but_not_shrink(dusk: str, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (project / "streets" / "study.json").read_bytes()
    capsys.readouterr()
    assert study(project, dusk, "--arms", "source_only") == 2
    assert study(project, dusk, "--seeds", "0") == 2
    assert "name those too, or choose another --name" in capsys.readouterr().err
    assert (project / "streets" / "study.json").read_bytes() == before


def test_scores_on_other_data_leave_those_that_were(dusk: str, project: Path) -> None:
    file = project / "streets/cdga-seed0/scores.json"
    before = json.loads(file.read_text())["checkpoints"]
    assert study(project, dusk, "score.classes=common11") == 0
    after = json.loads(file.read_text())["checkpoints"]
    assert len(after) == 2 * len(before)
    assert {key: after[key] for key in before} == before


def test_the_machine_s_settings_may_change(dusk: str, project: Path) -> None:
    before = weights(project / "streets")
    assert study(project, dusk, "workers=1", "log_every=2", "--device", "cpu") == 0
    assert weights(project / "streets") == before


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "got no family of presets; name one of streets, "),
        (["streets", "footage"], 2, "got more than one family: streets and footage"),
        (["street"], 2, "unknown family of presets 'street'; did you mean 'streets'?"),
        (["streets", "--arms", "cdga_nocl"], 2, "unknown arm 'cdga_nocl'; did you mean 'cdga_no_cl'?"),
        (["streets", "--arms", "zzz"], 2, "unknown arm 'zzz'; use one of source_only, "),
        (["streets", "--arms", ","], 2, "--arms: names nothing"),
        (["streets", "--arms", "cdga,cdga"], 2, "names cdga twice"),
        (["streets", "--seeds", "0,a"], 2, "'a' is not a seed"),
        (["streets", "--seeds", "-1"], 2, "'-1' is not a seed"),
        (["streets", "--seeds", "1" * 5000], 2, "is not a seed"),
        (["streets", "--seeds", "²"], 2, "'²' is not a seed"),
        (["streets", "--seeds", ""], 2, "--seeds: names nothing"),
        (["streets", "--seeds", "1,0,1"], 2, "names 1 twice"),
        (["streets", "--seeds", str(2**32)], 2, "seed: got 4294967296"),
        (["streets", "seed=3"], 2, "seed: a study sets seed itself; use --seeds"),
        (["streets", "arm=cdga"], 2, "arm: a study sets arm itself; use --arms"),
        (["streets", "itres=3"], 2, "did you mean 'iters'?"),
        (["streets", "score.classes=12"], 2, "unknown class set '12'"),
        (["streets", "score.data=camvid:absent"], 3, "absent"),
        (["streets", "--target", "camvid:absent"], 3, "absent"),
        (["streets", "--device", "gpu"], 2, "unknown device 'gpu'"),
        (["streets", "--name", "a/b"], 2, "'a/b' is not a plain folder name"),
        (["footage"], 2, "needs a target"),
        (["gta5_cityscapes"], 3, "IMAGENET1K_V1"),
        (["streets", "weights=absent.pt"], 3, "absent.pt: no such weights"),
    ],
)
def test_command_lines_that_are_refused(
    tmp_path: Path,
    words: list[str],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["study", *words, *SHORT, "--quiet"]) == code
    out = capsys.readouterr()
    assert out.out == ""
    assert message in out.err
    assert out.err.startswith("error[E-")
    assert out.err.count("\n") == 1
    assert not list(tmp_path.rglob("*.json"))


def test_several_processes_are_refused(
    dusk: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert study(tmp_path, dusk) == 2
    assert "a study trains in one process" in capsys.readouterr().err


def test_a_run_refused_before_its_first_iteration_keeps_nobody_out(
    dusk: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert study(tmp_path, dusk, "model=deeplabv2_resnet50", "imgsz=60,64", "--seeds", "0") == 2
    assert "multiples of 8" in capsys.readouterr().err
    assert study(tmp_path, dusk, "iters=1", "candidates=1", "--arms", "source_only", "--seeds", "0") == 0


def test_one_kept_checkpoint_leaves_nothing_to_choose(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["study", "streets", *QUICK, "iters=1", "candidates=0", "--arms", "cdga", "--seeds", "0"]
    assert run([*words, "--project", str(tmp_path)]) == 0
    (found,) = record_of(tmp_path)["runs"]
    assert found["choice"] is None
    assert (found["label-free"], found["last"]) == (None, found["oracle"])
    out = capsys.readouterr()
    assert out.out == ""
    assert "mIoU over 19 classes" in out.err
    assert "Scored on streets:dusk val, 100 frames, deployed protocol." in out.err
    assert str(tmp_path / "streets/study.html") in out.err


def test_without_labels_there_is_a_table_all_the_same(tmp_path: Path) -> None:
    for number, (image, _) in enumerate(frames(3, (96, 96), domain="dusk")):
        write_png(tmp_path / f"mine/images/{number}.png", image)
    words = ["study", "footage", *QUICK, "iters=2", *ARMS, "--seeds", "0", "--target", f"folder:{tmp_path / 'mine'}"]
    assert run([*words, "--project", str(tmp_path / "studies"), "--quiet"]) == 0
    record = record_of(tmp_path / "studies", "footage")
    assert [r["checkpoints"] for r in record["runs"]] == [[], []]
    assert all(0 <= r["choice"]["infomax"] <= 1 for r in record["runs"])
    text = (tmp_path / "studies/footage/study.md").read_text(encoding="utf-8")
    assert "| arm | seeds | chosen iteration | infomax | mirror agreement |" in text
    assert "mIoU" not in text
    assert "no labels to score on" in text


def test_a_run_that_diverges_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "study",
        "streets",
        *QUICK,
        "iters=20",
        "candidates=1",
        "--arms",
        "source_only,translation",
        "--seeds",
        "0",
    ]
    assert run([*words, "optim.lr=1e30", "--project", str(tmp_path), "--quiet"]) == 4
    assert "2 of 2 runs could not be finished: source_only-seed0, translation-seed0" in capsys.readouterr().err
    text = (tmp_path / "streets/study.md").read_text(encoding="utf-8")
    assert "0 of 2 runs" in text
    assert "source_only-seed0 could not be finished: " in text
    assert "| source_only | 0 | - | - | - | - | - |" in text


def test_stopped_by_a_signal(tmp_path: Path) -> None:
    words = ["study", "streets", *QUICK, "iters=100000", "--arms", "source_only", "--seeds", "0", "--project", "p"]
    process = subprocess.Popen(
        [sys.executable, "-m", "cdga_sdk", *words],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    log = tmp_path / "p/streets/source_only-seed0/metrics.jsonl"
    for _ in range(600):
        if log.is_file() and log.stat().st_size:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "checkpoint written; the same command goes on from here" in error
    assert (log.parent / "last.safetensors").is_file()


def test_presets_of_a_study_are_the_presets() -> None:
    for arm in ("source_only", "translation", "baseline", "cdga"):
        config: TrainConfig = study_config("streets", arm, 0, ())
        assert config == PRESETS[f"streets_{arm}"]()


def test_a_state_without_a_line_of_log_is_still_a_run(
    dusk: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = project / "streets/source_only-seed0/metrics.jsonl"
    log.write_text("")
    assert study(project, dusk, "optim.lr=0.5") == 2
    assert "holds a run with another optim" in capsys.readouterr().err


def test_two_studies_in_one_folder_are_refused(dusk: str, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with locked(project / "streets"):
        assert study(project, dusk) == 2
    assert "another process trains in this folder" in capsys.readouterr().err
