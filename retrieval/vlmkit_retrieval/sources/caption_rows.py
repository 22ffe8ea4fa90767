"""Rows of a folder's one file of captions: JSON Lines; JSON as a list of rows or `{"a.png": "a caption"}`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlmkit_retrieval.errors import FileError
from vlmkit_retrieval.images import MAX_BYTES, read_file
from vlmkit_retrieval.sources.text import decode_text

Row = dict[str, Any]
MAX_CAPTION = 20_000
MAX_BAD = 1000
MAX_LINE = 1024**2
# As objects, JSON takes up to 30 times the memory of its bytes.
MAX_JSON = 16 * 1024**2


class BadRows:
    """Rows that are left out: the first one's reason, and how many.

    Attributes:
        summary: One line, or nothing.
    """

    def __init__(self) -> None:
        self._first, self._count, self._serious = "", 0, 0

    def add(self, reason: str, *, serious: bool = True) -> None:
        """Note one; FileError where so many are not rows at all that the file is something else."""
        self._first = self._first or reason
        self._count += 1
        self._serious += serious
        if self._serious > MAX_BAD:
            raise FileError(f"{self.summary}; none of its captions is used")

    @property
    def summary(self) -> str:
        """As above."""
        return self._first + (f" (and {self._count - 1:,} rows more)" if self._count > 1 else "")


def rows_of(path: str, bad: BadRows) -> Iterator[tuple[int, Row]]:
    """Rows with their number from 1 on (of JSON Lines, the line).

    Args:
        path: The file; `.jsonl` is read line by line.
        bad: Rows that are left out are noted here.

    Raises:
        FileError: It cannot be read, is too large, or is no such file as a whole.
    """
    if path.lower().endswith(".jsonl"):
        yield from _lines(read_file(Path(path), MAX_BYTES), bad)
        return
    text = decode_text(read_file(Path(path), MAX_JSON))
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileError(f"not JSON ({error})") from None
    if isinstance(found, dict) and all(isinstance(value, str | list) for value in found.values()):
        found = [{"file_name": name, "text": text} for name, text in found.items()]
    if not isinstance(found, list):
        raise FileError("neither a list of rows nor captions by file name")
    for number, row in enumerate(found, start=1):
        if isinstance(row, dict):
            yield number, row
        else:
            bad.add(f"row {number} is no object")


def _lines(data: bytes, bad: BadRows) -> Iterator[tuple[int, Row]]:
    start = number = 0
    while start < len(data):
        end = data.find(b"\n", start)
        end = len(data) if end < 0 else end
        number += 1
        line, start = data[start : min(end, start + MAX_LINE + 1)], end + 1
        if line.strip():
            try:
                yield number, _row(line)
            except FileError as error:
                bad.add(f"row {number} {error}")


def _row(line: bytes) -> Row:
    if len(line) > MAX_LINE:
        raise FileError(f"is longer than {MAX_LINE // 1024**2} MiB")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # also where it is not UTF-8
        raise FileError(f"is not JSON ({error})") from None
    if not isinstance(row, dict):
        raise FileError("is no object")
    return row


def caption_of(row: Row) -> str | None:
    """The caption of a row, white space at its ends removed: `text` or `caption`, a string or a list of them.

    Returns:
        Empty where it is there and says nothing; None where the row has neither.

    Raises:
        FileError: Both are there and differ, it is no text, or it is longer than 20,000 characters.
    """
    found = {_text(row[key]) for key in ("text", "caption") if key in row}
    if len(found) > 1:
        raise FileError("has a 'text' and another 'caption'")
    return found.pop() if found else None


def _text(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = "\n".join(dict.fromkeys(part.strip() for part in value))
    if value is None:
        return ""
    if not isinstance(value, str):
        raise FileError(f"has a caption that is no text ({type(value).__name__})")
    text = value.strip()
    if len(text) > MAX_CAPTION:
        raise FileError(f"has a caption of {len(text):,} characters, more than {MAX_CAPTION:,}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise FileError("has a caption with half of a surrogate pair") from None
    return text
