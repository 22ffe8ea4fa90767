"""Sliding and chunked attention: a packed conversation has the logits that the model gives it alone."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from vlmkit.data.batch import text_tensors
from vlmkit.data.long_rows import join_rows
from vlmkit.data.masks import additive, branch_mask, segment_bounds
from vlmkit.data.pack import pack_prefix
from vlmkit.data.tokens import TokenRow
from vlmkit.llm.attend import SEGMENTED, attend_in_segments
from vlmkit.llm.windows import layer_masks
from vlmkit.tiny import LANGUAGE

SIZES = {**LANGUAGE, "vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
FAMILIES = {
    "mistral": {"sliding_window": 4},
    "qwen2": {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 1},
    "gemma2": {"sliding_window": 4},
    "gemma3_text": {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "llama4_text": {
        "attention_chunk_size": 4, "layer_types": ["chunked_attention", "full_attention"],
        "num_local_experts": 2, "interleave_moe_layer_step": 1, "intermediate_size_mlp": 64,
    },
}  # fmt: skip


@pytest.fixture(params=FAMILIES)
def model(request, roughen):
    known = AutoConfig.for_model(request.param)
    sizes = {name: size for name, size in SIZES.items() if hasattr(known, name)}
    config = AutoConfig.for_model(request.param, **{**sizes, **FAMILIES[request.param]})
    return roughen(AutoModelForCausalLM.from_config(config)).eval()


def prefixed():
    """A prefix of 6 tokens that conversations of 9, 13 and 7 tokens share."""
    draw = torch.Generator().manual_seed(0)
    shared, *own = (torch.randint(3, 60, (n,), generator=draw).tolist() for n in (6, 3, 7, 1))
    return [TokenRow((*shared, *ids, 2), (0.0,) * (6 + len(ids)) + (1.0,)) for ids in own]


def logits(model, batch, masks):
    if model.config._attn_implementation == "eager":
        by_kind = masks if isinstance(masks, dict) else {"": masks}
        added = {kind: additive(mask, torch.float32) for kind, mask in by_kind.items()}
        masks = added if isinstance(masks, dict) else added[""]
    segments = batch.get("segments_BL")
    more = {}
    if model.config._attn_implementation == SEGMENTED and segments is not None:
        more["segment_bounds"] = segment_bounds(segments)
    embeds = model.get_input_embeddings()(batch["input_ids_BL"])
    placed = {"position_ids": batch["positions_BL"], "use_cache": False}
    return model(inputs_embeds=embeds, attention_mask=masks, **placed, **more).logits[0]


def largest_gap(model, row, rows, limited=True):
    """Against each conversation alone and without a mask, as it is answered."""
    batch = text_tensors([row], 0)
    masks = branch_mask(batch["branches_BL"], batch.get("segments_BL"))
    if limited:
        masks = layer_masks(model.config, masks, batch["positions_BL"])
    found, places = logits(model, batch, masks), list(zip(row.segments or [0] * len(row.ids), row.branches))
    gaps = []
    for number, own in enumerate(rows):
        together = not row.segments
        wanted = {(0, 0), (0, number + 1)} if together else {(number, 0)}
        mine = [i for i, place in enumerate(places) if place in wanted]
        gaps.append((found[mine] - model(torch.tensor([own.ids])).logits[0]).abs().max())
    return float(max(gaps))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["alone", "branches", "segments"])
def test_packed_conversations_see_no_further_than_alone(model, kind):
    rows = prefixed()
    if kind == "alone":
        row, rows = pack_prefix(rows[1:2]), rows[1:2]
    elif kind == "branches":
        row = pack_prefix(rows)
    else:
        row = join_rows([pack_prefix([own]) for own in rows])
    for on in (False, True):
        attend_in_segments(model, on)
        assert largest_gap(model, row, rows) <= 1e-5
    # Without the limit the layers see more: the bar above tells the two apart.
    attend_in_segments(model, False)
    assert largest_gap(model, row, rows, limited=False) > 1e-2


def test_a_window_beyond_the_longest_conversation_takes_no_mask_of_its_own(model):
    short = text_tensors([pack_prefix([TokenRow((5, 6, 7, 8), (0.0, 0.0, 1.0, 1.0))])], 0)
    mask = branch_mask(short["branches_BL"])
    assert layer_masks(model.config, mask, short["positions_BL"]) is mask
    longer = text_tensors([pack_prefix([TokenRow((5, 6, 7, 8, 9), (0.0, 0.0, 1.0, 1.0, 1.0))])], 0)
    masks = layer_masks(model.config, branch_mask(longer["branches_BL"]), longer["positions_BL"])
    kinds = getattr(model.config, "layer_types", None)
    assert (set(masks) == set(kinds)) if kinds else masks.shape == (1, 1, 5, 5)
