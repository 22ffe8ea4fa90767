"""Processes: so many at once, each measured on its own; what one does is no other's business."""

import csv
import json
import signal
import threading
import time

import pytest

from vlmkit.errors import VlmkitError
from vlmkit.sweep.grid import Place, make_grid
from vlmkit.sweep.lock import locked
from vlmkit.sweep.measure import CONNECTOR, EXACT, FEATURES, MEMORY, SECONDS, SPEED, TOKENS
from vlmkit.sweep.process import TrainProcess, command, read_record
from vlmkit.sweep.request import Request
from vlmkit.sweep.run import sweep
from vlmkit.sweep.tables import combine, markdown_table
from vlmkit.train.metrics import read_metrics
from vlmkit.train.stage_run import Interrupted

VARY = {"model.connector.pool": [1, 2]}
NAMES = [f"pool-{pool}_seed-{seed}" for pool in (1, 2) for seed in (3, 4)]


@pytest.fixture
def request_(recipe_file):
    return Request(str(recipe_file), (), VARY, 2)


def table(folder):
    return {row["run"]: row for row in csv.DictReader((folder / "table.csv").open())}


def test_every_combination_is_run_once_before_any_gets_its_second_seed(stand_in, request_, started, tmp_path):
    stand_in()
    swept = sweep(request_, tmp_path / "s")
    assert swept.whole and [row.name for row in swept.rows] == NAMES
    assert started(tmp_path / "s") == [NAMES[0], NAMES[2], NAMES[1], NAMES[3]]


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_as_many_at_once_as_asked(stand_in, request_, tmp_path, at_once):
    (tmp_path / "met").mkdir()
    stand_in(**{name: {"meet": [str(tmp_path / "met"), at_once]} for name in NAMES})
    assert sweep(request_, tmp_path / "s", at_once).whole


def test_one_that_dies_ends_no_other_and_is_tried_again(stand_in, request_, started, tmp_path):
    says = "vlmkit: loss nan in a step with samples a, b\nsome line after it"
    stand_in(**{NAMES[0]: {"says": says}, NAMES[2]: {"signal": signal.SIGKILL}})
    swept = sweep(request_, tmp_path / "s", 2)
    assert not swept.whole
    assert [row.status for row in swept.rows] == ["failed", "finished", "killed", "finished"]
    read = table(tmp_path / "s")
    assert read[NAMES[0]]["error"] == "vlmkit: loss nan in a step with samples a, b"
    assert "SIGKILL" in read[NAMES[2]]["error"] and read[NAMES[0]]["exact match"] == ""
    written = (tmp_path / "s/table.md").read_text()
    assert "1/2, 1 failed" in written and f"{NAMES[0]} failed: vlmkit: loss nan" in written

    stand_in()
    assert sweep(request_, tmp_path / "s").whole
    assert sorted(started(tmp_path / "s")[4:]) == [NAMES[0], NAMES[2]]
    assert read_record(Place(tmp_path / "s"), make_grid(request_).runs[0][0]).processes == 2


def test_memory_is_of_the_process_alone(stand_in, request_, tmp_path):
    """The test's own process holds torch; a process that it started without a launcher would be said to."""
    stand_in(**{NAMES[1]: {"bytes": 150_000_000}})
    rows = {row.name: row.figures[MEMORY] for row in sweep(request_, tmp_path / "s").rows}
    assert rows[NAMES[0]] < 50
    assert 150 < rows[NAMES[1]] < 200


def test_figures_are_those_of_the_run(stand_in, request_, template, tmp_path):
    stand_in(**{name: {"score": score} for name, score in zip(NAMES, [0.25, 0.75, 0.5, 0.5])})
    swept = sweep(request_, tmp_path / "s")
    figures = swept.rows[0].figures
    assert (figures[EXACT], figures[f"{EXACT}, shape"], figures["blank image"]) == (0.25, 0.25, 0.125)
    # The template's connector pools 4 x 4 patches by 2, and is one linear layer from width 16 to width 16.
    assert (figures[TOKENS], figures[CONNECTOR]) == (4, 16 * 16 + 16)
    assert (figures[SPEED], figures[SECONDS]) == (10 / 2.0, 11.0)
    spread = combine(swept.rows)[0].figures[EXACT]
    assert (spread.mean, spread.low, spread.high) == (0.5, 0.25, 0.75)
    lines = markdown_table(swept.rows).splitlines()
    assert lines[0].startswith("| pool | exact match | exact match, shape | blank image | image tokens |")
    assert lines[2].startswith("| 1 | 50.00% (25.00% to 75.00%) | 25.00% | 12.50% | 4 |")
    assert lines[3].startswith("| 2 | 50.00% | 25.00% |")
    assert (tmp_path / "s/plot.png").stat().st_size > 10_000


def test_features_that_were_stored_have_a_column_and_a_note(stand_in, request_, tmp_path):
    """Their time is in no other figure, so a table has to say that encoders are not in its speed."""
    stand_in()
    sweep(request_, tmp_path / "s")
    assert FEATURES not in (tmp_path / "s/table.md").read_text()
    for name in NAMES[:2]:
        file = tmp_path / "s/runs" / name / "metrics.jsonl"
        rows = [{**row, "features_seconds": 0.25} for row in read_metrics(file) if row["stage"] == "last"]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    swept = sweep(request_, tmp_path / "s")
    assert [row.figures.get(FEATURES) for row in swept.rows] == [0.5, 0.5, None, None]
    assert swept.rows[0].figures[SPEED] == swept.rows[2].figures[SPEED] == 5.0
    written = (tmp_path / "s/table.md").read_text()
    assert f"| {FEATURES} |" in written and "2 of 4 runs" in written and "without frozen encoders" in written


def test_more_seeds_and_values_repeat_nothing(stand_in, request_, recipe_file, started, tmp_path):
    stand_in()
    sweep(request_, tmp_path / "s", 4)
    files = [p for p in (tmp_path / "s/runs").rglob("*") if p.is_file()]
    before = {p: p.stat().st_mtime_ns for p in files}
    more = Request(str(recipe_file), (), {"model.connector.pool": [1, 4, 2]}, 3)
    assert len(sweep(more, tmp_path / "s", 4).rows) == 9
    new = ["pool-1_seed-5", "pool-2_seed-5", *(f"pool-4_seed-{seed}" for seed in (3, 4, 5))]
    assert sorted(started(tmp_path / "s")[4:]) == sorted(new)
    assert {p: p.stat().st_mtime_ns for p in before} == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_and_the_same_call_goes_on(stand_in, request_, started, tmp_path, number):
    stand_in(**{name: {"sleep": 300} for name in NAMES[1:]})
    handlers = signal.getsignal(number)

    def interrupt():
        while not (tmp_path / "s/started.jsonl").exists() or len(started(tmp_path / "s")) < 3:
            time.sleep(0.02)
        signal.pthread_kill(threading.main_thread().ident, number)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(Interrupted, match=r"stopped; 1 of 4 runs in .* are finished, and the same command"):
        sweep(request_, tmp_path / "s", 2)
    assert signal.getsignal(number) is handlers
    statuses = {name: row["status"] for name, row in table(tmp_path / "s").items()}
    assert sorted(statuses.values()) == ["finished", "interrupted", "interrupted", "waiting"]

    stand_in()
    assert sweep(request_, tmp_path / "s", 2).whole
    assert started(tmp_path / "s").count(NAMES[0]) == 1


def test_a_folder_has_one_sweep_at_a_time(stand_in, request_, tmp_path):
    stand_in()
    (tmp_path / "s").mkdir()
    with locked(tmp_path / "s"), pytest.raises(VlmkitError, match="is at work here"):
        (tmp_path / "s/sweep.json").write_text(json.dumps(_stored(request_, tmp_path)))
        sweep(request_, tmp_path / "s")
    assert sweep(request_, tmp_path / "s").whole


def test_a_process_that_is_left_behind_holds_the_folder(stand_in, request_, tmp_path):
    """As after a kill -9 of the sweep: its descriptor is closed, that of the process is not."""
    stand_in(**{NAMES[0]: {"sleep": 60}})
    job = make_grid(request_).runs[0][0]
    with locked(tmp_path) as lock:
        process = TrainProcess(Place(tmp_path), job, "recipe.yaml", None, lock)
    with pytest.raises(VlmkitError, match="left behind"), locked(tmp_path):
        pass
    process.kill()
    with locked(tmp_path):
        pass


def _stored(request, tmp_path):
    from vlmkit.sweep.request import remember

    (tmp_path / "other").mkdir()
    remember(tmp_path / "other", request)
    return json.loads((tmp_path / "other/sweep.json").read_text())


def test_the_command_is_that_of_training(request_, monkeypatch, tmp_path):
    job = make_grid(request_).runs[1][1]
    words = command(Place(tmp_path), job, "recipe.yaml")
    assert words[1:5] == ["-m", "vlmkit", "train", "recipe.yaml"]
    assert words[5:8] == ["model.connector.pool=2", "seed=4", f'output="{tmp_path}/runs/{NAMES[3]}"']
    monkeypatch.setattr("vlmkit.sweep.process.SHARE", True)
    assert command(Place(tmp_path), job, "r")[-2:] == ["--share", str(tmp_path / "shared")]
