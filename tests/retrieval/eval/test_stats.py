"""Intervals that cover, and a paired comparison that finds a planted regression and invents none."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from vlmkit_retrieval.errors import RetrievalUsageError
from vlmkit_retrieval.eval import Scores, compare, estimate, score
from vlmkit_retrieval.eval.stats import resampled_means

N = 200


def scores(**values):
    columns = {name: np.asarray(column, float) for name, column in values.items()}
    return Scores(tuple(f"q{i}" for i in range(len(next(iter(columns.values()))))), columns)


def test_an_interval_is_the_one_of_all_resamples_there_are():
    """Of three queries there are 27 draws: the drawn means have the distribution of all of them."""
    values = np.array([0.0, 0.3, 0.9])
    every = [np.mean(draw) for draw in itertools.product(values, repeat=3)]
    means = resampled_means(values[:, None], seed=0, resamples=40_000)[:, 0]
    for mean in set(np.round(every, 9)):
        share = np.isclose(every, mean).mean()
        assert np.isclose(means, mean).mean() == pytest.approx(share, abs=0.01)


def test_an_interval_is_as_wide_as_the_normal_one_and_covers():
    rng, covered = np.random.default_rng(0), 0
    for seed in range(100):
        sample = rng.beta(1, 3, N)
        found = estimate(scores(m=sample), seed, resamples=1000)["m"]
        covered += found.low <= 0.25 <= found.high
        assert found.mean == pytest.approx(sample.mean(), abs=1e-12)
        assert found.high - found.low == pytest.approx(2 * 1.96 * sample.std() / N**0.5, rel=0.15)
    assert 88 <= covered <= 100


def test_the_seed_alone_decides_and_metrics_share_their_draws():
    values = np.random.default_rng(1).random(N)
    first = estimate(scores(a=values, b=2 * values), seed=3)
    assert first == estimate(scores(a=values, b=2 * values), seed=3)
    assert first != estimate(scores(a=values, b=2 * values), seed=4)
    assert first["b"].low == pytest.approx(2 * first["a"].low)


def test_many_queries_are_drawn_in_pieces(monkeypatch):
    values = np.random.default_rng(1).random((N, 2))
    whole = resampled_means(values, 0, 500)
    monkeypatch.setattr("vlmkit_retrieval.eval.stats._DRAWN_AT_ONCE", 7 * N)
    assert np.array_equal(resampled_means(values, 0, 500), whole)


def rankings(seed, lost=0):
    """Twenty items a query, the relevant one at a drawn rank; `lost` of the queries with it in the first ten
    have it no more."""
    rng = np.random.default_rng(seed)
    ranks = rng.integers(20, size=N)
    found = {f"q{n}": [f"x{i}" for i in range(rank)] + ["right"] for n, rank in enumerate(ranks)}
    for number in rng.choice(np.flatnonzero(ranks < 10), lost, replace=False):
        found[f"q{number}"] = ["x0"]
    return found


QRELS = {f"q{number}": {"right": 1} for number in range(N)}


@pytest.mark.parametrize("seed", range(5))
def test_a_planted_regression_of_3_points_is_found_at_200_queries(seed):
    before, after = score(QRELS, rankings(seed), 10), score(QRELS, rankings(seed, lost=6), 10)
    found = compare(after, before)["recall@10"]
    assert found.mean == pytest.approx(-0.03)
    assert found.high < 0 and found.p < 0.05 and found.significant
    # The intervals of the two alone cannot tell: they overlap.
    assert estimate(after)["recall@10"].high > estimate(before)["recall@10"].low + 0.05


def noisy(rng, shift):
    """Two systems on the same queries, of which some are hard: differences of 0.1 around `shift`."""
    hard = rng.beta(1, 1, N)
    return scores(m=hard), scores(m=hard + shift + 0.1 * rng.standard_normal(N))


def test_power_and_false_alarms():
    rng = np.random.default_rng(0)
    found = [compare(*reversed(noisy(rng, -0.03)), seed, 1000)["m"].significant for seed in range(100)]
    alarms = [compare(*reversed(noisy(rng, 0.0)), seed, 1000)["m"].significant for seed in range(200)]
    assert np.mean(found) > 0.95
    assert np.mean(alarms) < 0.1


def test_p_is_two_sided():
    """Of four draws from +1, +1, +1, -1 the mean is not above 0 if two are -1: with probability 0.2617."""
    found = compare(scores(m=[1, 1, 1, 0]), scores(m=[0, 0, 0, 1]))["m"]
    assert found.p == pytest.approx(2 * (1 - 0.75**4 - 4 * 0.25 * 0.75**3), abs=0.03)


def test_the_difference_turns_with_the_sides():
    one, two = noisy(np.random.default_rng(2), -0.03)
    forth, back = compare(two, one)["m"], compare(one, two)["m"]
    assert (forth.mean, forth.low, forth.high) == pytest.approx((-back.mean, -back.high, -back.low))
    assert forth.p == back.p
    assert compare(two, one, seed=1)["m"].p < 0.05


def test_a_system_against_itself_is_no_difference():
    same = scores(m=np.random.default_rng(0).random(N))
    found = compare(same, same)["m"]
    assert (found.mean, found.low, found.high, found.p, found.significant) == (0, 0, 0, 1, False)


def test_other_queries_or_metrics_are_refused():
    with pytest.raises(RetrievalUsageError, match="3 queries with m, and 2 with m; score both"):
        compare(scores(m=[0, 1, 1]), scores(m=[0, 1]))
    with pytest.raises(RetrievalUsageError, match="same queries and metrics"):
        compare(scores(m=[0, 1]), scores(n=[0, 1]))
