"""Several processes train together: they agree with one process that makes the same forward passes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cdga_sdk.errors import UsageError
from cdga_sdk.image import write_png
from cdga_train.checkpoint import load_checkpoint
from cdga_train.config import TrainConfig
from cdga_train.data.streets import render_frame
from cdga_train.processes import ALONE, Processes, process_group
from cdga_train.rounds import train_run
from cdga_train.run_layout import LAST

WORDS = ["imgsz=64,64", "num_groups=2", "candidates=0", "log_every=1", "save_every=3", "optim.lr=1e-2"]
# Of the largest entry. What differs is the order of float32 additions: two gradients summed and halved, or halved and
# summed. Measured: 1e-6 after three iterations, weights and momentum alike.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def domains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("domains")
    for domain in ("day", "dusk"):
        for seed in range(6):
            frame = render_frame(seed=seed, domain=domain, size_wh=(64, 64))
            write_png(root / domain / "images" / f"{seed}.png", np.ascontiguousarray(frame.image_rgb[:, :, ::-1]))
            write_png(root / domain / "labels" / f"{seed}.png", frame.label)
    return root


def torchrun(arguments: list[str], cwd: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "cdga_sdk"]
    return subprocess.Popen(
        [*command, *arguments],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def words(domains: Path, *more: str) -> list[str]:
    data = ["--source", f"folder:{domains / 'day'}", "--target", f"folder:{domains / 'dusk'}"]
    return ["train", "streets_cdga", *WORDS, "align_resolution=input", "optim.name=sgd", *more, *data]


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_agree_with_one_that_accumulates(domains: Path, tmp_path: Path) -> None:
    done = torchrun(words(domains, "iters=3", "batch=1", "accumulate=1", "average_power=1", "--name", "two"), tmp_path)
    output, _ = done.communicate(timeout=240)
    assert done.returncode == 0, output
    two = tmp_path / "runs/train/two"
    assert [p.name for p in (tmp_path / "runs/train").iterdir()] == ["two"]  # one folder, named once
    assert output.count("3 iterations of cdga") == 1

    config = replace(load_checkpoint(two / LAST).config, accumulate=2)
    one = tmp_path / "one"
    one.mkdir()
    train_run(config, one)

    for ours, theirs in zip(metrics(two), metrics(one), strict=True):
        for name in ("seg", "co", "orth", "cadv", "cl", "d", "group_entropy"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-7), name  # six digits are logged
    by_two, by_one = load_checkpoint(two / LAST).tensors, load_checkpoint(one / LAST).tensors
    assert set(by_two) == set(by_one)
    for name, tensor in by_two.items():
        if "running_" in name or "num_batches" in name:
            continue  # the mean of two averages here, one average of twice as many there
        other = by_one[name].double()
        error = float((tensor.double() - other).abs().max())
        assert error <= TOLERANCE * max(float(other.abs().max()), 1e-3), name


def test_stopping_two_processes_leaves_a_run_that_goes_on(domains: Path, tmp_path: Path) -> None:
    running = torchrun(words(domains, "iters=100000", "batch=1", "--name", "long"), tmp_path)
    folder = tmp_path / "runs/train/long"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (folder / LAST).is_file() and running.poll() is None:
        time.sleep(0.1)
    running.send_signal(signal.SIGTERM)
    output, _ = running.communicate(timeout=60)
    checkpoint = load_checkpoint(folder / LAST)
    assert checkpoint.iteration >= 3, output
    assert checkpoint.iteration == metrics(folder)[-1]["iteration"]
    iters = checkpoint.iteration + 1
    resumed = torchrun(["train", "--resume", str(folder), f"iters={iters}"], tmp_path)
    output, _ = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, output
    assert load_checkpoint(folder / LAST).iteration == iters


def test_an_error_of_the_user_ends_both(tmp_path: Path) -> None:
    (tmp_path / "data" / "images").mkdir(parents=True)  # there, and found empty when both have begun
    done = torchrun(["train", "streets_cdga", "--source", "folder:data"], tmp_path)
    output, _ = done.communicate(timeout=120)
    assert done.returncode != 0
    assert "error[E-INPUT]: data/images: no images in this folder" in output
    assert not list((tmp_path / "runs/train").iterdir())


@pytest.mark.parametrize(("rank", "accumulate", "slots"), [(0, 1, [0]), (1, 1, [1]), (1, 3, [3, 4, 5])])
def test_slots_of_the_processes_are_those_of_one_that_accumulates(rank: int, accumulate: int, slots: list[int]) -> None:
    assert list(Processes(rank=rank, count=2).slots(accumulate)) == slots


def test_alone_nothing_is_exchanged() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([1.0, 2.0])
    ALONE.average_gradients([parameter])
    assert parameter.grad.tolist() == [1, 2]
    assert ALONE.any(flag=True)
    assert not ALONE.any(flag=False)
    assert (ALONE.word("x"), ALONE.average_values({"a": 1.5}), ALONE.is_first) == ("x", {"a": 1.5}, True)
    assert ALONE.device_name("auto") == "auto"
    with process_group("cpu") as processes:
        assert processes is ALONE


def test_a_numbered_device_is_refused_for_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="its own device"), process_group("cuda:1"):
        pass


def test_accumulated_passes_are_averaged(domains: Path, tmp_path: Path) -> None:
    # Two equal passes make the gradient of one. One image a domain and no flips: every slot draws it.
    day, dusk = tmp_path / "day", tmp_path / "dusk"
    for domain in (day, dusk):
        for kind in ("images", "labels"):
            (domain / kind).mkdir(parents=True)
            file = domains / domain.name / kind / "0.png"
            (domain / kind / "0.png").write_bytes(file.read_bytes())
    config = TrainConfig(
        source=f"folder:{day}", target=f"folder:{dusk}", imgsz=(64, 64), num_groups=2, iters=1, candidates=0
    )
    folders = [tmp_path / str(accumulate) for accumulate in (1, 2)]
    for accumulate, folder in enumerate(folders, start=1):
        folder.mkdir()
        train_run(replace(config, accumulate=accumulate), folder)
    once, twice = (load_checkpoint(folder / LAST).tensors for folder in folders)
    for name, tensor in once.items():
        if name.endswith(("weight", "bias", "momentum_buffer", "exp_avg")):
            torch.testing.assert_close(twice[name], tensor, rtol=1e-4, atol=1e-7, msg=name)
