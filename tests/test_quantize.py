"""Four bits where they belong: in the language model's linear layers, and nowhere else."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from vlmkit import VLM
from vlmkit.errors import UsageError
from vlmkit.quantize import count_quantized, load_quantized, memory_bytes, quantization_config

NEW = {"max_new_tokens": 6}
# bitsandbytes computes in blocks of 64 numbers, and on some processors takes no others.
WIDE = {"hidden_size": 64, "intermediate_size": 256}


def linear_layers(model):
    """Linear layers of the language model but its head."""
    head = model.get_output_embeddings()
    layers = (m for m in model.language_model.modules() if m is not head)
    return sum(isinstance(m, nn.Linear | Conv1D) for m in layers)


@pytest.fixture
def saved(tiny_vlm, tiny_clip, tmp_path):
    """A function: family and options to a model with a CLIP encoder, and the folder it is saved in."""

    def save(llm="llama", **options):
        model = tiny_vlm(llm, encoder=tiny_clip, llm_options=options)
        model.save_pretrained(tmp_path / "model")
        return model, tmp_path / "model"

    return save


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("llm", ["llama", "gpt2", "opt", "gpt_neox"])
def test_linear_layers_of_the_language_model_alone(saved, llm, tied):
    """Not the encoder with its q_proj, not the connector, not the head, tied to the embedding or not."""
    model, folder = saved(llm, tie_word_embeddings=tied)
    small = load_quantized(folder, "nf4")
    counts = count_quantized(small)
    assert counts == {"encoder": 0, "connector": 0, "llm": linear_layers(model), "lm_head": 0}
    assert counts["llm"] > 0
    assert (small.get_input_embeddings().weight is small.get_output_embeddings().weight) is tied
    for part in ("encoders", "connector"):
        ours, theirs = getattr(model, part).state_dict(), getattr(small, part).state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("method", ["nf4", "fp4"])
def test_it_is_smaller_answers_and_stays_close(saved, noise, method):
    model, folder = saved(**WIDE)
    small = load_quantized(folder, method).eval()
    assert memory_bytes(small) < 0.6 * memory_bytes(model)
    assert small.ask(noise(1), "what color is it?", **NEW)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        exact, rounded = model(ids).logits, small(ids).logits
    similar = nn.functional.cosine_similarity(exact, rounded, dim=-1)
    assert float(similar.min()) > 0.8 and not torch.equal(exact, rounded)


def test_memory_counts_what_a_layer_needs_to_be_read_back(saved):
    """Half a byte a weight, a byte of scale for 64 of them, and the scales' own constants."""
    _, folder = saved(**WIDE)
    small = load_quantized(folder, "nf4")
    layer = small.language_model.model.layers[0].mlp.up_proj
    numbers = 64 * 256
    stored, scales = numbers // 2, numbers // 64
    # 256 values of the scales' table, 16 of the weights', one scale for 256 scales, and an offset: float32.
    assert memory_bytes(layer) == stored + scales + 4 * (256 + 16 + 1 + 1)


def test_a_quantized_model_comes_back_bit_equal(saved, noise, tmp_path):
    _, folder = saved(**WIDE)
    small = load_quantized(folder, "nf4").eval()
    small.save_pretrained(tmp_path / "small")
    again = VLM.from_pretrained(tmp_path / "small").eval()
    assert count_quantized(again) == count_quantized(small)
    ours, theirs = small.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.equal(small(ids).logits, again(ids).logits)
    assert small.ask(noise(1), "say yes", **NEW) == again.ask(noise(1), "say yes", **NEW)


def test_another_method_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match=r"'nf5'; did you mean 'nf4'\? \(known: fp4, nf4\)"):
        quantization_config("nf5")
