"""What the embedded engine alone must hold: its directory, its lock, kills and forks."""

from __future__ import annotations

import os
import threading
import time

import numpy as np
import pytest

from vlmkit_retrieval.engines import edge_place, open_engine
from vlmkit_retrieval.engines.holes import copy_folder
from vlmkit_retrieval.errors import IndexLockedError, RetrievalError, RetrievalUsageError
from vlmkit_retrieval.types import Dense, Point, Sparse, Terms


@pytest.fixture
def shard(tmp_path):
    return tmp_path / "shard"


def unit(*values: float) -> np.ndarray:
    vector = np.asarray(values, np.float32)
    return vector / np.linalg.norm(vector)


def same(one: Point, other: Point) -> bool:
    """Equal ids, payloads and bits."""
    names = one.vectors.keys()
    bits = all(np.array_equal(one.vectors[n], other.vectors[n]) for n in names - {"s"})
    return bits and (one.id, one.payload, names, one.vectors["s"]) == (
        other.id,
        other.payload,
        other.vectors.keys(),
        other.vectors["s"],
    )


def test_edge_stores_what_it_gave_without_changing_a_bit(shard, mixed_points, spaces):
    """But for a half space: its vectors have not quite length 1 when they come back."""
    with open_engine(shard) as engine:
        engine.ensure(spaces)
        engine.upsert(mixed_points(30))
        before = list(engine.scroll())
        for point in before:
            del point.vectors["half"]
        engine.upsert(before)
        assert all(map(same, before, engine.scroll()))


def test_edge_keeps_everything_over_a_reopen(shard, mixed_points, spaces):
    query = mixed_points(1)[0].vectors
    with open_engine(shard) as engine:
        assert (engine.count(), engine.ids()) == (0, [])
        engine.ensure({"a": Dense(4)})
        engine.ensure(spaces)
        engine.upsert(mixed_points(20))
        before = [engine.search(name, query[name], 5) for name in query]
    with open_engine(shard) as engine:
        assert engine.spaces() == spaces
        assert [engine.search(name, query[name], 5) for name in query] == before
        with pytest.raises(RetrievalUsageError, match="known: a, b, half, m, s"):
            engine.search("c", unit(1, 0), 5)


def test_edge_writes_a_large_call_in_pieces(shard, monkeypatch):
    """512 points of 768 numbers each, so that one piece stays far below 100 ms of CPU."""
    sizes = []
    with open_engine(shard) as engine:
        engine.ensure({"a": Dense(768)})
        update = engine._update
        monkeypatch.setattr(engine, "_update", lambda o: (sizes.append(engine.count()), update(o)))
        engine.upsert([Point(str(n), {"a": np.full(768, n + 1.0, np.float32)}) for n in range(1100)])
        assert engine.count() == 1100
    assert sizes == [0, 512, 1024]


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
from vlmkit_retrieval.types import Dense, Point, Sparse, Terms
from vlmkit_retrieval.where import HasVector
engine = open_engine(sys.argv[1])
engine.ensure({"a": Dense(4)})
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
from vlmkit_retrieval.types import Dense, Point, Sparse, Terms
from vlmkit_retrieval.where import HasVector

def points(start):
    return [Point(str(n), {"a": np.ones(4, np.float32)}) for n in range(start, start + 500)]

engine = open_engine(sys.argv[1])
engine.ensure({"a": Dense(4)})
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


def test_a_damaged_configuration_is_one_clear_line(shard):
    with open_engine(shard) as engine:
        engine.ensure({"a": Dense(4)})
    (shard / "edge_config.json").write_text('{"vectors": {"a": {}}}')
    with pytest.raises(RetrievalError, match=r"edge_config\.json is damaged"):
        open_engine(shard)


CHANGE_SPACES = """
import sys
from vlmkit_retrieval.engines import open_engine
from vlmkit_retrieval.types import Dense, Sparse
engine = open_engine(sys.argv[1])
print("open", flush=True)
while True:
    engine.ensure({"b": Dense(2), "s": Sparse()})
    engine.drop_space("b")
    engine.drop_space("s")
"""


@pytest.mark.parametrize("delay", [0.05, 0.13, 0.21, 0.34, 0.47, 0.6])
def test_a_kill_while_spaces_come_and_go_leaves_an_engine_that_opens(shard, python, random_points, delay):
    """The library alone does not open a shard again that was killed there."""
    with open_engine(shard) as engine:
        engine.ensure({"a": Dense(4)})
        engine.upsert(random_points(20))
    changing = python(CHANGE_SPACES, shard)
    assert changing.stdout.readline() == "open\n"
    time.sleep(delay)
    changing.kill()
    changing.wait()
    with open_engine(shard) as engine:
        engine.ensure({"b": Dense(2), "s": Sparse()})
        assert set(engine.spaces()) == {"a", "b", "s"}
        engine.update_vectors({"id/1": {"b": unit(1, 0), "s": Terms([1], [1.0])}})
        assert (len(engine.search("a", unit(1, 0, 0, 0), 99)), len(engine.search("b", unit(1, 0), 9))) == (
            20,
            1,
        )


def swap_in_a_broken_one(shard):
    """What a process that was killed before it opened the new shard leaves, where that one does not open."""
    copy = edge_place.work_folder(shard) / "shard"
    copy_folder(shard, copy)
    next(copy.rglob("segment.json")).unlink()
    edge_place.move_in(copy, shard)


def test_the_old_shard_is_kept_until_the_new_one_was_opened(shard, random_points):
    with open_engine(shard) as engine:
        engine.ensure({"a": Dense(4)})
        engine.upsert(random_points(20))
    swap_in_a_broken_one(shard)
    with open_engine(shard) as engine:
        assert engine.count() == 20
    assert sorted(path.name for path in shard.parent.iterdir()) == ["shard", "shard.lock"]


def test_nothing_is_removed_where_neither_opens(shard, random_points):
    with open_engine(shard) as engine:
        engine.ensure({"a": Dense(4)})
        engine.upsert(random_points(20))
    swap_in_a_broken_one(shard)
    replaced = shard.with_name("shard.vlmkit-replaced")
    segment = next(replaced.rglob("segment.json"))
    lost = segment.read_text()
    segment.write_text("{")
    for _ in range(2):
        with pytest.raises(RetrievalError, match=r"cannot be opened .*restore it from a copy"):
            open_engine(shard)
    assert sum(1 for path in shard.parent.rglob("edge_config.json")) == 2
    (shard / segment.relative_to(replaced)).write_text(lost)
    with open_engine(shard) as engine:
        assert engine.count() == 20


def test_a_thread_learns_that_another_one_has_closed_the_engine(shard, random_points):
    """Not that there is nothing, and no error of Python's."""
    errors = []

    def look():
        try:
            while True:
                assert (engine.count(), len(engine.ids()), len(engine.retrieve(["id/1"]))) == (500, 500, 1)
        except BaseException as error:
            errors.append(error)

    engine = open_engine(shard)
    engine.ensure({"a": Dense(4)})
    engine.upsert(random_points(500))
    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        with engine.copied() as (_, copy):
            engine.replace_by(copy)
    engine.close()
    for thread in threads:
        thread.join(30)
    assert [type(error) for error in errors] == [RetrievalError] * 4, errors
    assert all("is closed; open it again" in str(error) for error in errors)


def test_folders_beside_it_that_only_sound_like_it_stay(shard):
    for suffix in (".new", ".replaced", ".optimizing-1"):
        folder = shard.with_name(shard.name + suffix)
        folder.mkdir()
        (folder / "holiday.txt").write_text("sun")
    with open_engine(shard) as engine:
        engine.ensure({"a": Dense(4)})
    assert len(list(shard.parent.glob("shard.*/holiday.txt"))) == 3
