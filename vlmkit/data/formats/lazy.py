"""Samples that are made when they are asked for, so that memory does not grow with the data set.

A sequence of them is a value: nothing is kept open, so workers may fork it, spawn it or read it in turn.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, overload

from vlmkit.data.formats.files import Row
from vlmkit.data.sample import Sample
from vlmkit.errors import VlmkitError


class LazySamples(Sequence[Sample], ABC):
    """A sequence by `read` and `__len__`."""

    @abstractmethod
    def read(self, number: int) -> Sample:
        """The sample of a number from 0 on, below the length."""

    def name(self, number: int) -> str:
        """What a row is called that cannot be read."""
        return f"row {number}"

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...

    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self.read(i) for i in range(len(self))[index]]
        return self.read(range(len(self))[index])


class Rows(Protocol):
    """Rows of a file by number, each with its place for errors."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> tuple[str, Row]: ...


class RowSamples(LazySamples):
    """Samples made of rows.

    Args:
        rows: Where they are.
        make: (place, row) to a sample; a function that can be pickled, for spawned workers.
    """

    def __init__(self, rows: Rows, make: Callable[[str, Row], Sample]) -> None:
        self.rows = rows
        self.make = make

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, number: int) -> Sample:
        """The sample of a row."""
        return self.make(*self.rows[number])

    def name(self, number: int) -> str:
        """Its own id, where the row can be read so far."""
        try:
            _, row = self.rows[number]
        except VlmkitError:
            return super().name(number)
        return own_id(row) or super().name(number)


def own_id(row: Row) -> str | None:
    """The id that a row gives itself: a text that is not empty, or a number."""
    name = row.get("id")
    return str(name) if isinstance(name, str | int) and name != "" else None


class Texts:
    """Texts in one piece of memory, each with 8 bytes beside its own.

    Args:
        texts: Any, from file systems too.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self.ends = array("q", [0])
        joined = bytearray()
        for text in texts:
            joined += text.encode("utf-8", "surrogateescape")
            self.ends.append(len(joined))
        self.joined = bytes(joined)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, number: int) -> str:
        return self.joined[self.ends[number] : self.ends[number + 1]].decode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class Stamp:
    """Size and time of change of a file: positions in it hold as long as both are the same."""

    path: Path
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path, file: BinaryIO) -> Stamp:
        """The stamp of an open file."""
        stat = os.fstat(file.fileno())
        return cls(path, stat.st_size, stat.st_mtime_ns)

    def span(self, start: int, end: int) -> bytes:
        """The bytes of the file from `start` up to `end`.

        Raises:
            VlmkitError: The file is gone, or another one than it was.
        """
        try:
            # Opened for each read: a position that forked workers share would mix up what they read.
            with self.path.open("rb", buffering=0) as file:
                if self.of(self.path, file) != self:
                    raise VlmkitError(f"{self.path} was changed while it is in use; start again")
                file.seek(start)
                return file.read(end - start)
        except OSError as error:
            raise VlmkitError(f"{self.path} cannot be read any more ({error}); start again") from None
