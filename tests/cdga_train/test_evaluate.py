"""Scores by hand, and the bundle's score against its checkpoint's."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cdga_sdk.cli import run
from cdga_sdk.errors import GateError
from cdga_sdk.image import write_png
from cdga_sdk.labels import class_set
from cdga_sdk.metrics import Scores
from cdga_sdk.preprocess import UInt8Array
from cdga_train.checkpoint import load_checkpoint
from cdga_train.data.base import Sample
from cdga_train.data.spec import open_labelled
from cdga_train.data.street_frames import StreetsDataset
from cdga_train.evaluate import count, evaluate
from cdga_train.evaluate_run import refuse_below, run_evaluate
from cdga_train.models.fused import FusedNetwork
from cdga_train.predict import predict_prob
from cdga_train.state import build_network, choose_device


class TwoFrames:
    """Labels by hand; the blue channel of each image is what is predicted for it."""

    is_labelled = True

    def __len__(self) -> int:
        return 2

    def identity(self) -> str:
        return "two frames"

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


def test_one_count_gives_every_column() -> None:
    matrix = count(lambda image: image[:, :, 0], TwoFrames(), class_set("19"))
    for name in ("19", "16", "13", "common11"):
        expected = evaluate(lambda image: image[:, :, 0], TwoFrames(), class_set(name))
        np.testing.assert_equal(asdict(matrix.scores_over(class_set(name))), asdict(expected))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--backend", "onnxruntime"], "--backend, --precision and --on-incompatible are for bundles"),
        (["--on-incompatible", "fallback"], "--on-incompatible are for bundles; torch scores a checkpoint"),
        (["--device", "cdua"], "unknown device 'cdua'; use auto, cpu, cuda or cuda:N"),
        (["--protocol", "publshed"], "unknown protocol 'publshed'; did you mean 'published'?"),
        (["--protocol", ""], "use one of deployed, published"),
    ],
)
def test_what_a_checkpoint_does_not_take(
    tiny_run: Path, folder: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["evaluate", str(tiny_run), "--data", f"folder:{folder}", *flags]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_checkpoint_on_a_gpu_that_is_not_there(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", str(tiny_run), "--data", "streets:day", "--device", "cuda"]) == 6
    assert "cuda was asked for and torch finds none" in capsys.readouterr().err


def test_published_protocol_is_bilinear_probabilities(
    tiny_run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", str(tiny_run), "--data", f"folder:{folder}", "--device", "cpu", "--protocol", "published"]
    assert run([*command, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["protocol"], record["backend"]) == ("published", "torch cpu fp32")
    checkpoint = load_checkpoint(tiny_run)
    fused = FusedNetwork(build_network(checkpoint), checkpoint.preprocess)
    data = open_labelled(f"folder:{folder}", "val", checkpoint.preprocess.imgsz_hw)
    hits = labelled = 0
    for i in range(4):
        sample = data[i]
        assert sample.label is not None
        prob = predict_prob(fused, sample.image_bgr)
        whole = F.interpolate(prob[None], size=sample.label.shape, mode="bilinear", align_corners=False)
        hits += int((whole[0].argmax(dim=0).numpy() == sample.label).sum())
        labelled += int((sample.label != 255).sum())
    assert record["accuracy"] == pytest.approx(100 * hits / labelled, abs=5e-4)
    assert run(command) == 0
    assert "published protocol" in " ".join(capsys.readouterr().err.split())


def test_a_bundle_has_no_published_score(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", str(tiny_bundle), "--data", "streets:day", "--protocol", "published"]) == 2
    err = capsys.readouterr().err
    assert "a bundle gives classes; the published protocol upsamples probabilities" in err
    assert "name the checkpoint, or use --protocol deployed" in err


def test_bundle_and_checkpoint_agree(
    tiny_run: Path, tiny_bundle: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = []
    for model in (tiny_run, tiny_run / "last.safetensors", tiny_bundle):
        backend = ["--backend", "onnxruntime"] if model == tiny_bundle else ["--device", "cpu"]
        assert run(["evaluate", str(model), "--data", f"folder:{folder}", "--json", *backend]) == 0
        out = capsys.readouterr()
        assert out.err == ""
        records.append(json.loads(out.out))
    run_record, file_record, bundle_record = records
    assert run_record["backend"] == "torch cpu fp32"
    assert {r["protocol"] for r in records} == {"deployed"}
    assert "onnxruntime" in bundle_record["backend"]
    assert run_record["frames"] == bundle_record["frames"] == 4
    assert run_record["iou"] == file_record["iou"]
    assert bundle_record["miou"] == pytest.approx(run_record["miou"], abs=0.05)
    assert bundle_record["accuracy"] == pytest.approx(run_record["accuracy"], abs=0.05)
    assert run_record["accuracy"] > 5  # of 19 classes: it has learnt something in its 12 iterations


def test_scores_are_those_of_the_masks(tiny_run: Path, folder: Path) -> None:
    scores, used = run_evaluate(
        tiny_run, f"folder:{folder}", "val", class_set("common11"), backend="auto", device="auto", quiet=True
    )
    assert used.startswith(f"torch {choose_device('auto').type} ")
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
        (["--data", "streets:day", "--min-miou", "200"], 2, "--min-miou: got 200.0, wanted 0 to 100 percent"),
        (["--data", "streets:day", "--min-miou", "nan"], 2, "--min-miou: got nan"),
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
