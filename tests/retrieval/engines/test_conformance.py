"""One suite for every engine: what `types.Engine` promises."""

from __future__ import annotations

import numpy as np
import pytest

from vlmkit_retrieval.errors import RetrievalError, RetrievalUsageError
from vlmkit_retrieval.types import Dense, Multi, Point, Sparse, Terms
from vlmkit_retrieval.where import HasVector, Match, Not


def unit(*values: float) -> np.ndarray:
    vector = np.asarray(values, np.float32)
    return vector / np.linalg.norm(vector)


@pytest.fixture
def engine(engine, spaces):
    engine.ensure(spaces)
    return engine


def test_points_come_back_as_they_were_stored(engine):
    payload = {
        "path": "/photos/ä b.png",
        "nested": {"list": [1, 2.5, None, True]},
        "time": 1_732_200_000_123_456_789,
    }
    vectors = {
        "a": unit(1, 2, 3, 4),
        "m": np.stack([unit(1, 0, 1), unit(0, 1, 1)]),
        "s": Terms([2, 7], [0.5, 2.0]),
    }
    engine.upsert([Point("any string / 1", vectors, payload)])
    [point] = engine.scroll()
    assert (point.id, point.payload) == ("any string / 1", payload)
    np.testing.assert_allclose(point.vectors["a"], vectors["a"], atol=1e-6)
    np.testing.assert_allclose(point.vectors["m"], vectors["m"], atol=1e-6)
    assert point.vectors["s"] == vectors["s"]


def test_an_engine_says_what_it_stores(engine, spaces):
    assert engine.spaces() == spaces
    assert engine.approximate is False


def test_upsert_replaces_vectors_and_payload(engine):
    engine.upsert([Point("x", {"a": unit(1, 0, 0, 0), "b": unit(1, 0, 0)}, {"old": 1})])
    engine.upsert([Point("x", {"a": unit(0, 1, 0, 0)}, {"new": 2})])
    [point] = engine.scroll()
    assert point.payload == {"new": 2}
    assert point.vectors.keys() == {"a"}
    assert engine.count() == 1


def test_vectors_are_added_and_replaced_and_all_else_stays(engine):
    engine.upsert(
        [Point("x", {"a": unit(1, 0, 0, 0), "b": unit(1, 0, 0)}, {"n": 1}), Point("y", {}, {"n": 2})]
    )
    engine.update_vectors({"x": {"a": unit(0, 1, 0, 0), "s": Terms([3], [1.0])}, "y": {"m": np.eye(3)[:2]}})
    x, y = engine.scroll()
    assert (x.payload, y.payload) == ({"n": 1}, {"n": 2})
    np.testing.assert_array_equal(x.vectors["a"], unit(0, 1, 0, 0))
    np.testing.assert_array_equal(x.vectors["b"], unit(1, 0, 0))
    assert x.vectors["s"] == Terms([3], [1.0])
    assert y.vectors["m"].shape == (2, 3)


def test_payload_keys_are_added_and_replaced_and_vectors_stay(engine):
    engine.upsert([Point("x", {"a": unit(1, 0, 0, 0)}, {"n": 1, "old": [1]}), Point("y", {}, {"n": 2})])
    engine.set_payload({"x": {"n": 5, "new": {"deep": True}}, "y": {}})
    x, y = engine.scroll()
    assert (x.payload, y.payload) == ({"n": 5, "old": [1], "new": {"deep": True}}, {"n": 2})
    assert x.vectors.keys() == {"a"}


def test_updates_of_unknown_items_change_nothing(engine):
    engine.upsert([Point("x", {"a": unit(1, 0, 0, 0)}, {"n": 1})])
    with pytest.raises(RetrievalError, match="has no item 'never'"):
        engine.update_vectors({"x": {"a": unit(0, 1, 0, 0)}, "never": {"a": unit(0, 1, 0, 0)}})
    with pytest.raises(RetrievalError, match=r"has no item 'never' \(1 of 2 are unknown\)"):
        engine.set_payload({"x": {"n": 2}, "never": {"n": 2}})
    with pytest.raises(RetrievalError, match="x': vector 'a' has NaN"):
        engine.update_vectors({"x": {"a": np.full(4, np.nan, np.float32)}})
    [point] = engine.scroll()
    assert point.payload == {"n": 1}
    np.testing.assert_array_equal(point.vectors["a"], unit(1, 0, 0, 0))


def test_delete_and_retrieve_ignore_unknown_ids(engine, random_points):
    engine.upsert(random_points(3))
    engine.delete(["id/1", "never stored"])
    assert engine.ids() == ["id/0", "id/2"]
    found = engine.retrieve(["id/0", "id/1", "never stored"])
    assert {id: point.payload for id, point in found.items()} == {"id/0": {"n": 0}}
    assert engine.retrieve(["id/0"], with_vectors=True)["id/0"].vectors.keys() == {"a"}


def test_scroll_is_in_order_of_id_across_pages(engine, random_points):
    points = random_points(300)
    engine.upsert(points[::-1])
    assert [point.id for point in engine.scroll()] == sorted(point.id for point in points)
    assert [point.id for point in engine.scroll(Match("n", (7, 5)))] == ["id/5", "id/7"]


def test_a_space_can_be_added_to_stored_points(engine):
    engine.upsert([Point("x", {"a": unit(1, 0, 0, 0)})])
    more = {"c": Dense(2), "m2": Multi(2), "s2": Sparse()}
    engine.ensure({"a": Dense(4), **more})
    engine.upsert([Point("y", {"c": unit(1, 1), "m2": np.eye(2), "s2": Terms([1], [1.0])})])
    assert {name: engine.spaces()[name] for name in more} == more
    assert [hit.id for hit in engine.search("c", unit(1, 0), 5)] == ["y"]
    assert [hit.id for hit in engine.search("m2", np.eye(2), 5)] == ["y"]
    assert [hit.id for hit in engine.search("s2", Terms([1], [1.0]), 5)] == ["y"]


@pytest.mark.parametrize("other", [Dense(7), Multi(4), Sparse()])
def test_a_space_keeps_its_kind_and_width(engine, other):
    with pytest.raises(RetrievalError, match=r"vector 'a' is Dense\(width=4, half=False\), .* was asked for"):
        engine.ensure({"z": Dense(2), "a": other})
    assert "z" not in engine.spaces()
    engine.ensure({"a": Dense(4, half=True)})
    assert engine.spaces()["a"] == Dense(4)


def test_a_dropped_space_takes_its_vectors_and_leaves_the_items(library, mixed_points, spaces):
    library.ensure(spaces)
    library.upsert(mixed_points(5))
    for name in ("m", "s", "a"):
        library.drop_space(name)
    assert library.spaces().keys() == {"b", "half"}
    assert library.count() == 5
    assert {tuple(point.vectors) for point in library.scroll()} == {("half",)}
    with pytest.raises(RetrievalUsageError, match=r"no vector is named 'a' \(known: b, half\)"):
        library.drop_space("a")
    library.ensure({"a": Dense(2)})
    library.update_vectors({"id/000": {"a": unit(1, 1)}})
    assert [hit.id for hit in library.search("a", unit(1, 0), 9)] == ["id/000"]


def test_a_point_may_have_some_vectors_or_none(engine):
    both = Point("both", {"a": unit(1, 0, 0, 0), "b": unit(1, 0, 0)})
    engine.upsert([both, Point("only a", {"a": unit(0, 1, 0, 0)}), Point("none", {}, {"n": 1})])
    assert {hit.id for hit in engine.search("a", unit(1, 0, 0, 0), 9)} == {"both", "only a"}
    assert [hit.id for hit in engine.search("b", unit(1, 0, 0), 9)] == ["both"]
    assert engine.ids(Not(HasVector("a"))) == ["none"]


def test_an_index_on_a_payload_key_changes_no_answer(engine):
    engine.upsert(
        [Point(str(n), {}, {"kind": "ab"[n % 2], "n": n, "x": n / 2, "text": f"word {n}"}) for n in range(9)]
    )
    before = [engine.ids(where) for where in (Match("kind", ("a",)), Match("n", (3, 4)), Match("a b", (1,)))]
    for key, kind in {
        "kind": "keyword",
        "n": "integer",
        "x": "float",
        "text": "text",
        "a b": "integer",
    }.items():
        engine.index_payload(key, kind)
        engine.index_payload(key, kind)
    engine.upsert([Point("9", {}, {"kind": "b", "n": 9})])
    assert before == [
        engine.ids(where) for where in (Match("kind", ("a",)), Match("n", (3, 4)), Match("a b", (1,)))
    ]
    assert engine.count(Match("kind", ("b",))) == 5


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (Point("bad", {"a": np.array([1, np.nan, 0, 0], np.float32)}), "bad': vector 'a' has NaN or Inf"),
        (Point("bad", {"a": np.array([1, np.inf, 0, 0], np.float32)}), "NaN or Inf"),
        (Point("bad", {"a": np.array([1e300, 1e300, 0, 0])}), "too extreme"),
        (Point("bad", {"a": np.zeros(4, np.float32)}), "all zeros"),
        (Point("bad", {"a": unit(1, 2, 3)}), r"shape \(3,\) of float32, stored is \(4,\)"),
        (Point("bad", {"a": np.array(["1", "2", "3", "4"])}), r"shape \(4,\) of <U1"),
        (Point("bad", {"q": unit(1, 2, 3)}), r"no vector is named 'q' \(known: a, b, half, m, s\)"),
        (Point("bad", {"m": unit(1, 2, 3)}), r"shape \(3,\) of float32, stored is \(N, 3\)"),
        (Point("bad", {"m": np.ones((2, 4))}), r"shape \(2, 4\)"),
        (Point("bad", {"m": np.ones((0, 3))}), "0 x 3 numbers, possible are 1 to 1,048,576"),
        (Point("bad", {"m": np.ones((349_526, 3))}), "349526 x 3 numbers, possible are 1 to 1,048,576"),
        (Point("bad", {"m": np.array([[1, 0, 0], [0, np.nan, 0]])}), "vector 'm' has NaN or Inf"),
        (Point("bad", {"m": np.array([[1, 0, 0], [0, 0, 0]])}), "vector 'm' is all zeros"),
        (Point("bad", {"a": Terms([1], [1.0])}), "found terms; name a sparse space"),
        (Point("bad", {"s": unit(1, 2, 3)}), "is sparse, found an array"),
        (Point("bad", {"s": Terms([], [])}), "leave the vector out"),
        (Point("bad", {"s": Terms([1, 2], [1.0])}), "2 terms with 1 weights"),
        (Point("bad", {"s": Terms([1, 1], [1.0, 2.0])}), "a term twice"),
        (Point("bad", {"s": Terms([-1], [1.0])}), "from 0 to 4294967295"),
        (Point("bad", {"s": Terms([2**32], [1.0])}), "from 0 to 4294967295"),
        (Point("bad", {"s": Terms([1], [float("nan")])}), "vector 's' has NaN or Inf"),
        (Point("id/0", {"a": unit(1, 2, 3, 4)}), "occurs twice"),
        (Point("bad", {"a": unit(1, 2, 3, 4)}, {"x": float("nan")}), "bad': payload is not JSON"),
        (Point("bad", {"a": unit(1, 2, 3, 4)}, {"x": "\ud800"}), "not JSON"),
        (Point("bad", {"a": unit(1, 2, 3, 4)}, {"x": object()}), "not JSON"),
        (Point("bad", {"a": unit(1, 2, 3, 4)}, {"x": 2**63}), "not JSON .9223372036854775808 does not fit"),
        (Point("bad", {"a": unit(1, 2, 3, 4)}, {"_vlmkit_id": 1}), "reserved"),
    ],
)
def test_one_bad_point_refuses_its_whole_call(engine, random_points, bad, message):
    with pytest.raises(RetrievalError, match=message):
        engine.upsert([*random_points(3), bad])
    assert engine.count() == 0


def test_the_largest_multivector_is_stored(library):
    library.ensure({"m": Multi(1024)})
    library.upsert([Point("largest", {"m": np.ones((1024, 1024), np.float32)})])
    assert library.retrieve(["largest"], with_vectors=True)["largest"].vectors["m"].shape == (1024, 1024)


def test_a_bad_query_is_refused(engine, random_points):
    engine.upsert(random_points(2))
    for query in (np.zeros(4, np.float32), np.full(4, np.nan, np.float32), unit(1, 2, 3), np.eye(4)):
        with pytest.raises(RetrievalError, match="the query: vector 'a'"):
            engine.search("a", query, 3)
    with pytest.raises(RetrievalUsageError, match="the query: no vector is named 'q'"):
        engine.search("q", unit(1, 0), 3)
    with pytest.raises(RetrievalUsageError, match="at least 1"):
        engine.search("a", unit(1, 0, 0, 0), 0)


def test_nothing_works_after_close(engine, random_points):
    engine.close()
    engine.close()
    uses = [
        engine.count,
        engine.ids,
        engine.spaces,
        lambda: list(engine.scroll()),
        lambda: engine.retrieve(["x"]),
        lambda: engine.ensure({"a": Dense(4)}),
        lambda: engine.index_payload("n", "integer"),
        lambda: engine.upsert(random_points(1)),
        lambda: engine.update_vectors({"x": {}}),
        lambda: engine.set_payload({"x": {}}),
        lambda: engine.delete(["x"]),
        lambda: engine.search("a", unit(1, 0, 0, 0), 1),
    ]
    for use in uses:
        with pytest.raises(RetrievalError, match="is closed;"):
            use()


def test_an_engine_without_spaces_is_empty(library):
    assert (library.count(), library.ids(), list(library.scroll()), library.spaces()) == (0, [], [], {})
    library.delete(["x"])
    assert library.retrieve(["x"]) == {}
    with pytest.raises(RetrievalUsageError, match="has no space yet"):
        library.index_payload("n", "integer")
    with pytest.raises(RetrievalUsageError, match="has no space yet"):
        library.upsert([Point("x", {})])


def test_an_id_that_utf8_cannot_hold_is_refused(engine):
    engine.ensure({"a": Dense(4)})
    for use in (engine.retrieve, engine.delete, lambda ids: engine.upsert([Point(ids[0], {})])):
        with pytest.raises(RetrievalError, match="no text that UTF-8 can hold"):
            use(["caf\udce9"])
