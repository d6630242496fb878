"""Segmentation networks by name. Each maps (B, 3, H, W) normalised RGB to (B, C, h, w) logits at its own stride."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Final

from torch import Tensor, nn

from cdga_sdk.errors import UsageError
from cdga_train.models.efficientvit import EfficientViTSeg, published_state

__all__ = ["NETWORKS", "NetworkSpec", "network_spec"]


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """How a network is built and how weights published elsewhere are renamed onto it.

    Attributes:
        build: Takes the number of classes; random weights, nothing is downloaded.
        published_state: Renames a published state onto ours, strictly.
        size_multiple: Both sides of the input must be multiples of this.
    """

    build: Callable[[int], nn.Module]
    published_state: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    size_multiple: int


NETWORKS: Final[Mapping[str, NetworkSpec]] = MappingProxyType(
    {
        "efficientvit_b0": NetworkSpec(
            build=EfficientViTSeg,
            published_state=published_state,
            size_multiple=EfficientViTSeg.size_multiple,
        ),
    }
)


def network_spec(name: str, imgsz_hw: tuple[int, int]) -> NetworkSpec:
    """The network called ``name``, checked to take inputs of ``imgsz_hw``.

    Raises:
        UsageError: No such network, or a size that it does not take.
    """
    if name not in NETWORKS:
        near = get_close_matches(name, NETWORKS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"use one of {', '.join(NETWORKS)}"
        raise UsageError(f"unknown model '{name}'", fix=hint)
    spec = NETWORKS[name]
    step = spec.size_multiple
    if any(side % step or side < step for side in imgsz_hw):
        height, width = (max(step, round(side / step) * step) for side in imgsz_hw)
        raise UsageError(
            f"{name} takes sides that are multiples of {step}, got {imgsz_hw[0]},{imgsz_hw[1]}",
            where="imgsz",
            fix=f"use {height},{width} (height,width)",
        )
    return spec
