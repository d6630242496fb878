"""What a bundle carries for other tools: a script that runs without this project, and a file for Triton."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from cdga_export.deploy import deployment_texts, triton_config, trtexec_command
from cdga_export.parity import MIN_AGREEMENT
from cdga_sdk.bundle import Bundle, Manifest, graph_file
from cdga_sdk.image import read_image_bgr, read_label, write_png
from cdga_sdk.labels import CITYSCAPES_NAMES
from cdga_sdk.overlay import draw_overlay
from cdga_sdk.preprocess import UInt8Array
from cdga_sdk.segmenter import Segmenter
from cdga_train.data.streets import render_frame

FORBIDDEN = ("cdga_sdk", "cdga_train", "cdga_export", "torch", "onnx", "pydantic", "av")


def run_script(bundle: Path, *words: object, without: Sequence[str] = FORBIDDEN) -> subprocess.CompletedProcess[str]:
    """The bundle's own script in a Python that cannot import ``without``."""
    script = str(bundle / "deploy/run_onnx.py")
    code = (
        f"import runpy, sys; sys.modules.update(dict.fromkeys({list(without)!r}))\n"
        f"sys.argv = {[script, *map(str, words)]!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    return subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=120, check=False)


def frame_of_a_street(size_wh: tuple[int, int]) -> UInt8Array:
    return np.ascontiguousarray(render_frame(seed=11, size_wh=size_wh).image_rgb[:, :, ::-1])


# --- the script


def test_the_script_gives_a_golden_mask(tiny_bundle: Path, tmp_path: Path) -> None:
    golden = Bundle.open(tiny_bundle).golden_frames()[0]
    frame = tiny_bundle / "golden" / f"{golden.name}.png"
    done = run_script(tiny_bundle, frame, tmp_path / "overlay.png", "--mask", tmp_path / "mask.png")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("model.onnx: asked for CPUExecutionProvider, got CPUExecutionProvider\n")
    mask = read_label(tmp_path / "mask.png")
    assert (mask == golden.mask).mean() >= MIN_AGREEMENT["fp32"]
    with Segmenter(tiny_bundle, backend="onnxruntime", device="cpu") as segmenter:
        np.testing.assert_array_equal(mask, segmenter(golden.image_bgr).mask)
    most = int(np.bincount(mask.ravel()).argmax())
    share = 100 * float((mask == most).mean())
    assert done.stdout.splitlines()[1] == f"{CITYSCAPES_NAMES[most]:<14} {share:5.1f} %"


def test_the_script_resizes_as_the_segmenter_does(tiny_bundle: Path, tmp_path: Path) -> None:
    image = frame_of_a_street((201, 99))
    write_png(tmp_path / "image.png", image)
    done = run_script(tiny_bundle, tmp_path / "image.png", tmp_path / "overlay.png", "--mask", tmp_path / "mask.png")
    assert done.returncode == 0, done.stderr
    with Segmenter(tiny_bundle, backend="onnxruntime", device="cpu") as segmenter:
        result = segmenter(image)
    np.testing.assert_array_equal(read_label(tmp_path / "mask.png"), result.mask)
    overlay = read_image_bgr(tmp_path / "overlay.png")
    np.testing.assert_array_equal(overlay, draw_overlay(image, result.mask))


def test_the_script_is_without_this_project(tiny_bundle: Path, tmp_path: Path) -> None:
    """That a forbidden module would be noticed: cv2, which it does need, is."""
    done = run_script(tiny_bundle, "a.png", tmp_path / "b.png", without=["cv2"])
    assert done.returncode == 1
    assert "import of cv2 halted" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--precision", "fp16"], "no precision fp16 in this bundle, it has fp32"),
        (["--provider", "TpuExecutionProvider"], "asked for TpuExecutionProvider, this onnxruntime has "),
        (["--bundle", "nope"], "nope/manifest.json: no such file; --bundle wants the folder of a bundle"),
        (["--mask", "mask"], "mask: wanted NAME.png, which keeps class ids as they are"),
        (["--mask", "mask.jpg"], "mask.jpg: wanted NAME.png, which keeps class ids as they are"),
        (["--mask", "absent/mask.png"], "absent/mask.png: cannot be written; wanted NAME.png"),
    ],
)
def test_what_the_script_cannot_do_it_says(tiny_bundle: Path, tmp_path: Path, words: list[str], said: str) -> None:
    write_png(tmp_path / "image.png", frame_of_a_street((128, 64)))
    done = run_script(tiny_bundle, tmp_path / "image.png", tmp_path / "overlay.png", *words)
    assert done.returncode == 1
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "overlay.png").exists() == ("absent/mask.png" in words)


@pytest.mark.usefixtures("without_gpu")
def test_the_script_does_not_fall_back_in_silence(tiny_bundle: Path, tmp_path: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime was built without CUDA")
    write_png(tmp_path / "image.png", frame_of_a_street((128, 64)))
    words = [tmp_path / "image.png", tmp_path / "overlay.png", "--provider", "CUDAExecutionProvider"]
    done = run_script(tiny_bundle, *words)
    assert done.returncode == 1
    assert "asked for CUDAExecutionProvider, got CPUExecutionProvider\n" in done.stdout
    assert "CUDAExecutionProvider cannot be used here" in done.stderr
    assert not (tmp_path / "overlay.png").exists()


# --- Triton


def model_config() -> Any:
    """Triton's message ``ModelConfig`` as far as it is used here: text with any other field is refused."""
    kinds = FieldDescriptorProto
    file = FileDescriptorProto(name="model_config.proto", package="inference", syntax="proto3")
    file.enum_type.add(name="DataType").value.add(name="TYPE_INVALID", number=0)
    file.enum_type[0].value.add(name="TYPE_UINT8", number=2)
    batching = file.message_type.add(name="ModelDynamicBatching")
    tensor = file.message_type.add(name="Tensor")
    model = file.message_type.add(name="ModelConfig")

    def add(
        message: DescriptorProto, name: str, kind: int, type_name: str | None = None, *, many: bool = False
    ) -> None:
        label = kinds.LABEL_REPEATED if many else kinds.LABEL_OPTIONAL
        message.field.add(name=name, number=len(message.field) + 1, type=kind, type_name=type_name, label=label)

    add(tensor, "name", kinds.TYPE_STRING)
    add(tensor, "data_type", kinds.TYPE_ENUM, ".inference.DataType")
    add(tensor, "dims", kinds.TYPE_INT64, many=True)
    add(batching, "max_queue_delay_microseconds", kinds.TYPE_UINT64)
    add(model, "name", kinds.TYPE_STRING)
    add(model, "platform", kinds.TYPE_STRING)
    add(model, "max_batch_size", kinds.TYPE_INT32)
    add(model, "input", kinds.TYPE_MESSAGE, ".inference.Tensor", many=True)
    add(model, "output", kinds.TYPE_MESSAGE, ".inference.Tensor", many=True)
    add(model, "dynamic_batching", kinds.TYPE_MESSAGE, ".inference.ModelDynamicBatching")
    pool = DescriptorPool()
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))()


def parsed(text: str) -> Any:
    return text_format.Parse(text, model_config())


def tensors_of_onnx(values: Any) -> list[tuple[str, str, list[int | str]]]:
    return [
        (
            value.name,
            f"TYPE_{onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)}",
            [dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim],
        )
        for value in values
    ]


def tensors_of_triton(values: Any, batch: str) -> list[tuple[str, str, list[int | str]]]:
    kinds = {2: "TYPE_UINT8"}
    return [(value.name, kinds[value.data_type], [batch, *value.dims]) for value in values]


def test_triton_s_file_says_what_the_graph_says(tiny_bundle: Path) -> None:
    config = parsed((tiny_bundle / "deploy/triton/config.pbtxt").read_text(encoding="utf-8"))
    graph = onnx.load_model(tiny_bundle / "model.onnx").graph
    assert tensors_of_triton(config.input, "N") == tensors_of_onnx(graph.input)
    assert tensors_of_triton(config.output, "N") == tensors_of_onnx(graph.output)
    assert (config.name, config.platform) == ("efficientvit_b0", "onnxruntime_onnx")
    assert config.max_batch_size == Bundle.open(tiny_bundle).manifest.input.batch_range[1] == 8
    assert config.HasField("dynamic_batching")


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("max_batch_size:", "max_batchsize:"),
        ("data_type: TYPE_UINT8", "data_type: UINT8"),
        ("input [", "input {"),
        ("dims: [ 64, 128, 3 ]", "dims: [ 64, 128, x ]"),
    ],
)
def test_the_check_of_triton_s_file_can_fail(tiny_bundle: Path, right: str, wrong: str) -> None:
    text = (tiny_bundle / "deploy/triton/config.pbtxt").read_text(encoding="utf-8")
    assert right in text
    with pytest.raises(text_format.ParseError):
        parsed(text.replace(right, wrong))


def test_the_comments_name_the_bundle_s_graphs(tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    several = Manifest.model_validate(manifest.model_dump() | {"precisions": ("fp32", "fp16", "bf16", "int8")})
    for made_of, best in ((manifest, "model.onnx"), (several, "model.fp16.onnx")):
        text = triton_config(made_of)
        served = [graph_file(p) for p in made_of.precisions if p != "bf16"]  # ONNX Runtime cannot
        assert f"from the bundle: {' or '.join(served)}\n" in text
        build = trtexec_command(best, "model.plan", (64, 128), (1, 4, 8))
        assert "".join(f"#   {line}\n" for line in build.splitlines()) in text


def test_the_command_of_trtexec() -> None:
    assert trtexec_command("a.onnx", "a.plan", (704, 960), (1, 4, 16)) == (
        "trtexec --onnx=a.onnx --saveEngine=a.plan --stronglyTyped --noTF32 --skipInference \\\n"
        "  --minShapes=frame:1x704x960x3 --optShapes=frame:4x704x960x3 --maxShapes=frame:16x704x960x3"
    )


# --- in the bundle


def test_the_texts_are_in_the_bundle_and_protected(tiny_bundle: Path) -> None:
    texts = deployment_texts(Bundle.open(tiny_bundle).manifest)
    sums = (tiny_bundle / "SHA256SUMS").read_text().splitlines()
    for name, text in texts.items():
        assert (tiny_bundle / name).read_text(encoding="utf-8") == text
        assert name in [line[66:] for line in sums]
    assert {p.relative_to(tiny_bundle).as_posix() for p in (tiny_bundle / "deploy").rglob("*.*")} == set(texts)
