"""A Qdrant server or cluster by URL: REST or gRPC, upload by bytes in parallel, shards and replicas.

We have not run this against a server; what it sends is tested, and the engines' suite runs against one where
VLMKIT_QDRANT_URL names it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from vlmkit_retrieval.engines.checks import Row
from vlmkit_retrieval.engines.client import REQUEST_BYTES, ClientPoints, import_client
from vlmkit_retrieval.engines.library import Asked
from vlmkit_retrieval.engines.pieces import cut
from vlmkit_retrieval.engines.server_url import ServerUrl
from vlmkit_retrieval.engines.upload import reason, send_all, with_retry
from vlmkit_retrieval.errors import RetrievalError, RetrievalUsageError
from vlmkit_retrieval.types import PayloadKind

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

# Of one number at most: as JSON, and as gRPC sends it.
_JSON_NUMBER, _GRPC_NUMBER = 24, 5
_ROW = 256


class ServerEngine(ClientPoints):
    """Points in one collection of a Qdrant server.

    Search is exact: a new collection is made without an approximate index, so that a bulk upload builds none.
    A call is cut into requests of at most 5 MB, sent in parallel; each is stored whole or not at all, and
    repeated when the server is busy or cannot be reached for a moment.

    Args:
        url: See `ServerUrl`.
        api_key: Sent with every request; None reads the environment variable QDRANT_API_KEY.

    Raises:
        RetrievalError: The server cannot be reached or refuses.
        RetrievalUsageError: The URL is wrong, or an API key would travel unencrypted to another machine.
        MissingPackageError: qdrant-client is not installed.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self._url = ServerUrl.parse(url)
        client = _connect(self._url, api_key)
        super().__init__(str(self._url), client, self._url.collection, self._url.created())
        self._indexed = self._exists and self._has_graph()

    @property
    def approximate(self) -> bool:
        """Whether somebody has given the collection an approximate index."""
        return self._indexed

    def _has_graph(self) -> bool:
        with self._asking():
            config = self._client.get_collection(self._collection).config
        return bool(config.hnsw_config.m)

    def _index_payload(self, path: str, kind: PayloadKind) -> None:
        from qdrant_client import models

        schema = (
            models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, is_tenant=True)
            if kind == "tenant"
            else models.PayloadSchemaType(kind)
        )
        with self._asking():
            self._client.create_payload_index(self._collection, path, schema, wait=True)

    def _put(self, rows: Sequence[Row]) -> None:
        pieces = cut(rows, self._bytes, REQUEST_BYTES)
        with self._asking():
            send_all(pieces, with_retry(super()._put), self._url.parallel)

    def _put_vectors(self, rows: Sequence[Row]) -> None:
        pieces = cut(rows, self._bytes, REQUEST_BYTES)
        with self._asking():
            send_all(pieces, with_retry(super()._put_vectors), self._url.parallel)

    def _bytes(self, row: Row) -> int:
        number = _JSON_NUMBER if self._url.grpc_port is None else _GRPC_NUMBER
        return row.numbers() * number + len(json.dumps(row.payload)) + _ROW

    def _params(self, asked: Asked, sparse: bool) -> Any:
        from qdrant_client import models

        params = super()._params(asked, sparse) or models.SearchParams()
        return params.model_copy(update={"exact": asked.exact})

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except RetrievalError:
            raise
        except Exception as error:
            why = reason(error)
            if why is None:
                raise
            raise RetrievalError(
                f"Qdrant at {self.location}: {why}; check that the server runs, its URL and QDRANT_API_KEY"
            ) from error


def _connect(url: ServerUrl, api_key: str | None) -> QdrantClient:
    client = import_client()
    key = api_key if api_key is not None else os.environ.get("QDRANT_API_KEY")
    parts = urlsplit(url.rest)
    if key and parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise RetrievalUsageError(f"an API key would be sent unencrypted to {parts.hostname}; use https://")
    return client(
        url=url.rest,
        api_key=key,
        prefer_grpc=url.grpc_port is not None,
        grpc_port=url.grpc_port or 6334,
        timeout=60,
        check_compatibility=False,
    )
