"""Vector stores behind one contract, and the table that says which location opens which."""

from __future__ import annotations

import os
from collections.abc import Callable
from urllib.parse import urlsplit

from vlmkit_retrieval.errors import RetrievalUsageError
from vlmkit_retrieval.types import Engine

_DEFAULT_COLLECTION = "vlmkit"


def open_engine(location: str | os.PathLike[str]) -> Engine:
    """Open the engine that a location names.

    Args:
        location: A directory (embedded engine), `:memory:`, or `http(s)://host:port[/collection]`, whose API
            key is read from the environment variable QDRANT_API_KEY.

    Raises:
        RetrievalUsageError: A URL of a kind that is not in `ENGINES`.
        RetrievalError: The engine cannot be opened; the message says why.
        MissingPackageError: The engine's package is not installed.
    """
    text = os.fspath(location)
    kind = engine_kind(text)
    return ENGINES[kind](text)


def engine_kind(location: str) -> str:
    """The entry of `ENGINES` for a location: `:memory:`, `http`, `https` or `directory`."""
    if location == ":memory:":
        return location
    scheme, separator, _ = location.partition("://")
    if not separator:
        return "directory"
    if scheme not in ENGINES:
        raise RetrievalUsageError(
            f"{location}: no engine for {scheme}:// (possible: a directory, :memory:, http://host:port/collection)"
        )
    return scheme


def _open_edge(location: str) -> Engine:
    from vlmkit_retrieval.engines.edge import EdgeEngine

    return EdgeEngine(location)


def _open_memory(location: str) -> Engine:
    from vlmkit_retrieval.engines.server import QdrantEngine

    return QdrantEngine(location)


def _open_server(location: str) -> Engine:
    from vlmkit_retrieval.engines.server import QdrantEngine

    parts = urlsplit(location)
    collection = parts.path.strip("/") or _DEFAULT_COLLECTION
    return QdrantEngine(f"{parts.scheme}://{parts.netloc}", collection)


ENGINES: dict[str, Callable[[str], Engine]] = {
    "directory": _open_edge,
    ":memory:": _open_memory,
    "http": _open_server,
    "https": _open_server,
}
