"""What a filter means to an engine is what `holds` says, on payloads and filters drawn at random."""

from __future__ import annotations

import random

import numpy as np
import pytest

from vlmkit_retrieval.errors import RetrievalUsageError
from vlmkit_retrieval.types import Dense, Multi, Point, Sparse, Terms
from vlmkit_retrieval.where import All, Either, HasId, HasVector, Match, Not, Range, holds, parse_where

# Values that a careless comparison takes for one another, and keys that a path could mean something else by.
VALUES = ["red", "1", "true", "", "ä b", 0, 1, -7, 2**53 + 1, 2**62 + 1, 0.5, 1.0, -2.5, True, False, None]
KEYS = ["kind", "a b", "a.b", "deep.key", "deep.er.key", "x[0]", "", "list", "Ä-1_"]
SPACES = {"a": Dense(2), "m": Multi(2), "s": Sparse()}
VECTORS = {"a": np.ones(2, np.float32), "m": np.eye(2), "s": Terms([1], [1.0])}


def random_value(rng: random.Random, depth: int = 0):
    kind = rng.random()
    if kind < 0.15 and depth < 2:
        return [random_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind < 0.3 and depth < 2:
        return random_payload(rng, depth + 1)
    return rng.choice(VALUES)


def random_payload(rng: random.Random, depth: int = 0):
    names = [*KEYS, "a", "b", "deep", "er", "key", "x"]
    return {rng.choice(names): random_value(rng, depth) for _ in range(rng.randrange(2, 12))}


def random_where(rng: random.Random, ids: list[str], depth: int = 0):
    kind = rng.randrange(7 if depth < 3 else 4)
    match kind:
        case 0:
            values = [value for value in VALUES if value is not None and not isinstance(value, float)]
            return Match(rng.choice(KEYS), tuple(rng.sample(values, rng.randrange(6))))
        case 1:
            bounds = rng.sample(["gt", "gte", "lt", "lte"], rng.randrange(3))
            return Range(rng.choice(KEYS), **{bound: rng.choice([-7.0, 0.0, 0.5, 1.0]) for bound in bounds})
        case 2:
            return HasVector(rng.choice([*SPACES, "unknown"]))
        case 3:
            return HasId(tuple(rng.sample([*ids, "unknown"], rng.randrange(4))))
        case 4:
            return Not(random_where(rng, ids, depth + 1))
    parts = tuple(random_where(rng, ids, depth + 1) for _ in range(rng.randrange(4)))
    return All(parts) if kind == 5 else Either(parts)


def test_a_filter_means_to_every_engine_what_holds_says(engine):
    rng = random.Random(7)
    ids = [f"item {n}" for n in range(60)]
    points = [
        Point(id, {n: v for n, v in VECTORS.items() if rng.random() < 0.6}, random_payload(rng)) for id in ids
    ]
    engine.ensure(SPACES)
    engine.upsert(points)
    engine.index_payload("kind", "keyword")
    sizes = set()
    for _ in range(300):
        where = random_where(rng, ids)
        expected = sorted(p.id for p in points if holds(where, p.id, p.payload, list(p.vectors)))
        assert engine.ids(where) == expected, where
        assert engine.count(where) == len(expected)
        sizes.add(len(expected))
    assert len(sizes) > 20, "the filters are too much alike to show anything"


def test_a_search_and_a_scroll_are_filtered(engine):
    engine.ensure(SPACES)
    points = [
        Point(f"{n:02}", VECTORS, {"n": n, "tags": ["even", "all"] if n % 2 == 0 else "all"})
        for n in range(40)
    ]
    engine.upsert(points)
    where = parse_where({"tags": "even", "n": {"$gte": 10, "$lt": 20}})
    expected = ["10", "12", "14", "16", "18"]
    assert [point.id for point in engine.scroll(where)] == expected
    for name, query in VECTORS.items():
        assert [hit.id for hit in engine.search(name, query, 3, where)] == expected[:3]
        assert len(engine.search(name, query, 99, where)) == 5


def test_numbers_beyond_64_bits_match_nothing(library):
    library.ensure(SPACES)
    library.upsert([Point("x", {}, {"n": 2**63 - 1}), Point("y", {}, {"n": -(2**63)})])
    assert library.ids(Match("n", (2**63, 2**70, -(2**63) - 1))) == []
    assert library.ids(Match("n", (2**63 - 1, 2**70))) == ["x"]
    assert library.ids(Match("n", (-(2**63),))) == ["y"]


@pytest.mark.parametrize("key", ['a"b', 'deep."quoted"', "a\\b", "end\\"])
def test_a_key_that_cannot_be_looked_up_is_refused(engine, key):
    engine.ensure(SPACES)
    for use in (lambda: engine.ids(Match(key, (1,))), lambda: engine.index_payload(key, "keyword")):
        with pytest.raises(RetrievalUsageError, match="has a quotation mark"):
            use()


def test_a_bound_that_no_float_can_hold_is_refused():
    with pytest.raises(RetrievalUsageError, match="a bound has more than 308 digits"):
        parse_where({"n": {"$gte": 10**400}})
