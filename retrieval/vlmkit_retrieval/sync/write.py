"""Tasks to points: whole ones where the content is new, vectors alone where only these were missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlmkit_retrieval.sources import Item
from vlmkit_retrieval.sync.slots import Slot
from vlmkit_retrieval.sync.stored import payload_of
from vlmkit_retrieval.sync.work import Task
from vlmkit_retrieval.types import Engine, Point, Vector


class Writer:
    """Writes the tasks of a portion.

    Args:
        engine: Of the index.
        slots: All encoders of the index.

    Attributes:
        added: Items that were not there.
        changed: Items with another content, or with a vector that was missing.
        unchanged: Items that are as they were, or of which only the file's state changed.
    """

    def __init__(self, engine: Engine, slots: Sequence[Slot]) -> None:
        self._engine, self._slots = engine, slots
        self.added = self.changed = self.unchanged = 0

    def write(self, tasks: Sequence[Task]) -> None:
        """Store what is new. A kill in between leaves items that the next sync writes again."""
        usable = [task for task in tasks if not task.refused]
        whole = [task for task in usable if self._is_whole(task)]
        partial = [task for task in usable if not self._is_whole(task)]
        self._engine.upsert(self._points(whole))
        # Vectors first: an item says that an encoder is done with it when its vector is there.
        self._engine.update_vectors({task.item.id: task.vectors for task in partial if task.vectors})
        self._set_payloads(partial)
        for task in usable:
            self._count(task)

    def _is_whole(self, task: Task) -> bool:
        record = task.record
        if record is None or not record.is_same(task.item):
            return True
        had = {slot.name for slot in self._slots if slot.name in record.encoders}
        lost = had - set(task.done)
        emptied = {name for name in had & task.got if name not in task.vectors}
        return bool(lost or emptied)  # an engine cannot take a single vector away

    def _points(self, tasks: Sequence[Task]) -> list[Point]:
        kept = self._kept(tasks)
        return [
            Point(task.item.id, {**kept.get(task.item.id, {}), **task.vectors}, _payload(task))
            for task in tasks
        ]

    def _kept(self, tasks: Sequence[Task]) -> dict[str, dict[str, Vector]]:
        """Vectors of the content that did not change (the same image with another caption).

        From the store where they are in it: an engine gives float16 back a little shorter or longer.
        """
        keep = {task.item.id: set(task.done) - task.got for task in tasks}
        points = self._engine.retrieve([id for id, names in keep.items() if names], with_vectors=True)
        kept: dict[str, dict[str, Vector]] = {id: {} for id in points}
        for task in tasks:
            for slot in self._slots:
                if slot.name in keep[task.item.id]:
                    kept[task.item.id] |= _own(slot, task.item, points[task.item.id])
        return kept

    def _set_payloads(self, tasks: Sequence[Task]) -> None:
        stored = self._engine.retrieve([task.item.id for task in tasks])
        new = {task.item.id: _payload(task) for task in tasks}
        self._engine.set_payload(
            {id: payload for id, payload in new.items() if payload != stored[id].payload}
        )

    def _count(self, task: Task) -> None:
        runs = {slot.name for slot in self._slots if slot.runs}
        if task.record is None:
            self.added += 1
        elif not task.record.is_same(task.item) or task.got & runs:
            self.changed += 1
        else:
            self.unchanged += 1


def _own(slot: Slot, item: Item, point: Point) -> Mapping[str, Vector]:
    """What an encoder gave an item: one without a term has nothing of BM25."""
    key = slot.key(item)
    found = slot.known([key]) if key is not None else {}
    stored = {space: point.vectors[space] for space in slot.spaces if space in point.vectors}
    return next(iter(found.values()), stored)


def _payload(task: Task) -> Mapping[str, Any]:
    return payload_of(task.item, task.file, task.parts, task.done)
