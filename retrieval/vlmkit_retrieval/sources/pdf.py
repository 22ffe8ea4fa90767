"""PDF files to pages: the picture of each, and its text."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vlmkit_retrieval.errors import FileError
from vlmkit_retrieval.images import MAX_PIXELS, ImageSizeError, read_file, sha256
from vlmkit_retrieval.scan import ScannedFile
from vlmkit_retrieval.sources.images import read_again
from vlmkit_retrieval.sources.items import Item, Refuse, Rules
from vlmkit_retrieval.sources.pdf_process import PdfCrash, PdfProcess

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
            FileError: It is no PDF, is damaged or cut off, has no pages or too many, or needs a password.
        """
        path = Path(file.id)
        data = read_file(path)
        sha = sha256(data)
        _check_ends(data)
        found = self._process.open(sha, data)
        del data  # up to 256 MiB, while somebody works with the items
        titles = _titles(found["outline"])
        bad: list[str] = []
        crashes = 0
        if not 0 < found["pages"] <= MAX_PAGES:
            raise FileError(f"it has {found['pages']:,} pages (possible: 1 to {MAX_PAGES:,})")
        for number in range(found["pages"]):
            try:
                page = self._page(path, sha, number)
            except FileError as error:
                bad.append(f"page {number + 1}: {error}")
                crashes += isinstance(error, PdfCrash)
                if crashes == CRASHES:
                    bad[0] += f" (given up at page {number + 1} of {found['pages']})"
                    break
                continue
            payload = {"path": file.id, "kind": "page", "rule": self.rule, "page": number + 1}
            payload |= {"pages": found["pages"], **_section(titles, number)}
            payload |= {"width": page["pixels"][0], "height": page["pixels"][1]}
            content = hashlib.sha256(f"{sha} page {number + 1} dpi {self._dpi}".encode()).hexdigest()
            draw = self._drawing(path, sha, number)
            yield Item(f"{file.id}#page={number + 1}", "page", content, page["text"], payload, draw)
        if bad:
            self._refuse(file.id, bad[0] + (f" (and {len(bad) - 1} pages more)" if len(bad) > 1 else ""))

    def close(self) -> None:
        """End PDFium's process."""
        self._process.close()

    def _page(self, path: Path, sha: str, number: int) -> dict[str, Any]:
        """Text of a page, and the size of its picture, which is known before it is drawn."""
        self._hold(path, sha)
        page = self._process.page(number)
        page["pixels"] = _pixels(page["width"], page["height"], self._dpi)
        page["text"] = _plain(page["text"]) or None
        return page

    def _drawing(self, path: Path, sha: str, number: int) -> Callable[[], Image.Image]:
        def draw() -> Image.Image:
            self._hold(path, sha)
            size, rows = self._process.draw(number, self._dpi / POINTS)
            shape = (size["width"], size["height"])
            return Image.frombytes("RGB", shape, rows, "raw", "RGB", size["stride"], 1)

        return draw

    def _hold(self, path: Path, sha: str) -> None:
        """Have this document open: another one may have come between, or the process was ended."""
        if not self._process.holds(sha):
            self._process.open(sha, read_again(path, sha))


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


def _titles(outline: Sequence[tuple[str, int, int]]) -> list[tuple[int, str]]:
    """Entries of the outline that have a title, by page from 0 on, in the order of the outline."""
    named = [(page, " ".join(_plain(title).split())) for title, _, page in outline]
    return sorted(((page, title) for page, title in named if title), key=lambda entry: entry[0])


def _section(titles: Sequence[tuple[int, str]], number: int) -> dict[str, Any]:
    """`outline`: titles that lead to this page; `title`: the first of them, else the last one before."""
    here: list[str | None] = [title for page, title in titles if page == number]
    before: list[str | None] = [title for page, title in titles if page < number]
    return {"outline": here, "title": (here[:1] or before[-1:] or [None])[0]}
