"""What is to be done about the files of a portion, and their vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from vlmkit_retrieval.errors import FileError, FileLostError
from vlmkit_retrieval.scanned import ScannedFile
from vlmkit_retrieval.sources import Item, Reader
from vlmkit_retrieval.sync.slots import Slot
from vlmkit_retrieval.sync.stored import Record, Stored, is_current
from vlmkit_retrieval.types import Engine, Vector


@dataclass
class Task:
    """An item of a file that was read, or of one that lacks vectors.

    Attributes:
        item: As it is now.
        file: Its file.
        parts: How many parts the file has.
        record: What is stored under its id.
        done: Fingerprints by name of the encoders whose vectors it has, or has got.
        vectors: Those that it has got, by space.
        got: Names of the encoders that gave them.
        refused: Its pixels cannot be had; it is not written.
    """

    item: Item
    file: ScannedFile
    parts: int
    record: Record | None
    done: dict[str, str] = field(default_factory=dict)
    vectors: dict[str, Vector] = field(default_factory=dict)
    got: set[str] = field(default_factory=set)
    refused: bool = False


class Work:
    """Turns files into tasks, and gives tasks their vectors.

    Args:
        stored: What the index holds.
        engine: Of the index.
        reader: Of the sources.
        slots: All encoders of the index.
        batch: So many contents go through an encoder together.
        encoded: Called with an encoder's name and how many contents went through it.

    Attributes:
        unchanged: Items that need not be looked at.
        stale: Ids of items that their file has no more, or that cannot be used any more.
    """

    def __init__(
        self,
        stored: Stored,
        engine: Engine,
        reader: Reader,
        slots: Sequence[Slot],
        batch: int,
        encoded: Callable[[str, int], None],
    ) -> None:
        self._stored, self._engine, self._reader = stored, engine, reader
        self._slots, self._batch, self._encoded = slots, batch, encoded
        self.unchanged = 0
        self.stale: list[str] = []

    def tasks(self, files: Sequence[ScannedFile]) -> list[Task]:
        """One for each item of files that changed or lack vectors, in order."""
        return [task for file in files for task in self._of_file(file)]

    def fill(self, tasks: Sequence[Task]) -> None:
        """Give each task its vectors: from the index, from the store, from the encoders."""
        for slot in self._slots:
            wanted: dict[str, list[Task]] = {}
            for task in tasks:
                key = slot.key(task.item)
                if task.record is not None and slot.is_done(task.record, task.item):
                    task.done[slot.name] = slot.fingerprint
                elif key is not None and not task.refused:
                    wanted.setdefault(key, []).append(task)
            if wanted:
                self._fill(slot, wanted)

    def _fill(self, slot: Slot, wanted: Mapping[str, Sequence[Task]]) -> None:
        found = slot.known(list(wanted))
        missing = [key for key in wanted if key not in found]
        if slot.runs and missing:
            load = partial(self._content, slot, wanted)
            made = slot.embed(missing, load, partial(self._no_vectors, wanted), self._batch)
            self._encoded(slot.name, len(made))
            found |= made
        for key, vectors in found.items():
            for task in wanted[key]:
                task.vectors |= vectors
                task.done[slot.name] = slot.fingerprint
                task.got.add(slot.name)

    def _content(self, slot: Slot, wanted: Mapping[str, Sequence[Task]], key: str) -> Any:
        """The pixels or the text that the tasks of a content share; without pixels they are refused."""
        item = wanted[key][0].item
        if not slot.of_pixels:
            return item.text
        assert item.image is not None
        try:
            return item.image()
        except FileError as error:
            for task in wanted[key]:
                task.refused = True
                self._refuse(task, str(error))
                # A part that cannot be used is none of the file's items; of a whole file the older one stays.
                is_part = task.item.id != task.file.id and not isinstance(error, FileLostError)
                if is_part and task.record is not None:
                    self.stale.append(task.record.id)
            return None

    def _no_vectors(self, wanted: Mapping[str, Sequence[Task]], key: str, reason: str) -> None:
        """No vectors of a content: its items are stored without, and the next sync tries again."""
        for task in wanted[key]:
            self._refuse(task, reason)

    def _refuse(self, task: Task, reason: str) -> None:
        """A line for the report: the file, and which part of it."""
        path = task.file.id
        place = "" if task.item.id == path else task.item.id.removeprefix(path + "#").replace("=", " ")
        self._reader.refuse(path, f"{place}: {reason}" if place else reason)

    def _of_file(self, file: ScannedFile) -> Iterator[Task]:
        records = self._stored.of(file.id)
        if not is_current(records, file, self._reader.rule(file), self._reader.broken(file)):
            return self._read(file, records)
        lacking = [slot for slot in self._slots if slot.runs and any(map(slot.lacks, records))]
        if not lacking:
            self.unchanged += len(records)
            return iter(())
        if any(slot.of_pixels for slot in lacking):
            return self._read(file, records)
        return self._from_payloads(file, records)

    def _read(self, file: ScannedFile, records: Sequence[Record]) -> Iterator[Task]:
        known = {record.id: record for record in records}
        refusals = self._reader.refusals
        items = list(self._reader.read(file))
        refusals = self._reader.refusals - refusals + self._reader.broken(file)
        if file.id not in self._reader.unread:  # else nobody knows what it has
            self.stale += sorted(set(known).difference(item.id for item in items))
        for item in items:
            yield Task(item, file, len(items) + refusals, known.get(item.id))

    def _from_payloads(self, file: ScannedFile, records: Sequence[Record]) -> Iterator[Task]:
        """For encoders of texts: what they need is stored, and the file need not be read."""
        points = self._engine.retrieve([record.id for record in records])
        for record in records:
            payload = points[record.id].payload
            pixels = None if payload["kind"] == "text" else _no_pixels
            item = Item(record.id, payload["kind"], record.sha256, payload.get("text"), payload, pixels)
            yield Task(item, file, record.parts, record)


def _no_pixels() -> Any:
    raise AssertionError("pixels of an item that was not read")
