"""TensorRT's launches and slots on a GPU that is made up: order, failures, threads, and that nothing is left behind."""

from __future__ import annotations

import hashlib
import inspect
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import pytest

from cdga_sdk.backends import tensorrt_slot
from cdga_sdk.backends.choice import choose_backend
from cdga_sdk.backends.engine_cache import EngineCache, cache_folder
from cdga_sdk.backends.tensorrt_build import BuildFlags, key_for_this_gpu
from cdga_sdk.backends.tensorrt_engine import TensorRtBackend
from cdga_sdk.errors import ModelError, ResourceError, UsageError
from cdga_sdk.library_probe import PROBE_GRAPH
from tests.fake_gpu import SIZE_HW, Context, FakeGpu, Frames, Queue, conf_of, engine, mask_of

CAPTURE = ("cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiateWithFlags", "cudaGraphDestroy")
STUCK_S = 20.0


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    return FakeGpu().install(monkeypatch)


@pytest.fixture
def opened(gpu: FakeGpu) -> Iterator[Callable[..., TensorRtBackend]]:
    """Opens backends, closes them, and looks that nothing of them is left."""
    made: list[TensorRtBackend] = []

    def make(**options: Any) -> TensorRtBackend:
        made.append(TensorRtBackend(engine(options.pop("product", "tensorrt")), **options))
        return made[-1]

    yield make
    gpu.during_network = lambda context: None  # what the test put there may know contexts
    for backend in made:
        backend.close()
        backend.close()
    assert gpu.leaks() == {}


def frames(seed: int, num_frames: int = 1) -> Frames:
    return np.random.default_rng(seed).integers(0, 256, (num_frames, *SIZE_HW, 3), np.uint8)


def is_right(backend: TensorRtBackend, seed: int, num_frames: int = 1) -> bool:
    """Segment frames; whether that gave what the network gives."""
    given = frames(seed, num_frames)
    answer = backend.infer(given)
    assert answer.conf_NHW is not None
    return np.array_equal(answer.mask_NHW, mask_of(given)) and np.array_equal(answer.conf_NHW, conf_of(given))


# One slot: the graph.


def test_the_second_frame_is_captured_and_the_third_is_one_launch(
    gpu: FakeGpu, opened: Callable[..., TensorRtBackend]
) -> None:
    backend = opened()
    assert (backend.frames_at_once, backend.name) == (1, "tensorrt cuda fp16")
    assert is_right(backend, 0)
    assert backend.launches == ("plain",)
    assert gpu.counts(*CAPTURE) == [0, 0, 0, 0]
    gpu.calls.clear()
    assert is_right(backend, 1)
    steps = [c for c in gpu.calls if c.startswith(("execute", "cudaGraph", "cudaStream"))]
    assert steps == [
        "execute_async_v3",  # for the result, and to settle what TensorRT puts off
        "cudaStreamSynchronize",
        "cudaStreamBeginCapture",
        "execute_async_v3",
        "cudaStreamEndCapture",
        "cudaGraphInstantiateWithFlags",
        "cudaGraphDestroy",
        "cudaGraphLaunch",
        "cudaStreamSynchronize",
    ]
    assert backend.launches == ("graph",)
    for seed in range(2, 6):
        gpu.calls.clear()
        assert is_right(backend, seed)
        assert gpu.calls == [
            "cudaMemcpyAsync",
            "cudaGraphLaunch",
            "cudaMemcpyAsync",
            "cudaMemcpyAsync",
            "cudaStreamSynchronize",
        ]


REFUSED_BY_THE_GPU = "made to fail"
FAILURES = {
    "cudaStreamBeginCapture": (1, REFUSED_BY_THE_GPU),
    "cudaGraphInstantiateWithFlags": (1, REFUSED_BY_THE_GPU),
    "cudaGraphLaunch": (1, REFUSED_BY_THE_GPU),  # in the trial
    "cudaMemcpyAsync": (7, REFUSED_BY_THE_GPU),  # the trial's first: three a frame come before
    "cudaStreamSynchronize": (4, REFUSED_BY_THE_GPU),  # the trial's; the first is that of a batch that changes
}


@pytest.mark.parametrize("call", FAILURES)
def test_whatever_fails_launches_are_plain_from_then_on(
    gpu: FakeGpu, opened: Callable[..., TensorRtBackend], call: str
) -> None:
    at, why = FAILURES[call]
    gpu.fail_at = {call: at}
    backend = opened()
    assert [is_right(backend, seed) for seed in range(2)] == [True, True]
    assert gpu.counts(call)[0] >= at
    (launches,) = backend.launches
    assert launches.startswith("plain (")
    assert why in launches
    assert gpu.cudaGetLastError() == (0,)  # or TensorRT might find it
    assert not gpu.graphs
    assert not gpu.launchable
    gpu.calls.clear()
    assert all(is_right(backend, seed) for seed in range(2, 6))
    assert gpu.counts(*CAPTURE, "cudaGraphLaunch") == [0, 0, 0, 0, 0]
    assert backend.launches == (launches,)


LOST = pytest.mark.parametrize("call", ["captured execute_async_v3", "cudaStreamEndCapture"])


@LOST
def test_a_capture_that_is_lost_is_made_with_the_next_frame(
    gpu: FakeGpu, opened: Callable[..., TensorRtBackend], call: str
) -> None:
    gpu.fail_at = {call: 1}
    backend = opened()
    assert [is_right(backend, seed) for seed in range(2)] == [True, True]
    assert backend.launches == ("plain",)
    assert gpu.cudaGetLastError() == (0,)
    assert is_right(backend, 2)
    assert backend.launches == ("graph",)
    assert is_right(backend, 3)


@LOST
def test_captures_that_are_lost_again_and_again_are_given_up(
    gpu: FakeGpu, opened: Callable[..., TensorRtBackend], call: str
) -> None:
    gpu.fail_at, gpu.for_good = {call: 1}, True
    backend = opened()
    assert all(is_right(backend, seed) for seed in range(9))
    assert gpu.counts("cudaStreamBeginCapture") == [4]
    (launches,) = backend.launches
    assert launches.startswith("plain (")
    assert ("could not run a batch" if "execute" in call else REFUSED_BY_THE_GPU) in launches
    assert gpu.cudaGetLastError() == (0,)
    assert not gpu.graphs


@pytest.mark.parametrize("number", [2, 3, 5])
def test_a_launch_that_fails_in_use_costs_no_frame(
    gpu: FakeGpu, opened: Callable[..., TensorRtBackend], number: int
) -> None:
    gpu.fail_at = {"cudaGraphLaunch": number}
    backend = opened()
    assert all(is_right(backend, seed) for seed in range(8))
    assert gpu.counts("cudaGraphLaunch") == [number]
    assert backend.launches == (
        "plain (the GPU refuses a graph (made to fail); see whether nvidia-smi shows a GPU and its driver here)",
    )


@pytest.mark.parametrize("how", ["another pixel", "nothing"])
def test_a_graph_that_gives_something_else_is_dropped(
    gpu: FakeGpu, opened: Callable[..., TensorRtBackend], how: str
) -> None:
    gpu.in_graph = how
    backend = opened()
    assert all(is_right(backend, seed) for seed in range(4))
    assert backend.launches == ("plain (the graph's results differ)",)
    assert not gpu.launchable


def test_an_interrupted_capture_leaves_all_in_order(
    gpu: FakeGpu, opened: Callable[..., TensorRtBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = opened()
    assert is_right(backend, 0)
    as_it_is = Context.execute_async_v3

    def interrupted(context: Context, stream: int) -> bool:
        if gpu.streams[stream].captured is not None:
            raise KeyboardInterrupt
        return as_it_is(context, stream)

    monkeypatch.setattr(Context, "execute_async_v3", interrupted)
    with pytest.raises(KeyboardInterrupt):
        is_right(backend, 1)
    assert gpu.leaks().keys() == {"memory", "streams", "contexts"}
    monkeypatch.setattr(Context, "execute_async_v3", as_it_is)
    assert all(is_right(backend, seed) for seed in range(2, 6))
    assert backend.launches == ("graph",)


def test_an_interruption_at_the_very_start_of_a_capture_leaves_all_in_order(
    gpu: FakeGpu, opened: Callable[..., TensorRtBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = opened()
    assert is_right(backend, 0)
    as_it_is = gpu.cudaStreamBeginCapture

    def interrupted(stream: int, mode: str) -> None:
        as_it_is(stream, mode)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(gpu, "cudaStreamBeginCapture", interrupted)
        with pytest.raises(KeyboardInterrupt):
            is_right(backend, 1)
    assert gpu.leaks().keys() == {"memory", "streams", "contexts"}
    assert all(is_right(backend, seed) for seed in range(2, 6))
    assert backend.launches == ("graph",)


def test_an_interrupted_trial_is_made_up_for(gpu: FakeGpu, opened: Callable[..., TensorRtBackend]) -> None:
    backend = opened()
    assert is_right(backend, 0)
    runs = []

    def interrupt(context: Context) -> None:
        runs.append(context)
        if len(runs) == 2:  # the first is the plain one
            context._busy.release()
            raise KeyboardInterrupt

    gpu.during_network = interrupt
    with pytest.raises(KeyboardInterrupt):
        is_right(backend, 1)
    assert backend.launches == ("plain",)
    assert all(is_right(backend, seed) for seed in range(2, 6))
    assert backend.launches == ("graph",)
    assert gpu.counts("cudaStreamBeginCapture") == [1]


@pytest.mark.parametrize("options", [{"product": "tensorrt_rtx"}, {"graphs": False}])
def test_not_everything_is_captured(
    gpu: FakeGpu, opened: Callable[..., TensorRtBackend], monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    gpu.install(monkeypatch, "tensorrt_rtx")
    backend = opened(**options)
    assert all(is_right(backend, seed) for seed in range(4))
    assert gpu.counts("cudaStreamBeginCapture") == [0]
    (launches,) = backend.launches
    assert launches.startswith("plain (")


def test_another_batch_drops_the_graph_and_a_steady_one_gets_its_own(
    gpu: FakeGpu, opened: Callable[..., TensorRtBackend]
) -> None:
    gpu.batch = 2, 4
    backend = opened()
    states: list[str] = []
    for seed, num_frames in enumerate([1, 2, 2, 4, 4, 4, 7, 4, 9]):  # 1 runs as 2; 7 as 4 and 3; 9 as 4, 4 and 2
        assert is_right(backend, seed, num_frames)
        states += backend.launches
    assert states == ["plain", "graph", "graph", "plain", "graph", "graph", "plain", "plain", "plain"]
    assert len(gpu.launchable) == 0


def test_batches_that_keep_changing_are_captured_a_few_times_only(
    gpu: FakeGpu, opened: Callable[..., TensorRtBackend]
) -> None:
    gpu.batch = 1, 2
    backend = opened()
    for seed in range(8):
        assert all(is_right(backend, 10 * seed + again, 1 + seed % 2) for again in range(3))
    assert gpu.counts("cudaStreamBeginCapture", "cudaGraphExecDestroy") == [4, 4]
    assert backend.launches == ("plain (batches keep changing)",)


def test_measuring_without_copies(gpu: FakeGpu, opened: Callable[..., TensorRtBackend]) -> None:
    for backend in (opened(), opened(throughput=True)):
        assert all(is_right(backend, seed) for seed in range(3))
        gpu.calls.clear()
        backend.enqueue(1)
        backend.wait()
        assert gpu.calls == ["cudaGraphLaunch", "cudaStreamSynchronize"]
        assert is_right(backend, 3)


def test_a_frame_that_the_gpu_refuses_is_said_and_the_next_runs(
    gpu: FakeGpu, opened: Callable[..., TensorRtBackend]
) -> None:
    backend = opened()
    gpu.fail_at = {"execute_async_v3": 1}
    with pytest.raises(ResourceError, match="TensorRT could not run a batch of 1"):
        backend.infer(frames(0))
    assert all(is_right(backend, seed) for seed in range(4))
    gpu.fail_at = {"cudaMemcpyAsync": gpu.counts("cudaMemcpyAsync")[0] + 2}
    with pytest.raises(ResourceError, match="the GPU refuses a copy"):
        backend.infer(frames(0))
    assert all(is_right(backend, seed) for seed in range(4))


def test_results_are_the_callers(opened: Callable[..., TensorRtBackend]) -> None:
    backend = opened()
    answers = [backend.infer(frames(seed)) for seed in range(5)]
    for seed, answer in enumerate(answers):
        np.testing.assert_array_equal(answer.mask_NHW, mask_of(frames(seed)))


# What opening takes, and what it leaves where it fails.

OPENING = {
    "cudaStreamCreateWithFlags": 1,
    "cudaMalloc": 3,
    "cudaMallocHost": 3,
    "set_tensor_address": 3,
}


@pytest.mark.parametrize(("call", "at"), [(call, at) for call, most in OPENING.items() for at in range(1, most + 1)])
def test_an_opening_that_fails_leaves_nothing(gpu: FakeGpu, call: str, at: int) -> None:
    gpu.fail_at = {call: at}
    with pytest.raises((ResourceError, ModelError)) as caught:
        TensorRtBackend(engine(), throughput=True)
    assert gpu.counts(call) == [at]
    del caught  # whose traceback holds the context
    assert gpu.leaks() == {}


@pytest.mark.parametrize("lacking", ["context", "cudaMalloc", "cudaMallocHost", "cudaStreamCreateWithFlags"])
def test_without_memory_for_two_frames_one_at_a_time_serves(
    gpu: FakeGpu, opened: Callable[..., TensorRtBackend], lacking: str
) -> None:
    gpu.max_contexts = 1 if lacking == "context" else 2
    gpu.fail_at = {"cudaMalloc": 5, "cudaMallocHost": 6, "cudaStreamCreateWithFlags": 2}
    gpu.fail_at = {call: at for call, at in gpu.fail_at.items() if call == lacking}
    backend = opened(throughput=True)
    assert backend.frames_at_once == 1
    assert gpu.leaks() == {"memory": 6, "streams": 1, "contexts": 1}
    assert all(is_right(backend, seed) for seed in range(4))


def test_no_context_at_all_is_said(gpu: FakeGpu) -> None:
    gpu.max_contexts = 0
    with pytest.raises(ResourceError, match="the GPU has no memory left"):
        TensorRtBackend(engine())


def test_throughput_is_handed_on(gpu: FakeGpu, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDGA_CACHE", str(tmp_path))
    graph = b"an ONNX file, which nobody reads since its engine is kept"
    key = key_for_this_gpu(hashlib.sha256(graph).hexdigest(), precision="fp32", product="tensorrt", flags=BuildFlags())
    EngineCache(cache_folder()).obtain(key, lambda: b"plan", say=lambda line: None)
    for name in ("auto", "tensorrt"):
        for throughput, at_once in ((False, 1), (True, 2)):
            backend = choose_backend(graph, backend=name, throughput=throughput).backend
            assert (backend.name, backend.frames_at_once) == ("tensorrt cuda fp32", at_once)
            backend.close()
    assert gpu.leaks() == {}


@pytest.mark.parametrize("fault", ["runtime", "engine", "context"])
def test_a_kept_engine_that_cannot_be_opened_is_passed_by(
    gpu: FakeGpu, fault: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_runtime(log: object) -> object:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setenv("CDGA_CACHE", str(tmp_path))
    key = key_for_this_gpu(
        hashlib.sha256(PROBE_GRAPH).hexdigest(), precision="fp32", product="tensorrt", flags=BuildFlags()
    )
    EngineCache(cache_folder()).obtain(key, lambda: b"plan", say=lambda line: None)
    if fault == "runtime":
        monkeypatch.setattr(gpu.tensorrt, "Runtime", no_runtime)
    elif fault == "engine":
        monkeypatch.setattr(gpu.tensorrt.Runtime, "deserialize_cuda_engine", lambda runtime, data: None)
    else:
        gpu.max_contexts = 0
    for name in ("auto", "tensorrt"):
        choice = choose_backend(PROBE_GRAPH, backend=name, on_incompatible="fallback")
        assert not choice.walk[0].taken
        assert " cpu " in choice.backend.name
        with pytest.raises((ModelError, ResourceError)):
            choose_backend(PROBE_GRAPH, backend="tensorrt")
    assert gpu.leaks() == {}


# Two slots, and threads.


def test_two_frames_are_under_way_at_a_time_and_share_nothing(
    gpu: FakeGpu, opened: Callable[..., TensorRtBackend]
) -> None:
    backend = opened(throughput=True)
    assert backend.frames_at_once == 2
    meeting = threading.Barrier(2, timeout=STUCK_S)
    met: list[Context] = []

    def meet(context: Context) -> None:
        met.append(context)
        meeting.wait()

    gpu.during_network = meet
    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(lambda seed: is_right(backend, seed), range(2)))
    first, second = met
    assert first is not second
    assert not set(first.addresses.values()) & set(second.addresses.values())
    assert gpu.leaks() == {"memory": 12, "streams": 2, "contexts": 2}


@pytest.mark.parametrize("throughput", [False, True])
def test_many_threads_are_each_answered_rightly(
    gpu: FakeGpu, opened: Callable[..., TensorRtBackend], throughput: bool
) -> None:
    gpu.batch = 1, 2
    backend = opened(throughput=throughput)
    inside: list[Context] = []
    most = []

    def count(context: Context) -> None:
        inside.append(context)
        most.append(len(inside))
        time.sleep(0.001)
        inside.remove(context)

    gpu.during_network = count
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda seed: is_right(backend, seed), range(60)))
        assert all(pool.map(lambda seed: is_right(backend, seed, 1 + seed % 5), range(40)))
    assert max(most) == backend.frames_at_once == 1 + throughput


def test_who_finds_no_slot_waits(gpu: FakeGpu, opened: Callable[..., TensorRtBackend]) -> None:
    backend = opened(throughput=True)
    may_go, entered = threading.Event(), threading.Semaphore(0)

    def hold(context: Context) -> None:
        entered.release()
        assert may_go.wait(STUCK_S)

    gpu.during_network = hold
    with ThreadPoolExecutor(4) as pool:
        begun = [pool.submit(is_right, backend, seed) for seed in range(4)]
        assert all(entered.acquire(timeout=STUCK_S) for _ in range(2))
        done, _ = wait(begun, timeout=0.1)
        assert not done
        assert gpu.counts("execute_async_v3") == [2]
        may_go.set()
        assert all(future.result(STUCK_S) for future in begun)


def test_closing_waits_for_who_is_inside_and_turns_away_who_waits(
    gpu: FakeGpu, opened: Callable[..., TensorRtBackend]
) -> None:
    backend = opened()
    may_go, entered = threading.Event(), threading.Event()

    def hold(context: Context) -> None:
        entered.set()
        assert may_go.wait(STUCK_S)

    gpu.during_network = hold
    with ThreadPoolExecutor(4) as pool:
        inside = pool.submit(is_right, backend, 0)
        assert entered.wait(STUCK_S)
        waiting = pool.submit(is_right, backend, 1)
        closing = [pool.submit(backend.close) for _ in range(2)]
        with pytest.raises(UsageError, match="this runtime is closed; open a new one"):
            waiting.result(STUCK_S)
        assert not inside.done()
        assert not any(future.done() for future in closing)
        assert gpu.leaks() == {"memory": 6, "streams": 1, "contexts": 1}
        may_go.set()
        assert inside.result(STUCK_S)
        for future in closing:
            future.result(STUCK_S)
    assert gpu.leaks() == {}
    with pytest.raises(UsageError, match="this runtime is closed"):
        backend.infer(frames(0))


def test_closing_does_not_wait_for_ever_for_a_slot_that_is_not_given_back(
    gpu: FakeGpu, opened: Callable[..., TensorRtBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_slot, "_LEAVE_S", 0.2)
    backend = opened(throughput=True)
    assert all(is_right(backend, seed) for seed in range(3))
    taken = backend._slots.taken()
    slot = taken.__enter__()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(backend.close).result(STUCK_S)
    assert gpu.leaks() == {"memory": 6, "streams": 1, "contexts": 1, "launchable": 1}
    slot.enqueue(1)  # whoever is in it works on
    slot.wait()
    with pytest.raises(UsageError, match="this runtime is closed"):
        backend.infer(frames(0))
    taken.__exit__(None, None, None)
    backend.close()
    assert gpu.leaks() == {}


def test_who_comes_while_all_is_freed_is_turned_away_at_once(
    gpu: FakeGpu, opened: Callable[..., TensorRtBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = opened()
    assert is_right(backend, 0)
    as_it_is = gpu.cudaStreamSynchronize
    freeing, may_go = threading.Event(), threading.Event()

    def slow(stream: int) -> Any:
        freeing.set()
        assert may_go.wait(STUCK_S)
        return as_it_is(stream)

    monkeypatch.setattr(gpu, "cudaStreamSynchronize", slow)
    with ThreadPoolExecutor(2) as pool:
        closing = pool.submit(backend.close)
        try:
            assert freeing.wait(STUCK_S)
            with pytest.raises(UsageError, match="this runtime is closed"):
                pool.submit(backend.infer, frames(1)).result(2)
            assert not closing.done()
        finally:
            may_go.set()
        closing.result(STUCK_S)


def test_closing_after_a_failure_of_the_gpu_frees_all(gpu: FakeGpu, opened: Callable[..., TensorRtBackend]) -> None:
    backend = opened(throughput=True)
    assert all(is_right(backend, seed) for seed in range(3))
    gpu.for_good = True
    gpu.fail_at = {"cudaStreamSynchronize": 1}
    with pytest.raises(ResourceError, match="the GPU failed"):
        backend.infer(frames(0))
    for queue in gpu.streams.values():
        queue.waiting.clear()  # a GPU that failed does nothing more


# The made-up GPU is held against the real libraries, where they are installed.


def test_the_runtime_s_functions_are_real() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    functions = {n: f for n, f in inspect.getmembers(FakeGpu, inspect.isfunction) if n.startswith("cuda")}
    assert len(functions) > 15
    for name, function in functions.items():
        signature = getattr(runtime, name).__doc__.splitlines()[0]
        wanted = list(inspect.signature(inspect.unwrap(function)).parameters)[1:]
        named = signature.partition("(")[2].rpartition(")")[0]
        assert len([word for word in named.split(",") if word.strip()]) == len(wanted), signature
    assert runtime.cudaStreamNonBlocking == FakeGpu.cudaStreamNonBlocking
    for kind in ("cudaMemcpyKind", "cudaStreamCaptureMode"):
        assert all(hasattr(getattr(runtime, kind), name) for name in vars(getattr(FakeGpu, kind)))


@pytest.mark.usefixtures("without_gpu")
def test_the_runtime_answers_with_so_many_values() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    asked = {
        "cudaStreamCreateWithFlags": (1,),
        "cudaStreamBeginCapture": (0, runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal),
        "cudaStreamEndCapture": (0,),
        "cudaGraphInstantiateWithFlags": (0, 0),
        "cudaGraphLaunch": (0, 0),
        "cudaStreamSynchronize": (0,),
    }
    gpu = FakeGpu()
    gpu.fail_at = dict.fromkeys(asked, 1)
    gpu.streams[0] = Queue(captured=[])
    for name, arguments in asked.items():
        assert len(getattr(runtime, name)(*arguments)) == len(getattr(gpu, name)(*arguments)), name
    assert len(runtime.cudaGetLastError()) == len(gpu.cudaGetLastError())


def test_tensorrt_s_names_are_real(gpu: FakeGpu) -> None:
    real = pytest.importorskip("tensorrt_rtx")
    for name, made_up in vars(gpu.tensorrt).items():
        ours = {n for n in vars(made_up) if not n.startswith("_")} if inspect.isclass(made_up) else set()
        assert not {n for n in ours if not hasattr(getattr(real, name), n)}, name
