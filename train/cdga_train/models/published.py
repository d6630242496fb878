"""Weights published elsewhere, renamed onto our networks: every tensor accounted for, or refused."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from cdga_sdk.errors import ModelError

__all__ = ["PublishedNames", "renamed_state"]

_NAMED: Final = 3  # problems that an error names before it counts the rest
_COUNTER: Final = "num_batches_tracked"  # of BatchNorm; old files lack it, and a fixed momentum never reads it


@dataclass(frozen=True, kw_only=True)
class PublishedNames:
    """How a published file calls the tensors of one of our networks.

    Attributes:
        of: What was published, for messages.
        fix: What to give instead of a file that is refused.
        renames: Pattern at the start of a published name, and what it becomes here; the first that matches counts.
        left_out: Pattern of whole published names that have no place here, such as a classifier of ImageNet.
        class_axis: Our name of a tensor whose first axis counts the classes: a file of another number of classes
            gives its backbone alone. None: such a file is refused.
    """

    of: str
    fix: str
    renames: tuple[tuple[str, str], ...]
    left_out: str | None = None
    class_axis: str | None = None

    def our_name(self, published: str) -> str | None:
        """The name here of a published tensor; None where no rule knows it."""
        for pattern, ours in self.renames:
            if re.match(pattern, published):
                return re.sub(pattern, ours, published, count=1)
        return None

    def leaves_out(self, published: str) -> bool:
        """Whether the tensor has no place here."""
        return self.left_out is not None and re.fullmatch(self.left_out, published) is not None


def renamed_state(
    names: PublishedNames, state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """A published state under our names: of the whole network, or of exactly the whole backbone.

    Args:
        names: How the published file calls things.
        state: The published tensors. Those of another floating type than ours are converted, the others not copied.
        wanted: The network's own ``state_dict``; only names, shapes and types are looked at.

    Returns:
        A tensor for every name of ``wanted``, or for every one that starts with ``backbone.`` where the file has
        no usable head. BatchNorm's counters are 0 where the file has none.

    Raises:
        ModelError: A tensor is missing, unknown, given twice, of another shape, or not of finite numbers.
    """
    kept = {name: tensor for name, tensor in state.items() if not names.leaves_out(name)}
    ours = {name: names.our_name(name) or name for name in kept}
    given = {ours[name]: tensor for name, tensor in kept.items()}
    unknown = [name for name in kept if ours[name] not in wanted or names.our_name(name) is None]
    if not _has_head(names, given, wanted):
        wanted = {name: tensor for name, tensor in wanted.items() if name.startswith("backbone.")}
    problems = [f"'{name}' is missing" for name in wanted if name not in given and not name.endswith(_COUNTER)]
    problems += [f"'{name}' is unknown" for name in unknown]
    problems += [f"'{name}' is there twice" for name, count in Counter(ours.values()).items() if count > 1]
    faults = {name: _fault(given[name], tensor) for name, tensor in wanted.items() if name in given}
    problems += [f"'{name}' {fault}" for name, fault in faults.items() if fault]
    if problems:
        more = f" and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
        raise ModelError(
            f"these are not the published weights of {names.of}: {', '.join(problems[:_NAMED])}{more}", fix=names.fix
        )
    return {
        name: given[name].to(tensor.dtype) if name in given else torch.zeros_like(tensor, device="cpu")
        for name, tensor in wanted.items()
    }


def _has_head(names: PublishedNames, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    """Whether the file has a head, and one for our number of classes."""
    axis = names.class_axis
    if axis is not None and axis in given and given[axis].shape[:1] != wanted[axis].shape[:1]:
        return False
    return any(name.startswith("head.") for name in given)


def _fault(tensor: Tensor, wanted: Tensor) -> str | None:
    """What is wrong with a published tensor; None where nothing is."""
    if tensor.shape != wanted.shape:
        return f"has shape {tuple(tensor.shape)}, wanted {tuple(wanted.shape)}"
    plain = tensor.layout == torch.strided and not tensor.is_meta
    if not plain or tensor.is_floating_point() != wanted.is_floating_point():
        return f"is {tensor.dtype} ({tensor.layout}, {tensor.device}), wanted plain {wanted.dtype}"
    # The type is converted first: a float64 number may pass float32's largest.
    return None if bool(tensor.to(wanted.dtype).isfinite().all()) else "holds NaN or infinity"
