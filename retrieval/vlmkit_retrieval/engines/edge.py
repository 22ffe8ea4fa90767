"""The embedded default: Qdrant's own engine in this process (`qdrant-edge-py` 0.9), a directory, no server.

What the library leaves to its user is done here: one opener at a time (its own lock only exists through the
WAL), NaN and zero vectors refused (it stores them), and forks survived (a forked child that queries would
hang, and one that exits would remove the parent's files). A write is cut into pieces, since the library
holds the interpreter while it writes. Search is exact: `optimize()`, which builds an approximate graph and
holds the interpreter for minutes, is never called.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmkit_retrieval.engines.base import QdrantPoints
from vlmkit_retrieval.engines.checks import ID_KEY, Row
from vlmkit_retrieval.engines.edge_words import EdgeSpaces, EdgeWords, read_spaces, to_stored
from vlmkit_retrieval.engines.filters import to_filter
from vlmkit_retrieval.engines.library import Asked
from vlmkit_retrieval.engines.pieces import cut
from vlmkit_retrieval.engines.records import Record, Scored
from vlmkit_retrieval.errors import MissingPackageError, RetrievalError
from vlmkit_retrieval.lock import FileLock
from vlmkit_retrieval.types import PayloadKind, Space, Sparse
from vlmkit_retrieval.where import All, Where

# Written by the library beside its segments (see `read_spaces`); also how a shard is told from any directory.
_CONFIG = "edge_config.json"
# A piece of a write, in numbers; a row counts for `_ROW` more. 512 rows of 768 took 20 ms of CPU, so that a
# machine five times as slow still stays below 100 ms.
_PIECE = 512 * 1024
_ROW = 256
_IDS = 4096


class EdgeEngine(QdrantPoints):
    """Points in a directory, owned by one process at a time.

    A write is cut into pieces of 512 points (of 768 numbers). A piece survives a kill -9 of this process
    whole or not at all, and all of them survive as soon as the call has returned.

    Args:
        path: Directory of the shard; made when the first space is named by `ensure`.

    Raises:
        IndexLockedError: It is open elsewhere.
        RetrievalError: The directory holds something else, or is damaged.
        MissingPackageError: qdrant-edge-py is not installed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        super().__init__(str(self._path))
        self._edge = _import_edge()
        self._words = EdgeWords(self._edge)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self._path.with_name(self._path.name + ".lock"), self.location)
        self._shard: Any = None
        self._known: dict[str, Space] = {}
        _OPEN.add(self)
        try:
            self._load()
        except BaseException:
            self._lock.release()
            raise

    def _load(self) -> None:
        if not self._path.exists() or (self._path.is_dir() and not any(self._path.iterdir())):
            return
        if not (self._path / _CONFIG).is_file():
            raise RetrievalError(f"{self.location} exists and is not a vlmkit engine; name a new directory")
        self._known = read_spaces(self._path / _CONFIG)
        try:
            self._shard = self._edge.EdgeShard.load(str(self._path))
        except Exception as error:  # the library raises plain Exception for everything
            raise RetrievalError(
                f"{self.location} cannot be opened ({error}); restore it from a copy, or sync into a new one"
            ) from error

    def _made(self) -> bool:
        return self._shard is not None

    def _spaces(self) -> Mapping[str, Space]:
        return self._known

    def _add_spaces(self, spaces: Mapping[str, Space]) -> None:
        if self._shard is None:
            self._create(spaces)
        else:
            for name, space in spaces.items():
                self._update(EdgeSpaces(self._edge).added(name, space))
        self._known = {**self._known, **spaces}

    def _create(self, spaces: Mapping[str, Space]) -> None:
        """Create beside and rename, so that a process killed here leaves no half-made shard."""
        new = self._path.with_name(self._path.name + ".new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        self._edge.EdgeShard.create(str(new), EdgeSpaces(self._edge).config(spaces)).close()
        if self._path.exists():
            self._path.rmdir()
        new.rename(self._path)
        self._load()

    def _drop_space(self, name: str) -> None:
        self._update(self._edge.UpdateOperation.delete_vector_name(name))
        self._known = {known: space for known, space in self._known.items() if known != name}

    def _index_payload(self, path: str, kind: PayloadKind) -> None:
        schema = (
            self._edge.KeywordIndexParams(is_tenant=True)
            if kind == "tenant"
            else getattr(self._edge.PayloadSchemaType, kind.capitalize())
        )
        self._update(self._edge.UpdateOperation.create_field_index(path, schema))

    def _update(self, operation: Any) -> None:
        try:
            self._shard.update(operation)
        except Exception as error:  # the library raises plain Exception for everything
            raise RetrievalError(f"{self.location} refused a write: {error}") from error

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
        records: Sequence[Record] = self._shard.retrieve(uuids, True, with_vectors)
        return records

    def _ids(self, where: Where | None) -> Iterator[Record]:
        only_id, offset = self._edge.PayloadSelector.Include([ID_KEY]), None
        passing = to_filter(where, self._words)
        while True:
            request = self._edge.ScrollRequest(
                offset=offset, limit=_IDS, filter=passing, with_payload=only_id
            )
            records, offset = self._shard.scroll(request)
            yield from records
            if offset is None:
                return

    def _nearest(self, asked: Asked, limit: int) -> Sequence[Scored]:
        edge, sparse = self._edge, isinstance(self._known[asked.name], Sparse)
        # Without a corpus the library counts terms of deleted points, too; "all" counts those that are there.
        counted = to_filter(All(()) if asked.corpus is None else asked.corpus, self._words)
        request = edge.QueryRequest(
            limit=limit,
            query=edge.Query.Nearest(to_stored(asked.query, edge.SparseVector), using=asked.name),
            filter=to_filter(asked.where, self._words),
            with_payload=True,
            with_vector=False if sparse else [asked.name],
            params=edge.SearchParams(exact=asked.exact, idf=edge.IdfParams(counted) if sparse else None),
        )
        found: Sequence[Scored] = self._shard.query(request)
        return found

    def _count(self, where: Where | None) -> int:
        return int(self._shard.count(self._edge.CountRequest(filter=to_filter(where, self._words))))

    def _close(self) -> None:
        try:
            if self._shard is not None:
                self._shard.flush()
                self._shard.close()
        finally:
            self._shard = None
            self._lock.release()


def _cost(row: Row) -> int:
    return row.numbers() + _ROW


def _import_edge() -> Any:
    try:
        import qdrant_edge
    except ImportError as error:
        where = ", or where pip finds no wheel of it, make the index with --engine local:engine"
        raise MissingPackageError("qdrant-edge-py", where) from error
    return qdrant_edge


_OPEN: weakref.WeakSet[EdgeEngine] = weakref.WeakSet()


def _leak_in_child() -> None:
    """Keep every shard of a forked child alive for ever: its destructor would flush and remove files that
    belong to the parent. The leak is a handle in a copy of the memory, and ends with the child."""
    for engine in list(_OPEN):
        if engine._shard is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(engine._shard))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leak_in_child)
