"""Hits that are like each other: shown once (collapse), or pushed apart (MMR)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vlmkit_retrieval.search.hits import Duplicate, SearchHit
from vlmkit_retrieval.types import Vectors

# Items with these equal have the same content; an image and a text never do.
_CONTENT = ("sha256", "kind")


def collapse(
    hits: Sequence[SearchHit], vectors: Mapping[str, Vectors], near: float | None
) -> list[SearchHit]:
    """Every hit that is no duplicate of a better one, with its duplicates.

    Hits are taken in order. One joins the first hit above it that has the same content, else the first whose
    cosine to it is above `near`. Nearness to a duplicate does not count, so a chain of small differences does
    not end in one hit.

    Args:
        hits: Best first.
        vectors: Unit vectors by id, of those that have one.
        near: None for the same content only.
    """
    rows_ND = _rows(hits, vectors)
    kept: list[int] = []
    copies: dict[int, list[Duplicate]] = {}
    first: dict[tuple[Any, ...], int] = {}
    for n, hit in enumerate(hits):
        content = _content(hit)
        same = first.get(content) if content is not None else None
        place, cosine = (same, None) if same is not None else _nearest(rows_ND, n, kept, near)
        if place is None:
            kept.append(n)
            copies[n] = []
        else:
            copies[place].append(Duplicate(hit.id, hit.score, hit.payload, cosine))
        if content is not None:
            first.setdefault(content, n if place is None else place)
    return [replace(hits[n], duplicates=tuple(copies[n])) for n in kept]


def _content(hit: SearchHit) -> tuple[Any, ...] | None:
    return tuple(hit.payload.get(key) for key in _CONTENT) if hit.payload.get("sha256") else None


def _nearest(
    rows_ND: Vectors, n: int, kept: Sequence[int], near: float | None
) -> tuple[int | None, float | None]:
    """The first kept row that is nearer than `near`, with its cosine."""
    if near is None or not kept or not rows_ND[n].any():
        return None, None
    cosines_K = rows_ND[list(kept)] @ rows_ND[n]
    place = int(np.argmax(cosines_K > near))
    if not cosines_K[place] > near:
        return None, None
    return kept[place], float(cosines_K[place])


def diversify(
    hits: Sequence[SearchHit], vectors: Mapping[str, Vectors], relevance: float, k: int
) -> list[SearchHit]:
    """The first `k` hits by maximal marginal relevance, in the order in which they are picked.

    The next one is always that with the largest `relevance * r - (1 - relevance) * s`: r is its score,
    brought to 0 (worst candidate) to 1 (best); s is its largest cosine to one that was picked, 0 where
    either has no vector. Of equal ones the better hit is picked. Carbonell and Goldstein, "The Use of MMR,
    Diversity-Based Reranking for Reordering Documents and Producing Summaries", SIGIR 1998.

    Args:
        hits: Candidates, best first.
        vectors: Unit vectors by id, of those that have one.
        relevance: From 0 to 1, where the order stays as it is.
        k: At most so many.
    """
    rows_ND = _rows(hits, vectors)
    relevance_N = _scaled(np.array([hit.score for hit in hits]))
    nearest_N = np.full(len(hits), -np.inf)
    left = np.ones(len(hits), bool)
    picked: list[SearchHit] = []
    for _ in range(min(k, len(hits))):
        unlike_N = np.where(np.isfinite(nearest_N), nearest_N, 0.0)
        value_N = np.round(relevance * relevance_N - (1 - relevance) * unlike_N, 9)
        best = int(np.argmax(np.where(left, value_N, -np.inf)))
        left[best] = False
        nearest = float(nearest_N[best]) if picked and hits[best].id in vectors else None
        picked.append(replace(hits[best], explanation=replace(hits[best].explanation, nearest=nearest)))
        nearest_N = np.maximum(nearest_N, rows_ND @ rows_ND[best])
    return picked


def _rows(hits: Sequence[SearchHit], vectors: Mapping[str, Vectors]) -> Vectors:
    """One row a hit; of zeros, whose cosine to anything is 0, where it has no vector."""
    width = next((len(vector) for vector in vectors.values()), 1)
    return np.array([vectors.get(hit.id, np.zeros(width)) for hit in hits], np.float32).reshape(-1, width)


def _scaled(scores_N: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    if not len(scores_N):
        return scores_N
    low, high = scores_N.min(), scores_N.max()
    return (scores_N - low) / (high - low) if high > low else np.ones_like(scores_N)
