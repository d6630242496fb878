"""The walk over the runtimes: which is taken, and why each of the others is not."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from cdga_sdk.backends.choice import Candidate, Choice, choose_backend
from cdga_sdk.backends.engine_cache import EngineCache, EngineKey, cache_folder
from cdga_sdk.doctor_facts import engine_cache_fact
from cdga_sdk.errors import ResourceError, UsageError
from cdga_sdk.library_probe import PROBE_GRAPH
from cdga_sdk.machine import cuda_driver
from cdga_sdk.user_cache import user_cache

NAMES = ["tensorrt cuda", "onnxruntime cuda", "openvino cpu", "onnxruntime cpu"]
LATER = "comes after the one that was taken"
FIRST = "the first in this order that runs here"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CDGA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def without_driver() -> None:
    if cuda_driver() is not None:
        pytest.skip("this machine has an NVIDIA driver")


@pytest.fixture
def with_openvino() -> None:
    pytest.importorskip("openvino")


def reasons(choice: Choice) -> list[str]:
    """By candidate, after a check that one is taken and that it is the one that is open."""
    assert [candidate.name for candidate in choice.walk] == NAMES
    (taken,) = [candidate for candidate in choice.walk if candidate.taken]
    assert choice.backend.name.startswith(taken.name + " ")
    frame_1HWC = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(1, 2, 4, 3)
    np.testing.assert_array_equal(choice.backend.infer(frame_1HWC).mask_NHW, frame_1HWC[..., 0])
    return [candidate.reason for candidate in choice.walk]


@pytest.mark.usefixtures("without_driver", "with_openvino")
def test_auto_without_a_driver() -> None:
    choice = choose_backend(PROBE_GRAPH)
    assert reasons(choice) == ["no NVIDIA driver", "no NVIDIA driver", FIRST, LATER]
    assert choice.walk[2] == Candidate(name="openvino cpu", taken=True, reason=FIRST)


@pytest.mark.usefixtures("with_openvino")
def test_auto_on_the_cpu() -> None:
    asked = "device 'cpu' was asked for"
    assert reasons(choose_backend(PROBE_GRAPH, device="cpu")) == [asked, asked, FIRST, LATER]


@pytest.mark.parametrize("precision", ["int8", "int8-trt"])
def test_8_bits_are_left_to_the_runtime_of_their_gate(precision: str) -> None:
    choice = choose_backend(PROBE_GRAPH, precision=precision, device="cpu")
    assert reasons(choice)[2:] == [f"passed by for {precision}: not proven in OpenVINO", FIRST]


@pytest.mark.usefixtures("without_gpu")
def test_8_bits_that_fall_back_from_tensorrt_are_left_to_that_runtime_too() -> None:
    choice = choose_backend(PROBE_GRAPH, precision="int8-trt", backend="tensorrt_rtx", on_incompatible="fallback")
    assert reasons(choice)[2:] == ["passed by for int8-trt: not proven in OpenVINO", FIRST]


@pytest.mark.usefixtures("with_openvino")
def test_8_bits_that_are_proven_in_openvino() -> None:
    choice = choose_backend(PROBE_GRAPH, precision="int8", device="cpu", proven_in_openvino=True)
    assert reasons(choice)[2:] == [FIRST, LATER]


@pytest.mark.usefixtures("without_driver", "with_openvino")
@pytest.mark.parametrize(("name", "taken"), [("onnxruntime", 3), ("openvino", 2)])
def test_the_one_that_was_asked_for(name: str, taken: int) -> None:
    choice = choose_backend(PROBE_GRAPH, backend=name)
    asked = f"backend '{name}' was asked for"
    told = reasons(choice)
    assert [candidate.taken for candidate in choice.walk].index(True) == taken
    assert (told[0], told[taken]) == (asked, asked)
    assert told[1] == ("no NVIDIA driver" if name == "onnxruntime" else asked)


@pytest.mark.usefixtures("without_gpu")
def test_a_fallback_from_tensorrt_tells_what_it_said(capsys: pytest.CaptureFixture[str]) -> None:
    choice = choose_backend(PROBE_GRAPH, backend="tensorrt_rtx", on_incompatible="fallback")
    told = reasons(choice)
    assert told[0] == capsys.readouterr().err.strip()
    assert told[0].endswith("; running without TensorRT")
    assert FIRST in told


@pytest.mark.usefixtures("without_gpu")
def test_an_engine_that_is_kept_for_another_gpu() -> None:
    key = EngineKey(
        onnx_sha256=hashlib.sha256(PROBE_GRAPH).hexdigest(),
        precision="fp32",
        product="tensorrt_rtx",
        version="1.0",
        sm="89",
        gpu="NVIDIA L4",
        driver="590.1",
        batch="1:1:1",
        workspace_gib=None,
        hw_compat="none",
        version_compatible=False,
    )
    EngineCache(cache_folder()).obtain(key, lambda: b"no engine at all", say=lambda line: None)
    told = reasons(choose_backend(PROBE_GRAPH))[0]
    assert "pip install 'cdga-sdk[trt" in told or "nvidia-smi" in told


def test_a_cache_that_is_nobody_s_own(own_cache: Path) -> None:
    (own_cache / "engines").mkdir(parents=True)
    (own_cache / "engines").chmod(0o777)
    assert "others may write into the engine cache" in reasons(choose_backend(PROBE_GRAPH))[0]


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("CDGA_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", home)
    told = "no home folder to keep anything in; set CDGA_CACHE to a folder"
    assert reasons(choose_backend(PROBE_GRAPH))[0] == told
    assert told in engine_cache_fact(driver=False).text
    with pytest.raises(UsageError, match=told):
        user_cache()


@pytest.mark.usefixtures("without_gpu")
@pytest.mark.parametrize("name", ["auto", "onnxruntime"])
def test_cuda_that_was_asked_for_is_not_passed_by(name: str) -> None:
    with pytest.raises(ResourceError, match="could not use CUDA"):
        choose_backend(PROBE_GRAPH, backend=name, device="cuda")


@pytest.mark.usefixtures("with_openvino")
def test_a_gpu_that_onnxruntime_fails_on_is_passed_by_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    said = (
        "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version ; GPU=-1 ; hostname=mine ; "
        "file=/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_execution_provider.cc ; line=285 ; expr=x; "
    )
    real = onnxruntime.InferenceSession

    def opened(*arguments: object, providers: list[tuple[str, object]], **options: object) -> object:
        if providers[0][0] == "CUDAExecutionProvider":
            raise RuntimeError(said)
        return real(*arguments, providers=providers, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)
    loaded: list[dict[str, object]] = []
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda **options: loaded.append(options))
    monkeypatch.setattr("cdga_sdk.backends.onnx_runtime.what_cuda_lacks", lambda: "")
    told = reasons(choose_backend(PROBE_GRAPH))
    assert told[1].startswith("ONNX Runtime cannot use the GPU (CUDA failure 35: CUDA driver version is insufficient")
    assert "hostname" not in told[1]
    assert told[2:] == [FIRST, LATER]
    assert len(loaded) == 1
    with pytest.raises(ResourceError, match="CUDA failure 35"):
        choose_backend(PROBE_GRAPH, device="cuda")


# Libraries are broken in processes of their own: here they are loaded already.
WALK = (
    "from cdga_sdk.backends.choice import choose_backend\n"
    "from cdga_sdk.library_probe import PROBE_GRAPH\n"
    "for candidate in choose_backend(PROBE_GRAPH{}).walk: print(candidate.name, candidate.taken, candidate.reason)\n"
)


def plant(folder: Path, library: str, code: str) -> None:
    """A library of this name that does this when it is imported."""
    (folder / library).mkdir()
    (folder / library / "__init__.py").write_text(code)


def walked(folder: Path, arguments: str = "") -> tuple[list[str], str]:
    """The walk's lines where the libraries in ``folder`` come first, and the last line of stderr."""
    code = f"import sys; sys.path.insert(0, {str(folder)!r})\n" + WALK.format(arguments)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    return done.stdout.splitlines(), "".join(done.stderr.splitlines()[-1:])


@pytest.mark.parametrize("precision", ["", ", precision='int8', proven_in_openvino=True"])
def test_openvino_that_is_not_installed(precision: str, tmp_path: Path) -> None:
    plant(tmp_path, "openvino", "raise ModuleNotFoundError('none', name='openvino')")
    lines, _ = walked(tmp_path, f", device='cpu'{precision}")
    assert lines[2] == "openvino cpu False not installed: pip install 'cdga-sdk[openvino]'"
    assert lines[3] == f"onnxruntime cpu True {FIRST}"


@pytest.mark.parametrize("kind", ["ImportError", "OSError"])
def test_a_broken_openvino_is_passed_by_unless_asked_for(kind: str, tmp_path: Path) -> None:
    plant(tmp_path, "openvino", f"raise {kind}('libplanted.so: bad')")
    lines, _ = walked(tmp_path)
    assert lines[2] == "openvino cpu False cannot be loaded (libplanted.so: bad)"
    assert lines[3] == f"onnxruntime cpu True {FIRST}"
    if kind == "ImportError":
        lines, error = walked(tmp_path, ", backend='openvino'")
        assert lines == []
        assert error.endswith("'openvino' is needed here; pip install 'cdga-sdk[openvino]'")


@pytest.mark.usefixtures("with_openvino")
def test_a_broken_onnxruntime_is_passed_by_unless_asked_for(tmp_path: Path) -> None:
    plant(tmp_path, "onnxruntime", "")  # as a package is that was half removed
    lines, _ = walked(tmp_path)
    why = "cannot be loaded (module 'onnxruntime' has no attribute 'get_available_providers')"
    assert lines[1:3] == [f"onnxruntime cuda False {why}", f"openvino cpu True {FIRST}"]
    (tmp_path / "onnxruntime/__init__.py").write_text("raise ImportError('libplanted.so: bad')")
    lines, _ = walked(tmp_path)
    assert lines[1:3] == ["onnxruntime cuda False cannot be loaded (libplanted.so: bad)", f"openvino cpu True {FIRST}"]
    for asked in (", backend='onnxruntime'", ", precision='int8'"):
        lines, error = walked(tmp_path, asked)
        assert lines == []
        assert error.endswith("'onnxruntime' is needed here; pip install 'cdga-sdk[export]'")
