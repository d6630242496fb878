"""The whole training state in one file: safetensors with a JSON header, no pickle, verified when read.

Tensor names: ``network/...``, ``grouping/...``, ``discriminator/...`` hold weights; ``iterate/...`` those that training
goes on from where ``network/...`` is the average; ``optim/NAME/INDEX/KEY`` holds the state of optimiser NAME for its
parameter number INDEX; ``scaler/KEY`` holds the loss scale of fp16. Random state is not stored: everything random about
an iteration follows from (seed, iteration).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from cdga_sdk import __version__
from cdga_sdk.atomic import error_from_os, write_bytes
from cdga_sdk.errors import CdgaError, InputError, IntegrityError, ModelError, UsageError, counted, one_line
from cdga_sdk.preprocess import Preprocess
from cdga_train.config import TrainConfig, config_as_dict, config_from_dict
from cdga_train.run_layout import CANDIDATES, LAST, PREVIOUS, find_checkpoint

__all__ = [
    "Checkpoint",
    "Draws",
    "is_checkpoint",
    "load_checkpoint",
    "load_newest",
    "put_previous_back",
    "read_published_weights",
    "save_checkpoint",
    "save_keeping_previous",
]

_FORMAT: Final = "3"
_KEY: Final = "cdga_checkpoint"


@dataclass(frozen=True, kw_only=True)
class Draws:
    """What an iteration's random images are drawn from; another of any makes it another run.

    Attributes:
        source_images: Labelled images.
        target_images: Images of the target; 0 where the run looks at none.
        forward_passes: Of an iteration, over all processes.
    """

    source_images: int
    target_images: int
    forward_passes: int

    def __str__(self) -> str:
        return (
            f"{counted(self.source_images, 'source images')}, {counted(self.target_images, 'target images')} "
            f"and {self.forward_passes} forward pass{'' if self.forward_passes == 1 else 'es'} per iteration"
        )


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A training state.

    Attributes:
        config: The run's configuration.
        iteration: Iterations done.
        preprocess: What the network's input must look like.
        names: Class names by train id.
        tensors: Everything else, by the names of this module's docstring.
        pseudo_labels: sha256 of the label set of round 2; None in round 1.
        draws: What the iterations so far drew from; None before the first.
    """

    config: TrainConfig
    iteration: int
    preprocess: Preprocess
    names: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    pseudo_labels: str | None = None
    draws: Draws | None = None

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under ``prefix/``, without it."""
        return {k.removeprefix(f"{prefix}/"): v for k, v in self.tensors.items() if k.startswith(f"{prefix}/")}

    def of_iterate(self) -> Checkpoint:
        """With the weights that training goes on from as its network; they already are where there is no average."""
        iterate = {f"network/{name}": tensor for name, tensor in self.part("iterate").items()}
        return replace(self, tensors={**self.tensors, **iterate})


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write ``checkpoint`` atomically.

    Raises:
        ResourceError: The disk is full; an older checkpoint is untouched.
        UsageError: The place cannot be written to.
    """
    tensors = {k: v.detach().cpu().contiguous() for k, v in checkpoint.tensors.items()}
    header = {
        "made_by": f"cdga-sdk {__version__}",
        "iteration": checkpoint.iteration,
        "config": config_as_dict(checkpoint.config),
        "imgsz_hw": checkpoint.preprocess.imgsz_hw,
        "mean": checkpoint.preprocess.mean,
        "std": checkpoint.preprocess.std,
        "names": checkpoint.names,
        "pseudo_labels": checkpoint.pseudo_labels,
        "draws": None if checkpoint.draws is None else asdict(checkpoint.draws),
    }
    text = json.dumps(header, sort_keys=True)
    metadata = {_KEY: _FORMAT, "state": text, "sha256": _digest(text, tensors)}
    write_bytes(path, safetensors.torch.save(tensors, metadata))


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read and verify a checkpoint, or the last one of a run's folder.

    Raises:
        InputError: There is no such file.
        ModelError: It is something else, such as a pickle.
        IntegrityError: Its bytes are not those that were written.
    """
    file = find_checkpoint(Path(path))
    data = _read(file)
    metadata = _metadata(file, data)
    if metadata.get(_KEY) != _FORMAT:
        raise ModelError(
            f"safetensors, but not a checkpoint of format {_FORMAT}, which this version of cdga reads",
            where=file,
            fix="use the version that wrote it, or train again",
        )
    try:
        tensors = _tensors(file, data)
        state: dict[str, Any] = json.loads(metadata["state"])
        if _digest(metadata["state"], tensors) != metadata["sha256"]:
            raise IntegrityError("changed since it was written", where=file, fix=_instead_of(file))
        return Checkpoint(
            config=config_from_dict(state["config"]),
            iteration=int(state["iteration"]),
            preprocess=Preprocess(imgsz_hw=_two(state["imgsz_hw"]), mean=tuple(state["mean"]), std=tuple(state["std"])),
            names=tuple(state["names"]),
            tensors=tensors,
            pseudo_labels=state["pseudo_labels"],
            draws=None if state["draws"] is None else Draws(**state["draws"]),
        )
    except UsageError as error:
        raise ModelError(
            f"its configuration is not one of this version ({error})",
            where=file,
            fix="use the version that wrote it, or train again",
        ) from error
    except CdgaError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"damaged ({one_line(error)[:120]})", where=file, fix=_instead_of(file)) from error


def save_keeping_previous(folder: Path, checkpoint: Checkpoint) -> None:
    """Write ``last.safetensors``; the one that was there stays as ``previous.safetensors``.

    Raises:
        CdgaError: As `save_checkpoint`; the older checkpoint is untouched.
    """
    last, previous = folder / LAST, folder / PREVIOUS
    if last.is_file():
        try:
            _link(previous, last)
        except OSError as error:
            raise error_from_os(error, previous) from error
    save_checkpoint(last, checkpoint)


def _link(new: Path, old: Path) -> None:
    new.unlink(missing_ok=True)
    try:
        new.hardlink_to(old)
    except OSError:  # a file system without links
        shutil.copyfile(old, new)


def load_newest(folder: Path, on_damage: Callable[[str], None] = lambda _: None) -> Checkpoint | None:
    """The last checkpoint of a round's folder; the one before it where the last is damaged; None where there is none.

    Args:
        folder: Where `save_keeping_previous` wrote.
        on_damage: Told, in one line, that an older checkpoint is used.

    Raises:
        ModelError: None of those that are there can be read.
    """
    last, previous = folder / LAST, folder / PREVIOUS
    if not last.is_file() and not previous.is_file():
        return None
    try:
        return load_checkpoint(last)
    except (ModelError, InputError) as error:
        if not previous.is_file():
            raise
        checkpoint = load_checkpoint(previous)
        on_damage(f"{error}; going on from {previous.name}, iteration {checkpoint.iteration}")
        return checkpoint


def put_previous_back(folder: Path) -> None:
    """Give the previous checkpoint the place of a last one that cannot be read: the next save keeps what lies there.

    Raises:
        CdgaError: The folder cannot be written to.
    """
    try:
        (folder / PREVIOUS).replace(folder / LAST)
    except OSError as error:
        raise error_from_os(error, folder / LAST) from error


def is_checkpoint(path: Path) -> bool:
    """Whether ``path`` is a run's folder or a file of this module, of any format; others may be published weights.

    Raises:
        InputError: The file cannot be read.
    """
    if path.is_dir():
        return True
    if path.suffix != ".safetensors":
        return False
    try:
        return _KEY in _metadata(path, _read(path))
    except ModelError:  # no safetensors at all, which whoever reads it will say
        return False


def read_published_weights(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a ``.pt``/``.pth`` (read without running any code in it) or ``.safetensors`` file.

    Raises:
        InputError: There is no such file.
        ModelError: Not tensors, or a pickle with anything but tensors in it.
    """
    file = Path(path)
    data = _read(file)
    if file.suffix == ".safetensors":
        return _tensors(file, data)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises whatever the file makes it raise
        raise ModelError(
            "refused: not a file of plain tensors (a pickle can run code)", where=file, fix="convert it to safetensors"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ModelError("holds no dictionary of tensors", where=file)
    return {str(k): v for k, v in content.items()}


def _read(file: Path) -> bytes:
    if not file.is_file():
        raise InputError("no such file", where=file)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read ({error.strerror})", where=file) from error
    if not data:
        raise ModelError("file is empty", where=file)
    return data


def _metadata(file: Path, data: bytes) -> dict[str, str]:
    """The safetensors header's own dictionary of words."""
    try:
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        return dict(header.get("__metadata__", {}))
    except (struct.error, ValueError, TypeError, AttributeError, RecursionError) as error:
        if data[:2] == b"PK" or data[:1] == b"\x80":
            raise ModelError(
                "a pickle, not a cdga checkpoint: refused, since it could run code",
                where=file,
                fix="for published weights use: cdga export --weights FILE --model NAME --imgsz H,W -o model.cdga",
            ) from error
        raise ModelError("not a cdga checkpoint, or cut short", where=file, fix=_instead_of(file)) from error


def _tensors(file: Path, data: bytes) -> dict[str, Tensor]:
    try:
        return dict(safetensors.torch.load(data))
    except (SafetensorError, ValueError, KeyError) as error:
        raise IntegrityError("damaged or cut short", where=file, fix=_instead_of(file)) from error


def _instead_of(file: Path) -> str:
    """What to do without ``file``: a candidate is a network to export or to begin with, and no training state."""
    folder = file.parents[1] if file.parent.name == CANDIDATES else file.parent
    others = [other for other in sorted((folder / CANDIDATES).glob("[0-9]*.safetensors")) if other != file]
    if not others:
        return "copy it again from where it was whole, or train again"
    return f"export or evaluate {others[-1]}, or start a new run with weights={others[-1]}"


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """sha256 over the JSON text and every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()


def _two(values: list[int]) -> tuple[int, int]:
    height, width = values
    return height, width
