"""Every engine, opened on a place of its own. A server is tested where VLMKIT_QDRANT_URL names one."""

from __future__ import annotations

import os
import uuid

import numpy as np
import pytest

from vlmkit_retrieval.engines import open_engine
from vlmkit_retrieval.engines.edge import EdgeEngine
from vlmkit_retrieval.engines.server import ServerEngine
from vlmkit_retrieval.engines.tenant import Tenant
from vlmkit_retrieval.optimize import Mode
from vlmkit_retrieval.optimize.build import build
from vlmkit_retrieval.types import Dense, Multi, Point, Sparse, Terms

SERVER = os.environ.get("VLMKIT_QDRANT_URL")
SPACES = {"a": Dense(4), "b": Dense(3), "half": Dense(4, half=True), "m": Multi(3, half=False), "s": Sparse()}
LIBRARIES = ["edge", "memory", "local", *(["server"] if SERVER else [])]


class RebuiltEngine(EdgeEngine):
    """After each write all points are in a part with a graph and compressed vectors, which cannot be changed
    in place: the next write has to move them. What it promises is what every engine does."""

    def _put(self, rows):
        super()._put(rows)
        self._rebuild()

    def _put_vectors(self, rows):
        super()._put_vectors(rows)
        self._rebuild()

    def _rebuild(self):
        names = [name for name, space in self._known.items() if isinstance(space, Dense)]
        self._shard.close()
        build(self._path, dict.fromkeys(names, Mode(True, "int8")), full_scan=1)
        self._load()


@pytest.fixture
def opened(tmp_path):
    """Open a new engine by its kind; closed at the end."""
    engines = []

    def open_new(kind):
        place = tmp_path / f"{kind}-{len(engines)}"
        server, _, options = (SERVER or "").partition("?")
        engines.append(
            RebuiltEngine(place)
            if kind == "optimized"
            else open_engine(
                {
                    "edge": str(place),
                    "memory": ":memory:",
                    "local": f"local:{place}",
                    "server": f"{server}/vlmkit-test-{uuid.uuid4().hex}?{options}",
                }[kind]
            )
        )
        return engines[-1]

    yield open_new
    for engine in engines:
        if isinstance(engine, ServerEngine) and not engine._closed:
            engine._client.delete_collection(engine._collection)
        engine.close()


@pytest.fixture
def libraries():
    """The kinds that `opened` opens."""
    return [*LIBRARIES, "optimized"]


@pytest.fixture(params=LIBRARIES)
def library(request, opened):
    """An empty engine of each library."""
    return opened(request.param)


@pytest.fixture(params=[*LIBRARIES, "optimized", "tenant"])
def engine(request, opened):
    """An empty engine of each library, and one tenant of an engine in which another has items, too."""
    if request.param != "tenant":
        yield opened(request.param)
        return
    shared = opened("memory")
    yield Tenant(shared, "alice")


@pytest.fixture
def spaces():
    """One of every kind."""
    return SPACES


@pytest.fixture(name="random_points")
def random_points_fixture():
    return random_points


@pytest.fixture(name="mixed_points")
def mixed_points_fixture():
    return mixed_points


def random_points(count: int, seed: int = 0) -> list[Point]:
    """With a dense vector each."""
    vectors = np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)
    return [Point(f"id/{n}", {"a": vector}, {"n": n}) for n, vector in enumerate(vectors)]


def mixed_points(count: int, seed: int = 0) -> list[Point]:
    """With vectors of every kind."""
    rng = np.random.default_rng(seed)
    return [
        Point(
            f"id/{n:03}",
            {
                "a": rng.normal(size=4).astype(np.float32),
                "half": rng.normal(size=4).astype(np.float32),
                "m": rng.normal(size=(int(rng.integers(1, 5)), 3)).astype(np.float32),
                "s": Terms(sorted(rng.choice(20, 4, replace=False).tolist()), rng.uniform(1, 2, 4).tolist()),
            },
            {"n": n},
        )
        for n in range(count)
    ]
