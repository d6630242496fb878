"""Addresses of live sources: what FFmpeg opens, what may be shown of it, and what a run of it is called.

An address can hold a password or a token. Only ``LiveAddress.url`` has it; all that is shown or written is ``place``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cdga_sdk.errors import InputError, UsageError

__all__ = ["SCHEMES", "LiveAddress", "live_address", "place_of"]

SCHEMES: Final = ("rtsp", "rtsps", "rtmp", "rtmps", "http", "https", "udp", "tcp", "srt")
HIDDEN: Final = "***"

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_PATH_OF_ADDRESS = re.compile(rf"({'|'.join(SCHEMES)}):/[^/]", re.IGNORECASE)  # pathlib folds two slashes to one
_CAMERA = re.compile(r"/dev/video\d+|/dev/v4l/.+")
_CAMERA_NUMBER = re.compile(r"camera:(\d+)")
_LONGEST_NAME = 80


@dataclass(frozen=True, kw_only=True)
class LiveAddress:
    """A stream or a camera.

    Attributes:
        url: What FFmpeg opens, secrets included; not for anybody's eyes.
        place: The address as it may be shown: credentials and query are ``***``.
        name: What a run of it is called: host and path, as a plain file name.
        is_camera: A device of this machine, read through Video4Linux.
    """

    url: str = field(repr=False)
    place: str
    name: str
    is_camera: bool = False


def live_address(source: str | Path) -> LiveAddress | None:
    """The live source that ``source`` names; None where it is a file, a folder or a pattern of names.

    Addresses: ``rtsp://``, ``rtsps://``, ``rtmp://``, ``rtmps://``, ``http://``, ``https://``, ``udp://``, ``tcp://``,
    ``srt://``. Cameras: ``/dev/videoN``, ``/dev/v4l/...``, ``camera:N``.

    Raises:
        InputError: An address of another kind.
        UsageError: An address given as a Path, which has changed it.
    """
    text = str(source)
    if isinstance(source, Path) and _PATH_OF_ADDRESS.match(text):
        raise UsageError("an address was given as a Path", where=place_of(text), fix="give it as text")
    if number := _CAMERA_NUMBER.fullmatch(text):
        text = f"/dev/video{number[1]}"
    if _CAMERA.fullmatch(text):
        return LiveAddress(url=text, place=text, name=Path(text).name, is_camera=True)
    found = _ADDRESS.fullmatch(text)
    if found is None or Path(text).exists():
        return None
    if found[1].lower() not in SCHEMES:
        raise InputError("addresses of this kind are not read", where=place_of(text), fix=f"use {', '.join(SCHEMES)}")
    scheme = found[1].lower()
    return LiveAddress(url=f"{scheme}://{found[2]}", place=place_of(text), name=_name(place_of(text), scheme))


def place_of(source: object) -> str:
    """``source`` as text that may be shown: credentials, query strings and ``key=value`` parts of a path are ``***``.

    A password with a bare ``/``, ``?`` or ``#`` in it cannot be told from a path: then everything is hidden.
    """
    text = str(source)
    if _PATH_OF_ADDRESS.match(text):
        text = text.replace(":/", "://", 1)
    found = _ADDRESS.fullmatch(text)
    if found is None:
        return text
    start = f"{found[1].lower()}://"
    secret, at, rest = found[2].rpartition("@")
    if set("/?#") & set(secret):
        return start + HIDDEN
    path, mark, _ = rest.partition(next((c for c in rest if c in "?#"), "?"))
    shown = "/".join(HIDDEN if "=" in part else part for part in path.split("/"))
    return start + (HIDDEN + at if secret else at) + shown + (mark and mark + HIDDEN)


def _name(place: str, scheme: str) -> str:
    rest = place.partition("://")[2].rpartition("@")[2].partition("?")[0].partition("#")[0]
    return re.sub(r"[^A-Za-z0-9._-]+", "_", rest).strip("._-")[:_LONGEST_NAME] or scheme
