"""Builds graphs and compressed vectors into a shard, in the process that calls it: `child.py` alone does.

Sparse spaces, multi spaces and dense ones that are not named stay searched exactly. Points written later go
to a part of the shard without a graph; every search compares all of that part.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlmkit_retrieval.engines.edge_shard import CONFIG, import_edge
from vlmkit_retrieval.engines.edge_words import EdgeSpaces, read_spaces
from vlmkit_retrieval.errors import RetrievalError
from vlmkit_retrieval.optimize.modes import Mode
from vlmkit_retrieval.types import Dense, Multi, Space, Sparse

EDGES, EDGES_BUILT_FROM = 16, 100
# Kilobytes of vectors. Where a filter leaves fewer, all of them are compared; the library's own default.
FULL_SCAN = 10_000
# Everything that is named is built, however small.
ALWAYS = 1


def build(shard: Path, modes: Mapping[str, Mode], full_scan: int = FULL_SCAN) -> None:
    """Build into a shard that is closed, and close it again.

    Args:
        shard: Its directory.
        modes: What to build, by space.
        full_scan: Kilobytes of vectors below which a graph is not used.

    Raises:
        RetrievalError: The library refuses.
    """
    edge = import_edge()
    config = _config(edge, read_spaces(shard / CONFIG), modes, full_scan)
    try:
        opened = edge.EdgeShard.load(str(shard), config)
        opened.optimize()
        opened.flush()
        opened.close()
    except Exception as error:  # the library raises plain Exception for everything
        raise RetrievalError(f"building failed: {error}") from error


def _config(edge: Any, spaces: Mapping[str, Space], modes: Mapping[str, Mode], full_scan: int) -> Any:
    none = edge.HnswIndexConfig(0, EDGES_BUILT_FROM, full_scan)
    return edge.EdgeConfig(
        vectors={
            name: _vectors(edge, space, modes.get(name), full_scan)
            for name, space in spaces.items()
            if not isinstance(space, Sparse)
        },
        hnsw_config=none,
        optimizers=edge.EdgeOptimizersConfig(
            default_segment_number=1, indexing_threshold=ALWAYS, prevent_unoptimized=False
        ),
    )


def _vectors(edge: Any, space: Dense | Multi, mode: Mode | None, full_scan: int) -> Any:
    words = EdgeSpaces(edge)
    edges = EDGES if mode is not None and mode.graph else 0
    compressed = _compressed(edge, mode)
    return edge.EdgeVectorParams(
        space.width,
        edge.Distance.Cosine,
        multivector_config=words.multi(space),
        datatype=words.datatype(space),
        hnsw_config=edge.HnswIndexConfig(edges, EDGES_BUILT_FROM, full_scan),
        quantization_config=compressed,
        # Full vectors of which only the best are compared again may stay on the disk.
        memory=edge.Memory.Cached if compressed is None else edge.Memory.Cold,
    )


def _compressed(edge: Any, mode: Mode | None) -> Any:
    match mode.compression if mode is not None else None:
        case None:
            return None
        case "int8":
            return edge.ScalarQuantizationConfig(edge.ScalarType.Int8, memory=edge.Memory.Pinned)
        case "turboquant":
            bits = edge.TurboQuantBitSize.Bits4
            return edge.TurboQuantQuantizationConfig(bits=bits, memory=edge.Memory.Pinned)
