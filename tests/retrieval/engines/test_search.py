"""Search is exact, and the same in every engine."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vlmkit_retrieval.engines.ranking import best, scores
from vlmkit_retrieval.types import Dense, Multi, Point, Sparse, Terms
from vlmkit_retrieval.where import Match, Range, holds


def unit(*values: float) -> np.ndarray:
    vector = np.asarray(values, np.float32)
    return vector / np.linalg.norm(vector)


def units(*shape: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=shape)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def test_dense_search_agrees_with_brute_force(engine, random_points, spaces):
    engine.ensure(spaces)
    points = random_points(200)
    engine.upsert(points)
    matrix = np.stack([point.vectors["a"] for point in points])
    query = unit(1, -2, 3, 0.5)
    scores = (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)) @ query
    for k, exact in ((1, True), (10, True), (300, True), (10, False)):
        hits = engine.search("a", query, k, exact=exact)
        assert [hit.id for hit in hits] == [points[n].id for n in np.argsort(-scores)[:k]]
        np.testing.assert_allclose([hit.score for hit in hits], np.sort(scores)[::-1][:k], atol=1e-6)
        assert hits[0].payload == {"n": int(np.argmax(scores))}


def test_a_half_space_agrees_within_its_precision(engine, mixed_points, spaces):
    engine.ensure(spaces)
    points = mixed_points(100)
    engine.upsert(points)
    query = unit(1, -2, 3, 0.5)
    scores = {p.id: float(unit(*p.vectors["half"]) @ query) for p in points}
    hits = engine.search("half", query, 100)
    assert len(hits) == 100
    np.testing.assert_allclose([hit.score for hit in hits], [scores[hit.id] for hit in hits], atol=1e-3)


@pytest.mark.parametrize("half", [False, True])
def test_multi_search_is_the_sum_of_best_cosines(engine, half):
    engine.ensure({"m": Multi(8, half=half)})
    docs = {f"{n:03}": units(n % 7 + 1, 8, seed=n) for n in range(80)}
    engine.upsert([Point(id, {"m": rows}) for id, rows in docs.items()])
    query = units(3, 8, seed=99)
    scores = {id: float((query @ rows.T).max(1).sum()) for id, rows in docs.items()}
    hits = engine.search("m", query, 80)
    assert len(hits) == 80
    np.testing.assert_allclose(
        [h.score for h in hits], [scores[h.id] for h in hits], atol=3e-3 if half else 1e-5
    )
    if not half:
        assert [hit.id for hit in hits[:9]] == sorted(scores, key=scores.get, reverse=True)[:9]


def bm25(documents: dict[str, Terms], query: Terms) -> dict[str, float]:
    """The sum over shared terms of weight x weight x ln((N - n + 0.5) / (n + 0.5) + 1)."""
    scores = {}
    for id, document in documents.items():
        weights = dict(zip(document.indices, document.values, strict=True))
        for term, weight in zip(query.indices, query.values, strict=True):
            n = sum(term in other.indices for other in documents.values())
            if term in weights:
                rare = math.log((len(documents) - n + 0.5) / (n + 0.5) + 1)
                scores[id] = scores.get(id, 0.0) + weights[term] * weight * rare
    return scores


def test_sparse_search_counts_how_rare_a_term_is(engine, mixed_points, spaces):
    engine.ensure(spaces)
    points = mixed_points(60)
    engine.upsert([*points, Point("without", {"a": unit(1, 0, 0, 0)}, {"n": 99})])
    engine.upsert(
        [Point("gone", {"s": Terms([12, 1], [1.0, 1.0])}), Point("id/001", {"s": Terms([9], [1.0])})]
    )
    engine.delete(["gone"])
    engine.upsert([points[1]])
    documents = {p.id: p.vectors["s"] for p in points}
    query = Terms([12, 1, 77, 3], [1.0, 2.0, 1.0, 0.5])
    for corpus in (None, Range("n", lt=20)):
        counted = {p.id: documents[p.id] for p in points if holds(corpus, p.id, p.payload, [])}
        expected = bm25(counted, query)
        hits = engine.search("s", query, 100, corpus, corpus=corpus)
        assert {h.id for h in hits} == expected.keys()
        np.testing.assert_allclose([h.score for h in hits], [expected[h.id] for h in hits], rtol=1e-5)
        assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)
    assert engine.search("s", Terms([], []), 5) == []
    assert engine.search("s", Terms([77], [1.0]), 5) == []


@pytest.mark.parametrize(
    ("name", "worse", "better", "query"),
    [
        ("a", unit(1, 1, 0, 0), unit(1, 0, 0, 0), unit(1, 0, 0, 0)),
        ("half", unit(1, 1, 0, 0), unit(1, 0, 0, 0), unit(1, 0, 0, 0)),
        ("m", np.stack([unit(1, 1, 1)]), np.stack([unit(1, 1, 1), unit(1, 0, 0)]), np.eye(3)),
        ("s", Terms([1, 3], [1.0, 1.0]), Terms([1, 2], [1.5, 1.0]), Terms([1, 2], [1.0, 1.0])),
    ],
)
def test_equal_scores_are_in_order_of_id_wherever_k_cuts(engine, spaces, name, worse, better, query):
    engine.ensure(spaces)
    same = [Point(f"{n:03}", {name: worse}) for n in range(100)]
    engine.upsert([*same[::-1], Point("zzz", {name: better})])
    assert [hit.id for hit in engine.search(name, query, 4)] == ["zzz", "000", "001", "002"]


def test_cosines_are_computed_again_and_what_a_term_is_worth_is_not():
    """An engine's scores decide who is a candidate; two engines add in different orders."""
    rows, given = units(3, 5), [0.1, 0.2, 0.3]
    np.testing.assert_allclose(scores(Dense(5), rows[0], rows.tolist(), given), rows @ rows[0], atol=1e-6)
    patches = [rows[:2].tolist(), rows.tolist(), rows[2:].tolist()]
    expected = [2.0, 2.0, float((rows[:2] @ rows[2:].T).sum())]
    np.testing.assert_allclose(scores(Multi(5), rows[:2], patches, given), expected, atol=1e-6)
    assert scores(Sparse(), Terms([1], [1.0]), [], given).tolist() == given
    assert best(np.array([0.5, 0.9, 0.5]), ["b", "c", "a"], 2) == [1, 2]


def test_500_random_queries_find_the_same_in_every_library(opened, libraries):
    """With and without filters, in 150 points with near neighbours; ties within 1e-6 may be in any order."""
    engines = [opened(kind) for kind in libraries]
    centres = units(30, 16)
    rng = np.random.default_rng(1)
    vectors = centres[rng.integers(30, size=150)] + 1e-3 * units(150, 16, seed=2)
    points = [Point(f"{n:03}", {"v": v}, {"n": n, "kind": "abc"[n % 3]}) for n, v in enumerate(vectors)]
    for engine in engines:
        engine.ensure({"v": Dense(16)})
        engine.upsert(points)
    filters = [None, Match("kind", ("a",)), Range("n", gte=50.0)]
    for number, query in enumerate(units(500, 16, seed=3)):
        where = filters[number % len(filters)]
        first, *others = [engine.search("v", query, 10, where) for engine in engines]
        assert len(first) == 10
        for hits in others:
            assert_same_but_for_ties(first, hits)


def assert_same_but_for_ties(first, hits):
    np.testing.assert_allclose([h.score for h in hits], [h.score for h in first], atol=1e-6)
    for one, other in zip(first, hits, strict=True):
        if one.id != other.id:
            assert abs(one.score - first[-1].score) < 1e-6 or any(
                abs(one.score - h.score) < 1e-6 and h.id == other.id for h in first
            ), (first, hits)


def test_sparse_and_multi_searches_find_the_same_in_every_library(opened, libraries, mixed_points, spaces):
    engines = [opened(kind) for kind in libraries]
    for engine in engines:
        engine.ensure(spaces)
        engine.upsert(mixed_points(80))
    rng = np.random.default_rng(5)
    for seed in range(40):
        terms = Terms(rng.choice(20, 3, replace=False).tolist(), [1.0, 1.0, 1.0])
        for name, query in (("m", units(4, 3, seed=seed)), ("s", terms)):
            first, *others = [engine.search(name, query, 10) for engine in engines]
            for hits in others:
                assert [h.id for h in hits] == [h.id for h in first]
                np.testing.assert_allclose([h.score for h in hits], [h.score for h in first], rtol=1e-5)
