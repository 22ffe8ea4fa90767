"""A tenant's engine is as one that nobody else uses."""

from __future__ import annotations

import random

import numpy as np
import pytest

from vlmkit_retrieval.engines.tenant import TENANT_KEY, Tenant
from vlmkit_retrieval.errors import RetrievalError, RetrievalUsageError
from vlmkit_retrieval.types import Dense, Engine, Multi, Point, Sparse, Terms
from vlmkit_retrieval.where import Either, HasId, HasVector, Match, Not, Range

SPACES = {"a": Dense(4), "m": Multi(3), "s": Sparse()}
IDS = [f"item {n}" for n in range(12)]
WHERES = [
    None,
    Match("kind", ("x",)),
    Not(Match("kind", ("x",))),
    Not(Range("n", gt=3.0)),
    HasId(("item 1", "item 2", "bob/item 3")),
    Not(HasId(("item 1",))),
    Either((HasVector("m"), HasId(("item 5",)))),
    Match(TENANT_KEY, ("bob",)),
    Not(Match(TENANT_KEY, ("alice",))),
    Either((Match(TENANT_KEY, ("alice", "bob")),)),
]


def random_vectors(rng: random.Random) -> dict:
    vectors = {
        "a": np.array([rng.gauss(0, 1) for _ in range(4)], np.float32),
        "m": np.array([[rng.gauss(0, 1) for _ in range(3)] for _ in range(rng.randrange(1, 4))], np.float32),
        "s": Terms(sorted(rng.sample(range(9), 3)), [rng.uniform(1, 2) for _ in range(3)]),
    }
    return {name: vector for name, vector in vectors.items() if rng.random() < 0.7}


def random_payload(rng: random.Random) -> dict:
    return {"kind": rng.choice("xy"), "n": rng.randrange(6)}


def random_writes(rng: random.Random, count: int):
    """Functions of an engine, each of which writes."""
    for _ in range(count):
        some = rng.sample(IDS, 4)
        points = [Point(id, random_vectors(rng), random_payload(rng)) for id in some]
        vectors, payload = random_vectors(rng), random_payload(rng)
        yield rng.choice(
            [
                lambda e, points=points: e.upsert(points),
                lambda e, some=some: e.delete(some[:2]),
                lambda e, some=some, vectors=vectors: e.update_vectors(
                    dict.fromkeys(e.retrieve(some), vectors)
                ),
                lambda e, some=some, payload=payload: e.set_payload(dict.fromkeys(e.retrieve(some), payload)),
            ]
        )


def seen(engine: Engine) -> list:
    """Everything that can be read."""
    rng = random.Random(3)
    query = {"a": np.ones(4), "m": np.eye(3), "s": Terms([0, 1, 2, 3, 4], [1.0] * 5)}
    found: list = [
        engine.spaces(),
        engine.approximate,
        [plain(p) for p in engine.retrieve(IDS, True).values()],
    ]
    for where in WHERES if isinstance(engine, Tenant) else WHERES[:-3]:
        found += [engine.ids(where), engine.count(where), [plain(p) for p in engine.scroll(where)]]
        for name in SPACES:
            corpus = rng.choice([None, Match("kind", ("x",))])
            hits = engine.search(name, query[name], 5, where, corpus=corpus)
            found.append([(hit.id, round(hit.score, 4), hit.payload) for hit in hits])
    return found


def plain(point: Point) -> tuple:
    vectors = {n: v if isinstance(v, Terms) else np.round(v, 5).tolist() for n, v in point.vectors.items()}
    return (point.id, vectors, point.payload)


@pytest.mark.parametrize("seed", range(2))
def test_a_tenant_sees_what_an_engine_of_its_own_would_show(library, opened, seed):
    kind = {"EdgeEngine": "edge", "ServerEngine": "server"}.get(type(library).__name__, "memory")
    names = ["alice", "bob", "alic"]
    shared = {name: Tenant(library, name) for name in names}
    alone = {name: opened(kind) for name in names}
    for engine in [*shared.values(), *alone.values()]:
        engine.ensure(SPACES)
    rng = random.Random(seed)
    writes = {name: list(random_writes(rng, 12)) for name in names}
    for step in range(12):
        for name in names:
            writes[name][step](shared[name])
            writes[name][step](alone[name])
    for name in names:
        own = seen(alone[name])
        assert seen(shared[name])[: len(own)] == own
        assert shared[name].count(), "nothing was compared"
        assert shared[name].ids(Match(TENANT_KEY, ("alice",))) == (
            alone[name].ids() if name == "alice" else []
        )
    assert library.count() == sum(engine.count() for engine in alone.values())


POINT = Point("item 1", {"a": np.ones(4, np.float32)}, {"kind": "mine"})
USES = {
    "approximate": lambda tenant: tenant.approximate,
    "ensure": lambda tenant: tenant.ensure({"new": Dense(2)}),
    "spaces": lambda tenant: tenant.spaces(),
    "drop_space": lambda tenant: tenant.drop_space("a"),
    "index_payload": lambda tenant: tenant.index_payload("kind", "keyword"),
    "upsert": lambda tenant: tenant.upsert([POINT]),
    "update_vectors": lambda tenant: tenant.update_vectors({"item 1": POINT.vectors}),
    "set_payload": lambda tenant: tenant.set_payload({"item 1": {"kind": "mine"}}),
    "delete": lambda tenant: tenant.delete([*IDS, "bob/item 1", "../bob/item 1"]),
    "retrieve": lambda tenant: tenant.retrieve([*IDS, "bob/item 1", "/bob/item 1", ""], True),
    "ids": lambda tenant: [tenant.ids(where) for where in WHERES],
    "scroll": lambda tenant: [list(tenant.scroll(where)) for where in WHERES],
    "search": lambda tenant: [tenant.search("a", np.ones(4), 99, where) for where in WHERES],
    "count": lambda tenant: sum(tenant.count(where) for where in WHERES),
    "close": lambda tenant: tenant.close(),
}
EMPTY = {
    "retrieve": {},
    "ids": [[]] * len(WHERES),
    "scroll": [[]] * len(WHERES),
    "search": [[]] * len(WHERES),
    "count": 0,
}


def test_every_method_of_an_engine_is_tried_here():
    assert USES.keys() == {name for name in vars(Engine) if not name.startswith("_")}
    assert USES.keys() == {name for name in vars(Tenant) if not name.startswith("_")}


@pytest.mark.parametrize("name", USES)
def test_no_method_reads_or_changes_what_is_of_another(library, name):
    """Bob has items and alice has none: she finds nothing, and bob's stay as they are."""
    alice, bob = Tenant(library, "alice"), Tenant(library, "bob")
    bob.ensure(SPACES)
    bob.upsert([Point(id, POINT.vectors, {"kind": "x"}) for id in IDS])
    before = [plain(point) for point in bob.scroll()]
    try:
        found = USES[name](alice)
    except RetrievalError:
        found = None
        assert name in ("drop_space", "update_vectors", "set_payload")
    assert found == EMPTY.get(name, found)
    assert [plain(point) for point in bob.scroll()] == before


def test_two_tenants_may_use_the_same_id(library):
    alice, bob = Tenant(library, "alice"), Tenant(library, "bob")
    alice.ensure({"a": Dense(2)})
    alice.upsert([Point("x", {"a": np.array([1.0, 0.0])}, {"of": "alice"})])
    bob.upsert([Point("x", {"a": np.array([0.0, 1.0])}, {"of": "bob"})])
    assert [alice.retrieve(["x"])["x"].payload, bob.retrieve(["x"])["x"].payload] == [
        {"of": "alice"},
        {"of": "bob"},
    ]
    alice.delete(["x"])
    assert (alice.ids(), bob.ids()) == ([], ["x"])


def test_an_item_of_no_tenant_is_not_a_tenants(library):
    alice = Tenant(library, "alice")
    alice.ensure({"a": Dense(2)})
    library.upsert([Point("alice/x", {"a": np.ones(2)}, {"n": 1})])
    assert (alice.retrieve(["x"]), alice.ids(), alice.count(), alice.search("a", np.ones(2), 5)) == (
        {},
        [],
        0,
        [],
    )
    alice.delete(["x"])
    assert library.ids() == ["alice/x"]
    with pytest.raises(RetrievalError, match="tenant 'alice' has no item 'x'"):
        alice.set_payload({"x": {"n": 2}})


def test_the_tenants_key_is_not_the_users(library):
    alice = Tenant(library, "alice")
    alice.ensure({"a": Dense(2)})
    forged = {TENANT_KEY: "bob"}
    uses = [
        lambda: alice.upsert([Point("x", {}, forged)]),
        lambda: alice.set_payload({"x": forged}),
        lambda: alice.index_payload(TENANT_KEY, "integer"),
    ]
    for use in uses:
        with pytest.raises(RetrievalError, match="is reserved"):
            use()
    assert library.count() == 0


@pytest.mark.parametrize("name", ["", "a/b", "/"])
def test_a_tenants_name_keeps_ids_apart(library, name):
    with pytest.raises(RetrievalUsageError, match="is not empty and has no '/'"):
        Tenant(library, name)


def test_closing_a_tenant_leaves_the_engine_open(library):
    alice = Tenant(library, "alice")
    alice.close()
    with pytest.raises(RetrievalError, match="tenant 'alice' is closed"):
        alice.count()
    assert library.count() == 0
