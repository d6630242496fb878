"""What this computer is and what of it this process may use, from the standard library alone."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["NO_DRIVER", "Machine", "cuda_driver", "this_machine", "usable_cpus"]

NO_DRIVER: Final = "no NVIDIA driver"

# As the kernel calls them, and as people do; x86 first, then ARM.
_INSTRUCTION_SETS: Final = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx_vnni": "AVX-VNNI",
    "avx512_vnni": "AVX512-VNNI",
    "avx512_bf16": "AVX512-BF16",
    "avx512_fp16": "AVX512-FP16",
    "amx_int8": "AMX-INT8",
    "amx_bf16": "AMX-BF16",
    "asimd": "NEON",
    "asimdhp": "FP16",
    "asimddp": "DOTPROD",
    "i8mm": "I8MM",
    "bf16": "BF16",
    "sve": "SVE",
}
# Below this no limit is meant: version 1 of cgroups writes a number near 2**63 where there is none.
_NO_LIMIT_BYTES: Final = 2**60


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What was found; None is what this platform does not tell.

    Attributes:
        cpu: The processor's name.
        instruction_sets: Of those that a network's speed depends on, the ones it has.
        cpus: CPUs of the machine.
        usable_cpus: Those that this process may run on.
        cpu_quota: CPUs' worth of time that a control group allows; None where it sets no limit.
        memory_bytes: Memory of the machine.
        available_bytes: What of it is free or can be freed.
        memory_limit_bytes: What a control group allows; None where it sets no limit.
    """

    cpu: str
    instruction_sets: tuple[str, ...] | None
    cpus: int
    usable_cpus: int
    cpu_quota: float | None
    memory_bytes: int | None
    available_bytes: int | None
    memory_limit_bytes: int | None


def this_machine(*, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> Machine:
    """Look at this computer; a file that is not there or says something else is as good as none."""
    cpu = _fields(proc / "cpuinfo")
    memory = _fields(proc / "meminfo")
    flags = (cpu.get("flags") or cpu.get("Features") or "").split()
    quotas = [quota for folder in _groups(proc, cgroups, "cpu") if (quota := _cpu_quota(folder)) is not None]
    limits = [limit for folder in _groups(proc, cgroups, "memory") if (limit := _memory_limit(folder)) is not None]
    return Machine(
        cpu=cpu.get("model name") or platform.processor() or platform.machine(),
        instruction_sets=tuple(name for flag, name in _INSTRUCTION_SETS.items() if flag in flags) if flags else None,
        cpus=os.cpu_count() or 1,
        usable_cpus=usable_cpus(),
        cpu_quota=min(quotas, default=None),
        memory_bytes=_kib(memory.get("MemTotal")),
        available_bytes=_kib(memory.get("MemAvailable")),
        memory_limit_bytes=min(limits, default=None),
    )


def usable_cpus() -> int:
    """CPUs this process may run on (ONNX Runtime's own default counts the whole machine's)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cuda_driver() -> ctypes.CDLL | None:
    """The NVIDIA driver's library, or None; that there is a GPU it does not tell."""
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _fields(path: Path) -> dict[str, str]:
    """The first ``name: value`` line of each name."""
    found: dict[str, str] = {}
    for line in _text(path).splitlines():
        name, colon, value = line.partition(":")
        if colon:
            found.setdefault(name.strip(), value.strip())
    return found


def _kib(text: str | None) -> int | None:
    number = (text or "").removesuffix("kB").strip()
    return 1024 * int(number) if number.isdecimal() else None


def _groups(proc: Path, cgroups: Path, controller: str) -> list[Path]:
    """This process's control group and all above it, of version 2 or 1: each may set a limit."""
    for line in _text(proc / "self/cgroup").splitlines():
        _, controllers, place = [*line.split(":", 2), "", ""][:3]
        if controller in controllers.split(",") or (not controllers and (cgroups / "cgroup.controllers").exists()):
            top = cgroups / controller if controllers else cgroups
            inside = Path(place.lstrip("/"))
            # In a container the group's own path may not be there, for it is the container's top.
            return [top / inside, *(top / above for above in inside.parents), top]
    return []


def _cpu_quota(group: Path) -> float | None:
    """CPUs' worth of time: ``cpu.max`` of version 2, ``cpu.cfs_*`` of version 1."""
    quota, period = [*_text(group / "cpu.max").split(), "", ""][:2]
    if not quota:
        quota, period = (_text(group / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None


def _memory_limit(group: Path) -> int | None:
    text = (_text(group / "memory.max") or _text(group / "memory.limit_in_bytes")).strip()
    return int(text) if text.isdecimal() and int(text) < _NO_LIMIT_BYTES else None
