"""The page of hits: whatever names and captions hold, it shows them as text and loads nothing."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from vlmkit_retrieval.errors import RetrievalError
from vlmkit_retrieval.images import sha256
from vlmkit_retrieval.search.hits import Duplicate, Explanation, SearchHit, Share
from vlmkit_retrieval.search.page import ShownQuery, gallery
from vlmkit_retrieval.search.page_style import STYLE
from vlmkit_retrieval.search.pictures import EDGE, EXACT, file_picture, thumbnail

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><svg/onload=alert(1)>",
    "</style></title></details><iframe src=//evil.example>",
    "&lt;b&gt; &amp; javascript:alert(1)",
    "\udcff\x00\x1b[31m\u202egpj.exe",
]
TAGS = {
    *("html", "head", "meta", "title", "style", "body", "header", "main", "article", "div", "p", "h1", "img"),
    *("b", "i", "span", "bdi", "small", "table", "tr", "th", "td", "details", "summary", "ul", "li"),
}
LOADING = {"href", "src", "srcset", "action", "data", "poster", "background", "formaction"}


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.texts, self.open = [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def hit(id="a", score=0.03, payload=None, shares=None, duplicates=(), nearest=None):
    shares = shares or (
        Share("clip:text", 1.0, 2, 0.31, score / 2),
        Share("bm25:text", 1.5, 3.4, None, score / 2, imputed=True),
    )
    return SearchHit(id, score, payload or {}, Explanation(shares, len(shares) > 1, nearest), duplicates)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_strings_are_text(text):
    copies = (Duplicate(text, 0.1, {"path": text}, 0.98), Duplicate(text, 0.1, {}))
    payload = {"path": f"/{text}/{text}", "caption": text * 30, "kind": text}
    shares = (Share(text, 1.0, 1, 0.3, 0.1), Share("b", 1.0, None, None, 0.0))
    page = gallery(ShownQuery(text, None, text), [hit(text, 0.1, payload, shares, copies)])
    parsed = Page(page)
    assert set(parsed.tags) <= TAGS
    assert not parsed.open
    assert {name for name, _ in parsed.attributes}.isdisjoint({"onerror", "onload", *LOADING})
    shown = "".join(parsed.texts)
    assert "".join(c if c.isprintable() else "\ufffd" for c in text.replace("\udcff", "?")) in shown
    page.encode("utf-8")


def test_it_loads_nothing(tmp_path):
    Image.new("RGB", (300, 200), "teal").save(tmp_path / "a.png")
    payload = {"path": str(tmp_path / "a.png")}
    page = gallery(ShownQuery("red", Image.new("RGB", (50, 50))), [hit(payload=payload)])
    loaded = [value for name, value in Page(page).attributes if name in LOADING]
    assert len(loaded) == 2
    assert all(value.startswith("data:image/") for value in loaded)
    assert "default-src 'none'; img-src data:" in page
    assert not re.search(r"url\(|@import|https?:", STYLE)
    assert not re.search(r"https?:|<script|<link", page)


def test_bars_are_shares_of_the_best_score():
    page = gallery(ShownQuery("red"), [hit("a", 0.04), hit("b", 0.02)])
    widths = [float(width) for width in re.findall(r"width:([\d.]+)%;--c", page)]
    assert widths == [50, 50, 25, 25]
    assert page.count("class=imputed") == 2
    assert "≈ 3" in page and "×1.5" in page and "concluded" in page


def test_one_list_shows_its_own_score():
    shares = (Share("clip:image", 1.0, 7, -0.2, -0.2),)
    page = gallery(ShownQuery(None, Image.new("RGB", (8, 8))), [hit("a", -0.2, shares=shares, nearest=0.913)])
    assert "clip:image, rank 7" in page and "-0.2000" in page and "cosine 0.913" in page
    assert "width:0.00%" in page
    assert "<table" not in page and "concluded" not in page


def test_nothing_found_says_so():
    assert "Nothing was found" in gallery(ShownQuery("zebra"), [])


def test_long_texts_are_folded_whole():
    text = "the end of a long text " * 30
    page = Page(gallery(ShownQuery("red"), [hit(payload={"text": text})]))
    assert "details" in page.tags
    assert text in page.texts
    assert "details" not in Page(gallery(ShownQuery("red"), [hit(payload={"text": "short"})])).tags


@pytest.mark.parametrize(
    ("size", "kind"), [((EXACT, 20), "png"), ((EXACT + 1, 20), "jpeg"), ((3000, 900), "jpeg")]
)
def test_thumbnails(size, kind):
    made = thumbnail(Image.new("RGB", size, (10, 200, 30)))
    head, _, content = made.uri.partition(",")
    assert head == f"data:image/{kind};base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        assert image.size == (made.width, made.height)
        assert max(image.size) == min(EDGE, max(size))
    assert made.small == (kind == "png")


def test_a_file_that_is_gone_or_another_is_named_not_shown(tmp_path):
    path = tmp_path / "a.png"
    page = gallery(ShownQuery("red"), [hit(payload={"path": str(path)})])
    assert "No such file" in page and "<img" not in page
    Image.new("RGB", (8, 8), "red").save(path)
    right = {"path": str(path), "sha256": sha256(path.read_bytes())}
    assert "<img" in gallery(ShownQuery("red"), [hit(payload=right)])
    page = gallery(ShownQuery("red"), [hit(payload={**right, "sha256": "0" * 64})])
    assert "has changed since it was indexed" in page and "<img" not in page


def test_texts_and_pages_have_no_file_to_open():
    for kind in ("text", "page"):
        assert file_picture(hit(payload={"path": "/nowhere.pdf", "kind": kind})) is None
    page = gallery(
        ShownQuery("red"), [hit(payload={"path": "/b.pdf", "kind": "page", "page": 3, "text": "said"})]
    )
    assert "b.pdf</bdi> · page 3" in page and "said" in page


def test_pictures_may_come_from_elsewhere():
    def drawn(found):
        if found.id == "bad":
            raise RetrievalError("page 9 cannot be drawn")
        return Image.new("RGB", (20, 20), "red")

    page = gallery(ShownQuery("red"), [hit("good"), hit("bad")], drawn)
    assert page.count("<img") == 1
    assert "page 9 cannot be drawn" in page
