"""A server to fetch from."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.file_server import FileServer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """Running, without a file yet."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with FileServer() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.ends.set()
        running.shutdown()
        thread.join()
