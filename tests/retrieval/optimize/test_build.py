"""What is built is what searches use: a graph visits fewer items the smaller ef is, and finds fewer."""

from __future__ import annotations

import json

import numpy as np
import pytest

from vlmkit_retrieval.engines import open_engine
from vlmkit_retrieval.engines.built import Setting
from vlmkit_retrieval.engines.holes import copy_folder
from vlmkit_retrieval.errors import RetrievalUsageError
from vlmkit_retrieval.eval.exact import neighbours_found
from vlmkit_retrieval.optimize import Mode
from vlmkit_retrieval.optimize.build import build
from vlmkit_retrieval.optimize.modes import MODES
from vlmkit_retrieval.types import Dense, Point


def recalls(engine, queries, settings):
    """Mean recall@10 by setting."""
    truth = [engine.search("v", query, 10) for query in queries]
    found = []
    for setting in settings:
        engine.settings = {"v": setting}
        hits = [engine.search("v", query, 10, exact=False) for query in queries]
        found.append(float(np.mean([*map(neighbours_found, hits, truth)])))
    return found


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_every_mode_finds_clustered_neighbours(place, queries, mode):
    with open_engine(place) as engine:
        truth = [engine.search("v", query, 10) for query in queries]
    build(place, {"v": mode}, full_scan=1)
    with open_engine(place) as engine:
        assert [engine.search("v", query, 10) for query in queries] == truth
        assert engine.count() == 2400
        assert recalls(engine, queries, mode.settings()[-1:])[0] >= 0.95


def test_a_wider_search_of_a_graph_finds_more_in_hard_data(tmp_path):
    """Random directions have no near neighbours: a graph cannot lead to them."""
    rows = np.random.default_rng(0).normal(size=(1500, 64)).astype(np.float32)
    with open_engine(tmp_path / "engine") as engine:
        engine.ensure({"v": Dense(64)})
        engine.upsert([Point(str(n), {"v": row}) for n, row in enumerate(rows)])
    build(tmp_path / "engine", {"v": Mode()}, full_scan=1)
    queries = np.random.default_rng(1).normal(size=(30, 64)).astype(np.float32)
    with open_engine(tmp_path / "engine") as engine:
        narrow, wide = recalls(engine, queries, [Setting(10), Setting(1024)])
    assert narrow < 0.9 < 0.98 < wide


def test_building_leaves_other_spaces_without_a_graph(place):
    build(place, {"v": Mode(True, "turboquant")})
    config = json.loads((place / "edge_config.json").read_text())["vectors"]
    assert (config["v"]["hnsw_config"]["m"], config["w"]["hnsw_config"]["m"]) == (16, 0)
    assert config["v"]["quantization_config"] and not config["w"].get("quantization_config")


def test_modes_have_names_and_settings():
    assert [mode.name for mode in MODES] == ["hnsw", "int8", "turboquant", "hnsw+int8", "hnsw+turboquant"]
    assert all(Mode.parse(mode.name) == mode and len(mode.settings()) >= 3 for mode in MODES)
    with pytest.raises(RetrievalUsageError, match=r"no mode 'ivf'; possible: hnsw, int8"):
        Mode.parse("ivf")
    with pytest.raises(RetrievalUsageError, match=r"compression is 'int4'; possible: int8, turboquant"):
        Mode(True, "int4")


def test_a_copy_keeps_content_and_holes(tmp_path):
    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / "a" / "deep" / "text").write_bytes(b"words" * 1000)
    (tmp_path / "a" / "empty").touch()
    with (tmp_path / "a" / "log").open("wb") as file:
        file.truncate(1 << 24)
        file.seek(1 << 22)
        file.write(b"x" * 10_000)
    copy_folder(tmp_path / "a", tmp_path / "b")
    for name in ("deep/text", "empty", "log"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    first, second = ((tmp_path / folder / "log").stat().st_blocks for folder in "ab")
    assert second <= first + 64  # where files have no holes, both take all of it
