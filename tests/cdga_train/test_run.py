"""``cdga train``: from words to a run's folder, and every way to be refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import filelock
import pytest

from cdga_sdk.cli import run
from cdga_train.checkpoint import load_checkpoint
from cdga_train.config import TrainConfig, config_from_dict

QUICK = ["imgsz=64,64", "batch=1", "num_groups=2", "align_resolution=input", "log_every=1", "--iters", "1", "--quiet"]


def train(project: Path, *words: str) -> int:
    return run(["train", *words, *QUICK, "--project", str(project)])


def test_a_run_and_its_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["streets_source_only", *QUICK[:-1], "--project", str(tmp_path), "--seed", "4", "--device", "cpu"]
    assert run(["train", *words]) == 0
    folder = tmp_path / "streets_source_only"
    assert sorted(p.name for p in folder.iterdir() if p.name != ".lock") == [
        "checkpoints", "last.safetensors", "metrics.jsonl", "run.json"
    ]  # fmt: skip
    manifest = json.loads((folder / "run.json").read_text())
    assert config_from_dict(manifest["config"]) == load_checkpoint(folder).config
    assert (manifest["config"]["seed"], manifest["config"]["iters"], manifest["config"]["arm"]) == (4, 1, "source_only")
    assert "torch" in manifest["packages"]
    assert manifest["started"].endswith("+00:00")
    out = capsys.readouterr()
    assert out.out == ""
    assert f"1 iteration of source_only · {folder / 'last.safetensors'}" in out.err


def test_runs_are_numbered_and_named(tmp_path: Path) -> None:
    for _ in range(2):
        assert train(tmp_path, "streets_source_only") == 0
    assert train(tmp_path, "streets_source_only", "--name", "mine") == 0
    assert {p.name for p in tmp_path.iterdir()} == {"streets_source_only", "streets_source_only2", "mine"}


def test_flags_come_last(tmp_path: Path) -> None:
    flags = ["--arm", "source_only", "--source", "streets:dusk", "--target", "streets:rain"]
    assert train(tmp_path, "streets_baseline", "arm=cdga", "source=streets:day", "iters=7", *flags, "--name", "x") == 0
    config = load_checkpoint(tmp_path / "x").config
    assert (config.arm, config.source, config.target) == ("source_only", "streets:dusk", "streets:rain")
    assert (config.translate, config.iters) == ("fda", 1)


def test_a_target_that_is_not_looked_at_need_not_be_there(tmp_path: Path) -> None:
    assert train(tmp_path, "streets_source_only", "--target", "camvid:absent") == 0
    assert train(tmp_path, "streets_source_only", "--target", "absent") == 2


def test_without_a_preset_it_is_streets_cdga(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", *QUICK[:-1], "--project", str(tmp_path)]) == 0
    assert load_checkpoint(tmp_path / "streets_cdga").config.arm == "cdga"
    assert "no preset named: training streets_cdga, 1 iteration of cdga" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "streets_cgda"], "did you mean 'streets_cdga'?"),
        (["train", "imgsz=64"], "wanted H,W"),
        (["train", "--source", "streets:"], "write one of streets:day, "),
        (["train", "--source", "streets:dya"], "did you mean 'day'?"),
        (["train", "source_split=trian"], "did you mean 'train'?"),
        (["train", "--source", "folder:absent"], "absent: no such folder"),
        (["train", "--target", "video:absent.mp4"], "absent.mp4: there is no such file"),
        (["train", "--name", ""], "'' is not a plain folder name"),
        (["train", "--resume", "nope"], "no such run"),
        (["train", "--resume", ""], "--resume: is an empty text"),
        (
            ["train", "--resume", "nope", "streets_cdga"],
            "--resume: a run that goes on has its preset, got 'streets_cdga'",
        ),
        (["train", "--resume", "nope", "--name", "x"], "--name: a run that goes on keeps its name"),
        (["study"], "got no family of presets"),
        (["study", "foo"], "unknown family of presets 'foo'"),
        (["study", "streets", "--seeds", "a"], "'a' is not a seed"),
        (["study", "streets", "itres=3"], "did you mean 'iters'?"),
        (["study", "streets", "--name", ""], "'' is not a plain folder name"),
        (["study", "streets", "--source", "streets:dya"], "did you mean 'day'?"),
        (["report", "nope"], "no run.json in this folder"),
    ],
)
def test_mistakes_are_told_before_torch_is_loaded(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in {"torch", "cdga_train"}]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)  # what an import of it would find
    assert run(words) in {2, 3}
    assert message in capsys.readouterr().err


def test_a_file_names_the_run(tmp_path: Path) -> None:
    file = tmp_path / "night.yaml"
    file.write_text("arm: source_only\nsource: streets:dusk\nlosses: {tau: 0.25}\n")
    assert train(tmp_path, str(file)) == 0
    config = load_checkpoint(tmp_path / "night").config
    assert (config.source, config.losses.tau, config.batch) == ("streets:dusk", 0.25, 1)
    assert config.optim == TrainConfig().optim


def test_resume_goes_on_and_leaves_what_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, "streets_source_only", "--name", "x") == 0
    resume = ["train", "--resume", str(tmp_path / "x"), "--quiet"]
    before = (tmp_path / "x" / "last.safetensors").read_bytes()
    assert run(resume[:-1]) == 0
    assert "nothing to do: iteration 1 of 1 is done · " in capsys.readouterr().err
    assert run(resume) == 0
    assert capsys.readouterr().err == ""
    assert (tmp_path / "x" / "last.safetensors").read_bytes() == before
    assert run([*resume, "iters=2"]) == 0
    assert run(["train", "--resume", str(tmp_path / "x" / "last.safetensors"), "--iters", "3", "--quiet"]) == 0
    assert load_checkpoint(tmp_path / "x").iteration == 3
    assert len((tmp_path / "x" / "metrics.jsonl").read_text().splitlines()) == 3
    assert {p.name for p in tmp_path.iterdir()} == {"x"}


def test_a_refused_resume_leaves_the_run_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, "streets_source_only", "--name", "x", "iters=2", "optim.poly_iters=none") == 0
    resume, file = ["train", "--resume", str(tmp_path / "x"), "--quiet"], tmp_path / "x" / "run.json"
    before = file.read_bytes()
    assert run([*resume, "iters=5000", "device=cuda:7"]) == 6
    with filelock.FileLock(tmp_path / "x" / ".lock"):
        assert run([*resume, "iters=5000"]) == 2
    assert "another process trains in this folder; wait until it ends" in capsys.readouterr().err
    assert file.read_bytes() == before


def test_a_run_made_longer_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, "streets_source_only", "--name", "x", "optim.poly_iters=none") == 0
    before = json.loads((tmp_path / "x" / "run.json").read_text())
    assert run(["train", "--resume", str(tmp_path / "x"), "iters=2"]) == 0
    assert "from here the learning rate follows 2 iterations, not 1" in capsys.readouterr().err
    after = json.loads((tmp_path / "x" / "run.json").read_text())
    assert after["started"] == before["started"]
    assert [r["iters_before"] for r in after["resumed"]] == [1]
    assert before["resumed"] == []


def test_what_cannot_be_scored_is_said_at_the_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["iters=1", "imgsz=64,128", "score.data=folder:/nope"]
    assert run(["train", "streets_source_only", *words, "--project", str(tmp_path)]) == 0
    assert "note: nothing will be scored (score.data): /nope: no such folder" in capsys.readouterr().err


def test_none_is_a_word_where_it_is_one(tmp_path: Path) -> None:
    assert train(tmp_path, "streets_translation", "translate=none", "cache_dir=none", "--name", "x") == 0
    config = load_checkpoint(tmp_path / "x").config
    assert (config.translate, config.cache_dir) == ("none", None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["iters=9", "optim.name=adamw", "arm=cdga"], "keeps its arm"),
        (["iters=9", "optim.name=sgd"], "keeps its optim"),
        (["iters=9", "itres=1"], "did you mean 'iters'?"),
        (["streets_cdga"], "a run that goes on has its preset"),
    ],
)
def test_resume_under_another_configuration(
    tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, "streets_source_only", "--name", "x") == 0  # its optimiser is adamw
    before = (tmp_path / "x" / "last.safetensors").read_bytes()
    capsys.readouterr()
    assert run(["train", "--resume", str(tmp_path / "x"), *words, "--quiet"]) == 2
    assert message in capsys.readouterr().err
    assert (tmp_path / "x" / "last.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["streets_cgda"], 2, "unknown preset 'streets_cgda'; did you mean 'streets_cdga'?"),
        (["zzz"], 2, "presets: streets_source_only, streets_translation, streets_baseline, streets_cdga, "),
        (["streets_cdga", "streets_translation"], 2, "got two presets or files: streets_cdga and streets_translation"),
        (["absent.yaml"], 3, "absent.yaml: no such configuration file"),
        (["itres=5"], 2, "did you mean 'iters'?"),
        (["optim.lr=fast"], 2, "optim.lr: "),
        (["iters=0"], 2, "iters: got 0, wanted at least 1"),
        (["--arm", "both"], 2, "arm: "),
        (["--seed", "-1"], 2, "seed: got -1"),
        (["footage_cdga"], 2, "arm=cdga needs a target; name one, e.g. --target video:ride.mp4"),
        (["imgsz=100,100"], 2, "imgsz: efficientvit_b0 takes sides that are multiples of 32, got 100,100; use 96,96"),
        (["source_imgsz=100,100"], 2, "source_imgsz: efficientvit_b0 takes sides that are multiples of 32"),
        (["imgsz=32,32"], 2, "imgsz: BatchNorm would get a single value per channel"),
        (["arm=source_only", "source_imgsz=32,32", "model=lite0_fpn"], 2, "source_imgsz: BatchNorm would get"),
        (["align_resolution=head", "imgsz=64,128"], 2, "imgsz: the discriminator would get maps of 8,16"),
        (
            ["align_resolution=head", "source_imgsz=96,128", "imgsz=128,128"],
            2,
            "source_imgsz: the discriminator would get maps of 12,16",
        ),
        (
            ["align_resolution=head", "arm=baseline", "imgsz=64,256"],
            2,
            "use 128,256 or more, or align_resolution=input",
        ),
        (["precision=fp16", "--device", "cpu"], 2, "precision: fp16 is for GPUs"),
        (["model=resnet"], 2, "unknown model 'resnet'"),
        (["weights=absent.pt"], 3, "absent.pt: no such weights"),
        (["--source", "streets:dya"], 2, "did you mean 'day'?"),
        (["--target", "video:absent.mp4"], 3, "absent.mp4"),
        (["--source", "video:absent.mp4"], 3, "absent.mp4"),
        (["--device", "gpu"], 2, "unknown device 'gpu'"),
        (["fda_beta=0.7"], 2, "fda_beta: got 0.7"),
        (["--resume", "absent"], 3, "absent: no such run"),
        (["--name", "../x"], 2, "'../x' is not a plain folder name"),
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
    assert run(["train", "imgsz=64,64", "batch=1", "align_resolution=input", *words, "--quiet"]) == code
    out = capsys.readouterr()
    assert out.out == ""
    assert message in out.err
    assert out.err.startswith("error[E-")
    assert out.err.count("\n") == 1
    assert not list(tmp_path.rglob("*.safetensors"))


def test_project_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert train(tmp_path / "file") == 2
    assert "cannot write" in capsys.readouterr().err


@pytest.mark.parametrize("library", ["torch", "yaml"])
def test_a_missing_library_names_its_extra(
    tmp_path: Path, library: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.yaml").write_text("iters: 1\n")
    monkeypatch.setitem(sys.modules, library, None)  # what an import of a missing library finds
    assert train(tmp_path, str(tmp_path / "a.yaml")) == 2
    assert f"'{library}' is needed here; pip install 'cdga-sdk[train]'" in capsys.readouterr().err


def test_the_manifest_leaves_out_what_is_not_installed() -> None:
    from cdga_train.manifest import _installed

    assert _installed("torch")
    assert not _installed("no-such-distribution-1")


@pytest.mark.parametrize("kind", ["camvid", "video"])
def test_real_data(tmp_path: Path, camvid: Path, dashcam: Path, kind: str) -> None:
    target = f"video:{dashcam}" if kind == "video" else f"camvid:{camvid}"
    words = ["imgsz=96,128", "batch=1", "num_groups=2", "align_resolution=input", "log_every=1", "flip=true"]
    data = [f"source=camvid:{camvid}", "source_split=day_train", f"target={target}", "target_split=dusk_train"]
    assert run(["train", *words, *data, "--iters", "2", "--project", str(tmp_path), "--name", kind, "--quiet"]) == 0
    lines = [json.loads(line) for line in (tmp_path / kind / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1, 2]
    assert all(0 < line["seg"] < 20 for line in lines)
    assert load_checkpoint(tmp_path / kind).config.target == target


def test_a_run_refused_for_its_data_leaves_no_folder(tmp_path: Path) -> None:
    (tmp_path / "data" / "images").mkdir(parents=True)  # there, so that it is opened; with nothing in it
    data = f"folder:{tmp_path / 'data'}"
    assert run(["train", "streets_source_only", "--source", data, "--project", str(tmp_path / "runs")]) == 3
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.parametrize("word", ["losses.tau=0.1", "seed=7", "arm=source_only", "source=streets:rain"])
def test_a_resumed_run_keeps_its_configuration(tiny_run: Path, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = (tiny_run / "run.json").read_bytes()
    assert run(["train", word, "iters=14", "--resume", str(tiny_run)]) == 2
    assert f"keeps its {word.partition('=')[0].partition('.')[0]}" in capsys.readouterr().err
    assert (tiny_run / "run.json").read_bytes() == before
