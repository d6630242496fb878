"""From a configuration back to the command line that asks for it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from cdga_train.config import TrainConfig, config_as_dict
from cdga_train.presets import PRESETS

__all__ = ["reproduce_command"]


def reproduce_command(config: TrainConfig) -> str:
    """The shortest ``cdga train`` line with this configuration: a preset and what differs from it."""
    wanted = _flat(config_as_dict(config))

    def differences(preset: str) -> list[str]:
        base = _flat(config_as_dict(PRESETS[preset]()))
        changed = {key for key, value in wanted.items() if base[key] != value}
        if "target" in changed and base["score.data"] == base["target"] is not None:
            changed.add("score.data")  # else it would follow the target: see `load_preset`
        return [f"{key}={_word(value)}" for key, value in wanted.items() if key in changed]

    preset = min(PRESETS, key=lambda name: len(differences(name)))
    return shlex.join(["cdga", "train", preset, *differences(preset)])


def _flat(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Dotted keys, as the command line has them."""
    flat: dict[str, object] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _word(value: object) -> str:
    if isinstance(value, tuple | list):
        return ",".join(map(str, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
