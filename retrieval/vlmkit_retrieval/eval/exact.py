"""What an approximate engine misses: its neighbours against those of an exact search.

Shapes: Q queries.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlmkit_retrieval.eval.metrics import Floats
from vlmkit_retrieval.types import Engine, Hit, Vectors

# Two scores closer than this are equal: which of the two is found does not matter.
TIE = 1e-6


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


def against_exact(engine: Engine, vector_name: str, queries: Sequence[Vectors], k: int) -> AgainstExact:
    """Search by the approximate index and exactly, query by query.

    Args:
        engine: That searches both ways.
        vector_name: Which vector.
        queries: Vectors of shape (width,).
        k: How many neighbours.
    """
    rows = []
    for query in queries:
        start = time.perf_counter()
        found = engine.search(vector_name, query, k, exact=False)
        middle = time.perf_counter()
        truth = engine.search(vector_name, query, k)
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
