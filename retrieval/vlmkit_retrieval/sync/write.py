"""Tasks to points: whole ones where the content is new, vectors alone where only these were missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlmkit_retrieval.sources import Item
from vlmkit_retrieval.sync.slots import Slot
from vlmkit_retrieval.sync.stored import OWN_KEYS, payload_of
from vlmkit_retrieval.sync.work import Task
from vlmkit_retrieval.types import Engine, Point, Vector

Payload = Mapping[str, Any]


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
        stored = self._engine.retrieve([task.item.id for task in usable if task.record is not None])
        payloads = {id: point.payload for id, point in stored.items()}
        new = {task.item.id: _payload(task, payloads.get(task.item.id, {})) for task in usable}
        whole = [task for task in usable if self._is_whole(task, payloads, new[task.item.id])]
        ids = {task.item.id for task in whole}
        self._engine.upsert(self._points(whole, new))
        # Vectors first: an item says that an encoder is done with it when its vector is there.
        partial = {task.item.id: task for task in usable if task.item.id not in ids}
        self._engine.update_vectors({id: task.vectors for id, task in partial.items() if task.vectors})
        self._engine.set_payload({id: new[id] for id in partial if new[id] != payloads[id]})
        for task in usable:
            self._count(task)

    def _is_whole(self, task: Task, payloads: Mapping[str, Payload], new: Payload) -> bool:
        record = task.record
        if record is None or not record.is_same(task.item):
            return True
        if not payloads[record.id].keys() <= new.keys():
            return True  # a key can be set, not taken away
        had = {slot.name for slot in self._slots if slot.name in record.encoders}
        lost = had - set(task.done)
        emptied = {name for name in had & task.got if name not in task.vectors}
        return bool(lost or emptied)  # an engine cannot take a single vector away

    def _points(self, tasks: Sequence[Task], new: Mapping[str, Payload]) -> list[Point]:
        kept = self._kept(tasks)
        ids = [task.item.id for task in tasks]
        return [
            Point(id, {**kept.get(id, {}), **task.vectors}, new[id])
            for id, task in zip(ids, tasks, strict=True)
        ]

    def _kept(self, tasks: Sequence[Task]) -> dict[str, dict[str, Vector]]:
        """Vectors of the content that did not change (the same image with another caption).

        From the store where they are in it: an engine gives float16 back a little shorter or longer.
        """
        keep = {task.item.id: set(task.done) - task.got for task in tasks}
        stored = [task for task in tasks if task.record is not None]
        points = self._engine.retrieve([task.item.id for task in stored], with_vectors=True)
        kept: dict[str, dict[str, Vector]] = {}
        for task in stored:
            kept[task.item.id] = self._foreign(task, points[task.item.id])
            for slot in self._slots:
                if slot.name in keep[task.item.id]:
                    kept[task.item.id] |= _own(slot, task.item, points[task.item.id])
        return kept

    def _foreign(self, task: Task, point: Point) -> dict[str, Vector]:
        """Vectors in spaces that no encoder of the index fills: somebody else's, and about these pixels."""
        own = {space for slot in self._slots for space in slot.spaces}
        same = task.record is not None and task.record.sha256 == task.item.sha256
        return {space: vector for space, vector in point.vectors.items() if same and space not in own}

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


def _payload(task: Task, stored: Payload) -> Payload:
    """What is stored now, and what others stored with the item."""
    foreign = {key: value for key, value in stored.items() if key not in OWN_KEYS}
    return foreign | payload_of(task.item, task.file, task.parts, task.done)
