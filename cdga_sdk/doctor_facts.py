"""What ``cdga doctor`` tells: one function for each fact, from what was found to what it means and how to mend it."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Final, Literal

from cdga_sdk import __version__
from cdga_sdk.backends.choice import Candidate
from cdga_sdk.errors import CdgaError
from cdga_sdk.library_probe import DECODERS, ENCODER, Answer
from cdga_sdk.machine import NO_DRIVER, Machine
from cdga_sdk.models.catalogue import DEFAULT

__all__ = [
    "TENSORRT_EXTRAS",
    "Fact",
    "Level",
    "Trial",
    "cores_fact",
    "cpu_fact",
    "engine_cache_fact",
    "memory_fact",
    "nvidia_fact",
    "onnxruntime_fact",
    "opencv_fact",
    "openvino_fact",
    "packages_fact",
    "pyav_fact",
    "python_fact",
    "run_folder_fact",
    "segmenting_fact",
    "tensorrt_fact",
    "torch_fact",
]

Level = Literal["ok", "note", "problem"]

_GIB: Final = 2**30
_LITTLE_BYTES: Final = 1 * _GIB  # of disk or memory

# Distributions that bring the same import and write over each other's files; the first is what this project declares.
_ONNX_RUNTIMES: Final = ("onnxruntime-gpu", "onnxruntime", "onnxruntime-directml", "onnxruntime-openvino")
_OPENCVS: Final = (
    "opencv-python",
    "opencv-python-headless",
    "opencv-contrib-python",
    "opencv-contrib-python-headless",
)
TENSORRT_EXTRAS: Final = {"tensorrt": "trt", "tensorrt_rtx": "trt-rtx"}
_DECIDING_X86: Final = "AVX2"


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One thing that was looked at.

    Attributes:
        name: What, always the same word.
        level: ``ok``, ``note`` (works, could be better) or ``problem``.
        text: What was found, in one line.
        fix: What to do about it.
        stops: ``cdga segment`` cannot work because of it, or gives wrong labels.
        details: The same for programs, plain values by name; empty where nothing was found.
    """

    name: str
    level: Level
    text: str
    fix: str | None = None
    stops: bool = False
    details: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A frame that was segmented here, with the runtime that ``auto`` takes.

    Attributes:
        backend: Runtime, device and arithmetic.
        candidates: Every runtime that was considered, in order, and why it was taken or not.
        imgsz_hw: Height and width of the frame, pixels.
        inference_ms: Median time of the network.
        agreement: Share of the frame's pixels that have the class they should.
        min_agreement: What that share was, or had to be, when the bundle was exported.
    """

    backend: str
    candidates: tuple[Candidate, ...]
    imgsz_hw: tuple[int, int]
    inference_ms: float
    agreement: float
    min_agreement: float


def python_fact() -> Fact:
    """Python, the platform and this distribution."""
    version = platform.python_version()
    return Fact(
        name="python",
        level="ok",
        text=f"{platform.python_implementation()} {version} on {platform.platform()}, cdga-sdk {__version__}",
        details={"version": version, "cdga_sdk": __version__, "platform": platform.platform()},
    )


def cpu_fact(machine: Machine) -> Fact:
    """The processor and the instruction sets that matter."""
    sets = machine.instruction_sets
    slow = sets is not None and platform.machine() in {"x86_64", "AMD64"} and _DECIDING_X86 not in sets
    told = "instruction sets are not told here" if sets is None else ", ".join(sets) or "no vector instructions"
    return Fact(
        name="cpu",
        level="note" if slow else "ok",
        text=f"{machine.cpu}: {told}",
        fix=f"without {_DECIDING_X86} networks run slowly; give a virtual machine its host's CPU model"
        if slow
        else None,
        details={"name": machine.cpu, "instruction_sets": None if sets is None else list(sets)},
    )


def cores_fact(machine: Machine) -> Fact:
    """CPUs of this process, and whether a container's limit makes that many threads wait."""
    quota, usable = machine.cpu_quota, machine.usable_cpus
    too_few = quota is not None and quota < usable
    text = f"this process may use {usable} of {machine.cpus} CPUs"
    return Fact(
        name="cores",
        level="note" if too_few else "ok",
        text=f"{text}, but its control group allows the time of {quota:g}" if too_few else text,
        fix=f"pass --threads {max(1, int(quota))}, for more threads wait for each other" if too_few and quota else None,
        details={"cpus": machine.cpus, "usable_cpus": usable, "cpu_quota": quota},
    )


def memory_fact(machine: Machine) -> Fact:
    """Memory, and what a container's limit leaves of it."""
    total, available, limit = machine.memory_bytes, machine.available_bytes, machine.memory_limit_bytes
    known = [size for size in (available, limit) if size is not None]
    little = min(known, default=_LITTLE_BYTES) < _LITTLE_BYTES
    parts = [
        "size is not told here" if total is None else f"{total / _GIB:.1f} GiB",
        "" if available is None else f"{available / _GIB:.1f} GiB available",
        "" if limit is None else f"a control group allows {limit / _GIB:.1f} GiB",
    ]
    return Fact(
        name="memory",
        level="note" if little else "ok",
        text=", ".join(filter(None, parts)),
        fix="free some, raise the limit, or export with a smaller --imgsz" if little else None,
        details={"bytes": total, "available_bytes": available, "limit_bytes": limit},
    )


def onnxruntime_fact(answer: Answer, *, driver: bool) -> Fact:
    """ONNX Runtime, from what its probe found."""
    installed = _installed(_ONNX_RUNTIMES)
    if answer.error:
        return _broken("onnxruntime", answer, installed, "pip install cdga-sdk")
    providers = [name.removesuffix("ExecutionProvider") for name in answer.found["providers"]]
    unused = driver and "CUDA" not in providers
    return Fact(
        name="onnxruntime",
        level="note" if unused else "ok",
        text=f"{answer.found['version']} with {', '.join(providers)}",
        fix="for the GPU: pip uninstall onnxruntime && pip install onnxruntime-gpu" if unused else None,
        details={**answer.found, "distributions": installed},
    )


def openvino_fact(answer: Answer, *, driver: bool) -> Fact:
    """OpenVINO, from what its probe found; it may be missing."""
    get = "pip install 'cdga-sdk[openvino]'"
    if answer.missing:
        level: Level = "ok" if driver else "note"
        return Fact(name="openvino", level=level, text="not installed; on CPUs it is the faster runtime", fix=get)
    if answer.error:
        return _broken("openvino", answer, _installed(("openvino",)), get)
    found = answer.found
    text = f"{found['version']} for {', '.join(found['devices'])}; this CPU: {', '.join(found['cpu_capabilities'])}"
    return Fact(name="openvino", level="ok", text=text, details=found)


def nvidia_fact(answer: Answer | None) -> Fact:
    """GPUs and their driver, from what the probe found; None where there is no driver."""
    if answer is None:
        return Fact(name="nvidia", level="ok", text=f"{NO_DRIVER}: networks run on the CPU")
    if answer.error:
        return Fact(name="nvidia", level="problem", text=answer.error, fix=answer.fix or "see what nvidia-smi says")
    found = answer.found
    gpus = [f"{g['name']} (SM {g['sm']}, {g['memory_bytes'] / _GIB:.0f} GiB)" for g in found["gpus"]]
    text = f"{', '.join(gpus) or 'no GPU'}; driver {found['driver']}, CUDA {found['cuda']}"
    fix = None if gpus else "see what nvidia-smi says, and whether CUDA_VISIBLE_DEVICES hides the GPUs"
    return Fact(name="nvidia", level="ok" if gpus else "problem", text=text, fix=fix, details=found)


def tensorrt_fact(answers: Mapping[str, Answer], *, driver: bool) -> Fact:
    """Loaded only where there is a driver, without which it is of no use but to build engines for elsewhere."""
    versions = {product: next(iter(_installed((product,)).values()), None) for product in TENSORRT_EXTRAS}
    text = ", ".join(f"{product} {version or 'not installed'}" for product, version in versions.items())
    for product, answer in answers.items():
        if versions[product] and answer.error:
            return Fact(
                name="tensorrt",
                level="problem",
                text=f"{text}; {product}: {answer.error}",
                fix=f"pip install --force-reinstall 'cdga-sdk[{TENSORRT_EXTRAS[product]}]'",
                details=versions,
            )
    lacking = driver and not any(versions.values())
    return Fact(
        name="tensorrt",
        level="note" if lacking else "ok",
        text=text,
        fix="for the GPU: pip install 'cdga-sdk[trt]'" if lacking else None,
        details=versions,
    )


def torch_fact() -> Fact:
    """Whether torch is installed, which segmenting does without."""
    version = _installed(("torch",)).get("torch")
    text = "not installed; cdga train and cdga export need it: pip install 'cdga-sdk[export]'"
    return Fact(name="torch", level="ok", text=version or text, details={"version": version})


def opencv_fact(answer: Answer) -> Fact:
    """OpenCV, from what its probe found."""
    installed = _installed(_OPENCVS)
    if answer.error:
        return _broken("opencv", answer, installed, "pip install cdga-sdk")
    details = {**answer.found, "distributions": installed}
    return Fact(name="opencv", level="ok", text=answer.found["version"], details=details)


def pyav_fact(answer: Answer) -> Fact:
    """PyAV and its codecs, from what the probe found: without the encoder no video can be written."""
    if answer.error:
        return _broken("pyav", answer, _installed(("av",)), "pip install cdga-sdk")
    found = answer.found
    lacking = [name for name in DECODERS if name not in found["decoders"]]
    unwritable, unreadable = ENCODER not in found["encoders"], DECODERS[0] in lacking
    text = f"{found['version']} decodes {', '.join(found['decoders']) or 'nothing of use'}"
    text += f", but not {', '.join(lacking)}" if lacking else ""
    return Fact(
        name="pyav",
        level="problem" if unwritable or unreadable else "note" if lacking else "ok",
        text=f"{text}; {'has no' if unwritable else 'encodes H.264 with'} {ENCODER}",
        fix="take PyAV's own wheel: pip install --force-reinstall --only-binary av av"
        if lacking or unwritable
        else None,
        stops=unwritable or unreadable,
        details=found,
    )


def packages_fact() -> Fact:
    """Distributions that install over each other."""
    clashes = [found for family in (_OPENCVS, _ONNX_RUNTIMES) if len(found := _installed(family)) > 1]
    if not clashes:
        return Fact(name="packages", level="ok", text="none that write over each other", details={"clashes": []})
    mend = [f"pip uninstall -y {' '.join(names)} && pip install {next(iter(names))}" for names in clashes]
    return Fact(
        name="packages",
        level="problem",
        text="; ".join(f"{' and '.join(names)} write over each other's files" for names in clashes),
        fix=" ; ".join(mend),
        details={"clashes": [list(names) for names in clashes]},
    )


def engine_cache_fact(*, driver: bool) -> Fact:
    """Whether TensorRT engines can be kept; nothing is made."""
    from cdga_sdk.backends.engine_cache import EngineCache, cache_folder
    from cdga_sdk.backends.engine_eviction import limit_bytes

    folder: Path | None = None
    size, why, fix = 0, "", "set CDGA_CACHE to a folder that only you may write to"
    try:
        folder = cache_folder()
        limit = limit_bytes()
        if os.path.lexists(folder):
            EngineCache(folder)  # refuses what is not the user's own; makes nothing where the folder is there
            size = _size_of(folder)
        why = _unwritable(folder)
    except (CdgaError, OSError) as error:
        why, limit = str(error), 0
    return Fact(
        name="engine_cache",
        level=("problem" if driver else "note") if why else "ok",
        text=f"no TensorRT engine can be kept: {why}"
        if why
        else f"{folder}: {size / _GIB:.2f} of {limit / _GIB:g} GiB",
        fix=fix if why else None,
        details={"folder": None if folder is None else str(folder), "bytes": size, "writable": not why},
    )


def run_folder_fact(runs: Path) -> Fact:
    """Whether there is space where ``cdga segment`` writes to by default; nothing is made."""
    place = _nearest(runs)
    why = _unwritable(runs)
    free = shutil.disk_usage(place).free if place.exists() else 0  # it may be a link to a disk that is not mounted
    little = free < _LITTLE_BYTES
    return Fact(
        name="run_folder",
        level="problem" if why else "note" if little else "ok",
        text=f"{why} in {place.absolute()}" if why else f"{free / _GIB:.1f} GiB free for {place.absolute()}",
        fix="choose another place with --project or -o" if why or little else None,
        details={"folder": str(runs), "free_bytes": free, "writable": not why},
    )


def segmenting_fact(answer: Answer, trial: Trial | None, model: str | None, *, gpu: bool) -> Fact:
    """Whether a frame could be segmented, and whether a GPU that is here was used for it."""
    if trial is None:
        mend = answer.fix or "mend the problems above first"
        return Fact(name="segmenting", level="problem", text=answer.error, fix=mend, stops=True)
    height, width = trial.imgsz_hw
    level: Level = "ok"
    fix: str | None = None
    if gpu and " cuda " not in trial.backend:
        level, fix = "note", "there is a GPU, but it is not used: each runtime tells why"
    is_wrong = trial.agreement < trial.min_agreement
    if is_wrong:
        level, fix = "problem", f"see what cdga verify {model or DEFAULT} says of other backends"
    return Fact(
        name="segmenting",
        level=level,
        text=f"{'a probe graph' if model is None else f'{model}, verified,'} runs on {trial.backend}: "
        f"{trial.inference_ms:.1f} ms a frame of {width}x{height}, {100 * trial.agreement:.2f} % as it should be"
        + (f", wanted {100 * trial.min_agreement:.2f} %: its labels are wrong" if is_wrong else ""),
        fix=fix,
        stops=is_wrong,
    )


def _broken(name: str, answer: Answer, installed: Mapping[str, str], get: str) -> Fact:
    """A library that is not there, or cannot be loaded."""
    again = f"pip install --force-reinstall {' '.join(installed)}" if installed else get
    told = " ".join(f"{distribution} {version}" for distribution, version in installed.items())
    text = "not installed" if answer.missing else ": ".join(filter(None, (told, answer.error)))
    return Fact(name=name, level="problem", text=text, fix=answer.fix or (get if answer.missing else again))


def _installed(distributions: Sequence[str]) -> dict[str, str]:
    """Versions of those that are installed."""
    found = {}
    for name in distributions:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _nearest(place: Path) -> Path:
    """The place, or the first above it that there is."""
    whole = place.absolute()
    return next(path for path in (whole, *whole.parents) if os.path.lexists(path))


def _unwritable(folder: Path) -> str:
    """Why no file can be made in a folder, which need not be there yet; empty where it can."""
    place = _nearest(folder)
    if not place.is_dir():
        return f"{place} is not a folder"
    return "" if os.access(place, os.W_OK | os.X_OK) else f"{place} cannot be written to"


def _size_of(folder: Path) -> int:
    size = 0
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another process may make room
            size += path.lstat().st_size
    return size
