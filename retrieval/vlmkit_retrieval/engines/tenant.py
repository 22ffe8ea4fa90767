"""Several users in one engine, each of whom sees an engine of its own.

Every write carries the tenant's name, every read is filtered by it, and ids are prefixed with it, so that two
tenants may use the same id. An engine with tenants is written through tenants alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from vlmkit_retrieval.errors import RetrievalError, RetrievalUsageError
from vlmkit_retrieval.types import Engine, Hit, PayloadKind, Point, Space, Vector
from vlmkit_retrieval.where import All, Either, HasId, Match, Not, Where, both

TENANT_KEY = "_vlmkit_tenant"
_BETWEEN = "/"


class Tenant:
    """The part of an engine that belongs to one tenant: itself an `Engine`.

    What a term of a sparse space is worth is counted among the tenant's items alone, so that scores tell
    nothing of others. Shared by all tenants are the spaces and the indexes of payload keys.

    Args:
        engine: Whose items are all written through tenants.
        name: Of the tenant; not empty, without "/".

    Raises:
        RetrievalUsageError: No such name is possible.
    """

    def __init__(self, engine: Engine, name: str) -> None:
        if not name or _BETWEEN in name:
            raise RetrievalUsageError(f"tenant {name!r}: a name is not empty and has no {_BETWEEN!r}")
        self._engine = engine
        self._name = name
        self._own = Match(TENANT_KEY, (name,))
        self._closed = False
        if engine.spaces():
            engine.index_payload(TENANT_KEY, "tenant")

    @property
    def approximate(self) -> bool:
        """See `Engine.approximate`."""
        return self._opened.approximate

    def ensure(self, spaces: Mapping[str, Space]) -> None:
        """See `Engine.ensure`; for all tenants."""
        self._opened.ensure(spaces)
        self._opened.index_payload(TENANT_KEY, "tenant")

    def spaces(self) -> Mapping[str, Space]:
        """See `Engine.spaces`; those of all tenants."""
        return self._opened.spaces()

    def drop_space(self, name: str) -> None:
        """Refused: the space is shared.

        Raises:
            RetrievalUsageError: Always.
        """
        raise RetrievalUsageError(
            f"space {name!r} is shared by all tenants; drop it on the engine itself, which takes it from all"
        )

    def index_payload(self, key: str, kind: PayloadKind) -> None:
        """See `Engine.index_payload`; for all tenants."""
        _check_key(key)
        self._opened.index_payload(key, kind)

    def upsert(self, points: Sequence[Point]) -> None:
        """See `Engine.upsert`."""
        for point in points:
            _check_keys(point.id, point.payload)
        self._opened.upsert(
            [
                Point(self._prefixed(point.id), point.vectors, {**point.payload, TENANT_KEY: self._name})
                for point in points
            ]
        )

    def update_vectors(self, vectors: Mapping[str, Mapping[str, Vector]]) -> None:
        """See `Engine.update_vectors`."""
        self._check_own(list(vectors))
        self._opened.update_vectors({self._prefixed(id): named for id, named in vectors.items()})

    def set_payload(self, payloads: Mapping[str, Mapping[str, Any]]) -> None:
        """See `Engine.set_payload`."""
        for id, payload in payloads.items():
            _check_keys(id, payload)
        self._check_own(list(payloads))
        self._opened.set_payload({self._prefixed(id): payload for id, payload in payloads.items()})

    def delete(self, ids: Sequence[str]) -> None:
        """See `Engine.delete`."""
        self._opened.delete([self._prefixed(id) for id in self.retrieve(ids)])

    def retrieve(self, ids: Sequence[str], with_vectors: bool = False) -> dict[str, Point]:
        """See `Engine.retrieve`."""
        found = self._opened.retrieve([self._prefixed(id) for id in ids], with_vectors).values()
        points = [self._unprefixed(point) for point in found if point.payload.get(TENANT_KEY) == self._name]
        return {point.id: point for point in points}

    def ids(self, where: Where | None = None) -> list[str]:
        """See `Engine.ids`."""
        return [id.removeprefix(self._prefixed("")) for id in self._opened.ids(self._mine(where))]

    def scroll(self, where: Where | None = None) -> Iterator[Point]:
        """See `Engine.scroll`."""
        return map(self._unprefixed, self._opened.scroll(self._mine(where)))

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
        hits = self._opened.search(name, query, k, self._mine(where), exact=exact, corpus=self._mine(corpus))
        return [
            Hit(hit.id.removeprefix(self._prefixed("")), hit.score, _stripped(hit.payload)) for hit in hits
        ]

    def count(self, where: Where | None = None) -> int:
        """See `Engine.count`."""
        return self._opened.count(self._mine(where))

    def close(self) -> None:
        """End the use of this tenant; the engine stays open, and is closed by who opened it."""
        self._closed = True

    @property
    def _opened(self) -> Engine:
        if self._closed:
            raise RetrievalError(f"tenant {self._name!r} is closed; make a new one of the engine")
        return self._engine

    def _prefixed(self, id: str) -> str:
        return f"{self._name}{_BETWEEN}{id}"

    def _unprefixed(self, point: Point) -> Point:
        return replace(point, id=point.id.removeprefix(self._prefixed("")), payload=_stripped(point.payload))

    def _mine(self, where: Where | None) -> Where | None:
        return both(self._own, None if where is None else self._renamed(where))

    def _renamed(self, where: Where) -> Where:
        """The filter with the tenant's ids as the engine has them."""
        match where:
            case HasId(ids):
                return HasId(tuple(map(self._prefixed, ids)))
            case All(parts):
                return All(tuple(map(self._renamed, parts)))
            case Either(parts):
                return Either(tuple(map(self._renamed, parts)))
            case Not(part):
                return Not(self._renamed(part))
        return where

    def _check_own(self, ids: Sequence[str]) -> None:
        known = self.retrieve(ids)
        unknown = [id for id in ids if id not in known]
        if unknown:
            raise RetrievalError(
                f"tenant {self._name!r} has no item {unknown[0]!r} ({len(unknown)} of {len(ids)} are "
                "unknown); upsert it first"
            )


def _stripped(payload: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in payload.items() if key != TENANT_KEY}


def _check_keys(id: str, payload: Mapping[str, Any]) -> None:
    for key in payload:
        if key == TENANT_KEY:
            raise RetrievalError(f"item {id!r}: payload key {key!r} is reserved; rename it")


def _check_key(key: str) -> None:
    if key == TENANT_KEY:
        raise RetrievalUsageError(f"payload key {key!r} is reserved, and has an index already")
