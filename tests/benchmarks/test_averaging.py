"""The average of a run against its last iterate: both are really scored, and a run without one is refused first."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.averaging import main
from cdga_sdk.errors import UsageError
from cdga_train.checkpoint import load_checkpoint, save_checkpoint
from cdga_train.manifest import write_manifest
from tests.cdga_train.test_loop import FLOOR, train
from tests.published_layouts import make_camvid_segnet


def run_in(tmp_path: Path, name: str, power: float | None) -> Path:
    config, folder = replace(FLOOR, iters=3, average_power=power), tmp_path / name
    folder.mkdir()
    last = train(config, folder)
    checkpoint = load_checkpoint(last)
    turned = {k: -v for k, v in checkpoint.tensors.items() if k.startswith("iterate/head") and v.is_floating_point()}
    save_checkpoint(last, replace(checkpoint, tensors={**checkpoint.tensors, **turned}))  # another network for certain
    write_manifest(folder, config)
    return folder


def test_both_networks_of_a_run_are_scored(tmp_path: Path) -> None:
    run, data = run_in(tmp_path, "run", 0.0), make_camvid_segnet(tmp_path, counts={"day_train": 2, "val": 2})
    main([str(run), "--camvid", str(data), "--json", str(tmp_path / "out.json")])
    (row,) = json.loads((tmp_path / "out.json").read_text())["runs"]
    assert (row["name"], row["seed"], row["iterations"], row["average_power"]) == ("run", 0, 3, 0.0)
    for split in ("day_train", "val"):
        average, iterate = (row["splits"][split][name] for name in ("average", "iterate"))
        assert average["frames"] == iterate["frames"] == 2
        assert average["iou"] != iterate["iou"]


def test_a_run_without_an_average_is_refused_before_any_is_scored(tmp_path: Path) -> None:
    runs = [str(run_in(tmp_path, name, power)) for name, power in (("with", 0.0), ("without", None))]
    with pytest.raises(UsageError, match="keeps no average of its weights"):
        main([*runs, "--camvid", str(tmp_path / "absent"), "--json", str(tmp_path / "out.json")])
