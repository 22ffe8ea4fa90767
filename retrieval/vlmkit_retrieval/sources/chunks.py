r"""Text to chunks: along headings and paragraphs, each chunk a piece of the text as it stands.

A chunk is made of pieces: paragraphs; a longer one is cut behind a sentence, else a word, else anywhere.
They are taken from the front while they fit, never across a heading. A chunk that goes on under the same
heading begins with the end of the one before, from a word's beginning on.

What holds, and is tested: every character that is not white space is in a chunk; no chunk is longer than
`size`; where a chunk begins and ends depends on no character more than 2 x `size` behind its start. So a
change farther behind leaves the chunk its number and its text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

HEADING = re.compile(r" {0,3}(#{1,6})[ \t]{1,20}(\S.{0,199})")
FENCE = re.compile(r" {0,3}(```|~~~)")
SENTENCE = re.compile(r"[.!?。！？]\s+")
SPACE = re.compile(r"\s+")
WORD = re.compile(r"(?<=\s)\S")


@dataclass(frozen=True)
class Chunk:
    """`text[start:end]` of the whole text.

    Attributes:
        start: Of its first character.
        end: Behind its last one.
        headings: Those above it, outermost first.
        opens: It begins with a heading.
    """

    start: int
    end: int
    headings: tuple[str, ...] = ()
    opens: bool = False


def chunks(text: str, size: int, overlap: int, *, markdown: bool = False) -> Iterator[Chunk]:
    """Cut a text.

    Args:
        text: All of it.
        size: Characters of a chunk, at most.
        overlap: Of these, characters repeated from the chunk before, at most; less than half of `size`.
        markdown: `# Title` lines outside code fences begin a section.

    Raises:
        ValueError: The overlap is too large.
    """
    if not 0 <= overlap < size / 2:
        raise ValueError(f"an overlap of {overlap} is not less than half of a chunk of {size} characters")
    before: Chunk | None = None
    for own in _packed(_pieces(text, size - overlap, markdown), size - overlap):
        start = own.start
        if before is not None and not own.opens and overlap:
            word = WORD.search(text, max(before.start + 1, start - overlap), start)
            start = start if word is None else word.start()
        yield replace(own, start=start)
        before = own


def _packed(pieces: Iterable[Chunk], limit: int) -> Iterator[Chunk]:
    """Neighbours joined while they fit, one section at a time."""
    joined: Chunk | None = None
    for piece in pieces:
        if joined is None:
            joined = piece
        elif piece.opens or piece.end - joined.start > limit:
            yield joined
            joined = piece
        else:
            joined = replace(joined, end=piece.end)
    if joined is not None:
        yield joined


def _pieces(text: str, limit: int, markdown: bool) -> Iterator[Chunk]:
    """Paragraphs, or parts of them, of at most `limit` characters, without the white space around them."""
    for block in _paragraphs(text, markdown):
        end = block.start + len(text[block.start : block.end].rstrip())
        start, opens = _skip(text, block.start), block.opens
        while start < end:
            cut = end if end - start <= limit else _cut(text[start : start + limit], start)
            yield Chunk(start, start + len(text[start:cut].rstrip()), block.headings, opens)
            start, opens = _skip(text, cut), False


def _cut(window: str, start: int) -> int:
    """Where a long paragraph is cut: in the later half of the window if there is a place, else at its end."""
    for place in (SENTENCE, SPACE):
        ends = [match.end() for match in place.finditer(window, len(window) // 2)]
        if ends:
            return start + ends[-1]
    return start + len(window)


def _skip(text: str, start: int) -> int:
    """Where white space ends."""
    space = SPACE.match(text, start)
    return start if space is None else space.end()


def _paragraphs(text: str, markdown: bool) -> Iterator[Chunk]:
    """Pieces that tile the text: a paragraph or a heading, with the white space behind it."""
    start = end = 0
    levels: tuple[tuple[int, str], ...] = ()
    opens, fence, blank = False, "", False
    for line in text.splitlines(keepends=True):
        filled = bool(line.strip())
        heading = HEADING.match(line) if markdown and filled and not fence else None
        if heading or (blank and filled):
            yield Chunk(start, end, tuple(title for _, title in levels), opens)
            start, opens = end, heading is not None
        if heading:
            levels = _under(levels, len(heading[1]), heading[2])
        if filled:
            fence = _fence(line, fence)
        blank, end = not filled, end + len(line)
    yield Chunk(start, end, tuple(title for _, title in levels), opens)


def _under(levels: tuple[tuple[int, str], ...], depth: int, line: str) -> tuple[tuple[int, str], ...]:
    title = line.rstrip("# \t\r\n") or line.strip()
    return (*(level for level in levels if level[0] < depth), (depth, title))


def _fence(line: str, fence: str) -> str:
    """The code fence that is open behind a line, or nothing; one kind of fence does not close the other."""
    found = FENCE.match(line)
    if found is None:
        return fence
    return "" if fence == found[1] else fence or found[1]
