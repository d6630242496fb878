"""What can be named, and what of it is here: ``cdga models``, and ``cdga info`` of what is not here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final

from cdga_sdk.bundle import About, Bundle
from cdga_sdk.info import size_line
from cdga_sdk.models.catalogue import DEFAULT, NAMED, default_bundle
from cdga_sdk.models.kept import bundle_at_hand

__all__ = ["ListedModel", "list_models", "stated_of"]

_NOT_HERE: Final = "not here yet; made when it is first used"


@dataclass(frozen=True, kw_only=True)
class ListedModel:
    """A model that has a name.

    Attributes:
        name: What ``--model`` takes.
        trained_on: The data, in a few words; None where the bundle does not say. Of what is not here the catalogue
            says it.
        licence: Of the weights; likewise.
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
            "bundle": self.path or _NOT_HERE,
        }
        return {title: words for title, words in stated.items() if words}

    def as_dict(self) -> dict[str, object]:
        """Plain values that JSON can hold."""
        return asdict(self)


def list_models() -> list[ListedModel]:
    """The default model, where this installation has it, and those that are fetched. The network is not asked.

    Raises:
        CdgaError: The default model is damaged, or as `bundle_at_hand` does.
    """
    listed = []
    if default_bundle().is_dir():
        bundle = Bundle.open(default_bundle())
        listed.append(_listed(DEFAULT, bundle.manifest.about, "this package", str(bundle.path)))
    for model in NAMED.values():
        found = bundle_at_hand(model)
        about = model.about if found is None else found.manifest.about
        listed.append(_listed(model.name, about, model.url, None if found is None else str(found.path)))
    return listed


def stated_of(name: str) -> dict[str, object] | None:
    """What the catalogue states of a model whose bundle has yet to be made; None of any other. Nothing is fetched.

    Raises:
        CdgaError: As `bundle_at_hand` does.
    """
    model = NAMED.get(name)
    if model is None or bundle_at_hand(model) is not None:
        return None
    return {
        "kind": "published weights",
        "name": model.name,
        "bundle": _NOT_HERE,
        "url": model.url,
        "sha256": model.sha256,
        "bytes": model.num_bytes,
        "weights_sha256": model.weights_sha256,
        "model": model.network,
        "imgsz": size_line(model.imgsz_hw),
        **model.about.model_dump(exclude_none=True),
    }


def _listed(name: str, about: About | None, source: str, path: str | None) -> ListedModel:
    trained_on, licence = (None, None) if about is None else (about.trained_on, about.licence)
    return ListedModel(name=name, trained_on=trained_on, licence=licence, source=source, path=path)
