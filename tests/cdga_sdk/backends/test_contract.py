"""One contract for every runtime."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cdga_sdk.backends.base import Backend
from cdga_sdk.backends.choice import open_backend
from cdga_sdk.backends.onnx_runtime import what_cuda_lacks
from cdga_sdk.bundle import Bundle
from cdga_sdk.errors import ModelError, ResourceError, UsageError
from cdga_sdk.prediction import Prediction

NAMES = ("onnxruntime", "openvino")
HEAVY = {"InferenceSession", "IOBinding", "CompiledModel", "InferRequest"}
Frames = NDArray[np.uint8]


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture(scope="module")
def golden(bundle: Bundle) -> tuple[Frames, Frames]:
    frames = bundle.golden_frames()
    images = np.stack([f.image_bgr[:, :, ::-1] for f in frames])
    return images, np.stack([f.mask for f in frames])


@pytest.fixture(scope="module", params=NAMES)
def backend(request: pytest.FixtureRequest, bundle: Bundle) -> Backend:
    if request.param == "openvino":
        pytest.importorskip("openvino")
    return open_backend(bundle.model_bytes, backend=request.param, device="cpu", threads=1)


def both(answer: Prediction) -> Frames:
    """Masks and confidences, (2, N, H, W)."""
    return np.stack([answer.mask_NHW, [answer.confidence(i) for i in range(len(answer.mask_NHW))]])


def foreign_graph(names: tuple[str, str]) -> bytes:
    """A sound ONNX file that is no segmentation: what goes in comes out."""
    from onnx import TensorProto, helper

    shape: list[str | int | None] = ["N", 64, 128, 3]
    source, result = (helper.make_tensor_value_info(n, TensorProto.UINT8, shape) for n in names)
    graph = helper.make_graph([helper.make_node("Identity", [names[0]], [names[1]])], "g", [source], [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def test_name_tells_runtime_device_and_arithmetic(backend: Backend) -> None:
    assert backend.name in {f"{name} cpu fp32" for name in NAMES}


@pytest.mark.parametrize("batch", [1, 3])
def test_shapes_and_types(backend: Backend, golden: tuple[Frames, Frames], batch: int) -> None:
    answer = backend.infer(golden[0][:batch])
    for out in both(answer):
        assert isinstance(out, np.ndarray)
        assert out.shape == (batch, 64, 128)
        assert out.dtype == np.uint8
    assert answer.mask_NHW.max() <= 18


def test_batch_equals_one_by_one(backend: Backend, golden: tuple[Frames, Frames]) -> None:
    together = backend.infer(golden[0][:3])
    for i in range(3):
        alone = backend.infer(golden[0][i : i + 1])
        assert (together.mask_NHW[i] != alone.mask_NHW[0]).mean() <= 1e-4
        assert np.abs(together.confidence(i).astype(int) - alone.confidence(0)).max() <= 1
        assert together.mean_confidence(i) == pytest.approx(alone.mean_confidence(0), abs=1e-4)


def test_same_frame_same_answer(backend: Backend, golden: tuple[Frames, Frames]) -> None:
    first, second = backend.infer(golden[0][:2]), backend.infer(golden[0][:2])
    np.testing.assert_array_equal(both(first), both(second))


def test_results_are_the_callers(backend: Backend, golden: tuple[Frames, Frames]) -> None:
    answer, late = (backend.infer(golden[0][:1]) for _ in range(2))
    mask, conf = kept = both(answer).copy()
    later = both(backend.infer(golden[0][5:6]))
    np.testing.assert_array_equal(both(late), kept)  # asked only after another frame
    answer.mask_NHW[:] = 200
    answer.confidence(0)[:] = 200
    np.testing.assert_array_equal(both(backend.infer(golden[0][5:6])), later)
    np.testing.assert_array_equal(both(late), (mask, conf))


def test_mean_confidence_is_the_mean_of_every_8th_pixel(backend: Backend, golden: tuple[Frames, Frames]) -> None:
    answer = backend.infer(golden[0][:2])
    for i in range(2):
        assert answer.mean_confidence(i) == pytest.approx(answer.confidence(i)[4::8, 4::8].mean() / 255, abs=0.5 / 255)


def test_input_is_left_alone(backend: Backend, golden: tuple[Frames, Frames]) -> None:
    frames = golden[0][:1].copy()
    backend.infer(frames)
    np.testing.assert_array_equal(frames, golden[0][:1])


def test_threads_equal_serial(backend: Backend, golden: tuple[Frames, Frames]) -> None:
    frames = [golden[0][i : i + 1] for i in range(8)]
    serial = [both(backend.infer(f)) for f in frames]
    with ThreadPoolExecutor(8) as pool:
        for together in pool.map(lambda i: (i, both(backend.infer(frames[i]))), [*range(8)] * 4):
            index, answer = together
            np.testing.assert_array_equal(answer, serial[index])


def test_golden_masks(backend: Backend, golden: tuple[Frames, Frames]) -> None:
    assert (backend.infer(golden[0]).mask_NHW == golden[1]).mean() >= 0.9999


def test_runtimes_agree(bundle: Bundle, golden: tuple[Frames, Frames]) -> None:
    pytest.importorskip("openvino")
    answers = [both(open_backend(bundle.model_bytes, backend=n, device="cpu").infer(golden[0])) for n in NAMES]
    assert (answers[0][0] == answers[1][0]).mean() >= 0.9999
    assert np.abs(answers[0][1].astype(int) - answers[1][1]).max() <= 2


def resized_otherwise(model_bytes: bytes) -> bytes:
    """A bundle's graph whose last upsampling has other pixel centres."""
    import onnx

    model = onnx.load_model_from_string(model_bytes)
    last = [node for node in model.graph.node if node.op_type == "Resize"][-1]
    (centres,) = (a for a in last.attribute if a.name == "coordinate_transformation_mode")
    centres.s = b"asymmetric"
    return bytes(model.SerializeToString())


def test_openvino_s_end_is_cut_off_where_it_is_the_usual(bundle: Bundle, golden: tuple[Frames, Frames]) -> None:
    from cdga_sdk.backends.openvino_cpu import OpenVinoBackend

    assert OpenVinoBackend(bundle.model_bytes).gives_logits
    other = resized_otherwise(bundle.model_bytes)
    whole = OpenVinoBackend(other)
    assert not whole.gives_logits
    mask, conf = both(whole.infer(golden[0]))
    wanted_mask, wanted_conf = both(open_backend(other, backend="onnxruntime", device="cpu").infer(golden[0]))
    assert (mask == wanted_mask).mean() >= 0.9999
    assert np.abs(conf.astype(int) - wanted_conf).max() <= 2
    assert (mask != golden[1]).mean() > 1e-4  # the other centres do matter


def test_closing_twice(bundle: Bundle, backend: Backend) -> None:
    opened = open_backend(bundle.model_bytes, backend=backend.name.split()[0], device="cpu")
    opened.close()
    opened.close()


def held_by(backend: Backend) -> list[Any]:
    """What it has of its runtime, idle requests or bindings too."""
    held = vars(backend)
    return [*held.values(), *held["_idle"]]


def test_closing_frees_the_runtime(bundle: Bundle, backend: Backend, golden: tuple[Frames, Frames]) -> None:
    opened = open_backend(bundle.model_bytes, backend=backend.name.split()[0], device="cpu", threads=1)
    kept = opened.infer(golden[0][:1])
    there = [weakref.ref(value) for value in held_by(opened) if type(value).__name__ in HEAVY]
    assert len(there) == 2
    opened.close()
    gc.collect()
    assert [found() for found in there] == [None] * len(there)
    np.testing.assert_array_equal(both(kept), both(backend.infer(golden[0][:1])))
    with pytest.raises(UsageError, match="this runtime is closed; open a new one"):
        opened.infer(golden[0][:1])


def test_closing_while_frames_are_computed(bundle: Bundle, backend: Backend, golden: tuple[Frames, Frames]) -> None:
    opened = open_backend(bundle.model_bytes, backend=backend.name.split()[0], device="cpu", threads=1)
    wanted = both(backend.infer(golden[0][:1]))
    begun = threading.Barrier(5, timeout=20)

    def until_closed(_: int) -> int:
        begun.wait()
        for count in range(1_000_000):
            try:
                np.testing.assert_array_equal(both(opened.infer(golden[0][:1])), wanted)
            except UsageError:
                return count
        raise AssertionError("never closed")

    with ThreadPoolExecutor(4) as pool:
        counts = [pool.submit(until_closed, number) for number in range(4)]
        begun.wait()
        time.sleep(0.1)
        opened.close()
        assert sum(count.result(20) for count in counts) > 0
    assert not HEAVY & {type(value).__name__ for value in held_by(opened)}


def hungry_graph() -> bytes:
    """A sound graph that wants 256 TiB on the way, more than an address reaches, for a frame that is not black."""
    from onnx import TensorProto, helper

    shape: list[str | int | None] = ["N", 64, 128, 3]
    numbers = {"first": ([], [0]), "unit": ([3], [1 << 12, 1 << 16, 1 << 18])}
    nodes = [
        helper.make_node("Gather", ["frame", "first"], ["conf"], axis=3),
        helper.make_node("Cast", ["frame"], ["whole"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["whole"], ["brightest"], keepdims=0),
        helper.make_node("Cast", ["brightest"], ["count"], to=TensorProto.INT64),
        helper.make_node("Mul", ["unit", "count"], ["size"]),
        helper.make_node("Expand", ["brightest", "size"], ["huge"]),
        helper.make_node("ReduceSum", ["huge"], ["sum"], keepdims=0),
        helper.make_node("Gather", ["whole", "first"], ["red"], axis=3),
        helper.make_node("Add", ["red", "sum"], ["total"]),
        helper.make_node("Cast", ["total"], ["mask"], to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("frame", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info(name, TensorProto.UINT8, shape[:3]) for name in ("mask", "conf")],
        [helper.make_tensor(name, TensorProto.INT64, *value) for name, value in numbers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("name", NAMES)
def test_memory_that_runs_out_in_mid_run_is_a_resource_error(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnx")
    if name == "openvino":
        pytest.importorskip("openvino")
    opened = open_backend(hungry_graph(), backend=name, device="cpu", threads=1)
    black = np.zeros((1, 64, 128, 3), np.uint8)
    assert not opened.infer(black).mask_NHW.any()
    with pytest.raises(ResourceError, match=f"{name} cpu fp32 ran out of memory .*; free some memory") as caught:
        opened.infer(black + 1)  # not the frame before once more
    assert caught.value.exit_code == 6
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("data", [b"", b"garbage", bytes(1000)])
def test_garbage_is_refused(name: str, data: bytes) -> None:
    if name == "openvino":
        pytest.importorskip("openvino")
    with pytest.raises(ModelError) as caught:
        open_backend(data, backend=name, device="cpu")
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("name", NAMES)
def test_cut_graph_is_refused(bundle: Bundle, name: str) -> None:
    if name == "openvino":
        pytest.importorskip("openvino")
    with pytest.raises(ModelError, match="refuses the graph"):
        open_backend(bundle.model_bytes[: len(bundle.model_bytes) // 2], backend=name, device="cpu")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("names", [("image", "logits"), ("frame", "mask")])
def test_graph_of_another_kind_is_refused(name: str, names: tuple[str, str]) -> None:
    pytest.importorskip("onnx")
    if name == "openvino":
        pytest.importorskip("openvino")
    with pytest.raises(ModelError, match="wanted frame in, mask and conf out"):
        open_backend(foreign_graph(names), backend=name, device="cpu")


def test_unknown_names(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="unknown backend 'tensorflow'; use one of auto, onnxruntime, openvino"):
        open_backend(bundle.model_bytes, backend="tensorflow")
    with pytest.raises(UsageError, match="unknown device 'tpu'; use one of auto, cpu, cuda"):
        open_backend(bundle.model_bytes, device="tpu")
    with pytest.raises(UsageError, match="OpenVINO has no CUDA device"):
        open_backend(bundle.model_bytes, backend="openvino", device="cuda")


@pytest.mark.parametrize("name", ["auto", "onnxruntime"])
def test_cuda_without_a_gpu_is_said_by_us_alone(bundle: Bundle, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    if not what_cuda_lacks():
        pytest.skip("this machine has a CUDA driver")
    with pytest.raises(ResourceError, match=r"could not use CUDA \((no NVIDIA driver|this ONNX Runtime was)") as caught:
        open_backend(bundle.model_bytes, backend=name, device="cuda")
    assert caught.value.exit_code == 6
    assert capfd.readouterr() == ("", "")


def test_auto_takes_what_is_here(bundle: Bundle, golden: tuple[Frames, Frames]) -> None:
    opened = open_backend(bundle.model_bytes)
    assert opened.name.endswith("fp32")
    assert (opened.infer(golden[0][:1]).mask_NHW == golden[1][:1]).mean() >= 0.9999
    if what_cuda_lacks():
        try:
            import openvino  # noqa: F401 - is it there at all
        except ImportError:
            assert opened.name == "onnxruntime cpu fp32"
        else:
            assert opened.name == "openvino cpu fp32"


def test_openvino_may_be_missing(tiny_bundle: Path) -> None:
    frame = str(next(tiny_bundle.glob("golden/*.png")))
    code = (
        "import sys; sys.modules['openvino'] = None\n"
        "from cdga_sdk.cli import run; from cdga_sdk import Segmenter\n"
        f"print(Segmenter({str(tiny_bundle)!r}, device='cpu').backend_name)\n"
        f"sys.exit(run(['segment', {frame!r}, '--model', {str(tiny_bundle)!r}, '--backend', 'openvino']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "onnxruntime cpu fp32\n")
    assert done.stderr == "error[E-EXTRA]: 'openvino' is needed here; pip install 'cdga-sdk[openvino]'\n"


FIRST_FRAMES = """
import faulthandler, sys, threading
import numpy as np
from cdga_sdk.backends.choice import open_backend
from cdga_sdk.bundle import Bundle

faulthandler.dump_traceback_later(20, exit=True)
sys.setswitchinterval(1e-6)
graph = Bundle.open(sys.argv[1]).model_bytes
backend = open_backend(graph, backend=sys.argv[2], device="cpu", threads=2, throughput=True)
ready = threading.Barrier(4)
done = []

def first():
    frame_1HWC = np.zeros((1, 64, 128, 3), np.uint8)
    ready.wait()
    done.append(backend.infer(frame_1HWC).mask_NHW.shape)

threads = [threading.Thread(target=first) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert done == 4 * [(1, 64, 128)], done
"""


@pytest.mark.parametrize("name", NAMES)
def test_threads_may_meet_in_a_process_s_first_frame(tiny_bundle: Path, name: str) -> None:
    # Without what `openvino_cpu` does about it, most such processes never end.
    for _ in range(3):
        command = [sys.executable, "-c", FIRST_FRAMES, str(tiny_bundle), name]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
