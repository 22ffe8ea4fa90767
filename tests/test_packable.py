"""Packed rows are refused where they would not be worth what they are alone."""

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from vlmkit.apart import keeps_apart
from vlmkit.assemble import assemble, check_fit
from vlmkit.errors import UsageError
from vlmkit.recipe import Recipe

ROWS = [{"pack": "prefix"}, {"pack_length": 64}]
RWKV = {"hidden_size": 32, "num_hidden_layers": 2, "context_length": 64, "attention_hidden_size": 32}


@pytest.fixture
def recurrent(tiny_vlm, tiny_recipe, roughen):
    """A model whose language model passes a state from token to token."""
    model = tiny_vlm()
    config = AutoConfig.for_model("rwkv", **RWKV, vocab_size=model.config.text_config.vocab_size)
    model.language_model = roughen(AutoModelForCausalLM.from_config(config)).eval()
    model.config.text_config = config
    return model


@pytest.mark.parametrize("llm", ["llama", "gpt2", "gpt_neox", "gemma2", "opt"])
def test_attention_keeps_rows_apart(tiny_vlm, llm):
    model = tiny_vlm(llm)
    assert keeps_apart(model) and keeps_apart(model, shared=3) and not model.training


@pytest.mark.parametrize("words", [35, 77, 1001])
def test_a_vocabulary_that_a_step_divides_has_words_enough(tiny_vlm, monkeypatch, words):
    """Two conversations of the same words would tell nothing apart."""
    model = tiny_vlm()
    model.language_model.resize_token_embeddings(words)
    assert keeps_apart(model) and keeps_apart(model, shared=3)
    right = model.decode
    monkeypatch.setattr(
        model, "decode", lambda read, branches, segments=None, **k: right(read, branches, **k)
    )
    assert not keeps_apart(model)


def test_a_mask_that_is_not_heeded_is_noticed(tiny_vlm, monkeypatch):
    model = tiny_vlm()
    right = model.decode
    monkeypatch.setattr(
        model, "decode", lambda read, branches, segments=None, **k: right(read, branches, **k)
    )
    assert keeps_apart(model, shared=3) and not keeps_apart(model)
    monkeypatch.setattr(model, "decode", lambda read, branches, segments, **k: right(read, 0 * branches, **k))
    assert not keeps_apart(model, shared=3)


@pytest.mark.parametrize("rows", ROWS)
def test_a_language_model_with_a_state_is_refused(recurrent, tiny_recipe, rows):
    check_fit(tiny_recipe(stages=[{}]), recurrent)
    with pytest.raises(UsageError, match=r"'only': this rwkv model passes on .* use pack(_length)?: n"):
        check_fit(tiny_recipe(stages=[rows]), recurrent)


def test_a_connector_that_reads_the_question_is_refused(tiny_recipe):
    recipe = tiny_recipe(stages=[{"pack_length": 64}]).model_dump(mode="json")
    recipe["model"]["connector"] = {"type": "qformer", "question": True, "num_queries": 2, "heads": 2}
    recipe = Recipe.model_validate(recipe)
    with pytest.raises(UsageError, match=r"depend on the question.*pack_length: null"):
        check_fit(recipe, assemble(recipe))


def test_an_objective_without_text_is_refused(tiny_vlm, tiny_recipe):
    stage = {"pack_length": 64, "objective": "contrastive", "train": {"encoder": {"lr": 1e-3}}}
    with pytest.raises(UsageError, match="pack_length lays rows of text together, and contrastive has none"):
        check_fit(tiny_recipe(stages=[stage]), tiny_vlm())


def test_the_length_is_a_number_above_zero(tiny_recipe):
    assert tiny_recipe(stages=[{"pack_length": 64}]).stages[0].pack_length == 64
    assert tiny_recipe().stages[0].pack_length is None
    with pytest.raises(ValueError, match="pack_length"):
        tiny_recipe(stages=[{"pack_length": 0}])
