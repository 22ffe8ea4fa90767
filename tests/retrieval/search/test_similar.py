"""Near-duplicates become one hit that knows them all; MMR against its definition by brute force."""

from __future__ import annotations

import numpy as np
import pytest

from vlmkit_retrieval.search.hits import Explanation, SearchHit
from vlmkit_retrieval.search.similar import collapse, diversify

NOTHING = Explanation((), fused=False)


def hits_of(*ids, **shas):
    return [
        SearchHit(id, 1 - n / 10, {"path": f"/{id}", "sha256": shas.get(id, id), "kind": "image"}, NOTHING)
        for n, id in enumerate(ids)
    ]


def turned(degrees):
    return np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], np.float32)


def test_same_content_is_shown_once_with_all_places():
    kept = collapse(hits_of("a", "b", "c", "d", b="same", d="same", c="other"), {}, None)
    assert [hit.id for hit in kept] == ["a", "b", "c"]
    [copy] = kept[1].duplicates
    assert (copy.id, copy.payload["path"], copy.cosine) == ("d", "/d", None)
    assert copy.score == pytest.approx(0.7)
    assert kept[0].duplicates == kept[2].duplicates == ()


def test_an_image_and_a_text_of_equal_hash_are_two():
    image, text = hits_of("a", "b", a="same", b="same")
    text.payload["kind"] = "text"
    assert len(collapse([image, text], {}, None)) == 2


def test_items_without_a_hash_are_no_copies_of_each_other():
    hits = [SearchHit(id, 1.0, {}, NOTHING) for id in "ab"]
    assert collapse(hits, {}, None) == hits


def test_near_ones_join_the_best_but_chains_do_not():
    hits = hits_of("a", "b", "c", "d", "far")
    vectors = {"a": turned(0), "b": turned(8), "c": turned(16), "d": turned(24), "far": turned(90)}
    kept = collapse(hits, vectors, float(np.cos(np.radians(10))))
    assert {hit.id: [copy.id for copy in hit.duplicates] for hit in kept} == {
        "a": ["b"],
        "c": ["d"],
        "far": [],
    }
    assert kept[0].duplicates[0].cosine == pytest.approx(np.cos(np.radians(8)), abs=1e-6)


def test_a_copy_of_a_near_one_joins_the_same_hit():
    hits = hits_of("a", "b", "c", b="twin", c="twin")
    kept = collapse(hits, {"a": turned(0), "b": turned(2)}, 0.99)
    assert [(hit.id, [copy.id for copy in hit.duplicates]) for hit in kept] == [("a", ["b", "c"])]


@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_lost(seed):
    g = np.random.default_rng(seed)
    hits = hits_of(*(f"i{n}" for n in range(9)), i3="x", i7="x")
    vectors = {hit.id: g.normal(size=3) for hit in hits[::2]}
    vectors = {id: (v / np.linalg.norm(v)).astype(np.float32) for id, v in vectors.items()}
    kept = collapse(hits, vectors, 0.5)
    shown = [hit.id for hit in kept] + [copy.id for hit in kept for copy in hit.duplicates]
    assert sorted(shown) == sorted(hit.id for hit in hits)


def by_brute_force(hits, vectors, relevance, k):
    """The definition, pair by pair."""
    low, high = min(hit.score for hit in hits), max(hit.score for hit in hits)
    picked, left = [], list(hits)
    while left and len(picked) < k:
        values = []
        for hit in left:
            likes = [
                float(np.dot(vectors[hit.id], vectors[other.id]))
                if {hit.id, other.id} <= set(vectors)
                else 0.0
                for other in picked
            ]
            scaled = (hit.score - low) / (high - low)
            values.append(round(relevance * scaled - (1 - relevance) * max(likes, default=0.0), 7))
        picked.append(left.pop(values.index(max(values))))
    return [hit.id for hit in picked]


@pytest.mark.parametrize("relevance", [0.0, 0.3, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_mmr_is_the_definition(seed, relevance):
    g = np.random.default_rng(seed)
    hits = hits_of(*(f"i{n}" for n in range(10)))
    vectors = {hit.id: g.normal(size=4) for hit in hits[: 10 - seed]}
    vectors = {id: (v / np.linalg.norm(v)).astype(np.float32) for id, v in vectors.items()}
    for k in (1, 4, 20):
        picked = diversify(hits, vectors, relevance, k)
        assert [hit.id for hit in picked] == by_brute_force(hits, vectors, relevance, k)


def test_mmr_ends_and_explanation():
    hits = hits_of("a", "b", "c")
    vectors = {"a": turned(0), "b": turned(1), "c": turned(80)}
    assert [hit.id for hit in diversify(hits, vectors, 1.0, 3)] == ["a", "b", "c"]
    varied = diversify(hits, vectors, 0.4, 3)
    assert [hit.id for hit in varied] == ["a", "c", "b"]
    assert [hit.score for hit in varied] == [hits[0].score, hits[2].score, hits[1].score]
    nearest = [hit.explanation.nearest for hit in varied]
    assert nearest[0] is None
    assert nearest[1:] == pytest.approx([np.cos(np.radians(80)), np.cos(np.radians(1))], abs=1e-6)
    assert "mmr: cosine 0.9998" in str(varied[2].explanation)
    assert diversify([], {}, 0.5, 3) == []
