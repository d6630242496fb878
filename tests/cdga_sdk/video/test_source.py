"""VideoSource: what it refuses, what it yields, and what it survives."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from cdga_sdk.errors import InputError, UsageError
from cdga_sdk.opencv import cv2
from cdga_sdk.video.container import is_video_file, sniff
from cdga_sdk.video.decoder import Decoder
from cdga_sdk.video.source import Frame, VideoSource, _Clock

Clip = Callable[..., Path]
Image = NDArray[np.uint8]
REAL_CLIP = Path(__file__).parents[4] / "shared/data/video/solidWhiteRight.mp4"
QUADRANTS_BGR = ((0, 0, 255), (0, 255, 0), (255, 0, 0), (255, 255, 255))  # top left, top right, bottom left, ...


def read(path: Path, **options: Any) -> list[Frame]:
    with VideoSource(path, **options) as source:
        return list(source)


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught, VideoSource(path):
        pass
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_code == 3
    return message


def quadrants() -> Image:
    image = np.zeros((48, 64, 3), np.uint8)
    image[:24, :32], image[:24, 32:], image[24:, :32], image[24:, 32:] = QUADRANTS_BGR
    return image


def corners(image: Image) -> list[int]:
    """Index into QUADRANTS_BGR of the colour in each corner, in reading order."""
    colours = np.array(QUADRANTS_BGR)
    pixels = (image[4, 4], image[4, -5], image[-5, 4], image[-5, -5])
    return [int(np.abs(colours - pixel).sum(1).argmin()) for pixel in pixels]


def packets_of(path: Path) -> list[tuple[int, int]]:
    with av.open(str(path)) as container:
        return [(p.pos or 0, p.size) for p in container.demux(video=0) if p.size]


def blank_packets(path: Path, which: list[int]) -> None:
    """Overwrite the payload of the packets with zeros."""
    data = bytearray(path.read_bytes())
    packets = packets_of(path)
    for position, size in (packets[i] for i in which):
        data[position : position + size] = bytes(size)
    path.write_bytes(data)


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


# What is refused


def test_missing_file_is_named(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "absent.mp4")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("just words\n", "found text, not a video"),
        ("ffconcat version 1.0\nfile secret.mp4\n", "found ffconcat text, not a video"),
        ("#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", "found m3u8 text, not a video"),
        ("v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=video 5004 RTP/AVP 96\n", "found SDP text, not a video"),
    ],
)
def test_text_named_mp4_is_refused(tmp_path: Path, clip: Clip, text: str, found: str) -> None:
    clip("secret.mp4", num_frames=3)
    evil = tmp_path / "evil.mp4"
    evil.write_text(text)
    assert found in refusal(evil)


def test_ffmpeg_alone_would_follow_the_script(tmp_path: Path, clip: Clip) -> None:
    clip("secret.mp4", num_frames=3)
    evil = tmp_path / "evil.mp4"
    evil.write_text("ffconcat version 1.0\nfile secret.mp4\n")
    with av.open(str(evil)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 3


def test_script_behind_a_box_header_is_refused(tmp_path: Path, clip: Clip) -> None:
    clip("secret.mp4", num_frames=3)
    evil = tmp_path / "evil.mp4"
    evil.write_bytes(b"\0\0\0\x10ftypisom\0\0\0\0ffconcat version 1.0\nfile secret.mp4\n")
    refusal(evil)


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    assert "empty" in refusal(tmp_path / "empty.mp4")


def test_directory(tmp_path: Path) -> None:
    assert "found a directory" in refusal(tmp_path)


def test_fifo_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    assert "found a FIFO" in refusal(tmp_path / "pipe.mp4")


def test_device() -> None:
    assert "found a device" in refusal(Path("/dev/zero"))


def test_audio_only(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert "no video stream in it (found: aac)" in refusal(path)


def test_cut_off_before_the_index(clip: Clip) -> None:
    path = clip("cut.mp4")
    data = path.read_bytes()
    for keep in (len(data) // 3, data.rindex(b"moov") + 40):
        path.write_bytes(data[:keep])
        assert "index (moov)" in refusal(path)


def test_nothing_decodable(clip: Clip) -> None:
    path = clip("void.mp4", num_frames=12)
    blank_packets(path, list(range(12)))
    assert "not one frame of its h264 stream" in refusal(path)


def test_codec_without_decoder(clip: Clip) -> None:
    path = clip("odd.mp4", num_frames=3)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))
    refusal(path)


def test_forged_size_is_refused_before_it_is_allocated(tmp_path: Path) -> None:
    path = tmp_path / "bomb.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("rawvideo", rate=25, width=64, height=48)
        container.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        container.mux(stream.encode(None))
    old = (64).to_bytes(4, "little") + (48).to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(old, (30000).to_bytes(4, "little") * 2))
    refusal(path)


@pytest.mark.parametrize(
    "options", [{"vid_stride": 0}, {"start_s": -1.0}, {"start_s": 2.0, "end_s": 2.0}, {"max_frames": 0}]
)
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        VideoSource("any.mp4", **options)


# Names


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\0\0\0\x18ftypmp42", "MP4 or MOV"),
        (b"\0\0\0\x18ftypavif", "a HEIF image"),
        (b"\x1aE\xdf\xa3", "Matroska or WebM"),
        (b"RIFF\0\0\0\0AVI LIST", "AVI"),
        (b"RIFF\0\0\0\0WAVEfmt ", "a WAV file"),
        (b"FLV\x01\x05", "FLV"),
        (b"\0\0\x01\xba", "MPEG-PS"),
        ((b"\x47" + bytes(187)) * 6, "MPEG-TS"),
        ((bytes(4) + b"\x47" + bytes(187)) * 6, "MPEG-TS"),
        (b"\x89PNG\r\n\x1a\n", "a PNG image"),
        ("häuser ".encode() * 2000, "text"),
        (b"\0\xff\0\xff", "unknown binary data"),
        (b"", "empty"),
    ],
)
def test_sniff(tmp_path: Path, head: bytes, kind: str) -> None:
    (tmp_path / "file").write_bytes(head)
    assert sniff(tmp_path / "file") == kind


def test_is_video_file_goes_by_extension(tmp_path: Path) -> None:
    for name in ("a.MP4", "b.mkv", "c.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.mp4").mkdir()
    assert [is_video_file(tmp_path / n) for n in ("a.MP4", "b.mkv", "c.txt", "folder.mp4")] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    "name", ["a b.mp4", "häuser %03d.mp4", "-x.mp4", "line\nbreak.mp4", "http:x.mp4", "pipe:0.mp4"]
)
def test_odd_names(clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    clip("plain.mp4", num_frames=3).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert len(read(Path(name))) == 3


# What is yielded


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "libx264"),
        ("a.mkv", "libx264"),
        ("a.webm", "libvpx-vp9"),
        ("a.avi", "mpeg4"),
        ("a.ts", "libx264"),
        ("a.mpg", "mpeg2video"),
        ("a.flv", "libx264"),
        ("a.mov", "mjpeg"),
    ],
)
def test_every_container(clip: Clip, name: str, codec: str) -> None:
    with VideoSource(clip(name, num_frames=12, codec=codec)) as source:
        assert source.size_wh == (64, 48)
        assert source.average_rate == 25
        frames = list(source)
    assert [f.index for f in frames] == list(range(12))
    assert all(f.image_bgr.shape == (48, 64, 3) and f.image_bgr.dtype == np.uint8 for f in frames)
    assert all(f.image_bgr.flags.c_contiguous and f.image_bgr.flags.writeable for f in frames)
    assert np.allclose(np.diff([f.time_s for f in frames]), 0.04, atol=0.001)
    assert (source.repaired_pts, source.corrupt_packets, source.corrupt_frames, source.size_changes) == (0, 0, 0, 0)
    brightness = [f.image_bgr.mean() for f in frames]
    assert np.allclose(brightness, 30 + 5 * np.arange(12), atol=4)  # conftest.grey_of


def test_properties(clip: Clip) -> None:
    rate = Fraction(30000, 1001)
    with VideoSource(clip("p.mp4", num_frames=7, size_wh=(66, 50), rate=rate)) as source:
        assert (source.size_wh, source.average_rate, source.codec) == ((66, 50), rate, "h264")
        assert source.num_frames_hint == 7
        frames = list(source)
    assert all(b.pts * source.time_base - a.pts * source.time_base == 1 / rate for a, b in pairwise(frames))


@pytest.mark.parametrize(
    ("counterclockwise", "order"),
    [(90, [1, 3, 0, 2]), (180, [3, 2, 1, 0]), (270, [2, 0, 3, 1]), (None, [0, 1, 2, 3])],
)
def test_rotation_is_applied_once_and_as_opencv_does(
    clip: Clip, counterclockwise: float | None, order: list[int]
) -> None:
    path = clip("turned.mp4", pictures=[quadrants()] * 2, num_frames=2, rotation=counterclockwise)
    with VideoSource(path) as source:
        frame = next(iter(source))
        assert source.size_wh == (frame.image_bgr.shape[1], frame.image_bgr.shape[0])
    assert corners(frame.image_bgr) == order
    capture = cv2.VideoCapture(str(path))
    assert np.abs(capture.read()[1].astype(int) - frame.image_bgr).max() <= 3
    capture.release()


@pytest.mark.parametrize(
    ("name", "rotation", "ratio", "wanted"),
    [
        ("a.mp4", None, Fraction(4, 3), Fraction(4, 3)),
        ("a.mp4", 90, Fraction(4, 3), Fraction(3, 4)),
        ("a.mp4", 180, Fraction(4, 3), Fraction(4, 3)),
        ("a.mkv", None, Fraction(16, 11), Fraction(16, 11)),
        ("a.ts", None, None, Fraction(1)),
    ],
)
def test_shape_of_pixels(
    clip: Clip, name: str, rotation: float | None, ratio: Fraction | None, wanted: Fraction
) -> None:
    with VideoSource(clip(name, num_frames=2, rotation=rotation, sample_aspect_ratio=ratio)) as source:
        assert source.sample_aspect_ratio == wanted


def test_mirrored_selfie_camera(clip: Clip) -> None:
    path = clip("mirror.mp4", pictures=[quadrants()] * 2, num_frames=2, rotation=0, hflip=True)
    assert corners(read(path)[0].image_bgr) == [1, 0, 3, 2]


def test_variable_rate_keeps_every_tick(clip: Clip) -> None:
    pts = [100, 133, 167, 200, 400, 600, 1000, 1033, 5000]
    frames = read(clip("vfr.mkv", pts=pts, time_base=Fraction(1, 1000)))
    assert [f.pts for f in frames] == pts
    assert frames[-1].time_s == 5.0


def test_stride_range_and_max_frames(clip: Clip) -> None:
    path = clip("r.mp4", num_frames=50)
    ticks = 512  # per frame: an MP4 of 25 fps has 12800 ticks a second
    assert [f.pts // ticks for f in read(path, vid_stride=20)] == [0, 20, 40]
    assert [f.index for f in read(path, vid_stride=20)] == [0, 20, 40]
    assert [f.pts // ticks for f in read(path, start_s=0.6, end_s=0.8)] == [15, 16, 17, 18, 19]
    assert [f.pts // ticks for f in read(path, max_frames=2)] == [0, 1]
    assert [f.pts // ticks for f in read(path, start_s=1.8, vid_stride=2, max_frames=9)] == [45, 47, 49]
    assert read(path, start_s=99.0) == []


def test_start_without_an_index_misses_nothing(clip: Clip) -> None:
    frames = read(clip("r.ts", num_frames=50), start_s=1.0)
    assert np.allclose([f.image_bgr.mean() for f in frames], [30 + 5 * i % 200 for i in range(25, 50)], atol=5)


@pytest.mark.parametrize(("name", "codec"), [("r.mp4", "mpeg4"), ("r.mkv", "mpeg4"), ("r.mp4", "libx264")])
def test_every_start_with_b_frames_misses_nothing(clip: Clip, name: str, codec: str) -> None:
    """An MP4 is sought in by decoding times, and a keyframe is decoded before it is shown."""
    path = clip(name, num_frames=25, codec=codec, b_frames=2, options={"x264-params": "open-gop=1:scenecut=0"})
    whole = [f.pts for f in read(path)]
    assert len(whole) == 25
    for index in range(25):
        with VideoSource(path, start_s=index / 25, max_frames=3) as source:
            assert [f.pts for f in source] == whole[index : index + 3]
            assert (source.corrupt_packets, source.repaired_pts) == (0, 0)


def test_a_start_that_no_keyframe_lies_before_is_decoded_to(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    path = clip("r.mp4", num_frames=25)
    whole = [f.pts for f in read(path)]
    sought = Decoder._seek
    monkeypatch.setattr(Decoder, "_seek", lambda decoder, _: sought(decoder, whole[20]))
    assert [f.pts for f in read(path, start_s=0.6)] == whole[15:]


def test_size_change_in_midstream(tmp_path: Path, clip: Clip) -> None:
    parts = [clip("a.ts", num_frames=5), clip("b.ts", num_frames=4, size_wh=(32, 32))]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(p.read_bytes() for p in parts))
    with VideoSource(joined) as source:
        frames = list(source)
    assert [f.image_bgr.shape[:2] for f in frames] == [(48, 64)] * 5 + [(32, 32)] * 4
    assert source.size_changes == 1
    # The second part starts its clock again: the time goes on from the first.
    assert all(b.pts > a.pts for a, b in pairwise(frames))
    assert source.repaired_pts == 4


# Timing


@pytest.mark.parametrize(
    ("raw", "mended", "repaired"),
    [
        ([-20, 0, 7, 900], [-20, 0, 7, 900], 0),
        ([0, 10, 10, 30], [0, 10, 11, 30], 1),
        ([0, 20, 10, 30], [0, 20, 21, 30], 1),
        ([0, None, 20, None], [0, 10, 20, 30], 2),
        ([None, None, 20], [0, 10, 20], 2),
        ([500, 510, 0, 10, 30], [500, 510, 520, 530, 550], 3),
        ([0, 10, 9000, 30, 40], [0, 10, 20, 30, 40], 1),
        ([0, 10, 9000, 9010], [0, 10, 9000, 9010], 0),
    ],
)
def test_clock(raw: list[int | None], mended: list[int], repaired: int) -> None:
    clock = _Clock(step=10, restart=250)
    assert [clock.mend(pts, following) for pts, following in zip(raw, [*raw[1:], None], strict=True)] == mended
    assert clock.repaired == repaired


# Damage


def test_zeroed_bytes_keep_most_frames(clip: Clip) -> None:
    path = clip("hurt.mp4", num_frames=60)
    data = bytearray(path.read_bytes())
    begin, end = data.index(b"mdat"), data.rindex(b"moov")
    middle, length = (begin + end) // 2, (end - begin) // 10
    data[middle : middle + length] = bytes(length)
    path.write_bytes(data)
    with VideoSource(path) as source:
        frames = list(source)
    assert len(frames) >= 48  # 80 %
    assert source.corrupt_packets > 0
    assert len(frames) + source.corrupt_packets == source.num_frames_hint == 60
    assert frames[-1].pts == 59 * 512


@pytest.mark.parametrize("bad", [[1], [10, 11, 12], [17, 18], [18], [19]])
def test_only_the_damaged_packets_are_lost(clip: Clip, bad: list[int]) -> None:
    """The last ones too, which PyAV drops behind an error with its decoder threads at work."""
    path = clip("hurt.mp4", num_frames=20)
    blank_packets(path, bad)
    with VideoSource(path) as source:
        frames = list(source)
    assert sorted({*range(20)} - {f.pts // 512 for f in frames}) == bad
    assert source.corrupt_packets == len(bad)


def test_damaged_first_packet(clip: Clip) -> None:
    path = clip("hurt.mp4", num_frames=20, codec="mpeg4", options={"g": "1"})
    blank_packets(path, [0])
    assert [f.pts // 512 for f in read(path)] == list(range(1, 20))


def test_concealed_frames_are_marked(clip: Clip) -> None:
    path = clip("flip.mp4", num_frames=30)
    data = bytearray(path.read_bytes())
    position, size = packets_of(path)[12]
    for i in range(position + size // 2, position + size // 2 + 12):
        data[i] ^= 0xFF
    path.write_bytes(data)
    with VideoSource(path) as source:
        marked = sum(f.is_corrupt for f in source)
    assert marked + source.corrupt_packets >= 1
    assert source.corrupt_frames == marked


def test_truncated_faststart_yields_all_that_is_there(clip: Clip) -> None:
    path = clip("short.mp4", num_frames=40, movflags="faststart")
    position, size = packets_of(path)[24]
    path.write_bytes(path.read_bytes()[: position + size])
    with VideoSource(path) as source:
        assert len(list(source)) == 25
        assert source.num_frames_hint == 40


# Life cycle


def test_dropped_early_leaks_nothing(clip: Clip) -> None:
    path = clip("leak.mp4")
    read(path, max_frames=1)
    before = open_files()
    for _ in range(5):
        with VideoSource(path) as source:
            frames = iter(source)
            next(frames)
    assert open_files() == before
    assert list(frames) == []  # held beyond its source: ends, and does not touch the closed file


def test_a_frame_can_be_pickled_and_copied(clip: Clip) -> None:
    with VideoSource(clip("a.mp4", num_frames=1)) as source:
        (frame,) = source
    assert frame.picture is not None
    for again in (pickle.loads(pickle.dumps(frame)), copy.deepcopy(frame)):
        np.testing.assert_array_equal(again.image_bgr, frame.image_bgr)
        assert (again.index, again.pts, again.time_base, again.picture) == (0, frame.pts, frame.time_base, None)
    assert frame.picture is not None


def test_refusal_leaks_nothing(clip: Clip) -> None:
    path = clip("void.mp4", num_frames=12)
    blank_packets(path, list(range(12)))
    before = open_files()
    refusal(path)
    assert open_files() == before


def test_reads_once(clip: Clip) -> None:
    with VideoSource(clip("once.mp4", num_frames=3)) as source:
        assert len(list(source)) == 3
        with pytest.raises(UsageError, match="read once"):
            iter(source)
    source.close()


@pytest.mark.skipif(not REAL_CLIP.exists(), reason="the real driving clip is not here")
def test_real_clip() -> None:
    with VideoSource(REAL_CLIP) as source:
        assert (source.size_wh, source.average_rate, source.num_frames_hint) == ((960, 540), Fraction(25), 221)
        times = [f.time_s for f in source]
    assert len(times) == 221
    assert np.allclose(np.diff(times), 0.04)
    assert (source.corrupt_packets, source.corrupt_frames, source.repaired_pts) == (0, 0, 0)
