"""Weighted reciprocal rank fusion, and what it concludes of items that a list cannot hold."""

from __future__ import annotations

import random

import numpy as np
import pytest

from vlmkit_retrieval.search.fusion import PEERS, K, RankedList, fuse
from vlmkit_retrieval.types import Hit


def listed(name, ids, weight=1.0, lacking=()):
    hits = [Hit(id, 1 - n / 100, {}) for n, id in enumerate(ids)]
    return RankedList(name, hits, weight, frozenset(lacking))


def score_of(lists, **options):
    return {item.id: item.score for item in fuse(lists, **options)}


def shuffled(seed, n=30, length=20):
    rng = random.Random(seed)
    return [rng.sample([f"i{number:02}" for number in range(n)], length) for _ in range(3)]


def test_by_hand():
    fused = fuse([listed("a", "xyz"), listed("b", "zx", weight=2.0)])
    assert [item.id for item in fused] == ["z", "x", "y"]
    assert fused[0].score == pytest.approx(1 / 63 + 2 / 61, abs=1e-15)
    assert fused[1].score == pytest.approx(1 / 61 + 2 / 62, abs=1e-15)
    assert fused[2].shares[1].rank is None


def test_by_scores_by_hand():
    """How far the first one leads counts: by ranks the light list would have moved it."""
    sure = RankedList("sure", [Hit("x", 30.0, {}), Hit("y", 12.0, {}), Hit("z", 10.0, {})])
    light = RankedList("light", [Hit("z", 0.9, {}), Hit("y", 0.8, {}), Hit("w", 0.1, {})], weight=0.5)
    fused = fuse([sure, light], by="scores")
    wanted = {"x": 1.0, "y": 2 / 20 + 0.5 * 0.7 / 0.8, "z": 0.5, "w": 0.0}
    assert {item.id: item.score for item in fused} == pytest.approx(wanted, abs=1e-12)
    assert [item.id for item in fused] == ["x", "y", "z", "w"]
    assert fuse([sure, light])[0].id == "y"


def test_a_list_of_equal_scores_gives_each_its_weight():
    equal = RankedList("a", [Hit("x", 0.5, {}), Hit("y", 0.5, {})], weight=2.0)
    assert score_of([equal], by="scores") == {"x": 2.0, "y": 2.0}


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_lists_changes_nothing(seed):
    lists = [listed(name, ids, w) for name, ids, w in zip("abc", shuffled(seed), (1, 2, 0.5), strict=True)]
    one, other = fuse(lists), fuse(lists[::-1])
    assert [(item.id, item.score) for item in one] == [(item.id, item.score) for item in other]


@pytest.mark.parametrize("seed", range(5))
def test_a_better_rank_never_hurts(seed):
    first, *others = shuffled(seed)
    for place in range(1, len(first)):
        raised = [*first[: place - 1], first[place], first[place - 1], *first[place + 1 :]]
        before = fuse([listed("a", first), *(listed("b", ids) for ids in others)])
        after = fuse([listed("a", raised), *(listed("b", ids) for ids in others)])
        place_of = [[item.id for item in fused].index(first[place]) for fused in (before, after)]
        assert place_of[1] <= place_of[0]


def test_a_light_list_decides_less_and_less():
    lists = shuffled(3)
    orders = [
        [i.id for i in fuse([listed("a", lists[0]), listed("b", lists[1], weight)])][:20]
        for weight in (1.0, 1e-9)
    ]
    assert orders[0] != lists[0]
    assert orders[1] == lists[0]


def test_equal_scores_are_in_order_of_id():
    assert [item.id for item in fuse([listed("a", ["q", "b"]), listed("b", ["b", "q"])])] == ["b", "q"]


@pytest.mark.parametrize("impute", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_shares_sum_to_the_score(seed, impute):
    for item in fuse(world(seed).lists(0), impute=impute):
        assert sum(share.share for share in item.shares) == pytest.approx(item.score, abs=1e-12)
        for share in item.shares:
            if share.rank is not None:
                assert share.rank >= 1
                assert share.share == pytest.approx(share.weight / (K + share.rank), abs=1e-12)
            else:
                assert share.share == 0


@pytest.mark.parametrize("seed", range(3))
def test_shares_of_scores_sum_to_the_score_and_concluded_ones_have_no_rank(seed):
    items = fuse(world(seed).lists(0), by="scores")
    assert any(share.imputed and share.share for item in items for share in item.shares)
    for item in items:
        assert sum(share.share for share in item.shares) == pytest.approx(item.score, abs=1e-12)
        for share in item.shares:
            assert share.share >= -1e-12 and not (share.imputed and share.rank)


def test_without_an_item_that_lacks_a_space_it_is_the_plain_sum():
    lists = [listed(name, ids) for name, ids in zip("abc", shuffled(1), strict=True)]
    assert score_of(lists, impute=True) == score_of(lists, impute=False)


def test_an_item_stands_among_its_peers_as_in_its_own_list():
    """Captions reverse the peers' order; the images without captions keep the places 2 and 5."""
    dense = ["p1", "x", "p2", "p3", "y", "p4", "p5", "p6"]
    terms = ["p6", "p5", "p4", "p3", "p2", "p1"]
    fused = fuse([listed("dense", dense), listed("terms", terms, 5.0, lacking={"x", "y"})])
    order = [item.id for item in fused]
    assert (order.index("x"), order.index("y")) == (1, 4)
    assert [id for id in order if id.startswith("p")] == terms
    [concluded] = [share for share in fused[1].shares if share.imputed]
    assert concluded.list == "terms"
    assert concluded.score is None
    assert 1 <= concluded.rank <= 3


def test_lists_that_agree_give_an_item_its_own_rank():
    dense = [f"p{n}" for n in range(20)]
    dense.insert(7, "x")
    fused = fuse([listed("dense", dense), listed("terms", [p for p in dense if p != "x"], lacking={"x"})])
    [item] = [item for item in fused if item.id == "x"]
    assert item.shares[1].rank == pytest.approx(item.shares[0].rank, abs=1)


def test_an_item_that_only_the_other_list_found_takes_a_place_of_its_peers():
    dense = [*"abcdef", "x"]
    order = [i.id for i in fuse([listed("dense", dense), listed("terms", ["new"], lacking={"x"})])]
    assert order == ["a", "new", "b", "c", "d", "e", "x", "f"]


def test_groups_without_peers_are_brought_to_one_scale():
    """Images without captions, and texts: no item is in both kinds of lists."""
    images = [f"i{n}" for n in range(8)]
    texts = [f"t{n}" for n in range(8)]
    lists = [
        listed("clip", images, lacking=texts),
        listed("text", texts, lacking=images),
        listed("bm25", texts, lacking=images),
    ]
    order = [item.id for item in fuse(lists)]
    assert all({order[2 * n], order[2 * n + 1]} == {f"i{n}", f"t{n}"} for n in range(8))
    assert [item.id for item in fuse(lists, impute=False)][:8] == texts


def test_items_of_other_lists_are_no_peers():
    images, texts = [f"i{n}" for n in range(8)], [f"t{n}" for n in range(8)]
    lists = [listed("clip", images, 3.0, lacking=texts), listed("text", texts, lacking=images)]
    order = [item.id for item in fuse(lists)]
    assert all({order[2 * n], order[2 * n + 1]} == {f"i{n}", f"t{n}"} for n in range(8))


def test_what_words_alone_found_is_below_what_the_images_lists_hold():
    peers, bare, new = ([f"{kind}{n}" for n in range(8)] for kind in "pxn")
    fused = fuse([listed("clip", [*peers, *bare]), listed("bm25", new, lacking=bare)])
    assert [item.id for item in fused][8:16] == bare


def test_with_few_peers_an_exact_match_is_still_found():
    images = [f"i{n:02}" for n in range(40)]
    assert PEERS > 1
    fused = fuse([listed("clip", [*images, "named"]), listed("bm25", ["named"], lacking=images)])
    assert fused[0].id == "named"


@pytest.mark.parametrize("seed", range(6))
def test_with_several_lists_of_each_kind_it_keeps_its_standing(seed):
    """As many items with captions are above an image without one as in the lists of images alone."""
    rng = random.Random(seed)
    pool = [f"i{n:02}" for n in range(60)]
    bare = set(rng.sample(pool, 30))
    images = [listed(name, rng.sample(pool, 40), w, ()) for name, w in (("clip", 1.0), ("siglip", 2.0))]
    captioned = sorted(set(pool) - bare)
    words = [listed(name, rng.sample(captioned, 20), w, bare) for name, w in (("text", 1.0), ("bm25", 0.5))]
    alone, fused = [item.id for item in fuse(images)], [item.id for item in fuse(images + words)]
    for id in bare & set(alone):
        above = [set(order[: order.index(id)]) - bare for order in (alone, fused)]
        assert 0 <= len(above[0]) - len(above[1]) <= 1  # less by one where scores are equal
    assert [id for id in alone if id in bare] == [id for id in fused if id in bare]


class World:
    """Items of topics with a latent vector and words; some have a caption, which shows the words.

    Args:
        seed: Of everything.
        share: Of items without a caption.
        matched: Words of a query that are its item's own.
        noise: Of the query's vector, in units of the latent vectors.
    """

    def __init__(self, seed, share, matched, noise, items=1000, queries=100):
        g = np.random.default_rng(seed)
        topic = g.integers(50, size=items)
        latent = g.normal(size=(50, 48))[topic] + 0.6 * g.normal(size=(items, 48))
        words = np.stack(
            [topic * 12 + g.permuted(np.tile(np.arange(12), (items, 1)), axis=1)[:, n] for n in range(3)]
        )
        words = np.concatenate([words, 600 + g.integers(200, size=(3, items))])
        self.captioned = g.random(items) >= share
        self.answers = g.choice(items, queries, replace=False)
        has = np.zeros((items, 800))
        has[np.arange(items), words] = 1
        has[~self.captioned] = 0
        idf = np.log(1 + (self.captioned.sum() - has.sum(0) + 0.5) / (has.sum(0) + 0.5))
        asked = np.zeros((queries, 800))
        for n, answer in enumerate(self.answers):
            asked[n, g.choice(words[:, answer], matched, replace=False)] = 1
            asked[n, 600 + g.integers(200)] = 1
        vectors = latent[self.answers] + noise * g.normal(size=(queries, 48))
        self.dense = vectors @ (latent / np.linalg.norm(latent, axis=1, keepdims=True)).T
        self.terms = asked @ (has * idf).T

    def lists(self, query):
        dense = np.argsort(-self.dense[query], kind="stable")[:50]
        terms = [n for n in np.argsort(-self.terms[query], kind="stable")[:50] if self.terms[query, n] > 0]
        both = {int(n) for n in (*dense, *terms)}
        lacking = {name(n) for n in both if not self.captioned[n]}
        lists = [listed("dense", map(name, dense)), listed("terms", map(name, terms), lacking=lacking)]
        return [own for own in lists if own.hits]

    def recall(self, rank):
        """Recall@10 on answers without a caption, and on those with one."""
        hit = np.array([name(a) in rank(self.lists(n))[:10] for n, a in enumerate(self.answers)])
        captioned = self.captioned[self.answers]
        return hit[~captioned].mean(), hit[captioned].mean()


def name(n):
    return f"i{int(n):04}"


def world(seed, share=0.5, matched=2, noise=3.0):
    return World(seed, share, matched, noise)


def dense_only(lists):
    return [hit.id for hit in lists[0].hits]


def naive(lists):
    return [item.id for item in fuse(lists, impute=False)]


def concluded(lists):
    return [item.id for item in fuse(lists)]


def own_rank(lists):
    """The plainer rule: an item's rank in the dense list counts in the list that it cannot be in, too."""
    if len(lists) == 1:
        return dense_only(lists)
    ranks = {hit.id: rank for rank, hit in enumerate(lists[0].hits, 1)}
    scores = {item.id: item.score for item in fuse(lists, impute=False)}
    for id in lists[1].lacking:
        scores[id] += 1 / (K + ranks[id])
    return sorted(scores, key=lambda id: (-scores[id], id))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("matched", [1, 3])
def test_images_without_captions_are_not_buried(seed, matched):
    """Half of the items have none. The plain sum loses their answers; captions still help the others."""
    own = world(seed, matched=matched)
    images, captions = own.recall(concluded)
    dense_images, dense_captions = own.recall(dense_only)
    plain_images, plain_captions = own.recall(naive)
    assert images >= dense_images
    assert plain_images < dense_images - 0.04
    assert captions > dense_captions + 0.1
    assert captions > plain_captions - 0.12


@pytest.mark.parametrize("seed", range(2))
def test_captions_that_do_not_match_do_not_bury_their_images(seed):
    """Why an image does not simply get its dense rank: then images with captions are the buried ones."""
    own = world(seed, matched=0)
    assert own.recall(own_rank)[1] < 0.1
    assert own.recall(concluded)[1] > 0.2
    assert own.recall(concluded)[0] >= own.recall(dense_only)[0]
