"""LoRA over a 4-bit language model: it learns, and the run's root is a plain model that answers the same."""

import json

import pytest
import torch
from torch import nn

from vlmkit import VLM
from vlmkit.assemble import assemble
from vlmkit.errors import VlmkitError
from vlmkit.inference import model_inputs, question
from vlmkit.quantize import count_quantized
from vlmkit.train import checkpoints, qlora
from vlmkit.train.logits import evaluate_exactly
from vlmkit.train.run import train_recipe
from vlmkit.train.stage import apply_stage, finish_stage

# bitsandbytes computes in blocks of 64 numbers, and on some processors takes no others.
WIDE = {"hidden_size": 64, "intermediate_size": 128}
LORA = {"connector": {"lr": 1e-2}, "llm": {"lr": 1e-2, "lora": {"r": 4, "dropout": 0.05}}}


@pytest.fixture
def base(tiny_vlm, tmp_path):
    """A saved model with rough weights."""
    tiny_vlm(llm_options=WIDE).save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


@pytest.fixture
def four_bits(tiny_recipe, base, tmp_path):
    """A function: stages to a recipe that starts from the saved model in 4 bits."""

    def make(*stages):
        options = {**WIDE, "quantize": "nf4"}
        output = str(tmp_path / "run")
        return tiny_recipe(llm_options=options, stages=list(stages), init_from=base, output=output)

    return make


def adapted(recipe, run):
    """The 4-bit model with the adapters and the connector of a run's last checkpoint, not merged."""
    from vlmkit.train.module import StageModule

    model = assemble(recipe)
    apply_stage(model, recipe.stages[-1])
    module = StageModule(model, recipe.stages[-1])
    checkpoints.load_tensors(checkpoints.latest_checkpoint(run, recipe.stages[-1].name), module)
    evaluate_exactly(model)
    return model


def test_it_learns_and_leaves_a_plain_model_that_answers_the_same(four_bits, noise):
    recipe = four_bits(
        {"name": "align", "steps": 1},
        {"name": "lora", "train": LORA, "steps": 10, "batch_size": 6, "warmup": 0, "schedule": "constant"},
    )
    run = train_recipe(recipe).path
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["stage"] == "lora"]
    assert len(losses) == 10 and losses[-1] < 0.5 * losses[0]
    unmerged, saved = adapted(recipe, run), VLM.from_pretrained(run).eval()
    assert count_quantized(unmerged)["llm"] == 14 and count_quantized(saved)["llm"] == 0
    assert "quantization_config" not in json.loads((run / "config.json").read_text())
    inputs = model_inputs(saved, [question([noise(1)], "what color is it?")])
    with torch.no_grad():
        difference = (unmerged(**inputs).logits - saved(**inputs).logits).abs().max()
    assert difference <= 1e-3


def test_the_four_bits_do_not_change_and_count_in_full(four_bits, tiny_vlm):
    recipe = four_bits({"train": LORA, "batch_size": 4, "steps": 2})
    model = assemble(recipe)
    rows = apply_stage(model, recipe.stages[0])
    plain = tiny_vlm(llm_options=WIDE)
    assert rows[2].parameters == sum(p.numel() for p in plain.language_model.parameters())
    assert all(p.requires_grad is False for p in model.parameters() if not p.is_floating_point())
    kinds = {type(m).__module__ for n, m in model.language_model.named_modules() if n.endswith("q_proj")}
    assert kinds == {"peft.tuners.lora.bnb"}


def test_a_run_without_adapters_is_plain_too(four_bits):
    run = train_recipe(four_bits({"steps": 1})).path
    assert count_quantized(VLM.from_pretrained(run)) == {"encoder": 0, "connector": 0, "llm": 0, "lm_head": 0}


def test_weights_in_four_bits_are_taken_from_a_language_model_alone(tiny_recipe, tiny_vlm, tmp_path):
    plain = tiny_vlm(llm_options=WIDE)
    plain.language_model.save_pretrained(tmp_path / "llm")
    plain.processor.tokenizer.save_pretrained(tmp_path / "llm")
    raw = tiny_recipe(stages=[{"train": LORA}]).model_dump()
    raw["model"]["llm"] = {"weights": str(tmp_path / "llm"), "quantize": "nf4"}
    model = assemble(type(tiny_recipe()).model_validate(raw))
    assert count_quantized(model) == {"encoder": 0, "connector": 0, "llm": 14, "lm_head": 0}


def test_a_merge_that_changes_the_answers_is_refused(four_bits, monkeypatch):
    """The check is on logits: here the layers come back a tenth larger than the 4 bits say."""
    recipe = four_bits({"train": LORA})
    model = assemble(recipe)
    apply_stage(model, recipe.stages[0])
    exact = qlora.dequantize

    def rough(module):
        exact(module)
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.data *= 1.1

    monkeypatch.setattr(qlora, "dequantize", rough)
    with pytest.raises(VlmkitError, match="merging the adapters changed logits"):
        finish_stage(model)
