"""A file from an address: whole and as expected, or an error in time."""

from __future__ import annotations

import hashlib
import socket
import time

import numpy as np
import pytest

from cdga_sdk.errors import InputError, IntegrityError
from cdga_sdk.models.download import downloaded
from tests.file_server import FileServer

DATA = np.random.default_rng(0).bytes(200_000)
SHA256 = hashlib.sha256(DATA).hexdigest()


def fetched(url: str, *, stall_s: float = 5.0, total_s: float = 10.0) -> bytes:
    return downloaded(url, num_bytes=len(DATA), sha256=SHA256, fix="bring it", stall_s=stall_s, total_s=total_s)


@pytest.mark.parametrize("manners", ["whole", "moved"])
def test_the_file(server: FileServer, manners: str) -> None:
    server.data = DATA
    assert fetched(server.url(manners)) == DATA


@pytest.mark.parametrize(("manners", "size"), [("short", "100000"), ("other", "200000"), ("more", "more")])
def test_another_file_is_refused(server: FileServer, manners: str, size: str) -> None:
    server.data = DATA
    message = f"not the file that was expected: {size} bytes of sha256 .*, wanted 200000 of {SHA256}; bring it"
    with pytest.raises(IntegrityError, match=message):
        fetched(server.url(manners))


@pytest.mark.parametrize("manners", ["cut", "cut-chunks", "cut-without-length"])
def test_a_cut_connection(server: FileServer, manners: str) -> None:
    server.data = DATA
    with pytest.raises(InputError, match="the connection ended after 100000 of 200000 bytes; try again, or bring it"):
        fetched(server.url(manners))


def test_an_endless_file_is_not_read_to_its_end(server: FileServer) -> None:
    server.data = DATA * 50
    with pytest.raises(IntegrityError, match="more bytes"):
        fetched(server.url("whole"))


def test_no_such_file(server: FileServer) -> None:
    with pytest.raises(InputError, match=r"file\.pt: the server answers 404 \(Not Found\); bring it"):
        fetched(server.url("nothing"))


def test_no_http(server: FileServer) -> None:
    with pytest.raises(InputError, match=r"cannot be fetched \(.*not HTTP"):
        fetched(server.url("noise"))


@pytest.mark.parametrize(
    ("manners", "stall_s", "total_s", "told"),
    [
        ("silent", 0.2, 10, r"nothing came for 0\.2 s"),
        ("stalls", 0.2, 10, r"nothing came for 0\.2 s"),
        ("silent", 10, 0.2, r"not all of it came within 0\.2 s"),
        ("drip", 10, 0.3, r"not all of it came within 0\.3 s"),
        ("drip-head", 10, 0.3, r"not all of it came within 0\.3 s"),
    ],
)
def test_every_wait_ends(server: FileServer, manners: str, stall_s: float, total_s: float, told: str) -> None:
    server.data = DATA
    started = time.monotonic()
    with pytest.raises(InputError, match=f"{told}; try again, or bring it"):
        fetched(server.url(manners), stall_s=stall_s, total_s=total_s)
    assert time.monotonic() - started < 5


def test_nobody_is_there() -> None:
    with socket.socket() as taken:  # bound and not listening: nobody else gets the port
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(InputError, match=r"cannot be fetched \(.*refused.*\); bring it"):
            fetched(f"http://127.0.0.1:{taken.getsockname()[1]}/file.pt")
