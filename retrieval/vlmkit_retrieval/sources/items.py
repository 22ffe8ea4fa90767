"""The contract of what a file becomes: items, each with what decides its vectors. No engine, no encoder.

Ids: an image's id is its file's absolute path; a page's is `PATH#page=3`, a chunk's `PATH#chunk=2`, both from
1 on. A path may hold `#` itself, so nobody takes an id apart: `payload["path"]` is the file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from PIL import Image

from vlmkit_retrieval.errors import RetrievalUsageError
from vlmkit_retrieval.scan import ScannedFile

Kind = Literal["image", "page", "text"]
Refuse = Callable[[str, str], None]
Covers = Callable[[str], bool]


@dataclass(frozen=True)
class Item:
    """One thing that can be found.

    Attributes:
        id: Its identity; the same for the same file and place in it.
        kind: What it is.
        sha256: Of the content that decides the vectors of its pixels: of an image the file's bytes, of a page
            these with number and dpi. Of a text item, of its text. What is equal is embedded once.
        text: Caption, text of the page, or the chunk itself; None where there is none.
        payload: `path`, `kind`, `rule` and, where they apply, `page`, `pages`, `outline`, `title`, `chunk`,
            `start`, `end`, `caption_source`, `width`, `height` (pixels; of a page as it will be drawn).
        image: Decodes the pixels (RGB), anew at each call; None for a text item. Raises `FileError` where
            they cannot be had, or the file is not the one any more that `sha256` is of.
    """

    id: str
    kind: Kind
    sha256: str
    text: str | None
    payload: Mapping[str, Any]
    image: Callable[[], Image.Image] | None

    @property
    def text_sha256(self) -> str | None:
        """Of the text alone: a caption that changes leaves the vectors of the pixels as they are."""
        return None if self.text is None else text_sha256(self.text)


class Source(Protocol):
    """Reads one kind of files.

    Attributes:
        rule: What decides its items beside the file, in words; items of another rule are out of date.
    """

    @property
    def rule(self) -> str:
        """As above."""
        ...

    def read(self, file: ScannedFile) -> Iterator[Item]:
        """Its items in order. FileError where it has none; what is refused besides is told to `refuse`."""
        ...

    def check(self, files: Sequence[ScannedFile]) -> Collection[str]:
        """Tell `refuse` what is wrong with files that several of its files share; those not used at all."""
        ...

    def close(self) -> None:
        """Let go of what it holds; closing twice is no error."""
        ...


@dataclass(frozen=True)
class Rules:
    """What can be chosen about items.

    Attributes:
        dpi: Pages are drawn with so many pixels an inch.
        chunk: A chunk of text has at most so many characters.
        overlap: So many of them, at most, are the end of the chunk before.

    Raises:
        RetrievalUsageError: A number that makes no sense.
    """

    dpi: int = 150
    chunk: int = 1200
    overlap: int = 150

    def __post_init__(self) -> None:
        if not 10 <= self.dpi <= 1200:
            raise RetrievalUsageError(f"pages at {self.dpi} dpi (possible: 10 to 1200)")
        if self.chunk < 20 or not 0 <= self.overlap < self.chunk / 2:
            raise RetrievalUsageError(
                f"chunks of {self.chunk} characters with an overlap of {self.overlap} "
                "(possible: 20 or more; an overlap of less than half)"
            )


def text_sha256(text: str) -> str:
    """The identity of a text, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def as_line(path: str, reason: str) -> str:
    """One line for people, whatever a name or a message holds: control characters are written out."""
    line = f"{path}: {reason}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
