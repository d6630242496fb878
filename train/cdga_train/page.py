"""Pieces of one HTML page that needs nothing but itself: no script, and no style, font or image from elsewhere.

`Html` marks text that is already HTML; everything else is escaped where it enters, so that no name of a file or class
can become a tag.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from typing import Final, Literal

from cdga_sdk.errors import one_line
from cdga_sdk.opencv import cv2
from cdga_sdk.preprocess import UInt8Array

__all__ = [
    "Html",
    "bullets",
    "figure",
    "joined",
    "missing",
    "page",
    "paragraph",
    "picture",
    "subheading",
    "table",
    "text",
]

_JPEG_QUALITY: Final = 82

_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 72rem; color: #222 }
h1 { font-size: 1.5rem; overflow-wrap: anywhere } h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem }
h3 { font-size: 1em; margin: 1.2rem 0 .4rem } h2, h3, caption, thead { break-after: avoid }
nav a { margin-right: 1rem }
table { border-collapse: collapse; margin: .3rem 0 1rem; font-size: .87em }
caption { text-align: left; font-weight: 600; padding: .3rem 0 }
th, td { padding: .2rem .6rem; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top }
th:first-child, td:first-child { text-align: left }
table.facts th, table.facts td { text-align: left; overflow-wrap: anywhere }
table.words th, table.words td { text-align: left }
table.facts th { font-weight: 600; white-space: nowrap }
table.matrix { font-size: .7em } table.matrix th, table.matrix td { padding: .15rem .3rem; min-width: 1.3rem }
table.matrix thead th { vertical-align: bottom } table.matrix thead span { writing-mode: vertical-rl }
table.matrix caption { font-size: 1.25em }
tr { break-inside: avoid } tr.chosen td { background: #eaf3ff }
.wide { overflow-x: auto }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(16rem, 1fr)); gap: 1rem }
.row { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .4rem; margin-bottom: .3rem }
figure { margin: 0; break-inside: avoid } figcaption { font-size: .78em; color: #555; overflow-wrap: anywhere }
img, svg { width: 100%; height: auto; display: block }
pre { background: #f4f4f4; padding: .7rem; white-space: pre-wrap; overflow-wrap: anywhere }
ul.legend { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .1rem .9rem; font-size: .85em }
.swatch { display: inline-block; width: .9em; height: .9em; margin-right: .35em; vertical-align: -.1em }
p.missing { background: #fff4e0; padding: .5rem .7rem } p.note { color: #555; font-size: .87em }
svg text { font: 9px system-ui, sans-serif; fill: #555 }
* { print-color-adjust: exact; -webkit-print-color-adjust: exact }
@media print { body { max-width: none; padding: 0; font-size: 11px } nav { display: none } .wide { overflow: visible }
 .charts { grid-template-columns: repeat(3, 1fr) } .row { grid-template-columns: repeat(5, 1fr) } }
"""


class Html(str):
    """Text that is HTML already. Made from other text by `text` alone, or by hand from parts that are all `Html`."""

    __slots__ = ()


def text(value: object) -> Html:
    """``value`` as text between tags or in a quoted attribute: escaped, and folded to one printable line."""
    return value if isinstance(value, Html) else Html(escape(one_line(value)))


def joined(parts: Iterable[Html]) -> Html:
    """Parts one after another, a line each."""
    return Html("\n".join(parts))


def paragraph(value: object, kind: Literal["note", ""] = "") -> Html:
    """A paragraph; ``note`` is set smaller."""
    return Html(f'<p class="{kind}">{text(value)}</p>')


def missing(what: object, why: object) -> Html:
    """Says that a part of the page could not be made."""
    return Html(f'<p class="missing">{text(what)} missing: {text(why)}</p>')


def bullets(values: Iterable[object]) -> Html:
    """A list."""
    return Html("<ul>" + "".join(f"<li>{text(value)}</li>" for value in values) + "</ul>")


def subheading(value: object) -> Html:
    """A heading below a section's own."""
    return Html(f"<h3>{text(value)}</h3>")


def table(
    header: Sequence[object],
    rows: Iterable[Sequence[object]],
    *,
    caption: object = "",
    kind: Literal["facts", "matrix", "words", ""] = "",
    chosen_row: int | None = None,
) -> Html:
    """A table that scrolls by itself where the screen is narrow.

    Args:
        header: Names of the columns; none for a table of facts.
        rows: Cells.
        caption: What it shows.
        kind: Its look: ``facts`` and ``matrix`` begin each row with a heading, ``words`` has no numbers to align.
        chosen_row: A row to mark.
    """
    body = []
    for number, row in enumerate(rows):
        mark = ' class="chosen"' if number == chosen_row else ""
        first = "th" if kind in {"facts", "matrix"} else "td"
        cells = [_cell(cell, first if column == 0 else "td") for column, cell in enumerate(row)]
        body.append(f"<tr{mark}>{''.join(cells)}</tr>")
    head = f"<thead><tr>{''.join(_cell(cell, 'th') for cell in header)}</tr></thead>" if header else ""
    title = f"<caption>{text(caption)}</caption>" if caption else ""
    lines = "\n".join(body)
    return Html(f'<div class="wide"><table class="{kind}">{title}{head}<tbody>\n{lines}\n</tbody></table></div>')


def picture(image_bgr: UInt8Array, alt: object, kind: Literal["photo", "map"]) -> Html:
    """An image inside the page: a JPEG for a photo, a PNG for the flat colours of a map.

    Args:
        image_bgr: (H, W, 3) uint8.
        alt: What it shows, for those who do not see it.
        kind: What it is.
    """
    name, suffix, options = {
        "photo": ("jpeg", ".jpg", [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]),
        "map": ("png", ".png", [cv2.IMWRITE_PNG_COMPRESSION, 9]),
    }[kind]
    done, data = cv2.imencode(suffix, image_bgr, options)
    assert done, image_bgr.shape
    coded = base64.b64encode(data.tobytes()).decode("ascii")
    height, width = image_bgr.shape[:2]
    return Html(f'<img alt="{text(alt)}" width="{width}" height="{height}" src="data:image/{name};base64,{coded}">')


def figure(content: Html, caption: object) -> Html:
    """A picture or chart and what it is."""
    return Html(f"<figure>{content}<figcaption>{text(caption)}</figcaption></figure>")


def page(title: object, sections: Sequence[tuple[str, str, Html]]) -> str:
    """The whole page.

    Args:
        title: Its heading.
        sections: Anchor, heading and content of each.
    """
    links = " ".join(f'<a href="#{text(anchor)}">{text(name)}</a>' for anchor, name, _ in sections)
    parts = (
        f'<section id="{text(anchor)}"><h2>{text(name)}</h2>\n{part}\n</section>' for anchor, name, part in sections
    )
    body = "\n".join(parts)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{text(title)}</title><style>{_STYLE}</style></head><body>
<h1>{text(title)}</h1>
<nav>{links}</nav>
{body}
</body></html>
"""


def _cell(value: object, tag: str) -> str:
    return f"<{tag}>{text(value)}</{tag}>"
