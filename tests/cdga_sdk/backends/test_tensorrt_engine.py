"""The TensorRT backend: what needs a GPU keeps the contract there, and without one everything says so."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cdga_sdk.backends.choice import BACKENDS, ON_INCOMPATIBLE, open_backend
from cdga_sdk.backends.cuda_device import driver_version, gpu_facts
from cdga_sdk.backends.engine_cache import EngineCache, EngineKey, cache_folder
from cdga_sdk.backends.tensorrt_build import PRODUCTS, BuildFlags, build_plan, key_for_this_gpu
from cdga_sdk.backends.tensorrt_engine import TensorRtBackend, open_kept, open_tensorrt, split_batch, wanted_key
from cdga_sdk.bundle import Bundle
from cdga_sdk.cli import run
from cdga_sdk.errors import ModelError, ResourceError, UsageError
from cdga_sdk.image import write_png

Frames = NDArray[np.uint8]


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CDGA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def key(**fields: object) -> EngineKey:
    record: dict[str, object] = {
        "onnx_sha256": "ab" * 32,
        "precision": "fp16",
        "product": "tensorrt",
        "version": "11.4.0.106",
        "sm": "89",
        "gpu": "NVIDIA L4",
        "driver": "590.1",
        "batch": "1:1:1",
        "workspace_gib": None,
        "hw_compat": "none",
        "version_compatible": False,
    }
    return EngineKey.model_validate(record | fields)


@pytest.mark.parametrize(
    ("num_frames", "lowest", "highest", "parts"),
    [
        (1, 1, 1, [(0, 1, 1)]),
        (3, 1, 1, [(0, 1, 1), (1, 2, 1), (2, 3, 1)]),
        (8, 1, 8, [(0, 8, 8)]),
        (9, 1, 8, [(0, 8, 8), (8, 9, 1)]),
        (9, 4, 8, [(0, 8, 8), (8, 9, 4)]),
        (2, 4, 4, [(0, 2, 4)]),
        (0, 1, 4, []),
    ],
)
def test_batches_are_split_and_filled_up(
    num_frames: int, lowest: int, highest: int, parts: list[tuple[int, int, int]]
) -> None:
    split = [(part.start, part.stop, batch) for part, batch in split_batch(num_frames, lowest, highest)]
    assert split == parts


def test_flags_are_those_of_the_kept_engine_that_fits() -> None:
    here = key()
    fits, newer = key(batch="1:4:8", hw_compat="same-cc"), key(batch="2:2:2", driver="1")
    assert wanted_key(here, [newer, fits]) == fits
    assert wanted_key(here, [newer]) == key(batch="2:2:2")
    assert wanted_key(here, []) == here
    for foreign in ({"onnx_sha256": "cd" * 32}, {"product": "tensorrt_rtx"}, {"precision": "fp32"}):
        assert wanted_key(here, [key(batch="1:4:8", **foreign)]) == here


def test_names_of_backends() -> None:
    assert set(PRODUCTS) <= set(BACKENDS)
    assert ON_INCOMPATIBLE == ("rebuild", "fallback", "error")


def test_wrong_words(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="unknown on-incompatible 'ignore'; use one of rebuild, fallback, error"):
        open_backend(bundle.model_bytes, on_incompatible="ignore")
    for product in PRODUCTS:
        with pytest.raises(UsageError, match="TensorRT has no CPU device"):
            open_backend(bundle.model_bytes, backend=product, device="cpu")


@pytest.mark.usefixtures("without_gpu")
@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("way", ["rebuild", "error"])
def test_without_gpu_or_library_it_refuses(bundle: Bundle, product: str, way: str) -> None:
    with pytest.raises(ResourceError, match=r"pip install 'cdga-sdk|nvidia-smi shows a GPU") as caught:
        open_backend(bundle.model_bytes, backend=product, on_incompatible=way)
    assert caught.value.exit_code == 6


@pytest.mark.usefixtures("without_gpu")
def test_fallback_runs_without_tensorrt_and_says_so(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    opened = open_backend(bundle.model_bytes, backend="tensorrt", on_incompatible="fallback")
    assert opened.name.split()[0] in {"onnxruntime", "openvino"}
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.endswith("; running without TensorRT\n")


@pytest.mark.usefixtures("without_gpu")
def test_segment_says_it_in_one_line(tiny_bundle: Path, ride: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["segment", str(ride), "--model", str(tiny_bundle), "--backend", "tensorrt"]) == 6
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.usefixtures("without_gpu")
@pytest.mark.parametrize("command", ["segment", "verify", "evaluate"])
def test_every_command_takes_on_incompatible(
    command: str, tiny_bundle: Path, ride: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = {
        "segment": [
            str(ride),
            "--model",
            str(tiny_bundle),
            "-o",
            str(tmp_path / "out"),
            "--max-frames",
            "1",
            "--exist-ok",
        ],
        "verify": [str(tiny_bundle)],
        "evaluate": [str(tiny_bundle), "--data", f"folder:{labelled_frames(tmp_path / 'data')}"],
    }
    words = [command, *arguments[command], "--backend", "tensorrt", "--quiet", "--on-incompatible"]
    for way, code in {"fallback": 0, "error": 6, "rebuild": 6, "perhaps": 2}.items():
        assert run([*words, way]) == code, way
        (line,) = capsys.readouterr().err.splitlines()
        assert ("running without TensorRT" in line) == (way == "fallback")


def labelled_frames(folder: Path) -> Path:
    """A data set of one frame."""
    picture = np.zeros((64, 128, 3), np.uint8)
    write_png(folder / "images/0.png", picture)
    write_png(folder / "labels/0.png", picture[:, :, 0])
    return folder


def test_segment_names_the_command_that_installs_tensorrt(
    tiny_bundle: Path, ride: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert run(["segment", str(ride), "--model", str(tiny_bundle), "--backend", "tensorrt"]) == 6
    error = capsys.readouterr().err
    assert error.startswith("error[E-RESOURCE]: 'tensorrt' is needed here (")
    assert error.endswith("); pip install 'cdga-sdk[trt]'\n")
    assert error.count("\n") == 1


@pytest.mark.usefixtures("without_gpu")
def test_auto_passes_over_an_engine_that_nothing_here_can_run(bundle: Bundle) -> None:
    sha256 = hashlib.sha256(bundle.model_bytes).hexdigest()
    cache = EngineCache(cache_folder())
    cache.obtain(key(onnx_sha256=sha256), lambda: b"no engine at all", say=lambda line: None)
    assert isinstance(open_kept(bundle.model_bytes), str)
    assert open_backend(bundle.model_bytes).name.split()[0] in {"onnxruntime", "openvino"}


def test_auto_makes_no_cache(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDGA_CACHE", str(tmp_path / "none"))
    assert isinstance(open_kept(bundle.model_bytes), str)
    assert not (tmp_path / "none").exists()


def test_the_driver_is_told_or_unknown() -> None:
    assert driver_version()


# What follows needs a GPU, and one of the two libraries.


@pytest.fixture(scope="module", params=PRODUCTS)
def backend(request: pytest.FixtureRequest, bundle: Bundle) -> Iterator[TensorRtBackend]:
    pytest.importorskip(request.param)
    try:
        gpu_facts()
    except ResourceError as error:
        pytest.skip(str(error))
    opened = engine_for(bundle, request.param, (1, 2, 4))
    yield opened
    opened.close()


def engine_for(
    bundle: Bundle, product: str, batch: tuple[int, int, int], *, throughput: bool = False, graphs: bool = True
) -> TensorRtBackend:
    graph = bundle.model_bytes
    sha256 = hashlib.sha256(graph).hexdigest()
    here = key_for_this_gpu(sha256, precision="fp32", product=product, flags=BuildFlags(batch=batch))
    engine = EngineCache(cache_folder()).obtain(here, partial(build_plan, graph, here), say=lambda line: None)
    assert engine is not None
    return TensorRtBackend(engine, throughput=throughput, graphs=graphs)


@pytest.fixture(scope="module")
def golden(bundle: Bundle) -> tuple[Frames, Frames]:
    frames = bundle.golden_frames()
    return np.stack([f.image_bgr[:, :, ::-1] for f in frames]), np.stack([f.mask for f in frames])


@pytest.mark.gpu
def test_golden_masks_in_every_batch(backend: TensorRtBackend, golden: tuple[Frames, Frames]) -> None:
    assert backend.name in {f"{product} cuda fp32" for product in PRODUCTS}
    for batch in (1, 3, 4, 5, 8):  # the engine takes 1 to 4
        answer = backend.infer(golden[0][:batch])
        mask, conf = answer.mask_NHW, answer.conf_NHW
        assert mask.shape == conf.shape == (batch, 64, 128)
        assert mask.dtype == conf.dtype == np.uint8
        assert (mask == golden[1][:batch]).mean() >= 0.9999


@pytest.mark.gpu
def test_fewer_frames_than_the_engine_takes(
    backend: TensorRtBackend, bundle: Bundle, golden: tuple[Frames, Frames]
) -> None:
    opened = engine_for(bundle, backend.name.split()[0], (2, 2, 4))
    for batch in (1, 5):
        assert (opened.infer(golden[0][:batch]).mask_NHW == golden[1][:batch]).mean() >= 0.9999
    opened.close()


@pytest.mark.gpu
def test_results_are_the_callers(backend: TensorRtBackend, golden: tuple[Frames, Frames]) -> None:
    answer = backend.infer(golden[0][:1])
    kept = answer.mask_NHW.copy(), answer.conf_NHW.copy()
    later = backend.infer(golden[0][5:6])
    np.testing.assert_array_equal((answer.mask_NHW, answer.conf_NHW), kept)
    answer.mask_NHW[:] = answer.conf_NHW[:] = 200
    again = backend.infer(golden[0][5:6])
    np.testing.assert_array_equal((again.mask_NHW, again.conf_NHW), (later.mask_NHW, later.conf_NHW))


@pytest.mark.gpu
def test_threads_equal_serial(backend: TensorRtBackend, golden: tuple[Frames, Frames]) -> None:
    frames = [golden[0][i : i + 1] for i in range(8)]
    serial = [backend.infer(f) for f in frames]
    with ThreadPoolExecutor(8) as pool:
        for index, answer in pool.map(lambda i: (i, backend.infer(frames[i])), [*range(8)] * 8):
            np.testing.assert_array_equal(answer.mask_NHW, serial[index].mask_NHW)
            np.testing.assert_array_equal(answer.conf_NHW, serial[index].conf_NHW)


@pytest.mark.gpu
@pytest.mark.parametrize("throughput", [False, True])
def test_graphs_and_two_frames_at_a_time_change_nothing(
    backend: TensorRtBackend, bundle: Bundle, golden: tuple[Frames, Frames], throughput: bool
) -> None:
    product = backend.name.split()[0]
    frames = [golden[0][i : i + 1] for i in range(8)]
    with closing(engine_for(bundle, product, (1, 1, 1), graphs=False)) as plain:
        wanted = [plain.infer(f) for f in frames]
    with (
        closing(engine_for(bundle, product, (1, 1, 1), throughput=throughput)) as opened,
        ThreadPoolExecutor(opened.frames_at_once) as pool,
    ):
        assert opened.frames_at_once == 1 + throughput
        for index, answer in pool.map(lambda i: (i, opened.infer(frames[i])), [*range(8)] * 4):
            np.testing.assert_array_equal(answer.mask_NHW, wanted[index].mask_NHW)
            np.testing.assert_array_equal(answer.conf_NHW, wanted[index].conf_NHW)
        if product == "tensorrt":
            assert set(opened.launches) == {"graph"}


@pytest.mark.gpu
def test_reversed_channels_are_copied_rightly(backend: TensorRtBackend, bundle: Bundle) -> None:
    frame = bundle.golden_frames()[0]
    mask = backend.infer(frame.image_bgr[np.newaxis, :, :, ::-1]).mask_NHW  # a view with a negative stride
    assert (mask[0] == frame.mask).mean() >= 0.9999


@pytest.mark.gpu
def test_closing_twice_frees_the_memory(backend: TensorRtBackend, bundle: Bundle) -> None:
    from cuda.bindings import runtime

    product = backend.name.split()[0]
    engine_for(bundle, product, (1, 2, 4)).close()  # what the library keeps for itself is there now
    free_before = runtime.cudaMemGetInfo()[1]
    for _ in range(5):
        opened = engine_for(bundle, product, (1, 2, 4))
        opened.close()
        opened.close()
    assert free_before - runtime.cudaMemGetInfo()[1] < 8 * 2**20


@pytest.mark.gpu
def test_auto_takes_the_kept_engine(backend: TensorRtBackend, bundle: Bundle) -> None:
    kept = open_kept(bundle.model_bytes)
    assert isinstance(kept, TensorRtBackend)
    assert kept.name.endswith(" cuda fp32")
    kept.close()
    product = backend.name.split()[0]
    again = open_tensorrt(
        bundle.model_bytes, product=product, precision="fp32", on_incompatible="error", say=lambda line: None
    )
    assert again is not None
    again.close()


@pytest.mark.gpu
def test_an_engine_that_tensorrt_refuses_is_said(backend: TensorRtBackend) -> None:
    product = backend.name.split()[0]
    here = key_for_this_gpu("00" * 32, precision="fp32", product=product, flags=BuildFlags())
    engine = EngineCache(cache_folder()).obtain(here, lambda: bytes(1000), say=lambda line: None)
    assert engine is not None
    with pytest.raises(ModelError, match="refuses the engine"):
        TensorRtBackend(engine)
