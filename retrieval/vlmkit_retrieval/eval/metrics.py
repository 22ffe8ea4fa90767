"""Recall, MRR, nDCG and MAP of rankings against graded judgements, as trec_eval defines them.

A metric sees rankings, never scores: who made the ranking decided how equal scores are ordered (see `runs`).

Shapes: Q queries, K ranks (the cut-off, the k of `@k`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlmkit_retrieval.errors import RetrievalUsageError

# Grade by item by query; an item is relevant from grade 1 on, one that is not named has grade 0.
Qrels = Mapping[str, Mapping[str, int]]
# Items by query, best first. A dict of scores in this order will do: only its keys are read.
Rankings = Mapping[str, Collection[str]]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Judged:
    """Rankings with grades in place of items.

    Attributes:
        queries: Their ids, in the order of the rows.
        grades_QK: Grade of the item at each rank; 0 for an item without judgement, and past the end.
        ideal_QK: The same of the best ranking there can be.
        relevant_Q: How many items are relevant to the query, found or not.
    """

    queries: tuple[str, ...]
    grades_QK: Floats
    ideal_QK: Floats
    relevant_Q: Floats


def judge(qrels: Qrels, rankings: Rankings, k: int) -> Judged:
    """Look up the grades of the first `k` items of every query that has judgements.

    A query without a ranking counts as one that found nothing, as with `trec_eval -c`; a ranking without
    judgements is left out. Negative grades count as 0.

    Raises:
        RetrievalUsageError: `k` is below 1, there is no query, or a ranking has an item twice.
    """
    if k < 1:
        raise RetrievalUsageError(f"k is {k}; measure at least the first item")
    if not qrels:
        raise RetrievalUsageError("there is no query with judgements; give qrels of at least one")
    grades_QK, ideal_QK = np.zeros((len(qrels), k)), np.zeros((len(qrels), k))
    for row, (query, grades) in enumerate(qrels.items()):
        items = list(rankings.get(query, ()))
        _check_once(query, items)
        found = [max(grades.get(item, 0), 0) for item in items[:k]]
        best = sorted((max(grade, 0) for grade in grades.values()), reverse=True)[:k]
        grades_QK[row, : len(found)] = found
        ideal_QK[row, : len(best)] = best
    relevant_Q = np.array([sum(grade > 0 for grade in grades.values()) for grades in qrels.values()], float)
    return Judged(tuple(qrels), grades_QK, ideal_QK, relevant_Q)


def _check_once(query: str, items: list[str]) -> None:
    if len(set(items)) < len(items):
        twice = next(item for item in items if items.count(item) > 1)
        raise RetrievalUsageError(f"the ranking of query {query!r} has {twice!r} twice; give each item once")


def recall(judged: Judged) -> Floats:
    """Share of the relevant items that are among the first K; shape (Q,)."""
    return _share((judged.grades_QK > 0).sum(1), judged.relevant_Q)


def reciprocal_rank(judged: Judged) -> Floats:
    """1 / rank of the first relevant item, 0 where there is none among the first K; shape (Q,)."""
    hits_QK = judged.grades_QK > 0
    return np.where(hits_QK.any(1), 1.0 / (hits_QK.argmax(1) + 1), 0.0)


def ndcg(judged: Judged) -> Floats:
    """Discounted gain over that of the best ranking, shape (Q,).

    DCG = sum over ranks r = 1..K of grade_r / log2(r + 1): the gain is the grade itself, as in trec_eval's
    `ndcg_cut` and in Järvelin and Kekäläinen (2002), https://doi.org/10.1145/582415.582418; not 2^grade - 1.
    """
    discount_K = 1.0 / np.log2(np.arange(judged.grades_QK.shape[1]) + 2)
    return _share(judged.grades_QK @ discount_K, judged.ideal_QK @ discount_K)


def average_precision(judged: Judged) -> Floats:
    """Sum of the precision at the rank of each relevant item found, over all relevant items; shape (Q,).

    As trec_eval's `map_cut`: divided by the number of relevant items, also where that is more than K.
    """
    hits_QK = judged.grades_QK > 0
    precision_QK = hits_QK.cumsum(1) / np.arange(1, hits_QK.shape[1] + 1)
    return _share((precision_QK * hits_QK).sum(1), judged.relevant_Q)


def _share(part_Q: NDArray[np.float64 | np.int64], whole_Q: Floats) -> Floats:
    """part / whole, 0 where the query has nothing to find."""
    return np.divide(part_Q, whole_Q, out=np.zeros(len(whole_Q)), where=whole_Q > 0)


METRICS: dict[str, Callable[[Judged], Floats]] = {
    "recall": recall,
    "mrr": reciprocal_rank,
    "ndcg": ndcg,
    "map": average_precision,
}


@dataclass(frozen=True)
class Scores:
    """What every metric gives for every query.

    Attributes:
        queries: Their ids.
        values: Values of shape (Q,) by metric, e.g. `recall@10`.
    """

    queries: tuple[str, ...]
    values: Mapping[str, Floats]

    def means(self) -> dict[str, float]:
        """The mean over all queries, by metric."""
        return {name: float(values_Q.mean()) for name, values_Q in self.values.items()}

    def by_query(self) -> dict[str, dict[str, float]]:
        """The values of each query, by metric."""
        rows = zip(*(values_Q.tolist() for values_Q in self.values.values()), strict=True)
        return {
            query: dict(zip(self.values, row, strict=True))
            for query, row in zip(self.queries, rows, strict=True)
        }


def score(qrels: Qrels, rankings: Rankings, k: int = 10) -> Scores:
    """All `METRICS` at `k`, by query; see `judge` for what counts.

    Raises:
        RetrievalUsageError: As `judge`.
    """
    judged = judge(qrels, rankings, k)
    return Scores(judged.queries, {f"{name}@{k}": metric(judged) for name, metric in METRICS.items()})
