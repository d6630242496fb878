"""Scores by hand, and the bundle's score against its checkpoint's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cdga_sdk.cli import run
from cdga_sdk.errors import GateError
from cdga_sdk.image import write_png
from cdga_sdk.labels import class_set
from cdga_sdk.metrics import Scores
from cdga_sdk.preprocess import UInt8Array
from cdga_train.data.base import Sample
from cdga_train.data.street_frames import StreetsDataset
from cdga_train.evaluate import evaluate
from cdga_train.evaluate_run import refuse_below, run_evaluate


class TwoFrames:
    """Labels by hand; the blue channel of each image is what is predicted for it."""

    is_labelled = True

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Sample:
        label, predicted = (
            ([[0, 0], [10, 255]], [[0, 10], [10, 3]]),
            ([[10, 10, 13]], [[10, 10, 0]]),
        )[index]
        image: UInt8Array = np.zeros((len(label), len(label[0]), 3), np.uint8)
        image[:, :, 0] = predicted
        return Sample(name=str(index), image_bgr=image, label=np.array(label, np.uint8))


def test_scores_by_hand() -> None:
    done: list[int] = []
    scores = evaluate(lambda image: image[:, :, 0], TwoFrames(), class_set("19"), on_frame=done.append)
    # road: 1 hit, 1 missed, 1 false: 1/3. sky: 3 hits, 1 false: 3/4. car: 0 of 1. The ignored pixel counts nowhere.
    assert scores.iou["road"] == pytest.approx(100 / 3)
    assert scores.iou["sky"] == pytest.approx(75)
    assert scores.iou["car"] == 0
    assert np.isnan(scores.iou["wall"])
    assert scores.miou == pytest.approx((100 / 3 + 75 + 0) / 3)
    assert scores.accuracy == pytest.approx(100 * 4 / 6)
    assert (scores.frames, done) == (2, [1, 2])


@pytest.mark.parametrize(
    ("miou", "wanted", "refused"),
    [(50.0, None, False), (50.0, 50.0, False), (49.99, 50.0, True), (float("nan"), 0.0, True)],
)
def test_minimum_score(miou: float, wanted: float | None, refused: bool) -> None:
    scores = Scores(miou=miou, accuracy=0.0, iou={}, frames=1)
    if not refused:
        refuse_below(scores, wanted)
        return
    with pytest.raises(GateError, match="below the wanted") as caught:
        refuse_below(scores, wanted)
    assert caught.value.exit_code == 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled street frames of another size than the network's."""
    root = tmp_path_factory.mktemp("frames")
    data = StreetsDataset("day", "val", (90, 150))
    for i in range(4):
        sample = data[i]
        assert sample.label is not None
        write_png(root / "images" / f"{i}.png", sample.image_bgr)
        write_png(root / "labels" / f"{i}.png", sample.label)
    return root


def test_a_checkpoint_takes_no_backend(tiny_run: Path, folder: Path) -> None:
    for flag in (["--backend", "onnxruntime"], ["--device", "cdua"]):
        assert run(["evaluate", str(tiny_run), "--data", f"folder:{folder}", *flag]) == 2


def test_bundle_and_checkpoint_agree(
    tiny_run: Path, tiny_bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = []
    for model in (tiny_run, tiny_run / "last.safetensors", tiny_bundle):
        backend = ["--backend", "onnxruntime"] if model == tiny_bundle else []
        assert run(["evaluate", str(model), "--data", f"folder:{folder}", "--json", *backend]) == 0
        out = capsys.readouterr()
        assert out.err == ""
        records.append(json.loads(out.out))
    run_record, file_record, bundle_record = records
    assert run_record["backend"] == "torch cpu fp32"
    assert "onnxruntime" in bundle_record["backend"]
    assert run_record["frames"] == bundle_record["frames"] == 4
    assert run_record["iou"] == file_record["iou"]
    assert bundle_record["miou"] == pytest.approx(run_record["miou"], abs=0.05)
    assert bundle_record["accuracy"] == pytest.approx(run_record["accuracy"], abs=0.05)
    assert run_record["accuracy"] > 5  # of 19 classes: it has learnt something in its 12 iterations


def test_scores_are_those_of_the_masks(tiny_run: Path, folder: Path) -> None:
    scores, used = run_evaluate(
        str(tiny_run), f"folder:{folder}", "val", class_set("common11"), backend="auto", device="auto", quiet=True
    )
    assert used == "torch cpu fp32"
    assert set(scores.iou) == set(class_set("common11").names)
    assert 0 <= scores.miou <= 100


def test_table_and_gate_on_the_command_line(
    tiny_bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", str(tiny_bundle), "--data", f"folder:{folder}", "--classes", "common11"]
    assert run([*command, "--min-miou", "99"]) == 7
    out = capsys.readouterr()
    assert out.out == ""
    assert "two_wheeler" in out.err
    assert "error[E-GATE]" in out.err
    assert run([*command, "--min-miou", "0", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--data", "streets:dya"], 2, "did you mean 'day'"),
        (["--data", "folder:absent"], 3, "no such folder"),
        (["--data", "streets:day", "--split", "test"], 2, "no split 'test'"),
        (["--data", "streets:day", "--classes", "common"], 2, "did you mean 'common11'"),
        ([], 2, "--data"),
    ],
)
def test_command_lines_that_are_refused(
    tiny_run: Path, arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["evaluate", str(tiny_run), *arguments]) == code
    assert message in capsys.readouterr().err


def test_unlabelled_data_cannot_score(tiny_run: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", str(tiny_run), "--data", f"folder:{folder / 'images'}"]) == 3
    assert "has no labels" in capsys.readouterr().err


def test_model_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    for model in ("absent", "absent.cdga", "absent.safetensors"):
        assert run(["evaluate", model, "--data", "streets:day"]) == 3
        assert "error[E-INPUT]: " + model in capsys.readouterr().err
