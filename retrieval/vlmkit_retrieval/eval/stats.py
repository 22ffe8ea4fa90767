"""How sure a mean over queries is: bootstrap intervals, and the paired comparison of two systems.

Queries are drawn with replacement, all metrics from the same draws (Efron and Tibshirani, 1993; for retrieval
Sakai, 2006, https://doi.org/10.1145/1148170.1148261). Intervals are percentiles; a seed makes them the same
in every run.

Shapes: Q queries, M metrics, B resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vlmkit_retrieval.errors import RetrievalUsageError
from vlmkit_retrieval.eval.metrics import Floats, Scores

RESAMPLES = 10_000
CONFIDENCE = 0.95
# Query numbers drawn at once: 8 MB, whatever the number of queries.
_DRAWN_AT_ONCE = 1_000_000


@dataclass(frozen=True)
class Estimate:
    """A mean over queries with its percentile interval of `CONFIDENCE`."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """How much better one system is than another on the same queries.

    Attributes:
        mean: Mean of the differences by query; positive where the first system is better.
        low: Lower end of its interval.
        high: Upper end.
        p: Two-sided: twice the smaller share of resamples on one side of 0, (1 + count) / (B + 1), at most 1.
            Not corrected for the number of metrics that are looked at.
    """

    mean: float
    low: float
    high: float
    p: float

    @property
    def significant(self) -> bool:
        """Whether `p` is below 1 - `CONFIDENCE`."""
        return self.p < 1 - CONFIDENCE


def estimate(scores: Scores, seed: int = 0, resamples: int = RESAMPLES) -> dict[str, Estimate]:
    """Mean and interval of every metric.

    Args:
        scores: Of one system.
        seed: Of the draws.
        resamples: How many means are drawn, B.
    """
    values_QM = np.stack(list(scores.values.values()), axis=1)
    means_BM = resampled_means(values_QM, seed, resamples)
    low_M, high_M = np.quantile(means_BM, _ENDS, axis=0)
    return {
        name: Estimate(float(mean), float(low), float(high))
        for name, mean, low, high in zip(scores.values, values_QM.mean(0), low_M, high_M, strict=True)
    }


def compare(
    scores: Scores, other: Scores, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Difference]:
    """The paired bootstrap: `scores` minus `other`, query by query, for every metric.

    Two intervals that overlap say little, since hard queries are hard for both; the differences do.

    Raises:
        RetrievalUsageError: The two have other queries or other metrics.
    """
    if scores.queries != other.queries or list(scores.values) != list(other.values):
        raise RetrievalUsageError(
            f"a paired comparison needs the same queries and metrics: {len(scores.queries)} queries with "
            f"{', '.join(scores.values)}, and {len(other.queries)} with {', '.join(other.values)}; "
            "score both with the same qrels and k"
        )
    differences_QM = np.stack([scores.values[name] - other.values[name] for name in scores.values], axis=1)
    means_BM = resampled_means(differences_QM, seed, resamples)
    return {
        name: _difference(differences_QM[:, column], means_BM[:, column])
        for column, name in enumerate(scores.values)
    }


_ENDS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
# Sums of the same numbers in another order differ in the last bits; this is no difference.
_ROUNDING = 1e-12


def _difference(differences_Q: Floats, means_B: Floats) -> Difference:
    low, high = np.quantile(means_B, _ENDS)
    sides = ((means_B <= _ROUNDING).sum(), (means_B >= -_ROUNDING).sum())
    p = min(1.0, 2 * (1 + min(map(int, sides))) / (len(means_B) + 1))
    return Difference(float(differences_Q.mean()), float(low), float(high), p)


def resampled_means(values_QM: Floats, seed: int, resamples: int) -> Floats:
    """Means of `resamples` draws of Q queries with replacement, shape (B, M)."""
    generator, queries = np.random.default_rng(seed), len(values_QM)
    means_BM = np.empty((resamples, values_QM.shape[1]))
    rows = max(1, _DRAWN_AT_ONCE // queries)
    for start in range(0, resamples, rows):
        drawn_BQ = generator.integers(queries, size=(min(rows, resamples - start), queries))
        for column, values_Q in enumerate(values_QM.T):
            means_BM[start : start + rows, column] = values_Q[drawn_BQ].mean(1)
    return means_BM
