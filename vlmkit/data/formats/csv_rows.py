"""Rows of a CSV file by number: 16 bytes a row in memory, the rows stay in the file.

One pass with Python's csv module finds where each row is, so that quoted line breaks count as in any other
reader of it. Values stay text: `007` is no number and `NA` not nothing.
"""

from __future__ import annotations

import csv
import io
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vlmkit.data.formats.files import Row, open_file
from vlmkit.data.formats.lazy import Stamp
from vlmkit.errors import VlmkitError

BOM = b"\xef\xbb\xbf"


class CsvRows:
    """Rows of a file with a header, by number; row 0 is the one after the header.

    Args:
        path: UTF-8, with or without a byte order mark.
        delimiter: Between fields.
        check: Called with place and row for each row in turn; what it raises ends the reading. Without one, a
            row that does not fit the header is an error when it is asked for.
        limit: Stop after so many rows.

    Raises:
        VlmkitError: The file is missing, not UTF-8, or malformed; a row has more or fewer fields than the
            header; the header names a column twice.
    """

    def __init__(
        self,
        path: Path,
        delimiter: str,
        check: Callable[[str, Row], object] | None = None,
        limit: int | None = None,
    ) -> None:
        self.path, self.delimiter = path, delimiter
        spans = array("q")
        with open_file(path, "a CSV file") as file:
            self.stamp = Stamp.of(path, file)
            found = self._scan(file)
            self.columns = next(found)[0]
            if len(set(self.columns)) != len(self.columns):
                raise VlmkitError(f"{path}: the header names a column twice ({', '.join(self.columns)})")
            for number, (fields, start, end) in enumerate(islice(found, limit)):
                if check is not None:
                    check(*self._row(number, fields))
                spans.extend((start, end))
        self.spans_R2 = np.array(spans, np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self.spans_R2)

    def __getitem__(self, number: int) -> tuple[str, Row]:
        data = self.stamp.span(*self.spans_R2[number].tolist())
        lines = [line.decode("utf-8") for line in io.BytesIO(data)]
        return self._row(number, next(_parse(lines, self.delimiter)))

    def _row(self, number: int, fields: list[str]) -> tuple[str, Row]:
        place = f"{self.path} row {number}"
        if len(fields) != len(self.columns):
            raise VlmkitError(
                f"{place} has {len(fields)} fields and the header {len(self.columns)} "
                f"({', '.join(self.columns)}); quote fields that hold {self.delimiter!r}"
            )
        return place, dict(zip(self.columns, fields))

    def _scan(self, file: BinaryIO) -> Iterator[tuple[list[str], int, int]]:
        """Fields of the header and of each row, with the row's first byte and the one behind it."""
        lines = _Lines(file)
        rows, number = _parse(lines, self.delimiter), -1
        while True:
            start = lines.byte
            try:
                fields = next(rows, None)
            except UnicodeDecodeError as error:
                raise VlmkitError(f"{self.path} is not UTF-8 ({error}); convert it") from None
            except csv.Error as error:
                raise VlmkitError(f"{self.path} row {number} is not CSV ({error}); repair it") from None
            if fields is None:
                break
            if fields:
                yield fields, start, lines.byte
                number += 1
        if number < 0:
            raise VlmkitError(f"{self.path} is empty; a header and rows are needed")


class _Lines:
    """Lines of a file as text, with the byte behind the last one that was taken."""

    def __init__(self, file: BinaryIO) -> None:
        self.byte = len(BOM) if file.read(len(BOM)) == BOM else 0
        file.seek(self.byte)
        self.file = file

    def __iter__(self) -> Iterator[str]:
        for line in self.file:
            self.byte += len(line)
            yield line.decode("utf-8")


def _parse(lines: Iterable[str], delimiter: str) -> Iterator[list[str]]:
    """Rows of text; a field may be as long as an image is.

    The csv module has one limit for all readers, which is as it was again after each row.
    """
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        before = csv.field_size_limit(sys.maxsize)
        try:
            row = next(rows, None)
        finally:
            csv.field_size_limit(before)
        if row is None:
            return
        yield row
