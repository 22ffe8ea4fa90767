"""Qdrant through qdrant-client: what a server, `:memory:` and local files have in common."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vlmkit_retrieval.engines.base import QdrantPoints
from vlmkit_retrieval.engines.checks import ID_KEY, Row
from vlmkit_retrieval.engines.client_words import (
    ClientWords,
    added_space,
    read_spaces,
    space_config,
    to_stored,
)
from vlmkit_retrieval.engines.filters import to_filter
from vlmkit_retrieval.engines.library import Asked
from vlmkit_retrieval.engines.pieces import cut
from vlmkit_retrieval.engines.records import Record, Scored
from vlmkit_retrieval.errors import MissingPackageError, RetrievalError
from vlmkit_retrieval.types import PayloadKind, Space, Sparse
from vlmkit_retrieval.where import Where

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

_IDS = 4096
# Of a request. A server takes 32 MiB; smaller ones can be sent in parallel and cost less to repeat.
REQUEST_BYTES = 5_000_000
# What setting a payload takes beside it; also, so no request has more than some hundred operations.
_OPERATION_BYTES = REQUEST_BYTES // 256


class ClientPoints(QdrantPoints):
    """Points in one collection.

    Args:
        location: For messages.
        client: Of qdrant-client.
        collection: Its name; made when the first space is named by `ensure`.
        created: More arguments for `create_collection`.
    """

    def __init__(
        self, location: str, client: QdrantClient, collection: str, created: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(location)
        self._client = client
        self._collection = collection
        self._created = created or {}
        self._words = ClientWords()
        with self._asking():
            self._exists = client.collection_exists(collection)
            self._known = self._read_spaces() if self._exists else {}

    def _read_spaces(self) -> dict[str, Space]:
        params = self._client.get_collection(self._collection).config.params
        spaces = read_spaces(params)
        if spaces is None:
            raise RetrievalError(
                f"{self.location} was not made by vlmkit: its vector has no name; use another name"
            )
        return spaces

    def _made(self) -> bool:
        return self._exists

    def _spaces(self) -> Mapping[str, Space]:
        return self._known

    def _add_spaces(self, spaces: Mapping[str, Space]) -> None:
        with self._asking():
            if self._exists:
                self._check_can_add(next(iter(spaces)))
                for name, space in spaces.items():
                    self._client.create_vector_name(self._collection, name, added_space(space))
            else:
                self._client.create_collection(self._collection, **space_config(spaces), **self._created)
        self._exists = True
        self._known = {**self._known, **spaces}

    def _check_can_add(self, name: str) -> None:
        if not hasattr(self._client, "create_vector_name"):
            raise RetrievalError(
                f"this qdrant-client cannot add vector {name!r} to {self.location}; "
                "do: pip install -U qdrant-client, or sync into a new index"
            )

    def _drop_space(self, name: str) -> None:
        self._check_can_add(name)
        with self._asking():
            self._client.delete_vector_name(self._collection, name)
        self._known = {known: space for known, space in self._known.items() if known != name}

    def _index_payload(self, path: str, kind: PayloadKind) -> None:
        """Without a server nothing is faster by an index, and the client would only warn."""

    def _put(self, rows: Sequence[Row]) -> None:
        from qdrant_client import models

        points = [models.PointStruct(id=row.id, vector=_stored(row), payload=row.payload) for row in rows]
        with self._asking():
            self._client.upsert(self._collection, points, wait=True)

    def _put_vectors(self, rows: Sequence[Row]) -> None:
        from qdrant_client import models

        points = [models.PointVectors(id=row.id, vector=_stored(row)) for row in rows]
        with self._asking():
            self._client.update_vectors(self._collection, points, wait=True)

    def _put_payloads(self, payloads: Mapping[str, Mapping[str, Any]]) -> None:
        from qdrant_client import models

        for piece in cut(payloads.items(), self._payload_cost, REQUEST_BYTES):
            operations = [
                models.SetPayloadOperation(
                    set_payload=models.SetPayload(payload=dict(payload), points=[uuid])
                )
                for uuid, payload in piece
            ]
            with self._asking():
                self._client.batch_update_points(self._collection, operations, wait=True)

    def _payload_cost(self, item: tuple[str, Mapping[str, Any]]) -> int:
        """Bytes of a request at most, where there are requests."""
        return len(json.dumps(item[1])) + _OPERATION_BYTES

    def _drop(self, uuids: list[str]) -> None:
        for start in range(0, len(uuids), _IDS):
            with self._asking():
                self._client.delete(self._collection, list(uuids[start : start + _IDS]), wait=True)

    def _fetch(self, uuids: list[str], with_vectors: bool) -> Sequence[Record]:
        with self._asking():
            return self._client.retrieve(
                self._collection, uuids, with_payload=True, with_vectors=with_vectors
            )

    def _ids(self, where: Where | None) -> Iterator[Record]:
        offset: Any = None
        passing = to_filter(where, self._words)
        while True:
            with self._asking():
                records, offset = self._client.scroll(
                    self._collection, passing, limit=_IDS, offset=offset, with_payload=[ID_KEY]
                )
            yield from records
            if offset is None:
                return

    def _nearest(self, asked: Asked, limit: int) -> Sequence[Scored]:
        sparse = isinstance(self._known[asked.name], Sparse)
        with self._asking():
            return self._client.query_points(
                self._collection,
                to_stored(asked.query),
                using=asked.name,
                query_filter=to_filter(asked.where, self._words),
                search_params=self._params(asked, sparse),
                limit=limit,
                with_payload=True,
                with_vectors=False if sparse else [asked.name],
            ).points

    def _params(self, asked: Asked, sparse: bool) -> Any:
        """Without a server every search is exact, and only the corpus of a sparse search has a meaning."""
        from qdrant_client import models

        if not sparse or asked.corpus is None:
            return None
        if not hasattr(models, "IdfCorpusParams"):
            raise RetrievalError(
                f"this qdrant-client cannot count terms among a part of {self.location}; "
                "do: pip install -U qdrant-client"
            )
        return models.SearchParams(idf=models.IdfCorpusParams(corpus=to_filter(asked.corpus, self._words)))

    def _count(self, where: Where | None) -> int:
        with self._asking():
            return self._client.count(self._collection, to_filter(where, self._words), exact=True).count

    def _close(self) -> None:
        self._client.close()

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Turn what the client raises into one line for the user."""
        yield


def _stored(row: Row) -> dict[str, Any]:
    return {name: to_stored(vector) for name, vector in row.vectors.items()}


def import_client() -> type[QdrantClient]:
    """The class of the client.

    Raises:
        MissingPackageError: qdrant-client is not installed.
    """
    try:
        from qdrant_client import QdrantClient
    except ImportError as error:
        raise MissingPackageError("qdrant-client") from error
    return QdrantClient
