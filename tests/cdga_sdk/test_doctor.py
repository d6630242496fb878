"""``cdga doctor``: a sound machine, planted damage, and that what is broken never ends it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cdga_sdk.cli import run
from cdga_sdk.doctor import Report, refuse_unfit
from cdga_sdk.doctor_facts import (
    Trial,
    cores_fact,
    cpu_fact,
    engine_cache_fact,
    memory_fact,
    packages_fact,
    pyav_fact,
    run_folder_fact,
    segmenting_fact,
)
from cdga_sdk.errors import ResourceError
from cdga_sdk.library_probe import PROBE_GRAPH, Answer, Probe
from cdga_sdk.machine import Machine, cuda_driver

FACTS = [
    "python",
    "cpu",
    "cores",
    "memory",
    "onnxruntime",
    "openvino",
    "nvidia",
    "tensorrt",
    "torch",
    "opencv",
    "pyav",
    "packages",
    "engine_cache",
    "run_folder",
    "segmenting",
]
RUNTIMES = ["tensorrt cuda", "onnxruntime cuda", "openvino cpu", "onnxruntime cpu"]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every examination runs in a folder of its own, with a cache of its own."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("CDGA_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def planted(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose libraries come before all others; the processes that are asked import what this one would."""
    (place / "planted").mkdir()
    monkeypatch.syspath_prepend(place / "planted")
    return place / "planted"


def plant(folder: Path, library: str, code: str) -> None:
    """A library of this name that does this when it is imported."""
    (folder / library).mkdir()
    (folder / library / "__init__.py").write_text(code)


def plant_distribution(folder: Path, name: str) -> None:
    """What pip leaves behind of a package."""
    (folder / f"{name.replace('-', '_')}-1.0.dist-info").mkdir()
    (folder / f"{name.replace('-', '_')}-1.0.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: 1.0\n")


def kinds(value: object) -> object:
    """The shape of a JSON value: keys and types, without what differs from machine to machine."""
    if isinstance(value, dict):
        return {key: kinds(inner) for key, inner in value.items()}
    return [kinds(inner) for inner in value] if isinstance(value, list) else type(value).__name__


def test_json_keeps_its_shape(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--json", "--model", str(tiny_bundle)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    record: dict[str, Any] = json.loads(out)
    assert list(record) == ["can_segment", "model", "facts", "trial"]
    assert (record["can_segment"], record["model"]) == (True, str(tiny_bundle))
    assert [fact["name"] for fact in record["facts"]] == FACTS
    for told in record["facts"]:
        assert list(told) == ["name", "level", "text", "fix", "stops", "details"]
        assert told["level"] in {"ok", "note", "problem"}
        assert told["text"]
        assert "\n" not in told["text"]
        assert told["level"] != "problem" or told["fix"], told
    candidate = {"name": "str", "taken": "bool", "reason": "str"}
    assert kinds(record["trial"]) == {
        "backend": "str",
        "candidates": [candidate] * 4,
        "imgsz_hw": ["int", "int"],
        "inference_ms": "float",
        "agreement": "float",
        "min_agreement": "float",
    }
    assert [c["name"] for c in record["trial"]["candidates"]] == RUNTIMES
    (taken,) = [c for c in record["trial"]["candidates"] if c["taken"]]
    assert record["trial"]["backend"] == f"{taken['name']} fp32"
    assert record["trial"]["imgsz_hw"] == [64, 128]
    assert record["trial"]["agreement"] >= record["trial"]["min_agreement"] == 0.9999
    details = {told["name"]: told["details"] for told in record["facts"]}
    assert details["onnxruntime"]["providers"][-1] == "CPUExecutionProvider"
    assert details["pyav"]["decoders"] == ["h264", "hevc", "vp9", "av1"]
    assert details["python"]["version"] == sys.version.split()[0]


def test_a_broken_openvino_is_a_problem_and_auto_passes_it_by(
    planted: Path, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(planted, "openvino", "raise ImportError('libplanted.so: bad')")
    before = sorted(place.rglob("*"))
    monkeypatch.setenv("COLUMNS", "300")
    assert run(["doctor"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    rows = [[cell.strip() for cell in line.split("│")[1:4]] for line in err.splitlines() if "│" in line]
    assert [name for _, name, _ in rows if name] == [*FACTS, *RUNTIMES]
    (_, _, text), (_, _, fix) = rows[FACTS.index("openvino") : FACTS.index("openvino") + 2]
    assert ["problem", "openvino"] in [row[:2] for row in rows]
    assert text.endswith("ImportError: libplanted.so: bad")
    assert fix.startswith("fix: pip install ")
    assert ["-", "openvino cpu", "cannot be loaded (libplanted.so: bad)"] in rows
    assert [name for mark, name, _ in rows if mark == "taken"] == ["onnxruntime cpu"] or cuda_driver()
    assert [path for path in sorted(place.rglob("*")) if "__pycache__" not in path.parts] == before


def test_libraries_that_end_the_process(
    planted: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(planted, "cv2", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    plant(
        planted,
        "openvino",
        "import sys; print('{}'); print('5'); print('{'); sys.stderr.write('no licence'); sys.exit(9)",
    )
    plant(planted, "onnxruntime", "raise RuntimeError('two\\nlines')")
    plant(planted, "torch", "raise AssertionError('nothing here needs torch')")
    for name in ("opencv-python-headless", "opencv-python"):
        plant_distribution(planted, name)
    monkeypatch.setenv("CDGA_CACHE_GIB", "lots")
    assert run(["doctor", "--json"]) == 6
    out, err = capsys.readouterr()
    assert err.startswith("error[E-RESOURCE]: segmenting cannot work here: kills its process (SIGSEGV)")
    assert err.count("\n") == 1
    record = json.loads(out)
    assert (record["can_segment"], record["trial"]) == (False, None)
    told = {fact["name"]: fact for fact in record["facts"]}
    assert list(told) == FACTS
    assert told["opencv"]["text"].endswith("kills its process (SIGSEGV)")
    assert told["openvino"]["text"].endswith("ends its process with exit code 9 (no licence)")
    assert told["onnxruntime"]["text"].endswith("RuntimeError: two lines")
    assert "opencv-python and opencv-python-headless write over" in told["packages"]["text"]
    assert (
        "pip uninstall -y opencv-python opencv-python-headless && pip install opencv-python" in told["packages"]["fix"]
    )
    assert "CDGA_CACHE_GIB is 'lots'" in told["engine_cache"]["text"]
    assert {name for name, fact in told.items() if fact["stops"]} == {"segmenting"}
    assert "needs torch" not in out


def test_models_that_are_none(tiny_bundle: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--model", "absent.cdga"]) == 6
    err = capsys.readouterr().err
    assert "error[E-RESOURCE]: absent.cdga: segmenting cannot work here: absent.cdga: no such model" in err
    damaged = Path(shutil.copytree(tiny_bundle, place / "damaged.cdga"))
    with (damaged / "model.onnx").open("r+b") as graph:
        graph.seek(1000)
        graph.write(b"\xff\x00\xff\x00")
    with Probe("segmenting", str(damaged)) as probe:
        answer = probe.answer()
    told = segmenting_fact(answer, None, str(damaged), gpu=False)
    assert (told.level, told.stops, told.fix) == ("problem", True, "copy or export the bundle again")
    assert told.text == f"{damaged}: changed since it was written: model.onnx"


def test_a_library_may_print_and_die_after_its_answer(planted: Path) -> None:
    code = "import atexit, os, signal\n__version__ = '1.2'\nprint('hello', flush=True)\n"
    plant(
        planted,
        "cv2",
        code + "atexit.register(lambda: (print('bye', flush=True), os.kill(os.getpid(), signal.SIGABRT)))",
    )
    with Probe("opencv") as probe:
        assert probe.answer() == Answer(found={"version": "1.2"})


def test_a_library_that_hangs_is_not_waited_for(planted: Path) -> None:
    plant(planted, "cv2", "import time; time.sleep(600)")
    started = time.monotonic()
    with Probe("opencv") as probe:
        assert probe.answer(0.5).error == "does not answer within 0.5 s"
    assert time.monotonic() - started < 20


def test_a_library_that_is_not_there(planted: Path) -> None:
    plant(planted, "openvino", "raise ModuleNotFoundError('none', name='openvino')")
    with Probe("openvino") as probe:
        assert probe.answer().missing


def test_a_cache_that_cannot_be_used(place: Path) -> None:
    cache = place / "cache"
    assert engine_cache_fact(driver=True).level == "ok"
    assert not cache.exists()
    cache.touch()
    assert [engine_cache_fact(driver=driver).level for driver in (False, True)] == ["note", "problem"]
    told = engine_cache_fact(driver=True)
    assert f"{cache} is not a folder" in told.text
    assert (told.details["writable"], told.stops) == (False, False)
    cache.unlink()
    (cache / "engines").mkdir(parents=True)
    (cache / "engines/a.engine").write_bytes(bytes(1000))
    assert engine_cache_fact(driver=True).details["bytes"] == 1000
    (cache / "engines").chmod(0o777)
    assert "others may write into the engine cache" in engine_cache_fact(driver=True).text


# Everything is imported before the user changes, for whom the interpreter may be out of reach.
NOBODY = """
import os, sys
from pathlib import Path
import cdga_sdk.backends.engine_cache
from cdga_sdk.doctor_facts import engine_cache_fact, run_folder_fact
if os.getuid() == 0: os.setresuid(65534, 65534, 65534)
for fact in (engine_cache_fact(driver=True), run_folder_fact(Path("runs/segment"))):
    print(fact.level, fact.details["writable"], fact.text)
"""


def test_places_without_the_permission_to_write(place: Path) -> None:
    for folder in (place / "here", place):
        folder.chmod(0o555)
    try:
        done = subprocess.run([sys.executable, "-c", NOBODY], capture_output=True, text=True, check=True, timeout=60)
    finally:
        for folder in (place, place / "here"):
            folder.chmod(0o755)
    cache, runs = done.stdout.splitlines()
    assert cache.startswith("problem False no TensorRT engine can be kept: /")
    assert runs.startswith("problem False /")
    assert cache.endswith("cannot be written to")
    assert " cannot be written to in " in runs


def test_a_link_to_a_disk_that_is_not_mounted(place: Path) -> None:
    (place / "here/runs").symlink_to(place / "unmounted")
    told = run_folder_fact(Path("runs/segment"))
    assert (told.level, told.details["writable"]) == ("problem", False)
    assert told.text.startswith(f"{place / 'here/runs'} is not a folder")


def machine(**fields: Any) -> Machine:
    sound: dict[str, Any] = {
        "cpu": "Some CPU",
        "instruction_sets": ("AVX2",),
        "cpus": 64,
        "usable_cpus": 64,
        "cpu_quota": None,
        "memory_bytes": 2**34,
        "available_bytes": 2**33,
        "memory_limit_bytes": None,
    }
    return Machine(**(sound | fields))


def test_limits_of_a_container_are_noted() -> None:
    assert {fact(machine()).level for fact in (cpu_fact, cores_fact, memory_fact)} == {"ok"}
    cores = cores_fact(machine(cpu_quota=2.5))
    assert cores.level == "note"
    assert cores.text == "this process may use 64 of 64 CPUs, but its control group allows the time of 2.5"
    assert cores.fix is not None
    assert cores.fix.startswith("pass --threads 2,")
    assert cores_fact(machine(cpu_quota=64.0)).level == "ok"
    memory = memory_fact(machine(memory_limit_bytes=2**29))
    assert (memory.level, memory.text) == ("note", "16.0 GiB, 8.0 GiB available, a control group allows 0.5 GiB")
    unknown = machine(instruction_sets=None, memory_bytes=None, available_bytes=None)
    assert {fact(unknown).level for fact in (cpu_fact, memory_fact)} == {"ok"}


def test_codecs_that_are_missing() -> None:
    every = ["h264", "hevc", "vp9", "av1"]
    for encoders, decoders, wanted in (
        (["libx264"], every, ("ok", False)),
        (["libx264"], every[:3], ("note", False)),
        (["libx264"], every[1:], ("problem", True)),
        ([], every, ("problem", True)),
    ):
        told = pyav_fact(Answer(found={"version": "1", "encoders": encoders, "decoders": decoders}))
        assert (told.level, told.stops) == wanted
        assert (told.fix is None) == (told.level == "ok")


@pytest.mark.parametrize("name", ["onnxruntime", "opencv-contrib-python-headless"])
def test_packages_that_write_over_each_other(name: str, planted: Path) -> None:
    assert packages_fact().level == "ok"
    plant_distribution(planted, name)
    told = packages_fact()
    assert told.level == "problem"
    assert f" and {name} write over each other's files" in told.text


def test_a_gpu_that_is_not_used_and_labels_that_are_wrong() -> None:
    trial: dict[str, Any] = {"candidates": (), "imgsz_hw": (64, 128), "inference_ms": 1.0, "min_agreement": 0.99}
    for backend, agreement, gpu, level in (
        ("openvino cpu fp32", 1.0, False, "ok"),
        ("openvino cpu fp32", 1.0, True, "note"),
        ("onnxruntime cuda fp32", 1.0, True, "ok"),
        ("onnxruntime cuda fp32", 0.98, True, "problem"),
    ):
        tried = Trial(backend=backend, agreement=agreement, **trial)
        told = segmenting_fact(Answer(), tried, None, gpu=gpu)
        assert (told.level, told.stops) == (level, level == "problem")
        if told.stops:
            with pytest.raises(ResourceError, match=r"wanted .* %: its labels are wrong; see what cdga"):
                refuse_unfit(Report(model=None, facts=(told,), trial=tried))


PLANTED_DRIVER = """
#include <stddef.h>
#include <string.h>
int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *version) { *version = 13020; return 0; }
int cuDeviceGetCount(int *count) { *count = COUNT; return COUNT ? 0 : 100; }
int cuDeviceGet(int *device, int index) { *device = 7; return 0; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, device == 7 ? "Planted" : "", size); return 0; }
int cuDeviceTotalMem_v2(size_t *size, int device) { *size = (size_t)24 << 30; return LOST ? 999 : 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute - 67; return 0; }
"""


@pytest.mark.parametrize(
    ("count", "lost", "error"),
    [
        (0, 0, "the NVIDIA driver gives no GPU (CUDA error 100)"),
        (1, 1, "the driver does not tell of GPU 0 (CUDA error 999)"),
        (1, 0, ""),
    ],
)
def test_a_driver_without_the_rest_of_cuda(
    count: int, lost: int, error: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = shutil.which("cc")
    if compiler is None or cuda_driver() is not None:
        pytest.skip("needs a C compiler, and no NVIDIA driver")
    (place / "driver.c").write_text(PLANTED_DRIVER)
    target = ["-shared", "-fPIC", f"-DCOUNT={count}", f"-DLOST={lost}", "-o", str(place / "libcuda.so.1")]
    subprocess.run([compiler, str(place / "driver.c"), *target], check=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(place))
    if error:
        with Probe("nvidia") as probe:
            assert probe.answer().error == error
        return
    command = [sys.executable, "-m", "cdga_sdk", "doctor", "--json"]
    record = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    told = {fact["name"]: fact for fact in record["facts"]}
    assert told["nvidia"]["text"].startswith("Planted (SM 89, 24 GiB); driver ")
    assert told["nvidia"]["text"].endswith(", CUDA 13.2")
    assert told["segmenting"]["level"] == "note"
    reasons = [candidate["reason"] for candidate in record["trial"]["candidates"]]
    assert reasons[0] == "no kept engine of this graph; build one with: cdga export --trt"
    assert reasons[1].startswith(("ONNX Runtime could not use CUDA", "this ONNX Runtime was built without CUDA"))


def test_the_probe_graph_is_a_bundle_s_in_little() -> None:
    onnx = pytest.importorskip("onnx")
    graph = onnx.load_model_from_string(PROBE_GRAPH)
    onnx.checker.check_model(graph, full_check=True)
    assert [node.op_type for node in graph.graph.node] == ["Gather", "Gather"]
    assert [tensor.name for tensor in (*graph.graph.input, *graph.graph.output)] == ["frame", "mask", "conf"]
