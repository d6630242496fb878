"""Every preset builds, says what it costs, and can be changed from the command line."""

from __future__ import annotations

import pytest

from cdga_sdk.errors import UsageError
from cdga_train.config import TrainConfig, config_as_dict, config_from_dict
from cdga_train.models.registry import network_spec
from cdga_train.presets import PRESETS
from cdga_train.run import configure


@pytest.mark.parametrize("name", PRESETS)
def test_builds_and_names_its_command(name: str) -> None:
    config = PRESETS[name]()
    assert isinstance(config, TrainConfig)
    assert f"cdga train {name}" in (PRESETS[name].__doc__ or "")
    network_spec(config.model, config.imgsz)


@pytest.mark.parametrize("name", PRESETS)
def test_runs_from_the_command_line_with_a_target(name: str) -> None:
    found, config = configure([name, "seed=3"], ["target=video:ride.mp4"])
    assert (found, config.seed, config.target) == (name, 3, "video:ride.mp4")
    assert config_from_dict(config_as_dict(config)) == config


def test_the_arms_differ_in_one_thing_each() -> None:
    floor, fda, cdga = (config_as_dict(PRESETS[f"streets_{arm}"]()) for arm in ("source_only", "fda", "cdga"))
    assert {k for k in floor if floor[k] != fda[k]} == {"translate"}
    assert {k for k in fda if fda[k] != cdga[k]} == {"arm"}


def test_own_footage_has_to_be_named() -> None:
    with pytest.raises(UsageError, match=r"needs a target.*--target"):
        configure(["footage_cdga"], [])
