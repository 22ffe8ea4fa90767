"""Trackers, each with its own package: what is logged, where a resumed run goes on, that all are closed."""

import importlib.util
import json
import os
import signal
import sqlite3

import pytest
import yaml

from vlmkit.cli import main
from vlmkit.errors import UsageError
from vlmkit.recipe import load_recipe
from vlmkit.train.metrics import MetricsFile, Silent, read_metrics
from vlmkit.train.run import train_recipe
from vlmkit.train.stage_run import Interrupted
from vlmkit.train.trackers import KNOWN, Tracked, flat

STAGES = [{"name": "first", "steps": 2}, {"name": "second", "steps": 3, "checkpoint_every": 1}]


def events(run):
    """What TensorBoard's own reader finds: (name, step) to value."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    reader.Reload()
    return {(tag, e.step): e.value for tag in reader.Tags()["scalars"] for e in reader.Scalars(tag)}


def records(file):
    """The records of a .wandb file: LevelDB's log format behind a header of 7 bytes."""
    content, place, whole = file.read_bytes(), 7, b""
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        size, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        whole += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            yield whole
            whole = b""


def of_wandb(run):
    """The numbers in the files that `wandb sync` would send; of a resumed run they are several."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    # Its service writes the last block when it ends.
    wandb.teardown()
    found, ids = {}, set()
    for file in sorted((run / "wandb").glob("offline-run-*/*.wandb")):
        for content in records(file):
            record = Record()
            record.ParseFromString(content)
            ids |= {record.run.run_id} if record.run.run_id else set()
            items = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            step = record.history.step.num or items.get("_step")
            found |= {(name, step): value for name, value in items.items()}
    assert len(ids) == 1
    return found


def of_mlflow(run):
    with sqlite3.connect(run / "mlflow.db") as database:
        assert database.execute("select count(*), min(status) from runs").fetchone() == (1, "FINISHED")
        return {(k, s): v for k, s, v in database.execute("select key, step, value from metrics")}


def of_trackio(run):
    from trackio.sqlite_storage import SQLiteStorage

    name = json.loads((run / KNOWN).read_text())["trackio"]["name"]
    assert SQLiteStorage.get_runs("vlmkit").count(name) == 1
    rows = SQLiteStorage.get_logs("vlmkit", name)
    return {(k, row["step"]): v for row in rows for k, v in row.items() if k not in ("step", "timestamp")}


READERS = {"tensorboard": events, "wandb": of_wandb, "mlflow": of_mlflow, "trackio": of_trackio}


@pytest.fixture(params=READERS)
def tracker(request, tmp_path, monkeypatch):
    """A tracker's name; those that the development extra does not bring are left out where they are not."""
    if request.param != "tensorboard":
        pytest.importorskip(request.param)
    for name, value in {"WANDB_MODE": "offline", "TRACKIO_DIR": str(tmp_path / "trackio")}.items():
        monkeypatch.setenv(name, value)
    return request.param


@pytest.fixture
def recipe_file(tiny_recipe, tmp_path):
    data = tiny_recipe().stages[0].data.model_dump(mode="json")
    evaluate = {"data": {**data, "limit": 2}, "max_new_tokens": 2}
    recipe = tiny_recipe(stages=STAGES, evaluate=evaluate).model_dump(mode="json", exclude_none=True)
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return file


class Stopped(Silent):
    """Asks the run to stop after the fourth of five steps."""

    def begin(self, name, start, steps):
        self.name = name

    def step(self, step, values):
        if (self.name, step) == ("second", 2):
            os.kill(os.getpid(), signal.SIGINT)


def expected(run):
    """What `metrics.jsonl` and the report say, by name and step of the run."""
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 1, 2, 3]
    found = {}
    for number, row in enumerate(rows, 1):
        values = {k: v for k, v in row.items() if k not in ("stage", "step")}
        found |= {(name, number): value for name, value in flat({row["stage"]: values})}
    report = json.loads((run / "report.json").read_text())
    assert report.pop("data")
    return found | {
        (name, 5): value for name, value in flat({"report": report}) if not isinstance(value, str)
    }


def test_every_step_and_the_report_of_a_run_that_was_interrupted(tracker, recipe_file, tmp_path):
    """One run in the tracker, each figure once."""
    run = tmp_path / "run"
    recipe = load_recipe(recipe_file, [f"output={run}", f"trackers=[{tracker}]"])
    with pytest.raises(Interrupted):
        train_recipe(recipe, reporter=Stopped())
    known = json.loads((run / KNOWN).read_text())
    train_recipe(recipe, resume=True)
    assert json.loads((run / KNOWN).read_text())[tracker] == known[tracker]
    wanted, found = expected(run), READERS[tracker](run)
    assert {("first/loss", 1), ("second/grad_norms/connector", 5), ("report/exact_match/all", 5)} <= set(
        wanted
    )
    assert wanted.keys() <= found.keys()
    assert all(found[key] == pytest.approx(value, rel=1e-6) for key, value in wanted.items())
    others = {name for name, _ in found.keys() - wanted.keys()}
    assert not {name for name in others if name.partition("/")[0] in ("first", "second", "report")}


def test_a_finished_run_is_not_reported_twice(recipe_file, tmp_path):
    run = tmp_path / "run"
    recipe = load_recipe(recipe_file, [f"output={run}", "trackers=[tensorboard]"])
    train_recipe(recipe)
    before = sorted((run / "tensorboard").rglob("*"))
    assert train_recipe(recipe, resume=True).report is not None
    assert sorted((run / "tensorboard").rglob("*")) == before


def test_the_command_line_tracks_and_the_recipe_is_kept(recipe_file, tmp_path):
    run = tmp_path / "run"
    assert main(["train", str(recipe_file), f"output={run}", "evaluate=null", "--track", "tensorboard"]) == 0
    assert ("second/loss", 5) in events(run)
    (hparams,) = (run / "tensorboard").rglob("hparams.yml")
    assert yaml.safe_load(hparams.read_text())["stages/second/checkpoint_every"] == 1


def test_a_step_that_is_done_again_is_there_once(tiny_recipe, tmp_path):
    """Killed behind a step that no checkpoint has: TensorBoard forgets what it was told of it."""
    recipe = tiny_recipe(stages=STAGES, output=str(tmp_path), trackers=["tensorboard"])
    rows = MetricsFile(tmp_path / "metrics.jsonl")
    for start, losses in ((0, [4.0, 3.0, 2.0]), (1, [2.5, 1.5])):
        rows.rewind("first", start)
        with Tracked(recipe, Silent()) as tracked:
            tracked.begin("first", start, 3)
            for step, loss in enumerate(losses, start + 1):
                rows.write({"stage": "first", "step": step, "loss": loss})
                tracked.step(step, {"loss": loss, "mfu": None})
    assert events(tmp_path) == {("first/loss", 1): 4.0, ("first/loss", 2): 2.5, ("first/loss", 3): 1.5}


def test_trackers_are_closed_whatever_happens(tiny_recipe, tmp_path):
    recipe = tiny_recipe(stages=STAGES, output=str(tmp_path), trackers=["tensorboard"])
    with pytest.raises(RuntimeError, match="in the middle"), Tracked(recipe, Silent()) as tracked:
        tracked.begin("first", 0, 2)
        tracked.step(1, {"loss": 1.0})
        raise RuntimeError("in the middle")
    assert tracked.trackers[0].writer.all_writers is None
    assert events(tmp_path) == {("first/loss", 1): 1.0}


def test_a_package_that_is_not_there_is_named_before_anything_is_made(recipe_file, tmp_path, monkeypatch):
    absent = [name for name in READERS if importlib.util.find_spec(name) is None]
    if not absent:
        pytest.skip("every tracker is installed")
    missing = absent[0]
    # The folder that W&B leaves in the working directory is no package.
    (tmp_path / missing).mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert importlib.util.find_spec(missing) is not None
    recipe = load_recipe(recipe_file, [f"output={tmp_path}/run", f"trackers=[{missing}]"])
    with pytest.raises(UsageError, match=f"do: pip install {missing}, or leave"):
        train_recipe(recipe)
    assert not (tmp_path / "run").exists()


def test_unknown_trackers_and_doubles_are_refused(recipe_file):
    with pytest.raises(UsageError, match=r"trackers\.0: .*did you mean 'tensorboard'"):
        load_recipe(recipe_file, ["trackers=[tensorbord]"])
    with pytest.raises(UsageError, match="each tracker once, found wandb, wandb"):
        load_recipe(recipe_file, ["trackers=[wandb, wandb]"])


def test_names_of_figures_are_those_that_every_tracker_takes(tiny_recipe, tmp_path):
    recipe = tiny_recipe(stages=STAGES, output=str(tmp_path), trackers=["tensorboard"])
    with Tracked(recipe, Silent()) as tracked:
        tracked.begin("first", 0, 2)
        tracked.step(1, {"source_loss": {"llava (v1.5), 50%": 1.0}})
    assert events(tmp_path) == {("first/source_loss/llava _v1.5__ 50_", 1): 1.0}


class Failing:
    """A tracker whose server is gone after a step."""

    name = "failing"

    def __init__(self):
        self.steps = []

    def log(self, values, step):
        self.steps.append(step)
        if step > 1:
            raise ConnectionError("no\nroute")

    def finish(self):
        raise TimeoutError("still none")


def test_a_tracker_that_fails_is_noted_once_and_training_goes_on(tiny_recipe, tmp_path, monkeypatch):
    notes, tracker = [], Failing()
    listener = Silent()
    listener.note = notes.append

    def started(name, opening):
        opening.closing.callback(tracker.finish)
        tracker.store_init_configuration = lambda config: None
        return tracker, {}

    monkeypatch.setattr("vlmkit.train.trackers.start", started)
    monkeypatch.setattr("vlmkit.train.run.require_trackers", lambda names: None)
    recipe = tiny_recipe(stages=STAGES, output=str(tmp_path / "run"), trackers=["tensorboard"])
    path = train_recipe(recipe, reporter=listener).path
    assert len(read_metrics(path / "metrics.jsonl")) == 5 and tracker.steps == [1, 2]
    failed, closed = notes
    assert "tracker failing failed at step 2" in failed and "(ConnectionError: no route)" in failed
    assert "could not be closed (TimeoutError: still none)" in closed
