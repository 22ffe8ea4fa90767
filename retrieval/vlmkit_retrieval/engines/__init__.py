"""Vector stores behind one contract, and the table that says which location opens which."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from vlmkit_retrieval.errors import RetrievalUsageError
from vlmkit_retrieval.types import Engine

_LOCAL = "local:"


def open_engine(location: str | os.PathLike[str]) -> Engine:
    """Open the engine that a location names.

    Args:
        location: A directory (embedded engine), `local:DIRECTORY` (the fallback without the embedded engine's
            wheel), `:memory:`, or `http(s)://host:port[/collection][?shards=4&replicas=2]` (see
            `server_url.ServerUrl`), whose API key is read from the environment variable QDRANT_API_KEY.

    Raises:
        RetrievalUsageError: A URL of a kind that is not in `ENGINES`.
        RetrievalError: The engine cannot be opened; the message says why.
        MissingPackageError: The engine's package is not installed.
    """
    text = os.fspath(location)
    return ENGINES[engine_kind(text)](text)


def engine_kind(location: str) -> str:
    """The entry of `ENGINES` for a location: `:memory:`, `http`, `https`, `local` or `directory`."""
    if location == ":memory:":
        return location
    if location.startswith(_LOCAL):
        return "local"
    scheme, separator, _ = location.partition("://")
    if not separator:
        return "directory"
    if scheme not in ENGINES:
        raise RetrievalUsageError(
            f"{location}: no engine for {scheme}:// (possible: a directory, local:DIRECTORY, :memory:, "
            "http://host:port/collection)"
        )
    return scheme


def located(location: str, base: Path) -> str:
    """The location with a relative directory put below `base`."""
    match engine_kind(location):
        case "directory":
            return str(base / location)
        case "local":
            return f"{_LOCAL}{base / location.removeprefix(_LOCAL)}"
    return location


def _open_edge(location: str) -> Engine:
    from vlmkit_retrieval.engines.edge import EdgeEngine

    return EdgeEngine(location)


def _open_memory(location: str) -> Engine:
    from vlmkit_retrieval.engines.local import MemoryEngine

    return MemoryEngine()


def _open_local(location: str) -> Engine:
    from vlmkit_retrieval.engines.local import LocalEngine

    return LocalEngine(location.removeprefix(_LOCAL))


def _open_server(location: str) -> Engine:
    from vlmkit_retrieval.engines.server import ServerEngine

    return ServerEngine(location)


ENGINES: dict[str, Callable[[str], Engine]] = {
    "directory": _open_edge,
    "local": _open_local,
    ":memory:": _open_memory,
    "http": _open_server,
    "https": _open_server,
}
