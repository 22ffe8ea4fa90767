"""The tuning rule: the same grid for each combination, the best on validation data, once for all seeds."""

import csv
import json
import signal

from vlmkit.sweep.measure import EXACT, Row
from vlmkit.sweep.request import Request
from vlmkit.sweep.run import sweep
from vlmkit.sweep.tune import choose

LR = "stages.last.train.connector.lr"
RATES = [0.001, 0.01, 0.1]


def row(lr, score=None, status="finished"):
    return Row("r", {}, {LR: lr}, 0, status, "", {} if score is None else {EXACT: score})


def test_the_first_of_the_best_is_chosen():
    assert choose([row(1, 0.5), row(2, 0.75), row(3, 0.75)]) == {LR: 2}
    assert choose([row(1, 0.5), row(2, status="failed")]) == {LR: 1}
    assert choose([row(1, status="failed")]) is None
    assert choose([row(1, 0.5), row(2, status="interrupted")]) is None
    assert choose([row(1, 0.5), row(2, status="killed")]) is None


def test_runs_use_what_was_best_for_their_combination(stand_in, recipe_file, started, tmp_path):
    tried = {f"pool-{pool}_lr-{lr}_seed-3": {} for pool in (1, 2) for lr in RATES}
    scores = dict(zip(tried, [0.1, 0.3, 0.3, 0.5, 0.2, 0.6]))
    # The test scores would choose otherwise: nothing is chosen by them.
    finals = {"pool-1_seed-3": {"score": 0.9}, "pool-2_seed-3": {"score": 0.0}}
    stand_in(**{name: {"score": score} for name, score in scores.items()}, **finals)
    vary, on_top = {"model.connector.pool": [1, 2]}, ["evaluate.data.split=val", "evaluate.blind=false"]
    request = Request(str(recipe_file), (), vary, 2, {LR: RATES}, on_top)
    swept = sweep(request, tmp_path, 2)
    assert swept.whole and len(swept.tuning) == 6
    assert [(r.varied["model.connector.pool"], r.tuned[LR], r.seed) for r in swept.rows] == [
        (1, 0.01, 3), (1, 0.01, 4), (2, 0.1, 3), (2, 0.1, 4),
    ]  # fmt: skip

    order = started(tmp_path)
    assert set(order[:6]) == set(tried), "no run before all candidates"
    for job in (tmp_path / "tuning").iterdir():
        recipe = json.loads((job / "vlmkit.json").read_text())["recipe"]
        assert recipe["evaluate"]["data"]["split"] == "val" and recipe["evaluate"]["blind"] is False
    for job in (tmp_path / "runs").iterdir():
        recipe = json.loads((job / "vlmkit.json").read_text())["recipe"]
        chosen = {1: 0.01, 2: 0.1}[recipe["model"]["connector"]["pool"]]
        assert recipe["stages"][1]["train"]["connector"]["lr"] == chosen
        assert recipe["evaluate"]["data"]["split"] == "test" and recipe["evaluate"]["blind"] is True

    table = {r["run"]: r for r in csv.DictReader((tmp_path / "tuning.csv").open())}
    assert {name: float(r["exact match"]) for name, r in table.items()} == scores
    assert "| 1 | 0.01 | 30.00% |" in (tmp_path / "tuning.md").read_text()
    assert "| 2 | 0.1 |" in (tmp_path / "table.md").read_text()

    sweep(request, tmp_path, 2)
    assert started(tmp_path) == order, "neither tuned nor trained again"


def test_a_candidate_that_fails_has_lost_and_without_any_there_is_no_run(
    stand_in, recipe_file, started, tmp_path
):
    fails = {"says": "vlmkit: loss nan"}
    stand_in(**{f"pool-{pool}_lr-{lr}_seed-3": fails for pool, lr in [(1, 0.001), (2, 0.001), (2, 0.01)]})
    vary, on_top = {"model.connector.pool": [1, 2]}, ["evaluate.data.split=val"]
    swept = sweep(Request(str(recipe_file), (), vary, 1, {LR: RATES[:2]}, on_top), tmp_path, 2)
    assert [r.status for r in swept.tuning] == ["failed", "finished", "failed", "failed"]
    assert [(r.status, r.error) for r in swept.rows] == [
        ("finished", ""), ("failed", "no candidate of its tuning has finished"),
    ]  # fmt: skip
    assert swept.rows[0].tuned == {LR: 0.01} and not swept.whole
    assert started(tmp_path)[4:] == ["pool-1_seed-3"]

    stand_in(**{"pool-1_lr-0.001_seed-3": {"score": 1.0}})
    again = sweep(Request(str(recipe_file), (), vary, 1, {LR: RATES[:2]}, on_top), tmp_path, 2)
    assert again.whole and [row.tuned[LR] for row in again.rows] == [0.01, 0.001]
    retried = {"pool-2_lr-0.001_seed-3", "pool-2_lr-0.01_seed-3", "pool-2_seed-3"}
    assert set(started(tmp_path)[5:]) == retried, "a choice that is made stays"


def test_a_candidate_that_was_killed_has_not_lost(stand_in, recipe_file, started, tmp_path):
    """Memory that ran out says nothing about a value: nothing is chosen until it has run to its end."""
    killed = "pool-1_lr-0.01_seed-3"
    stand_in(**{killed: {"signal": signal.SIGKILL}})
    vary, on_top = {"model.connector.pool": [1, 2]}, ["evaluate.data.split=val"]
    request = Request(str(recipe_file), (), vary, 1, {LR: RATES[:2]}, on_top)
    swept = sweep(request, tmp_path, 1)
    assert [r.status for r in swept.tuning] == ["finished", "killed", "finished", "finished"]
    assert swept.rows[0].status == "failed" and swept.rows[1].status == "finished"
    assert killed in swept.rows[0].error and "SIGKILL" in swept.rows[0].error
    assert "the same command tries it again" in swept.rows[0].error
    assert f"{killed} failed: ended by SIGKILL" in (tmp_path / "tuning.md").read_text()

    before = len(started(tmp_path))
    stand_in(**{killed: {"score": 0.75}})
    again = sweep(request, tmp_path, 1)
    assert again.whole and again.rows[0].tuned == {LR: 0.01}
    assert started(tmp_path)[before:] == [killed, "pool-1_seed-3"]
