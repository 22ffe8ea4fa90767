"""One suite for every engine. A server is tested where VLMKIT_QDRANT_URL names one."""

from __future__ import annotations

import os
import uuid

import numpy as np
import pytest

from vlmkit_retrieval.engines import open_engine
from vlmkit_retrieval.engines.server import QdrantEngine
from vlmkit_retrieval.errors import IndexLockedError, RetrievalError, RetrievalUsageError
from vlmkit_retrieval.types import Point

SERVER = os.environ.get("VLMKIT_QDRANT_URL")
WIDTHS = {"a": 4, "b": 3}


@pytest.fixture(params=["edge", "memory", *(["server"] if SERVER else [])])
def engine(request, tmp_path):
    server = f"{SERVER}/vlmkit-test-{uuid.uuid4().hex}"
    location = {"edge": str(tmp_path / "shard"), "memory": ":memory:", "server": server}[request.param]
    with open_engine(location) as opened:
        opened.ensure(WIDTHS)
        yield opened


@pytest.fixture
def shard(tmp_path):
    return tmp_path / "shard"


def unit(*values: float) -> np.ndarray:
    vector = np.asarray(values, np.float32)
    return vector / np.linalg.norm(vector)


def random_points(count: int, seed: int = 0) -> list[Point]:
    vectors = np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)
    return [Point(f"id/{n}", {"a": vector}, {"n": n}) for n, vector in enumerate(vectors)]


def test_points_come_back_as_they_were_stored(engine):
    payload = {"path": "/photos/ä b.png", "nested": {"list": [1, 2.5, None, True]}}
    engine.upsert([Point("any string / 1", {"a": unit(1, 2, 3, 4)}, payload)])
    [point] = engine.scroll()
    assert (point.id, point.payload) == ("any string / 1", payload)
    np.testing.assert_allclose(point.vectors["a"], unit(1, 2, 3, 4), atol=1e-6)


def test_upsert_replaces_vectors_and_payload(engine):
    engine.upsert([Point("x", {"a": unit(1, 0, 0, 0), "b": unit(1, 0, 0)}, {"old": 1})])
    engine.upsert([Point("x", {"a": unit(0, 1, 0, 0)}, {"new": 2})])
    [point] = engine.scroll()
    assert point.payload == {"new": 2}
    assert point.vectors.keys() == {"a"}
    assert engine.count() == 1


def test_delete_and_retrieve_ignore_unknown_ids(engine):
    engine.upsert(random_points(3))
    engine.delete(["id/1", "never stored"])
    assert engine.ids() == ["id/0", "id/2"]
    found = engine.retrieve(["id/0", "id/1", "never stored"])
    assert {id: point.payload for id, point in found.items()} == {"id/0": {"n": 0}}
    assert engine.retrieve(["id/0"], with_vectors=True)["id/0"].vectors.keys() == {"a"}


def test_scroll_is_in_order_of_id_across_pages(engine):
    points = random_points(600)
    engine.upsert(points[::-1])
    assert [point.id for point in engine.scroll()] == sorted(point.id for point in points)


@pytest.mark.parametrize("k", [1, 10, 300])
def test_search_agrees_with_brute_force(engine, k):
    points = random_points(200)
    engine.upsert(points)
    matrix = np.stack([point.vectors["a"] for point in points])
    query = unit(1, -2, 3, 0.5)
    scores = (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)) @ query
    hits = engine.search("a", query, k)
    assert [hit.id for hit in hits] == [points[n].id for n in np.argsort(-scores)[:k]]
    np.testing.assert_allclose([hit.score for hit in hits], np.sort(scores)[::-1][:k], atol=1e-6)
    assert hits[0].payload == {"n": int(np.argmax(scores))}


def test_equal_scores_are_in_order_of_id_wherever_k_cuts(engine):
    same = [Point(f"{n:03}", {"a": unit(1, 1, 0, 0)}) for n in range(100)]
    best = Point("zzz", {"a": unit(1, 0, 0, 0)})
    engine.upsert([*same[::-1], best])
    hits = engine.search("a", unit(1, 0, 0, 0), 4)
    assert [hit.id for hit in hits] == ["zzz", "000", "001", "002"]


def test_a_point_may_have_only_one_of_two_vectors(engine):
    engine.upsert(
        [
            Point("both", {"a": unit(1, 0, 0, 0), "b": unit(1, 0, 0)}),
            Point("only a", {"a": unit(0, 1, 0, 0)}),
            Point("only b", {"b": unit(0, 1, 0)}),
        ]
    )
    assert {hit.id for hit in engine.search("a", unit(1, 0, 0, 0), 9)} == {"both", "only a"}
    assert {hit.id for hit in engine.search("b", unit(1, 0, 0), 9)} == {"both", "only b"}


def test_a_vector_can_be_added_to_stored_points(engine):
    engine.upsert([Point("x", {"a": unit(1, 0, 0, 0)})])
    engine.ensure({"a": 4, "c": 2})
    engine.upsert([Point("y", {"c": unit(1, 1)})])
    assert [hit.id for hit in engine.search("c", unit(1, 0), 5)] == ["y"]
    with pytest.raises(RetrievalError, match="'a' is 4 wide, 7 was asked for"):
        engine.ensure({"a": 7})


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (Point("bad", {"a": np.array([1, np.nan, 0, 0], np.float32)}), "NaN or Inf"),
        (Point("bad", {"a": np.array([1, np.inf, 0, 0], np.float32)}), "NaN or Inf"),
        (Point("bad", {"a": np.zeros(4, np.float32)}), "all zeros"),
        (Point("bad", {"a": unit(1, 2, 3)}), r"shape \(3,\), stored is \(4,\)"),
        (Point("bad", {"q": unit(1, 2, 3)}), r"no vector is named 'q' \(known: a, b\)"),
        (Point("bad", {}), "has no vector"),
        (Point("id/0", {"a": unit(1, 2, 3, 4)}), "occurs twice"),
        (Point("bad", {"a": unit(1, 2, 3, 4)}, {"x": float("nan")}), "not JSON"),
        (Point("bad", {"a": unit(1, 2, 3, 4)}, {"x": "\ud800"}), "not JSON"),
        (Point("bad", {"a": unit(1, 2, 3, 4)}, {"_vlmkit_id": 1}), "reserved"),
    ],
)
def test_one_bad_point_refuses_its_whole_batch(engine, bad, message):
    with pytest.raises(RetrievalError, match=message):
        engine.upsert([*random_points(3), bad])
    assert engine.count() == 0


def test_a_bad_query_is_refused(engine):
    engine.upsert(random_points(2))
    for query in (np.zeros(4, np.float32), np.full(4, np.nan, np.float32), unit(1, 2, 3)):
        with pytest.raises(RetrievalError, match="the query: vector 'a'"):
            engine.search("a", query, 3)
    with pytest.raises(RetrievalUsageError, match="at least 1"):
        engine.search("a", unit(1, 0, 0, 0), 0)


def test_nothing_works_after_close(engine):
    engine.close()
    engine.close()
    for use in (
        engine.count,
        engine.ids,
        lambda: engine.upsert(random_points(1)),
        lambda: engine.delete(["x"]),
    ):
        with pytest.raises(RetrievalError, match="is closed; open it again"):
            use()


def test_edge_stores_what_it_gave_without_changing_a_bit(shard):
    with open_engine(shard) as engine:
        engine.ensure({"a": 4})
        engine.upsert(random_points(50))
        before = list(engine.scroll())
        engine.upsert(before)
        for old, new in zip(before, engine.scroll(), strict=True):
            np.testing.assert_array_equal(old.vectors["a"], new.vectors["a"])


def test_edge_keeps_everything_over_a_reopen(shard):
    with open_engine(shard) as engine:
        assert (engine.count(), engine.ids()) == (0, [])
        engine.ensure(WIDTHS)
        engine.upsert(random_points(20))
        before = engine.search("a", unit(1, 0, 0, 0), 5)
    with open_engine(shard) as engine:
        assert engine.search("a", unit(1, 0, 0, 0), 5) == before
        with pytest.raises(RetrievalUsageError, match="known: a, b"):
            engine.search("c", unit(1, 0), 5)


def test_edge_refuses_a_directory_of_something_else(tmp_path):
    (tmp_path / "holiday.txt").write_text("sun")
    with pytest.raises(RetrievalError, match="not a vlmkit engine"):
        open_engine(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.txt"]


HOLD = """
import sys
from vlmkit_retrieval.engines import open_engine
engine = open_engine(sys.argv[1])
print("open", flush=True)
sys.stdin.read()
"""


def test_edge_names_the_process_that_holds_it(shard, python):
    holder = python(HOLD, shard)
    assert holder.stdout.readline() == "open\n"
    with pytest.raises(IndexLockedError, match=f"in use by process {holder.pid};"):
        open_engine(shard)
    holder.kill()
    holder.wait()
    open_engine(shard).close()


def test_edge_opened_twice_here_says_so(shard):
    with open_engine(shard), pytest.raises(IndexLockedError, match="already open in this process"):
        open_engine(shard)


WRITE = """
import sys
import numpy as np
from vlmkit_retrieval.engines import open_engine
from vlmkit_retrieval.types import Point
engine = open_engine(sys.argv[1])
engine.ensure({"a": 4})
for batch in range(int(sys.argv[2]), 10**6):
    engine.upsert([Point(f"{batch}-{n}", {"a": np.ones(4, np.float32)}) for n in range(16)])
    print(batch, flush=True)
"""


def test_edge_loses_no_acknowledged_batch_to_kill_9(shard, python):
    acknowledged = 0
    for _ in range(2):
        writer = python(WRITE, shard, acknowledged)
        for _ in range(15):
            acknowledged = int(writer.stdout.readline()) + 1
        writer.kill()
        acknowledged += len(writer.stdout.read().splitlines())
    with open_engine(shard) as engine:
        stored = set(engine.ids())
    assert {f"{batch}-{n}" for batch in range(acknowledged) for n in range(16)} <= stored
    assert len(stored) % 16 == 0, "a torn batch"


FORK = """
import os, sys
import numpy as np
from vlmkit_retrieval.engines import open_engine
from vlmkit_retrieval.types import Point

def points(start):
    return [Point(str(n), {"a": np.ones(4, np.float32)}) for n in range(start, start + 500)]

engine = open_engine(sys.argv[1])
engine.ensure({"a": 4})
engine.upsert(points(0))
read, write = os.pipe()
pid = os.fork()
if pid == 0:
    try:
        engine.count()
    except ValueError as error:
        print(error, flush=True)
    engine.close()
    os.read(read, 1)
    # Runs destructors, unlike os._exit; here the parent's files are newer than the child's memory.
    sys.exit(0)
engine.upsert(points(500))
engine.delete([str(n) for n in range(100)])
engine._shard.flush()
os.write(write, b"x")
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
engine.upsert(points(1000))
engine.close()
engine = open_engine(sys.argv[1])
print(engine.count())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_edge_survives_a_forked_child_that_uses_and_closes_it(shard, python):
    output, errors = python(FORK, shard).communicate(timeout=60)
    refused, child, count = output.splitlines()
    assert "does not survive a fork; use the 'spawn' start method" in refused
    assert (child, count, errors) == ("0", "1400", "")


ORPHAN = """
import os, sys, time
from vlmkit_retrieval.engines import open_engine
engine = open_engine(sys.argv[1])
if os.fork() == 0:
    time.sleep(60)
os.kill(os.getpid(), 9)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_an_orphaned_child_does_not_keep_the_lock(shard, python):
    parent = python(ORPHAN.replace("time.sleep(60)", "print(os.getpid(), flush=True); time.sleep(60)"), shard)
    child = int(parent.stdout.readline())
    try:
        parent.wait()
        open_engine(shard).close()
    finally:
        os.kill(child, 9)


def test_locations_are_told_apart():
    with pytest.raises(RetrievalUsageError, match="no engine for ftp://"):
        open_engine("ftp://host")


def test_a_server_that_is_not_there_is_one_clear_line():
    with pytest.raises(
        RetrievalError, match=r"Qdrant at http://127\.0\.0\.1:9/photos: .*check that the server runs"
    ):
        open_engine("http://127.0.0.1:9/photos")


def test_an_api_key_is_not_sent_in_the_clear():
    with pytest.raises(RetrievalUsageError, match="sent unencrypted to example"):
        QdrantEngine("http://example.org:6333", api_key="secret")
