"""What `cdga_sdk.doctor` asks of libraries, each in a process of its own: a broken one may take its process with it.

`Probe` starts such a process, in which `main` prints its `Answer` as one line of JSON.
"""

from __future__ import annotations

import base64
import ctypes
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, Final, Self

from cdga_sdk.errors import CdgaError, ResourceError, one_line
from cdga_sdk.machine import cuda_driver

__all__ = ["DECODERS", "ENCODER", "LIBRARY_TIMEOUT_S", "PROBE_GRAPH", "Answer", "Probe", "answer_of", "main"]

ENCODER: Final = "libx264"
LIBRARY_TIMEOUT_S: Final = 60.0
DECODERS: Final = ("h264", "hevc", "vp9", "av1")

# A bundle's inputs and outputs and next to nothing between: mask is a frame's red, conf its green.
PROBE_GRAPH: Final = base64.b64decode(
    "CAg6ywEKJQoFZnJhbWUKATASBG1hc2siBkdhdGhlcioLCgRheGlzGAOgAQIKJQoFZnJhbWUKATESBGNvbmYiBkdhdGhlcioLCgRheGlzGAOgAQIS"
    "BXByb2JlKggQBzoBAEIBMCoIEAc6AQFCATFaIgoFZnJhbWUSGQoXCAISEwoDEgFOCgMSAUgKAxIBVwoCCANiHQoEbWFzaxIVChMIAhIPCgMSAU4K"
    "AxIBSAoDEgFXYh0KBGNvbmYSFQoTCAISDwoDEgFOCgMSAUgKAxIBV0IECgAQEQ=="
)
_PROBE_HW: Final = (64, 128)
_MEASURED: Final = 3

# Of the driver's API.
_MAJOR, _MINOR, _NAME_BYTES = 75, 76, 128
_NVIDIA_SMI: Final = "see what nvidia-smi says"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Of a probe.

    Attributes:
        found: Plain values by name; empty where it failed.
        error: Why it failed, in one line, or empty.
        fix: What to do about that, where it is known.
        missing: It failed because the library is not installed.
    """

    found: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    fix: str | None = None
    missing: bool = False


class Probe:
    """`main` in a process of its own, which the context manager starts and ends."""

    # Imports what this process would: neither the folder it runs in nor a site of its own comes first.
    _CODE: Final = (
        "import json, sys; asked = json.loads(sys.argv[1]); sys.path[:] = asked['path']; "
        "from cdga_sdk.library_probe import main; main(*asked['words'])"
    )

    def __init__(self, *words: str) -> None:
        self._asked = json.dumps({"path": sys.path, "words": words})
        self._process: subprocess.Popen[str] | None = None
        self._failed = ""

    def __enter__(self) -> Self:
        self._started_s = time.monotonic()
        try:
            self._process = subprocess.Popen(  # noqa: S603 - this very interpreter
                [sys.executable, "-c", self._CODE, self._asked],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
        except OSError as error:
            self._failed = f"no process can be started ({error.strerror})"
        return self

    def answer(self, timeout_s: float = LIBRARY_TIMEOUT_S) -> Answer:
        """Wait for what was found, up to this long after the start."""
        if self._process is None:
            return Answer(error=self._failed)
        left_s = max(0.1, self._started_s + timeout_s - time.monotonic())
        try:
            out, log = self._process.communicate(timeout=left_s)
        except subprocess.TimeoutExpired:
            return Answer(error=f"does not answer within {timeout_s:g} s")
        return _parse(out) or Answer(error=_told_by_end(self._process.returncode, log))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            with suppress(subprocess.TimeoutExpired):  # stuck in a driver
                self._process.communicate(timeout=5)


def _parse(out: str) -> Answer | None:
    """What `main` printed, whatever a library printed before and after it."""
    for line in out.splitlines():
        with suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and record.keys() == Answer.__dataclass_fields__.keys():
                return Answer(**record)
    return None


def _told_by_end(returncode: int, log: str) -> str:
    """Why a process ended without an answer."""
    last = one_line("".join(log.splitlines()[-1:]))[:200]
    if returncode < 0:
        names = {number.value: number.name for number in signal.Signals}
        return f"kills its process ({names.get(-returncode, -returncode)})"
    return f"ends its process with exit code {returncode}" + (f" ({last})" if last else "")


def main(name: str, *arguments: str) -> None:
    """Look, and print what was found."""
    try:
        answer = Answer(found=_PROBES[name](*arguments))
    except CdgaError as error:
        answer = answer_of(error)
    except Exception as error:  # noqa: BLE001 - whatever a broken library raises is what is to be told
        missing = isinstance(error, ModuleNotFoundError) and error.name == _IMPORTS.get(name)
        answer = Answer(error=f"{type(error).__name__}: {one_line(error)[:300]}", missing=missing)
    sys.stdout.write(json.dumps(asdict(answer)) + "\n")
    sys.stdout.flush()  # a library may die while it is unloaded


def answer_of(error: CdgaError) -> Answer:
    """An error of ours as what a probe answers."""
    return Answer(error=": ".join(filter(None, (error.where, error.what))), fix=error.fix)


def _onnxruntime() -> dict[str, object]:
    onnxruntime = import_module("onnxruntime")
    return {"version": onnxruntime.__version__, "providers": onnxruntime.get_available_providers()}


def _openvino() -> dict[str, object]:
    openvino = import_module("openvino")
    core = openvino.Core()
    return {
        "version": openvino.__version__.partition("-")[0],
        "devices": list(core.available_devices),
        "cpu_capabilities": sorted(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")),
    }


def _opencv() -> dict[str, object]:
    return {"version": import_module("cv2").__version__}


def _pyav() -> dict[str, object]:
    av = import_module("av")

    def has(name: str, mode: str) -> bool:
        try:
            av.Codec(name, mode)
        except ValueError:
            return False
        return True

    return {
        "version": av.__version__,
        "encoders": [ENCODER] if has(ENCODER, "w") else [],
        "decoders": [name for name in DECODERS if has(name, "r")],
    }


def _nvidia() -> dict[str, object]:
    """GPUs as the driver tells of them: ONNX Runtime needs no library of CUDA's that Python could be asked with."""
    from cdga_sdk.backends.cuda_device import driver_version

    driver = cuda_driver()
    if driver is None:
        raise ResourceError("the NVIDIA driver's library cannot be loaded")
    count, cuda = ctypes.c_int(), ctypes.c_int()
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status != 0:
        raise ResourceError(f"the NVIDIA driver gives no GPU (CUDA error {status})", fix=_NVIDIA_SMI)
    driver.cuDriverGetVersion(ctypes.byref(cuda))
    return {
        "driver": driver_version(),
        "cuda": f"{cuda.value // 1000}.{cuda.value % 1000 // 10}",
        "gpus": [_gpu(driver, index) for index in range(count.value)],
    }


def _gpu(driver: Any, index: int) -> dict[str, object]:
    handle, size = ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(_NAME_BYTES)
    major, minor = ctypes.c_int(), ctypes.c_int()
    status = (
        driver.cuDeviceGet(ctypes.byref(handle), index)
        or driver.cuDeviceGetName(name, _NAME_BYTES, handle)
        or driver.cuDeviceTotalMem_v2(ctypes.byref(size), handle)
        or driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, handle)
        or driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, handle)
    )
    if status != 0:
        raise ResourceError(f"the driver does not tell of GPU {index} (CUDA error {status})", fix=_NVIDIA_SMI)
    return {
        "name": name.value.decode(errors="replace"),
        "sm": f"{major.value}{minor.value}",
        "memory_bytes": size.value,
    }


def _tensorrt(product: str) -> dict[str, object]:
    from cdga_sdk.backends.tensorrt_build import import_product

    return {"version": import_product(product).__version__}


def _segmenting(model: str = "") -> dict[str, object]:
    """What ``cdga segment`` loads and opens, with the first golden frame of ``model``; a probe graph without one."""
    from cdga_sdk.segmenter import Segmenter
    from cdga_sdk.verify import gate_of

    if not model:
        return _segment_probe()
    with Segmenter(Path(model)) as segmenter:  # a path, whatever it is called
        golden = segmenter.bundle.golden_frames()[0]
        results = [segmenter.segment(golden.image_bgr) for _ in range(1 + _MEASURED)]
        return {
            "backend": segmenter.backend_name,
            "candidates": [asdict(candidate) for candidate in segmenter.backend_choice],
            "imgsz_hw": list(segmenter.imgsz),
            "inference_ms": round(median(result.speed_ms["inference"] for result in results[1:]), 3),
            "agreement": float((results[-1].mask == golden.mask).mean()),
            "min_agreement": gate_of(segmenter.bundle, "fp32"),
        }


def _segment_probe() -> dict[str, object]:
    import numpy as np

    from cdga_sdk.backends.choice import choose_backend

    choice = choose_backend(PROBE_GRAPH)
    frame_1HWC = np.random.default_rng(0).integers(0, 256, (1, *_PROBE_HW, 3), np.uint8)
    times_ms = []
    for _ in range(1 + _MEASURED):
        started = time.perf_counter()
        mask_1HW = choice.backend.infer(frame_1HWC).mask_NHW
        times_ms.append(1e3 * (time.perf_counter() - started))
    choice.backend.close()
    return {
        "backend": choice.backend.name,
        "candidates": [asdict(candidate) for candidate in choice.walk],
        "imgsz_hw": list(_PROBE_HW),
        "inference_ms": round(median(times_ms[1:]), 3),
        "agreement": float((mask_1HW == frame_1HWC[..., 0]).mean()),
        "min_agreement": 1.0,
    }


_IMPORTS: Final = {"onnxruntime": "onnxruntime", "openvino": "openvino", "opencv": "cv2", "pyav": "av"}
_PROBES: Final[dict[str, Callable[..., dict[str, object]]]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "opencv": _opencv,
    "pyav": _pyav,
    "nvidia": _nvidia,
    "tensorrt": _tensorrt,
    "segmenting": _segmenting,
}
