"""What all Qdrant engines share: checks before writing, string ids, exact ranking, no use after a fork.

A subclass talks to one library through the methods of `Library` and holds no policy of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlmkit_retrieval.engines.checks import (
    checked_k,
    checked_payloads,
    checked_rows,
    checked_updates,
    to_uuid,
)
from vlmkit_retrieval.engines.filters import payload_path
from vlmkit_retrieval.engines.library import Asked, Library
from vlmkit_retrieval.engines.ranking import best, noise, scores
from vlmkit_retrieval.engines.records import Scored, stored_id, stored_payload, to_point
from vlmkit_retrieval.engines.vectors import checked_query
from vlmkit_retrieval.errors import RetrievalError, RetrievalUsageError
from vlmkit_retrieval.types import Hit, Multi, PayloadKind, Point, Space, Sparse, Vector, same_space
from vlmkit_retrieval.where import Where

# Points a read: libraries give vectors back as lists of Python numbers, 24 bytes each.
_PAGE, _MULTI_PAGE = 256, 16
_ID_PAGE = 4096
# Candidates beyond k in a first search: their vectors come as Python numbers, 35 us each at 768.
_SPARE = 6


class QdrantPoints(Library):
    """The `Engine` contract on top of a few calls of one library."""

    @property
    def approximate(self) -> bool:
        """See `Engine.approximate`; nothing here builds an approximate index."""
        return False

    def ensure(self, spaces: Mapping[str, Space]) -> None:
        """See `Engine.ensure`."""
        stored = self.spaces()
        for name, space in spaces.items():
            if name in stored and not same_space(stored[name], space):
                raise RetrievalError(
                    f"{self.location}: vector {name!r} is {stored[name]}, {space} was asked for; "
                    "use another name, or a new index"
                )
        missing = {name: space for name, space in spaces.items() if name not in stored}
        if missing:
            self._add_spaces(missing)

    def spaces(self) -> Mapping[str, Space]:
        """See `Engine.spaces`."""
        self._check_usable()
        return dict(self._spaces())

    def drop_space(self, name: str) -> None:
        """See `Engine.drop_space`."""
        self._check_name(name)
        self._drop_space(name)

    def index_payload(self, key: str, kind: PayloadKind) -> None:
        """See `Engine.index_payload`."""
        self._check_usable()
        self._check_made()
        self._index_payload(payload_path(key), kind)

    def upsert(self, points: Sequence[Point]) -> None:
        """See `Engine.upsert`."""
        rows = checked_rows(points, self.spaces())
        if rows:
            self._check_made()
            self._put(rows)

    def update_vectors(self, vectors: Mapping[str, Mapping[str, Vector]]) -> None:
        """See `Engine.update_vectors`."""
        rows = checked_updates(vectors, self.spaces())
        self._check_exist(list(vectors))
        if rows:
            self._put_vectors(rows)

    def set_payload(self, payloads: Mapping[str, Mapping[str, Any]]) -> None:
        """See `Engine.set_payload`."""
        self._check_usable()
        checked = checked_payloads(list(payloads), list(payloads.values()))
        self._check_exist(list(payloads))
        stored = {to_uuid(id): payload for id, payload in zip(payloads, checked, strict=True) if payload}
        if stored:
            self._put_payloads(stored)

    def delete(self, ids: Sequence[str]) -> None:
        """See `Engine.delete`."""
        self._check_usable()
        if ids and self._made():
            self._drop([to_uuid(id) for id in ids])

    def retrieve(self, ids: Sequence[str], with_vectors: bool = False) -> dict[str, Point]:
        """See `Engine.retrieve`."""
        self._check_usable()
        page = self._page() if with_vectors else _ID_PAGE
        found: dict[str, Point] = {}
        for start in range(0, len(ids) if self._made() else 0, page):
            asked = ids[start : start + page]
            points = map(to_point, self._fetch([to_uuid(id) for id in asked], with_vectors))
            stored = {point.id: point for point in points}
            found |= {id: stored[id] for id in asked if id in stored}
        return found

    def ids(self, where: Where | None = None) -> list[str]:
        """See `Engine.ids`."""
        self._check_usable()
        return sorted(map(stored_id, self._ids(where))) if self._made() else []

    def scroll(self, where: Where | None = None) -> Iterator[Point]:
        """See `Engine.scroll`."""
        ids, page = self.ids(where), self._page()
        for start in range(0, len(ids), page):
            yield from self.retrieve(ids[start : start + page], with_vectors=True).values()

    def search(
        self,
        name: str,
        query: Vector,
        k: int,
        where: Where | None = None,
        *,
        exact: bool = True,
        corpus: Where | None = None,
    ) -> list[Hit]:
        """See `Engine.search`."""
        spaces, k = self.spaces(), checked_k(k)
        asked = Asked(name, checked_query(query, name, spaces), where, exact, corpus)
        found = self._candidates(asked, k, noise(spaces[name], asked.query))
        vectors = [] if isinstance(spaces[name], Sparse) else [record.vector[name] for record in found]
        scores_C = scores(spaces[name], asked.query, vectors, [record.score for record in found])
        ids = [stored_id(record) for record in found]
        return [Hit(ids[n], float(scores_C[n]), stored_payload(found[n])) for n in best(scores_C, ids, k)]

    def count(self, where: Where | None = None) -> int:
        """See `Engine.count`."""
        self._check_usable()
        return self._count(where) if self._made() else 0

    def _candidates(self, asked: Asked, k: int, noise: float) -> Sequence[Scored]:
        """The k best and all that may be as good: an engine cuts equal scores where it likes."""
        limit = k + _SPARE
        found = self._nearest(asked, limit)
        while len(found) == limit and found[-1].score > found[k - 1].score - noise:
            limit *= 4
            found = self._nearest(asked, limit)
        return found

    def _page(self) -> int:
        return _MULTI_PAGE if any(isinstance(space, Multi) for space in self._spaces().values()) else _PAGE

    def _check_made(self) -> None:
        if not self._made():
            raise RetrievalUsageError(f"{self.location} has no space yet; call `ensure` first")

    def _check_name(self, name: str) -> None:
        known = self.spaces()
        if name not in known:
            raise RetrievalUsageError(
                f"{self.location}: no vector is named {name!r} (known: {', '.join(sorted(known)) or 'none'})"
            )

    def _check_exist(self, ids: Sequence[str]) -> None:
        known = self.retrieve(ids)
        unknown = [id for id in ids if id not in known]
        if unknown:
            raise RetrievalError(
                f"{self.location} has no item {unknown[0]!r} ({len(unknown)} of {len(ids)} are unknown); "
                "upsert it first"
            )
