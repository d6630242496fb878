"""``cdga export``: a proven bundle, or nothing at all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cdga_export.export import export_checkpoint
from cdga_export.frames import NUM_GOLDEN
from cdga_export.run import parse_imgsz
from cdga_sdk.bundle import Bundle
from cdga_sdk.cli import run
from cdga_sdk.errors import UsageError
from cdga_sdk.image import write_png
from cdga_sdk.labels import CITYSCAPES_NAMES
from cdga_sdk.segmenter import Segmenter
from cdga_train.checkpoint import load_checkpoint, save_checkpoint
from cdga_train.data.streets import render_frame
from cdga_train.models.registry import NETWORKS
from tests.published_layouts import some_of_camvid

MODEL = ["--model", "efficientvit_b0"]


def export(*words: object) -> int:
    return run(["export", *map(str, words), "--quiet"])


def changed_weights(tiny_run: Path, folder: Path, name: str, value: float) -> Path:
    """A sound checkpoint in which every element of the tensors that start with ``name`` is ``value``."""
    checkpoint = load_checkpoint(tiny_run)
    tensors = {
        k: torch.full_like(v, value) if k.startswith(name) and v.is_floating_point() else v
        for k, v in checkpoint.tensors.items()
    }
    folder.mkdir()
    save_checkpoint(folder / "last.safetensors", replace(checkpoint, tensors=tensors))
    return folder


def test_what_a_bundle_holds(tiny_run: Path, tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    config = load_checkpoint(tiny_run).config
    origin = bundle.manifest.provenance
    assert bundle.manifest.imgsz_hw == config.imgsz == (64, 128)
    assert bundle.manifest.names == CITYSCAPES_NAMES
    assert (origin.arm, origin.source, origin.target) == ("cdga with FDA", "streets:day", "streets:dusk")
    assert (origin.iterations, origin.seed, origin.model) == (12, 0, "efficientvit_b0")
    assert len(origin.weights_sha256) == 64
    frames = bundle.golden_frames()
    assert len(frames) == NUM_GOLDEN == 8
    assert {f.image_bgr.shape for f in frames} == {(64, 128, 3)}
    report = bundle.parity["fp32"]
    assert isinstance(report, dict)
    assert report["faults"] == []
    assert report["agreement"] >= 0.9999
    card = (tiny_bundle / "CARD.md").read_text()
    assert "arm cdga with FDA, source streets:day, target streets:dusk, iterations 12, seed 0" in card
    assert "128x64" in card


def test_the_bundle_gives_its_golden_masks(tiny_bundle: Path) -> None:
    with Segmenter(tiny_bundle, backend="onnxruntime") as segmenter:
        for frame in Bundle.open(tiny_bundle).golden_frames():
            assert (segmenter(frame.image_bgr).mask == frame.mask).mean() >= 0.9999


def test_exporting_twice_gives_the_same_weights(tiny_run: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    again = export_checkpoint(tiny_run / "last.safetensors", tmp_path / "again.cdga").bundle
    first = Bundle.open(tiny_bundle)
    assert again.manifest.provenance.weights_sha256 == first.manifest.provenance.weights_sha256
    assert again.model_bytes == first.model_bytes


def test_an_existing_output_is_kept_unless_told(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "a.cdga"
    output.mkdir()
    (output / "mine.txt").write_text("keep me")
    assert export(tiny_run, "-o", output) == 2
    assert "pass --exist-ok to replace it" in capsys.readouterr().err
    assert [p.name for p in output.iterdir()] == ["mine.txt"]
    for name in ("SHA256SUMS", "manifest.json", "model.onnx"):
        (output / name).touch()  # now it is a bundle, if a damaged one
    assert run(["export", str(tiny_run), "-o", str(output), "--exist-ok"]) == 0
    assert not (output / "mine.txt").exists()
    assert len(Bundle.open(output).golden_frames()) == 8
    assert [p.name for p in tmp_path.iterdir()] == ["a.cdga"]
    out = capsys.readouterr()
    assert out.out == ""
    assert "% of pixels of 8 golden frames" in out.err


def test_a_checkpoint_at_another_size(tiny_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "larger.cdga"
    assert export(tiny_run, "--imgsz", "96,192", "-o", output, "--quiet") == 0
    bundle = Bundle.open(output)
    assert bundle.manifest.imgsz_hw == (96, 192)
    assert {f.image_bgr.shape for f in bundle.golden_frames()} == {(96, 192, 3)}
    with Segmenter(output, backend="onnxruntime", device="cpu", threads=1) as segmenter:
        assert segmenter.imgsz == (96, 192)
        assert segmenter(bundle.golden_frames()[0].image_bgr).mask.shape == (96, 192)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["CHECKPOINT"], "no output given; pass -o model.cdga"),
        (["-o", "a.cdga"], "wanted either a CHECKPOINT or --weights"),
        (["CHECKPOINT", "--weights", "w.pt", "-o", "a.cdga"], "wanted either a CHECKPOINT or --weights"),
        (["--weights", "w.pt", "-o", "a.cdga"], "--weights needs --model and --imgsz"),
        (["--weights", "w.pt", *MODEL, "-o", "a.cdga"], "--weights needs --model and --imgsz"),
        (["--weights", "w.pt", "--imgsz", "64,64", "-o", "a.cdga"], "--weights needs --model and --imgsz"),
        (["CHECKPOINT", "--imgsz", "64,100", "-o", "a.cdga"], "use 64,96 (height,width)"),
        (["CHECKPOINT", *MODEL, "-o", "a.cdga"], "a checkpoint knows its own"),
        (["--weights", "w.pt", *MODEL, "--imgsz", "360,480", "-o", "a.cdga"], "use 352,480 (height,width)"),
        (["--weights", "w.pt", *MODEL, "--imgsz", "100,100", "-o", "a.cdga"], "use 96,96 (height,width)"),
        (["--weights", "w.pt", *MODEL, "--imgsz", "big", "-o", "a.cdga"], "imgsz is 'big', wanted H,W"),
        (["--weights", "w.pt", *MODEL, "--imgsz", "96x64", "-o", "a.cdga"], "imgsz is '96x64', wanted H,W"),
        (["CHECKPOINT", "-o", "a.cdga", "--classes", "common11"], "--classes goes with --score"),
        (["CHECKPOINT", "-o", "a.cdga", "--calib", "streets:day"], "--calib sets other precisions than fp32"),
        (["CHECKPOINT", "-o", "a.cdga", "--score", "streets:day", "--classes", "12"], "unknown class set '12'"),
        (["CHECKPOINT", "-o", "a.cdga", "--outputs", "logit"], "unknown output 'logit'"),
        (["--weights", "w.pt", "--model", "b0", "--imgsz", "64,64", "-o", "a.cdga"], "unknown model 'b0'"),
        (
            ["CHECKPOINT", "-o", "a.cdga", "--precision", "fp15"],
            "unknown precision 'fp15'; use some of fp32,fp16,bf16,int8",
        ),
        (["CHECKPOINT", "-o", "a.cdga", "--golden", "folders:x"], "did you mean 'folder:...'?"),
    ],
)
def test_flags_that_are_refused(
    tiny_run: Path,
    tmp_path: Path,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert export(*(tiny_run if word == "CHECKPOINT" else word for word in words)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error[E-USAGE]")
    assert message in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("output", [".", "..", "/"])
@pytest.mark.parametrize("engine", [[], ["--trt-rtx", "--sm", "89"]])
def test_outputs_that_are_no_name(
    tiny_run: Path, output: str, engine: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(tiny_run, "-o", output, "--exist-ok", *engine) == 2
    assert "is no name for a bundle; pass -o NAME.cdga" in capsys.readouterr().err


def test_a_name_that_is_too_long_is_told_before_the_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for output in (tmp_path / ("x" * 300), tmp_path / ("x" * 300) / "a.cdga"):
        assert export(tmp_path / "absent", "-o", output) == 2
        assert "cannot write (File name too long)" in capsys.readouterr().err


def test_inputs_that_are_not_there(tiny_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "a.cdga"
    assert export(tmp_path / "absent", "-o", output) == 3
    assert export("--weights", tmp_path / "absent.pt", *MODEL, "--imgsz", "64,64", "-o", output) == 3
    assert export(tiny_run, "-o", output, "--golden", f"folder:{tmp_path / 'absent'}") == 3
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tensor", ["network/head.classify.weight", "network/backbone.stem_in_conv.norm.running_var"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_weights_leave_nothing(
    tiny_run: Path, tmp_path: Path, tensor: str, value: float, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = changed_weights(tiny_run, tmp_path / "run", tensor, value)
    assert export(bad, "-o", tmp_path / "out" / "a.cdga") == 5
    assert "weights hold NaN or infinity" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_constant_network_leaves_nothing(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = changed_weights(tiny_run, tmp_path / "run", "network/head.classify.", 0.0)
    assert export(bad, "-o", tmp_path / "out" / "a.cdga") == 7
    error = capsys.readouterr().err
    assert error.startswith("error[E-GATE]")
    assert "one class everywhere" in error
    assert not (tmp_path / "out").exists()


def test_a_refused_export_keeps_the_old_bundle(tiny_run: Path, tmp_path: Path) -> None:
    old = export_checkpoint(tiny_run, tmp_path / "a.cdga").bundle
    bad = changed_weights(tiny_run, tmp_path / "run", "network/head.classify.", 0.0)
    assert export(bad, "-o", tmp_path / "a.cdga", "--exist-ok") == 7
    assert Bundle.open(tmp_path / "a.cdga").sha256 == old.sha256


def test_golden_frames_from_a_folder(tiny_run: Path, tmp_path: Path) -> None:
    names = ["one", "two words", "a.mask", "line\nbreak", "ünïcode", "x" * 200]
    for seed, name in enumerate([*names, *(f"z{i:02d}" for i in range(15))]):
        frame = render_frame(seed=seed, size_wh=(160, 100))
        write_png(tmp_path / "in" / f"{name}.png", np.ascontiguousarray(frame.image_rgb[:, :, ::-1]))
    assert export(tiny_run, "-o", tmp_path / "a.cdga", "--golden", f"folder:{tmp_path / 'in'}") == 0
    frames = Bundle.open(tmp_path / "a.cdga").golden_frames()
    assert len(frames) == 8
    assert {f.image_bgr.shape for f in frames} == {(64, 128, 3)}
    # 21 files, in order of name: a.mask line one two_words x... z00 to z14, ünïcode: spread over 0 to 20 by 20 / 7
    assert [f.name for f in frames] == [
        "00_a_mask",
        "01_one",
        "02_z00",
        "03_z03",
        "04_z06",
        "05_z09",
        "06_z12",
        "07__n_code",
    ]


@pytest.mark.parametrize("name", ["a.mask", "line\nbreak", "x" * 240, "two words"])
def test_golden_frames_of_any_name(tiny_run: Path, tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(0)
    write_png(tmp_path / "in" / f"{name}.png", rng.integers(0, 256, (64, 128, 3), np.uint8))
    assert export(tiny_run, "-o", tmp_path / "a.cdga", "--golden", f"folder:{tmp_path / 'in'}") == 0
    assert len(Bundle.open(tmp_path / "a.cdga").golden_frames()) == 1


def test_golden_frames_of_a_domain(tiny_run: Path, tmp_path: Path) -> None:
    assert export(tiny_run, "-o", tmp_path / "a.cdga", "--golden", "streets:dusk") == 0
    names = [f.name for f in Bundle.open(tmp_path / "a.cdga").golden_frames()]
    assert len(names) == 8
    assert all("dusk" in name for name in names)


@pytest.mark.parametrize(("text", "size_hw"), [("512,1024", (512, 1024)), (" 64 , 96 ", (64, 96))])
def test_sizes(text: str, size_hw: tuple[int, int]) -> None:
    assert parse_imgsz(text) == size_hw


@pytest.mark.parametrize("text", ["", "0", "64", "64x128", "64,0", "-64,64", "64,64,64", "64,", "a,b", "64.0,64", "²"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="wanted H,W"):
        parse_imgsz(text)


def test_a_backbone_alone_is_not_exported_under_a_random_head(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = NETWORKS["deeplabv2_resnet50"].build(19)
    torch.save(network.backbone.state_dict(), tmp_path / "resnet50.pth")
    model = ["--model", "deeplabv2_resnet50", "--imgsz", "64,64"]
    assert export("--weights", tmp_path / "resnet50.pth", *model, "-o", tmp_path / "a.cdga") == 5
    error = capsys.readouterr().err
    assert error.startswith("error[E-MODEL]")
    assert "resnet50.pth: holds a backbone for deeplabv2_resnet50 and no head of 19 classes" in error
    assert "cdga train PRESET model=deeplabv2_resnet50 weights=FILE" in error
    assert [file.name for file in tmp_path.iterdir()] == ["resnet50.pth"]


def published_bundle(size: str, city_weights: Path, camvid: Path, bundle: Path) -> Path:
    golden = ["--golden", f"camvid:{camvid}"]
    assert export("--weights", city_weights, *MODEL, "--imgsz", size, "-o", bundle, *golden) == 0
    assert Bundle.open(bundle).manifest.provenance.source == f"published weights {city_weights.name}"
    return bundle


def scored(bundle: Path, camvid: Path, num_frames: int, out: pytest.CaptureFixture[str]) -> float:
    out.readouterr()
    words = ["--data", f"camvid:{camvid}", "--classes", "common11", "--backend", "onnxruntime", "--json"]
    assert run(["evaluate", str(bundle), *words]) == 0
    record = json.loads(out.readouterr().out)
    assert record["frames"] == num_frames
    return float(record["miou"])


def test_published_weights_score_what_they_should(
    city_weights: Path, camvid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = published_bundle("352,480", city_weights, camvid, tmp_path / "city.cdga")
    assert scored(bundle, camvid, 101, capsys) == pytest.approx(59.6, abs=0.3)


@pytest.mark.slow
def test_published_weights_at_twice_the_size(
    city_weights: Path, camvid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = published_bundle("704,960", city_weights, camvid, tmp_path / "city.cdga")
    quarter = some_of_camvid(camvid, tmp_path / "camvid", slice(None, None, 4))
    # 69.64 is what plain torch scores on these frames, by benchmarks/camvid_reference.py.
    assert scored(bundle, quarter, 26, capsys) == pytest.approx(69.64, abs=0.3)


def test_a_folder_that_is_no_bundle_is_never_replaced(tiny_run: Path, tmp_path: Path) -> None:
    kept = tmp_path / "videos" / "ride.mp4"
    kept.parent.mkdir()
    kept.write_bytes(b"precious")
    assert run(["export", str(tiny_run), "-o", str(kept.parent), "--exist-ok"]) == 2
    assert run(["export", str(tiny_run), "-o", ".", "--exist-ok"]) == 2
    (kept.parent / "SHA256SUMS").write_text("of what somebody downloaded\n")
    assert run(["export", str(tiny_run), "-o", str(kept.parent), "--exist-ok"]) == 2
    assert kept.read_bytes() == b"precious"
