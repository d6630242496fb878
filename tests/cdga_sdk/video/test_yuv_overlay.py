"""The overlay on decoded planes against the one through BGR, and where the second has to take over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from numpy.typing import NDArray

from cdga_sdk.errors import UsageError
from cdga_sdk.labels import CITYSCAPES_PALETTE_RGB
from cdga_sdk.opencv import cv2
from cdga_sdk.overlay import draw_overlay
from cdga_sdk.result import SegResult
from cdga_sdk.segment_run import SegmentRequest, plan_work, run_segment
from cdga_sdk.segmenter import Segmenter
from cdga_sdk.video.pipeline import VideoOptions, segment_video
from cdga_sdk.video.sink import VideoSink
from cdga_sdk.video.source import Frame, VideoSource
from cdga_sdk.video.yuv_overlay import BT709, ColorTags, Picture, draw_overlay_yuv, picture_of

Clip = Callable[..., Path]
Image = NDArray[np.uint8]
Street = Callable[..., Image]

UNSPECIFIED = ColorTags(matrix=2, range=0, primaries=2, transfer=2)
BT601 = ColorTags(matrix=6, range=1, primaries=6, transfer=6)
PAL = ColorTags(matrix=5, range=1, primaries=5, transfer=6)
TAGS = pytest.mark.parametrize("tags", [UNSPECIFIED, BT601, PAL, BT709], ids=["unspecified", "bt601", "pal", "bt709"])
SIZE_WH = (128, 64)


@pytest.fixture
def encoded(tmp_path: Path, picture: Street) -> Clip:
    """``encoded(tags)`` makes a clip of soft colours, in gamut whatever the codec does to them."""

    def make(
        tags: ColorTags,
        *,
        name: str = "in.mp4",
        size_wh: tuple[int, int] = SIZE_WH,
        codec: str = "libx264",
        pix_fmt: str = "yuv420p",
        num_frames: int = 3,
    ) -> Path:
        matrix = Colorspace.ITU709 if tags.matrix == 1 else Colorspace.ITU601
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream(codec, rate=25, options={"crf": "8"} if "26" in codec else {})
            assert isinstance(stream, av.VideoStream)
            stream.width, stream.height, stream.pix_fmt = *size_wh, pix_fmt
            context = stream.codec_context
            context.colorspace, context.color_range = tags.matrix, tags.range
            context.color_primaries, context.color_trc = tags.primaries, tags.transfer
            for index in range(num_frames):
                image = np.asarray(64 + picture(index, size_wh) // 2, np.uint8)
                frame = VideoReformatter().reformat(
                    av.VideoFrame.from_ndarray(image, format="bgr24"),
                    format=pix_fmt,
                    dst_colorspace=matrix,
                    dst_color_range=ColorRange.JPEG if tags.range == ColorRange.JPEG else ColorRange.MPEG,
                )
                frame.pts, frame.time_base = index, Fraction(1, 25)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return tmp_path / name

    return make


def frames_of(path: Path) -> list[Frame]:
    with VideoSource(path) as source:
        return list(source)


def tags_of(path: Path) -> set[ColorTags]:
    """Of every picture of a file, by PyAV alone."""
    with av.open(str(path)) as container:
        return {
            ColorTags(matrix=f.colorspace, range=f.color_range, primaries=f.color_primaries, transfer=f.color_trc)
            for f in container.decode(video=0)
        }


def drawable(frame: Frame) -> Picture:
    assert frame.picture is not None
    return frame.picture


def planes(frame: av.VideoFrame) -> tuple[Image, Image, Image]:
    """Y', Cb and Cr, copied."""
    yuv, (width, height) = np.asarray(frame.to_ndarray(), np.uint8).copy(), (frame.width, frame.height)
    chroma = yuv[height:].reshape(2, height // 2, width // 2)
    return yuv[:height], chroma[0], chroma[1]


def blocks(size_wh: tuple[int, int] = SIZE_WH) -> Image:
    """A mask of 16x16 blocks of every class and of none, shifted by an odd number of pixels."""
    ids = np.array([*range(19), 255], np.uint8)
    width, height = size_wh
    rows, columns = (np.arange(n)[:, None] + 3 for n in (height, width))
    return np.asarray(ids[(rows // 16 * 7 + columns.T // 16) % len(ids)], np.uint8)


def inside(mask_HW: Image) -> NDArray[np.bool_]:
    """Chroma samples with one class two pixels and more around them."""
    kernel = np.ones((7, 7), np.uint8)
    return np.asarray((cv2.erode(mask_HW, kernel) == cv2.dilate(mask_HW, kernel))[::2, ::2])


def differences(one: Image, other: Image) -> NDArray[np.int64]:
    return np.asarray(np.abs(one.astype(np.int64) - other), np.int64)


@TAGS
@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_it_is_the_overlay_through_bgr(encoded: Clip, tags: ColorTags, alpha: float) -> None:
    """Luma within 3 everywhere: swscale loses up to two levels on the way to BGR and back, a blend rounds by one.

    Chroma is as near inside a class. On a border it has one class where the way through BGR has a mean of some.
    """
    sink = VideoSink("x.mp4", size_wh=SIZE_WH, rate=Fraction(25), time_base=Fraction(1, 25), tags=tags)
    mask = blocks()
    for frame in frames_of(encoded(tags)):
        drawn = planes(draw_overlay_yuv(drawable(frame), mask, alpha=alpha).frame)
        wanted = planes(sink._frame(draw_overlay(frame.image_bgr, mask, alpha=alpha)))
        assert differences(drawn[0], wanted[0]).max() <= 3
        assert inside(mask).mean() > 0.2
        for chroma in (1, 2):
            assert differences(drawn[chroma], wanted[chroma])[inside(mask)].max() <= 3


@TAGS
def test_class_colours_come_back(tags: ColorTags) -> None:
    """Through swscale, as a player shows them; the mask's other ids are black."""
    frame = av.VideoFrame.from_ndarray(np.full((6, 4), 77, np.uint8), format="yuv420p")
    frame.colorspace, frame.color_range = tags.matrix, tags.range
    frame.color_primaries, frame.color_trc = tags.primaries, tags.transfer
    picture = picture_of(frame)
    assert picture is not None
    for train_id, color_rgb in [*enumerate(CITYSCAPES_PALETTE_RGB), (19, (0, 0, 0)), (255, (0, 0, 0))]:
        drawn = draw_overlay_yuv(picture, np.full((4, 4), train_id, np.uint8), alpha=1).frame
        assert differences(np.asarray(drawn.to_ndarray(format="rgb24"), np.uint8), np.array(color_rgb)).max() <= 3


@TAGS
def test_opacity_0_changes_nothing_and_the_decoder_s_picture_is_left_alone(encoded: Clip, tags: ColorTags) -> None:
    for frame in frames_of(encoded(tags)):
        before = planes(drawable(frame).frame)
        drawn = draw_overlay_yuv(drawable(frame), blocks(), alpha=0)
        assert drawn.tags == drawable(frame).tags == tags
        half = draw_overlay_yuv(drawable(frame), blocks(), alpha=0.5)
        for one, other, covered, after in zip(
            before, planes(drawn.frame), planes(half.frame), planes(drawable(frame).frame), strict=True
        ):
            np.testing.assert_array_equal(one, other)
            np.testing.assert_array_equal(one, after)
            assert differences(one, covered).max() > 10


def test_lines_with_padding(encoded: Clip) -> None:
    """A width of 34 is no multiple of what FFmpeg aligns lines to."""
    size_wh = (34, 18)
    (frame,) = frames_of(encoded(BT709, size_wh=size_wh, num_frames=1))
    picture = drawable(frame)
    assert picture.frame.planes[1].line_size > 17
    untouched = draw_overlay_yuv(picture, blocks(size_wh), alpha=0)
    for one, other in zip(planes(picture.frame), planes(untouched.frame), strict=True):
        np.testing.assert_array_equal(one, other)


def segment(
    segmenter: Segmenter, path: Path, folder: Path, alpha: float = 0.5
) -> tuple[Sequence[Image], Sequence[SegResult]]:
    """The overlay as a player shows it, and the results."""
    results: list[SegResult] = []
    options = VideoOptions(crf=4, alpha=alpha)
    segment_video(segmenter, path, folder, save=("video",), options=options, on_frame=results.append, may_paint=False)
    return [frame.image_bgr for frame in frames_of(folder / "overlay.mp4")], results


def assert_near(shown: Sequence[Image], results: Sequence[SegResult], alpha: float = 0.5) -> None:
    """As near as x264 and swscale leave it. A median: chroma of half the size misses on borders, and only there."""
    for image, result in zip(shown, results, strict=True):
        assert np.median(differences(image, result.plot(alpha))) <= 2


@TAGS
def test_a_file_s_colours_are_kept(segmenter: Segmenter, encoded: Clip, tmp_path: Path, tags: ColorTags) -> None:
    path = encoded(tags)
    shown, results = segment(segmenter, path, tmp_path / "run", alpha=0.2)
    assert tags_of(path) == tags_of(tmp_path / "run/overlay.mp4") == {tags}
    assert_near(shown, results, alpha=0.2)


@pytest.mark.parametrize(
    ("tags", "options"),
    [
        (BT601, {"size_wh": (127, 63), "pix_fmt": "yuv444p"}),
        (BT601, {"pix_fmt": "yuv422p"}),
        (BT709, {"pix_fmt": "yuv420p10le"}),
        (ColorTags(matrix=6, range=2, primaries=6, transfer=6), {"pix_fmt": "yuvj420p"}),
        (ColorTags(matrix=6, range=2, primaries=2, transfer=2), {"codec": "ffv1", "name": "in.mkv"}),
        (ColorTags(matrix=7, range=1, primaries=7, transfer=7), {}),
    ],
    ids=["odd", "4:2:2", "10-bit", "full range", "full range, yuv420p", "SMPTE 240M"],
)
def test_what_else_there_is_goes_through_bgr(
    segmenter: Segmenter, encoded: Clip, tmp_path: Path, tags: ColorTags, options: dict[str, object]
) -> None:
    path = encoded(tags, **options)
    assert [frame.picture for frame in frames_of(path)] == [None] * 3
    shown, results = segment(segmenter, path, tmp_path / "run")
    assert tags_of(tmp_path / "run/overlay.mp4") == {BT709}
    width, height = (int(n) for n in results[0].image_bgr.shape[1::-1])
    assert_near([image[:height, :width] for image in shown], results)


@pytest.mark.parametrize("turn", [{"rotation": 90.0}, {"rotation": 180.0}, {"rotation": 0.0, "hflip": True}])
def test_what_is_turned_goes_through_bgr(
    segmenter: Segmenter, clip: Clip, picture: Street, tmp_path: Path, turn: dict[str, object]
) -> None:
    path = clip("turned.mp4", num_frames=3, pictures=[picture(i, (64, 48)) for i in range(3)], **turn)
    assert [frame.picture for frame in frames_of(path)] == [None] * 3
    shown, results = segment(segmenter, path, tmp_path / "run")
    assert tags_of(tmp_path / "run/overlay.mp4") == {BT709}
    assert_near(shown, results)


@TAGS
def test_other_colours_in_midstream_take_the_file_s(
    segmenter: Segmenter, encoded: Clip, tmp_path: Path, tags: ColorTags
) -> None:
    others = BT601 if tags == BT709 else BT709
    parts = [encoded(tags, name="a.ts"), encoded(others, name="b.ts")]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    shown, results = segment(segmenter, joined, tmp_path / "run")
    assert tags_of(tmp_path / "run/overlay.mp4") == {tags}
    assert len(shown) == 6
    assert_near(shown, results)


def test_another_size_in_midstream_takes_the_file_s(segmenter: Segmenter, encoded: Clip, tmp_path: Path) -> None:
    parts = [encoded(UNSPECIFIED, name="a.ts"), encoded(UNSPECIFIED, name="b.ts", size_wh=(64, 32))]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    shown, results = segment(segmenter, joined, tmp_path / "run")
    assert tags_of(tmp_path / "run/overlay.mp4") == {UNSPECIFIED}
    assert_near(shown[:3], results[:3])
    for image, result in zip(shown[3:], results[3:], strict=True):
        smaller = np.asarray(cv2.resize(image, (64, 32), interpolation=cv2.INTER_AREA), np.uint8)
        assert np.median(differences(smaller, result.plot())) <= 2


def blacken(result: SegResult) -> None:
    """What a caller may do to faces."""
    result.image_bgr[:, :64] = 0


PAINTED = pytest.mark.parametrize(
    ("tags", "pix_fmt"),
    [(UNSPECIFIED, "yuv420p"), (BT601, "yuv420p"), (BT709, "yuv420p"), (BT709, "yuv420p10le")],
    ids=["unspecified", "bt601", "bt709", "10-bit"],
)


@PAINTED
def test_what_a_callback_paints_is_in_the_overlay_of_every_file(
    segmenter: Segmenter, encoded: Clip, tmp_path: Path, tags: ColorTags, pix_fmt: str
) -> None:
    path, options = encoded(tags, pix_fmt=pix_fmt), VideoOptions(crf=4, alpha=0)
    segmenter.process_video(path, tmp_path / "run", save=("video",), options=options, on_frame=blacken)
    assert tags_of(tmp_path / "run/overlay.mp4") == {tags}
    for shown, frame in zip(frames_of(tmp_path / "run/overlay.mp4"), frames_of(path), strict=True):
        assert shown.image_bgr[:, :56].max() < 16 < frame.image_bgr[:, :56].min()
        assert np.median(differences(shown.image_bgr[:, 72:], frame.image_bgr[:, 72:])) <= 2


def test_the_command_line_and_calls_without_a_callback_draw_on_the_decoded_planes(
    segmenter: Segmenter, encoded: Clip, tmp_path: Path
) -> None:
    path, options = encoded(BT601), VideoOptions(alpha=0)
    segmenter.process_video(path, tmp_path / "plain", save=("video",), options=options)
    segmenter.process_video(path, tmp_path / "called", save=("video",), options=options, on_frame=lambda result: None)
    request = SegmentRequest(
        sources=(str(path),),
        output=tmp_path / "command",
        save=("video",),
        project=None,
        name=None,
        exist_ok=False,
        options=options,
        quiet=True,
    )
    run_segment(segmenter, request, plan_work(request))
    plain, called, command = ((tmp_path / name / "overlay.mp4").read_bytes() for name in ("plain", "called", "command"))
    assert plain == command != called


def test_a_sink_takes_pictures_of_its_own_size_and_colours(encoded: Clip, tmp_path: Path) -> None:
    (frame,) = frames_of(encoded(BT601, num_frames=1))
    for size_wh, tags in ((SIZE_WH, BT709), ((64, 64), BT601)):
        sink = VideoSink(tmp_path / "out.mp4", size_wh=size_wh, rate=Fraction(25), time_base=Fraction(1, 25), tags=tags)
        assert not sink.takes(drawable(frame))
        with pytest.raises(UsageError, match="got a picture of"), sink:
            sink.write_picture(drawable(frame), 0)
