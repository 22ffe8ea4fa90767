"""`http(s)://host:port/collection?shards=4&replicas=2`: a collection on a server, and how to talk to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from vlmkit_retrieval.errors import RetrievalUsageError

_COLLECTION = "vlmkit"
_REST_PORT, _GRPC_PORT = 6333, 6334
_WORDS = ("grpc", "parallel", "replicas", "shards")


@dataclass(frozen=True)
class ServerUrl:
    """A collection's address, and options of the connection.

    A URL with Qdrant's gRPC port, 6334, speaks gRPC, and REST at port 6333 for what gRPC has not;
    `?grpc=PORT` names another gRPC port beside the REST port of the URL.

    Attributes:
        rest: `http(s)://host:port` of the REST interface.
        collection: Its name.
        grpc_port: Speak gRPC to this port; None speaks REST alone.
        parallel: Requests at a time in an upload.
        shards: Of a new collection; None leaves it to the server. 2 to 4 times as many as nodes.
        replicas: Copies of each shard of a new collection, on different nodes; None leaves it to the server.
    """

    rest: str
    collection: str
    grpc_port: int | None = None
    parallel: int = 4
    shards: int | None = None
    replicas: int | None = None

    @classmethod
    def parse(cls, url: str) -> ServerUrl:
        """Read a URL.

        Raises:
            RetrievalUsageError: No host, an unknown option, or a number that is none.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise RetrievalUsageError(f"{url}: {error}; give http(s)://host:port/collection") from error
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            raise RetrievalUsageError(
                f"{parts.scheme}://{parts.hostname or ''} is no server; give http(s)://host:port/collection, "
                "and an API key in QDRANT_API_KEY"
            )
        options = {name: _number(url, name, value) for name, value in parse_qsl(parts.query, True)}
        grpc = options.get("grpc", _GRPC_PORT if port == _GRPC_PORT else None)
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        rest_port = _REST_PORT if port in (_GRPC_PORT, None) else port
        return cls(
            f"{parts.scheme}://{host}:{rest_port}",
            parts.path.strip("/") or _COLLECTION,
            grpc,
            options.get("parallel", 4),
            options.get("shards"),
            options.get("replicas"),
        )

    def created(self) -> dict[str, Any]:
        """Arguments of `create_collection`: no approximate index, and how the points are spread."""
        from qdrant_client import models

        spread = {"shard_number": self.shards, "replication_factor": self.replicas}
        stated = {name: value for name, value in spread.items() if value is not None}
        return {"hnsw_config": models.HnswConfigDiff(m=0), **stated}

    def __str__(self) -> str:
        return f"{self.rest}/{self.collection}"


def _number(url: str, name: str, value: str) -> int:
    if name not in _WORDS:
        raise RetrievalUsageError(f"{url}: no option {name!r}; possible: {', '.join(_WORDS)}")
    if not (value.isascii() and value.isdigit()) or int(value) < 1:
        raise RetrievalUsageError(f"{url}: {name} is {value!r}; give a whole number from 1 on")
    return int(value)
