"""What a computer is told to be, from planted files of a kernel's kind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cdga_sdk.machine import Machine, this_machine, usable_cpus


def plant(root: Path, files: dict[str, str]) -> Machine:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return this_machine(proc=root / "proc", cgroups=root / "sys")


def test_this_one() -> None:
    found = this_machine()
    assert found.cpu
    assert 1 <= found.usable_cpus <= found.cpus == os.cpu_count()
    assert found.usable_cpus == usable_cpus()


XEON = "model name\t: Some Xeon\nflags\t\t: fpu avx2 avx512f avx512_vnni avx512_bf16 amx_bf16 amx_int8\nflags\t: fpu\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimdhp asimddp i8mm bf16\n"


@pytest.mark.parametrize(
    ("cpuinfo", "wanted"),
    [
        (XEON, ("AVX2", "AVX-512", "AVX512-VNNI", "AVX512-BF16", "AMX-INT8", "AMX-BF16")),
        (ARM, ("NEON", "FP16", "DOTPROD", "I8MM", "BF16")),
        ("model name\t: Old\nflags\t\t: fpu sse4_2 avx\n", ()),
        ("", None),
    ],
)
def test_instruction_sets(cpuinfo: str, wanted: tuple[str, ...] | None, tmp_path: Path) -> None:
    assert plant(tmp_path, {"proc/cpuinfo": cpuinfo}).instruction_sets == wanted


def test_memory(tmp_path: Path) -> None:
    found = plant(tmp_path, {"proc/meminfo": "MemTotal:       16384 kB\nMemFree: 1 kB\nMemAvailable:    2048 kB\n"})
    assert (found.memory_bytes, found.available_bytes, found.memory_limit_bytes) == (16 * 2**20, 2 * 2**20, None)


def test_limits_of_version_2_are_those_of_every_group_above(tmp_path: Path) -> None:
    found = plant(
        tmp_path,
        {
            "proc/self/cgroup": "0::/pods/mine\n",
            "sys/cgroup.controllers": "cpu memory\n",
            "sys/pods/cpu.max": "150000 100000\n",
            "sys/pods/mine/cpu.max": "max 100000\n",
            "sys/pods/memory.max": "max\n",
            "sys/pods/mine/memory.max": "1048576\n",
        },
    )
    assert (found.cpu_quota, found.memory_limit_bytes) == (1.5, 1048576)


def test_a_container_sees_its_own_group_as_the_top(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/\n", "sys/cgroup.controllers": "", "sys/cpu.max": "50000 100000"}
    assert plant(tmp_path, files).cpu_quota == 0.5


def test_limits_of_version_1(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:memory:/docker/ab\n2:cpu,cpuacct:/docker/ab\n0::/\n",
        "sys/cpu/cpu.cfs_quota_us": "200000\n",
        "sys/cpu/cpu.cfs_period_us": "100000\n",
        "sys/memory/memory.limit_in_bytes": "2097152\n",
        "sys/memory/docker/ab/memory.limit_in_bytes": "9223372036854771712\n",
    }
    found = plant(tmp_path, files)
    assert (found.cpu_quota, found.memory_limit_bytes) == (2.0, 2097152)
    assert plant(tmp_path, {"sys/cpu/cpu.cfs_quota_us": "-1\n"}).cpu_quota is None


def test_files_of_another_kind_tell_nothing(tmp_path: Path) -> None:
    files = {
        "proc/cpuinfo": "\x00\xff no colons\n",
        "proc/meminfo": "MemTotal: much\n",
        "proc/self/cgroup": "nothing\n::\n",
        "sys/cpu.max": "a b\n",
    }
    found = plant(tmp_path, files)
    assert found.memory_bytes is found.available_bytes is found.cpu_quota is found.memory_limit_bytes is None
    assert found.cpu
