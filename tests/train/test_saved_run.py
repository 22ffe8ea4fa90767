"""What was trained is what is loaded, tensor by tensor, and a tensor that is lost on the way is named.

LLaVA 1694, LLaVA-NeXT 345, OneVision 273 (a tied head), and Prismatic's vision weights that were never read.
"""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlmkit import VLM
from vlmkit.assemble import assemble
from vlmkit.errors import VlmkitError
from vlmkit.train.checkpoints import latest_checkpoint
from vlmkit.train.run import train_recipe

ENCODER = {
    "type": "vit", "image_size": 16, "patch_size": 4, "width": 16, "depth": 1, "heads": 2, "layer_scale": 0.1,
}  # fmt: skip
ALL = {part: {"lr": 1e-2} for part in ("encoder", "connector", "llm")}
PARTS = {
    "encoder": "encoders.0.blocks.0.qkv.weight",
    "scale": "encoders.0.blocks.0.layer_scale1",
    "connector": "connector.layers.0.weight",
    "embeddings": "language_model.model.embed_tokens.weight",
    "head": "language_model.lm_head.weight",
}


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def trained(request, tiny_recipe, tmp_path_factory):
    """A finished run that trained every part, and its recipe; its head has a weight of its own, or not."""
    recipe = tiny_recipe(
        encoder=ENCODER,
        llm_options={"tie_word_embeddings": request.param},
        stages=[{"train": ALL, "steps": 2, "warmup": 0}],
        splice={"row_separator": True},
        output=str(tmp_path_factory.mktemp("run") / "run"),
    )
    return train_recipe(recipe).path, recipe


def loaded(how, run, recipe):
    if how == "from_pretrained":
        return VLM.from_pretrained(run)
    return assemble(recipe.model_copy(update={"init_from": str(run)}))


@pytest.mark.parametrize("how", ["from_pretrained", "init_from"])
def test_each_trained_tensor_is_loaded_as_it_was_trained(trained, how):
    run, recipe = trained
    stored = load_file(latest_checkpoint(run, "only") / "trained.safetensors")
    before, after = assemble(recipe).state_dict(), loaded(how, run, recipe).state_dict()
    for name, tensor in stored.items():
        own = name.removeprefix("vlm.")
        assert torch.equal(after[own], tensor), own
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert set(PARTS.values()) <= moved
    assert any(name.startswith("splice.") for name in moved)
    head, words = after[PARTS["head"]], after[PARTS["embeddings"]]
    assert torch.equal(head, words) is recipe.model.llm.options["tie_word_embeddings"]


@pytest.fixture
def broken(trained, tmp_path):
    """A function: an edit of the tensors, and whether config.json ties the head, to a copy of the run."""
    run, recipe = trained

    def make(edit=None, tied=None):
        shutil.copytree(run, tmp_path / "run")
        stored = load_file(run / "model.safetensors")
        if edit is not None:
            edit(stored)
        save_file(stored, tmp_path / "run/model.safetensors", {"format": "pt"})
        config = json.loads((run / "config.json").read_text())
        if tied is not None:
            config["text_config"]["tie_word_embeddings"] = tied
        (tmp_path / "run/config.json").write_text(json.dumps(config))
        return tmp_path / "run", recipe

    return make


@pytest.mark.parametrize("how", ["from_pretrained", "init_from"])
@pytest.mark.parametrize("part", PARTS)
def test_a_tensor_that_is_lost_is_named(broken, how, part):
    name = PARTS[part]
    run, recipe = broken(lambda stored: stored.pop(name, None))
    tied = recipe.model.llm.options["tie_word_embeddings"]
    if part == "head" and tied:
        # It is stored once, under the name of the words.
        assert loaded(how, run, recipe).get_output_embeddings().weight is not None
        return
    with pytest.raises(VlmkitError, match=f"missing tensors .*{name}"):
        loaded(how, run, recipe)


@pytest.mark.parametrize("part", ["encoder", "connector"])
def test_a_tensor_under_another_name_is_named_twice(broken, part):
    name = PARTS[part]

    def rename(stored):
        stored[name + "s"] = stored.pop(name)

    run, recipe = broken(rename)
    with pytest.raises(VlmkitError, match=f"missing tensors {name}; unexpected tensors {name}s"):
        loaded("from_pretrained", run, recipe)


def test_a_head_of_its_own_is_never_replaced_by_the_words(trained, broken):
    """Nor left as it happened to be in memory, where config.json says the contrary of what is stored."""
    tied = trained[1].model.llm.options["tie_word_embeddings"]
    run, _ = broken(tied=not tied)
    if tied:
        with pytest.raises(VlmkitError, match=f"missing tensors {PARTS['head']}"):
            VLM.from_pretrained(run)
    else:
        loaded, stored = VLM.from_pretrained(run).state_dict(), load_file(run / "model.safetensors")
        assert all(torch.equal(loaded[PARTS[part]], stored[PARTS[part]]) for part in ("head", "embeddings"))
        assert not torch.equal(stored[PARTS["head"]], stored[PARTS["embeddings"]])
