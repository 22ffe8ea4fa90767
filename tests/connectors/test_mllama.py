"""Llama 3.2 Vision's layers against transformers: one layer, a whole stack, and where ours differs."""

import pytest
import torch
from transformers import LlamaConfig, LlamaModel, MllamaTextConfig
from transformers.models.mllama.modeling_mllama import (
    MllamaCrossAttentionDecoderLayer,
    MllamaTextModel,
    MllamaTextRMSNorm,
    _prepare_cross_attention_mask,
)

from vlmkit_connectors import MllamaCrossAttention
from vlmkit_connectors.layers import RMSNorm
from vlmkit_connectors.mllama_block import MllamaBlock

WIDTH, HEADS, KV_HEADS, INSIDE = 16, 4, 2, 24
ROWS, TEXT, IMAGES, TILES, PATCHES = 2, 6, 2, 2, 3
SHARED = {
    "hidden_size": WIDTH, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
    "intermediate_size": INSIDE, "vocab_size": 20, "rms_norm_eps": 1e-5, "pad_token_id": 0,
    "attn_implementation": "eager",
}  # fmt: skip


@pytest.fixture
def scene():
    """Hidden states, image tokens, and Mllama's mask: which tiles each text token may look at."""
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(ROWS, TEXT, WIDTH, generator=generator)
    tokens = torch.randn(ROWS, IMAGES * TILES * PATCHES, WIDTH, generator=generator)
    mask = torch.zeros(ROWS, TEXT, IMAGES, TILES)
    mask[0, 1:4, 0], mask[0, 4:, 1, :1] = 1, 1
    mask[1, 2:, :, 0] = 1
    return hidden, tokens, mask


def seen_by(mask):
    return mask.repeat_interleave(PATCHES, dim=3).flatten(2).bool()


def theirs_of(layer, hidden, tokens, mask):
    additive, full_row = _prepare_cross_attention_mask(mask, PATCHES, torch.float32)
    return layer(
        hidden,
        cross_attention_states=tokens,
        cross_attention_mask=additive,
        attention_mask=None,
        full_text_row_masked_out_mask=full_row,
    )


@pytest.fixture
def pair(roughen):
    """Their layer and ours with the same weights, by the same names."""
    config = MllamaTextConfig(**SHARED, num_hidden_layers=5, cross_attention_layers=[3])
    theirs = roughen(MllamaCrossAttentionDecoderLayer(config, 3)).eval()
    ours = MllamaBlock(WIDTH, HEADS, KV_HEADS, INSIDE)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@torch.no_grad()
def test_a_layer_equals_mllamas(pair, scene):
    theirs, ours = pair
    hidden, tokens, mask = scene
    seen = seen_by(mask)
    sighted = seen.any(-1)
    expected = theirs_of(theirs, hidden, tokens, mask)[sighted]
    given = ours(hidden, ours.remember(tokens), seen)[sighted]
    assert len(given) == 9 and (given - expected).abs().max() < 1e-5
    assert (given - hidden[sighted]).abs().max() > 0.1

    keys, values = ours.remember(tokens)
    mistakes = [ours(hidden, (keys.flip(1), values.flip(1)), seen)]
    for name in ("cross_attn.k_norm", "cross_attn.q_norm", "post_attention_layernorm"):
        scale = ours.get_submodule(name).weight
        scale *= 1.5
        mistakes.append(ours(hidden, ours.remember(tokens), seen))
        scale /= 1.5
    assert all((wrong[sighted] - expected).abs().max() > 1e-3 for wrong in mistakes)


@torch.no_grad()
def test_text_before_any_image_sees_none_unlike_mllamas(pair, scene):
    """There, such text attends to all image tokens of its row; here it leaves as it came."""
    theirs, ours = pair
    hidden, tokens, mask = scene
    blind = ~seen_by(mask).any(-1)
    other = tokens + torch.randn(tokens.shape, generator=torch.Generator().manual_seed(6))
    leak = theirs_of(theirs, hidden, tokens, mask) - theirs_of(theirs, hidden, other, mask)
    assert blind.sum() == 3 and leak[blind].abs().max() > 0.1
    for own in (tokens, other):
        assert torch.equal(ours(hidden, ours.remember(own), seen_by(mask))[blind], hidden[blind])


@torch.no_grad()
def test_blocks_before_llamas_layers_are_mllamas_stack(roughen, scene):
    """Layers 3 and 8 of 10 stand before layers 3 and 7 of the 8 others."""
    _, tokens, _ = scene
    stack = [3, 8]
    config = MllamaTextConfig(**SHARED, num_hidden_layers=10, cross_attention_layers=stack)
    theirs = roughen(MllamaTextModel(config)).eval()
    rope = {"rope_type": "default", "rope_theta": config.rope_parameters["rope_theta"]}
    llama = LlamaModel(LlamaConfig(**SHARED, num_hidden_layers=8, rope_parameters=rope)).eval()
    connector = MllamaCrossAttention([WIDTH], WIDTH, 8, heads=HEADS, kv_heads=KV_HEADS, intermediate=INSIDE)
    own = [layer for n, layer in enumerate(theirs.layers) if n not in stack]
    for layer, copy in zip(own, llama.layers, strict=True):
        copy.load_state_dict(layer.state_dict())
    llama.norm.load_state_dict(theirs.norm.state_dict())
    for n, block in zip(stack, connector.blocks.values(), strict=True):
        block.load_state_dict(theirs.layers[n].state_dict())

    mask = torch.ones(ROWS, TEXT, IMAGES, TILES)
    mask[0, :3, 1] = 0
    for name, block in connector.blocks.items():
        memory = block.remember(tokens)
        llama.layers[int(name)].register_forward_pre_hook(
            lambda _, given, block=block, memory=memory: (block(given[0], memory, seen_by(mask)), *given[1:])
        )
    additive, full_row = _prepare_cross_attention_mask(mask, PATCHES, torch.float32)
    embeds = torch.randn(ROWS, TEXT, WIDTH, generator=torch.Generator().manual_seed(7))
    expected = theirs(
        inputs_embeds=embeds,
        cross_attention_states=tokens,
        cross_attention_mask=additive,
        full_text_row_masked_out_mask=full_row,
        use_cache=False,
    ).last_hidden_state
    given = llama(inputs_embeds=embeds, use_cache=False).last_hidden_state
    assert (given - expected).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_rounds_as_theirs(roughen, dtype):
    theirs = roughen(MllamaTextRMSNorm(WIDTH, eps=1e-5)).to(dtype)
    ours = RMSNorm(WIDTH, 1e-5).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    x = 3 * torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(8)).to(dtype)
    assert torch.equal(ours(x), theirs(x))


def test_published_sizes():
    """The 11B model's layers, counted without memory for them."""
    with torch.device("meta"):
        connector = MllamaCrossAttention([7680], 4096, 32, heads=32, kv_heads=8, intermediate=14336)
        config = MllamaTextConfig(rms_norm_eps=1e-5)
        theirs = MllamaCrossAttentionDecoderLayer(config, 3).state_dict()
    assert list(connector.blocks) == [str(n) for n in range(3, 32, 4)]
    stacked = [int(n) + i for i, n in enumerate(connector.blocks)]
    assert stacked == config.cross_attention_layers
    ours = connector.each().get(31).state_dict()
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}
    default = MllamaCrossAttention([4], 16, 4).each().get(3)
    assert default.mlp.up_proj.out_features == 56 and default.cross_attn.kv_heads == 8
