"""What qdrant-client calls spaces, vectors and the parts of a filter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlmkit_retrieval.types import Dense, Multi, Space, Sparse, Terms, Vector
from vlmkit_retrieval.where import Range


def to_stored(vector: Vector) -> Any:
    """A checked vector as the client sends it."""
    if isinstance(vector, Terms):
        from qdrant_client import models

        return models.SparseVector(indices=list(vector.indices), values=list(vector.values))
    return vector.tolist()


def space_config(spaces: Mapping[str, Space]) -> dict[str, Any]:
    """The arguments of `create_collection` that say what can be stored."""
    from qdrant_client import models

    idf = models.SparseVectorParams(modifier=models.Modifier.IDF)
    return {
        "vectors_config": {
            name: models.VectorParams(
                size=space.width,
                distance=models.Distance.COSINE,
                multivector_config=_multi(space),
                datatype=models.Datatype.FLOAT16 if space.half else models.Datatype.FLOAT32,
            )
            for name, space in spaces.items()
            if not isinstance(space, Sparse)
        },
        "sparse_vectors_config": {name: idf for name, space in spaces.items() if isinstance(space, Sparse)},
    }


def added_space(space: Space) -> Any:
    """What adds a space to a collection."""
    from qdrant_client import models

    if isinstance(space, Sparse):
        return models.SparseVectorNameConfig(sparse=models.SparseVectorConfig(modifier=models.Modifier.IDF))
    kinds = models.VectorStorageDatatype
    dense = models.DenseVectorConfig(
        size=space.width,
        distance=models.Distance.COSINE,
        multivector_config=_multi(space),
        datatype=kinds.FLOAT16 if space.half else kinds.FLOAT32,
    )
    return models.DenseVectorNameConfig(dense=dense)


def _multi(space: Dense | Multi) -> Any:
    from qdrant_client import models

    if isinstance(space, Dense):
        return None
    return models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)


def read_spaces(params: Any) -> dict[str, Space] | None:
    """Space by name of a collection's parameters; None where a vector has no name: it is not ours."""
    spaces: dict[str, Space] = {name: Sparse() for name in params.sparse_vectors or {}}
    if not isinstance(params.vectors or {}, dict):
        return None
    for name, stored in (params.vectors or {}).items():
        kind = Multi if stored.multivector_config else Dense
        spaces[name] = kind(stored.size, stored.datatype is not None and stored.datatype.value == "float16")
    return spaces


class ClientWords:
    """See `filters.Words`."""

    def join(
        self,
        must: list[Any] | None = None,
        should: list[Any] | None = None,
        must_not: list[Any] | None = None,
    ) -> Any:
        """See `filters.Words`."""
        from qdrant_client import models

        return models.Filter(must=must, should=should, must_not=must_not)

    def equals(self, key: str, value: bool) -> Any:
        """See `filters.Words`."""
        from qdrant_client import models

        return models.FieldCondition(key=key, match=models.MatchValue(value=value))

    def any_of(self, key: str, values: list[str] | list[int]) -> Any:
        """See `filters.Words`."""
        from qdrant_client import models

        return models.FieldCondition(key=key, match=models.MatchAny(any=values))

    def within(self, key: str, bounds: Range) -> Any:
        """See `filters.Words`."""
        from qdrant_client import models

        limits = models.Range(gte=bounds.gte, gt=bounds.gt, lte=bounds.lte, lt=bounds.lt)
        return models.FieldCondition(key=key, range=limits)

    def has_vector(self, name: str) -> Any:
        """See `filters.Words`."""
        from qdrant_client import models

        return models.HasVectorCondition(has_vector=name)

    def has_id(self, uuids: list[str]) -> Any:
        """See `filters.Words`."""
        from qdrant_client import models

        return models.HasIdCondition(has_id=list(uuids))
