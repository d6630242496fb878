"""Named configurations. Each says its command, what it needs and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from cdga_train.config import OptimConfig, TrainConfig

__all__ = ["PRESETS"]


def streets_source_only() -> TrainConfig:
    """Day to dusk in the procedural world, labelled day frames alone: the floor that adaptation must beat.

    ``cdga train streets_source_only``; about two minutes on two CPU cores, no download.
    """
    return TrainConfig(
        arm="source_only",
        source="streets:day",
        target="streets:dusk",
        imgsz=(128, 256),
        iters=400,
        batch=4,
        flip=True,
        align_resolution="head",
        optim=OptimConfig(name="adamw", lr=2e-3, weight_decay=1e-2),
    )


def streets_fda() -> TrainConfig:
    """As ``streets_source_only``, the source translated towards the target by FDA: the translation alone, no losses.

    ``cdga train streets_fda``; about two minutes on two CPU cores.
    """
    return replace(streets_source_only(), translate="fda")


def streets_cdga() -> TrainConfig:
    """The CDGA recipe at a size that a laptop trains: FDA translation and the five losses, C and D at head resolution.

    ``cdga train streets_cdga``; about four minutes on two CPU cores.
    """
    return replace(streets_fda(), arm="cdga")


def footage_cdga() -> TrainConfig:
    """Adapt to your own footage: ``cdga train footage_cdga --target video:ride.mp4``.

    Streets by day as the labelled source, EfficientViT-B0 at 256x512; name published weights with ``weights=FILE``.
    """
    return replace(
        streets_cdga(),
        target=None,
        imgsz=(256, 512),
        iters=2000,
        batch=2,
        arm="cdga",
    )


PRESETS: Final[Mapping[str, Callable[[], TrainConfig]]] = MappingProxyType(
    {f.__name__: f for f in (streets_source_only, streets_fda, streets_cdga, footage_cdga)}
)
