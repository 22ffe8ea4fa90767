"""Local mode in files: what it keeps, and what it refuses to open."""

from __future__ import annotations

import contextlib
import pickle
import sqlite3

import pytest

from vlmkit_retrieval.engines import located, open_engine
from vlmkit_retrieval.errors import IndexLockedError, RetrievalError
from vlmkit_retrieval.types import Dense, Multi, Sparse


@pytest.fixture
def place(tmp_path):
    return tmp_path / "points"


def test_points_are_kept_over_a_reopen(place, mixed_points, spaces):
    """But for the last bit: local mode scales vectors when it loads them, too."""
    more = {"a2": Dense(4), "m2": Multi(3, half=False), "s2": Sparse()}
    query = mixed_points(1)[0].vectors

    def found(engine):
        hits = [hit for name in query for hit in engine.search(name, query[name], 5)]
        return [(hit.id, round(hit.score, 5), hit.payload) for hit in hits]

    with open_engine(f"local:{place}") as engine:
        engine.ensure(spaces)
        engine.ensure(more)
        engine.upsert(mixed_points(5))
        before = found(engine)
    with open_engine(f"local:{place}") as engine:
        assert engine.spaces() == {**spaces, **more}
        assert found(engine) == before


def test_a_directory_of_pickles_that_vlmkit_did_not_make_is_not_opened(place, mixed_points):
    """Opening it would run what is in the pickles: here, a file that a stranger's point would write."""
    from qdrant_client import QdrantClient, models

    client = QdrantClient(path=str(place))
    client.create_collection("vlmkit", {"a": models.VectorParams(size=4, distance=models.Distance.COSINE)})
    client.upsert("vlmkit", [models.PointStruct(id=1, vector={"a": [1, 0, 0, 0]})])
    client.close()
    trap = place.with_name("trap")
    [file] = place.rglob("*.sqlite")
    with sqlite3.connect(file) as database:
        database.execute("UPDATE points SET point = ?", (pickle.dumps(Trap(str(trap))),))
    database.close()
    with pytest.raises(
        RetrievalError, match="was not made by vlmkit; files of Qdrant's local mode are pickles"
    ):
        open_engine(f"local:{place}")
    assert not trap.exists()
    with contextlib.suppress(Exception):
        QdrantClient(path=str(place))
    assert trap.exists(), "the trap is none"


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_any_other_directory_is_not_touched(tmp_path):
    (tmp_path / "holiday.txt").write_text("sun")
    with pytest.raises(RetrievalError, match="was not made by vlmkit"):
        open_engine(f"local:{tmp_path}")
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.txt"]


def test_a_second_opener_is_told_who_holds_it(place):
    with (
        open_engine(f"local:{place}"),
        pytest.raises(IndexLockedError, match="already open in this process"),
    ):
        open_engine(f"local:{place}")
    open_engine(f"local:{place}").close()


def test_a_relative_place_lies_in_the_index(tmp_path):
    assert located("engine", tmp_path) == str(tmp_path / "engine")
    assert located("local:engine", tmp_path) == f"local:{tmp_path / 'engine'}"
    assert located("local:/elsewhere", tmp_path) == "local:/elsewhere"
    assert located(":memory:", tmp_path) == ":memory:"
    assert located("http://host/p", tmp_path) == "http://host/p"
