"""`vlmkit merge`: any checkpoint of a run becomes a whole model that says what the trained one said."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from vlmkit import VLM
from vlmkit.cli import main
from vlmkit.errors import UsageError, VlmkitError
from vlmkit.train import adapters, logits
from vlmkit.train.checkpoints import latest_checkpoint
from vlmkit.train.lock import locked
from vlmkit.train.merge import merge_run
from vlmkit.train.metrics import Silent
from vlmkit.train.run import train_recipe

LORA = {"connector": {"lr": 5e-2}, "llm": {"lr": 5e-2, "lora": {"r": 2, "dropout": 0.1}}}
STAGES = [
    {"name": "align", "steps": 2},
    {"name": "lora", "steps": 4, "train": LORA, "checkpoint_every": 2, "batch_size": 6, "warmup": 0},
]


class Stop(Silent):
    """Ends training in the middle of the second stage, as a crash would."""

    def begin(self, name, start, steps):
        self.name = name

    def step(self, step, values):
        if (self.name, step) == ("lora", 3):
            raise ConnectionError("stopped")


@pytest.fixture(scope="module")
def finished(tiny_recipe, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "finished"
    return train_recipe(tiny_recipe(stages=STAGES, output=str(output))).path


@pytest.fixture(scope="module")
def stopped(tiny_recipe, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "stopped"
    with pytest.raises(ConnectionError):
        train_recipe(tiny_recipe(stages=STAGES, output=str(output)), reporter=Stop())
    return output


def equal(one, other):
    mine, theirs = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert mine.keys() == theirs.keys()
    return all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_finished_run_gives_its_own_model(finished, tmp_path):
    merged = merge_run(finished, tmp_path / "out")
    assert equal(tmp_path / "out", finished)
    assert (merged.checkpoint, merged.adapters) == ("lora-step-000004", True)
    assert 0 < merged.difference <= 1e-5 and merged.rows == "4 of the recipe's samples"
    written = json.loads((tmp_path / "out/merged.json").read_text())
    assert written["checkpoint"] == "lora-step-000004" and written["logits"] == merged.difference


def test_the_end_of_a_stage_is_checked_and_the_figure_is_kept(finished):
    figures = json.loads((finished / "vlmkit.json").read_text())["merged"]
    assert list(figures) == ["lora"] and 0 < figures["lora"] <= 1e-5


def test_an_interrupted_run_gives_what_it_had_learnt(stopped, finished, tmp_path):
    """Not the base model (LLaVA 808, 1416), and not the end of the stage before."""
    merged = merge_run(stopped, tmp_path / "out")
    assert merged.checkpoint == "lora-step-000002" and merged.difference <= 1e-5
    before = merge_run(stopped, tmp_path / "align", "align-step-000002")
    assert not before.adapters and before.difference == 0
    one, other, end = (
        load_file(p / "model.safetensors") for p in (tmp_path / "out", tmp_path / "align", finished)
    )
    moved = {name for name in one if not torch.equal(one[name], other[name])}
    adapted = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert {n for n in moved if "language_model" in n} == {
        n for n in one if "language_model" in n and n.split(".")[-2] in adapted
    }
    assert any("connector" in name for name in moved) and not any("encoders" in name for name in moved)
    assert any(not torch.equal(one[name], end[name]) for name in moved)


def test_the_command_prints_the_figure_and_the_model_answers(stopped, tmp_path, noise, capsys):
    out = tmp_path / "out"
    assert main(["merge", str(stopped), "--output", str(out), "--checkpoint", "lora-step-000002"]) == 0
    said = capsys.readouterr().out
    assert "at lora-step-000002; adapters merged" in said
    assert "logits differ by at most" in said and "on 4 of the recipe's samples" in said
    noise(1).save(tmp_path / "a.png")
    assert main(["ask", str(out), str(tmp_path / "a.png"), "what color is it?"]) == 0
    assert main(["merge", str(stopped), "--output", str(tmp_path / "b"), "--checkpoint", "align-step-2"]) == 2
    assert "unknown checkpoint 'align-step-2'; did you mean" in capsys.readouterr().err


def test_a_merge_that_changes_the_answers_writes_nothing(stopped, tmp_path, monkeypatch):
    """Here the adapters are dropped on the way, which is what users of other tools have met."""
    monkeypatch.setattr("vlmkit.train.stage.merge_adapters", lambda adapted, check: (adapted.unload(), None))
    with pytest.raises(VlmkitError, match="merging the adapters changed logits by"):
        merge_run(stopped, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_the_end_of_a_stage_refuses_a_merge_that_changes_the_answers(
    stopped, tiny_recipe, tmp_path, monkeypatch
):
    shutil.copytree(stopped, tmp_path / "run")
    exact = adapters.merge_logits

    def rough(model):
        if not adapters.has_adapters(model):
            model.lm_head.weight.data *= 1.1
        return exact(model)

    monkeypatch.setattr(adapters, "merge_logits", rough)
    with pytest.raises(VlmkitError, match="merging the adapters changed logits by"):
        train_recipe(tiny_recipe(stages=STAGES, output=str(tmp_path / "run")), resume=True)
    assert not (tmp_path / "run/model.safetensors").exists()
    assert latest_checkpoint(tmp_path / "run", "lora").name == "lora-step-000004"


def test_the_bound_is_absolute_until_rounding_alone_exceeds_it():
    base = torch.tensor([1.0, -30.0])
    assert logits.require_same_logits(base, base + 9e-4) == pytest.approx(9e-4, rel=1e-2)
    for wrong in (base + 1.1e-3, base * float("nan")):
        with pytest.raises(VlmkitError, match=r"at most 0\.001 is possible"):
            logits.require_same_logits(base, wrong)


class TestRows:
    def test_without_its_data_rows_are_made_up_and_it_says_so(
        self, tiny_recipe, tiny_vlm, rows_file, tmp_path
    ):
        """A language model from scratch needs its data for its words; one that is loaded does not."""
        tiny_vlm().save_pretrained(tmp_path / "base")
        shutil.copytree(rows_file.parent, tmp_path / "data")
        data = {
            "type": "llava_json",
            "path": f"{tmp_path}/data/rows.json",
            "image_folder": f"{tmp_path}/data",
        }
        stages = [{"data": data, "steps": 1, "train": LORA}]
        recipe = tiny_recipe(stages=stages, output=str(tmp_path / "run"), init_from=str(tmp_path / "base"))
        run = train_recipe(recipe).path
        shutil.rmtree(tmp_path / "data")
        merged = merge_run(run, tmp_path / "out")
        assert merged.rows.startswith("2 made-up rows, as the recipe's samples are not there:")
        assert equal(tmp_path / "out", run) and merged.difference <= 1e-5


class TestRefusals:
    def test_a_folder_that_holds_something_is_left_alone(self, stopped, tmp_path):
        (tmp_path / "mine").write_text("mine")
        with pytest.raises(UsageError, match="is there and not empty; give another --output"):
            merge_run(stopped, tmp_path)

    def test_a_run_without_checkpoints_says_how_to_go_on(self, stopped, tmp_path):
        shutil.copytree(stopped, tmp_path / "run")
        shutil.rmtree(tmp_path / "run/checkpoints")
        with pytest.raises(UsageError, match=r"has no checkpoint; go on with: vlmkit train .* --resume"):
            merge_run(tmp_path / "run", tmp_path / "out")

    def test_a_checkpoint_that_does_not_fit_is_named(self, stopped, tmp_path):
        shutil.copytree(stopped, tmp_path / "run")
        path = tmp_path / "run/checkpoints/lora-step-000002/trained.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        with pytest.raises(VlmkitError, match=r"trained\.safetensors is damaged"):
            merge_run(tmp_path / "run", tmp_path / "out")

    def test_an_adapter_on_a_head_that_is_tied_is_refused(self, tiny_recipe, tmp_path):
        """Merged into one weight it would change the embeddings, too."""
        lora = {"llm": {"lr": 1e-2, "lora": {"targets": ["q_proj", "lm_head"]}}}
        tied = {"llm_options": {"tie_word_embeddings": True}, "stages": [{"train": lora}]}
        with pytest.raises(UsageError, match="lora targets lm_head: embeddings and head are one weight"):
            train_recipe(tiny_recipe(**tied, output=str(tmp_path / "tied")))
        run = train_recipe(
            tiny_recipe(stages=[{"train": lora, "steps": 2}], output=str(tmp_path / "run"))
        ).path
        names = load_file(latest_checkpoint(run, "only") / "trained.safetensors")
        assert sum("lm_head" in name for name in names) == 2


def test_qlora_is_merged_into_what_the_four_bits_stand_for(tiny_recipe, tiny_vlm, tmp_path):
    wide = {"hidden_size": 64, "intermediate_size": 128}
    tiny_vlm(llm_options=wide).save_pretrained(tmp_path / "base")
    recipe = tiny_recipe(
        llm_options={**wide, "quantize": "nf4"},
        stages=[{"name": "lora", "train": LORA, "steps": 2, "warmup": 0}],
        init_from=str(tmp_path / "base"),
        output=str(tmp_path / "run"),
    )
    run = train_recipe(recipe).path
    with pytest.raises(UsageError, match=r"merging into 4 bits would round away.*--dequantize"):
        merge_run(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    merged = merge_run(run, tmp_path / "out", four_bits=True)
    assert equal(tmp_path / "out", run) and 0 < merged.difference <= 1e-3
    kinds = {type(m) for m in VLM.from_pretrained(tmp_path / "out").language_model.modules()}
    assert nn.Linear in kinds and not any(kind.__name__ == "Linear4bit" for kind in kinds)


def test_a_run_that_trains_is_not_merged_meanwhile(stopped, finished, tmp_path):
    """It deletes its older checkpoints; a finished one deletes none."""
    for run, free in ((stopped, False), (finished, True)):
        with locked(run, Silent()):
            if free:
                assert merge_run(run, tmp_path / "out").path.is_dir()
                continue
            with pytest.raises(UsageError, match=rf"in use: process {os.getpid()} on"):
                merge_run(run, tmp_path / "out")
        assert free or not list(tmp_path.glob("out*"))


def test_what_cannot_be_read_back_is_no_full_disk(stopped, tmp_path, monkeypatch):
    def broken(path):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(VLM, "from_pretrained", broken)
    with pytest.raises(VlmkitError, match="cannot be read back") as raised:
        merge_run(stopped, tmp_path / "out")
    assert "make room" not in str(raised.value) and not list(tmp_path.glob("out*"))
