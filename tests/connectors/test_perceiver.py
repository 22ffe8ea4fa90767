"""The perceiver: Flamingo's against its formulas, Idefics2's against transformers."""

import math

import pytest
import torch
from torch import nn
from transformers import Idefics2Config
from transformers.models.idefics2.modeling_idefics2 import Idefics2Connector

from vlmkit_connectors import PerceiverConnector, PerceiverResampler, VisionFeatures

GRIDS = [(4, 4), (3, 5), (1, 7), (2, 2), (9, 8)]
V, D = 6, 16


def normed(x, weight, bias):
    """Layer norm, from its formula."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias


def flamingo_by_hand(weights, view_NV, depth, heads, head_dim):
    """One view through the resampler of OpenFlamingo: formulas, one head after another."""
    latents = weights["latents"]
    for layer in range(depth):
        own = {
            name.removeprefix(f"layers.{layer}."): w
            for name, w in weights.items()
            if name.startswith(f"layers.{layer}.")
        }
        media = normed(view_NV, own["norm_media.weight"], own["norm_media.bias"])
        asking = normed(latents, own["norm_latents.weight"], own["norm_latents.bias"])
        looked = torch.cat([media, asking])
        inner = heads * head_dim
        keys, values = own["kv.weight"][:inner], own["kv.weight"][inner:]
        update = torch.zeros_like(latents)
        for head in range(heads):
            part = slice(head * head_dim, (head + 1) * head_dim)
            query, key, value = (
                x @ w[part].T for x, w in ((asking, own["q.weight"]), (looked, keys), (looked, values))
            )
            scores = (query @ key.T / math.sqrt(head_dim)).exp()
            update += (scores / scores.sum(-1, keepdim=True)) @ value @ own["out.weight"][:, part].T
        latents = latents + update
        inside = normed(latents, own["norm_ff.weight"], own["norm_ff.bias"]) @ own["ff.0.weight"].T
        inside = inside * 0.5 * (1 + torch.erf(inside / math.sqrt(2)))
        latents = latents + inside @ own["ff.2.weight"].T
    return normed(latents, weights["norm.weight"], weights["norm.bias"])


@pytest.mark.parametrize(("depth", "heads", "head_dim"), [(2, 3, None), (3, 2, 5), (1, 1, 4)])
def test_flamingo_equals_its_formulas(depth, heads, head_dim, features, roughen):
    """Exactly in float64; in float32 up to rounding."""
    options = {"num_latents": 5, "depth": depth, "heads": heads, "head_dim": head_dim}
    connector, seen = roughen(PerceiverConnector([V], D, **options)), features(GRIDS, V)
    single = connector([seen]).tokens_ND
    connector.double()
    seen = VisionFeatures(seen.patches_TV.double(), seen.grids_I2, seen.image_of_view_I)
    weights = connector.resampler.state_dict()
    by_hand = [flamingo_by_hand(weights, view, depth, heads, head_dim or V // heads) for view in seen.views()]
    expected = connector.after(torch.cat(by_hand))
    assert (connector([seen]).tokens_ND - expected).abs().max() < 1e-12
    assert (single - expected).abs().max() < 1e-5 * expected.abs().max()
    with torch.no_grad():
        connector.resampler.layers[-1].norm_media.bias += 0.1
    assert (connector([seen]).tokens_ND - expected).abs().max() > 1e-3


def test_a_latent_that_asks_nothing_gets_the_mean():
    """Without queries attention is even: a mean over patches and latents, each normed to +-1."""
    resampler = PerceiverResampler(2, num_latents=1, depth=1, heads=1)
    layer = resampler.layers[0]
    resampler.norm = nn.Identity()
    with torch.no_grad():
        resampler.latents.copy_(torch.tensor([[4.0, 0.0]]))
        layer.q.weight.zero_()
        layer.kv.weight.copy_(torch.eye(2).repeat(2, 1))
        layer.out.weight.copy_(torch.eye(2))
        layer.ff[2].weight.zero_()
    media = torch.tensor([[[3.0, 1.0], [0.0, 5.0], [2.0, 1.0]]])
    # Values +1 -1 +1 and, of the latent itself, +1: the mean is 0.5.
    assert resampler(media).flatten().tolist() == pytest.approx([4.5, -0.5], abs=1e-4)
    # Without the last patch +1 -1 +1: a third.
    masked = resampler(media, torch.tensor([[True, True, False]]))
    assert masked.flatten().tolist() == pytest.approx([4 + 1 / 3, -1 / 3], abs=1e-4)


def test_the_published_sizes_of_openflamingo():
    """6 layers with 2 norms of 2 * 1024, 4 matrices' worth of 1024 x 512, FF with a norm; a norm, latents."""
    with torch.device("meta"):
        resampler = PerceiverResampler(1024, 64, depth=6, heads=8, head_dim=64)
    layer = 3 * 2 * 1024 + 4 * 1024 * 512 + 2 * 4 * 1024**2
    assert sum(p.numel() for p in resampler.parameters()) == 6 * layer + 2 * 1024 + 64 * 1024


@pytest.fixture(scope="module")
def idefics2(roughen):
    """transformers' connector: 4 heads of 6 for a width of 16, two of keys."""
    sizes = {"resampler_n_latents": 5, "resampler_depth": 2, "resampler_n_heads": 4, "resampler_head_dim": 6}
    config = Idefics2Config(
        vision_config={"hidden_size": V, "num_attention_heads": 1},
        text_config={"model_type": "mistral", "hidden_size": D, "intermediate_size": 24, "vocab_size": 4},
        perceiver_config={"hidden_size": D, "num_key_value_heads": 2, **sizes},
    )
    return roughen(Idefics2Connector(config)).eval()


def gated(theirs, name):
    return {
        f"{part}.weight": theirs[f"{name}.{part}.weight"] for part in ("gate_proj", "up_proj", "down_proj")
    }


def ours(module):
    """Our connector with the weights of transformers' one."""
    theirs = module.state_dict()
    state = {f"before.{k}": w for k, w in gated(theirs, "modality_projection").items()}
    state["resampler.latents"] = theirs["perceiver_resampler.latents"]
    state["resampler.norm.weight"] = theirs["perceiver_resampler.norm.weight"]
    for i in range(2):
        old, new = f"perceiver_resampler.layers.{i}", f"resampler.layers.{i}"
        state |= {f"{new}.ff.{k}": w for k, w in gated(theirs, f"{old}.mlp").items()}
        state[f"{new}.norm_media.weight"] = theirs[f"{old}.input_context_norm.weight"]
        state[f"{new}.norm_latents.weight"] = theirs[f"{old}.input_latents_norm.weight"]
        state[f"{new}.norm_ff.weight"] = theirs[f"{old}.post_attention_layernorm.weight"]
        state[f"{new}.q.weight"] = theirs[f"{old}.self_attn.q_proj.weight"]
        state[f"{new}.kv.weight"] = torch.cat([theirs[f"{old}.self_attn.{k}_proj.weight"] for k in "kv"])
        state[f"{new}.out.weight"] = theirs[f"{old}.self_attn.o_proj.weight"]
    sizes = {"num_latents": 5, "depth": 2, "heads": 4, "head_dim": 6, "kv_heads": 2, "intermediate": 24}
    connector = PerceiverConnector([V], D, "idefics2", **sizes)
    connector.load_state_dict(state)
    return connector


def padded(seen):
    """Views padded with noise at the end, as nothing may look at it, and the mask."""
    views = seen.views()
    longest = max(map(len, views))
    patches = torch.randn(len(views), longest, V, generator=torch.Generator().manual_seed(9)) * 3
    mask = torch.zeros(len(views), longest, dtype=torch.long)
    for i, view in enumerate(views):
        patches[i, : len(view)], mask[i, : len(view)] = view, 1
    return patches, mask


@torch.no_grad()
def test_it_equals_idefics2_with_views_padded_there(idefics2, features):
    seen = features(GRIDS, V)
    patches, mask = padded(seen)
    theirs = idefics2(patches, mask)
    given = ours(idefics2)([seen]).tokens_ND.view_as(theirs)
    assert theirs.std(dim=0).mean() > 0.05
    assert (given - theirs).abs().max() < 1e-5
    assert (given - idefics2(patches, torch.ones_like(mask))).abs().max() > 1e-2
    again = VisionFeatures.from_padded(patches, mask, seen.grids_I2, seen.image_of_view_I)
    assert torch.equal(ours(idefics2)([again]).tokens_ND.view_as(theirs), given)


def swap_keys_and_values(connector):
    weight = connector.resampler.layers[0].kv.weight
    weight.copy_(weight.roll(len(weight) // 2, 0))


def swap_key_heads(connector):
    """Heads 0 1 use keys 1, heads 2 3 keys 0."""
    weight = connector.resampler.layers[0].kv.weight
    weight.copy_(weight.view(2, 2, 6, D).flip(1).view_as(weight))


def gate_the_wrong_one(connector):
    mlp = connector.before
    mlp.gate_proj, mlp.up_proj = mlp.up_proj, mlp.gate_proj


def swap_norms(connector):
    layer = connector.resampler.layers[1]
    layer.norm_media, layer.norm_latents = layer.norm_latents, layer.norm_media


@torch.no_grad()
@pytest.mark.parametrize(
    "mistake",
    [swap_keys_and_values, swap_key_heads, gate_the_wrong_one, swap_norms],
    ids=lambda m: m.__name__,
)
def test_mistakes_are_seen(mistake, idefics2, features):
    seen = features(GRIDS, V)
    theirs = idefics2(*padded(seen))
    connector = ours(idefics2)
    mistake(connector)
    assert (connector([seen]).tokens_ND.view_as(theirs) - theirs).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("options", "before", "after"),
    [
        ({}, "Identity", "Linear"),
        ({"width": 8}, "Linear", "Linear"),
        ({"variant": "idefics2"}, "GatedMLP", "Identity"),
        ({"variant": "idefics2", "width": 8}, "GatedMLP", "Linear"),
    ],
)
def test_the_resampler_works_at_the_vision_or_the_text_width(options, before, after, features):
    connector = PerceiverConnector([V], D, heads=2, num_latents=3, **options)
    assert (type(connector.before).__name__, type(connector.after).__name__) == (before, after)
    assert connector([features(GRIDS, V)]).tokens_ND.shape == (3 * len(GRIDS), D)


def test_heads_need_not_divide_the_width_if_their_width_is_given(features):
    connector = PerceiverConnector([V], D, heads=4, head_dim=5)
    assert connector([features([(2, 2)], V)]).counts == (64,)


@pytest.mark.parametrize("variant", ["flamingo", "idefics2"])
def test_latents_begin_with_a_small_deviation(variant):
    connector = PerceiverConnector([64], D, variant, num_latents=200)
    assert connector.resampler.latents.std().item() == pytest.approx(0.02, rel=0.05)
