"""Language models from checkpoints: every tensor of the model is stored, or loading says which is not."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from vlmkit import llm
from vlmkit.errors import VlmkitError
from vlmkit.llm.words import build_words_tokenizer

SIZE = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
TENSOR = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def checkpoint(tmp_path):
    """A function: a configuration and what is done to its stored tensors to the checkpoint's folder."""

    def make(config=None, change=lambda tensors: None):
        tokenizer = build_words_tokenizer(["a red circle"])
        config = config or LlamaConfig(vocab_size=len(tokenizer), **SIZE)
        model = AutoModelForCausalLM.from_config(config)
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        tensors = load_file(tmp_path / "model.safetensors")
        change(tensors)
        save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
        return model, str(tmp_path)

    return make


def renamed(tensors):
    tensors["model.layers.1.mlp.up.weight"] = tensors.pop(TENSOR)


CHANGES = {
    "missing": (lambda t: t.pop(TENSOR), f"missing tensors: {TENSOR}"),
    "renamed": (renamed, f"missing tensors: {TENSOR}"),
    "another shape": (lambda t: t.update({TENSOR: torch.zeros(3, 16)}), f"mismatched tensors: {TENSOR}"),
    "the head": (lambda t: t.pop("lm_head.weight"), r"missing tensors: lm_head\.weight"),
}


@pytest.mark.parametrize(("change", "says"), CHANGES.values(), ids=CHANGES)
def test_a_tensor_that_is_not_stored_is_named_and_never_made_up(checkpoint, change, says):
    """transformers would fill it with random numbers and train on."""
    _, folder = checkpoint(change=change)
    with pytest.raises(VlmkitError, match=says) as raised:
        llm.pretrained(folder, torch.float32)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["llama", "tied", "gpt2"])
def test_every_tensor_is_the_stored_one(checkpoint, kind):
    """A head that is tied to the embeddings is not stored, and not missing."""
    config = {
        "llama": None,
        "tied": LlamaConfig(vocab_size=40, tie_word_embeddings=True, **SIZE),
        "gpt2": GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2),
    }[kind]
    before, folder = checkpoint(config)
    model, _ = llm.pretrained(folder, torch.float32)
    after = model.state_dict()
    for name, tensor in before.state_dict().items():
        assert torch.equal(after[name][: len(tensor)], tensor), name
