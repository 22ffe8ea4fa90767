"""Image folders and PDF files as LangChain documents, through the readers that an index is filled by."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from langchain_core.document_loaders import BaseLoader
from langchain_core.documents import Document

from vlmkit_retrieval.errors import FileError, RetrievalUsageError
from vlmkit_retrieval.scan import scan
from vlmkit_retrieval.sources import Item, Reader, Rules, as_line, suffixes_of
from vlmkit_retrieval.types import Unreadable

_LOG = logging.getLogger(__name__)
Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class _FileLoader(BaseLoader):
    """What both loaders share: a scan, a reader, and what became of files that cannot be used."""

    kind: str

    def __init__(
        self,
        paths: Paths,
        *,
        rules: Rules | None = None,
        on_refused: Callable[[Unreadable], None] | None = None,
    ) -> None:
        self._paths = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
        self._rules, self._on_refused = rules, on_refused
        self.refused: list[Unreadable] = []
        missing = [os.fspath(path) for path in self._paths if not Path(path).exists()]
        if missing or not self._paths:
            raise RetrievalUsageError(
                f"{missing[0]} does not exist; name a folder or a file" if missing else "no path is named"
            )

    def lazy_load(self) -> Iterator[Document]:
        """One document after the other; nothing is held of those before.

        Yields:
            Documents with the item's id, `page_content` (caption or text, empty without), and metadata:
            `source` and `path` (the file), `sha256` (of the content), `kind`, `page` from 1 on, and the rest
            of the item's payload.
        """
        self.refused = []
        found = scan(self._paths, suffixes_of([self.kind]))
        for bad in found.unreadable:
            self._refuse(bad)
        with Reader(found.files, [self.kind], self._rules) as reader:
            told = 0
            for _, file in sorted(found.files.items()):
                for item in reader.read(file):
                    if self._usable(item):
                        yield _document(item)
                for bad in reader.refused[told:]:
                    self._refuse(bad)
                told = len(reader.refused)

    def _usable(self, item: Item) -> bool:
        return True

    def _refuse(self, bad: Unreadable) -> None:
        self.refused.append(bad)
        if self._on_refused is not None:
            self._on_refused(bad)
        else:
            _LOG.warning("left out: %s", as_line(bad.path, bad.reason))


class VlmkitImageLoader(_FileLoader):
    """The images under folders, each with the caption that stands beside it (see docs/retrieval.md).

    Every picture is decoded once, so that a document stands for one that can be opened. What cannot be used
    is left out: it is logged as a warning, or given to `on_refused`, and noted in `refused`.

    Args:
        paths: A folder (recursive), an image file, or several.
        rules: What can be chosen about items.
        on_refused: Called with each file that is left out, with the reason, instead of the warning.

    Attributes:
        refused: What the last load left out.

    Raises:
        RetrievalUsageError: A path does not exist.
    """

    kind = "images"

    def _usable(self, item: Item) -> bool:
        try:
            if item.image is not None:
                item.image()
        except FileError as error:
            self._refuse(Unreadable(item.payload["path"], str(error)))
            return False
        return True


class VlmkitPdfLoader(_FileLoader):
    """The pages of PDF files: their text, and `path` and `page`, by which the picture of a page is found.

    A scanned page has no text (there is no OCR), and is a document with empty content. What cannot be used is
    left out as in `VlmkitImageLoader`, single pages too. PDFium runs in a process of its own.

    Args:
        paths: A folder (recursive), a PDF file, or several.
        rules: What can be chosen about items.
        on_refused: Called with each file that is left out, with the reason, instead of the warning.

    Attributes:
        refused: What the last load left out.

    Raises:
        RetrievalUsageError: A path does not exist.
        MissingPackageError: pypdfium2 is not installed.
    """

    kind = "pdf"


def _document(item: Item) -> Document:
    place = {"source": item.payload["path"], "sha256": item.sha256}
    return Document(id=item.id, page_content=item.text or "", metadata={**item.payload, **place})
