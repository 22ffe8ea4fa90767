"""Which engines and spaces can be optimized, and what to do about the others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vlmkit_retrieval.engines.edge import EdgeEngine
from vlmkit_retrieval.engines.local import LocalEngine, MemoryEngine
from vlmkit_retrieval.engines.server import ServerEngine
from vlmkit_retrieval.engines.tenant import Tenant
from vlmkit_retrieval.errors import RetrievalUsageError
from vlmkit_retrieval.types import Dense, Engine
from vlmkit_retrieval.where import HasVector

# Below, an exact search takes a fraction of a millisecond, and no graph is faster.
FEWEST = 1000
_WHY = {
    ServerEngine: "a Qdrant server builds graphs itself, in the background: give the collection hnsw_config "
    "m=16 (and a quantization_config) by its own API; searches with exact=False then use it",
    LocalEngine: "Qdrant's local mode compares every vector and can do nothing else; "
    "copy the index into the embedded engine: vlmkit index copy A B",
    MemoryEngine: "points in memory alone are always compared one by one; use an engine in a directory",
    Tenant: "tenants share their engine; optimize the engine itself",
}


def check_engine(engine: Engine) -> EdgeEngine:
    """The engine, if it is embedded.

    Raises:
        RetrievalUsageError: It is another one; the message says what to do.
    """
    if isinstance(engine, EdgeEngine):
        return engine
    why = next(
        (why for kind, why in _WHY.items() if isinstance(engine, kind)), "only the embedded engine can"
    )
    raise RetrievalUsageError(f"this index cannot be optimized here: {why}")


def chosen_spaces(engine: EdgeEngine, asked: Sequence[str] | None) -> list[str]:
    """The dense spaces asked for, or all that have enough items.

    Raises:
        RetrievalUsageError: An unknown space, one that is not dense, or one with too few items.
    """
    dense = [name for name, space in engine.spaces().items() if isinstance(space, Dense)]
    for name in asked or ():
        if name not in dense:
            raise RetrievalUsageError(
                f"{engine.location}: {name!r} is no space of one vector an item (those: "
                f"{', '.join(sorted(dense)) or 'none'})"
            )
    large = large_spaces(engine, asked or dense)
    small = [f"{name} has {engine.count(HasVector(name)):,}" for name in asked or dense if name not in large]
    if not large or (asked and small):
        raise RetrievalUsageError(
            f"{engine.location}: too few items with a vector ({'; '.join(small) or 'none'}): below "
            f"{FEWEST:,} an exact search takes a fraction of a millisecond; leave it as it is"
        )
    return large


def large_spaces(engine: EdgeEngine, names: Iterable[str]) -> list[str]:
    """Those spaces that have enough items for anything to be gained."""
    return [name for name in names if engine.count(HasVector(name)) >= FEWEST]
