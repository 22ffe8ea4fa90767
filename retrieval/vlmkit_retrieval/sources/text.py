"""Text and Markdown files to chunks."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath

from vlmkit_retrieval.errors import FileError
from vlmkit_retrieval.images import read_file
from vlmkit_retrieval.scan import ScannedFile
from vlmkit_retrieval.sources.chunks import chunks
from vlmkit_retrieval.sources.items import Item, Rules, text_sha256

MARKDOWN = (".md", ".markdown")
SUFFIXES = (".txt", *MARKDOWN)
MAX_BYTES = 16 * 1024**2
MAX_CHUNKS = 50_000


class TextSource:
    """Chunks of a file, numbered from 1; `start` and `end` count characters of the file's text."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules

    @property
    def rule(self) -> str:
        """Sizes of a chunk, and which way of cutting."""
        return f"chunk {self._rules.chunk} overlap {self._rules.overlap} v1"

    def read(self, file: ScannedFile) -> Iterator[Item]:
        """The chunks of a file.

        Raises:
            FileError: It is empty, is not UTF-8, larger than 16 MiB, or of more than 50,000 chunks.
        """
        text = decode_text(read_file(Path(file.id), MAX_BYTES))
        if not text.strip():
            raise FileError("the file has no text")
        markdown = PurePosixPath(file.id).suffix.lower() in MARKDOWN
        cut = chunks(text, self._rules.chunk, self._rules.overlap, markdown=markdown)
        found = list(islice(cut, MAX_CHUNKS + 1))
        if len(found) > MAX_CHUNKS:
            raise FileError(f"more than {MAX_CHUNKS:,} chunks of text; split it")
        for number, chunk in enumerate(found, start=1):
            own = text[chunk.start : chunk.end]
            payload = {
                "path": file.id,
                "kind": "text",
                "rule": self.rule,
                "chunk": number,
                "start": chunk.start,
                "end": chunk.end,
                "title": " > ".join(chunk.headings) or None,
            }
            yield Item(f"{file.id}#chunk={number}", "text", text_sha256(own), own, payload, None)

    def check(self, files: Sequence[ScannedFile]) -> Collection[str]:
        """Nothing is shared."""
        return ()

    def close(self) -> None:
        """Nothing is held."""


def decode_text(data: bytes) -> str:
    """UTF-8, with or without its mark at the front.

    Raises:
        FileError: Something else; says where.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # After a mark that was cut off, positions are counted without it.
        place = error.start + (3 if data.startswith(b"\xef\xbb\xbf") else 0)
        raise FileError(f"byte {place} (0x{data[place]:02x}) is not UTF-8; save it as UTF-8") from None
    if "\0" in text:
        raise FileError(f"byte {data.index(0)} is 0: this is no text")
    return text
