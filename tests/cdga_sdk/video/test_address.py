"""Addresses: which texts are live sources, what is shown of them, and that no secret is."""

from __future__ import annotations

from pathlib import Path

import pytest

from cdga_sdk.errors import InputError, UsageError
from cdga_sdk.video.address import LiveAddress, live_address, place_of

SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("text", "place", "name"),
    [
        ("rtsp://cam.local/front", "rtsp://cam.local/front", "cam.local_front"),
        ("RTSP://cam:554/front/", "rtsp://cam:554/front/", "cam_554_front"),
        (f"rtsp://user:{SECRET}@cam/front", "rtsp://***@cam/front", "cam_front"),
        (f"rtsps://{SECRET}@cam/front", "rtsps://***@cam/front", "cam_front"),
        (f"rtsp://user:a@{SECRET}@cam/front", "rtsp://***@cam/front", "cam_front"),
        (f"http://cam/live.ts?token={SECRET}", "http://cam/live.ts?***", "cam_live.ts"),
        (f"https://u:{SECRET}@cam?a={SECRET}&b=1#c", "https://***@cam?***", "cam"),
        (f"http://cam/x#{SECRET}?y", "http://cam/x#***", "cam_x"),
        (f"rtsp://cam/user=admin&password={SECRET}/0.sdp", "rtsp://cam/***/0.sdp", "cam_0.sdp"),
        ("udp://@239.0.0.1:1234", "udp://@239.0.0.1:1234", "239.0.0.1_1234"),
        (f"srt://cam:9000?passphrase={SECRET}", "srt://cam:9000?***", "cam_9000"),
        ("tcp://[::1]:80", "tcp://[::1]:80", "1_80"),
        ("http://cam/../../etc/x", "http://cam/../../etc/x", "cam_.._.._etc_x"),
        ("http://" + "a" * 300, "http://" + "a" * 300, "a" * 80),
        ("rtmp://", "rtmp://", "rtmp"),
    ],
)
def test_streams(text: str, place: str, name: str) -> None:
    address = live_address(text)
    assert address is not None
    assert (address.place, address.name, address.is_camera) == (place, name, False)
    assert address.url.partition("://")[2] == text.partition("://")[2]
    assert SECRET not in repr(address)
    assert place_of(text) == place


@pytest.mark.parametrize("mark", "/?#")
def test_a_password_that_cuts_the_address_hides_all_of_it(mark: str) -> None:
    address = live_address(f"rtsp://user:s3{mark}cr3t@cam/front")
    assert address is not None
    assert (address.place, address.name) == ("rtsp://***", "rtsp")
    assert place_of(f"http://cam/x?mail=a{mark}s3@cr3t") == "http://***"


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ("/dev/video0", "/dev/video0"),
        ("camera:12", "/dev/video12"),
        ("/dev/v4l/by-id/usb-cam", "/dev/v4l/by-id/usb-cam"),
    ],
)
def test_cameras(text: str, device: str) -> None:
    wanted = LiveAddress(url=device, place=device, name=device.rpartition("/")[2], is_camera=True)
    assert live_address(text) == live_address(Path(text)) == wanted


@pytest.mark.parametrize(
    "text", ["ride.mp4", "media", "*.mp4", "/dev/videos", "camera:", "camera:a", "rtsp:x", "a:b//c"]
)
def test_files_are_no_addresses(text: str) -> None:
    assert live_address(text) is None
    assert live_address(Path(text)) is None
    assert place_of(text) == text


def test_a_file_that_is_named_like_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("http:/cam").mkdir(parents=True)
    assert live_address("http://cam") is None


@pytest.mark.parametrize("scheme", ["ftp", "file", "concat", "pipe"])
def test_other_schemes_are_refused_without_their_secrets(scheme: str) -> None:
    with pytest.raises(InputError, match=r"not read; use rtsp, ") as caught:
        live_address(f"{scheme}://user:{SECRET}@host/x")
    assert caught.value.where == f"{scheme}://***@host/x"
    assert SECRET not in str(caught.value)


def test_an_address_as_a_path_is_told_of_without_its_secrets() -> None:
    with pytest.raises(UsageError, match="give it as text") as caught:
        live_address(Path(f"rtsp://user:{SECRET}@cam/front"))
    assert caught.value.where == "rtsp://***@cam/front"
