"""Nothing that comes from outside becomes a tag, and nothing on the page comes from outside."""

from __future__ import annotations

import numpy as np
import pytest

from cdga_sdk.preprocess import UInt8Array
from cdga_train.page import (
    Html,
    bullets,
    figure,
    joined,
    missing,
    page,
    paragraph,
    picture,
    subheading,
    table,
    text,
)
from tests.html_page import ParsedPage, decoded

HOSTILE = "\"'><script>alert(1)</script>&amp;\n\x1b[31m\u202e"
SHOWN = "\"'><script>alert(1)</script>&amp; [31m"
PIXELS: UInt8Array = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3


def test_text_is_escaped_once_and_on_one_line() -> None:
    assert text("a < b & \"c\" 'd'\n\te") == "a &lt; b &amp; &quot;c&quot; &#x27;d&#x27; e"
    assert text(text("<b>")) == "&lt;b&gt;"
    assert text(Html("<b>x</b>")) == "<b>x</b>"
    assert text(3) == "3"


def test_text_holds_no_lone_surrogates() -> None:
    name = b"ride\xff.png".decode("utf-8", "surrogateescape")
    assert text(name).encode() == b"ride .png"


def test_html_added_to_text_is_text_again() -> None:
    assert type(Html("<b>") + "<i>") is str
    assert text(Html("<b>") + "<i>") == "&lt;b&gt;&lt;i&gt;"


@pytest.mark.parametrize(
    "part",
    [
        paragraph(HOSTILE),
        missing(HOSTILE, HOSTILE),
        bullets([HOSTILE]),
        subheading(HOSTILE),
        figure(picture(PIXELS, HOSTILE, "map"), HOSTILE),
        table([HOSTILE], [[HOSTILE]], caption=HOSTILE),
        table((), [[HOSTILE, HOSTILE]], kind="facts"),
    ],
)
def test_hostile_text_stays_text(part: Html) -> None:
    parsed = ParsedPage(part)
    assert "script" not in parsed.tags
    assert not [name for _, name, _ in parsed.attributes if name.startswith("on")]
    assert SHOWN in parsed.text


def test_hostile_alternative_text_stays_in_its_attribute() -> None:
    (image,) = ParsedPage(picture(PIXELS, HOSTILE, "photo")).images
    assert image["alt"] == SHOWN
    assert set(image) == {"alt", "width", "height", "src"}


def test_pictures_are_what_was_given() -> None:
    (exact,) = ParsedPage(picture(PIXELS, "map", "map")).images
    assert (exact["width"], exact["height"]) == ("6", "4")
    np.testing.assert_array_equal(decoded(exact), PIXELS)
    smooth: UInt8Array = np.full((16, 16, 3), (40, 90, 200), np.uint8)
    (photo,) = ParsedPage(picture(smooth, "photo", "photo")).images
    assert photo["src"].startswith("data:image/jpeg;base64,")
    assert np.abs(decoded(photo).astype(int) - smooth).max() <= 3


def test_table_by_hand() -> None:
    made = table(["a", "b"], [["1", "<2>"], ["3", Html("<i>4</i>")]], caption="c", chosen_row=1)
    (parsed,) = ParsedPage(made).tables
    assert parsed.rows == [["a", "b"], ["1", "<2>"], ["3", "4"]]
    assert (parsed.caption, parsed.chosen) == ("c", [2])


def test_page_is_whole_and_alone() -> None:
    parsed = ParsedPage(page(HOSTILE, [("one", HOSTILE, paragraph("x")), ("two", "Two", joined([]))]))
    assert parsed.tags <= {"html", "head", "meta", "title", "style", "body", "h1", "h2", "nav", "a", "section", "p"}
    links = [value for _, name, value in parsed.attributes if name in {"src", "href"}]
    assert links == ["#one", "#two"]
    ids = [value for _, name, value in parsed.attributes if name == "id"]
    assert ids == ["one", "two"]
    policy = [value for _, name, value in parsed.attributes if name == "content" and "default-src" in value]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
