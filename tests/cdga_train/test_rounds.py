"""A whole run: two rounds with pseudo-labels between them, going on from whatever an earlier call left."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest
import torch
from torchvision.models import mobilenet_v3_large
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

from cdga_sdk.cli import run
from cdga_sdk.errors import CdgaError, IntegrityError, InterruptedRunError, ModelError, ResourceError, UsageError
from cdga_sdk.hashes import file_sha256
from cdga_sdk.image import read_label, write_png
from cdga_train.checkpoint import load_checkpoint, load_newest
from cdga_train.config import LossWeights, TrainConfig
from cdga_train.data.streets import render_frame
from cdga_train.loop import Progress
from cdga_train.manifest import write_manifest
from cdga_train.models.registry import network_spec
from cdga_train.rounds import PSEUDO_LABELS, Watcher, is_finished, round_folders, train_run
from cdga_train.run_layout import LAST, PREVIOUS, SELECTION, find_checkpoint
from cdga_train.state import TrainingState
from tests.conftest import file_size_limit, shared_or_skip

SMALL = TrainConfig(imgsz=(64, 64), num_groups=2, rounds=2, iters=4, candidates=2, log_every=1, save_every=2)


@pytest.fixture(scope="module")
def domains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five labelled frames by day and five at dusk, as folders ``day`` and ``dusk``."""
    root = tmp_path_factory.mktemp("domains")
    for domain in ("day", "dusk"):
        for seed in range(5):
            frame = render_frame(seed=seed, domain=domain, size_wh=(64, 64))
            write_png(root / domain / "images" / f"{seed}.png", np.ascontiguousarray(frame.image_rgb[:, :, ::-1]))
            write_png(root / domain / "labels" / f"{seed}.png", frame.label)
    return root


@pytest.fixture(scope="module")
def config(domains: Path) -> TrainConfig:
    return replace(SMALL, source=f"folder:{domains / 'day'}", target=f"folder:{domains / 'dusk'}")


@pytest.fixture(scope="module")
def finished(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    write_manifest(folder, config)
    train_run(config, folder)
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def fingerprint(file: Path) -> str:
    checkpoint = load_checkpoint(file)
    return TrainingState.resumed(checkpoint, checkpoint.config, torch.device("cpu")).fingerprint()


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def outcome(folder: Path) -> dict[str, object]:
    """All that a run is held to: both rounds' states, the choices and the labels."""
    rounds = {name: fingerprint(folder / name / LAST) for name in ("round1", "round2")}
    chosen = {name: json.loads((folder / name / SELECTION).read_text())["chosen"] for name in ("round1", "round2")}
    labels = json.loads((folder / PSEUDO_LABELS / "pseudo_labels.json").read_text())["sha256"]
    return {"rounds": rounds, "chosen": chosen, "labels": labels}


def test_what_two_rounds_leave(finished: Path, config: TrainConfig) -> None:
    assert {p.name for p in finished.iterdir() if not p.name.startswith(".")} == {
        "run.json", "round1", PSEUDO_LABELS, "round2"
    }  # fmt: skip
    for name in ("round1", "round2"):
        assert {p.name for p in (finished / name).iterdir()} == {
            LAST, PREVIOUS, "metrics.jsonl", SELECTION, "checkpoints"
        }  # fmt: skip
        assert sorted(p.name for p in (finished / name / "checkpoints").iterdir()) == [
            "000002.safetensors", "000004.safetensors"
        ]  # fmt: skip
    assert is_finished(config, finished)
    chosen = json.loads((finished / "round2" / SELECTION).read_text())["chosen"]
    assert find_checkpoint(finished) == finished / "round2/checkpoints" / chosen


def test_pseudo_labels_are_of_the_target_and_enter_round_2_alone(finished: Path) -> None:
    assert all("ssl" not in line for line in metrics(finished / "round1"))
    assert all(line["ssl"] >= 0 for line in metrics(finished / "round2"))
    labels = [read_label(finished / PSEUDO_LABELS / f"{index:06d}.png") for index in range(5)]
    assert all(label.shape == (64, 64) for label in labels)
    kept = [int((label != 255).sum()) for label in labels]
    assert 0.4 * 5 * 64 * 64 < sum(kept) <= 5 * 64 * 64
    manifest = json.loads((finished / PSEUDO_LABELS / "pseudo_labels.json").read_text())
    assert load_checkpoint(finished / "round2" / LAST).pseudo_labels == manifest["sha256"]
    assert load_checkpoint(finished / "round1" / LAST).pseudo_labels is None


def test_round_2_begins_with_the_weights_that_round_1_began_with(finished: Path) -> None:
    # The first losses are computed before any step: equal weights, images and seed give equal ones.
    first, second = metrics(finished / "round1")[0], metrics(finished / "round2")[0]
    for name in ("seg", "co", "orth", "cadv", "cl", "d"):
        assert first[name] == second[name], name
    assert metrics(finished / "round1")[-1]["seg"] != metrics(finished / "round2")[-1]["seg"]


def _nothing(folder: Path) -> None:
    for place in (*round_folders(SMALL, folder), folder / PSEUDO_LABELS):
        shutil.rmtree(place)


def _before_the_choice(folder: Path) -> None:
    for place in (folder / "round2", folder / PSEUDO_LABELS):
        shutil.rmtree(place)
    (folder / "round1" / SELECTION).unlink()


def _before_the_labels(folder: Path) -> None:
    _before_the_choice(folder)
    (folder / f".{PSEUDO_LABELS}.abc").mkdir()  # half written by a killed run
    (folder / f".{PSEUDO_LABELS}.abc/000000.png").write_bytes(b"half")


def _before_round_2(folder: Path) -> None:
    shutil.rmtree(folder / "round2")


def _in_round_2(folder: Path) -> None:
    shutil.copyfile(folder / "round2" / PREVIOUS, folder / "round2" / LAST)
    (folder / "round2" / PREVIOUS).unlink()
    (folder / "round2" / SELECTION).unlink()
    (folder / "round2" / ".last.safetensors.xyz").write_bytes(b"half")


def _before_the_last_choice(folder: Path) -> None:
    (folder / "round2" / SELECTION).unlink()


@pytest.mark.parametrize(
    "undo",
    [_nothing, _before_the_choice, _before_the_labels, _before_round_2, _in_round_2, _before_the_last_choice],
)
def test_goes_on_from_any_phase_to_the_same_end(
    undo: Callable[[Path], None], finished: Path, copied: Path, config: TrainConfig
) -> None:
    undo(copied)
    assert not is_finished(config, copied)
    train_run(config, copied)
    assert outcome(copied) == outcome(finished)
    assert [p for p in copied.rglob(".*") if p.name != ".lock"] == []


def test_a_finished_run_does_nothing(copied: Path, config: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.stat().st_mtime_ns for p in copied.rglob("*") if p.is_file() and p.name != ".lock"}
    told: list[Progress] = []
    train_run(config, copied, watcher=Watcher(progress=lambda _, progress: told.append(progress)))
    assert told == []
    assert {p: p.stat().st_mtime_ns for p in copied.rglob("*") if p.is_file() and p.name != ".lock"} == before
    for place in (copied, copied / "round2", copied / "round2" / LAST):
        assert run(["train", "--resume", str(place)]) == 0
        assert "nothing to do" in capsys.readouterr().err


def test_damage_says_what_still_works(copied: Path, config: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    candidate = copied / "round2/checkpoints/000004.safetensors"
    (copied / "round2" / PREVIOUS).unlink()
    last = copied / "round2" / LAST
    data = bytearray(last.read_bytes())
    data[-5] ^= 1
    last.write_bytes(data)
    assert run(["train", "--resume", str(copied)]) == 5
    err = capsys.readouterr().err
    assert f"changed since it was written; export or evaluate {candidate}, or start a new run with weights=" in err
    assert run(["train", "--resume", str(candidate)]) == 2
    told = f"a run goes on from its {LAST} alone; name the run's folder, or start a new run with weights={candidate}"
    assert told in capsys.readouterr().err
    begun = replace(config, rounds=1, candidates=0, iters=1, weights=str(candidate))
    (copied / "new").mkdir()
    assert train_run(begun, copied / "new") == copied / "new" / LAST
    for damaged in ("{}", "[" * 100_000):
        (copied / "run.json").write_text(damaged)
        assert run(["train", "--resume", str(copied)]) == 5
        assert f"exported and evaluated all the same; train on with weights={copied}" in capsys.readouterr().err
    (copied / "round2" / SELECTION).write_text("[" * 100_000)
    assert find_checkpoint(copied) == last


def test_a_run_that_was_killed_before_its_first_checkpoint_is_resumed(
    copied: Path, finished: Path, config: TrainConfig
) -> None:
    _nothing(copied)
    assert run(["train", "--resume", str(copied), "--quiet"]) == 0
    assert outcome(copied) == outcome(finished)
    assert is_finished(config, copied)


def test_changed_pseudo_labels_are_refused(copied: Path, config: TrainConfig) -> None:
    _in_round_2(copied)
    file = copied / PSEUDO_LABELS / "000003.png"
    label = read_label(file).copy()
    label[0, 0] = 3 if label[0, 0] != 3 else 4
    write_png(file, label)
    with pytest.raises(IntegrityError, match="changed since"):
        train_run(config, copied)


def test_pseudo_labels_of_another_set_are_refused(copied: Path, config: TrainConfig) -> None:
    _in_round_2(copied)
    shutil.rmtree(copied / PSEUDO_LABELS)
    record = json.loads((copied / "round1" / SELECTION).read_text())
    (copied / "round1" / SELECTION).write_text(json.dumps({**record, "iteration": 6 - record["iteration"]}))
    with pytest.raises(ModelError, match="other pseudo-labels"):
        train_run(config, copied)


def test_round_1_is_not_made_longer_under_its_labels(copied: Path, config: TrainConfig) -> None:
    before = outcome(copied)
    with pytest.raises(UsageError, match=r"made after 4 iterations of round 1, got iters=8.*resume with iters=4"):
        train_run(replace(config, iters=8), copied)
    assert outcome(copied) == before


def test_before_the_labels_are_made_a_run_may_be_made_longer(copied: Path, config: TrainConfig) -> None:
    _before_the_labels(copied)
    train_run(replace(config, iters=6), copied)
    made_after = json.loads((copied / PSEUDO_LABELS / "pseudo_labels.json").read_text())["iteration"]
    assert made_after == json.loads((copied / "round1" / SELECTION).read_text())["iteration"]
    assert load_checkpoint(copied / "round1" / LAST).iteration == 6


@pytest.mark.signals
@pytest.mark.parametrize("after", [1, 2])  # 2: when the round's last state is written already
@pytest.mark.parametrize(("rounds", "candidates", "is_stopped"), [(2, 0, True), (1, 2, True), (1, 0, False)])
def test_a_signal_in_a_rounds_last_iteration_stops_what_follows(
    tmp_path: Path, config: TrainConfig, rounds: int, candidates: int, is_stopped: bool, after: int
) -> None:
    chosen = replace(config, rounds=rounds, candidates=candidates, iters=2)

    def stop(_: str, progress: Progress) -> None:
        if progress.iteration == after:
            signal.raise_signal(signal.SIGTERM)

    told = rf"iteration 2 of 2.*go on with: cdga train --resume {tmp_path}$"
    expectation = pytest.raises(InterruptedRunError, match=told) if is_stopped else nullcontext()
    with expectation:
        train_run(chosen, tmp_path, watcher=Watcher(progress=stop))
    assert load_newest(round_folders(chosen, tmp_path)[0]) is not None
    assert is_finished(chosen, tmp_path) != is_stopped
    train_run(chosen, tmp_path)
    assert is_finished(chosen, tmp_path)


def test_a_run_goes_on_with_what_it_drew_from_alone(copied: Path, config: TrainConfig, domains: Path) -> None:
    _in_round_2(copied)
    with pytest.raises(UsageError, match=r"1 forward pass per iteration, now there are .* 2 forward passes"):
        train_run(replace(config, accumulate=2), copied)
    day = shutil.copytree(domains / "day", copied / "day")
    for part in ("images", "labels"):
        shutil.copy(day / part / "0.png", day / part / "extra.png")
    with pytest.raises(UsageError, match=r"it had 5 source images.* now there are 6 source images"):
        train_run(replace(config, source=f"folder:{day}"), copied)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(copied: Path, finished: Path, config: TrainConfig) -> None:
    (copied / "round2" / SELECTION).unlink()
    last = copied / "round2" / LAST
    last.write_bytes(last.read_bytes()[:-100])
    notes: list[str] = []
    train_run(config, copied, watcher=Watcher(note=notes.append))
    assert any("previous.safetensors, iteration 2" in note for note in notes)
    assert outcome(copied) == outcome(finished)


def test_a_failed_save_leaves_what_a_damaged_checkpoint_gave_way_to(
    copied: Path, finished: Path, config: TrainConfig
) -> None:
    (copied / "round2" / SELECTION).unlink()
    (copied / "round2" / LAST).write_bytes(b"no checkpoint")
    with file_size_limit(100_000), pytest.raises(ResourceError, match="cannot write"):
        train_run(replace(config, candidates=0), copied)
    train_run(config, copied)
    assert outcome(copied) == outcome(finished)


def test_two_damaged_checkpoints_are_refused(copied: Path) -> None:
    for name in (LAST, PREVIOUS):
        (copied / "round2" / name).write_bytes(b"no checkpoint")
    with pytest.raises(ModelError):
        load_newest(copied / "round2")


def test_only_the_previous_checkpoint_is_enough(copied: Path) -> None:
    (copied / "round2" / LAST).unlink()
    checkpoint = load_newest(copied / "round2")
    assert checkpoint is not None
    assert checkpoint.iteration == 2
    assert load_newest(copied / PSEUDO_LABELS) is None


def test_one_run_at_a_time(copied: Path, config: TrainConfig) -> None:
    started = time.perf_counter()
    with filelock.FileLock(copied / ".lock"), pytest.raises(UsageError, match="another process trains"):
        train_run(config, copied)
    assert time.perf_counter() - started < 5


def test_a_folder_that_cannot_be_locked(copied: Path, config: TrainConfig) -> None:
    (copied / ".lock").unlink()
    (copied / ".lock").mkdir()
    with pytest.raises(UsageError, match="cannot write"):
        train_run(config, copied)


def test_source_only_has_no_second_round() -> None:
    with pytest.raises(UsageError, match="never forwards a target image"):
        TrainConfig(arm="source_only", rounds=2)


def test_source_only_chooses_nothing_and_opens_no_target(tmp_path: Path, config: TrainConfig) -> None:
    alone = replace(config, arm="source_only", rounds=1, target="folder:/nowhere")
    assert train_run(alone, tmp_path) == tmp_path / LAST
    assert not (tmp_path / SELECTION).exists()


def test_the_baseline_has_two_rounds_too(tmp_path: Path, config: TrainConfig) -> None:
    result = train_run(replace(config, arm="baseline", iters=2, candidates=2), tmp_path)
    assert result.parent == tmp_path / "round2/checkpoints"
    assert set(metrics(tmp_path / "round2")[0]) >= {"seg", "adv", "ssl", "d"}
    assert "cadv" not in metrics(tmp_path / "round2")[0]


def test_without_candidates_the_last_is_the_result(tmp_path: Path, config: TrainConfig) -> None:
    assert train_run(replace(config, rounds=1, iters=2, candidates=0), tmp_path) == tmp_path / LAST
    assert not (tmp_path / "checkpoints").exists()


def test_weights_of_a_whole_network_are_a_candidate(tmp_path: Path, config: TrainConfig) -> None:
    torch.manual_seed(0)
    published = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=19).state_dict()
    torch.save(published, tmp_path / "given.pth")
    given = replace(config, rounds=1, iters=2, model="lraspp_mobilenet_v3", weights=str(tmp_path / "given.pth"))
    train_run(given, tmp_path)
    first = tmp_path / "checkpoints" / "000000.safetensors"
    assert [c["iteration"] for c in json.loads((tmp_path / SELECTION).read_text())["candidates"]] == [0, 1, 2]
    wanted = network_spec(given.model, given.imgsz).published_state(published)
    kept = load_checkpoint(first).part("network")
    assert wanted.keys() == kept.keys()
    assert all(torch.equal(kept[key], wanted[key]) for key in kept)


def test_a_round_begins_with_the_weights_that_the_run_began_with(tmp_path: Path, config: TrainConfig) -> None:
    state = mobilenet_v3_large(weights=None).state_dict()
    torch.save(state, tmp_path / "given.pth")
    given = replace(config, rounds=1, iters=2, model="lraspp_mobilenet_v3", weights=str(tmp_path / "given.pth"))

    def kill(_: str, progress: Progress) -> None:
        raise RuntimeError(f"killed at {progress.iteration}")

    with pytest.raises(RuntimeError, match="killed at 1"):
        train_run(replace(given, candidates=0), tmp_path, watcher=Watcher(progress=kill))
    torch.save(state | {"features.0.0.weight": 2 * state["features.0.0.weight"]}, tmp_path / "given.pth")
    with pytest.raises(ModelError, match=r"given\.pth: not the weights that the run began with"):
        train_run(given, tmp_path)
    torch.save(state, tmp_path / "given.pth")
    train_run(given, tmp_path)
    (tmp_path / "given.pth").unlink()
    assert train_run(given, tmp_path) == find_checkpoint(tmp_path)


def test_a_backbone_alone_is_none(tmp_path: Path, config: TrainConfig) -> None:
    torch.save(mobilenet_v3_large(weights=None).state_dict(), tmp_path / "given.pth")
    given = replace(config, rounds=1, iters=2, model="lraspp_mobilenet_v3", weights=str(tmp_path / "given.pth"))
    train_run(given, tmp_path)
    assert sorted(p.stem for p in (tmp_path / "checkpoints").iterdir()) == ["000001", "000002"]


def test_a_choice_of_an_older_version_is_made_again(copied: Path, config: TrainConfig) -> None:
    selection = copied / "round2" / SELECTION
    record = json.loads(selection.read_text())
    for candidate in record["candidates"]:
        del candidate["infomax_gain"]
    selection.write_text(json.dumps(record))
    assert not is_finished(config, copied)
    before = fingerprint(copied / "round2" / LAST)
    train_run(config, copied)
    assert is_finished(config, copied)
    assert fingerprint(copied / "round2" / LAST) == before


def test_a_run_of_ones_own_is_a_start(tmp_path: Path, config: TrainConfig, finished: Path) -> None:
    result = find_checkpoint(finished)
    for name, weights in (("run", finished), ("file", result)):
        (tmp_path / name).mkdir()
        train_run(replace(config, rounds=1, iters=1, candidates=2, weights=str(weights)), tmp_path / name)
        kept = load_checkpoint(tmp_path / name / "checkpoints" / "000000.safetensors").part("network")
        wanted = load_checkpoint(result).part("network")
        assert all(torch.equal(kept[key], wanted[key]) for key in wanted)
        assert kept.keys() == wanted.keys()
        assert json.loads((tmp_path / name / "run.json").read_text())["weights_sha256"] == file_sha256(result)


def test_a_run_of_another_network_is_no_start(tmp_path: Path, config: TrainConfig, finished: Path) -> None:
    other = replace(config, model="lraspp_mobilenet_v3", weights=str(finished))
    with pytest.raises(ModelError, match=r"network efficientvit_b0, and this run's is lraspp.*use model=efficientvit"):
        train_run(other, tmp_path)


def test_weights_that_adaptation_ruins_are_kept(tmp_path: Path, config: TrainConfig) -> None:
    weights = shared_or_skip("weights/efficientvit_seg_b0_cityscapes.pt")
    ruinous = replace(config.optim, name="adamw", lr=0.01)
    given = replace(config, rounds=1, imgsz=(64, 128), weights=str(weights), optim=ruinous)
    notes: list[str] = []
    result = train_run(given, tmp_path, watcher=Watcher(note=notes.append))
    assert result == find_checkpoint(tmp_path)
    assert result.name == "000000.safetensors"
    assert "no proof without labels that adaptation helped: the weights given are kept" in notes[-1]


def test_translated_images_need_a_source_of_files(tmp_path: Path, config: TrainConfig) -> None:
    wanted = replace(config, source="streets:day", translate="folder", translated=str(tmp_path))
    with pytest.raises(UsageError, match="not made of image files"):
        train_run(wanted, tmp_path)


def test_the_pseudo_labels_weight_counts(tmp_path: Path, config: TrainConfig, finished: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    _before_round_2(folder)
    train_run(replace(config, losses=LossWeights(pseudo_label=0.0)), folder)
    first, second = (fingerprint(folder / name / LAST) for name in ("round1", "round2"))
    assert first == second  # the same start, images and losses: nothing but the labels told the rounds apart
    assert fingerprint(finished / "round2" / LAST) != second


def test_errors_are_the_users(tmp_path: Path, config: TrainConfig) -> None:
    with pytest.raises(CdgaError):
        train_run(replace(config, source=f"folder:{tmp_path / 'absent'}"), tmp_path)
