"""A stage that another run trained: what it is taken over by, and what it must not be."""

import json
import os
import shutil
import signal
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from vlmkit.errors import VlmkitError
from vlmkit.share import shared
from vlmkit.share.lock import one_at_a_time
from vlmkit.train.metrics import Silent, read_metrics
from vlmkit.train.run import train_recipe
from vlmkit.train.stage_run import Interrupted

# A run in a process of its own, which does not go on before it was met in its first stage. With `die` it dies
# while it stores that stage: one file is there, no handler runs.
OTHER = textwrap.dedent("""
    import os, signal, sys, time
    from pathlib import Path
    import vlmkit.share.stages as stages
    from vlmkit.recipe import Recipe
    from vlmkit.train.metrics import Silent
    from vlmkit.train.run import train_recipe

    class Slow(Silent):
        def step(self, step, values):
            end = time.monotonic() + 120
            while not (Path(sys.argv[2]) / "met").exists() and time.monotonic() < end:
                time.sleep(0.02)

    def half(source, into, tensors):
        (into / "optimizer.pt").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    if sys.argv[3] == "die":
        stages.checkpoints.derive = half
    train_recipe(Recipe.model_validate_json(sys.argv[1]), reporter=Slow(), share=Path(sys.argv[2]))
""")
POOL_1 = {"connector": {"pool": 1}}


def entries(share):
    """Names in the directory of stages, without locks."""
    return sorted(p.name for p in (share / "stages").iterdir() if p.suffix != ".lock")


@pytest.fixture(scope="module")
def shelf(recipe_at, tmp_path_factory):
    """A directory that one run has filled, and that run."""
    share = tmp_path_factory.mktemp("shelf")
    return share, train_recipe(recipe_at(share / "run"), share=share).path


@pytest.fixture(scope="module")
def alone(recipe_at, tmp_path_factory):
    """A run with another connector that shares nothing."""
    return train_recipe(recipe_at(tmp_path_factory.mktemp("alone") / "run", **POOL_1)).path


def test_filling_the_store_changes_no_number(shelf, make_recipe, train, assert_equal_runs):
    """One entry: the last stage is not kept. No features, for the encoder trains."""
    assert len(entries(shelf[0])) == 1
    assert sorted(p.name for p in shelf[0].iterdir()) == ["run", "stages", "tokens"]
    assert_equal_runs(shelf[1], train(make_recipe("plain"))[0])


def test_taking_from_it_changes_no_number(shelf, alone, make_recipe, train, assert_equal_runs):
    """A run with another connector holds afterwards what it would hold had it trained the stage."""
    share, _ = shelf
    taken, notes = train(make_recipe("taken", **POOL_1), share)
    assert notes == [f"stage first: taken from {share} (key {entries(share)[0][:12]})"]
    assert_equal_runs(taken, alone)
    assert len(entries(share)) == 1
    assert json.loads((taken / "vlmkit.json").read_text())["stages_done"] == ["first", "second"]
    mine, theirs = (run / "checkpoints/first-step-000003" for run in (taken, alone))
    assert (mine / "state.json").read_text() == (theirs / "state.json").read_text()
    adam, other = (torch.load(folder / "optimizer.pt", weights_only=True) for folder in (mine, theirs))
    assert adam["param_groups"] == other["param_groups"]
    torch.testing.assert_close(adam["state"], other["state"], rtol=0, atol=0)
    states = [torch.load(folder / "random.pt", weights_only=True)[0]["cpu"] for folder in (mine, theirs)]
    assert torch.equal(*states)


class Stop(Silent):
    """Interrupts its process after the first step of a stage."""

    def __init__(self, stage):
        self.where = stage

    def begin(self, name, start, steps):
        self.name = name

    def step(self, step, values):
        if (self.name, step) == (self.where, 1):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_run_that_had_begun_a_stage_takes_it_over(shelf, alone, make_recipe, train, assert_equal_runs):
    """What it had written of it goes."""
    with pytest.raises(Interrupted):
        train_recipe(make_recipe("begun", **POOL_1), reporter=Stop("first"))
    taken, notes = train(make_recipe("begun", **POOL_1), shelf[0], resume=True)
    assert len(notes) == 1 and "taken from" in notes[0]
    assert_equal_runs(taken, alone)


def test_a_run_that_took_a_stage_over_can_be_resumed(
    shelf, alone, make_recipe, train, assert_equal_runs, tmp_path
):
    """With the directory and without it."""
    with pytest.raises(Interrupted):
        train_recipe(make_recipe("taken", **POOL_1), reporter=Stop("second"), share=shelf[0])
    shutil.copytree(tmp_path / "taken", tmp_path / "copy")
    for name, directory in (("taken", shelf[0]), ("copy", None)):
        resumed, notes = train(make_recipe(name, **POOL_1), directory, resume=True)
        assert notes == ["stage second goes on after step 1 of 3"]
        assert_equal_runs(resumed, alone)


def test_next_token_is_shared_with_the_same_model_only(make_recipe, train, stages, tmp_path):
    """Its result runs through connector and language model."""
    share, short = tmp_path / "share", {**stages[1], "steps": 1}
    both = [{**short, "name": "first"}, short]
    train(make_recipe("a", both), share)
    assert train(make_recipe("b", both, connector={"depth": 1}), share)[1] == []
    (note,) = train(make_recipe("c", [both[0], {**short, "steps": 2}]), share)[1]
    assert "taken" in note
    assert len(entries(share)) == 2


@pytest.fixture
def meet(make_recipe, train, stages, tmp_path, python, listener, monkeypatch):
    """A function: start a run, begin another while the first trains; returns the first and what is said."""

    share = tmp_path / "share"

    def note(text):
        listener.notes.append(text)
        (share / "met").touch()

    def both(ends):
        monkeypatch.setattr(listener, "note", note)
        recipe = make_recipe("other", [stages[0], {**stages[1], "steps": 1}]).model_dump_json()
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(python, OTHER, recipe, str(share), ends)
            while not list(share.glob("stages/*.lock")):
                assert not other.done(), other.result().stderr[-2000:]
                time.sleep(0.02)
            _, notes = train(make_recipe("waiting", **POOL_1), share)
            return other.result(), notes

    return both


def test_two_at_once_train_a_stage_once(meet, tmp_path):
    other, notes = meet("well")
    assert other.returncode == 0, other.stderr[-2000:]
    assert [note.split(" ")[0] for note in notes] == ["waiting:", "stage"]
    assert "stage first (key" in notes[0] and "in use by process" in notes[0]
    assert "taken from" in notes[1]
    rows, others = (read_metrics(tmp_path / run / "metrics.jsonl") for run in ("waiting", "other"))
    assert rows[:3] == others[:3]


def test_a_kill_while_storing_leaves_nothing_half_and_no_lock(meet, alone, tmp_path, assert_equal_runs):
    """The one that waits trains the stage itself."""
    other, notes = meet("die")
    assert other.returncode == -signal.SIGKILL, other.stderr[-2000:]
    assert len(notes) == 1 and notes[0].startswith("waiting:")
    (entry,) = entries(tmp_path / "share")
    assert not entry.endswith(".partial")
    assert_equal_runs(tmp_path / "waiting", alone)


def test_a_lock_is_waited_for_and_a_file_that_is_left_blocks_nobody(tmp_path):
    file, told, order = tmp_path / "x.lock", [], []
    file.write_text("12345\n")

    def second():
        with one_at_a_time(file, "the stage", told.append, every=0.01):
            order.append("second")

    with one_at_a_time(file, "the stage"):
        thread = threading.Thread(target=second)
        thread.start()
        while not told:
            thread.join(0.01)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert len(told) == 1 and told[0].startswith("waiting: the stage is already open in this process")


def test_a_damaged_entry_is_named(shelf, make_recipe, train, tmp_path):
    shutil.copytree(shelf[0] / "stages", tmp_path / "share/stages")
    next(tmp_path.glob("share/stages/*/checkpoints/*/trained.safetensors")).write_bytes(b"no tensors")
    with pytest.raises(VlmkitError, match=r"stages/.* is damaged .* delete it, it is only a cache"):
        train(make_recipe("taken"), tmp_path / "share")


@pytest.fixture
def leaky(captioned, stages, tmp_path):
    """Two stages that leave out a broken image, the first of their data; the first one probes."""
    shutil.copytree(captioned["folder"], tmp_path / "data")
    (tmp_path / "data/00.png").write_bytes(b"broken")
    data = {**captioned, "folder": str(tmp_path / "data")}
    skips = {"data": data, "on_bad_sample": "skip"}
    return [{**stages[2], **skips, "probe_every": 3}, {**stages[1], **skips, "steps": 1}]


def test_what_a_stage_left_out_is_taken_over_with_it(make_recipe, train, leaky, tmp_path):
    """And what its last probe has found is said again."""
    share = tmp_path / "share"
    mine, _ = train(make_recipe("a", leaky), share)
    assert list(share.glob("features/*.sqlite")), (
        "the broken image comes first, and others have their features"
    )
    theirs, notes = train(make_recipe("b", leaky), share)
    assert "taken from" in notes[1]
    assert (
        notes[0].startswith("stage first, its last probe, step 3: loss ") and "with blank images" in notes[0]
    )
    one, other = (read_metrics(path / "skipped.jsonl") for path in (mine, theirs))
    assert one == other and [row["kind"] for row in one if row["stage"] == "first"] == ["image_unreadable"]


def test_steps_that_were_not_finite_are_taken_over_too(make_recipe, train, stages, tmp_path):
    share, row = tmp_path / "share", {"stage": "first", "step": 1, "id": "x", "kind": "loss"}
    two = [stages[0], {**stages[1], "steps": 1}]
    train(make_recipe("a", two), share)
    (entry,) = entries(share)
    (share / "stages" / entry / "non_finite.jsonl").write_text(json.dumps(row) + "\n")
    recipe = make_recipe("b", two)
    with pytest.raises(Interrupted):
        train_recipe(recipe, reporter=Stop("first"))
    (recipe.run_dir / "non_finite.jsonl").write_text(json.dumps({**row, "id": "y"}) + "\n")
    taken, _ = train(recipe, share, resume=True)
    assert read_metrics(taken / "non_finite.jsonl") == [row]


@pytest.mark.parametrize("other", [{"steps": 2}, {"limit": 11}])
def test_a_stage_of_other_steps_or_samples_is_refused(
    make_recipe, train, stages, captioned, tmp_path, monkeypatch, other
):
    """Should a key ever leave out what decides about them."""
    monkeypatch.setattr(shared, "stage_key", lambda work: "key")
    share, second = tmp_path / "share", {**stages[1], "steps": 1}
    train(make_recipe("a", [stages[0], second]), share)
    data = {**captioned, **{k: v for k, v in other.items() if k == "limit"}}
    changed = {**stages[0], "data": data, **{k: v for k, v in other.items() if k != "limit"}}
    with pytest.raises(VlmkitError, match=r"is of another stage .* delete it, it is only a cache"):
        train(make_recipe("b", [changed, second]), share)
