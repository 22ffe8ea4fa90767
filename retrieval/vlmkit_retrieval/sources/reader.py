"""The table of kinds of files, and the reader that asks the right one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from vlmkit_retrieval import images
from vlmkit_retrieval.errors import FileError, RetrievalUsageError
from vlmkit_retrieval.scan import ScannedFile
from vlmkit_retrieval.sources import pdf, text
from vlmkit_retrieval.sources.captions import Captions
from vlmkit_retrieval.sources.images import ImageSource
from vlmkit_retrieval.sources.items import Covers, Item, Refuse, Rules, Source
from vlmkit_retrieval.types import Unreadable


@dataclass(frozen=True)
class Entry:
    """A kind of files.

    Attributes:
        suffixes: Of its names, in small letters.
        open: Makes its source of the rules, the ids of all files found, what was looked for, and where to
            tell refusals.
    """

    suffixes: tuple[str, ...]
    open: Callable[[Rules, Collection[str], Covers, Refuse], Source]


SOURCES: dict[str, Entry] = {
    "images": Entry(images.SUFFIXES, lambda rules, *more: ImageSource(Captions(*more))),
    "text": Entry(text.SUFFIXES, lambda rules, files, covers, refuse: text.TextSource(rules)),
    "pdf": Entry(pdf.SUFFIXES, lambda rules, files, covers, refuse: pdf.PdfSource(rules, refuse)),
}


def suffixes_of(kinds: Sequence[str]) -> tuple[str, ...]:
    """The suffixes to scan for.

    Raises:
        RetrievalUsageError: A kind that is not in the table.
    """
    unknown = [kind for kind in kinds if kind not in SOURCES]
    if unknown or not kinds:
        raise RetrievalUsageError(
            f"unknown kind of files {unknown[0]!r} (known: {', '.join(SOURCES)})"
            if unknown
            else f"no kind of files is named (known: {', '.join(SOURCES)})"
        )
    return tuple(suffix for kind in kinds for suffix in SOURCES[kind].suffixes)


class Reader:
    """Turns scanned files into items. Whatever a file holds, it gives items or a line in `refused`.

    Args:
        files: Ids of all files that were found.
        kinds: Names in `SOURCES`.
        rules: What can be chosen.
        covers: Whether a path was looked for (`Scan.covers`): of another one a row of captions may speak.
            None where all were.

    Attributes:
        refused: Files, or parts of them, that are not used, and why; what several items share once.
        refusals: How often something was refused.
        unread: Ids of files that are not used as a whole: of their parts nothing is known.

    Raises:
        RetrievalUsageError: An unknown kind.
        MissingPackageError: A kind needs a package that is not installed.
    """

    def __init__(
        self,
        files: Collection[str],
        kinds: Sequence[str] = ("images",),
        rules: Rules | None = None,
        covers: Covers | None = None,
    ) -> None:
        suffixes_of(kinds)
        self.refused: list[Unreadable] = []
        self.refusals = 0
        self.unread: set[str] = set()
        self._told: set[Unreadable] = set()
        self._broken: set[str] = set()
        self._sources: dict[str, Source] = {}
        for kind in kinds:
            source = SOURCES[kind].open(rules or Rules(), files, covers or _all, self.refuse)
            self._sources |= dict.fromkeys(SOURCES[kind].suffixes, source)

    def read(self, file: ScannedFile) -> Iterator[Item]:
        """The items of a file, in order; none if it is refused."""
        try:
            yield from self._source(file).read(file)
        except FileError as error:
            self.unread.add(file.id)
            self.refuse(file.id, str(error))

    def check(self, files: Sequence[ScannedFile]) -> None:
        """Refuse what is wrong with files that several items share, whether an item is read or not."""
        for source in dict.fromkeys(self._sources.values()):
            self._broken.update(source.check(files))

    def broken(self, file: ScannedFile) -> int:
        """How many files with captions of this image and of others `check` found to be of no use."""
        return sum(path in self._broken for path in file.captions) if self._broken else 0

    def rule(self, file: ScannedFile) -> str:
        """What an item of this file must have as `rule` in its payload to be up to date."""
        return self._source(file).rule

    def refuse(self, path: str, reason: str) -> None:
        """Note that a file, an item, or a file of captions is not used."""
        self.refusals += 1
        bad = Unreadable(path, reason)
        if bad not in self._told:
            self._told.add(bad)
            self.refused.append(bad)

    def close(self) -> None:
        """Let go of what the sources hold."""
        for source in self._sources.values():
            source.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def _source(self, file: ScannedFile) -> Source:
        return self._sources[PurePosixPath(file.id).suffix.lower()]


def _all(path: str) -> bool:
    return True
