"""Objects of a JSON list or of JSON lines by number: 16 bytes a row in memory, the rows stay in the file.

One pass finds where each row is. In a list Python's own JSON decoder says where an object ends, on a window
of text that moves through the file: strings and escapes are what they are in any JSON, and memory does not
grow with the file.
"""

from __future__ import annotations

import codecs
import json
import re
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vlmkit.data.formats.files import Row, open_file
from vlmkit.data.formats.lazy import Stamp
from vlmkit.errors import VlmkitError

CHUNK = 2**20
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Found:
    """A row and where it is: its number in the file's own count, and its bytes."""

    row: Row
    number: int
    start: int
    end: int


class JsonRows:
    """Rows of a file by number.

    Args:
        path: A JSON list, or one object a line where the name ends in .jsonl.
        check: Called with place and row for each row in turn; what it raises ends the reading.
        limit: Stop after so many rows.
        parse: Read each of JSON lines at the start; else one that is no object is an error when asked for.

    Raises:
        VlmkitError: The file is missing, not UTF-8, not JSON, or not a list of objects.
    """

    def __init__(
        self,
        path: Path,
        check: Callable[[str, Row], object] | None = None,
        limit: int | None = None,
        parse: bool = True,
    ) -> None:
        self.word = "line" if _is_lines(path) else "row"
        spans, numbers = array("q"), array("q")
        with open_file(path, "a JSON or JSONL file") as file:
            self.stamp = Stamp.of(path, file)
            for found in islice(_rows(path, file, parse), limit):
                if check is not None:
                    check(f"{path} {self.word} {found.number}", found.row)
                spans.extend((found.start, found.end))
                numbers.append(found.number)
        self.spans_R2 = np.array(spans, np.int64).reshape(-1, 2)
        first = numbers[0] if numbers else 0
        # Without empty lines between them the numbers are not stored.
        gaps = len(numbers) and numbers[-1] - first + 1 != len(numbers)
        self.numbers = np.array(numbers, np.int64) if gaps else range(first, first + len(numbers))

    def __len__(self) -> int:
        return len(self.spans_R2)

    def __getitem__(self, number: int) -> tuple[str, Row]:
        start, end = self.spans_R2[number].tolist()
        place = f"{self.stamp.path} {self.word} {self.numbers[number]}"
        return place, _object(self.stamp.span(start, end), place)


def _is_lines(path: Path) -> bool:
    return path.suffix.lower() == ".jsonl"


def _rows(path: Path, file: BinaryIO, read: bool = True) -> Iterator[Found]:
    """Rows in turn; without `read`, lines are found and not parsed, and their `row` is empty."""
    rows = _line_rows(path, file, read) if _is_lines(path) else _list_rows(path, file)
    try:
        for found in rows:
            if read:
                _check_object(found.row, f"{path} {'line' if _is_lines(path) else 'row'} {found.number}")
            yield found
    except UnicodeDecodeError as error:
        raise VlmkitError(f"{path} cannot be read as text ({error}); give a JSON or JSONL file") from None


def _object(data: bytes, place: str) -> Row:
    """A row from its bytes."""
    try:
        row: Row = json.loads(data.decode("utf-8"))
    except ValueError as error:
        raise VlmkitError(f"{place} is not JSON ({error}); repair it") from None
    _check_object(row, place)
    return row


def _check_object(row: Any, place: str) -> None:
    if not isinstance(row, dict):
        raise VlmkitError(f"{place} is a {type(row).__name__}; an object is needed")


def _line_rows(path: Path, file: BinaryIO, read: bool) -> Iterator[Found]:
    start = 0
    for number, line in enumerate(file, 1):
        end = start + len(line)
        if line.strip():
            yield Found(_parsed(line, path, number) if read else {}, number, start, end)
        start = end


def _parsed(line: bytes, path: Path, number: int) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except json.JSONDecodeError as error:
        raise VlmkitError(f"{path} line {number} is not JSON ({error}); repair it") from None


def _list_rows(path: Path, file: BinaryIO) -> Iterator[Found]:
    window = _Window(path, file)
    if window.next() != "[":
        raise VlmkitError(
            f"{path} starts with {window.next()!r}; a list of objects is needed, [...], "
            "or one object a line in a file named .jsonl"
        )
    window.skip(1)
    number = 0
    while number or window.next() != "]":
        window.next()
        start, place = window.byte, f"{path} row {number}"
        row = window.value(place)
        yield Found(row, number, start, window.byte)
        number += 1
        mark = window.next()
        if mark == "]":
            break
        if mark != ",":
            raise VlmkitError(
                f"{path} is not JSON: after row {number - 1}, at byte {window.byte}, "
                f"',' or ']' is needed, found {mark or 'the end of the file'!r}; repair it"
            )
        window.skip(1)
    window.skip(1)
    if rest := window.next():
        raise VlmkitError(f"{path} is not JSON: {rest!r} at byte {window.byte}, after the list; remove it")


class _Window:
    """The text of a file from a place on, as far as it is read.

    Attributes:
        byte: Where in the file the place is.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.file = file
        self.decoder = codecs.getincrementaldecoder("utf-8")()
        self.text = ""
        self.at = 0
        self.byte = 0

    def more(self) -> bool:
        """Read on, each time at least as much as is there: a row is tried again a few times at most."""
        chunk = self.file.read(max(CHUNK, len(self.text) - self.at))
        self.text = self.text[self.at :] + self.decoder.decode(chunk, final=not chunk)
        self.at = 0
        return bool(chunk)

    def skip(self, characters: int) -> None:
        """Go on."""
        self.byte += len(self.text[self.at : self.at + characters].encode())
        self.at += characters

    def next(self) -> str:
        """The next character that is not white space, to which it goes; empty at the end of the file."""
        while True:
            match = _SPACE.match(self.text, self.at)
            assert match is not None
            self.skip(match.end() - self.at)
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def value(self, place: str) -> Any:
        """The value that starts here; goes behind it."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                # It may be cut off by the window's end, and only the file's end says that it is not.
                at = self.byte + len(self.text[self.at : error.pos].encode())
                if not self.more():
                    raise VlmkitError(f"{place} is not JSON ({error.msg}, byte {at}); repair it") from None
                continue
            self.skip(end - self.at)
            return value
