"""BatchNorm's statistics are taken from the target, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.target_statistics import finished_runs, scored_run, take_statistics
from cdga_sdk.cli import run
from cdga_train.checkpoint import load_checkpoint
from cdga_train.data.spec import open_unlabelled
from cdga_train.models.fused import FusedNetwork
from cdga_train.state import build_network


@pytest.fixture
def fused(tiny_run: Path) -> FusedNetwork:
    state = load_checkpoint(tiny_run)
    return FusedNetwork(build_network(state), state.preprocess)


def test_the_first_layers_statistics_are_the_targets(fused: FusedNetwork) -> None:
    target = open_unlabelled("streets:fog", "val", (64, 128))
    first = next(m for m in fused.modules() if isinstance(m, nn.BatchNorm2d))
    assert first.running_mean is not None
    seen: list[torch.Tensor] = []
    before = {key: tensor.clone() for key, tensor in fused.state_dict().items()}
    handle = first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].mean(dim=(0, 2, 3))))
    take_statistics(fused, target)
    handle.remove()
    assert len(seen) == 8
    torch.testing.assert_close(first.running_mean, torch.stack(seen).mean(dim=0), rtol=1e-4, atol=1e-5)
    assert not fused.training
    assert first.momentum == 0.1
    after = fused.state_dict()
    changed = {key.rpartition(".")[2] for key in before if not torch.equal(before[key], after[key])}
    assert changed <= {"running_mean", "running_var", "num_batches_tracked"}
    assert "running_mean" in changed


def test_a_run_is_scored_twice(tmp_path: Path) -> None:
    words = ["imgsz=64,64", "iters=2", "batch=1", "candidates=0", "--arms", "source_only", "--seeds", "3", "--quiet"]
    assert run(["study", "streets", *words, "--project", str(tmp_path)]) == 0
    (folder,) = finished_runs(tmp_path / "streets")
    found = scored_run(folder)
    assert (found["arm"], found["seed"]) == ("source_only", 3)
    scores = np.array([found["as_trained"], found["with_targets"]], float)
    assert ((scores >= 0) & (scores <= 100)).all()
