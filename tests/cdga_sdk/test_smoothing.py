"""Smoothing over time: equal to the network where it should be, steadier and no later where the picture moves."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cdga_sdk import tail
from cdga_sdk.cli import run
from cdga_sdk.errors import UsageError
from cdga_sdk.image import write_png
from cdga_sdk.opencv import cv2
from cdga_sdk.prediction import FromLogits, Known
from cdga_sdk.segmenter import Segmenter
from cdga_sdk.smoothing import Smoother
from cdga_sdk.video.pipeline import VideoOptions
from cdga_sdk.video.run_folder import SaveWhat
from cdga_sdk.video.sink import VideoSink
from tests.live_server import LiveServer, ts

pytest.importorskip("openvino")

SIZE_HW = (96, 192)
STEP_PX = 8  # one head pixel
Captured = pytest.CaptureFixture[str]
Picture = NDArray[np.uint8]
Logits = NDArray[np.float32]


def texture(seed: int = 0) -> Picture:
    coarse = np.random.default_rng(seed).integers(0, 256, (24, 48, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, SIZE_HW[::-1], interpolation=cv2.INTER_CUBIC), np.uint8)


def moved(number: float) -> Picture:
    """The texture after so many steps to the right."""
    return np.ascontiguousarray(np.roll(texture(), round(STEP_PX * number), axis=1))


def truth(number: int) -> Picture:
    """The classes of the head's pixels then: two halves that move with the texture."""
    halves = np.repeat(np.array([0, 1], np.uint8), 12)[np.newaxis].repeat(12, axis=0)
    return np.roll(halves, number, axis=1)


def noisy(label_hw: Picture, seed: int, noise: float = 1.0) -> Logits:
    """Logits of three classes that are right on the whole."""
    right_Chw = np.eye(3, dtype=np.float32)[label_hw].transpose(2, 0, 1)
    return right_Chw + np.random.default_rng(seed).normal(0, noise, right_Chw.shape).astype(np.float32)


def predicted(logits_Chw: Logits, size_hw: tuple[int, int] = SIZE_HW) -> FromLogits:
    return FromLogits(tail.labels(logits_Chw, size_hw)[np.newaxis], logits_Chw[np.newaxis])


def wrong(prediction: FromLogits, number: int) -> float:
    """Share of the head's pixels that say the wrong class, away from the borders, where nothing was before."""
    inner = np.s_[2:-2, 4:-4]
    winner_hw = prediction.logits_NChw[0].argmax(axis=0)
    return float((winner_hw != truth(number))[inner].mean())


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CDGA_DEBUG", "")
    return tmp_path


@pytest.fixture(scope="module")
def openvino(tiny_bundle: Path) -> Iterator[Segmenter]:
    with Segmenter(tiny_bundle, backend="openvino", device="cpu", threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of ten frames of a texture that moves; the last three show another one."""
    path = tmp_path_factory.mktemp("drive") / "drive.mp4"
    with VideoSink(path, size_wh=SIZE_HW[::-1], rate=Fraction(25), time_base=Fraction(1, 25)) as sink:
        for tick in range(10):
            sink.write(moved(tick / 2) if tick < 7 else texture(seed=9), tick)
    return path


@pytest.mark.parametrize("size_hw", [(96, 192), (89, 211), (12, 24)])
def test_a_share_of_one_gives_the_networks_labels(size_hw: tuple[int, int]) -> None:
    smoother = Smoother(1.0)
    for number in range(3):
        logits_Chw = np.random.default_rng(number).normal(0, 4, (19, 12, 24)).astype(np.float32)
        plain = predicted(logits_Chw, size_hw)
        smoothed = smoother.smoothed(moved(number), plain)
        assert (smoothed is plain) == (number == 0)
        np.testing.assert_array_equal(smoothed.mask_NHW, plain.mask_NHW)
        assert np.abs(smoothed.confidence(0).astype(int) - plain.confidence(0)).max() <= 1
        assert smoothed.mean_confidence(0) == pytest.approx(plain.mean_confidence(0), abs=1e-5)


def test_what_moves_becomes_steadier() -> None:
    smoother = Smoother(0.3)
    errors = []
    for number in range(10):
        plain = predicted(noisy(truth(number), seed=number))
        errors.append((wrong(plain, number), wrong(smoother.smoothed(moved(number), plain), number)))
    before, after = np.mean(errors[5:], axis=0)
    assert before > 0.3
    assert after < before / 2


def test_what_moves_does_not_lag() -> None:
    smoother = Smoother(0.2)
    for number in range(8):
        smoothed = smoother.smoothed(moved(number), predicted(noisy(truth(number), seed=number, noise=0.02)))
        assert wrong(smoothed, number) == 0
    assert wrong(smoothed, 0) > 0.2


def test_confidence_follows_the_mean() -> None:
    smoother, image = Smoother(0.5), moved(0)
    sure = np.zeros((3, 12, 24), np.float32)
    sure[0] = 4
    smoother.smoothed(image, predicted(sure))
    probability = (np.exp(4) / (np.exp(4) + 2) + 1 / 3) / 2
    smoothed = smoother.smoothed(image, predicted(np.zeros_like(sure)))
    assert (smoothed.mask_NHW == 0).all()
    assert smoothed.confidence(0) == pytest.approx(255 * probability, abs=1)
    assert smoothed.mean_confidence(0) == pytest.approx(probability, abs=1e-3)


def test_a_cut_starts_anew_and_another_exposure_does_not() -> None:
    smoother = Smoother(0.3)
    answers = [predicted(noisy(truth(0), seed=number)) for number in range(5)]
    darker = np.asarray(cv2.convertScaleAbs(moved(1), alpha=0.5, beta=10), np.uint8)
    images = (moved(0), darker, texture(seed=9), np.ascontiguousarray(np.roll(texture(seed=9), STEP_PX, axis=1)))
    smoothed = [smoother.smoothed(image, answer) for image, answer in zip(images, answers, strict=False)]
    assert [s is a for s, a in zip(smoothed, answers, strict=False)] == [True, False, True, False]


def test_what_appears_is_seen_at_once() -> None:
    """Where the picture is not what was carried there, what was carried hardly counts."""
    smoother, there = Smoother(0.2), np.s_[4:8, 10:14]
    for number in range(3):
        smoother.smoothed(moved(0), predicted(noisy(truth(0), seed=number, noise=0.1)))
    image, label_hw = moved(0), truth(0)
    image[32:64, 80:112] = 255 - image[32:64, 80:112]
    label_hw[there] = 2
    smoothed = smoother.smoothed(image, predicted(noisy(label_hw, seed=5, noise=0.1)))
    winner_hw = smoothed.logits_NChw[0].argmax(axis=0)
    assert (winner_hw[there] == 2).mean() > 0.7
    assert (winner_hw[label_hw != 2] == truth(0)[label_hw != 2]).all()


@pytest.mark.parametrize("image", [np.zeros((96, 192, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)])
def test_flat_and_tiny_pictures_are_left_alone(image: Picture) -> None:
    smoother = Smoother(0.5)
    for number in range(3):
        plain = predicted(noisy(truth(0), seed=number))
        assert smoother.smoothed(image, plain) is plain


def test_a_tiny_head_is_smoothed_too() -> None:
    smoother = Smoother(0.5)
    for number in range(3):
        logits_Chw = np.random.default_rng(number).normal(0, 1, (3, 1, 2)).astype(np.float32)
        smoothed = smoother.smoothed(moved(0), predicted(logits_Chw, (8, 16)))
        assert np.isfinite(smoothed.logits_NChw).all()
    assert smoothed.mask_NHW.shape == (1, 8, 16)


def test_logits_far_apart_stay_finite() -> None:
    smoother = Smoother(0.5)
    for label in (0, 1, 0):
        logits_Chw = np.full((3, 12, 24), -5000, np.float32)
        logits_Chw[label] = 5000
        smoothed = smoother.smoothed(moved(0), predicted(logits_Chw))
    assert np.isfinite(smoothed.logits_NChw).all()
    assert (smoothed.mask_NHW == 0).all()


def test_memory_does_not_grow() -> None:
    smoother = Smoother(0.5)
    frames = [(moved(number), predicted(noisy(truth(number), seed=number))) for number in range(24)]
    tracemalloc.start()
    try:
        held = []
        for image, answer in frames:
            smoother.smoothed(image, answer)
            held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert held[-1] - held[3] < 4096


@pytest.mark.parametrize("share", [0.0, -0.5, 1.01, float("nan"), float("inf")])
def test_shares_out_of_range(share: float) -> None:
    for make in (lambda: Smoother(share), lambda: VideoOptions(smooth=share)):
        with pytest.raises(UsageError, match="wanted above 0 and up to 1"):
            make()


def test_labels_alone_cannot_be_smoothed() -> None:
    labels = np.zeros((1, *SIZE_HW), np.uint8)
    with pytest.raises(UsageError, match="use the backend openvino"):
        Smoother(0.5).smoothed(moved(0), Known(labels, labels))


def test_a_stream_is_smoothed_in_order(openvino: Segmenter, drive: Path) -> None:
    results = list(openvino.stream(drive, smooth=0.4, vid_stride=2))
    assert [r.frame for r in results] == [0, 2, 4, 6, 8]
    own = openvino.smoother(0.4)
    for result in results:
        wanted = openvino.finish(openvino.predict(result.image_bgr), smoother=own)
        np.testing.assert_array_equal(result.mask, wanted.mask)
        np.testing.assert_array_equal(result.confidence, wanted.confidence)
    differs = [(r.confidence != openvino(r.image_bgr).confidence).any() for r in results]
    assert differs == [False, True, True, True, False]  # the first, and the one behind the cut


def test_streams_know_nothing_of_each_other(openvino: Segmenter, drive: Path, ride: Path) -> None:
    alone = [[r.confidence for r in openvino.stream(path, smooth=0.4)] for path in (drive, ride)]
    together = zip(*(openvino.stream(path, smooth=0.4) for path in (drive, ride)), strict=False)
    for number, results in enumerate(together):
        for result, wanted in zip(results, alone, strict=True):
            np.testing.assert_array_equal(result.confidence, wanted[number])


def test_a_live_stream_is_smoothed(openvino: Segmenter) -> None:
    with LiveServer([ts(10)]) as server:
        results = list(openvino.stream(server.url, smooth=0.5, live="every-frame", max_frames=6))
    own = openvino.smoother(0.5)
    for result in results:
        wanted = openvino.finish(openvino.predict(result.image_bgr), smoother=own)
        np.testing.assert_array_equal(result.confidence, wanted.confidence)
    assert len(results) == 6


def test_several_frames_at_once_change_nothing(
    openvino: Segmenter, tiny_bundle: Path, drive: Path, place: Path
) -> None:
    saves: tuple[SaveWhat, ...] = ("masks", "conf", "json")
    options = VideoOptions(smooth=0.5)
    summary = openvino.process_video(drive, "one", save=saves, options=options)
    assert summary.smooth == 0.5
    with Segmenter(tiny_bundle, backend="openvino", device="cpu", threads=2, throughput=True) as segmenter:
        assert segmenter.process_video(drive, "two", save=saves, options=options).frames_at_once == 2
        segmenter.process_video(drive, "plain", save=saves)
    written = sorted(path.relative_to("one") for path in Path("one").glob("*/*.png"))
    assert len(written) == 20
    for path in written:
        assert ("one" / path).read_bytes() == ("two" / path).read_bytes()
    assert any(("two" / path).read_bytes() != ("plain" / path).read_bytes() for path in written)
    told = {name: json.loads(Path(name, "summary.json").read_text())["smooth"] for name in ("one", "two", "plain")}
    assert told == {"one": 0.5, "two": 0.5, "plain": None}
    stats = [[json.loads(line) for line in Path(name, "stats.jsonl").read_text().splitlines()] for name in told]
    one, two, plain = ([line["mean_confidence"] for line in lines] for lines in stats)
    assert one == two != plain


def test_other_runtimes_are_refused_before_anything_is_made(segmenter: Segmenter, drive: Path, place: Path) -> None:
    uses: list[Callable[[], object]] = [
        lambda: next(segmenter.stream(drive, smooth=0.5)),
        lambda: segmenter.process_video(drive, "out", options=VideoOptions(smooth=0.5)),
    ]
    for use in uses:
        with pytest.raises(UsageError, match="onnxruntime cpu fp32 does not give; use --backend openvino"):
            use()
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--smooth", "0"], "smooth is 0.0, wanted above 0 and up to 1; 0.5 is a good start"),
        (["--smooth", "1.5"], "smooth is 1.5"),
        (["--smooth", "much"], "--smooth"),
        (["--smooth", "0.5", "--backend", "onnxruntime"], "use --backend openvino --device cpu"),
        (["--smooth", "0.5", "--backend", "openvino", "a.png"], "--smooth is of a video, and these are images"),
    ],
)
def test_what_the_command_line_refuses(
    tiny_bundle: Path, drive: Path, place: Path, capsys: Captured, words: list[str], reason: str
) -> None:
    write_png(place / "a.png", moved(0))
    assert run(["segment", str(drive), "--model", str(tiny_bundle), "--device", "cpu", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert reason in err
    assert err.count("\n") == 1
    assert [p.name for p in place.iterdir()] == ["a.png"]


def test_the_command_line_says_no_more_than_without(
    tiny_bundle: Path, drive: Path, place: Path, capsys: Captured
) -> None:
    words = ["segment", str(drive), "--model", str(tiny_bundle), "--backend", "openvino", "--save", "json"]
    assert run([*words, "--smooth", "0.5", "-o", "out"]) == 0
    assert "smooth" not in capsys.readouterr().err
    assert json.loads((place / "out/summary.json").read_text())["smooth"] == 0.5
