"""Fixtures that are costly once: a network trained for seconds, its bundle, and where the real data lie."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).parents[2] / "shared"
TINY_HW = (64, 128)


@pytest.fixture(autouse=True, scope="session")
def few_threads() -> None:
    """Small tensors: torch's thread barriers cost more than they bring, above all on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def heeds_signals() -> None:
    """A shell starts what runs in its background deaf to SIGINT, and nohup to SIGHUP; who is started inherits it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a CDGA run of 12 iterations on streets at 64x128: its result is the last iteration."""
    from cdga_train.config import load_config
    from cdga_train.manifest import write_manifest
    from cdga_train.presets import PRESETS
    from cdga_train.rounds import train_run

    folder = tmp_path_factory.mktemp("tiny_run")
    words = [
        "iters=12",
        "batch=2",
        "imgsz=64,128",
        "num_groups=2",
        "align_resolution=input",
        "log_every=4",
        "save_every=6",
        "candidates=1",
    ]
    config = load_config(PRESETS["streets_cdga"](), None, words)
    write_manifest(folder, config)
    train_run(config, folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of `tiny_run`; read only."""
    from cdga_export.export import export_checkpoint

    return export_checkpoint(tiny_run, tmp_path_factory.mktemp("bundle") / "tiny.cdga").bundle.path


@pytest.fixture
def without_gpu() -> None:
    """What is told where there is no GPU can be seen only there."""
    from cdga_sdk.backends.cuda_device import gpu_facts
    from cdga_sdk.errors import ResourceError

    try:
        gpu_facts()
    except ResourceError:
        return
    pytest.skip("this machine has a GPU")


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """The kernel refuses to let this process write a file longer than ``size`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def shared_or_skip(place: str) -> Path:
    """A file or folder of the data kept beside the repository; skips the test where it is absent."""
    path = SHARED / place
    if not path.exists():
        pytest.skip(f"needs ../shared/{place}, which is not here")
    return path


@pytest.fixture(scope="session")
def camvid() -> Path:
    """The real, labelled CamVid folder."""
    return shared_or_skip("data/camvid")


@pytest.fixture(scope="session")
def dashcam() -> Path:
    """The real dashcam clip: 221 frames of 960x540 at 25 fps."""
    return shared_or_skip("data/video/solidWhiteRight.mp4")


@pytest.fixture(scope="session")
def city_weights() -> Path:
    """The published EfficientViT-Seg-B0 weights."""
    return shared_or_skip("weights/efficientvit_seg_b0_cityscapes.pt")


@pytest.fixture(scope="session")
def caffe_weights() -> Path:
    """ImageNet ResNet-50 of the caffe family: torchvision's names, no fc, convolutions in half precision."""
    return shared_or_skip("weights/resnet50_caffe_keras_rgbnorm_nofc_fp16conv.pth")
