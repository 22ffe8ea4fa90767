"""Blocks run before the decoder layers of any causal language model, attention or not."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from vlmkit.errors import UsageError
from vlmkit.inject import inject, seeing
from vlmkit.sight import see
from vlmkit.tiny import LANGUAGE
from vlmkit_connectors import GatedCrossAttention

MARKER = 63
# What tiny sizes of some families are called beside the usual names.
MORE = {
    "n_layers": 2, "d_model": 64, "n_heads": 4, "n_inner": 128, "rotary_dim": 8, "num_layers": 2,
    "attention_types": [[["global", "local"], 1]], "num_experts": 4, "num_local_experts": 4,
    "num_experts_per_tok": 2, "moe_intermediate_size": 32, "lru_width": 64, "attention_window_size": 32,
    "vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
SOME = (
    "mistral",
    "qwen3",
    "gemma3_text",
    "phi3",
    "olmo2",
    "bloom",
    "mpt",
    "gptj",
    "mixtral",
    "mamba",
    "rwkv",
)
MANY = (
    "gemma", "phi", "olmo", "olmo3", "gpt_neo", "codegen", "stablelm", "starcoder2", "cohere", "cohere2",
    "granite", "smollm3", "qwen2_moe", "qwen3_moe", "olmoe", "glm", "glm4", "nemotron", "persimmon", "rwkv",
    "helium", "ministral", "exaone4", "jamba", "falcon_h1", "recurrent_gemma", "lfm2", "xglm", "biogpt",
    "ernie4_5", "arcee", "apertus", "seed_oss", "hunyuan_v1_dense", "gpt_oss", "minimax",
)  # fmt: skip


def tiny(family):
    known = AutoConfig.for_model(family)
    sizes = {name: size for name, size in (LANGUAGE | MORE).items() if hasattr(known, name)}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes)).eval()


@torch.no_grad()
@pytest.mark.parametrize("family", [*SOME, *(pytest.param(name, marks=pytest.mark.slow) for name in MANY)])
def test_closed_gates_change_nothing_and_open_ones_let_no_image_back(family):
    model = tiny(family)
    names = list(model.state_dict())
    ids = torch.randint(3, MARKER, (1, 7))
    ids[0, 2] = MARKER
    before = model(input_ids=ids, use_cache=False).logits
    width, layers = model.get_input_embeddings().weight.shape[1], model.config.num_hidden_layers
    blocks = GatedCrossAttention([16], width, layers, resampler="none", heads=2, head_dim=8)
    inject(model, blocks)
    assert list(model.state_dict()) == names

    def logits(seed):
        torch.manual_seed(seed)
        with seeing(blocks, see(blocks, ids == MARKER, [[torch.randn(5, 16)]])):
            return model(input_ids=ids, use_cache=False).logits[0]

    assert torch.equal(logits(0), before[0])
    for block in blocks.each().values():
        block.attn_gate.fill_(1.0)
    difference = (logits(0) - logits(1)).abs().amax(1)
    # Experts compute all their tokens at once, so that one token's last bits depend on the others.
    assert difference[:2].max() < 1e-6 and difference[2:].min() > 1e-4
    assert torch.equal(model(input_ids=ids, use_cache=False).logits, before)


def test_a_model_without_decoder_layers_is_refused():
    model = torch.nn.Linear(2, 2)
    model.config = AutoConfig.for_model("llama", num_hidden_layers=3)
    with pytest.raises(UsageError, match="no list of 3 decoder layers"):
        inject(model, GatedCrossAttention([16], 16, 3))
