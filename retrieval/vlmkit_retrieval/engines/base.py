"""What all Qdrant engines share: checks before writing, string ids, exact ranking, no use after a fork.

A subclass talks to one library through the underscored methods and holds no policy of its own.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from vlmkit_retrieval.engines.checks import (
    ID_KEY,
    Row,
    checked_k,
    checked_rows,
    checked_vector,
    ranked,
    to_uuid,
)
from vlmkit_retrieval.errors import RetrievalError
from vlmkit_retrieval.types import Hit, Point, Vectors

_PAGE = 256
# Scores of an engine are float32 sums; two candidates closer than this may be in either order.
_SCORE_NOISE = 1e-5


class Record(Protocol):
    """A stored row as both libraries return it; a search also sets `score`."""

    id: Any
    payload: Any
    vector: Any


class QdrantPoints(ABC):
    """The `Engine` contract on top of a few calls of one library."""

    def __init__(self, location: str) -> None:
        self.location = location
        self._pid = os.getpid()
        self._closed = False

    def upsert(self, points: Sequence[Point]) -> None:
        """See `Engine.upsert`."""
        self._check_usable()
        rows = checked_rows(points, self._widths())
        if rows:
            self._put(rows)

    def delete(self, ids: Sequence[str]) -> None:
        """See `Engine.delete`."""
        self._check_usable()
        if ids and self._widths():
            self._drop([to_uuid(id) for id in ids])

    def retrieve(self, ids: Sequence[str], with_vectors: bool = False) -> dict[str, Point]:
        """See `Engine.retrieve`."""
        self._check_usable()
        if not ids or not self._widths():
            return {}
        records = self._fetch([to_uuid(id) for id in ids], with_vectors)
        points = [_to_point(record) for record in records]
        return {point.id: point for point in points}

    def ids(self) -> list[str]:
        """See `Engine.ids`."""
        self._check_usable()
        return sorted(self._stored_ids()) if self._widths() else []

    def scroll(self) -> Iterator[Point]:
        """See `Engine.scroll`."""
        ids = self.ids()
        for start in range(0, len(ids), _PAGE):
            page = ids[start : start + _PAGE]
            points = self.retrieve(page, with_vectors=True)
            yield from (points[id] for id in page if id in points)

    def search(self, vector_name: str, query: Vectors, k: int) -> list[Hit]:
        """See `Engine.search`."""
        self._check_usable()
        unit = checked_vector(query, vector_name, self._widths(), "the query")
        limit = checked_k(k) + 16
        found = self._nearest(vector_name, unit, limit)
        # Equal scores are cut by the engine where it likes: read on until the last one is clearly worse.
        while len(found) == limit and found[-1].score > found[k - 1].score - _SCORE_NOISE:
            limit *= 4
            found = self._nearest(vector_name, unit, limit)
        return ranked(unit, [_to_point(record) for record in found], vector_name, k)

    def count(self) -> int:
        """See `Engine.count`."""
        self._check_usable()
        return self._count() if self._widths() else 0

    def ensure(self, vectors: Mapping[str, int]) -> None:
        """See `Engine.ensure`."""
        self._check_usable()
        stored = self._widths()
        for name, width in vectors.items():
            if stored.get(name, width) != width:
                raise RetrievalError(
                    f"{self.location}: vector {name!r} is {stored[name]} wide, {width} was asked for; "
                    "use another name, or a new index"
                )
        missing = {name: width for name, width in vectors.items() if name not in stored}
        if missing:
            self._add_vectors(missing)

    def close(self) -> None:
        """See `Engine.close`."""
        if not self._closed and self._pid == os.getpid():
            self._close()
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_usable(self) -> None:
        if self._pid != os.getpid():
            raise RetrievalError(
                f"{self.location} was opened by process {self._pid}, this is its forked child {os.getpid()}, "
                "and the engine does not survive a fork; use the 'spawn' start method, or ask the parent"
            )
        if self._closed:
            raise RetrievalError(f"{self.location} is closed; open it again")

    @abstractmethod
    def _widths(self) -> Mapping[str, int]: ...

    @abstractmethod
    def _add_vectors(self, vectors: Mapping[str, int]) -> None: ...

    @abstractmethod
    def _put(self, rows: Sequence[Row]) -> None: ...

    @abstractmethod
    def _drop(self, uuids: list[str]) -> None: ...

    @abstractmethod
    def _fetch(self, uuids: list[str], with_vectors: bool) -> Sequence[Record]: ...

    @abstractmethod
    def _stored_ids(self) -> Iterator[str]: ...

    @abstractmethod
    def _nearest(self, name: str, query: Vectors, limit: int) -> Sequence[Any]: ...

    @abstractmethod
    def _count(self) -> int: ...

    @abstractmethod
    def _close(self) -> None: ...


def stored_id(record: Record) -> str:
    """The user's id of a stored row.

    Raises:
        RetrievalError: The row was written by something else.
    """
    if ID_KEY not in (record.payload or {}):
        raise RetrievalError(
            f"point {record.id} was not written by vlmkit; give vlmkit a collection or directory of its own"
        )
    return str(record.payload[ID_KEY])


def _to_point(record: Record) -> Point:
    vectors = {name: np.asarray(vector, np.float32) for name, vector in (record.vector or {}).items()}
    payload = {key: value for key, value in record.payload.items() if key != ID_KEY} if record.payload else {}
    return Point(stored_id(record), vectors, payload)
