"""CDGA SDK: segment driving video with a network adapted to your own footage.

::

    from cdga_sdk import Segmenter

    with Segmenter("model.cdga") as segmenter:
        for result in segmenter.stream("ride.mp4"):
            print(result.time_s, result.shares())

Importing this package loads no runtime: names are looked up when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cdga_sdk.bundle import Bundle
    from cdga_sdk.errors import CdgaError
    from cdga_sdk.result import SegResult
    from cdga_sdk.segmenter import Segmenter
    from cdga_sdk.video.label_stream import LabelFrame, read_labels
    from cdga_sdk.video.live import LiveSource
    from cdga_sdk.video.pipeline import VideoOptions
    from cdga_sdk.video.run_folder import RunSummary

__version__ = "0.1.0"

_HOMES = {
    "Bundle": "cdga_sdk.bundle",
    "CdgaError": "cdga_sdk.errors",
    "LabelFrame": "cdga_sdk.video.label_stream",
    "LiveSource": "cdga_sdk.video.live",
    "RunSummary": "cdga_sdk.video.run_folder",
    "SegResult": "cdga_sdk.result",
    "Segmenter": "cdga_sdk.segmenter",
    "VideoOptions": "cdga_sdk.video.pipeline",
    "read_labels": "cdga_sdk.video.label_stream",
}

__all__ = [
    "Bundle",
    "CdgaError",
    "LabelFrame",
    "LiveSource",
    "RunSummary",
    "SegResult",
    "Segmenter",
    "VideoOptions",
    "__version__",
    "read_labels",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'cdga_sdk' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
