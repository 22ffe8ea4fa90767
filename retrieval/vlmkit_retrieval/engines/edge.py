"""The embedded default: Qdrant's own engine in this process (`qdrant-edge-py` 0.9), a directory, no server.

What the library leaves to its user is done here: one opener at a time (its own lock only exists through the
WAL), NaN and zero vectors refused (it stores them), and forks survived (a forked child that queries would
hang, and one that exits would remove the parent's files). Search is exact: `optimize()`, which builds an
approximate graph and holds the interpreter for minutes, is never called.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmkit_retrieval.engines.base import QdrantPoints, Record, stored_id
from vlmkit_retrieval.engines.checks import ID_KEY, Row
from vlmkit_retrieval.errors import MissingPackageError, RetrievalError
from vlmkit_retrieval.lock import FileLock
from vlmkit_retrieval.types import Vectors

# Written by the library beside its segments (see `_read_widths`); also how a shard is told from any
# directory.
_CONFIG = "edge_config.json"


class EdgeEngine(QdrantPoints):
    """Points in a directory, owned by one process at a time.

    Vectors are stored as float32: float16 would merge near neighbours into ties. A batch survives kill -9 of
    this process as soon as `upsert` has returned.

    Args:
        path: Directory of the shard; made when the first vector is named by `ensure`.

    Raises:
        IndexLockedError: It is open elsewhere.
        RetrievalError: The directory holds something else, or is damaged.
        MissingPackageError: qdrant-edge-py is not installed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        super().__init__(str(self._path))
        self._edge = _import_edge()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self._path.with_name(self._path.name + ".lock"), self.location)
        self._shard: Any = None
        self._known: dict[str, int] = {}
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
        self._known = _read_widths(self._path / _CONFIG)
        try:
            self._shard = self._edge.EdgeShard.load(str(self._path))
        except Exception as error:  # the library raises plain Exception for everything
            raise RetrievalError(
                f"{self.location} cannot be opened ({error}); restore it from a copy, or sync into a new one"
            ) from error

    def _widths(self) -> Mapping[str, int]:
        return self._known

    def _add_vectors(self, vectors: Mapping[str, int]) -> None:
        if self._shard is None:
            self._create(vectors)
        else:
            cosine, float32 = self._edge.Distance.Cosine, self._edge.VectorStorageDatatype.Float32
            for name, width in vectors.items():
                self._update(
                    self._edge.UpdateOperation.create_dense_vector(name, width, cosine, None, float32)
                )
        self._known = {**self._known, **vectors}

    def _create(self, vectors: Mapping[str, int]) -> None:
        """Create beside and rename, so that a process killed here leaves no half-made shard."""
        edge, new = self._edge, self._path.with_name(self._path.name + ".new")
        shutil.rmtree(new, ignore_errors=True)
        params = {
            name: edge.EdgeVectorParams(
                width, edge.Distance.Cosine, datatype=edge.VectorStorageDatatype.Float32
            )
            for name, width in vectors.items()
        }
        new.mkdir()
        edge.EdgeShard.create(str(new), edge.EdgeConfig(vectors=params, wal_enabled=True)).close()
        if self._path.exists():
            self._path.rmdir()
        new.rename(self._path)
        self._load()

    def _update(self, operation: Any) -> None:
        try:
            self._shard.update(operation)
        except Exception as error:  # the library raises plain Exception for everything
            raise RetrievalError(f"{self.location} refused a write: {error}") from error

    def _put(self, rows: Sequence[Row]) -> None:
        points = [self._edge.Point(row.id, row.vectors, row.payload) for row in rows]
        self._update(self._edge.UpdateOperation.upsert_points(points))

    def _drop(self, uuids: list[str]) -> None:
        self._update(self._edge.UpdateOperation.delete_points(uuids))

    def _fetch(self, uuids: list[str], with_vectors: bool) -> Sequence[Record]:
        records: Sequence[Record] = self._shard.retrieve(uuids, True, with_vectors)
        return records

    def _stored_ids(self) -> Iterator[str]:
        only_id, offset = self._edge.PayloadSelector.Include([ID_KEY]), None
        while True:
            request = self._edge.ScrollRequest(offset=offset, limit=4096, with_payload=only_id)
            records, offset = self._shard.scroll(request)
            yield from map(stored_id, records)
            if offset is None:
                return

    def _nearest(self, name: str, query: Vectors, limit: int) -> Sequence[Any]:
        request = self._edge.QueryRequest(
            limit=limit,
            query=self._edge.Query.Nearest(query, using=name),
            with_payload=True,
            with_vector=[name],
            params=self._edge.SearchParams(exact=True),
        )
        found: Sequence[Any] = self._shard.query(request)
        return found

    def _count(self) -> int:
        return int(self._shard.count(self._edge.CountRequest()))

    def _close(self) -> None:
        try:
            if self._shard is not None:
                self._shard.flush()
                self._shard.close()
        finally:
            self._shard = None
            self._lock.release()


def _read_widths(config: Path) -> dict[str, int]:
    """Width by vector name; the Python API has no call for it, so the library's own file is read."""
    try:
        stored = json.loads(config.read_text())["vectors"]
        return {name: int(params["size"]) for name, params in stored.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RetrievalError(f"{config} is damaged ({error}); restore it from a copy") from error


def _import_edge() -> Any:
    try:
        import qdrant_edge
    except ImportError as error:
        raise MissingPackageError("qdrant-edge-py") from error
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
