"""The embedded default: Qdrant's own engine in this process (`qdrant-edge-py` 0.9), a directory, no server.

What the library leaves to its user is done here: one opener at a time (its own lock only exists through the
WAL), NaN and zero vectors refused (it stores them), and forks survived (a forked child that queries would
hang, and one that exits would remove the parent's files). A write is cut into pieces, since the library
holds the interpreter while it writes. `optimize()`, which builds an approximate graph and holds the
interpreter for minutes, is never called here: another process calls it on a copy, which then takes this
shard's place (see the folder `optimize`). Until then search is exact.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from vlmkit_retrieval.engines.built import Setting
from vlmkit_retrieval.engines.checks import ID_KEY, Row
from vlmkit_retrieval.engines.edge_shard import EdgeShard
from vlmkit_retrieval.engines.edge_words import EdgeSpaces, EdgeWords, to_stored
from vlmkit_retrieval.engines.filters import to_filter
from vlmkit_retrieval.engines.library import Asked
from vlmkit_retrieval.engines.pieces import cut
from vlmkit_retrieval.engines.records import Record, Scored
from vlmkit_retrieval.types import PayloadKind, Space, Sparse
from vlmkit_retrieval.where import All, Where

# A piece of a write, in numbers; a row counts for `_ROW` more. 512 rows of 768 took 20 ms of CPU, so that a
# machine five times as slow still stays below 100 ms.
_PIECE = 512 * 1024
_ROW = 256
_IDS = 4096


class EdgeEngine(EdgeShard):
    """Points in a directory, owned by one process at a time.

    A write is cut into pieces of 512 points (of 768 numbers). A piece survives a kill -9 of this process
    whole or not at all, and all of them survive as soon as the call has returned. A space is added to a shard
    that exists, or dropped, on a copy of it: that takes its time and its room, and a kill leaves the old one.

    Args:
        path: Directory of the shard; made when the first space is named by `ensure`.

    Attributes:
        built: What there is beside exact search, and what was measured of it.
        settings: How spaces are searched with `exact=False`; those not named are searched exactly.

    Raises:
        IndexLockedError: It is open elsewhere.
        RetrievalError: The directory holds something else, or is damaged.
        MissingPackageError: qdrant-edge-py is not installed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self._words = EdgeWords(self._edge)

    @property
    def approximate(self) -> bool:
        """Whether a space has an approximate index, see `built`."""
        return bool(self.settings)

    def _made(self) -> bool:
        with self._inside() as shard:
            return shard is not None

    def _spaces(self) -> Mapping[str, Space]:
        return self._known

    def _add_spaces(self, spaces: Mapping[str, Space]) -> None:
        if self._shard is None:
            self._create(spaces)
        else:
            words = EdgeSpaces(self._edge)
            self._exchange([words.added(name, space) for name, space in spaces.items()], self.built)

    def _drop_space(self, name: str) -> None:
        left = {other: own for other, own in self.built.spaces.items() if other != name}
        delete = self._edge.UpdateOperation.delete_vector_name(name)
        self._exchange([delete], replace(self.built, spaces=left))

    def _index_payload(self, path: str, kind: PayloadKind) -> None:
        schema = (
            self._edge.KeywordIndexParams(is_tenant=True)
            if kind == "tenant"
            else getattr(self._edge.PayloadSchemaType, kind.capitalize())
        )
        self._update(self._edge.UpdateOperation.create_field_index(path, schema))

    def _put(self, rows: Sequence[Row]) -> None:
        for piece in cut(rows, _cost, _PIECE):
            points = [self._edge.Point(row.id, self._stored(row), row.payload) for row in piece]
            self._update(self._edge.UpdateOperation.upsert_points(points))

    def _put_vectors(self, rows: Sequence[Row]) -> None:
        for piece in cut(rows, _cost, _PIECE):
            points = [self._edge.PointVectors(row.id, self._stored(row)) for row in piece]
            self._update(self._edge.UpdateOperation.update_vectors(points))

    def _stored(self, row: Row) -> dict[str, Any]:
        return {name: to_stored(vector, self._edge.SparseVector) for name, vector in row.vectors.items()}

    def _put_payloads(self, payloads: Mapping[str, Mapping[str, Any]]) -> None:
        for uuid, payload in payloads.items():
            self._update(self._edge.UpdateOperation.set_payload([uuid], dict(payload)))

    def _drop(self, uuids: list[str]) -> None:
        for start in range(0, len(uuids), _IDS):
            self._update(self._edge.UpdateOperation.delete_points(uuids[start : start + _IDS]))

    def _fetch(self, uuids: list[str], with_vectors: bool) -> Sequence[Record]:
        with self._inside() as shard:
            records: Sequence[Record] = shard.retrieve(uuids, True, with_vectors)
        return records

    def _ids(self, where: Where | None) -> Iterator[Record]:
        only_id, offset = self._edge.PayloadSelector.Include([ID_KEY]), None
        passing = to_filter(where, self._words)
        while True:
            request = self._edge.ScrollRequest(
                offset=offset, limit=_IDS, filter=passing, with_payload=only_id
            )
            with self._inside() as shard:
                records, offset = shard.scroll(request)
            yield from records
            if offset is None:
                return

    def _nearest(self, asked: Asked, limit: int) -> Sequence[Scored]:
        edge, sparse = self._edge, isinstance(self._known[asked.name], Sparse)
        # Without a corpus the library counts terms of deleted points, too; "all" counts those that are there.
        counted = to_filter(All(()) if asked.corpus is None else asked.corpus, self._words)
        setting = None if asked.exact else self.settings.get(asked.name)
        params = edge.SearchParams(
            exact=setting is None,
            idf=edge.IdfParams(counted) if sparse else None,
            **(setting or Setting()).params(edge),
        )
        request = edge.QueryRequest(
            limit=limit,
            query=edge.Query.Nearest(to_stored(asked.query, edge.SparseVector), using=asked.name),
            filter=to_filter(asked.where, self._words),
            with_payload=True,
            with_vector=False if sparse else [asked.name],
            params=params,
        )
        with self._inside() as shard:
            found: Sequence[Scored] = shard.query(request)
        return found

    def _count(self, where: Where | None) -> int:
        with self._inside() as shard:
            return int(shard.count(self._edge.CountRequest(filter=to_filter(where, self._words))))


def _cost(row: Row) -> int:
    return row.numbers() + _ROW
