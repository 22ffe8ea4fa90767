"""What an index holds of each file: enough to tell without reading it whether anything must be done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmkit_retrieval.manifest import EncoderEntry
from vlmkit_retrieval.scanned import FileState, ScannedFile
from vlmkit_retrieval.sources.items import Item, text_sha256
from vlmkit_retrieval.types import Engine

_BATCH = 4096
# What a sync writes; other keys are somebody else's, and stay.
OWN_KEYS = {
    *("path", "kind", "rule", "width", "height", "caption_source", "page", "pages", "outline", "title"),
    *("chunk", "start", "end", "size", "mtime_ns", "beside", "sha256", "text", "parts", "encoders"),
}
# By these an item is known as a sync's, also in an index of schema 1.
_OF_A_FILE = {"path", "sha256", "size", "mtime_ns", "encoders"}


@dataclass(frozen=True, slots=True)
class Record:
    """A stored item, without its vectors and its text.

    Attributes:
        id: The item's.
        path: The file's.
        kind: `image`, `page` or `text`.
        sha256: See `Item.sha256`.
        text_sha256: See `Item.text_sha256`.
        state: Of its file when it was read.
        rule: By which the file became items; None in an index of schema 1.
        parts: How many parts the file had, those that were refused included, also of its captions.
        encoders: Fingerprints by name of those that are done with it.
    """

    id: str
    path: str
    kind: str
    sha256: str
    text_sha256: str | None
    state: FileState
    rule: str | None
    parts: int
    encoders: Mapping[str, str]

    def is_same(self, item: Item) -> bool:
        """Whether an item has the content that is stored."""
        return self.sha256 == item.sha256 and self.text_sha256 == item.text_sha256


class Stored:
    """The items of an index by the path of their file; those that came from no file are left out.

    Args:
        engine: Of the index.
        entries: The index's encoders: an index of schema 1 stored their names alone.
    """

    def __init__(self, engine: Engine, entries: Mapping[str, EncoderEntry]) -> None:
        self._entries = entries
        self._shared: dict[Any, Any] = {}
        self.by_path: dict[str, list[Record]] = {}
        ids = engine.ids()
        for start in range(0, len(ids), _BATCH):
            for id, point in engine.retrieve(ids[start : start + _BATCH]).items():
                if point.payload.keys() >= _OF_A_FILE:
                    record = self._record(id, point.payload)
                    self.by_path.setdefault(record.path, []).append(record)

    def of(self, path: str) -> Sequence[Record]:
        """The items of a file."""
        return self.by_path.get(path, ())

    def __iter__(self) -> Iterator[Record]:
        for records in self.by_path.values():
            yield from records

    def _record(self, id: str, payload: Mapping[str, Any]) -> Record:
        text = payload.get("text")
        return Record(
            id,
            payload["path"],
            payload.get("kind", "image"),
            payload["sha256"],
            None if text is None else text_sha256(text),
            FileState.of(payload),
            payload.get("rule"),
            payload.get("parts", 0),
            self._encoders(payload["encoders"]),
        )

    def _encoders(self, stored: Mapping[str, str] | Sequence[str]) -> Mapping[str, str]:
        """One mapping for all items that have the same."""
        if not isinstance(stored, Mapping):
            stored = {name: self._entries[name].fingerprint for name in stored if name in self._entries}
        key = tuple(sorted(stored.items()))
        found: Mapping[str, str] = self._shared.setdefault(key, dict(key))
        return found


def is_current(records: Sequence[Record], file: ScannedFile, rule: str, broken: int) -> bool:
    """Whether every part of a file is stored as the file is now.

    A file of which a part was refused never is: it is read again, so that every report names the part. But
    what it shares with others is read in every run: while that is as broken as it was, the file need not be.

    Args:
        records: Stored items of the file.
        file: As it is now.
        rule: By which it becomes items.
        broken: How many files that it shares with others are of no use (see `Reader.broken`).
    """
    return bool(records) and all(
        record.parts == len(records) + broken and record.state == file.state and record.rule == rule
        for record in records
    )


def payload_of(item: Item, file: ScannedFile, parts: int, encoders: Mapping[str, str]) -> dict[str, Any]:
    """What is stored with an item; without keys that say nothing, which engines keep or drop as they like."""
    payload = {
        **item.payload,
        **file.state.payload(),
        "sha256": item.sha256,
        "text": item.text,
        "parts": parts,
        "encoders": dict(encoders),
    }
    return {key: value for key, value in payload.items() if value is not None}
