"""What was built is measured first, and swapped in only when it finds enough; all promises are kept."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from vlmkit_retrieval.engines import open_engine
from vlmkit_retrieval.engines.built import BUILT, Figures, Setting
from vlmkit_retrieval.errors import RetrievalError, RetrievalUsageError
from vlmkit_retrieval.eval.exact import neighbours_found
from vlmkit_retrieval.optimize import Demands, Mode, Trial, advice, optimize
from vlmkit_retrieval.optimize.questions import NEAR, Questions
from vlmkit_retrieval.optimize.report import choose
from vlmkit_retrieval.types import Dense, Point, Terms
from vlmkit_retrieval.where import HasId, Match

FAST = Demands(queries=20)


def recall(engine, queries, **options):
    found = [engine.search("v", query, 10, exact=False, **options) for query in queries]
    truth = [engine.search("v", query, 10, **options) for query in queries]
    return float(np.mean([*map(neighbours_found, found, truth)]))


def everything(engine):
    return [
        (
            point.id,
            point.payload,
            {name: np.asarray(v).tolist() for name, v in point.vectors.items() if name == "v"},
        )
        for point in engine.scroll()
    ]


def test_the_new_index_holds_what_the_old_one_held(engine, queries):
    before, exact = everything(engine), [engine.search("v", query, 10) for query in queries]
    terms = engine.search("s", Terms([7], [1.0]), 5)
    assert engine.approximate is False
    steps = []

    def confirm(report):
        """While it is built it can be searched, and not written: nothing can get lost."""
        assert [engine.search("v", query, 10) for query in queries] == exact
        for write in (
            lambda: engine.upsert([Point("lost?", {"v": queries[0]})]),
            lambda: engine.delete(["p0"]),
            lambda: optimize(engine, Mode(), ["v"], FAST),
        ):
            with pytest.raises(RetrievalError, match=r"is being optimized: .* searched and not written"):
                write()
        return True

    report = optimize(engine, Mode(True, "int8"), ["v"], FAST, confirm, steps.append)
    assert report.swapped and engine.approximate
    assert len(steps) == 4 and "hnsw+int8 for v" in steps[2]
    assert everything(engine) == before
    assert [engine.search("v", query, 10) for query in queries] == exact
    assert engine.search("s", Terms([7], [1.0]), 5) == terms
    assert recall(engine, queries) >= 0.95
    assert recall(engine, queries, where=Match("kind", ("a",))) >= 0.95


def test_what_was_measured_is_kept_and_true(optimized, report, queries):
    [space] = report.spaces
    assert (space.items, space.queries, space.k, space.mode) == (2400, 20, 10, "hnsw+int8")
    assert [trial.setting.ef for trial in space.trials] == [64, 128, 256, 512]
    assert space.exact.recall == 1.0
    for figures in (space.exact, *(trial.figures for trial in space.trials)):
        assert 0 < figures.cpu_p50_ms <= figures.cpu_p95_ms and figures.wall_p50_ms > 0
        assert 0 <= figures.recall_low <= figures.recall <= 1 and figures.disk_bytes > 2400 * 32 * 4
        assert figures.memory_bytes is None or figures.memory_bytes > 0
    assert abs(space.chosen.figures.recall - recall(optimized, queries)) < 0.05
    assert optimized.built.spaces == {"v": space.built()}
    assert optimized.settings == {"v": space.chosen.setting}


def test_a_space_that_was_not_optimized_is_searched_exactly(optimized):
    optimized.update_vectors({f"p{n}": {"w": np.array([1.0, n])} for n in range(30)})
    query = np.array([1.0, 3.0], np.float32)
    assert optimized.search("w", query, 5, exact=False) == optimized.search("w", query, 5)


def test_writes_after_the_swap_are_found_both_ways(optimized, queries):
    far = np.zeros(32, np.float32)
    far[:2] = 1.0
    optimized.upsert([Point("new", {"v": far}), Point("p0", {"v": far * 2}, {"kind": "moved"})])
    optimized.delete(["p1"])
    optimized.set_payload({"p2": {"kind": "other"}})
    for exact in (True, False):
        assert [hit.id for hit in optimized.search("v", far, 2, exact=exact)] == ["new", "p0"]
        assert not optimized.search("v", queries[0], 5, HasId(("p1",)), exact=exact)
        assert [h.id for h in optimized.search("v", far, 5, Match("kind", ("other",)), exact=exact)] == ["p2"]
    assert optimized.count() == 2400
    with pytest.raises(RetrievalError, match="NaN"):
        optimized.upsert([Point("bad", {"v": np.full(32, np.nan, np.float32)})])
    with pytest.raises(RetrievalError, match="NaN"):
        optimized.search("v", np.full(32, np.nan, np.float32), 5, exact=False)


def test_the_first_setting_that_finds_enough_is_chosen():
    def trial(ef, recall):
        return Trial(Setting(ef), Figures(recall, recall, 1.0, 1.0, 1.0, 1.0, None, 1))

    trials = (trial(64, 0.90), trial(128, 0.97), trial(256, 0.99))
    assert choose(trials, 0.95).setting.ef == 128
    assert choose(trials, 0.97).setting.ef == 128
    assert choose(trials, 0.98).setting.ef == 256
    assert choose(trials, 0.995) is None


def test_a_second_space_leaves_the_first_one_as_it_was(optimized):
    optimized.update_vectors({f"p{n}": {"w": np.array([1.0, n])} for n in range(1200)})
    optimize(optimized, Mode(False, "turboquant"), ["w"], replace(FAST, min_recall=0.01))
    built = {name: own.mode for name, own in optimized.built.spaces.items()}
    assert built == {"v": "hnsw+int8", "w": "turboquant"}
    optimized.drop_space("w")
    assert optimized.built.spaces.keys() == optimized.settings.keys() == {"v"}


def test_a_space_that_was_optimized_and_is_empty_now_is_no_obstacle(optimized):
    optimized.ensure({"other": Dense(2)})
    optimized.delete(optimized.ids())
    points = [Point(str(n), {"other": np.array([1.0, n], np.float32)}) for n in range(1000)]
    optimized.upsert(points)
    report = optimize(optimized, Mode(False, "int8"), ["other"], Demands(0.1, queries=20))
    assert report.swapped
    assert list(optimized.built.spaces) == list(optimized.settings) == ["other"]


def test_queries_are_stored_vectors_and_ones_near_them(engine):
    asked = Questions.draw(engine, "v", 40)
    stored = engine.retrieve(asked.ids, with_vectors=True)
    cosines = [float(q @ stored[id].vectors["v"]) for id, q in zip(asked.ids, asked.vectors_QD, strict=True)]
    np.testing.assert_allclose(cosines[::2], 1.0, atol=1e-5)
    np.testing.assert_allclose(cosines[1::2], NEAR, atol=1e-5)
    assert len(set(asked.ids)) == 40 and asked.items == 2400


@pytest.mark.parametrize("location", [":memory:", "local:{}", "http://127.0.0.1:1/c", "tenant"])
def test_other_engines_say_what_to_do(location, tmp_path, engine, monkeypatch):
    from vlmkit_retrieval.engines.server import ServerEngine
    from vlmkit_retrieval.engines.tenant import Tenant

    monkeypatch.setattr(ServerEngine, "__init__", lambda self, url: setattr(self, "_closed", True))
    other = Tenant(engine, "t") if location == "tenant" else open_engine(location.format(tmp_path / "local"))
    says = {":": "directory", "l": "index copy A B", "h": "server builds graphs itself", "t": "engine itself"}
    with pytest.raises(RetrievalUsageError, match=says[location[0]]):
        optimize(other, Mode())
    assert advice(other) is None
    other.close()


def test_too_little_to_gain_is_refused(tmp_path, engine):
    with open_engine(tmp_path / "empty") as empty:
        with pytest.raises(RetrievalUsageError, match="too few items"):
            optimize(empty, Mode())
        empty.ensure({"v": Dense(3)})
        with pytest.raises(RetrievalUsageError, match=r"v has 0\): below 1,000"):
            optimize(empty, Mode())
    with pytest.raises(RetrievalUsageError, match="w has 0"):
        optimize(engine, Mode(), ["v", "w"])
    with pytest.raises(RetrievalUsageError, match=r"'s' is no space of one vector an item \(those: v, w\)"):
        optimize(engine, Mode(), ["s"])
    with pytest.raises(RetrievalUsageError, match="nothing to build"):
        Mode(False)
    with pytest.raises(RetrievalUsageError, match=r"the recall to reach is 1\.5"):
        Demands(min_recall=1.5)


def test_a_full_disk_is_told_before_the_copy(engine, monkeypatch):
    from vlmkit_retrieval.optimize import run

    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr(run.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(RetrievalError, match=r"0\.0 GB are free; make room"):
        optimize(engine, Mode())


def test_a_damaged_file_of_figures_is_one_clear_line(optimized, place):
    optimized.close()
    stored = json.loads((place / BUILT).read_text())
    (place / BUILT).write_text(json.dumps({**stored, "spaces": {"v": {}}}))
    with pytest.raises(RetrievalError, match=r"damaged .* delete it to search exactly"):
        open_engine(place)
    (place / BUILT).unlink()
    with open_engine(place) as again:
        assert again.approximate is False and again.count() == 2400


def test_advice_comes_with_numbers_and_goes_once_it_is_followed(optimized, monkeypatch):
    assert advice(optimized) is None
    monkeypatch.setattr("vlmkit_retrieval.optimize.rule.NUMBERS", 2400 * 32)
    assert advice(optimized) is None
    optimized.settings = {}
    assert "exact search of v (2,400 x 32, about 0 ms) takes long: `vlmkit index optimize" in advice(
        optimized
    )
    monkeypatch.setattr("vlmkit_retrieval.optimize.rule.NUMBERS", 2400 * 32 + 1)
    assert advice(optimized) is None
