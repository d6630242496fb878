"""Data-parallel training: one process per device, started by ``torchrun``, gradients averaged after each backward.

Not torch's DistributedDataParallel: it wraps a module whose forward is called once before one backward, and here G runs
on two domains, and D is frozen in one backward and trained in the next (docs/decisions/0008).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cdga_sdk.errors import UsageError

__all__ = ["ALONE", "Processes", "process_group"]

# The first process labels the target and scores candidates while the others wait for it.
_TIMEOUT: Final = timedelta(hours=12)


@dataclass(frozen=True, kw_only=True)
class Processes:
    """This process among those that train together.

    Attributes:
        rank: Its number, from 0; process 0 writes the files.
        count: How many there are.
        local_rank: Its number on this machine, and that of its CUDA device.
        control: A group on the CPU for flags, which needs no wait for the device; None when alone.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    control: dist.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def slots(self, accumulate: int) -> range:
        """The forward passes of an iteration that are this process's, among ``count * accumulate``."""
        return range(self.rank * accumulate, (self.rank + 1) * accumulate)

    def device_name(self, name: str) -> str:
        """``auto`` and ``cuda`` mean this process's own CUDA device where several train together."""
        is_shared = self.count > 1 and (name == "cuda" or (name == "auto" and torch.cuda.is_available()))
        return f"cuda:{self.local_rank}" if is_shared else name

    def any(self, flag: bool) -> bool:
        """Whether any process has the flag; all must ask at the same point."""
        if self.count == 1:
            return flag
        value = torch.tensor(int(flag))
        dist.all_reduce(value, op=dist.ReduceOp.MAX, group=self.control)
        return bool(value)

    def word(self, text: str) -> str:
        """The first process's ``text``, in all of them."""
        if self.count == 1:
            return text
        words = [text]
        dist.broadcast_object_list(words, src=0, group=self.control)
        return words[0]

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.any(flag=False)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its mean over the processes."""
        self._average([p.grad for p in parameters if p.grad is not None])

    def average_buffers(self, modules: Iterable[nn.Module]) -> None:
        """Replace BatchNorm's running statistics by their mean over the processes: each saw its own images."""
        self._average([b for module in modules for b in module.buffers() if b.is_floating_point()])

    def average_values(self, values: dict[str, float]) -> dict[str, float]:
        """The mean over the processes of values for the log."""
        if self.count == 1:
            return values
        row = torch.tensor(list(values.values()), dtype=torch.float64)
        dist.all_reduce(row, group=self.control)
        return dict(zip(values, (row / self.count).tolist(), strict=True))

    def _average(self, tensors: list[Tensor]) -> None:
        # Cost: one copy in, one all-reduce, one copy out; 176 MB for DeepLab-v2 ResNet-101, once per step however many
        # forward passes are accumulated. It does not overlap with the backward, as DistributedDataParallel's does.
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([t.reshape(-1) for t in tensors])
        dist.all_reduce(flat)
        flat /= self.count
        for tensor, mean in zip(tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True):
            tensor.copy_(mean.view(tensor.shape))


ALONE: Final = Processes()


@contextmanager
def process_group(device: str) -> Iterator[Processes]:
    """The processes that ``torchrun`` started, or this one alone.

    Args:
        device: What the run was asked to train on: NCCL carries the gradients on CUDA, Gloo on the CPU.

    Raises:
        UsageError: A device with a number, which would be shared by all processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    if device not in {"auto", "cpu", "cuda"}:
        raise UsageError(f"torchrun gives every process its own device, got '{device}'", fix="use device=auto")
    is_cuda = device != "cpu" and torch.cuda.is_available()
    if is_cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if is_cuda else "gloo", timeout=_TIMEOUT)
    try:
        yield Processes(
            rank=dist.get_rank(),
            count=dist.get_world_size(),
            local_rank=int(os.environ["LOCAL_RANK"]),
            control=dist.new_group(backend="gloo", timeout=_TIMEOUT),
        )
    finally:
        dist.destroy_process_group()
