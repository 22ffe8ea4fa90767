"""An engine with enough points for a graph, made once: each test gets a copy of its files."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from vlmkit_retrieval.engines import open_engine
from vlmkit_retrieval.engines.holes import copy_folder
from vlmkit_retrieval.optimize import Demands, Mode, optimize
from vlmkit_retrieval.types import Dense, Point, Sparse, Terms

POINTS, WIDTH, CENTRES = 2400, 32, 40


def clustered(count: int, seed: int = 0) -> np.ndarray:
    """Near one of 40 centres, which are the same for every seed."""
    centres = np.random.default_rng(99).normal(size=(CENTRES, WIDTH))
    draw = np.random.default_rng(seed)
    return (centres[draw.integers(CENTRES, size=count)] + 0.5 * draw.normal(size=(count, WIDTH))).astype("f4")


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """Points with a dense vector `v`; every second one has terms, and a kind."""
    place = tmp_path_factory.mktemp("optimize") / "engine"
    rows = clustered(POINTS)
    with open_engine(place) as engine:
        engine.ensure({"v": Dense(WIDTH), "w": Dense(2), "s": Sparse()})
        engine.index_payload("kind", "keyword")
        points = [
            Point(
                f"p{n}", {"v": row, **({"s": Terms([n % 50], [1.0])} if n % 2 else {})}, {"kind": "ab"[n % 2]}
            )
            for n, row in enumerate(rows)
        ]
        engine.upsert(points)
    return place


@pytest.fixture
def place(template, tmp_path):
    """The directory of a closed engine; its logs are 64 MB of holes, which a plain copy would fill."""
    copy_folder(template, tmp_path / "engine")
    yield tmp_path / "engine"
    shutil.rmtree(tmp_path)


@pytest.fixture
def engine(place):
    with open_engine(place) as opened:
        yield opened


@pytest.fixture(scope="session")
def optimized_template(template, tmp_path_factory):
    """The same with a graph and compressed vectors of `v`, and the report."""
    place = tmp_path_factory.mktemp("optimized") / "engine"
    copy_folder(template, place)
    with open_engine(place) as engine:
        report = optimize(engine, Mode(True, "int8"), ["v"], Demands(queries=20))
    assert report.swapped
    return place, report


@pytest.fixture
def optimized(optimized_template, place):
    """An engine that has been optimized."""
    shutil.rmtree(place)
    copy_folder(optimized_template[0], place)
    with open_engine(place) as opened:
        yield opened


@pytest.fixture
def report(optimized_template):
    """What was measured of it."""
    return optimized_template[1]


@pytest.fixture
def queries():
    """Drawn as the points are; not stored."""
    return clustered(50, seed=1)
