"""A checkpoint is what was written and fits the model exactly, or is refused by name; nothing is lost."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlmkit.assemble import assemble
from vlmkit.cli import main
from vlmkit.errors import UsageError, VlmkitError
from vlmkit.train import checkpoints, head, intact
from vlmkit.train.intact import DamagedError
from vlmkit.train.metrics import MetricsFile, Silent, read_metrics
from vlmkit.train.module import StageModule
from vlmkit.train.restore import last_checkpoint, rewind
from vlmkit.train.run import train_recipe
from vlmkit.train.stage import apply_stage

LORA = {"connector": {"lr": 1e-2}, "llm": {"lr": 1e-2, "lora": {"r": 2}}}
STAGES = [
    {"name": "one", "steps": 4, "checkpoint_every": 2},
    {"name": "two", "steps": 4, "checkpoint_every": 2, "train": LORA},
]
FILES = ("trained.safetensors", "optimizer.pt", "random.pt", "state.json")
BIAS = "vlm.connector.layers.0.bias"


class Stop(Silent):
    """Ends training in the middle of a step, as a crash would."""

    def __init__(self, stage, step):
        self.moment = (stage, step)

    def begin(self, name, start, steps):
        self.name = name

    def step(self, step, values):
        if (self.name, step) == self.moment:
            raise ConnectionError("stopped")


@pytest.fixture(scope="module")
def shelf(tiny_recipe, tmp_path_factory):
    """A run that was stopped in its second stage: one-2, one-4, two-2."""
    folder = tmp_path_factory.mktemp("shelf")
    with pytest.raises(ConnectionError):
        train_recipe(tiny_recipe(stages=STAGES, output=str(folder)), reporter=Stop("two", 3))
    return folder


@pytest.fixture(scope="module")
def whole(tiny_recipe, tmp_path_factory):
    """The weights of a run that nothing stopped."""
    output = str(tmp_path_factory.mktemp("whole") / "run")
    return load_file(train_recipe(tiny_recipe(stages=STAGES, output=output)).path / "model.safetensors")


@pytest.fixture
def recipe(shelf, tiny_recipe, tmp_path):
    """Of a copy of that run, for a test to damage."""
    shutil.copytree(shelf, tmp_path / "run")
    return tiny_recipe(stages=STAGES, output=str(tmp_path / "run"))


@pytest.fixture
def newest(recipe):
    return recipe.run_dir / "checkpoints/two-step-000002"


@pytest.fixture
def module(recipe):
    """What the second stage trains."""
    model = assemble(recipe)
    apply_stage(model, recipe.stages[1])
    return StageModule(model, recipe.stages[1])


def change(path, edit):
    """Rewrite the tensors of a checkpoint, and seal it as if it had been written so."""
    tensors = load_file(path / "trained.safetensors")
    edit(tensors)
    save_file(tensors, path / "trained.safetensors")
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").unlink()
    for key in ("format", "sha256", "state_sha256", "tensors"):
        del state[key]
    intact.seal(path, state, intact_forms(tensors))


def intact_forms(tensors):
    return {n: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for n, t in tensors.items()}


def test_state_lists_each_tensor_and_every_file(newest, module):
    state = json.loads((newest / "state.json").read_text())
    trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
    listed = {n: {"shape": list(p.shape), "dtype": "float32"} for n, p in trained.items()}
    assert state["tensors"] == listed and len(listed) > 20
    assert {*state["sha256"], "state.json"} == {p.name for p in newest.iterdir()} == set(FILES)
    assert (state["stage"], state["step"], state["steps"], state["samples"]) == ("two", 2, 4, 6)
    assert sorted(name for group in state["optimizer"] for name in group) == sorted(listed)


def test_those_who_may_read_the_folder_may_read_the_tensors(newest):
    assert {p.stat().st_mode & 0o777 for p in newest.iterdir()} == {newest.stat().st_mode & 0o666}


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_is_seen_in_any_file(recipe, newest, name):
    content = bytearray((newest / name).read_bytes())
    # In the middle of the state lies a digit or a letter: what is read is JSON, still.
    content[len(content) // 2] ^= 1
    (newest / name).write_bytes(content)
    with pytest.raises(
        DamagedError, match=f"two-step-000002/{name} is damaged .*--resume-from two-step-000000"
    ):
        train_recipe(recipe, resume=True)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_gone_is_named(recipe, newest, name):
    (newest / name).unlink()
    with pytest.raises(DamagedError, match=f"two-step-000002/{name} is gone"):
        train_recipe(recipe, resume=True)


def drop(tensors):
    del tensors[BIAS]


def add(tensors):
    tensors["vlm.stranger"] = torch.zeros(3)


def rename(tensors):
    tensors[BIAS.replace("layers", "blocks")] = tensors.pop(BIAS)


def reshape(tensors):
    tensors[BIAS] = torch.zeros(2, 16)


def retype(tensors):
    tensors[BIAS] = tensors[BIAS].bfloat16()


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (drop, f"missing {BIAS};"),
        (add, "left over vlm.stranger;"),
        (rename, f"probably renamed {BIAS.replace('layers', 'blocks')} is now {BIAS};"),
        (reshape, f"other {BIAS} is float32 2 x 16, needed float32 32;"),
        (retype, f"other {BIAS} is bfloat16 32, needed float32 32;"),
    ],
)
def test_tensors_that_do_not_fit_are_named_and_none_is_loaded(newest, module, edit, says):
    change(newest, edit)
    before = {n: t.clone() for n, t in checkpoints.trained_tensors(module).items()}
    with pytest.raises(VlmkitError) as raised:
        checkpoints.load_tensors(newest, module)
    assert says in str(raised.value) and str(newest) in str(raised.value)
    after = checkpoints.trained_tensors(module)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_tensors_other_than_those_listed_are_refused(newest):
    """As if the hash had been written for them: the list alone tells."""
    state = json.loads((newest / "state.json").read_text())
    change(newest, drop)
    again = json.loads((newest / "state.json").read_text())
    content = {**again, "tensors": state["tensors"]}
    del content["state_sha256"]
    content["state_sha256"] = intact._own(content)
    (newest / "state.json").write_text(json.dumps(content))
    with pytest.raises(VlmkitError, match=f"missing {BIAS}"):
        checkpoints.read_tensors(newest)


def test_moments_of_other_parameters_are_refused(newest, module, recipe):
    """Adam's state goes by number: in another order it would be another parameter's."""
    groups = module.param_groups(recipe.stages[1])
    facts = {"stage": "two", "steps": 4, "samples": 6}
    optimizer = torch.optim.AdamW(groups)
    assert checkpoints.load_checkpoint(newest, module, optimizer, facts)["step"] == 2
    same = torch.optim.AdamW([{**groups[0], "params": groups[0]["params"][::-1]}, *groups[1:]])
    with pytest.raises(VlmkitError, match="other parameters, or for these in another order"):
        checkpoints.load_checkpoint(newest, module, same, facts)
    with pytest.raises(VlmkitError, match=r"other data: samples \(was 6, is 7\)"):
        checkpoints.load_checkpoint(newest, module, optimizer, {**facts, "samples": 7})


class TestEarlierVersions:
    """Without hashes, and with a list of names."""

    @pytest.fixture
    def old(self, recipe):
        for path in (recipe.run_dir / "checkpoints").iterdir():
            state = json.loads((path / "state.json").read_text())
            old = {"stage": state["stage"], "step": state["step"], "tensors": sorted(state["tensors"])}
            (path / "state.json").write_text(json.dumps(old))
        return recipe

    def test_they_load_and_it_is_said_that_nothing_was_checked(self, old, whole):
        notes = []
        reporter = Silent()
        reporter.note = notes.append
        run = train_recipe(old, resume=True, reporter=reporter).path
        assert [note for note in notes if "earlier version" in note] == [
            f"{s}-step-00000{n} is of an earlier version of vlmkit: it has no hashes to check"
            for s, n in (("one", 4), ("two", 2))
        ]
        saved = load_file(run / "model.safetensors")
        assert all(torch.equal(saved[name], whole[name]) for name in whole)

    @pytest.mark.parametrize("name", FILES[:3])
    def test_a_file_that_cannot_be_read_is_named(self, old, name):
        file = old.run_dir / "checkpoints/two-step-000002" / name
        file.write_bytes(file.read_bytes()[:100])
        with pytest.raises(DamagedError, match=f"{name} cannot be read"):
            train_recipe(old, resume=True)

    def test_those_of_later_versions_are_refused(self, newest, recipe):
        (newest / "state.json").write_text('{"format": 3}')
        with pytest.raises(VlmkitError, match="written by a later version of vlmkit"):
            train_recipe(recipe, resume=True)


class TestResumeFrom:
    def test_an_earlier_checkpoint_ends_in_the_same_weights(self, recipe, whole):
        notes = []
        reporter = Silent()
        reporter.note = notes.append
        (recipe.run_dir / "checkpoints/one-step-000004/trained.safetensors").write_bytes(b"damaged")
        with pytest.raises(DamagedError, match=r"--resume-from one-step-000002 goes on from the checkpoint"):
            train_recipe(recipe, resume=True)
        rewind(recipe.run_dir, "one-step-000002", reporter)
        kept = sorted(p.name for p in (recipe.run_dir / "checkpoints").iterdir())
        assert kept == ["one-step-000002", "set_aside"] and len(notes) == 2
        assert [r["step"] for r in read_metrics(recipe.run_dir / "metrics.jsonl")] == [1, 2]
        run = train_recipe(recipe, resume=True).path
        saved = load_file(run / "model.safetensors")
        assert all(torch.equal(saved[name], whole[name]) for name in whole)

    def test_what_is_not_there_is_refused(self, recipe):
        run, reporter = recipe.run_dir, Silent()
        with pytest.raises(UsageError, match=r"unknown checkpoint 'two-step-4'.*known: one-step-000002"):
            rewind(run, "two-step-4", reporter)
        with pytest.raises(UsageError, match="unknown checkpoint 'three'"):
            rewind(run, "three", reporter)
        (run / "checkpoints/one-step-000002/random.pt").write_bytes(b"damaged")
        with pytest.raises(DamagedError, match=r"random\.pt is damaged"):
            rewind(run, "one-step-000002", reporter)
        assert len(list((run / "checkpoints").iterdir())) == 3, "nothing was set aside"
        rewind(run, "two-step-0", reporter)
        assert json.loads((run / "vlmkit.json").read_text())["stages_done"] == ["one"]

    def test_a_refusal_comes_before_anything_is_taken_out_of_the_way(self, recipe, tmp_path, capsys):
        """The run was taken back first, and then refused for its recipe."""
        file = tmp_path / "recipe.yaml"
        file.write_text(json.dumps(recipe.model_dump(mode="json")))
        before = {p: p.read_bytes() for p in sorted(recipe.run_dir.rglob("*")) if p.is_file()}
        wrong = ["--resume-from", "one-step-000002", "seed=5"]
        assert main(["train", str(file), *wrong]) == 2
        assert "made by another recipe (differs in: seed)" in capsys.readouterr().err
        assert {p: p.read_bytes() for p in sorted(recipe.run_dir.rglob("*")) if p.is_file()} == before

    def test_going_back_where_there_is_no_run_leaves_no_folder(self, tmp_path):
        with pytest.raises(UsageError, match="nowhere does not exist"):
            rewind(tmp_path / "nowhere", "one-step-000002", Silent())
        assert not (tmp_path / "nowhere").exists()

    def test_a_finished_run_has_nothing_to_resume(self, recipe):
        train_recipe(recipe, resume=True)
        with pytest.raises(UsageError, match="is finished, there is nothing to resume"):
            rewind(recipe.run_dir, "two-step-000002", Silent())


def test_an_earlier_checkpoint_never_stands_for_the_end_of_a_stage(recipe):
    """The newest that is left of a stage which is done has the weights of step 2: not what it ended with."""
    shutil.rmtree(recipe.run_dir / "checkpoints/one-step-000004")
    with pytest.raises(VlmkitError, match=r"'one' is done, and its last checkpoint is gone.*one-step-000002"):
        train_recipe(recipe, resume=True)
    shutil.rmtree(recipe.run_dir / "checkpoints/one-step-000002")
    with pytest.raises(VlmkitError, match="--resume-from one-step-000000"):
        last_checkpoint(recipe.run_dir, "one")


def test_what_a_kill_left_of_writing_and_deleting_is_cleared(recipe):
    folder = recipe.run_dir / "checkpoints"
    for name in ("two-step-000003.partial", "one-step-000001.old"):
        (folder / name).mkdir()
    assert checkpoints.latest_checkpoint(recipe.run_dir, "two").name == "two-step-000002"
    train_recipe(recipe, resume=True)
    names = sorted(p.name for p in folder.iterdir())
    assert names == [f"{s}-step-00000{n}" for s in ("one", "two") for n in (2, 4)]


def test_a_resumed_run_has_a_chunk_of_logits_from_its_first_step_on(tiny_recipe, tmp_path, monkeypatch):
    """As the run that nothing stopped has: sums in another order differ in the last bits."""
    sizes = []
    chunk_loss = head.SupervisedHead._chunk_loss

    def counting(self, hidden_CD, *others):
        sizes.append(len(hidden_CD))
        return chunk_loss(self, hidden_CD, *others)

    monkeypatch.setattr(head, "CHUNK", 3)
    monkeypatch.setattr(head.SupervisedHead, "_chunk_loss", counting)
    recipes = [tiny_recipe(stages=STAGES[1:], output=str(tmp_path / name)) for name in ("whole", "stopped")]
    train_recipe(recipes[0])
    with pytest.raises(ConnectionError):
        train_recipe(recipes[1], reporter=Stop("two", 3))
    sizes.clear()
    train_recipe(recipes[1], resume=True)
    assert sizes and max(sizes) == 3
    one, other = (load_file(recipe.run_dir / "model.safetensors") for recipe in recipes)
    assert all(torch.equal(one[name], other[name]) for name in one)


def as_of_a_gpu(file):
    """Let a file of `torch.save` say that its tensors were on a GPU."""
    with zipfile.ZipFile(file) as stored:
        entries = {name: stored.read(name) for name in stored.namelist()}
    (pickled,) = (name for name in entries if name.endswith("data.pkl"))
    moved = entries[pickled].replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
    assert moved != entries[pickled]
    with zipfile.ZipFile(file, "w") as stored:
        for name, content in {**entries, pickled: moved}.items():
            stored.writestr(name, content)


@pytest.mark.skipif(torch.cuda.is_available(), reason="it could be loaded as it is")
def test_a_machine_without_a_gpu_goes_on_from_a_checkpoint_of_one(recipe, newest, whole):
    as_of_a_gpu(newest / "optimizer.pt")
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(newest / "optimizer.pt", weights_only=True)
    change(newest, lambda tensors: None)
    found = load_file(train_recipe(recipe, resume=True).path / "model.safetensors")
    assert all(torch.equal(found[name], whole[name]) for name in whole)


class TestLines:
    """Of `metrics.jsonl` and its like."""

    @pytest.fixture
    def file(self, tmp_path):
        file = MetricsFile(tmp_path / "metrics.jsonl")
        for step in (1, 2, 3):
            file.write({"stage": "one", "step": step})
        return file

    def test_a_damaged_line_is_an_error_that_names_it(self, file):
        """All lines after it were dropped without a word."""
        text = file.path.read_text()
        file.path.write_text(text[:-5])
        assert len(read_metrics(file.path)) == 2, "what a kill leaves of the last one"
        file.path.write_text(text.replace('"step": 2}', '"st'))
        with pytest.raises(VlmkitError, match=r"metrics\.jsonl line 2 is damaged .*; repair it, or"):
            file.rewind("one", 3)
        assert len(file.path.read_text().splitlines()) == 3

    def test_it_says_how_many_lines_are_dropped(self, file):
        assert [file.rewind("one", 1), file.rewind("one", 1), file.rewind("two", 0)] == [2, 0, 0]

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="a file that is always full is Linux's")
    def test_a_full_disk_is_named(self):
        with pytest.raises(VlmkitError, match=r"^/dev/full cannot be written \(No space left.*; make room"):
            MetricsFile(Path("/dev/full")).write({"step": 1})
