"""ONNX Runtime's binding of a call's arrays, on the CPU; CUDA takes the same lines."""

from __future__ import annotations

import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cdga_sdk.backends.onnx_runtime import OnnxRuntimeBackend
from cdga_sdk.errors import ModelError

Frames = NDArray[np.uint8]
SIZE_HW = (8, 16)


def graph(*, kind: str = "UINT8", axes: int = 3) -> bytes:
    """The largest channel as the mask and the first channel as the confidence, (N, H, W); or whole frames."""
    from onnx import TensorProto, helper

    wanted = getattr(TensorProto, kind)
    shape: list[str | int | None] = ["N", *SIZE_HW, 3]
    indices = helper.make_tensor("first", TensorProto.INT64, [], [0])
    nodes = [
        helper.make_node("Cast", ["frame"], ["whole"], to=TensorProto.FLOAT),
        helper.make_node("ArgMax", ["whole"], ["largest"], axis=3, keepdims=0),
        helper.make_node("Cast", ["largest"], ["mask"], to=wanted),
        helper.make_node("Gather", ["frame", "first"], ["channel"], axis=3),
        helper.make_node("Cast", ["channel"], ["conf"], to=wanted),
    ]
    if axes == 4:
        nodes = [helper.make_node("Cast", ["frame"], [name], to=wanted) for name in ("mask", "conf")]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("frame", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info(name, wanted, shape[:axes]) for name in ("mask", "conf")],
        [indices],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def frames(seed: int, num_frames: int = 1) -> Frames:
    return np.random.default_rng(seed).integers(0, 256, (num_frames, *SIZE_HW, 3), np.uint8)


@pytest.fixture
def backend() -> OnnxRuntimeBackend:
    return OnnxRuntimeBackend(graph(), device="cpu", threads=1)


@pytest.mark.parametrize("num_frames", [1, 2, 5])
def test_bound_and_plain_calls_give_the_same(backend: OnnxRuntimeBackend, num_frames: int) -> None:
    for seed in range(3):
        given = frames(seed, num_frames)
        answer = backend.infer(given)
        mask, conf = backend._session.run(["mask", "conf"], {"frame": given})
        np.testing.assert_array_equal(answer.mask_NHW, mask)
        np.testing.assert_array_equal(answer.conf_NHW, conf)
        np.testing.assert_array_equal(answer.conf_NHW, given[..., 0])


def test_views_of_every_kind_are_read_rightly(backend: OnnxRuntimeBackend) -> None:
    given = frames(0, 4)
    locked = given.copy()
    locked.setflags(write=False)
    for view in (given[..., ::-1], given[::2], given[:, :, ::-1], np.asfortranarray(given), locked):
        np.testing.assert_array_equal(backend.infer(view).conf_NHW, view[..., 0])


def test_results_are_numpy_s_own_memory_and_nothing_of_the_caller_is_kept(backend: OnnxRuntimeBackend) -> None:
    given = frames(0)
    answer = backend.infer(given)
    assert answer.mask_NHW.flags.owndata
    assert answer.mask_NHW.flags.writeable
    there = weakref.ref(given), weakref.ref(answer.mask_NHW)
    del given, answer
    assert [array() for array in there] == [None, None]
    assert len(backend._idle) == 1


def test_a_call_that_fails_leaves_no_binding_behind(backend: OnnxRuntimeBackend) -> None:
    backend.infer(frames(0))
    wrong_type: Any = frames(0).astype(np.float32)
    for wrong in (frames(0)[:, :4], wrong_type):
        with pytest.raises(ModelError, match="onnxruntime cpu fp32 cannot run the graph"):
            backend.infer(wrong)
        assert backend._idle == []
        np.testing.assert_array_equal(backend.infer(frames(1)).conf_NHW, frames(1)[..., 0])
        assert len(backend._idle) == 1


def test_each_thread_has_a_binding_of_its_own(backend: OnnxRuntimeBackend) -> None:
    ready = threading.Barrier(4, timeout=20)

    def several(first: int) -> bool:
        ready.wait()
        answers = [(frames(first + i), backend.infer(frames(first + i))) for i in range(50)]
        return all(np.array_equal(answer.conf_NHW, given[..., 0]) for given, answer in answers)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(several, range(0, 400, 100)))
    assert 1 <= len(backend._idle) <= 4
    assert len(set(map(id, backend._idle))) == len(backend._idle)


def test_other_types_are_refused() -> None:
    with pytest.raises(ModelError, match=r"the graph's tensors are .*int64.*, wanted uint8; export it again"):
        OnnxRuntimeBackend(graph(kind="INT64"), device="cpu")


def test_results_of_another_shape_are_no_results() -> None:
    opened = OnnxRuntimeBackend(graph(axes=4), device="cpu")
    with pytest.raises(ModelError, match="Invalid rank for output"):
        opened.infer(frames(0))


PROVIDER = """
import ctypes, sys
from pathlib import Path
import onnxruntime
from cdga_sdk.backends.onnx_runtime import load_cuda_libraries
if "load" in sys.argv:
    load_cuda_libraries()
try:
    ctypes.CDLL(str(Path(onnxruntime.__file__).with_name("capi") / "libonnxruntime_providers_cuda.so"))
except OSError as error:
    print(error)
"""


def test_cuda_of_pip_s_packages_is_found() -> None:
    places = [Path(place, "nvidia", folder, "lib") for place in sys.path for folder in ("cu13", "cublas")]
    if not any(list(place.glob("libcublasLt.so*")) for place in places):
        pytest.skip("needs CUDA from pip")

    def lacking(*words: str) -> str:
        command = [sys.executable, "-c", PROVIDER, *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    if "libcublas" not in lacking():
        pytest.skip("needs an ONNX Runtime for CUDA, and no CUDA of the system's own")
    assert lacking("load").strip() in {"", "libcuda.so.1: cannot open shared object file: No such file or directory"}
