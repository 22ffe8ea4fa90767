"""Maximal marginal relevance as LangChain's own stores have it: by plain cosines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vlmkit_retrieval.errors import RetrievalUsageError
from vlmkit_retrieval.types import Vectors


def picked(relevance_N: NDArray[np.float64], rows_ND: Vectors, k: int, part: float) -> Sequence[int]:
    """Which candidates to take, in this order.

    First the most relevant one. Then always the one with the largest `part * r - (1 - part) * s`: r is its
    relevance, s its largest cosine to one that was taken. Of equal ones the first is taken. Carbonell and
    Goldstein, "The Use of MMR, Diversity-Based Reranking for Reordering Documents and Producing Summaries",
    SIGIR 1998. The `mmr` of `SearchOptions` brings r to 0..1 first; here r is given, and cosines stay what
    they are, so that `lambda_mult` means what it means in other stores.

    Args:
        relevance_N: Of the candidates, on the scale of a cosine.
        rows_ND: Their vectors; not zero.
        k: At most so many.
        part: From 0 to 1, where candidates are taken by relevance alone.

    Raises:
        RetrievalUsageError: `part` is not in that range.
    """
    if not 0 <= part <= 1:
        raise RetrievalUsageError(f"lambda_mult is {part}; it lies between 0 and 1")
    rows_ND = rows_ND / np.linalg.norm(rows_ND, axis=1, keepdims=True)
    nearest_N = np.full(len(rows_ND), -1.0)
    value_N = relevance_N.copy()
    taken: list[int] = []
    while len(taken) < min(k, len(rows_ND)):
        best = int(np.argmax(value_N))
        taken.append(best)
        nearest_N = np.maximum(nearest_N, rows_ND @ rows_ND[best])
        value_N = part * relevance_N - (1 - part) * nearest_N
        value_N[taken] = -np.inf
    return taken


def scaled(scores_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fused scores, which are no cosines, from 0 (the worst candidate) to 1 (the best)."""
    low, high = scores_N.min(), scores_N.max()
    return (scores_N - low) / (high - low) if high > low else np.ones_like(scores_N)
