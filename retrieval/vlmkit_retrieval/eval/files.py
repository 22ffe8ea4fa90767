"""Lines of text files with their numbers, and errors that name both."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmkit_retrieval.errors import RetrievalError, RetrievalUsageError


@dataclass(frozen=True)
class Line:
    """One line of a file, without its end.

    Attributes:
        path: The file.
        number: From 1 on.
        text: UTF-8, decoded.
    """

    path: Path
    number: int
    text: str

    def error(self, problem: str) -> RetrievalError:
        """An error that begins with the place."""
        return RetrievalError(f"{self.path}, line {self.number}: {problem}")

    def columns(self, count: int, what: str) -> list[str]:
        """Exactly `count` columns: between tabs where the line has as many, else between spaces.

        Args:
            count: How many there must be.
            what: Their names, for the error.
        """
        for parts in (self.text.split("\t"), self.text.split()):
            if len(parts) == count and all(parts):
                return parts
        raise self.error(f"{self.text!r} has {len(self.text.split())} columns, not the {count} of: {what}")


def lines(path: str | os.PathLike[str]) -> Iterator[Line]:
    """The lines that are not blank.

    Raises:
        RetrievalUsageError: There is no such file.
        RetrievalError: A line is not UTF-8.
    """
    place = Path(path)
    if not place.is_file():
        raise RetrievalUsageError(f"{place} is not a file; check the path")
    with place.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                # Some editors put a byte order mark before the first line.
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise Line(place, number, "").error(
                    f"is not UTF-8 ({error.reason}); save it as UTF-8"
                ) from None
            if text.strip():
                yield Line(place, number, text)


def json_objects(path: str | os.PathLike[str]) -> Iterator[tuple[Line, dict[str, Any]]]:
    """The objects of a file with one JSON object a line, with their lines.

    Raises:
        RetrievalError: As `lines`, or a line is no JSON object.
    """
    for line in lines(path):
        try:
            content = json.loads(line.text)
        except json.JSONDecodeError as error:
            raise line.error(f"is not JSON ({error}); give one object a line") from None
        if not isinstance(content, dict):
            raise line.error(
                f"is {type(content).__name__}, not an object like {{'_id': 'q1', 'text': '...'}}"
            )
        yield line, content


def write_lines(path: str | os.PathLike[str], texts: Iterable[str]) -> None:
    """Write a file by renaming a finished one into place.

    Raises:
        RetrievalUsageError: Its folder does not exist.
    """
    place = Path(path)
    if not place.absolute().parent.is_dir():
        raise RetrievalUsageError(f"the folder of {place} does not exist; make it, or give another file")
    content = "".join(f"{text}\n" for text in texts)  # before a file is made: a text can be refused
    partial = place.with_name(f"{place.name}.partial")
    partial.write_text(content, encoding="utf-8", newline="\n")
    partial.replace(place)


def row(*columns: str) -> str:
    """A line of columns between tabs.

    Raises:
        RetrievalUsageError: A column has a tab or a line break, or is blank.
    """
    for column in columns:
        if not column.strip() or any(mark in column for mark in "\t\r\n"):
            raise RetrievalUsageError(
                f"{column!r} cannot be a column of a TREC or BEIR file: it is blank, or has a tab or a line "
                "break; rename the item"
            )
    return "\t".join(columns)


def once(known: Mapping[str, object], item: str, line: Line, query: str) -> None:
    """Refuse an item that a query has already."""
    if item in known:
        raise line.error(f"{item!r} is there twice for query {query!r}; keep one of the lines")
