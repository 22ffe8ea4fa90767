"""The order of hits, the same for every engine.

Engines add in different orders, so that equal vectors get scores that differ in the last bit, and the order
of ties would depend on the engine. Scores over cosines are therefore computed again, in float64.

Shapes: C candidates, Q vectors of a query, N vectors of an item, D numbers of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmkit_retrieval.types import Dense, Multi, Space, Sparse, Vector


def noise(space: Space, query: Vector) -> float:
    """How far an engine's score may be from ours: two candidates closer than this may be in either order.

    An engine adds in float32; a half space compares the query as float16, too.
    """
    match space:
        case Dense(_, half):
            return 2e-4 if half else 1e-5
        case Multi(_, half):
            return (2e-4 if half else 1e-5) * len(np.asarray(query))
        case Sparse():
            return 1e-5


def scores(
    space: Space, query: Vector, vectors: Sequence[Any], given: Sequence[float]
) -> NDArray[np.float64]:
    """The score of each candidate, float64 of shape (C,).

    Args:
        space: Which space.
        query: A checked query of it.
        vectors: The candidates' vectors as stored, lists of numbers; not used in a sparse space.
        given: Scores of the engine, which in a sparse space are the result: only it knows how rare a term is.
    """
    if isinstance(space, Sparse) or not vectors:
        return np.asarray(given, np.float64)
    asked = np.asarray(query, np.float64)
    if isinstance(space, Dense):
        # Not a matrix product: BLAS may add equal rows in different orders.
        cosines_C: NDArray[np.float64] = (np.array(vectors, np.float64) * asked).sum(1)
        return np.clip(cosines_C, -1.0, 1.0)
    return np.array([max_sim(asked, np.array(vectors_ND, np.float64)) for vectors_ND in vectors])


def max_sim(query_QD: NDArray[np.float64], vectors_ND: NDArray[np.float64]) -> float:
    """The sum over the query's vectors of each one's best cosine (ColBERT, arXiv:2004.12832)."""
    return float((query_QD @ vectors_ND.T).max(1).sum())


def best(scores_C: NDArray[np.float64], ids: Sequence[str], k: int) -> list[int]:
    """Numbers of the `k` best candidates, best first, equal scores in order of id."""
    return sorted(range(len(ids)), key=lambda n: (-scores_C[n], ids[n]))[:k]
