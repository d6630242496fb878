"""Everything that training changes: networks and optimisers, made from a configuration and put into checkpoints."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import SGD, Adam, AdamW, Optimizer

from cdga_sdk.errors import ModelError, ResourceError, UsageError, one_line
from cdga_sdk.labels import CITYSCAPES_NAMES
from cdga_sdk.preprocess import Preprocess
from cdga_train.averaging import average_in, newest_share
from cdga_train.checkpoint import Checkpoint, Draws, is_checkpoint, load_checkpoint, read_published_weights
from cdga_train.config import IMAGENET, TrainConfig
from cdga_train.models.base import SegmentationNetwork
from cdga_train.models.discriminator import MIN_SIDE, GroupDiscriminator, OutputDiscriminator
from cdga_train.models.fused import Normalise
from cdga_train.models.grouping import GroupingNetwork
from cdga_train.models.registry import network_spec
from cdga_train.step import Networks

__all__ = ["TrainingState", "build_network", "choose_device", "load_weights", "refuse_sizes"]

# What each optimiser keeps of a parameter.
_KEPT_BY: Final[Mapping[type[Optimizer], frozenset[str]]] = {
    SGD: frozenset({"momentum_buffer"}),
    Adam: frozenset({"step", "exp_avg", "exp_avg_sq"}),
    AdamW: frozenset({"step", "exp_avg", "exp_avg_sq"}),
}
_AUTOCAST: Final[Mapping[str, torch.dtype]] = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str) -> torch.device:
    """``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``cuda:1``.

    Raises:
        UsageError: No such device.
        ResourceError: CUDA was asked for and is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(f"cuda:{name}" if name.isdecimal() else name)
    except RuntimeError as error:
        raise UsageError(f"unknown device '{name}'", fix="use auto, cpu, cuda or cuda:N") from error
    if device.type not in {"cpu", "cuda"}:
        raise UsageError(f"device '{name}' is not one to train on", fix="use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ResourceError(f"{device} was asked for and torch finds none", fix="use device=cpu, or check the driver")
    return device


def refuse_sizes(config: TrainConfig) -> None:
    """Refuse images that the network does not take, or whose maps are too small for BatchNorm or the discriminator.

    Raises:
        UsageError: Such a size, or an unknown network.
    """
    for key, size_hw in (("source_imgsz", config.source_size), ("imgsz", config.imgsz)):
        where = "imgsz" if config.source_imgsz is None else key
        spec = network_spec(config.model, size_hw, where=where)
        # The coarsest features have the stride that sides must be multiples of.
        coarsest_h, coarsest_w = (side // spec.size_multiple for side in size_hw)
        if config.batch * coarsest_h * coarsest_w < 2:
            raise UsageError(
                "BatchNorm would get a single value per channel: one image, and a map of 1x1",
                where=where,
                fix="use batch=2 or more, or larger images",
            )
        if not config.is_adapting or not config.losses.adversarial or config.align_resolution == "input":
            continue
        height, width = (side // spec.output_stride for side in size_hw)
        if min(height, width) < MIN_SIDE:
            wanted = ",".join(str(max(side, MIN_SIDE * spec.output_stride)) for side in size_hw)
            raise UsageError(
                f"the discriminator would get maps of {height},{width}, and each side must be at least {MIN_SIDE}",
                where=where,
                fix=f"use {wanted} or more, or align_resolution=input",
            )


def build_network(checkpoint: Checkpoint) -> SegmentationNetwork:
    """The segmentation network of a checkpoint, in eval mode on the CPU.

    Raises:
        ModelError: The checkpoint's tensors do not fit its network.
    """
    spec = network_spec(checkpoint.config.model, checkpoint.preprocess.imgsz_hw)
    network = spec.build(len(checkpoint.names))
    load_weights(network, checkpoint.part("network"), "the checkpoint's network")
    return network.eval()


def load_weights(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Load strictly.

    Raises:
        ModelError: Names or shapes do not fit.
    """
    try:
        module.load_state_dict(dict(state), strict=True)
    except RuntimeError as error:
        raise ModelError(f"{what} does not fit ({one_line(error)[:160]})") from error


@dataclass(kw_only=True)
class TrainingState:
    """Networks and optimisers of one run.

    Attributes:
        config: The run.
        device: Where the networks are.
        preprocess: What G's input must look like.
        normalise: Makes that of uint8 frames, on the device.
        networks: G, C and D.
        average: Of G's weights over the iterations, on the device, where the configuration asks for it.
        optimisers: One for each of G, C and D, by the same names.
        scaler: Scales the losses in fp16, so that small gradients survive; does nothing otherwise.
        iteration: Iterations done.
        pseudo_labels: sha256 of the label set that the run trains on; None in round 1.
        draws: What each iteration draws from; None before training.
        starts_whole: Whether the weights it began with are of a whole network, head and all: one that may be good
            enough as it is.
    """

    config: TrainConfig
    device: torch.device
    preprocess: Preprocess
    normalise: Normalise
    networks: Networks
    average: SegmentationNetwork | None
    optimisers: dict[str, Optimizer]
    scaler: GradScaler
    iteration: int = 0
    pseudo_labels: str | None = None
    draws: Draws | None = None
    starts_whole: bool = False

    @classmethod
    def new(cls, config: TrainConfig, device: torch.device) -> TrainingState:
        """Random weights from the seed, or those that the configuration names: published ones, or a checkpoint's.

        Raises:
            UsageError: The network has no deterministic kernels on ``device``, and they were asked for.
        """
        if config.deterministic and device.type == "cuda":
            _refuse_random_kernels(config)
        torch.manual_seed(config.seed)
        networks = _networks(config)
        starts_whole = config.weights is not None and _load_published(networks.network, config) == "network"
        if config.freeze_bn_affine:
            _freeze_affine(networks.network)
        for module in networks.parts().values():
            module.to(device).train()
        if config.channels_last:
            networks.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch leaves it out
        # Before compile(): a compiled module cannot be copied.
        average = None if config.average_power is None else copy.deepcopy(networks.network)
        if config.compile:
            for module in networks.parts().values():
                module.compile()
        preprocess = Preprocess(imgsz_hw=config.imgsz)
        return cls(
            config=config,
            device=device,
            preprocess=preprocess,
            normalise=Normalise(preprocess).to(device),
            networks=networks,
            average=average,
            optimisers=_optimisers(networks, config),
            scaler=GradScaler(device.type, enabled=config.precision == "fp16"),
            starts_whole=starts_whole,
        )

    @classmethod
    def resumed(cls, checkpoint: Checkpoint, config: TrainConfig, device: torch.device) -> TrainingState:
        """The state of ``checkpoint``, going on under ``config``.

        Raises:
            ModelError: The checkpoint does not fit the configuration.
        """
        if bool(checkpoint.part("iterate")) != (config.average_power is not None):
            raise ModelError(
                f"the checkpoint holds {'an' if checkpoint.part('iterate') else 'no'} average of its iterates",
                fix="resume with the same average_power",
            )
        # Published weights need not be there any more: every tensor comes from the checkpoint.
        state = cls.new(replace(config, weights=None), device)
        state.config = config
        for name, module in state.modules().items():
            load_weights(module, checkpoint.part(name), f"the checkpoint's {name}")
        for name, optimiser in state.optimisers.items():
            _load_optimiser(optimiser, checkpoint.part(f"optim/{name}"))
        if state.scaler.is_enabled():
            state.scaler.load_state_dict(_scaler_state(state.scaler, checkpoint.part("scaler")))
        state.iteration = checkpoint.iteration
        state.pseudo_labels = checkpoint.pseudo_labels
        state.draws = checkpoint.draws
        return state

    def modules(self) -> dict[str, nn.Module]:
        """What holds weights, by the names that a checkpoint gives it: ``network`` is what the run is for."""
        parts = self.networks.parts()
        return parts if self.average is None else {**parts, "iterate": parts["network"], "network": self.average}

    def average_weights(self) -> None:
        """Let the iterate that `iteration` counts into the average, where there is one."""
        if self.average is not None and self.config.average_power is not None:
            share = newest_share(self.iteration, self.config.average_power)
            average_in(self.average, self.networks.network, share)

    def set_learning_rates(self) -> None:
        """Poly schedule: every base rate times ``(1 - iteration / poly_iters) ** poly_power``."""
        optim = self.config.optim
        done = min(self.iteration / (optim.poly_iters or self.config.iters), 1.0)
        factor = (1 - done) ** optim.poly_power
        for optimiser in self.optimisers.values():
            for group in optimiser.param_groups:
                group["lr"] = group["base_lr"] * factor

    def autocast(self) -> AbstractContextManager[object]:
        """The context of the forward passes: convolutions in the configured precision."""
        dtype = _AUTOCAST.get(self.config.precision)
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    def checkpoint(self) -> Checkpoint:
        """Everything that `resumed` needs."""
        tensors = {f"{part}/{k}": v for part, m in self.modules().items() for k, v in m.state_dict().items()}
        for name, optimiser in self.optimisers.items():
            tensors.update({f"optim/{name}/{k}": v for k, v in _optimiser_tensors(optimiser).items()})
        if self.scaler.is_enabled():
            kept = self.scaler.state_dict()
            tensors.update({f"scaler/{key}": torch.tensor(kept[key], dtype=torch.float64) for key in _SCALER_KEYS})
        return self._checkpoint_of(tensors)

    def candidate(self) -> Checkpoint:
        """The segmentation network alone: what is exported, scored and chosen between."""
        network = self.modules()["network"]
        return self._checkpoint_of({f"network/{k}": v for k, v in network.state_dict().items()})

    def fingerprint(self) -> str:
        """sha256 of every weight and optimiser tensor: equal runs have equal fingerprints."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.checkpoint().tensors.items()):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def is_finite(self) -> bool:
        """Whether every tensor that a checkpoint would hold is finite: weights, BatchNorm's statistics, optimisers."""
        by_device: dict[torch.device, list[Tensor]] = {}
        for tensor in self.checkpoint().tensors.values():
            by_device.setdefault(tensor.device, []).append(torch.isfinite(tensor).all())
        return all(bool(torch.stack(flags).all()) for flags in by_device.values())  # one wait for the GPU, not hundreds

    def _checkpoint_of(self, tensors: dict[str, Tensor]) -> Checkpoint:
        return Checkpoint(
            config=self.config,
            iteration=self.iteration,
            preprocess=self.preprocess,
            names=CITYSCAPES_NAMES,
            tensors=tensors,
            pseudo_labels=self.pseudo_labels,
            draws=self.draws,
        )


_SCALER_KEYS: Final = ("scale", "_growth_tracker")


def _scaler_state(scaler: GradScaler, kept: Mapping[str, Tensor]) -> dict[str, Any]:
    if set(kept) != set(_SCALER_KEYS):
        raise ModelError("the checkpoint has no loss scale", fix="resume with the same precision")
    scale, growth_tracker = (float(kept[key]) for key in _SCALER_KEYS)
    return {**scaler.state_dict(), "scale": scale, "_growth_tracker": int(growth_tracker)}


def _networks(config: TrainConfig) -> Networks:
    network_spec(config.model, config.source_size)  # refuses a size that does not fit
    spec = network_spec(config.model, config.imgsz)
    num_classes = len(CITYSCAPES_NAMES)
    network = spec.build(num_classes)
    match config.arm:
        case "source_only":
            return Networks(network=network)
        case "baseline":
            return Networks(network=network, discriminator=OutputDiscriminator(num_classes))
        case "cdga":
            return Networks(
                network=network,
                grouping=GroupingNetwork(num_classes, config.num_groups),
                discriminator=GroupDiscriminator(num_classes, detach_q=config.losses.detach_q),
            )


def _load_published(network: SegmentationNetwork, config: TrainConfig) -> Literal["network", "backbone"]:
    assert config.weights is not None
    spec = network_spec(config.model, config.imgsz)
    file = _imagenet_file(config) if config.weights == IMAGENET else Path(config.weights)
    if is_checkpoint(file):
        _load_own(network, config, load_checkpoint(file))
        return "network"
    try:
        return spec.load_published(network, read_published_weights(file))
    except ModelError as error:
        raise ModelError(error.what, where=config.weights, fix=error.fix) from error


def _load_own(network: SegmentationNetwork, config: TrainConfig, checkpoint: Checkpoint) -> None:
    if checkpoint.config.model != config.model:
        raise ModelError(
            f"is of the network {checkpoint.config.model}, and this run's is {config.model}",
            where=config.weights,
            fix=f"use model={checkpoint.config.model}",
        )
    load_weights(network, checkpoint.part("network"), "the checkpoint's network")


def _imagenet_file(config: TrainConfig) -> Path:
    find = network_spec(config.model, config.imgsz).imagenet_file
    if find is None:
        raise UsageError(
            f"no package brings ImageNet weights of {config.model}", where="weights", fix="name a file: weights=FILE"
        )
    return find()


def _refuse_random_kernels(config: TrainConfig) -> None:
    if not network_spec(config.model, config.imgsz).is_deterministic_on_cuda:
        raise UsageError(
            f"torch has no deterministic gradient of {config.model}'s bicubic upsampling on CUDA",
            where="deterministic",
            fix="use deterministic=false, device=cpu, or another model",
        )


def _freeze_affine(network: SegmentationNetwork) -> None:
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for parameter in (module.weight, module.bias):
                parameter.requires_grad_(False)  # noqa: FBT003 - positional only in torch's own types


def _optimisers(networks: Networks, config: TrainConfig) -> dict[str, Optimizer]:
    optim = config.optim
    decay, momentum = optim.weight_decay, optim.momentum
    network = _with_base_lr(networks.network.backbone.parameters(), optim.lr)
    network += _with_base_lr(networks.network.head.parameters(), optim.lr * optim.head_lr_factor)
    optimisers: dict[str, Optimizer] = {
        "network": SGD(network, lr=optim.lr, momentum=momentum, weight_decay=decay)
        if optim.name == "sgd"
        else AdamW(network, lr=optim.lr, weight_decay=decay)
    }
    if networks.grouping is not None:
        grouping = _with_base_lr(networks.grouping.parameters(), optim.grouping_lr)
        optimisers["grouping"] = SGD(grouping, lr=optim.grouping_lr, momentum=momentum, weight_decay=decay)
    if networks.discriminator is not None:
        discriminator = _with_base_lr(networks.discriminator.parameters(), optim.discriminator_lr)
        optimisers["discriminator"] = Adam(discriminator, lr=optim.discriminator_lr, betas=(0.9, 0.99))
    return optimisers


def _with_base_lr(parameters: Iterable[nn.Parameter], lr: float) -> list[dict[str, Any]]:
    return [{"params": [p for p in parameters if p.requires_grad], "base_lr": lr}]


def _optimiser_tensors(optimiser: Optimizer) -> dict[str, Tensor]:
    state = optimiser.state_dict()["state"]
    return {
        f"{index}/{key}": value for index, kept in state.items() for key, value in kept.items() if value is not None
    }


def _load_optimiser(optimiser: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition("/")
        state.setdefault(int(index), {})[key] = tensor
    # torch lets SGD take Adam's state without a word, and then starts its momentum anew.
    if any(set(kept) != _KEPT_BY[type(optimiser)] for kept in state.values()):
        raise ModelError("the checkpoint's optimiser does not fit", fix="resume with the same optim.name")
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
