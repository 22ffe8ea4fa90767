"""What qdrant-edge-py calls spaces, vectors and the parts of a filter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vlmkit_retrieval.errors import RetrievalError
from vlmkit_retrieval.types import Dense, Multi, Space, Sparse, Terms, Vector
from vlmkit_retrieval.where import Range


def to_stored(vector: Vector, sparse: Any) -> Any:
    """A checked vector as the library reads it fastest: a memory view half the time of an array."""
    if isinstance(vector, Terms):
        return sparse(vector.indices, vector.values)
    return vector.data if vector.ndim == 1 else [row.data for row in vector]


class EdgeSpaces:
    """Spaces in the library's words.

    Args:
        edge: The module.
    """

    def __init__(self, edge: Any) -> None:
        self._edge = edge

    def config(self, spaces: Mapping[str, Space]) -> Any:
        """What a new shard is made with; the WAL is always on."""
        dense, sparse = {}, {}
        for name, space in spaces.items():
            if isinstance(space, Sparse):
                sparse[name] = self._edge.EdgeSparseVectorParams(modifier=self._edge.Modifier.Idf)
            else:
                dense[name] = self._edge.EdgeVectorParams(
                    space.width,
                    self._edge.Distance.Cosine,
                    multivector_config=self.multi(space),
                    datatype=self.datatype(space),
                )
        return self._edge.EdgeConfig(vectors=dense, sparse_vectors=sparse, wal_enabled=True)

    def added(self, name: str, space: Space) -> Any:
        """The update that adds a space to a shard."""
        update = self._edge.UpdateOperation
        if isinstance(space, Sparse):
            return update.create_sparse_vector(name, self._edge.Modifier.Idf)
        cosine = self._edge.Distance.Cosine
        return update.create_dense_vector(name, space.width, cosine, self.multi(space), self.datatype(space))

    def multi(self, space: Dense | Multi) -> Any:
        """How several vectors of an item are compared; None for a space of one."""
        if isinstance(space, Dense):
            return None
        return self._edge.MultiVectorConfig(self._edge.MultiVectorComparator.MaxSim)

    def datatype(self, space: Dense | Multi) -> Any:
        """What a number is stored as."""
        kinds = self._edge.VectorStorageDatatype
        return kinds.Float16 if space.half else kinds.Float32


def read_spaces(config: Path) -> dict[str, Space]:
    """Space by name; the Python API has no call for it, so the library's own file is read.

    Raises:
        RetrievalError: The file is damaged, or names what vlmkit does not make.
    """
    try:
        stored = json.loads(config.read_text())
        spaces: dict[str, Space] = {name: Sparse() for name in stored.get("sparse_vectors") or {}}
        for name, params in (stored.get("vectors") or {}).items():
            kind = Multi if params.get("multivector_config") else Dense
            spaces[name] = kind(int(params["size"]), params.get("datatype") == "float16")
        return spaces
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RetrievalError(f"{config} is damaged ({error}); restore it from a copy") from error


class EdgeWords:
    """See `filters.Words`.

    Args:
        edge: The module.
    """

    def __init__(self, edge: Any) -> None:
        self._edge = edge

    def join(
        self,
        must: list[Any] | None = None,
        should: list[Any] | None = None,
        must_not: list[Any] | None = None,
    ) -> Any:
        """See `filters.Words`."""
        return self._edge.Filter(must=must, should=should, must_not=must_not)

    def equals(self, key: str, value: bool) -> Any:
        """See `filters.Words`. The library takes Python's True for 1, and NumPy's for true."""
        return self._edge.FieldCondition(key, match=self._edge.MatchValue(np.bool_(value)))

    def any_of(self, key: str, values: list[str] | list[int]) -> Any:
        """See `filters.Words`."""
        return self._edge.FieldCondition(key, match=self._edge.MatchAny(values))

    def within(self, key: str, bounds: Range) -> Any:
        """See `filters.Words`."""
        limits = self._edge.RangeFloat(gte=bounds.gte, gt=bounds.gt, lte=bounds.lte, lt=bounds.lt)
        return self._edge.FieldCondition(key, range=limits)

    def has_vector(self, name: str) -> Any:
        """See `filters.Words`."""
        return self._edge.HasVectorCondition(name)

    def has_id(self, uuids: list[str]) -> Any:
        """See `filters.Words`."""
        return self._edge.HasIdCondition(set(uuids))
