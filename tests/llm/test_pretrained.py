"""Language models from checkpoints: every tensor of the model is stored, or loading says which is not."""

import json

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
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


def test_adapters_alone_are_refused_and_merged_as_told_they_are_taken(checkpoint, tmp_path):
    """Beside the weights they would train, and be saved in a run that nothing can load."""
    base, folder = checkpoint()
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapters")
    build_words_tokenizer(["a red circle"]).save_pretrained(tmp_path / "adapters")
    config = tmp_path / "adapters/adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": folder}))
    with pytest.raises(VlmkitError, match=r"adapters' is adapters over another one; merge them first"):
        llm.pretrained(str(tmp_path / "adapters"), torch.float32)
    merged = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapters").merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    build_words_tokenizer(["a red circle"]).save_pretrained(tmp_path / "merged")
    taken, _ = llm.pretrained(str(tmp_path / "merged"), torch.float32)
    ids = torch.tensor([[2, 3, 4]])
    with torch.no_grad():
        expected = adapted(ids).logits
        assert (taken(ids).logits[..., : expected.shape[-1]] - expected).abs().max() <= 1e-6
