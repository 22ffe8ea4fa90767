"""Plans: counted on meta tensors, without a download, also where the data is not there."""

import pytest
import torch

from vlmkit.assemble import assemble
from vlmkit.cli import main
from vlmkit.errors import VlmkitError
from vlmkit.plan import make_plan
from vlmkit.plan_memory import FOUR_BITS, Memory, estimate
from vlmkit.recipe import load_recipe
from vlmkit.train.stage import apply_stage

# CLIP ViT-L/14-336's vision tower and its projection; Llama 2 of 7B, and two rows for the placeholder.
CLIP_L_336 = 303_507_456 + 1024 * 768
VICUNA_7B = 6_738_415_616 + 2 * 4096
PROJECTOR = (1024 + 1) * 4096 + (4096 + 1) * 4096


def counts(stage):
    return {row.part: (row.parameters, row.trainable) for row in stage.parts}


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)


def test_llava_is_counted_without_a_download(made):
    with made:
        (stage,) = make_plan(load_recipe("llava_stage1")).stages
    assert made.most < 1000, "no weights are made to be counted"
    assert counts(stage) == {
        "encoder": (CLIP_L_336, 0),
        "connector": (PROJECTOR, PROJECTOR),
        "llm": (VICUNA_7B, 0),
    }
    m = stage.memory
    assert m.weights == 4 * (CLIP_L_336 + PROJECTOR + VICUNA_7B)
    assert (m.gradients, m.optimizer) == (4 * PROJECTOR, 8 * PROJECTOR)
    # 8 rows of 2048 tokens: 32 blocks' inputs and one block's inside in bfloat16; a chunk's logits, thrice.
    assert m.activations == 8 * 2048 * 2 * (32 + 22) * 4096 + 12 * 1024 * 32001


def test_quickstart_is_counted_exactly():
    """By hand: two linear layers; two blocks, a norm, and 33 words of 128 numbers."""
    contrastive, vqa = make_plan(load_recipe("quickstart")).stages
    connector = (64 + 1) * 128 + (128 + 1) * 128
    llm = 2 * (4 * 128**2 + 3 * 128 * 512 + 2 * 128) + 128 + 33 * 128
    assert counts(vqa) == {"encoder": (152_464,) * 2, "connector": (connector,) * 2, "llm": (llm,) * 2}
    assert counts(contrastive)["llm"] == (llm, 0)
    assert [(s.samples, s.steps) for s in (contrastive, vqa)] == [(4000, 200), (4000, 400)]


def test_four_bits_take_half_a_byte():
    (lora,) = make_plan(load_recipe("llava_stage2_lora")).stages
    (qlora,) = make_plan(load_recipe("llava_stage2_qlora")).stages
    assert counts(lora) == counts(qlora)
    # All of Llama but the embeddings, the head and 65 norms.
    rounded = 6_738_415_616 - 2 * 32000 * 4096 - 65 * 4096
    assert lora.memory.weights - qlora.memory.weights == pytest.approx((4 - FOUR_BITS) * rounded)


def test_a_small_model_is_counted_exactly_and_its_memory_is_what_it_takes(tiny_recipe):
    parts = {"encoder": {"lr": 1e-3}, "llm": {"lr": 1e-3}}
    recipe = tiny_recipe(stages=[{"train": parts}, {"name": "more", "epochs": 3, "steps": None}])
    plan, model = make_plan(recipe), assemble(recipe)
    for stage, planned in zip(recipe.stages, plan.stages, strict=True):
        assert planned.parts == apply_stage(model, stage)
        assert planned.memory == estimate(recipe, stage, model)
    assert [(s.samples, s.steps) for s in plan.stages] == [(6, 1), (6, 9)]
    assert plan.stages[0].memory.weights == sum(p.numel() * p.element_size() for p in model.parameters())
    assert plan.tokens == {size: model.count_tokens(size) for size in plan.tokens} and plan.notes == []
    assert (
        all(p.device.type == "cpu" for p in model.parameters()) and torch.get_default_device().type == "cpu"
    )


def test_a_model_that_train_would_start_from_is_looked_at(tiny_recipe, tiny_vlm, tmp_path):
    """Its vocabulary is its own, whatever the words of the recipe's data are."""
    saved = tiny_vlm(llm_options={"hidden_size": 64})
    saved.save_pretrained(tmp_path / "saved")
    recipe = tiny_recipe(
        llm_options={"hidden_size": 64},
        init_from=str(tmp_path / "saved"),
        stages=[{"data": {"type": "easy_vqa", "limit": 2}}],
    )
    (stage,) = make_plan(recipe).stages
    assert counts(stage)["llm"][0] == sum(p.numel() for p in saved.language_model.parameters())


def test_shapes_that_are_not_bundled_are_named():
    recipe = load_recipe(
        "llava_stage1", ["model.llm.weights=some/llm", "model.encoders.0.weights=other/clip"]
    )
    with pytest.raises(VlmkitError, match=r"shapes of other/clip, some/llm are not bundled.*--fetch"):
        make_plan(recipe)


def test_the_vocabulary_of_data_that_is_not_there_is_a_note(tiny_recipe):
    missing = {"type": "llava_json", "path": "none.json", "image_folder": "."}
    plan = make_plan(tiny_recipe(stages=[{"data": missing, "steps": None, "epochs": 1}]))
    assert plan.stages[0].samples is None and plan.stages[0].steps is None
    assert any("vocabulary" in note for note in plan.notes) and any("none.json" in n for n in plan.notes)


def test_the_command_prints_it(capfd):
    assert main(["plan", "siglip2_naflex"]) == 0
    out = capfd.readouterr().out
    assert "427,888,064" in out and "596,049,920" in out
    assert "an image of 640 x 480 pixels takes 252 tokens" in out and "steps unknown" in out
    assert "about 6.84 GB a device for 4 rows of 2048 tokens" in out


def test_tokens_that_stay_outside_the_sequence_are_counted_apart(capfd):
    plan = make_plan(load_recipe("flamingo_xattn"))
    assert set(plan.tokens.values()) == {1} and set(plan.looked_at.values()) == {64}
    closed = make_plan(load_recipe("flamingo_xattn", ["model.connector.every=28"]))
    more = [a.memory.activations - b.memory.activations for a, b in zip(plan.stages, closed.stages)]
    # Six blocks more, each recomputed: one number of the width of 1,024 a token, in 2 bytes.
    assert more == [6 * 1024 * 2 * 4 * 2048, 6 * 1024 * 2 * 2 * 4096]
    assert main(["plan", "flamingo_xattn"]) == 0
    assert "takes 1 token of the sequence; blocks look at 64" in capfd.readouterr().out


def test_all_together():
    assert Memory(1.0, 2.0, 4.0, 8.0, 1, 1).total == 15.0
