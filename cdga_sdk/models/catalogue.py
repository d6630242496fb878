"""The models that have a name, and what is known of each before it is opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from cdga_sdk.bundle import About

__all__ = ["DEFAULT", "NAMED", "NamedModel", "default_bundle"]

DEFAULT: Final = "default"
"""The bundle inside this package."""


@dataclass(frozen=True, kw_only=True)
class NamedModel:
    """Weights that their authors publish, and how a bundle is made of them.

    Attributes:
        name: What ``--model`` takes.
        url: Where the file is.
        sha256: Of the file, hexadecimal: nothing else is ever used.
        num_bytes: Its size.
        network: As `cdga_train.models.registry` names it.
        imgsz_hw: Height and width of the bundle's input, pixels.
        about: Goes into the bundle.
    """

    name: str
    url: str
    sha256: str
    num_bytes: int
    network: str
    imgsz_hw: tuple[int, int]
    about: About

    @property
    def file(self) -> str:
        """The file's name."""
        return self.url.rpartition("/")[2]


_MODELS: Final = (
    NamedModel(
        name="efficientvit_b0_cityscapes",
        url="https://huggingface.co/han-cai/efficientvit-seg/resolve/main/efficientvit_seg_b0_cityscapes.pt",
        sha256="923d6fdd5e93640cc0c2f3f213764f34e80b477cd98a6b294d870ea6df5acc50",
        num_bytes=2_924_013,
        network="efficientvit_b0",
        imgsz_hw=(512, 1024),
        about=About(
            trained_on="Cityscapes (fine annotations), by the authors of EfficientViT",
            licence="weights Apache-2.0; Cityscapes is for non-commercial use",
        ),
    ),
)

NAMED: Final[Mapping[str, NamedModel]] = MappingProxyType({model.name: model for model in _MODELS})
"""Those that are fetched."""


def default_bundle() -> Path:
    """Where the bundle inside this package lies, or would lie."""
    return Path(__file__).parent / "default.cdga"
