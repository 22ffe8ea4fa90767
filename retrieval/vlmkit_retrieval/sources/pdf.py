"""PDF files to pages: the picture of each, and its text."""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from vlmkit_retrieval.errors import FileError, FileLostError
from vlmkit_retrieval.images import MAX_PIXELS, ImageSizeError, read_file, sha256
from vlmkit_retrieval.scan import ScannedFile
from vlmkit_retrieval.sources.images import read_again
from vlmkit_retrieval.sources.items import Item, Refuse, Rules
from vlmkit_retrieval.sources.pdf_process import Document, PdfCrash, PdfProcess

SUFFIXES = (".pdf",)
MAX_PAGES = 10_000
MAX_TEXT = 200_000
CRASHES = 3  # then the rest of a file is left out: each may take a minute
POINTS = 72  # an inch has so many


class PdfSource:
    """Pages of a file, numbered from 1, drawn when somebody asks for the picture."""

    def __init__(self, rules: Rules, refuse: Refuse) -> None:
        self._dpi, self._refuse = rules.dpi, refuse
        self._process = PdfProcess()

    @property
    def rule(self) -> str:
        """How a page is drawn."""
        return f"page dpi {self._dpi} v1"

    def read(self, file: ScannedFile) -> Iterator[Item]:
        """The pages of a file; those that cannot be used are told to `refuse`, in one line a file.

        Raises:
            FileError: It is no PDF, is damaged or cut off, has no pages or too many, or needs a password; or
                it is lost while its pages are read.
        """
        opened = self._open(Path(file.id))
        bad: list[str] = []
        crashes = 0
        for number in range(opened.pages):
            try:
                item = self._item(file.id, opened, number)
            except FileLostError:
                raise
            except FileError as error:
                bad.append(f"page {number + 1}: {error}")
                crashes += isinstance(error, PdfCrash)
            else:
                yield item
            if crashes == CRASHES:
                bad[0] += f" (given up at page {number + 1} of {opened.pages})"
                break
        if bad:
            self._refuse(file.id, bad[0] + (f" (and {len(bad) - 1} pages more)" if len(bad) > 1 else ""))

    def check(self, files: Sequence[ScannedFile]) -> Collection[str]:
        """Nothing is shared."""
        return ()

    def close(self) -> None:
        """End PDFium's process."""
        self._process.close()

    def _open(self, path: Path) -> _Opened:
        data = read_file(path)
        _check_ends(data)
        sha = sha256(data)
        # Not the bytes themselves: they would be held while somebody works with the items.
        document = Document(sha, lambda: read_again(path, sha))
        found = self._process.open(document)
        if not 0 < found["pages"] <= MAX_PAGES:
            raise FileError(f"it has {found['pages']:,} pages (possible: 1 to {MAX_PAGES:,})")
        return _Opened(document, found["pages"], _titles(found["outline"]))

    def _item(self, path: str, opened: _Opened, number: int) -> Item:
        """A page: its text, and the size of its picture, which is known before it is drawn."""
        page = self._process.page(opened.document, number)
        width, height = _pixels(page["width"], page["height"], self._dpi)
        payload = {
            "path": path,
            "kind": "page",
            "rule": self.rule,
            "page": number + 1,
            "pages": opened.pages,
            "outline": opened.titles.get(number, []),
            "title": _section(opened.titles, number),
            "width": width,
            "height": height,
        }
        content = hashlib.sha256(f"{opened.document.sha} page {number + 1} dpi {self._dpi}".encode())
        text = _plain(page["text"]) or None
        draw = partial(self._draw, opened.document, number)
        return Item(f"{path}#page={number + 1}", "page", content.hexdigest(), text, payload, draw)

    def _draw(self, document: Document, number: int) -> Image.Image:
        size, rows = self._process.draw(document, number, self._dpi / POINTS)
        return Image.frombytes("RGB", (size["width"], size["height"]), rows, "raw", "RGB", size["stride"], 1)


@dataclass(frozen=True)
class _Opened:
    """What is known of a file before its pages; `titles` of the outline by page, from 0 on and in order."""

    document: Document
    pages: int
    titles: Mapping[int, list[str]]


def _check_ends(data: bytes) -> None:
    """Refuse what is cut off: PDFium rebuilds it from what is left, and says nothing of the lost pages."""
    if not data:
        raise FileError("the file is empty")
    if b"%PDF-" not in data[:1024]:
        raise FileError(f"no PDF (it begins with {data[:8]!r})")
    if b"%%EOF" not in data.rstrip(b"\0\t\n\r ")[-1024:]:
        raise FileError("it is cut off: its end (%%EOF) is missing")


def _pixels(width: float, height: float, dpi: int) -> tuple[int, int]:
    """Size of the picture of a page, as PDFium will draw it."""
    if not (math.isfinite(width) and math.isfinite(height) and width > 0 and height > 0):
        raise FileError(f"its size is {width} x {height} points")
    scale = dpi / POINTS
    pixels = math.ceil(width * scale), math.ceil(height * scale)  # in this order: 1650.0000000000002 is 1651
    if pixels[0] * pixels[1] > MAX_PIXELS:
        raise ImageSizeError(*pixels)
    return pixels


def _plain(text: str) -> str:
    r"""Line ends as `\n`; without what is no character: NUL, U+FFFE and U+FFFF, halves of surrogate pairs."""
    if len(text) > MAX_TEXT:
        raise FileError(f"{len(text):,} characters of text, more than {MAX_TEXT:,}")
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(c for c in lines if c not in "\0\ufffe\uffff" and not "\ud800" <= c <= "\udfff").strip()


def _titles(outline: Sequence[tuple[str, int, int]]) -> dict[int, list[str]]:
    """Titles of the outline by page from 0 on, those of a page in the outline's order."""
    found: dict[int, list[str]] = defaultdict(list)
    for title, _, page in sorted(outline, key=lambda entry: entry[2]):
        plain = " ".join(_plain(title).split())
        if plain:
            found[page].append(plain)
    return dict(found)


def _section(titles: Mapping[int, list[str]], number: int) -> str | None:
    """The first title that leads to a page, else the last one before it."""
    if number in titles:
        return titles[number][0]
    pages = list(titles)
    before = bisect_left(pages, number)
    return titles[pages[before - 1]][-1] if before else None
