"""What an approximate engine misses: its neighbours against those of an exact search.

Shapes: Q queries.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from vlmkit_retrieval.eval.metrics import Floats
from vlmkit_retrieval.types import Engine, Hit, Vectors

# Two scores closer than this are equal: which of the two is found does not matter.
TIE = 1e-6


@runtime_checkable
class ApproximateEngine(Protocol):
    """An engine that may answer from an approximate index or from quantized vectors.

    An `Engine` that has no `approximate` searches exactly.

    Attributes:
        approximate: Whether a plain `search` may miss neighbours.
    """

    approximate: bool

    def search(self, vector_name: str, query: Vectors, k: int, *, exact: bool = False) -> list[Hit]:
        """As `Engine.search`; with `exact` every vector is compared."""
        ...


def as_approximate(engine: Engine | ApproximateEngine) -> ApproximateEngine | None:
    """The engine, if a plain search of it may miss neighbours."""
    return engine if isinstance(engine, ApproximateEngine) and engine.approximate else None


@dataclass(frozen=True)
class AgainstExact:
    """One engine searched both ways for the same vectors.

    Attributes:
        recall_Q: Share of the exact neighbours that were found, by query.
        milliseconds_Q: Of the approximate search.
        exact_milliseconds_Q: Of the exact one.
    """

    recall_Q: Floats
    milliseconds_Q: Floats
    exact_milliseconds_Q: Floats


def against_exact(
    engine: ApproximateEngine, vector_name: str, queries: Sequence[Vectors], k: int
) -> AgainstExact:
    """Search with and without `exact`, query by query.

    Args:
        engine: That searches both ways.
        vector_name: Which vector.
        queries: Vectors of shape (width,).
        k: How many neighbours.
    """
    rows = []
    for query in queries:
        start = time.perf_counter()
        found = engine.search(vector_name, query, k)
        middle = time.perf_counter()
        truth = engine.search(vector_name, query, k, exact=True)
        end = time.perf_counter()
        rows.append((neighbours_found(found, truth), 1e3 * (middle - start), 1e3 * (end - middle)))
    return AgainstExact(*np.array(rows, np.float64).reshape(-1, 3).T)


def neighbours_found(found: Sequence[Hit], truth: Sequence[Hit]) -> float:
    """Share of `truth` that is in `found`; an item that ties with the last of `truth` is as good as it."""
    if not truth:
        return 1.0
    last = truth[-1].score
    better = {hit.id for hit in truth if hit.score > last + TIE}
    among_ties = sum(hit.id not in better and hit.score >= last - TIE for hit in found)
    good = sum(hit.id in better for hit in found) + min(among_ties, len(truth) - len(better))
    return good / len(truth)
