"""Segmenter: what an application embeds, held against the network's own output."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cdga_sdk import Segmenter, VideoOptions
from cdga_sdk.errors import CdgaError, InputError, UsageError
from cdga_sdk.image import write_png
from cdga_sdk.opencv import cv2
from cdga_sdk.video.run_folder import SaveWhat
from cdga_sdk.video.sink import probe

Picture = Callable[..., NDArray[np.uint8]]


def network_output(segmenter: Segmenter, image_bgr: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Mask and confidence at the network's size, past everything that the segmenter adds."""
    frame_rgb = cv2.resize(image_bgr, (128, 64), interpolation=cv2.INTER_LINEAR)[:, :, ::-1]
    prediction = segmenter._backend.infer(np.ascontiguousarray(frame_rgb, np.uint8)[np.newaxis])
    return prediction.mask_NHW[0], prediction.confidence(0)


def test_what_it_says_of_itself(segmenter: Segmenter, tiny_bundle: Path) -> None:
    assert segmenter.imgsz == (64, 128)
    assert segmenter.names[13] == "car"
    assert segmenter.backend_name == "onnxruntime cpu fp32"
    assert segmenter.model_id == f"tiny.cdga {segmenter.bundle.sha256[:12]}"
    assert segmenter.bundle.path == tiny_bundle


@pytest.mark.parametrize("size_wh", [(128, 64), (211, 97), (33, 500), (1, 1), (2, 31)])
def test_mask_is_the_networks_at_the_size_of_the_image(
    segmenter: Segmenter, picture: Picture, size_wh: tuple[int, int]
) -> None:
    image = picture(4, size_wh)
    width, height = size_wh
    result = segmenter(image)
    for out in (result.mask, result.confidence):
        assert out.shape == (height, width)
        assert out.dtype == np.uint8
    mask, conf = network_output(segmenter, image)
    # A centre that falls on the border of two source pixels may take either of them.
    rows = [((2 * np.arange(height) + 1) * 64 - tie) // (2 * height) for tie in (0, 1)]
    columns = [((2 * np.arange(width) + 1) * 128 - tie) // (2 * width) for tie in (0, 1)]
    nearest = [mask[np.ix_(y, x)] for y in rows for x in columns]
    assert np.any([result.mask == choice for choice in nearest], axis=0).all()
    np.testing.assert_array_equal(
        result.confidence, cv2.resize(conf, size_wh, interpolation=cv2.INTER_LINEAR).reshape(height, width)
    )


def test_golden_frames_come_out_as_promised(segmenter: Segmenter) -> None:
    for frame in segmenter.bundle.golden_frames():
        assert (segmenter(frame.image_bgr).mask == frame.mask).mean() >= 0.9999


def test_result_carries_what_it_came_from(segmenter: Segmenter, picture: Picture) -> None:
    image = picture(0)
    result = segmenter(image)
    assert result.image_bgr is image
    assert (result.source, result.frame, result.time_s) == ("", 0, None)
    assert set(result.speed_ms) == {"preprocess", "inference", "postprocess"}
    assert min(result.speed_ms.values()) > 0
    assert sum(result.shares().values()) == pytest.approx(1)


def test_rgb_and_bgr(segmenter: Segmenter, picture: Picture) -> None:
    image = picture(1, (200, 100))
    turned = segmenter(image[:, :, ::-1], color="rgb")
    np.testing.assert_array_equal(turned.mask, segmenter(image).mask)
    np.testing.assert_array_equal(turned.image_bgr, image)
    assert (segmenter(image).confidence != segmenter(image[:, :, ::-1]).confidence).any()


def test_views_and_read_only_arrays(segmenter: Segmenter, picture: Picture) -> None:
    image = picture(2, (200, 100))
    view = image[5:95:2, ::-1]
    view.flags.writeable = False
    np.testing.assert_array_equal(segmenter(view).mask, segmenter(view.copy()).mask)


def test_paths_and_lists(segmenter: Segmenter, picture: Picture, tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", picture(3))
    alone = segmenter(picture(3))
    by_path, by_text, by_array = segmenter([tmp_path / "a.png", str(tmp_path / "a.png"), picture(3)])
    for result in (by_path, by_text, by_array, segmenter(tmp_path / "a.png")):
        np.testing.assert_array_equal(result.mask, alone.mask)
    assert by_path.source == by_text.source == str(tmp_path / "a.png")
    assert segmenter([]) == []
    with pytest.raises(InputError, match="no such file"):
        segmenter(tmp_path / "none.png")


def test_what_opencv_reads_and_iterators_pass_the_type_checker_too(
    segmenter: Segmenter, picture: Picture, tmp_path: Path
) -> None:
    write_png(tmp_path / "a.png", picture(1))
    read = cv2.imread(str(tmp_path / "a.png"))
    assert read is not None
    one = segmenter(read)
    assert one.image_bgr is read
    np.testing.assert_array_equal(segmenter.segment(read).mask, one.mask)
    (found,) = segmenter(tmp_path.glob("*.png"))
    np.testing.assert_array_equal(found.mask, one.mask)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 1), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((1, 8, 8, 3), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8, 3), np.int64),
        np.zeros((0, 8, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(segmenter: Segmenter, image: NDArray[np.uint8]) -> None:
    ways: list[Callable[[], object]] = [
        lambda: segmenter(image),
        lambda: segmenter(image, color="rgb"),
        lambda: segmenter([image]),
        lambda: segmenter.segment(image),
        lambda: segmenter.predict(image),
    ]
    for way in ways:
        with pytest.raises(UsageError, match=r"wanted \(H, W, 3\) uint8"):
            way()


def test_other_colour_orders_are_refused(segmenter: Segmenter, picture: Picture) -> None:
    with pytest.raises(UsageError, match="unknown colour order 'hsv'"):
        segmenter(picture(0), color="hsv")


def test_conf_ignores_what_is_less_sure(tiny_bundle: Path, segmenter: Segmenter, picture: Picture) -> None:
    plain = segmenter(picture(5, (150, 90)))
    for conf in (0.0, float(np.median(plain.probability)), 1.0):
        with Segmenter(tiny_bundle, backend="onnxruntime", threads=1, conf=conf) as strict:
            result = strict(picture(5, (150, 90)))
        np.testing.assert_array_equal(result.confidence, plain.confidence)
        unsure = plain.confidence < conf * 255
        np.testing.assert_array_equal(result.mask, np.where(unsure, 255, plain.mask))
        assert {0.0: unsure.sum() == 0, 1.0: unsure.all()}.get(conf, 0 < unsure.mean() < 1)


def test_classes_are_kept_by_name_and_id(tiny_bundle: Path, segmenter: Segmenter, picture: Picture) -> None:
    plain = segmenter(picture(6)).mask
    most = segmenter.names[int(np.bincount(plain.ravel()).argmax())]
    with Segmenter(tiny_bundle, backend="onnxruntime", threads=1, classes=[most, 18]) as some:
        kept = some(picture(6)).mask
    wanted = [segmenter.names.index(most), 18]
    np.testing.assert_array_equal(kept, np.where(np.isin(plain, wanted), plain, 255))
    assert (kept != 255).any()
    with Segmenter(tiny_bundle, backend="onnxruntime", threads=1, classes=[]) as none:
        assert (none(picture(6)).mask == 255).all()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"conf": -0.1}, "wanted 0 to 1"),
        ({"conf": 1.1}, "wanted 0 to 1"),
        ({"conf": float("nan")}, "wanted 0 to 1"),
        ({"classes": ["roads"]}, "did you mean 'road'"),
        ({"classes": "road"}, r"classes is 'road', wanted a list .* write classes=\['road'\]"),
        ({"backend": "tf"}, "unknown backend"),
        ({"device": "tpu"}, "unknown device"),
        ({"threads": 0}, "threads is 0, wanted a whole number from 1 on"),
        ({"threads": -1, "backend": "onnxruntime"}, "threads is -1, wanted"),
        ({"threads": "2"}, "threads is '2', wanted"),
    ],
)
def test_wrong_arguments(tiny_bundle: Path, options: dict[str, object], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        Segmenter(tiny_bundle, **options)  # type: ignore[arg-type]  # wrong on purpose


def test_what_is_no_image_is_refused(segmenter: Segmenter, picture: Picture) -> None:
    for given in (None, Image.new("RGB", (8, 8)), [picture(6), None], {1: picture(6)}):
        with pytest.raises(UsageError, match=r"wanted an \(H, W, 3\) uint8 array, a path, or a list of these"):
            segmenter(given)  # type: ignore[arg-type]  # wrong on purpose
    for way in (segmenter.segment, segmenter.predict):
        with pytest.raises(UsageError, match=r"got Image, wanted an \(H, W, 3\) uint8 array; of a PIL image give"):
            way(Image.new("RGB", (8, 8)))  # type: ignore[arg-type]  # wrong on purpose


def test_missing_model() -> None:
    with pytest.raises(InputError, match="cdga export"):
        Segmenter("none.cdga")


def test_a_path_of_another_kind(tiny_bundle: Path) -> None:
    class Place:
        def __fspath__(self) -> str:
            return str(tiny_bundle)

    with Segmenter(Place(), threads=1) as segmenter:  # type: ignore[arg-type]  # taken all the same
        assert segmenter.bundle.path == tiny_bundle


@pytest.mark.parametrize("model", [None, "", 5])
def test_what_is_no_model_is_refused(model: object) -> None:
    with pytest.raises(UsageError, match="wanted a name or the path of a bundle; is a variable of the environment not"):
        Segmenter(model)  # type: ignore[arg-type]  # wrong on purpose


def test_names_that_no_file_system_takes(segmenter: Segmenter) -> None:
    for way in (lambda: Segmenter("a" * 300), lambda: Segmenter(Path("a" * 300)), lambda: segmenter("a" * 300)):
        with pytest.raises(InputError):
            way()


def test_stream(segmenter: Segmenter, ride: Path) -> None:
    results = list(segmenter.stream(ride))
    assert [r.frame for r in results] == list(range(12))
    assert [r.time_s for r in results] == pytest.approx([i / 25 for i in range(12)])
    assert {r.source for r in results} == {str(ride)}
    np.testing.assert_array_equal(results[7].mask, segmenter(results[7].image_bgr).mask)


def test_stream_in_part(segmenter: Segmenter, ride: Path) -> None:
    assert [r.frame for r in segmenter.stream(ride, vid_stride=5)] == [0, 5, 10]
    assert len(list(segmenter.stream(ride, max_frames=4))) == 4
    times = [r.time_s for r in segmenter.stream(ride, start_s=0.2, end_s=0.4)]
    assert times[0] == pytest.approx(0.2)
    assert len(times) in {5, 6}
    with pytest.raises(UsageError):
        list(segmenter.stream(ride, vid_stride=0))
    with pytest.raises(InputError):
        next(segmenter.stream("none.mp4"))


def test_stream_may_be_left_early(segmenter: Segmenter, ride: Path) -> None:
    for _ in range(30):
        frames = segmenter.stream(ride)
        next(frames)
        frames.close()  # type: ignore[attr-defined]  # it is a generator


def test_process_video_into_a_folder(segmenter: Segmenter, ride: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    summary = segmenter.process_video(ride, tmp_path / "out", on_frame=lambda r: seen.append(r.frame))
    assert seen == list(range(12))
    assert (summary.status, summary.frames, summary.expected_frames) == ("done", 12, 12)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"overlay.mp4", "stats.jsonl", "summary.json"}
    assert probe(tmp_path / "out/overlay.mp4").num_frames == 12


def test_process_video_into_a_file(segmenter: Segmenter, ride: Path, tmp_path: Path) -> None:
    options = VideoOptions(vid_stride=2, alpha=0.2)
    segmenter.process_video(ride, str(tmp_path / "ride.MP4"), save=("video", "masks"), options=options)
    assert {p.name for p in tmp_path.iterdir()} == {"ride.MP4", "ride"}
    assert {p.name for p in (tmp_path / "ride").iterdir()} == {"masks"}
    info = probe(tmp_path / "ride.MP4")
    assert (info.num_frames, info.average_rate) == (6, Fraction(25, 2))


def test_process_video_refuses_its_own_input(segmenter: Segmenter, ride: Path) -> None:
    before = ride.read_bytes()
    with pytest.raises(UsageError, match="over its own input"):
        segmenter.process_video(ride, ride)
    assert ride.read_bytes() == before


def test_after_close(tiny_bundle: Path, picture: Picture, ride: Path, tmp_path: Path) -> None:
    closed = Segmenter(tiny_bundle, backend="onnxruntime", threads=1)
    closed.close()
    closed.close()
    uses: list[Callable[[], object]] = [
        lambda: closed(picture(0)),
        lambda: next(closed.stream(ride)),
        lambda: closed.process_video(ride, tmp_path / "out"),
    ]
    for use in uses:
        with pytest.raises(UsageError, match="this Segmenter is closed; open a new one"):
            use()


def test_context_closes_after_an_error_too(tiny_bundle: Path, picture: Picture) -> None:
    with (
        pytest.raises(ValueError, match="mine"),
        Segmenter(tiny_bundle, backend="onnxruntime", threads=1) as segmenter,
    ):
        raise ValueError("mine")
    with pytest.raises(UsageError, match="closed"):
        segmenter(picture(0))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_sixteen_threads_equal_serial(tiny_bundle: Path, picture: Picture, backend: str) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    images = [picture(i, (100 + i, 60)) for i in range(16)]
    with Segmenter(tiny_bundle, backend=backend, device="cpu", threads=1) as segmenter:
        serial = [segmenter(image) for image in images]
        with ThreadPoolExecutor(16) as pool:
            together = list(pool.map(segmenter.segment, images * 3))
    for index, result in enumerate(together):
        np.testing.assert_array_equal(result.mask, serial[index % 16].mask)
        np.testing.assert_array_equal(result.confidence, serial[index % 16].confidence)


FORKED = """
import os, signal, sys
import numpy as np
from cdga_sdk import Segmenter
from cdga_sdk.errors import UsageError
frame = np.zeros((8, 8, 3), np.uint8)
segmenter = Segmenter(sys.argv[1], threads=1)
segmenter(frame)
child = os.fork()
if child:
    sys.exit(os.waitpid(child, 0)[1])
signal.alarm(60)
try:
    segmenter(frame)
except UsageError as error:
    print(error, flush=True)
segmenter.close()
Segmenter(sys.argv[1], threads=1)(frame)
os._exit(0)
"""


def test_a_forked_process_needs_its_own(tiny_bundle: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FORKED, str(tiny_bundle)], capture_output=True, text=True)
    told = "this Segmenter was opened before this process was forked; open one in each process\n"
    assert (done.stdout, done.returncode) == (told, 0), done.stderr


def test_damaged_bundle_is_refused(own_bundle: Path) -> None:
    with (own_bundle / "model.onnx").open("ab") as graph:
        graph.write(b"x")
    with pytest.raises(CdgaError) as caught:
        Segmenter(own_bundle)
    assert caught.value.exit_code == 5


def test_no_torch_is_needed(tiny_bundle: Path, picture: Picture, tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", picture(0))
    code = (
        "import sys; from cdga_sdk import Segmenter\n"
        f"with Segmenter({str(tiny_bundle)!r}, backend='onnxruntime') as segmenter:\n"
        f"    print(segmenter({str(tmp_path / 'a.png')!r}).mask.shape)\n"
        "assert 'torch' not in sys.modules and 'onnx' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("(64, 128)\n", 0), done.stderr


def test_throughput_changes_no_result(tiny_bundle: Path, ride: Path, tmp_path: Path) -> None:
    saves: tuple[SaveWhat, ...] = ("masks", "conf", "json")
    with Segmenter(tiny_bundle, backend="openvino", threads=2) as one_by_one:
        assert one_by_one.frames_at_once == 1
        assert one_by_one.process_video(ride, tmp_path / "one", save=saves).frames_at_once == 1
    with Segmenter(tiny_bundle, backend="openvino", threads=2, throughput=True) as segmenter:
        assert segmenter.frames_at_once == 2
        summary = segmenter.process_video(ride, tmp_path / "two", save=saves)
    assert summary.frames_at_once == 2
    assert ", 2 at once)" in summary.line()
    written = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").glob("*/*.png"))
    assert len(written) == 24
    for path in written:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()
    frames = [json.loads(line)["frame"] for line in (tmp_path / "two/stats.jsonl").read_text().splitlines()]
    assert frames == list(range(12))
