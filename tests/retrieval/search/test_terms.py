"""BM25 by Qdrant's encoder."""

from __future__ import annotations

import sys

import pytest

from vlmkit_retrieval.errors import MissingPackageError, RetrievalUsageError
from vlmkit_retrieval.search.terms import Bm25Terms
from vlmkit_retrieval.types import Terms


def test_documents_and_queries_share_their_terms():
    bm25 = Bm25Terms()
    once, twice, nothing = bm25.embed_documents(["A running cat", "cats, cats and more cats", "the of"])
    query = bm25.embed_query("the cat ran")
    assert nothing == Terms([], [])
    assert set(query.values) == {1.0}
    [cat] = set(once.indices) & set(twice.indices)
    assert cat in query.indices
    weights = [dict(zip(t.indices, t.values, strict=True))[cat] for t in (once, twice)]
    assert weights[1] > weights[0]


def test_bm25_by_its_formula():
    """tf * (k + 1) / (tf + k * (1 - b + b * length / average)) with k = 1.2, b = 0.75."""
    [terms] = Bm25Terms(average_length=4.0).embed_documents(["cat cat dog"])
    expected = [tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * 3 / 4)) for tf in (1, 2)]
    assert sorted(terms.values) == pytest.approx(expected, abs=1e-6)


def test_the_fingerprint_is_what_it_makes():
    assert Bm25Terms().fingerprint == Bm25Terms().fingerprint
    others = [Bm25Terms("german"), Bm25Terms(average_length=10.0)]
    assert len({Bm25Terms().fingerprint, *(other.fingerprint for other in others)}) == 3


@pytest.mark.parametrize("wrong", [{"language": "klingon"}, {"average_length": 0.0}])
def test_what_it_does_not_know_is_refused(wrong):
    with pytest.raises(RetrievalUsageError, match=r"BM25 with language .*(unsupported|finite).*; use a name"):
        Bm25Terms(**wrong)


def test_without_the_wheel_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "qdrant_edge", None)
    with pytest.raises(MissingPackageError, match=r"qdrant-edge-py is not installed; do: pip install"):
        Bm25Terms()
