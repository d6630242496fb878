"""The line that reproduces a run gives back its configuration."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest

from cdga_train.config import LossWeights, ScoreConfig, TrainConfig
from cdga_train.presets import PRESETS
from cdga_train.reproduce import reproduce_command
from cdga_train.run import configure


def configured(command: str) -> TrainConfig:
    words = shlex.split(command)
    assert words[:2] == ["cdga", "train"]
    _, config = configure(words[2:], [])
    return config


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset().target is not None])
def test_a_preset_needs_no_more_than_its_name(name: str) -> None:
    command = reproduce_command(PRESETS[name]())
    assert configured(command) == PRESETS[name]()
    assert len(shlex.split(command)) == 3


@pytest.mark.parametrize(
    "config",
    [
        TrainConfig(),
        TrainConfig(arm="source_only", target=None, score=ScoreConfig()),
        replace(PRESETS["footage_cdga"](), target="video:my ride's $HOME.mp4"),
        replace(PRESETS["streets_cdga"](), target="streets:rain"),
        replace(PRESETS["streets_cdga"](), target="streets:rain", score=ScoreConfig(data="streets:rain")),
        replace(
            PRESETS["gta5_cityscapes_cdga"](),
            weights=None,
            seed=7,
            imgsz=(64, 128),
            flip=True,
            channels_last=False,
            losses=LossWeights(tau=0.1, group_normalise=True),
        ),
    ],
)
def test_any_configuration_comes_back(config: TrainConfig) -> None:
    assert configured(reproduce_command(config)) == config
