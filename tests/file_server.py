"""A server of one file, well and badly behaved."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FileServer(ThreadingHTTPServer):
    """Serves `data` by the manners that a path begins with; counts who asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.data = b""
        self.asked: list[str] = []
        self.ends = threading.Event()

    def handle_error(self, request: object, client_address: object) -> None:
        """Who has had enough hangs up."""

    def url(self, manners: str, file: str = "file.pt") -> str:
        return f"http://127.0.0.1:{self.server_port}/{manners}/{file}"


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        pass

    def do_GET(self) -> None:
        manners = self.path.split("/")[1]
        self.server.asked.append(manners)
        data = self.server.data
        match manners:
            case "whole":
                self._answer(data)
            case "moved":
                self.send_response(302)
                self.send_header("Location", self.server.url("whole"))
                self.end_headers()
            case "short":
                self._answer(data[: len(data) // 2])
            case _ if manners.startswith("cut"):
                self._answer_half(data, manners)
            case "other":
                self._answer(data[:-1] + bytes([data[-1] ^ 1]))
            case "more":
                self._answer(data + b"!")
            case "silent" | "stalls" | "drip" | "drip-head":
                self._answer_slowly(data, manners)
            case "noise":
                self.wfile.write(b"\x00\xff not HTTP\r\n\r\n")
            case _:
                self.send_error(404)

    def _answer_slowly(self, data: bytes, manners: str) -> None:
        """And not to the end."""
        match manners:
            case "stalls":
                self._answer(data[:1], len(data))
            case "drip":
                self._answer(b"", len(data))
            case "drip-head":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        while not self.server.ends.wait(0.05):
            if manners.startswith("drip"):
                self.wfile.write(b"x")

    def _answer_half(self, data: bytes, manners: str) -> None:
        """And then hang up."""
        half = data[: len(data) // 2]
        self.send_response(200)
        match manners:
            case "cut-chunks":
                self.send_header("Transfer-Encoding", "chunked")
                half = b"%x\r\n%b\r\nffff\r\n" % (len(half), half)
            case "cut":
                self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(half)

    def _answer(self, data: bytes, length: int | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        self.wfile.write(data)
