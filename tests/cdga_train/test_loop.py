"""The loop: resumes bit for bit, stops in good order, and never saves a NaN."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cdga_sdk.cli import run
from cdga_sdk.errors import DegradedError, InputError, InterruptedRunError, UsageError, counted
from cdga_train.checkpoint import Checkpoint, load_checkpoint
from cdga_train.config import LossWeights, OptimConfig, TrainConfig
from cdga_train.data.spec import open_labelled, open_unlabelled
from cdga_train.loop import Progress
from cdga_train.loop import train as train_on
from cdga_train.run_layout import LAST, PREVIOUS
from cdga_train.state import TrainingState
from tests.published_layouts import make_camvid_segnet

SMALL = TrainConfig(imgsz=(64, 64), num_groups=2, iters=12, flip=True, translate="fda", log_every=2, save_every=3)
FLOOR = replace(SMALL, arm="source_only", translate="none", target=None)


def train(
    config: TrainConfig,
    folder: Path,
    *,
    resume_from: Checkpoint | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Path:
    """The loop on the data that the configuration names."""
    source = open_labelled(config.source, config.source_split, config.source_size)
    target = None if config.target is None else open_unlabelled(config.target, config.target_split, config.imgsz)
    return train_on(config, folder, source, target, resume_from=resume_from, on_progress=on_progress)


def fingerprint(file: Path) -> str:
    checkpoint = load_checkpoint(file)
    return TrainingState.resumed(checkpoint, checkpoint.config, torch.device("cpu")).fingerprint()


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def folder_in(tmp_path: Path, name: str) -> Path:
    folder = tmp_path / name
    folder.mkdir()
    return folder


@pytest.mark.parametrize("optim", ["sgd", "adamw"])
@pytest.mark.parametrize("arm", ["source_only", "cdga"])
def test_resume_is_bit_for_bit(tmp_path: Path, arm: str, optim: str) -> None:
    config = replace(
        SMALL,
        iters=8,
        arm="cdga" if arm == "cdga" else "source_only",
        optim=OptimConfig(name="sgd" if optim == "sgd" else "adamw", lr=1e-3, poly_iters=20),
    )
    whole, halves = folder_in(tmp_path, "whole"), folder_in(tmp_path, "halves")
    first = train(replace(config, iters=4), halves)
    half_way = fingerprint(first)
    train(replace(config, workers=1), halves, resume_from=load_checkpoint(first))
    train(config, whole)
    assert fingerprint(whole / LAST) == fingerprint(halves / LAST) != half_way
    lines = [
        [{k: v for k, v in line.items() if "per_s" not in k and "wait" not in k} for line in metrics(f)]
        for f in (whole, halves)
    ]
    assert lines[0] == lines[1]
    assert [line["iteration"] for line in lines[0]] == [2, 4, 6, 8]


def test_other_seed_other_run(tmp_path: Path) -> None:
    prints = set()
    for seed in (0, 1):
        folder = folder_in(tmp_path, str(seed))
        prints.add(fingerprint(train(replace(FLOOR, iters=2, seed=seed), folder)))
    assert len(prints) == 2


def test_what_a_run_leaves(tiny_run: Path) -> None:
    kept = [".lock", "checkpoints", LAST, "metrics.jsonl", PREVIOUS, "run.json"]
    assert sorted(p.name for p in tiny_run.iterdir()) == kept
    assert [p.name for p in (tiny_run / "checkpoints").iterdir()] == ["000012.safetensors"]
    assert load_checkpoint(tiny_run / PREVIOUS).iteration == 6
    lines = metrics(tiny_run)
    assert [line["iteration"] for line in lines] == [4, 8, 12]
    keys = {"seg", "co", "orth", "cadv", "cl", "d", "group_entropy", "lr", "it_per_s", "data_wait_share"}
    assert all(set(line) == {"iteration", *keys} for line in lines)
    assert all(isinstance(value, (int, float)) for line in lines for value in line.values())
    # lr 2e-3 of the preset in iterations 4, 8 and 12, which begin with 3, 7 and 11 done
    expected = [2e-3 * (1 - done / 12) ** 0.9 for done in (3, 7, 11)]
    assert [line["lr"] for line in lines] == pytest.approx(expected, rel=1e-4)
    assert lines[-1]["seg"] < lines[0]["seg"]
    assert load_checkpoint(tiny_run).iteration == 12


def test_progress_is_told_after_every_iteration(tmp_path: Path) -> None:
    told: list[Progress] = []
    train(replace(FLOOR, iters=3), tmp_path, on_progress=told.append)
    assert [(p.iteration, p.iters) for p in told] == [(1, 3), (2, 3), (3, 3)]
    assert told[0].values == {}
    assert told[2].values["seg"] > 0


def test_a_crash_loses_no_more_than_since_the_last_save(tmp_path: Path) -> None:
    class Crash(Exception):  # noqa: N818 - not an error of the program
        pass

    def crash(progress: Progress) -> None:
        if progress.iteration == 5:
            raise Crash

    config = replace(FLOOR, iters=8, log_every=1)
    with pytest.raises(Crash):
        train(config, tmp_path, on_progress=crash)
    assert not [t for t in threading.enumerate() if t.name.startswith("batches")]
    assert [line["iteration"] for line in metrics(tmp_path)] == [1, 2, 3, 4, 5]
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.iteration == 3
    train(config, tmp_path, resume_from=checkpoint)
    assert [line["iteration"] for line in metrics(tmp_path)] == [1, 2, 3, 4, 5, 6, 7, 8]
    whole = folder_in(tmp_path, "whole")
    train(config, whole)
    assert fingerprint(whole / LAST) == fingerprint(tmp_path / LAST)


@pytest.mark.signals
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)])
def test_a_signal_ends_the_run_after_the_iteration_in_hand(tmp_path: Path, number: signal.Signals, code: int) -> None:
    def stop(progress: Progress) -> None:
        if progress.iteration == 4:
            os.kill(os.getpid(), number)

    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    folder = folder_in(tmp_path, "my run")
    with pytest.raises(InterruptedRunError, match="stopped at iteration 5 of 12; checkpoint written") as caught:
        train(FLOOR, folder, on_progress=stop)
    assert caught.value.exit_code == code
    assert str(caught.value).endswith(f"cdga train --resume '{folder}'")
    assert load_checkpoint(folder).iteration == 5
    assert metrics(folder)[-1]["iteration"] == 5
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.signals
def test_a_second_signal_acts_as_usual(tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.iteration == 4:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(FLOOR, tmp_path, on_progress=stop)
    assert load_checkpoint(tmp_path).iteration == 3


@pytest.mark.signals
def test_a_signal_in_the_last_iteration_changes_nothing(tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.iteration == 1:
            os.kill(os.getpid(), signal.SIGINT)

    assert load_checkpoint(train(replace(FLOOR, iters=2), tmp_path, on_progress=stop)).iteration == 2


def test_trains_off_the_main_thread(tmp_path: Path) -> None:
    done: list[Path] = []
    thread = threading.Thread(target=lambda: done.append(train(replace(FLOOR, iters=1), tmp_path)))
    thread.start()
    thread.join(60)
    assert done == [tmp_path / LAST]


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)])
def test_a_stopped_process_can_be_resumed(tmp_path: Path, number: signal.Signals, code: int) -> None:
    words = ["streets_cdga", "imgsz=64,64", "align_resolution=input", "num_groups=2", "batch=1", "log_every=1"]
    words += ["candidates=0"]  # what is chosen among them is not looked at here
    command = [sys.executable, "-m", "cdga_sdk", "train", *words, "iters=100000", "save_every=100000"]
    folder = tmp_path / "run"
    with subprocess.Popen(
        [*command, "--project", str(tmp_path), "--name", "run"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        deadline = time.monotonic() + 90
        while not (folder / "metrics.jsonl").is_file() or not (folder / "metrics.jsonl").read_text():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert errors.startswith("error[E-INTERRUPTED]")
    assert errors.count("\n") == 1
    assert f"cdga train --resume {folder}" in errors
    done = load_checkpoint(folder).iteration
    assert metrics(folder)[-1]["iteration"] == done
    assert run(["train", "--resume", str(folder), "--iters", str(done + 2), "--quiet"]) == 0
    assert load_checkpoint(folder / LAST).iteration == done + 2
    assert [line["iteration"] for line in metrics(folder)] == list(range(1, done + 3))


def all_finite(file: Path) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in load_checkpoint(file).tensors.values())


@pytest.mark.parametrize("optim", ["sgd", "adamw"])
@pytest.mark.parametrize("lr", [1e3, 1e30])
def test_nan_ends_the_run_and_is_never_saved(tmp_path: Path, lr: float, optim: str) -> None:
    config = replace(
        FLOOR,
        optim=OptimConfig(name="sgd" if optim == "sgd" else "adamw", lr=lr, weight_decay=0.1),
        iters=30,
        log_every=7,
        save_every=1,
    )
    saved = []

    def check(progress: Progress) -> None:
        saved.append(all_finite(tmp_path / LAST))

    with pytest.raises(DegradedError, match="NaN or infinite") as caught:
        train(config, tmp_path, on_progress=check)
    assert caught.value.exit_code == 4
    assert (LAST in str(caught.value)) == bool(saved)
    assert all(saved)
    assert all_finite(tmp_path / LAST) if saved else not (tmp_path / LAST).exists()


def test_nan_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["streets_source_only", "imgsz=64,64", "batch=1", "iters=20", "log_every=1", "optim.lr=1e30"]
    assert run(["train", *words, "--project", str(tmp_path), "--quiet"]) == 4
    error = capsys.readouterr().err
    assert error.startswith("error[E-DEGRADED]")
    assert "no checkpoint had been written" in error
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_loss_that_overflows_is_seen(tmp_path: Path) -> None:
    config = replace(SMALL, iters=4, log_every=1, losses=LossWeights(orthogonality=3e38))
    with pytest.raises(DegradedError, match="lower"):
        train(config, tmp_path)
    assert not (tmp_path / LAST).exists()


def test_images_too_small_for_d_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least 16"):
        train(replace(SMALL, align_resolution="head"), tmp_path)


def test_an_unreadable_image_loses_no_iteration(tmp_path: Path) -> None:
    data = make_camvid_segnet(tmp_path / "camvid", counts={"train": 12})
    config = replace(FLOOR, source=f"camvid:{data}", iters=30, save_every=1000, candidates=0, workers=1)
    bad = sorted((data / "train").iterdir())[7]
    whole, mended = folder_in(tmp_path, "whole"), folder_in(tmp_path, "mended")
    train(config, whole)
    good = bad.read_bytes()
    bad.write_bytes(good[: len(good) // 2])
    with pytest.raises(InputError) as stopped:
        train(config, mended)
    checkpoint = load_checkpoint(mended)
    assert 0 < checkpoint.iteration < 30
    assert str(bad) in str(stopped.value)
    kept = f"the first {counted(checkpoint.iteration, 'iterations')} are kept"
    assert f"; {kept}: with the file mended in its place, " in str(stopped.value)
    assert str(stopped.value).endswith(f", go on with: cdga train --resume {mended}")
    # Tried again before it is mended, it has nothing to add, and harms nothing.
    with pytest.raises(InputError, match=bad.name) as again:
        train(config, mended, resume_from=checkpoint)
    assert "kept" not in str(again.value)
    bad.write_bytes(good)
    train(config, mended, resume_from=load_checkpoint(mended))
    assert fingerprint(whole / LAST) == fingerprint(mended / LAST)
