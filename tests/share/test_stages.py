"""A stage that another run trained: what it is taken over by, and what it must not be."""

import json
import os
import shutil
import signal
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from vlmkit.assemble import assemble
from vlmkit.errors import VlmkitError
from vlmkit.recipe import Recipe
from vlmkit.share.lock import one_at_a_time
from vlmkit.share.stages import StageWork, stage_key
from vlmkit.train.loop import Interrupted
from vlmkit.train.metrics import Silent, read_metrics
from vlmkit.train.run import _stage_data, train_recipe
from vlmkit.train.stage import apply_stage

# A run in a process of its own that dies while it stores its first stage: one file is there, no handler runs.
KILLED = textwrap.dedent("""
    import os, signal, sys
    from pathlib import Path
    import vlmkit.share.stages as stages
    from vlmkit.recipe import Recipe
    from vlmkit.train.run import train_recipe

    def half(source, into, tensors):
        (into / "optimizer.pt").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    stages._write = half
    train_recipe(Recipe.model_validate_json(sys.argv[1]), share=Path(sys.argv[2]))
""")
TOLD = textwrap.dedent("""
    import sys
    from pathlib import Path
    from vlmkit.recipe import Recipe
    from vlmkit.train.metrics import Silent
    from vlmkit.train.run import train_recipe

    class Told(Silent):
        def note(self, text):
            print(text)

    train_recipe(Recipe.model_validate_json(sys.argv[1]), reporter=Told(), share=Path(sys.argv[2]))
""")


def entries(share):
    """Names in the directory of stages, without locks."""
    return sorted(p.name for p in (share / "stages").iterdir() if p.suffix != ".lock")


def test_sharing_changes_no_number(make_recipe, train, assert_equal_runs, tmp_path):
    """The run that fills the store, and one with another connector and language model that takes from it."""
    share = tmp_path / "share"
    others = {"connector": {"pool": 1}, "llm_options": {"hidden_size": 16}}
    filled, notes = train(make_recipe("filled"), share)
    assert notes == [] and len(entries(share)) == 1
    taken, notes = train(make_recipe("taken", **others), share)
    (note,) = notes
    assert note.startswith(f"stage first: taken from {share} (key {entries(share)[0][:12]}")
    assert_equal_runs(filled, train(make_recipe("alone"))[0])
    assert_equal_runs(taken, train(make_recipe("other-alone", **others))[0])
    manifest = json.loads((taken / "vlmkit.json").read_text())
    assert manifest["stages_done"] == ["first", "second"]
    state = json.loads((taken / "checkpoints/first-step-000003/state.json").read_text())
    assert state == json.loads(
        (tmp_path / "other-alone/checkpoints/first-step-000003/state.json").read_text()
    )
    mine, theirs = (
        torch.load(tmp_path / run / "checkpoints/first-step-000003/optimizer.pt", weights_only=True)
        for run in ("taken", "other-alone")
    )
    assert mine["param_groups"] == theirs["param_groups"]
    assert all(torch.equal(v, theirs["state"][i][k]) for i, s in mine["state"].items() for k, v in s.items())


class Stop(Silent):
    """Interrupts its process in the second stage."""

    def begin(self, name, start, steps):
        self.name = name

    def step(self, step, values):
        if (self.name, step) == ("second", 1):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_run_that_took_a_stage_over_can_be_resumed(make_recipe, train, assert_equal_runs, tmp_path):
    """With the directory and without it."""
    share = tmp_path / "share"
    train(make_recipe("filled"), share)
    recipe = make_recipe("taken", connector={"pool": 1})
    with pytest.raises(Interrupted):
        train_recipe(recipe, reporter=Stop(), share=share)
    shutil.copytree(tmp_path / "taken", tmp_path / "copy")
    alone, _ = train(make_recipe("alone", connector={"pool": 1}))
    for name, directory in (("taken", share), ("copy", None)):
        resumed, notes = train(make_recipe(name, connector={"pool": 1}), directory, resume=True)
        assert notes == []
        assert_equal_runs(resumed, alone)


def test_next_token_is_shared_with_the_same_model_only(make_recipe, train, stages, tmp_path):
    """Its result runs through connector and language model."""
    share, both = tmp_path / "share", [{**stages[1], "name": "first"}, stages[1]]
    train(make_recipe("a", both), share)
    assert train(make_recipe("b", both, connector={"depth": 1}), share)[1] == []
    (note,) = train(make_recipe("c", [both[0], {**both[1], "steps": 1}]), share)[1]
    assert "taken" in note
    assert len(entries(share)) == 2


def test_a_kill_while_storing_leaves_nothing_half(make_recipe, train, assert_equal_runs, tmp_path, python):
    share = tmp_path / "share"
    done = python(KILLED, make_recipe("killed").model_dump_json(), str(share))
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    (half,) = entries(share)
    assert half.endswith(".partial")
    assert train(make_recipe("next"), share)[1] == []
    assert entries(share) == [half.removesuffix(".partial")]
    taken, notes = train(make_recipe("last"), share)
    assert len(notes) == 1
    assert_equal_runs(taken, tmp_path / "next")


def test_two_processes_at_once_train_a_stage_once(make_recipe, tmp_path, python):
    """The one that comes second waits for the first, and takes over what it found."""
    share, connectors = tmp_path / "share", [{"pool": 1}, {"pool": 2}]
    recipes = [make_recipe(f"run{i}", connector=c).model_dump_json() for i, c in enumerate(connectors)]
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda recipe: python(TOLD, recipe, str(share)), recipes))
    assert [d.returncode for d in done] == [0, 0], [d.stderr[-2000:] for d in done]
    assert sum("taken from" in d.stdout for d in done) == 1
    rows = [read_metrics(tmp_path / f"run{i}/metrics.jsonl") for i in range(2)]
    assert rows[0][:3] == rows[1][:3] and rows[0][3:] != rows[1][3:]


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


def test_a_damaged_entry_is_named(make_recipe, train, tmp_path):
    share = tmp_path / "share"
    train(make_recipe("filled"), share)
    next((share / "stages").glob("*/checkpoints/*/trained.safetensors")).write_bytes(b"no tensors")
    with pytest.raises(VlmkitError, match=r"stages/.* is damaged .* delete it, it is only a cache"):
        train(make_recipe("taken"), share)


class Texts:
    """Stands for a text tower where only its name matters."""

    embed_dim = 384
    fingerprint = "texts"


@pytest.fixture
def key_of(make_recipe, tmp_path):
    """A function: a recipe's options and a change of the model to the key of its first stage."""
    from accelerate import Accelerator

    from vlmkit.train.loop import StageRun
    from vlmkit.train.metrics import MetricsFile
    from vlmkit.train.module import StageModule

    def key(change=None, **options):
        recipe: Recipe = make_recipe("key", **options)
        model = assemble(recipe)
        model.vision_encoder._text_tower = Texts()
        if change is not None:
            change(model)
        stage = recipe.stages[0]
        data = _stage_data(recipe, stage, model)
        apply_stage(model, stage)
        run = StageRun(tmp_path, Accelerator(), MetricsFile(tmp_path / "m.jsonl"), Silent())
        return stage_key(StageWork(recipe, 0, StageModule(model, stage), data, run))

    return key


def nudge(name):
    """A function that changes one number of one tensor of a model."""

    def change(model):
        with torch.no_grad():
            model.get_parameter(name).view(-1)[0] += 1e-6

    return change


def test_what_matters_to_a_contrastive_stage_changes_its_key(key_of, stages, encoder, captioned):
    first, second, _ = stages
    base = key_of()
    same = {
        "connector": {"connector": {"depth": 1}},
        "language model": {"llm_options": {"hidden_size": 16}},
        "prompt": {"stages": [first, {**second, "prompt": "vicuna_v1"}]},
        "checkpoints": {"stages": [{**first, "checkpoint_every": 1, "workers": 1}, second]},
        "weights of the language model": {"change": nudge("language_model.model.norm.weight")},
    }
    assert {what: key_of(**options) == base for what, options in same.items()} == dict.fromkeys(same, True)
    other = {
        "seed": {"seed": 1},
        "lr": {"stages": [{**first, "train": {"encoder": {"lr": 2e-2}}}, second]},
        "data": {"stages": [{**first, "data": {**captioned, "limit": 11}}, second]},
        "layout": {"encoder": {**encoder, "layout": "pad"}},
        "encoder weights": {"change": nudge("encoders.0.positions")},
        "text tower": {"change": lambda m: setattr(m.vision_encoder._text_tower, "fingerprint", "b")},
        "steps": {"stages": [{**first, "steps": 4}, second]},
    }
    keys = {what: key_of(**options) for what, options in other.items()}
    assert len({base, *keys.values()}) == 1 + len(other), keys


def test_everything_matters_to_a_next_token_stage(key_of, stages):
    both = [{**stages[1], "name": "first"}, stages[1]]
    base = key_of(stages=both)
    assert key_of(stages=both) == base
    other = {
        "connector": {"connector": {"depth": 1}},
        "weights of the connector": {"change": lambda m: m.connector.layers[0].bias.data.add_(1e-6)},
        "weights of the language model": {"change": nudge("language_model.model.norm.weight")},
        "language model": {"llm_options": {"rms_norm_eps": 1e-5}},
        "prompt": {"stages": [{**both[0], "prompt": "vicuna_v1"}, both[1]]},
        "chat template": {"change": lambda m: setattr(m.processor.tokenizer, "chat_template", "x")},
    }
    keys = {what: key_of(stages=both, **o) if "stages" not in o else key_of(**o) for what, o in other.items()}
    assert len({base, *keys.values()}) == 1 + len(other), keys


def test_a_budget_of_image_tokens_ties_the_pixels_to_the_connector(make_recipe, key_of):
    """The connector counts tokens, and an image that takes too many is made smaller."""
    budget = {"image_tokens": {"per_image": 16}}
    keys = {key_of(model_options=budget, connector={"depth": depth}) for depth in (1, 2)}
    assert len(keys) == 2


def test_threads_change_the_key(key_of):
    before = key_of()
    torch.set_num_threads(torch.get_num_threads() + 1)
    assert key_of() != before
