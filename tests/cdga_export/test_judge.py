"""The judge with labels, int8 through the whole export, and what is refused where nothing can be written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from cdga_export import export as export_module
from cdga_export import judge as judge_module
from cdga_export.export import ExportOptions, export_checkpoint
from cdga_export.judge import Labels
from cdga_export.pace import relative_time
from cdga_sdk.bundle import Bundle
from cdga_sdk.cli import run
from cdga_sdk.errors import GateError, InputError
from cdga_sdk.labels import CLASS_SETS
from cdga_sdk.prediction import Known
from cdga_sdk.preprocess import UInt8Array
from cdga_train.data.base import Sample
from cdga_train.data.streets import render_frame

LAX = {"fp32": 0.9999, "fp16": 0.5, "bf16": 0.5, "int8": 0.5, "int8-trt": 0.5}


@pytest.fixture
def lax(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gates that a network which has hardly learned passes."""
    monkeypatch.setattr(judge_module, "MIN_AGREEMENT", LAX)
    monkeypatch.setattr(export_module, "MIN_AGREEMENT", LAX)


class Street:
    """Three labelled frames; ``label`` overrides theirs."""

    is_labelled = True

    def __init__(self, label: int | None = None) -> None:
        self._label = label

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Sample:
        drawn = render_frame(seed=index, domain="day", size_wh=(128, 64))
        label = drawn.label if self._label is None else np.full_like(drawn.label, self._label)
        return Sample(name=str(index), image_bgr=np.ascontiguousarray(drawn.image_rgb[:, :, ::-1]), label=label)

    def identity(self) -> str:
        return f"street {self._label}"


def with_labels(monkeypatch: pytest.MonkeyPatch, label: int | None = None) -> None:
    labels = Labels(data=Street(label), classes=CLASS_SETS["19"], title="street val, 19 classes")
    monkeypatch.setattr(ExportOptions, "labels", lambda self, imgsz_hw: labels)


@pytest.mark.usefixtures("lax")
def test_labels_tell_what_a_precision_costs(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_labels(monkeypatch)
    monkeypatch.setattr("cdga_export.parity.MAX_MIOU_LOSS", 100.0)
    done = export_checkpoint(tiny_run, tmp_path / "a.cdga", ExportOptions(precisions=("int8",)))
    fp32, int8 = (done.parity[p].labels for p in ("fp32", "int8"))
    assert fp32 is not None
    assert int8 is not None
    assert fp32.miou == fp32.miou_fp32 == int8.miou_fp32 > 0
    assert int8.miou != fp32.miou
    card = (tmp_path / "a.cdga/CARD.md").read_text()
    assert f"- int8: mIoU {int8.miou:.2f} on 3 frames of street val, 19 classes; fp32 has {fp32.miou:.2f}." in card


@pytest.mark.usefixtures("lax")
def test_a_precision_that_loses_on_labels_is_refused(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_labels(monkeypatch)
    monkeypatch.setattr("cdga_export.parity.MAX_MIOU_LOSS", -100.0)  # any score is too low
    monkeypatch.setattr(judge_module.Judge, "_miou", scores_of(50.0, 49.0))
    with pytest.raises(GateError, match=r"mIoU 49\.00 on street val, 19 classes, wanted at least 150\.00"):
        export_checkpoint(tiny_run, tmp_path / "a.cdga", ExportOptions(precisions=("fp16",)))
    assert [p.name for p in tmp_path.iterdir()] == ["a.cdga.refused.fp16.png"]


def scores_of(*scores: float) -> object:
    left = list(scores)
    return lambda *_: left.pop(0)


def test_labels_that_say_nothing_are_bad_input(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_labels(monkeypatch, label=255)
    with pytest.raises(InputError, match="no labelled pixel of these classes") as caught:
        export_checkpoint(tiny_run, tmp_path / "a.cdga")
    assert caught.value.exit_code == 3
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("lax")
def test_int8_for_cpus_and_for_tensorrt_from_the_command_line(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "a.cdga"
    words = ["--precision", "int8", "--precision", "int8-trt", "--calib", "streets:dusk"]
    assert run(["export", str(tiny_run), "-o", str(output), *words]) == 0
    told = capsys.readouterr().err
    assert "of the convolutions' multiplications in 8 bits" in told
    assert "of fp32's time here, openvino cpu int8 against openvino cpu fp32" in told
    bundle = Bundle.open(output)
    assert bundle.manifest.precisions == ("fp32", "int8", "int8-trt")
    assert {kind_of_zeros(bundle.graph("int8")), kind_of_zeros(bundle.graph("int8-trt"))} == {"uint8", "int8"}
    assert kind_of_zeros(bundle.graph("int8")) == "uint8"


def kind_of_zeros(graph: bytes) -> str:
    """The type that activations are rounded to."""
    model = onnx.load_model_from_string(graph)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    rounded = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    return onnx.numpy_helper.to_array(constants[rounded.input[2]]).dtype.name


def test_a_refusal_where_no_picture_can_be_written(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "a.cdga.refused.fp16.png").mkdir()
    with pytest.raises(GateError, match=r"no bundle was written; leave fp16 out"):
        export_checkpoint(tiny_run, tmp_path / "a.cdga", ExportOptions(precisions=("fp16",)))


@pytest.mark.usefixtures("lax")
def test_the_picture_of_an_earlier_refusal_goes(tiny_run: Path, tmp_path: Path) -> None:
    old = tmp_path / "a.cdga.refused.fp16.png"
    old.touch()
    export_checkpoint(tiny_run, tmp_path / "a.cdga", ExportOptions(precisions=("fp16",)))
    assert [p.name for p in tmp_path.iterdir()] == ["a.cdga"]


def test_a_place_below_a_file_is_refused_at_once(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert run(["export", str(tiny_run), "-o", str(tmp_path / "file/a.cdga"), "--quiet"]) == 2


class Paced:
    """Takes a given time for a frame."""

    name = "paced"
    frames_at_once = 1
    gives_logits = False

    def __init__(self, seconds: float, clock: list[float]) -> None:
        self._seconds = seconds
        self._clock = clock

    def infer(self, frames_NHWC: UInt8Array) -> Known:
        self._clock[0] += self._seconds
        return Known(frames_NHWC[..., 0], frames_NHWC[..., 0])

    def close(self) -> None:
        pass


def test_time_is_compared_in_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("cdga_export.pace.time.perf_counter", lambda: clock[0])
    frame = np.zeros((1, 2, 2, 3), np.uint8)
    assert relative_time(Paced(0.3, clock), Paced(0.4, clock), [frame, frame]) == pytest.approx(0.75)
