"""A file of known content from an address: whole and as expected, or an error."""

from __future__ import annotations

import hashlib
import queue
import threading
import time
import urllib.error
import urllib.request
from http.client import HTTPException, IncompleteRead
from typing import Final

from cdga_sdk import __version__
from cdga_sdk.errors import CdgaError, InputError, IntegrityError

__all__ = ["downloaded", "refuse_other_bytes"]

_STALL_S: Final = 30.0
_TOTAL_S: Final = 600.0
_PIECE: Final = 1 << 16


def downloaded(
    url: str, *, num_bytes: int, sha256: str, fix: str, stall_s: float = _STALL_S, total_s: float = _TOTAL_S
) -> bytes:
    """The file at ``url``, held in memory; proxies are taken from the environment.

    Args:
        url: ``https://...``; redirects are followed, for only the content counts.
        num_bytes: Its size.
        sha256: Its hash, hexadecimal.
        fix: What the user can do without the network.
        stall_s: Seconds without a byte after which it is given up.
        total_s: Seconds for all of it.

    Raises:
        InputError: No connection or one that ends early, another answer than the file, or not in time.
        IntegrityError: Other bytes than expected.
    """
    answers: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()

    def read() -> None:
        try:
            answers.put(_read(url, num_bytes, stall_s, time.monotonic() + total_s))
        except Exception as error:  # noqa: BLE001 - raised again where somebody waits for it
            answers.put(error)

    # In a thread, for neither looking up a host nor reading an answer's head ends at a time of ours.
    threading.Thread(target=read, name="cdga-download", daemon=True).start()
    try:
        answer = answers.get(timeout=total_s)
    except queue.Empty:
        answer = _LateError()
    if isinstance(answer, bytes):
        refuse_other_bytes(answer, num_bytes=num_bytes, sha256=sha256, where=url, fix=fix)
        return answer
    if isinstance(answer, (OSError, HTTPException)):
        raise _told(answer, url, stall_s, total_s, fix) from answer
    raise answer


def refuse_other_bytes(data: bytes, *, num_bytes: int, sha256: str, where: object, fix: str) -> None:
    """Hold bytes against the size and the hash that they must have.

    Raises:
        IntegrityError: They differ.
    """
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        size = "more" if len(data) > num_bytes else str(len(data))
        raise IntegrityError(
            f"not the file that was expected: {size} bytes of sha256 {found}, wanted {num_bytes} of {sha256}",
            where=where,
            fix=fix,
        )


class _LateError(OSError):
    """The time for all of it is over."""


class _CutError(OSError):
    """The connection ended before the file did."""


def _read(url: str, num_bytes: int, stall_s: float, deadline_s: float) -> bytes:
    """The answer; of a longer one than was expected, one byte more than that."""
    request = urllib.request.Request(url, headers={"User-Agent": f"cdga-sdk/{__version__}"})  # noqa: S310 - of the catalogue
    data = bytearray()
    with urllib.request.urlopen(request, timeout=stall_s) as response:  # noqa: S310 - of the catalogue
        try:
            while len(data) <= num_bytes and (piece := response.read1(min(_PIECE, num_bytes + 1 - len(data)))):
                data += piece
                if time.monotonic() > deadline_s:
                    raise _LateError
            is_whole = len(data) >= num_bytes or response.length == 0 or response.chunked
        except (IncompleteRead, ConnectionError):
            is_whole = False
    if not is_whole:
        raise _CutError(f"the connection ended after {len(data)} of {num_bytes} bytes")
    return bytes(data)


def _told(error: OSError | HTTPException, url: str, stall_s: float, total_s: float, fix: str) -> CdgaError:
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        return InputError(f"the server answers {error.code} ({error.reason})", where=url, fix=fix)
    again = f"try again, or {fix}"
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, _CutError):
        return InputError(reason, where=url, fix=again)
    if isinstance(reason, _LateError):
        return InputError(f"not all of it came within {total_s:g} s", where=url, fix=again)
    if isinstance(reason, TimeoutError):
        return InputError(f"nothing came for {stall_s:g} s", where=url, fix=again)
    return InputError(f"cannot be fetched ({reason or type(reason).__name__})", where=url, fix=fix)
