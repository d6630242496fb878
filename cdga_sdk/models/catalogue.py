"""The models that have a name, and what is known of each before it is opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from cdga_sdk.bundle import About, Manifest

__all__ = ["DEFAULT", "NAMED", "REVISION", "NamedModel", "default_bundle"]

DEFAULT: Final = "default"
"""The bundle inside this package."""

REVISION: Final = 1
"""Of how bundles are made of published weights: one more where the same weights shall become another graph."""


@dataclass(frozen=True, kw_only=True)
class NamedModel:
    """Weights that their authors publish, and how a bundle is made of them.

    Attributes:
        name: What ``--model`` takes.
        url: Where the file is.
        sha256: Of the file, hexadecimal: no other file is ever converted.
        num_bytes: Its size.
        weights_sha256: Of the network's weights as a bundle states it: no other bundle goes by the name. It keeps
            mistakes out and not a forger, for a bundle states it of itself.
        network: As `cdga_train.models.registry` names it.
        imgsz_hw: Height and width of the bundle's input, pixels.
        about: Goes into the bundle.
    """

    name: str
    url: str
    sha256: str
    num_bytes: int
    weights_sha256: str
    network: str
    imgsz_hw: tuple[int, int]
    about: About

    @property
    def file(self) -> str:
        """The file's name."""
        return self.url.rpartition("/")[2]

    def is_described_by(self, manifest: Manifest) -> bool:
        """Whether a bundle says that it was made of these weights in this way."""
        origin = manifest.provenance
        stated = (origin.model, origin.weights_sha256, manifest.imgsz_hw, manifest.about)
        return stated == (self.network, self.weights_sha256, self.imgsz_hw, self.about)


_MODELS: Final = (
    NamedModel(
        name="efficientvit_b0_cityscapes",
        url="https://huggingface.co/han-cai/efficientvit-seg/resolve/main/efficientvit_seg_b0_cityscapes.pt",
        sha256="923d6fdd5e93640cc0c2f3f213764f34e80b477cd98a6b294d870ea6df5acc50",
        num_bytes=2_924_013,
        weights_sha256="4cd0866668c462c16b4c4c5fabfdbcc9bb6f7d147bbe4fcc0a76f9e544adc01a",
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
