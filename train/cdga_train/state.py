"""Everything that training changes: networks and optimisers, made from a configuration and put into checkpoints."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from cdga_sdk.errors import ModelError, ResourceError, UsageError, one_line
from cdga_sdk.labels import CITYSCAPES_NAMES
from cdga_sdk.preprocess import Preprocess
from cdga_train.checkpoint import Checkpoint, read_published_weights
from cdga_train.config import TrainConfig
from cdga_train.models.discriminator import GroupDiscriminator
from cdga_train.models.grouping import GroupingNetwork
from cdga_train.models.registry import network_spec
from cdga_train.step import CdgaNetworks

__all__ = ["TrainingState", "build_network", "choose_device", "load_weights"]

# What each optimiser keeps of a parameter.
_KEPT_BY: Final[Mapping[type[Optimizer], frozenset[str]]] = {
    SGD: frozenset({"momentum_buffer"}),
    Adam: frozenset({"step", "exp_avg", "exp_avg_sq"}),
    AdamW: frozenset({"step", "exp_avg", "exp_avg_sq"}),
}


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


def build_network(checkpoint: Checkpoint) -> nn.Module:
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
    """Networks and optimisers of one run; `iteration` counts the iterations done."""

    config: TrainConfig
    preprocess: Preprocess
    networks: CdgaNetworks
    optimisers: dict[str, Optimizer]
    iteration: int = 0

    @classmethod
    def new(cls, config: TrainConfig, device: torch.device) -> TrainingState:
        """Random weights from the seed, or the published ones that the configuration names."""
        torch.manual_seed(config.seed)
        spec = network_spec(config.model, config.imgsz)
        num_classes = len(CITYSCAPES_NAMES)
        networks = CdgaNetworks(
            network=spec.build(num_classes),
            grouping=GroupingNetwork(num_classes, config.num_groups),
            discriminator=GroupDiscriminator(num_classes),
        )
        if config.weights is not None:
            published = spec.published_state(read_published_weights(config.weights))
            load_weights(networks.network, published, config.weights)
        for module in (networks.network, networks.grouping, networks.discriminator):
            module.to(device).train()
        return cls(
            config=config,
            preprocess=Preprocess(imgsz_hw=config.imgsz),
            networks=networks,
            optimisers=_optimisers(networks, config),
        )

    @classmethod
    def resumed(cls, checkpoint: Checkpoint, config: TrainConfig, device: torch.device) -> TrainingState:
        """The state of ``checkpoint``, going on under ``config``.

        Raises:
            ModelError: The checkpoint does not fit the configuration.
        """
        # Published weights need not be there any more: every tensor comes from the checkpoint.
        state = cls.new(replace(config, weights=None), device)
        state.config = config
        for name, module in state._modules().items():
            load_weights(module, checkpoint.part(name), f"the checkpoint's {name}")
        for name, optimiser in state.optimisers.items():
            _load_optimiser(optimiser, checkpoint.part(f"optim/{name}"))
        state.iteration = checkpoint.iteration
        return state

    def set_learning_rates(self) -> None:
        """Poly schedule: every base rate times ``(1 - iteration / poly_iters) ** poly_power``."""
        optim = self.config.optim
        done = min(self.iteration / (optim.poly_iters or self.config.iters), 1.0)
        factor = (1 - done) ** optim.poly_power
        for optimiser in self.optimisers.values():
            for group in optimiser.param_groups:
                group["lr"] = group["base_lr"] * factor

    def checkpoint(self) -> Checkpoint:
        """Everything that `resumed` needs."""
        tensors = {f"{part}/{k}": v for part, m in self._modules().items() for k, v in m.state_dict().items()}
        for name, optimiser in self.optimisers.items():
            tensors.update({f"optim/{name}/{k}": v for k, v in _optimiser_tensors(optimiser).items()})
        return Checkpoint(
            config=self.config,
            iteration=self.iteration,
            preprocess=self.preprocess,
            names=CITYSCAPES_NAMES,
            tensors=tensors,
        )

    def fingerprint(self) -> str:
        """sha256 of every weight and optimiser tensor: equal runs have equal fingerprints."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.checkpoint().tensors.items()):
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def is_finite(self) -> bool:
        """Whether every tensor that a checkpoint would hold is finite: weights, BatchNorm's statistics, optimisers."""
        return all(bool(torch.isfinite(tensor).all()) for tensor in self.checkpoint().tensors.values())

    def _modules(self) -> dict[str, nn.Module]:
        modules: dict[str, nn.Module] = {"network": self.networks.network}
        if self.config.arm == "cdga":
            modules |= {"grouping": self.networks.grouping, "discriminator": self.networks.discriminator}
        return modules


def _optimisers(networks: CdgaNetworks, config: TrainConfig) -> dict[str, Optimizer]:
    optim = config.optim
    decay, momentum = optim.weight_decay, optim.momentum
    network = _with_base_lr(networks.network.parameters(), optim.lr)
    optimisers: dict[str, Optimizer] = {
        "network": SGD(network, lr=optim.lr, momentum=momentum, weight_decay=decay)
        if optim.name == "sgd"
        else AdamW(network, lr=optim.lr, weight_decay=decay)
    }
    if config.arm == "cdga":
        grouping = _with_base_lr(networks.grouping.parameters(), optim.grouping_lr)
        discriminator = _with_base_lr(networks.discriminator.parameters(), optim.discriminator_lr)
        optimisers["grouping"] = SGD(grouping, lr=optim.grouping_lr, momentum=momentum, weight_decay=decay)
        optimisers["discriminator"] = Adam(discriminator, lr=optim.discriminator_lr, betas=(0.9, 0.99))
    return optimisers


def _with_base_lr(parameters: Iterable[nn.Parameter], lr: float) -> list[dict[str, Any]]:
    return [{"params": list(parameters), "base_lr": lr}]


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
