"""What trains in a stage: parts, adapters, and the plain model that a stage leaves behind."""

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from vlmkit.errors import UsageError
from vlmkit.recipe import Lora
from vlmkit.train.checkpoints import trained_tensors
from vlmkit.train.module import StageModule
from vlmkit.train.stage import PartRow, add_lora, apply_stage, finish_stage


def trained(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_the_table_says_what_trains_and_it_is_so(tiny_vlm, make_stage):
    model = tiny_vlm()
    rows = apply_stage(
        model, make_stage(train={"connector": {"lr": 1e-3}, "llm": {"lr": 2e-5, "lora": {"r": 2}}})
    )
    connector = sum(p.numel() for p in model.connector.parameters())
    encoder = sum(p.numel() for p in model.encoders.parameters())
    assert rows[0] == PartRow("encoder", encoder, 0, None, "frozen")
    assert rows[1] == PartRow("connector", connector, connector, 1e-3, "full")
    assert (rows[2].lr, rows[2].note) == (2e-5, "LoRA r=2")
    assert sum(row.trainable for row in rows) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    finish_stage(model)
    apply_stage(model, make_stage(train={"encoder": {"lr": 1e-3}}))
    assert trained(model) == {name for name, _ in model.named_parameters() if name.startswith("encoders.")}


def test_lora_touches_the_language_model_alone(tiny_vlm, tiny_clip, make_stage):
    """CLIP's tower has layers of the same names (q_proj, ...)."""
    model = tiny_vlm(encoder=tiny_clip)
    assert any(name.endswith("q_proj") for name, _ in model.encoders.named_modules())
    outside = {n: type(m) for n, m in model.named_modules() if not n.startswith("language_model")}
    apply_stage(model, make_stage(train={"llm": {"lr": 1e-3, "lora": {"r": 2}}}))
    assert {n: type(m) for n, m in model.named_modules() if not n.startswith("language_model")} == outside
    names = trained(model)
    assert len(names) == 2 * 7 * 2
    assert all(name.startswith("language_model.") and ".lora_" in name for name in names)


@pytest.mark.parametrize("tied", [False, True])
def test_the_merged_model_is_the_adapter_model(
    tiny_vlm, make_stage, samples, collate, run_steps, tmp_path, noise, tied
):
    model = tiny_vlm(llm_options={"tie_word_embeddings": tied})
    before, settings = model(torch.tensor([[5, 6, 7]])).logits.detach(), model.generation_config.to_dict()
    names = set(model.state_dict())
    parts = {"connector": {"lr": 1e-2}, "llm": {"lr": 1e-2, "lora": {"r": 4, "dropout": 0.1}}}
    run_steps(model, make_stage(train=parts, steps=4, batch_size=4), samples)
    model.eval()
    with torch.no_grad():
        adapted = model(torch.tensor([[5, 6, 7]])).logits
        finish_stage(model)
        merged = model(torch.tensor([[5, 6, 7]])).logits
    assert (adapted - before).abs().max() > 1e-2
    assert (merged - adapted).abs().max() <= 1e-5
    assert type(model.language_model) is LlamaForCausalLM and set(model.state_dict()) == names
    assert model.config.text_config is model.language_model.config
    assert model.generation_config.to_dict() == settings
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) is tied
    model.save_pretrained(tmp_path / "merged")
    again = type(model).from_pretrained(tmp_path / "merged").eval()
    assert again.ask(noise(1), "say yes", max_new_tokens=4) == model.ask(
        noise(1), "say yes", max_new_tokens=4
    )


def test_targets_of_another_family_are_refused_with_those_there_are(tiny_vlm):
    model = tiny_vlm("gpt2")
    with pytest.raises(
        UsageError, match=r"match no linear layer .* \(it has: c_attn, c_fc, c_proj, lm_head\)"
    ):
        add_lora(model, Lora())
    add_lora(model, Lora(targets=["c_attn"]))
    assert all(".c_attn.lora_" in name for name in trained(model.language_model))


def test_a_stage_that_trains_nothing_is_refused(tiny_vlm, make_stage):
    model = tiny_vlm()
    model.connector.layers = nn.Sequential()
    with pytest.raises(UsageError, match="'only' trains no parameter"):
        apply_stage(model, make_stage(train={"connector": {"lr": 1}}))


def test_stored_buffers_are_part_of_a_checkpoint(tiny_vlm, make_stage):
    """The statistics of a batch norm change in training, and a resumed run must not start with fresh ones."""
    model = tiny_vlm()
    model.encoders[0].stem.add_module("statistics", nn.BatchNorm2d(3))
    stage = make_stage(train={"encoder": {"lr": 1e-3}})
    apply_stage(model, stage)
    held = {name.rpartition(".")[2] for name in trained_tensors(StageModule(model, stage))}
    assert {"running_mean", "running_var", "num_batches_tracked"} <= held


def test_frozen_parts_stay_in_eval_mode(tiny_vlm, make_stage):
    """Dropout in a frozen language model would be noise, and a frozen batch norm would move."""
    model = tiny_vlm()
    stage = make_stage(train={"connector": {"lr": 1e-3}})
    apply_stage(model, stage)
    StageModule(model, stage).train()
    assert model.connector.training
    assert not any(m.training for part in (model.encoders, model.language_model) for m in part.modules())


TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
TOWERS = {
    "vit": {"image_size": 16, "patch_size": 4, "width": 16, "depth": 3, "heads": 2, "layer": -2},
    "clip": {"vision_config": {**TOWER, "image_size": 16, "patch_size": 4}, "pooled": False, "layer": -1},
    "siglip2_naflex": {
        "vision_config": {**TOWER, "patch_size": 4, "num_patches": 16}, "max_num_patches": 16, "layer": -1,
    },
}  # fmt: skip


@pytest.mark.parametrize("family", TOWERS)
def test_an_encoder_that_trains_computes_its_activations_twice(
    tiny_vlm, make_stage, samples, run_steps, monkeypatch, family
):
    calls, found = [], {}
    plain = torch.nn.LayerNorm.forward
    monkeypatch.setattr(torch.nn.LayerNorm, "forward", lambda self, x: calls.append(1) or plain(self, x))
    for twice in (False, True):
        model = tiny_vlm(encoder={"type": family, **TOWERS[family]})
        torch.manual_seed(0)
        calls.clear()
        parts = {"encoder": {"lr": 1e-2}}
        stage = make_stage(train=parts, steps=2, batch_size=4, gradient_checkpointing=twice)
        rows = run_steps(model, stage, samples)[-2:]
        found[twice] = ([row[name] for row in rows for name in ("loss", "grad_norm")], len(calls))
        finish_stage(model)
    assert found[True][0] == pytest.approx(found[False][0], abs=1e-6)
    assert found[True][1] > 1.5 * found[False][1]


def test_an_encoder_that_cannot_says_so(tiny_vlm, make_stage, caplog):
    options = {"vision_config": {"model_type": "vit_msn", **TOWER, "image_size": 16, "patch_size": 4}}
    model = tiny_vlm(encoder={"type": "transformers", **options})
    model.vision_encoder.vision = torch.nn.Sequential(*model.vision_encoder.vision.children())
    apply_stage(model, make_stage(train={"encoder": {"lr": 1e-2}}, gradient_checkpointing=True))
    assert "encoder transformers keeps its activations" in caplog.text


@pytest.mark.parametrize("lora", [None, {"r": 2}])
def test_activations_that_are_computed_twice_give_the_same_gradients(
    tiny_vlm, make_stage, samples, run_steps, monkeypatch, lora
):
    calls = []
    model = tiny_vlm()
    layer = type(model.language_model.model.layers[0].mlp)
    plain = layer.forward
    monkeypatch.setattr(layer, "forward", lambda self, x: calls.append(1) or plain(self, x))
    found = {}
    for twice in (False, True):
        model = tiny_vlm()
        torch.manual_seed(0)
        calls.clear()
        parts = {"connector": {"lr": 1e-2}, "llm": {"lr": 1e-2, "lora": lora}}
        stage = make_stage(train=parts, steps=2, batch_size=4, gradient_checkpointing=twice)
        rows = run_steps(model, stage, samples)[-2:]
        found[twice] = [(row["loss"], row["grad_norm"]) for row in rows]
        # And once in each layer to ask what is done to logits.
        assert len(calls) == 2 * 2 * (1 + twice) + 2
        finish_stage(model)
    assert found[True] == found[False]
