"""From a query to hits, over an engine of a few points whose scores can be checked by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from vlmkit_retrieval.errors import RetrievalUsageError
from vlmkit_retrieval.search import (
    AskedSpace,
    Bm25Terms,
    Searcher,
    SearchOptions,
    image_space,
    patch_space,
    term_space,
    text_space,
)
from vlmkit_retrieval.types import Dense, Multi, Point, Sparse
from vlmkit_retrieval.where import HasId, Match, both

SHADES = {
    "red": (255, 0, 0),
    "rose": (255, 90, 90),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "sky": (90, 90, 255),
}
CAPTIONS = {"rose": "a red rose in the garden", "green": "a lawn", "sky": "red kite in a blue sky"}


def picture(shade):
    return Image.new("RGB", (4, 4), SHADES[shade])


@pytest.fixture
def bm25():
    return Bm25Terms()


@pytest.fixture
def engine(list_engine, colours, bm25):
    """Five images; three have a caption, in a text encoder's space and as terms."""
    points = []
    for shade in SHADES:
        vectors = {"colour": colours.embed_images([picture(shade)])[0]}
        payload = {
            "path": f"/{shade}.png",
            "sha256": shade,
            "kind": "image",
            "album": "a" if "r" in shade else "b",
        }
        if shade in CAPTIONS:
            vectors["captions"] = colours.embed_text([CAPTIONS[shade]])[0]
            vectors["bm25"] = bm25.embed_documents([CAPTIONS[shade]])[0]
            payload["text"] = CAPTIONS[shade]
        points.append(Point(shade, vectors, payload))
    return list_engine({"colour": Dense(3), "captions": Dense(3), "bm25": Sparse()}, points)


@pytest.fixture
def searcher(engine, colours, bm25):
    return Searcher(
        engine,
        [image_space("colour", colours), text_space("captions", colours), term_space("bm25", bm25)],
    )


def ids(hits):
    return [hit.id for hit in hits]


def test_one_list_is_what_the_engine_ranks(engine, colours):
    hits = Searcher(engine, [image_space("colour", colours)]).search("a red thing", k=2)
    vector = colours.embed_text(["a red thing"])[0]
    assert [(hit.id, hit.score) for hit in hits] == [
        (hit.id, hit.score) for hit in engine.search("colour", vector, 2)
    ]
    assert engine.asked[0][1] == 2
    [share] = hits[0].explanation.shares
    assert (share.list, share.rank, share.score, share.share) == (
        "colour:text",
        1,
        hits[0].score,
        hits[0].score,
    )
    assert not hits[0].explanation.fused


def test_lists_go_deeper_than_the_hits(searcher, engine):
    searcher.search("red", k=2)
    assert [k for _, k, _, _ in engine.asked] == [50, 50, 50]
    engine.asked.clear()
    searcher.search("red", k=20)
    assert [k for _, k, _, _ in engine.asked] == [80, 80, 80]


@pytest.mark.parametrize("approximate", [False, True])
def test_an_approximate_index_is_used_where_there_is_one(searcher, engine, approximate):
    engine.approximate = approximate
    searcher.search("red", picture("red"))
    assert {exact for _, _, _, exact in engine.asked} == {not approximate}
    engine.asked.clear()
    searcher.search("red", picture("red"), options=SearchOptions(exact=True))
    assert {exact for _, _, _, exact in engine.asked} == {True}


def test_fused_scores_by_hand(searcher):
    """The kite's and the rose's captions have the word; of the colours, red is nearest."""
    options = SearchOptions(impute=False, weights={"captions": 0, "bm25": 2})
    hits = {hit.id: hit for hit in searcher.search("red", options=options)}
    assert list(hits)[:2] == ["rose", "sky"]
    ranks = {name: {s.list: s.rank for s in hit.explanation.shares} for name, hit in hits.items()}
    assert ranks["red"] == {"colour:text": 1, "bm25:text": None}
    assert ranks["rose"] == {"colour:text": 2, "bm25:text": 1}
    assert hits["rose"].score == pytest.approx(1 / 62 + 2 / 61)
    assert hits["red"].score == pytest.approx(1 / 61)


def test_an_image_without_a_caption_has_concluded_ranks(searcher):
    hits = {hit.id: hit for hit in searcher.search("red")}
    for name, hit in hits.items():
        imputed = {share.list for share in hit.explanation.shares if share.imputed}
        assert imputed == (set() if name in CAPTIONS else {"captions:text", "bm25:text"})
        assert sum(share.share for share in hit.explanation.shares) == pytest.approx(hit.score, abs=1e-12)
    assert "no vector there, as if at" in str(hits["red"].explanation)
    assert "bm25:text: not found" in str(hits["green"].explanation)
    assert "colour:text: rank 1, score" in str(hits["red"].explanation)


def test_like_this_but_red(searcher):
    """Each list knows one half of the query: the bluish image whose caption says red comes out on top."""
    both_halves = SearchOptions(compose="lists", weights={"colour:image": 5})
    hits = searcher.search("red", picture("blue"), options=both_halves)
    assert hits[0].id == "sky"
    assert searcher.search("red")[0].id != "sky"
    assert searcher.search(image=picture("blue"))[0].id == "blue"
    lists = {share.list for share in hits[0].explanation.shares}
    assert lists == {"colour:text", "colour:image", "captions:text", "bm25:text"}


def test_one_vector_between_text_and_image(searcher):
    """Between red and blue lie both bright shades; the nearer end decides which is first."""
    only = {"captions": 0, "bm25": 0}
    for how in ("mean", "slerp"):
        for blend, first in ((0.0, "blue"), (0.35, "sky"), (0.65, "rose"), (1.0, "red")):
            options = SearchOptions(compose=how, blend=blend, weights=only)
            hits = searcher.search("red", picture("blue"), k=1, options=options)
            assert (hits[0].id, hits[0].explanation.shares[0].list) == (first, "colour:both")


SHAPES, HUES = ("circle", "square", "star", "moon"), ("red", "green", "blue", "teal")


class Gapped:
    """A space as CLIP's: images near to each other, texts far away, and a word moves a text little."""

    def embed_images(self, images):
        return unit(
            [[*np.eye(4)[SHAPES.index(s)], *(0.6 * np.eye(4)[HUES.index(h)]), 1.5, 0] for s, h in images]
        )

    def embed_text(self, texts):
        return unit([[0, 0, 0, 0, *(0.2 * np.eye(4)[HUES.index(h)]), 0, 1.5] for h in texts])


def unit(rows):
    rows = np.asarray(rows, np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_balanced_finds_what_is_like_both_across_the_modality_gap(list_engine):
    """Like the red star, but blue: the plain mean goes by the image alone, and lists by one part each."""
    made = [(shape, hue) for shape in SHAPES for hue in HUES]
    vectors = dict(zip(made, Gapped().embed_images(made), strict=True))
    points = [Point(f"{hue} {shape}", {"clip": vectors[shape, hue]}) for shape, hue in made]
    space = AskedSpace(
        "clip",
        lambda text: Gapped().embed_text([text])[0],
        lambda image: vectors["star", "red"],
    )
    searcher = Searcher(list_engine({"clip": Dense(10)}, points), [space])
    first = {
        how: searcher.search("blue", picture("red"), k=1, options=SearchOptions(compose=how))[0].id
        for how in ("balanced", "mean", "slerp")
    }
    assert first["balanced"] == "blue star"
    assert first["mean"] == first["slerp"] == "red star"


def test_a_filter_holds_in_every_list(searcher, engine):
    for where in ({"album": "a"}, Match("album", ("a",))):
        hits = searcher.search(
            "red", picture("red"), where=where, options=SearchOptions(collapse=True, mmr=0.5)
        )
        assert sorted(ids(hits)) == ["green", "red", "rose"]
    assert all(where == Match("album", ("a",)) for _, _, where, _ in engine.asked)
    assert searcher.search("red", where={"album": "none"}) == []


def test_copies_do_not_take_the_places_of_others(list_engine, colours):
    """A hundred copies come before the other image, further down than a list goes at first."""
    points = [
        Point(f"copy{n:03}", {"colour": colours.embed_images([picture("red")])[0]}, {"sha256": "red"})
        for n in range(100)
    ]
    points.append(Point("other", {"colour": colours.embed_images([picture("rose")])[0]}, {"sha256": "rose"}))
    searcher = Searcher(list_engine({"colour": Dense(3)}, points), [image_space("colour", colours)])
    hits = searcher.search("red", k=2, options=SearchOptions(collapse=True))
    assert ids(hits) == ["copy000", "other"]
    assert [copy.id for copy in hits[0].duplicates] == [f"copy{n:03}" for n in range(1, 100)]


def test_copies_are_compared_as_images_where_texts_are_asked_first(engine, colours):
    engine.points["green"].vectors["captions"] = engine.points["rose"].vectors["captions"]
    searcher = Searcher(engine, [text_space("captions", colours), image_space("colour", colours)])
    hits = searcher.search("red", options=SearchOptions(collapse=True, near=0.999))
    assert sorted(ids(hits)) == sorted(SHADES)
    hits = searcher.search("red", options=SearchOptions(collapse=True, near=0.999, by="captions"))
    assert len(hits) < len(SHADES)


def test_near_ones_and_mmr_compare_in_a_named_space(searcher, engine):
    near = SearchOptions(collapse=True, near=0.85, by="colour")
    hits = searcher.search("red", options=near)
    groups = [{hit.id, *(copy.id for copy in hit.duplicates)} for hit in hits]
    assert sorted(map(sorted, groups)) == [["blue", "sky"], ["green"], ["red", "rose"]]
    varied = searcher.search("red", k=2, options=SearchOptions(mmr=0.3))
    assert set(ids(varied)) != {"red", "rose"}
    assert varied[1].explanation.nearest < 0.7
    with pytest.raises(
        RetrievalUsageError, match=r"space 'bm25'; spaces of one vector an item: colour, captions"
    ):
        searcher.search("red", options=SearchOptions(mmr=0.3, by="bm25"))


@pytest.fixture
def patched(list_engine):
    """Items of eight patches: full, as their mean, and as two pooled rows."""
    g = np.random.default_rng(0)
    rows = {f"p{n:03}": g.normal(size=(8, 16)).astype(np.float32) for n in range(150)}
    points = [
        Point(id, {"all": own, "mean": own.mean(0), "few": own.reshape(2, 4, 16).mean(1)})
        for id, own in rows.items()
    ]
    return list_engine({"all": Multi(16), "mean": Dense(16), "few": Multi(16)}, points)


@pytest.mark.parametrize("pooled", ["mean", "few"])
def test_maxsim_compares_what_the_pooled_space_chose(patched, pooled):
    query = np.random.default_rng(1).normal(size=(5, 16)).astype(np.float32)
    hits = Searcher(patched, [patch_space("all", pooled, lambda text: query)]).search("a page", k=5)
    (first, depth, _, _), (second, _, chosen, _) = patched.asked
    assert (first, depth, second) == (pooled, 100, "all")
    assert len(chosen.ids) == 100
    expected = patched.search("all", query, 5, HasId(chosen.ids))
    assert [(hit.id, hit.score) for hit in hits] == [(hit.id, hit.score) for hit in expected]


def test_maxsim_keeps_the_filter(patched):
    where = HasId(("p001", "p002"))
    query = np.ones((2, 16), np.float32)
    hits = Searcher(patched, [patch_space("all", "mean", lambda text: query)]).search("a page", where=where)
    assert sorted(ids(hits)) == ["p001", "p002"]
    assert patched.asked[1][2] == both(
        where, HasId(tuple(hit.id for hit in patched.search("mean", query[0], 9, where)))
    )


def test_what_is_refused(engine, searcher, colours):
    with pytest.raises(RetrievalUsageError, match="k is 0"):
        searcher.search("red", k=0)
    with pytest.raises(RetrievalUsageError, match="possible"):
        searcher.search("red", where={"$near": 1})
    for spaces in ([], [image_space("colour", colours)] * 2):
        with pytest.raises(RetrievalUsageError, match="name each one once"):
            Searcher(engine, spaces)


def test_words_that_no_caption_has_leave_the_order_of_the_images(searcher):
    options = SearchOptions(weights={"captions": 0})
    alone = searcher.search("red zebra", options=SearchOptions(weights={"captions": 0, "bm25": 0}))
    nowhere = searcher.search("zebra", options=options)
    assert len(alone) == len(nowhere) == 5
    assert {share.list for hit in nowhere for share in hit.explanation.shares} == {"colour:text"}


def test_scores_are_plain_numbers(searcher):
    for hit in searcher.search(
        "red", picture("sky"), options=SearchOptions(mmr=0.5, collapse=True, near=0.9)
    ):
        json.dumps([hit.score, hit.explanation.nearest, [share.score for share in hit.explanation.shares]])
