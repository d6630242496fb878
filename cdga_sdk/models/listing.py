"""``cdga models``: what can be named, and what of it is here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from cdga_sdk.bundle import About, Bundle
from cdga_sdk.models.catalogue import DEFAULT, NAMED, default_bundle
from cdga_sdk.models.kept import bundle_place

__all__ = ["ListedModel", "list_models"]


@dataclass(frozen=True, kw_only=True)
class ListedModel:
    """A model that has a name.

    Attributes:
        name: What ``--model`` takes.
        trained_on: The data, in a few words; None where the bundle does not say.
        licence: Of the weights; None where the bundle does not say.
        source: Where it comes from.
        path: Its bundle; None where it is not here yet.
    """

    name: str
    trained_on: str | None
    licence: str | None
    source: str
    path: str | None

    def facts(self) -> Mapping[str, str]:
        """For people, by title."""
        stated = {
            "trained on": self.trained_on,
            "licence": self.licence,
            "from": self.source,
            "bundle": self.path or "not here yet; made when it is first used",
        }
        return {title: words for title, words in stated.items() if words}

    def as_dict(self) -> dict[str, object]:
        """Plain values that JSON can hold."""
        return asdict(self)


def list_models() -> list[ListedModel]:
    """The default model, where this installation has it, and those that are fetched. The network is not asked.

    Raises:
        CdgaError: The default model is damaged, or ``CDGA_MODELS`` names no folder.
    """
    listed = []
    if default_bundle().is_dir():
        path = default_bundle()
        listed.append(_listed(DEFAULT, Bundle.open(path).manifest.about, "this package", str(path)))
    for model in NAMED.values():
        place = bundle_place(model)
        listed.append(_listed(model.name, model.about, model.url, str(place) if place.exists() else None))
    return listed


def _listed(name: str, about: About | None, source: str, path: str | None) -> ListedModel:
    trained_on, licence = (None, None) if about is None else (about.trained_on, about.licence)
    return ListedModel(name=name, trained_on=trained_on, licence=licence, source=source, path=path)
