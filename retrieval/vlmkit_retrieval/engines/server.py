"""Qdrant through qdrant-client: a server or cluster by URL, or `:memory:` for experiments and tests."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from vlmkit_retrieval.engines.base import QdrantPoints, Record, stored_id
from vlmkit_retrieval.engines.checks import ID_KEY, Row
from vlmkit_retrieval.errors import MissingPackageError, RetrievalError, RetrievalUsageError
from vlmkit_retrieval.types import Vectors

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

MEMORY = ":memory:"


class QdrantEngine(QdrantPoints):
    """Points in one collection of a Qdrant server.

    Search is exact, so the collection is made without an approximate index. One `upsert` is one request: a
    batch must fit into the server's request limit (32 MiB by default).

    Args:
        url: `http(s)://host:port`, or `:memory:`.
        collection: Name of the collection; made when the first vector is named by `ensure`.
        api_key: Sent with every request; None reads the environment variable QDRANT_API_KEY.

    Raises:
        RetrievalError: The server cannot be reached or refuses.
        RetrievalUsageError: An API key would travel unencrypted to another machine.
        MissingPackageError: qdrant-client is not installed.
    """

    def __init__(self, url: str, collection: str = "vlmkit", api_key: str | None = None) -> None:
        super().__init__(url if url == MEMORY else f"{url}/{collection}")
        self._collection = collection
        self._remote = url != MEMORY
        self._client = _connect(url, api_key)
        self._known = self._read_widths()

    def _read_widths(self) -> dict[str, int]:
        with self._asking():
            if not self._client.collection_exists(self._collection):
                return {}
            vectors = self._client.get_collection(self._collection).config.params.vectors
        if vectors is not None and not isinstance(vectors, dict):
            raise RetrievalError(
                f"{self.location} was not made by vlmkit: its vector has no name; use another name"
            )
        return {name: params.size for name, params in (vectors or {}).items()}

    def _widths(self) -> Mapping[str, int]:
        return self._known

    def _add_vectors(self, vectors: Mapping[str, int]) -> None:
        with self._asking():
            if self._known:
                for name, width in vectors.items():
                    self._add_to_collection(name, width)
            else:
                self._create_collection(vectors)
        self._known = {**self._known, **vectors}

    def _create_collection(self, vectors: Mapping[str, int]) -> None:
        from qdrant_client import models

        cosine = models.Distance.COSINE
        self._client.create_collection(
            self._collection,
            vectors_config={
                name: models.VectorParams(size=width, distance=cosine) for name, width in vectors.items()
            },
            hnsw_config=models.HnswConfigDiff(m=0),
        )

    def _add_to_collection(self, name: str, width: int) -> None:
        from qdrant_client import models

        if not hasattr(self._client, "create_vector_name"):
            raise RetrievalError(
                f"this qdrant-client cannot add vector {name!r} to {self.location}; "
                "do: pip install -U qdrant-client, or sync into a new index"
            )
        dense = models.DenseVectorConfig(size=width, distance=models.Distance.COSINE)
        self._client.create_vector_name(self._collection, name, models.DenseVectorNameConfig(dense=dense))

    def _put(self, rows: Sequence[Row]) -> None:
        from qdrant_client import models

        points = [
            models.PointStruct(
                id=row.id,
                vector={name: vector.tolist() for name, vector in row.vectors.items()},
                payload=row.payload,
            )
            for row in rows
        ]
        with self._asking():
            self._client.upsert(self._collection, points, wait=True)

    def _drop(self, uuids: list[str]) -> None:
        with self._asking():
            self._client.delete(self._collection, list(uuids), wait=True)

    def _fetch(self, uuids: list[str], with_vectors: bool) -> Sequence[Record]:
        with self._asking():
            return self._client.retrieve(
                self._collection, uuids, with_payload=True, with_vectors=with_vectors
            )

    def _stored_ids(self) -> Iterator[str]:
        offset: Any = None
        while True:
            with self._asking():
                records, offset = self._client.scroll(
                    self._collection, limit=4096, offset=offset, with_payload=[ID_KEY]
                )
            yield from map(stored_id, records)
            if offset is None:
                return

    def _nearest(self, name: str, query: Vectors, limit: int) -> Sequence[Any]:
        from qdrant_client import models

        # In memory every search is exact, and the parameter would only make the client warn.
        exact = models.SearchParams(exact=True) if self._remote else None
        with self._asking():
            return self._client.query_points(
                self._collection,
                query.tolist(),
                using=name,
                search_params=exact,
                limit=limit,
                with_payload=True,
                with_vectors=[name],
            ).points

    def _count(self) -> int:
        with self._asking():
            return self._client.count(self._collection, exact=True).count

    def _close(self) -> None:
        self._client.close()

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Turn what the client raises into one line for the user."""
        from qdrant_client.http.exceptions import ApiException

        try:
            yield
        except ApiException as error:  # both an answer that says no, and no answer at all
            reason = " ".join(str(error).split())[:300]
            raise RetrievalError(
                f"Qdrant at {self.location}: {reason}; check that the server runs, its URL and QDRANT_API_KEY"
            ) from error


def _connect(url: str, api_key: str | None) -> QdrantClient:
    try:
        from qdrant_client import QdrantClient
    except ImportError as error:
        raise MissingPackageError("qdrant-client") from error
    if url == MEMORY:
        return QdrantClient(MEMORY)
    key = api_key if api_key is not None else os.environ.get("QDRANT_API_KEY")
    parts = urlsplit(url)
    if key and parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise RetrievalUsageError(f"an API key would be sent unencrypted to {parts.hostname}; use https://")
    return QdrantClient(url=url, api_key=key, timeout=60, check_compatibility=False)
