"""Metrics against hand-computed numbers, and against trec_eval itself (pytrec_eval) on random rankings."""

from __future__ import annotations

import math

import numpy as np
import pytest
import pytrec_eval

from vlmkit_retrieval.errors import RetrievalUsageError
from vlmkit_retrieval.eval import ranked, read_run, score, write_run

QRELS = {"q": {"a": 3, "b": 2, "c": 1, "d": 0}}
TREC = {"recall": "recall", "ndcg": "ndcg_cut", "map": "map_cut"}


def test_by_hand():
    found = score(QRELS, {"q": ["d", "b", "x", "a"]}, 4).means()
    assert found["recall@4"] == pytest.approx(2 / 3)
    assert found["mrr@4"] == 1 / 2
    assert found["map@4"] == pytest.approx((1 / 2 + 2 / 4) / 3)
    best = 3 / math.log2(2) + 2 / math.log2(3) + 1 / math.log2(4)
    assert found["ndcg@4"] == pytest.approx((2 / math.log2(3) + 3 / math.log2(5)) / best)


def test_the_best_ranking_scores_one_and_the_cut_is_a_cut():
    assert set(score(QRELS, {"q": ["a", "b", "c"]}, 3).means().values()) == {1.0}
    assert set(score(QRELS, {"q": ["d", "x", "a", "b"]}, 2).means().values()) == {0.0}
    # Three relevant items do not fit into one rank: recall and MAP stay below 1, nDCG does not.
    assert score(QRELS, {"q": ["a", "b", "c"]}, 1).means() == {
        "recall@1": 1 / 3,
        "mrr@1": 1.0,
        "ndcg@1": 1.0,
        "map@1": 1 / 3,
    }


def test_a_query_without_ranking_counts_as_nothing_found():
    qrels = {**QRELS, "r": {"a": 1}}
    found = score(qrels, {"q": ["a", "b", "c"], "unknown": ["a"]}, 3)
    assert found.queries == ("q", "r")
    assert set(found.means().values()) == {0.5}
    assert found.by_query()["r"] == {"recall@3": 0.0, "mrr@3": 0.0, "ndcg@3": 0.0, "map@3": 0.0}


@pytest.mark.parametrize(
    ("qrels", "rankings", "k", "says"),
    [(QRELS, {}, 0, "k is 0"), ({}, {}, 5, "no query"), (QRELS, {"q": ["a", "b", "a"]}, 5, "'a' twice")],
)
def test_refusals(qrels, rankings, k, says):
    with pytest.raises(RetrievalUsageError, match=says):
        score(qrels, rankings, k)


def random_task(seed, queries=60):
    """Judgements with grades 0 to 3, some queries without any relevant item, and scores full of ties."""
    rng = np.random.default_rng(seed)
    items = [f"d{i}" for i in range(40)] + ["é", "Z", "z", "10", "9"]
    qrels, run = {}, {}
    for number in range(queries):
        judged = rng.choice(items, rng.integers(1, 25), replace=False)
        grades = rng.integers(0, 4, len(judged)) * (number % 10 > 0)
        qrels[f"q{number}"] = {str(item): int(grade) for item, grade in zip(judged, grades)}
        found = rng.choice(items, rng.integers(1, len(items)), replace=False)
        scores = rng.integers(0, 6, len(found)) / 3 + 1e-12 * rng.random(len(found))
        run[f"q{number}"] = {str(item): float(value) for item, value in zip(found, scores)}
    return qrels, run


def trec(qrels, run, k):
    """trec_eval's values by query; it has no reciprocal rank with a cut, so it gets cut runs for that one."""
    measures = {f"{name}.{k}" for name in TREC.values()}
    found = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run)
    cut = {query: dict(list(ranked(scores).items())[:k]) for query, scores in run.items()}
    first = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(cut)
    return {
        **{f"{ours}@{k}": {q: v[f"{theirs}_{k}"] for q, v in found.items()} for ours, theirs in TREC.items()},
        f"mrr@{k}": {query: values["recip_rank"] for query, values in first.items()},
    }


def gap(ours, theirs):
    return max(
        abs(value - theirs[name][query])
        for query, own in ours.by_query().items()
        for name, value in own.items()
    )


@pytest.mark.parametrize("k", [1, 3, 10, 100])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equal_to_trec_eval(seed, k):
    qrels, run = random_task(seed)
    rankings = {query: ranked(scores) for query, scores in run.items()}
    assert gap(score(qrels, rankings, k), trec(qrels, run, k)) < 1e-9


def test_the_comparison_sees_another_order_of_ties_another_gain_and_float64():
    qrels, run = random_task(0)
    theirs = trec(qrels, run, 10)
    ascending = {q: sorted(own, key=lambda item: (-np.float32(own[item]), item)) for q, own in run.items()}
    wide = {q: sorted(own, key=lambda item: (-own[item], item)) for q, own in run.items()}
    assert gap(score(qrels, ascending, 10), theirs) > 0.01
    assert gap(score(qrels, wide, 10), theirs) > 0.01
    exponential = {q: {item: 2**grade - 1 for item, grade in own.items()} for q, own in qrels.items()}
    assert gap(score(exponential, {q: ranked(own) for q, own in run.items()}, 10), theirs) > 0.01


def test_negative_grades_are_as_in_trec_eval():
    qrels, run = {"q": {"a": -1, "b": 2, "c": 1}}, {"q": {"a": 3.0, "b": 2.0, "x": 1.0, "c": 0.5}}
    assert gap(score(qrels, run, 3), trec(qrels, run, 3)) < 1e-9


def test_a_written_run_is_read_in_our_order_by_trec_eval(tmp_path):
    """Equal scores of an index are in order of id, ascending; the file has to carry that order."""
    qrels, run = random_task(3)
    ours = {q: dict(sorted(own.items(), key=lambda pair: (-pair[1], pair[0]))) for q, own in run.items()}
    write_run(tmp_path / "run", ours, "ours")
    with (tmp_path / "run").open() as file:
        theirs = pytrec_eval.parse_run(file)
    assert gap(score(qrels, ours, 10), trec(qrels, theirs, 10)) < 1e-9
    assert gap(score(qrels, ours, 10), trec(qrels, ours, 10)) > 0.01
    assert {q: list(own) for q, own in read_run(tmp_path / "run").items()} == {
        q: list(own) for q, own in ours.items()
    }
