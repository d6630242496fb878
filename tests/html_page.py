"""A page of HTML taken apart: its text, tables and images, and whether its tags close."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from html.parser import HTMLParser

import numpy as np

from cdga_sdk.opencv import cv2
from cdga_sdk.preprocess import UInt8Array

VOID = {"img", "meta"}


@dataclass
class PageTable:
    """Cells as text, row by row, the header first."""

    caption: str = ""
    rows: list[list[str]] = field(default_factory=list)
    chosen: list[int] = field(default_factory=list)

    def column(self, name: str) -> list[str]:
        """The cells below the header ``name``."""
        at = self.rows[0].index(name)
        return [row[at] for row in self.rows[1:]]

    def by_first(self) -> dict[str, list[str]]:
        """The other cells of each row by its first."""
        return {row[0]: row[1:] for row in self.rows}


class ParsedPage(HTMLParser):
    """Parses ``html`` at once; refuses tags that do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: list[PageTable] = []
        self.images: list[dict[str, str]] = []
        self.captions: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "img":
            self.images.append({name: value or "" for name, value in attrs})
        if tag == "table":
            self.tables.append(PageTable())
        if tag == "tr":
            if ("class", "chosen") in attrs:
                self.tables[-1].chosen.append(len(self.tables[-1].rows))
            self.tables[-1].rows.append([])
        if tag in {"td", "th"}:
            self.tables[-1].rows[-1].append("")
        if tag == "figcaption":
            self.captions.append("")
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open
        assert self._open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self.text += data
        if "td" in self._open or "th" in self._open:
            self.tables[-1].rows[-1][-1] += data
        elif "caption" in self._open:
            self.tables[-1].caption += data
        elif "figcaption" in self._open:
            self.captions[-1] += data

    def table(self, caption_begins: str) -> PageTable:
        """The only table with such a caption."""
        found = [table for table in self.tables if table.caption.startswith(caption_begins)]
        assert len(found) == 1, [table.caption for table in self.tables]
        return found[0]


def decoded(image: dict[str, str]) -> UInt8Array:
    """The pixels of an image that lies in the page, BGR."""
    kind, _, data = image["src"].partition(";base64,")
    assert kind in {"data:image/png", "data:image/jpeg"}
    pixels = cv2.imdecode(np.frombuffer(base64.b64decode(data, validate=True), np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    return np.asarray(pixels, np.uint8)
