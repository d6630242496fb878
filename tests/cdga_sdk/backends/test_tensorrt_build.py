"""Graphs are really parsed, and engines really built, by TensorRT for RTX, which needs no GPU for that."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from cdga_export.to_onnx import onnx_from_fused
from cdga_sdk.backends.engine_cache import EngineKey
from cdga_sdk.backends.tensorrt_build import (
    HW_COMPAT,
    BuildFlags,
    _takes_timing_cache,
    batch_text,
    build_plan,
    graph_precision,
    import_product,
    key_ahead_of_time,
    key_for_this_gpu,
    parse_batch,
    supported_sms,
)
from cdga_sdk.bundle import Manifest, Provenance, preprocess_block
from cdga_sdk.errors import InputError, ModelError, ResourceError, UsageError
from cdga_sdk.labels import CITYSCAPES_NAMES, CITYSCAPES_PALETTE_RGB
from cdga_sdk.preprocess import Preprocess
from cdga_train.models.fused import FusedNetwork
from cdga_train.models.registry import NETWORKS, network_spec

FLAGS = BuildFlags(batch=(1, 2, 4))


def exported(name: str) -> bytes:
    """The graph of an untrained network at 64x128."""
    preprocess = Preprocess(imgsz_hw=(64, 128))
    torch.manual_seed(0)
    network = network_spec(name, preprocess.imgsz_hw).build(len(CITYSCAPES_NAMES))
    manifest = Manifest(
        names=CITYSCAPES_NAMES,
        palette_rgb=CITYSCAPES_PALETTE_RGB,
        preprocess=preprocess_block(preprocess),
        provenance=Provenance(model=name, weights_sha256="", made_by="", made_on=""),
    )
    return onnx_from_fused(FusedNetwork(network, preprocess), manifest)


@pytest.fixture(scope="module")
def model_bytes() -> bytes:
    return exported("efficientvit_b0")


def key(sm: str = "89", flags: BuildFlags = FLAGS, model: bytes = b"") -> EngineKey:
    pytest.importorskip("tensorrt_rtx")
    return key_ahead_of_time(hashlib.sha256(model).hexdigest(), precision="fp32", sm=sm, flags=flags)


def small_graph(nodes: list[tuple[str, list[str], list[str]]], size: tuple[int | str, int | str] = (8, 16)) -> bytes:
    """Input ``frame`` and outputs ``mask`` and ``conf``, and between them whatever is wanted."""
    from onnx import TensorProto, helper

    names = [(n, TensorProto.UINT8) for n in ("mask", "conf")]
    graph = helper.make_graph(
        [helper.make_node(op, ins, outs, name=f"the_{op}") for op, ins, outs in nodes],
        "g",
        [helper.make_tensor_value_info("frame", TensorProto.UINT8, ["N", *size, 3])],
        [helper.make_tensor_value_info(name, kind, ["N", *size, 3]) for name, kind in names],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(model.SerializeToString())


def test_an_exported_graph_becomes_an_engine_for_each_gpu(model_bytes: bytes) -> None:
    plans = [build_plan(model_bytes, key(sm)) for sm in ("89", "120")]
    assert plans[0] != plans[1]
    for plan in plans:
        assert len(plan) > 1_000_000  # it carries the weights
        assert b"CDGA" not in plan[:64]


def test_what_a_gpu_cannot_compute_is_named(model_bytes: bytes) -> None:
    with pytest.raises(ModelError, match=r"could not build \(.*MatMul.* Turing \(SM75\): FP32 GEMM is not supported"):
        build_plan(model_bytes, key("75"))


@pytest.mark.parametrize("name", sorted(NETWORKS.keys() - {"efficientvit_b0"}))
def test_each_other_network_is_parsed_and_built(name: str) -> None:
    model = exported(name)
    for sm in ("89", "120"):
        assert len(build_plan(model, key(sm))) > 1_000_000


def test_a_refused_graph_names_its_node() -> None:
    graph = small_graph([("Transpose", ["frame"], ["mask"]), ("Identity", ["mask"], ["conf"])])
    with pytest.raises(
        ModelError, match=r"TensorRT refuses the graph \(Transpose node the_Transpose: .*UInt8"
    ) as caught:
        build_plan(graph, key())
    assert caught.value.exit_code == 5
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_an_unknown_operator_is_named() -> None:
    graph = small_graph([("Nonsense", ["frame"], ["mask"]), ("Identity", ["mask"], ["conf"])])
    with pytest.raises(ModelError, match=r"Nonsense node the_Nonsense: .*Plugin not found"):
        build_plan(graph, key())


@pytest.mark.parametrize("data", [b"garbage", b"\x08\x09" * 100])
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(ModelError):
        build_plan(data, key())


@pytest.mark.parametrize("data", [b"", bytes(1000)])
def test_bytes_that_parse_as_nothing_are_refused(data: bytes) -> None:
    with pytest.raises(ModelError, match="wanted frame in, mask and conf out"):
        build_plan(data, key())


def test_a_cut_graph_is_refused(model_bytes: bytes) -> None:
    with pytest.raises(ModelError, match="Failed to parse the ONNX model"):
        build_plan(model_bytes[: len(model_bytes) // 2], key())


def test_open_height_and_width_are_refused() -> None:
    graph = small_graph([("Identity", ["frame"], ["mask"]), ("Identity", ["mask"], ["conf"])], size=("H", "W"))
    with pytest.raises(ModelError, match="height and width are open"):
        build_plan(graph, key())


def test_workspace_is_accepted(model_bytes: bytes) -> None:
    flags = BuildFlags(workspace_gib=0.5)
    assert build_plan(model_bytes, key(flags=flags))


_BUILDING = """
import sys, threading, time
from pathlib import Path
from cdga_sdk.backends.engine_cache import EngineKey
from cdga_sdk.backends.tensorrt_build import build_plan

model, key = Path(sys.argv[1]).read_bytes(), EngineKey.model_validate_json(sys.argv[2])
threads = threading.active_count()
try:
    while True:
        print("building", flush=True)
        build_plan(model, key)
except KeyboardInterrupt:
    began = time.monotonic()
    while threading.active_count() != threads:  # one that was interrupted while it started ends by itself
        assert time.monotonic() - began < 60
        time.sleep(0.05)
    assert build_plan(model, key)
    print("stopped", flush=True)
"""


@pytest.mark.parametrize("after_s", [0.0, 0.2, 0.8])  # while the graph is read, or later
def test_interruption_stops_the_build(model_bytes: bytes, after_s: float, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(model_bytes)
    words = [sys.executable, "-c", _BUILDING, str(tmp_path / "model.onnx"), key().model_dump_json()]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "building\n"
        time.sleep(after_s)
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=120)
    assert rest.splitlines()[-1] == "stopped"
    assert process.returncode == 0


def test_the_key_says_all(model_bytes: bytes) -> None:
    flags = BuildFlags(batch=(1, 4, 8), workspace_gib=2)
    made = key("120", flags, model_bytes)
    assert made.model_dump() == {
        "onnx_sha256": hashlib.sha256(model_bytes).hexdigest(),
        "precision": "fp32",
        "product": "tensorrt_rtx",
        "version": import_product("tensorrt_rtx").__version__,
        "sm": "120",
        "gpu": "any",
        "driver": "any",
        "batch": "1:4:8",
        "workspace_gib": 2.0,
        "hw_compat": "none",
        "version_compatible": False,
    }


def test_unknown_compute_capability() -> None:
    assert {"75", "86", "89", "120"} <= set(supported_sms())
    for sm in ("90", "", "CURRENT", "8.9"):
        with pytest.raises(UsageError, match=f"nothing for SM '{sm}'; use one of 75, 80"):
            key(sm)


@pytest.mark.parametrize(
    ("text", "batch"), [("1", (1, 1, 1)), ("4", (4, 4, 4)), ("1:4:8", (1, 4, 8)), ("2:2:3", (2, 2, 3))]
)
def test_batches(text: str, batch: tuple[int, int, int]) -> None:
    assert parse_batch(text) == batch
    assert parse_batch(batch_text(batch)) == batch


@pytest.mark.parametrize(
    "text", ["", "0", "0:1:2", "4:1:8", "1:8:4", "1:2", "1:2:3:4", "-1", "1.5", "a", "1:b:2", "²", "1:1:9999"]
)
def test_wrong_batches(text: str) -> None:
    with pytest.raises(UsageError, match="batch is"):
        parse_batch(text)


def test_wrong_flags() -> None:
    for workspace in (0.0, -1.0, 1e300, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="workspace is"):
            BuildFlags(workspace_gib=workspace)
    with pytest.raises(UsageError, match="unknown hw-compat 'all'; use one of none, same-cc, ampere"):
        BuildFlags(hw_compat="all")


def test_compatibility_levels_are_those_of_the_library() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    assert set(HW_COMPAT.values()) == trt.HardwareCompatibilityLevel.__members__.keys()


def test_which_graph_an_engine_is_built_from() -> None:
    assert graph_precision(["fp32"]) == "fp32"
    assert graph_precision(["fp32", "fp16", "int8"]) == "fp16"
    assert graph_precision(["fp32", "fp16", "int8", "int8-trt"]) == "int8-trt"


def no_gpu_here() -> bool:
    from cdga_sdk.backends.cuda_device import gpu_facts

    try:
        gpu_facts()
    except ResourceError:
        return True
    return False


def test_without_a_gpu_there_is_no_key() -> None:
    pytest.importorskip("tensorrt_rtx")
    if not no_gpu_here():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ResourceError, match=r"no CUDA GPU can be used here .*nvidia-smi") as caught:
        key_for_this_gpu("", precision="fp32", product="tensorrt_rtx", flags=FLAGS)
    assert caught.value.exit_code == 6


@pytest.mark.parametrize(("product", "extra"), [("tensorrt", "trt"), ("tensorrt_rtx", "trt-rtx")])
def test_a_missing_library_names_the_command(product: str, extra: str) -> None:
    code = (
        f"import sys; sys.modules['{product}'] = None\n"
        "from cdga_sdk.backends.tensorrt_build import *\n"
        "from cdga_sdk.errors import ResourceError\n"
        f"try: key_for_this_gpu('', precision='fp32', product='{product}', flags=BuildFlags())\n"
        "except ResourceError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"'{product}' is needed here (")
    assert done.stdout.endswith(f"); pip install 'cdga-sdk[{extra}]'\n")


def test_importing_the_builder_loads_no_tensorrt() -> None:
    code = "import cdga_sdk.backends.tensorrt_build, sys; print(' '.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"tensorrt", "tensorrt_rtx", "cuda.bindings", "torch", "onnx", "onnxruntime"} & set(loaded)


def test_an_unreadable_timing_cache_is_refused(model_bytes: bytes, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the timing cache"):
        build_plan(model_bytes, key(), timing_cache=tmp_path)


# TensorRT for RTX takes the calls and does nothing.
@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")
def test_a_timing_cache_that_cannot_be_written_does_not_cost_the_engine(model_bytes: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said: list[str] = []
    assert build_plan(model_bytes, key(), timing_cache=tmp_path / "file/cache", say=said.append)
    (line,) = said
    assert line.startswith("the timing cache is not kept: ")
    assert "cannot write" in line


class OtherGpusConfig:
    """TensorRT's configuration where the cache's bytes are of another GPU, or no cache: it makes nothing of them."""

    def create_timing_cache(self, data: bytes) -> object | None:
        return None if data else object()

    def set_timing_cache(self, cache: object, ignore_mismatch: bool) -> bool:
        return not ignore_mismatch


def test_a_file_that_is_no_timing_cache_of_this_gpu_is_not_taken(tmp_path: Path) -> None:
    foreign, said = tmp_path / "model.onnx", list[str]()
    foreign.write_bytes(b"mine")
    assert not _takes_timing_cache(OtherGpusConfig(), foreign, said.append)
    assert said == [
        f"{foreign}: no timing cache of this GPU and TensorRT, so neither used nor changed; name another file"
    ]
    assert _takes_timing_cache(OtherGpusConfig(), tmp_path / "new", said.append)
    assert len(said) == 1
