"""Flamingo's block: a case by hand, and an independent reference in loops."""

import math

import pytest
import torch
from torch.nn import functional as F

from vlmkit_connectors import GatedCrossAttention
from vlmkit_connectors.flamingo_block import FlamingoBlock


def filled(block, **weights):
    """The block with these weights, and norms without an epsilon."""
    parameters = dict(block.named_parameters())
    for name, values in weights.items():
        own = parameters[name.replace("__", ".")]
        own.data.copy_(torch.tensor(values).view_as(own))
    block.attn.norm.eps = block.ff[0].eps = 0.0
    return block


def test_one_head_by_hand():
    """Scores 0 and ln 3 weigh the values 0 and 2 ln 3 by 1/4 and 3/4; both gates are open by half.

    Text (3, 1) is normalised to (1, -1), and so is what the feed-forward layer gets: GELU(1) = 0.8413, and
    GELU(-1) = -0.1587.
    """
    block = filled(
        FlamingoBlock(text_width=2, media_width=1, heads=1, head_dim=1, ff_mult=1),
        attn__to_q__weight=[1.0, 0.0],
        attn__to_kv__weight=[1.0, 2.0],
        attn__to_out__weight=[1.0, 0.0],
        attn_gate=[math.atanh(0.5)],
        ff__1__weight=[1.0, 0.0, 0.0, 1.0],
        ff__3__weight=[1.0, 0.0, 0.0, 1.0],
        ff_gate=[math.atanh(0.5)],
    )
    media = torch.tensor([[[0.0], [math.log(3)], [7.0]]])
    seen = torch.tensor([[[True, True, False], [False, False, False], [False, True, False]]])
    given = block(torch.tensor([[[3.0, 1.0]] * 3]), block.remember(media), seen)
    first, second = 0.5 * 0.8413447, 0.5 * -0.1586553
    expected = [
        [3 + 0.75 * math.log(3) + first, 1 + second],
        [3 + first, 1 + second],
        [3 + math.log(3) + first, 1 + second],
    ]
    assert (given[0] - torch.tensor(expected)).abs().max() < 1e-6


def reference(block, hidden, media, seen):
    """One text token, one head and one image token at a time."""
    p = {name: parameter.detach() for name, parameter in block.named_parameters()}
    heads, inner = block.attn.heads, p["attn.to_q.weight"].shape[0]
    out = torch.empty_like(hidden)
    for b, t in torch.cartesian_prod(torch.arange(hidden.shape[0]), torch.arange(hidden.shape[1])):
        x = hidden[b, t]
        query = p["attn.to_q.weight"] @ norm(x, p["attn.norm.weight"], p["attn.norm.bias"])
        mixed = torch.zeros(inner)
        for h in range(heads):
            own = slice(h * inner // heads, (h + 1) * inner // heads)
            in_sight = [media[b, m] for m in range(media.shape[1]) if seen[b, t, m]]
            keys = [(p["attn.to_kv.weight"][:inner] @ token)[own] for token in in_sight]
            values = [(p["attn.to_kv.weight"][inner:] @ token)[own] for token in in_sight]
            weights = [math.exp(float(query[own] @ k) / math.sqrt(inner // heads)) for k in keys]
            for weight, value in zip(weights, values):
                mixed[own] += weight / sum(weights) * value
        x = x + math.tanh(p["attn_gate"]) * (p["attn.to_out.weight"] @ mixed)
        inside = F.gelu(p["ff.1.weight"] @ norm(x, p["ff.0.weight"], p["ff.0.bias"]))
        out[b, t] = x + math.tanh(p["ff_gate"]) * (p["ff.3.weight"] @ inside)
    return out


def norm(x, weight, bias):
    centred = x - x.mean()
    return centred / (centred.square().mean() + 1e-5).sqrt() * weight + bias


@pytest.fixture
def scene():
    generator = torch.Generator().manual_seed(3)
    hidden, media = (torch.randn(2, n, w, generator=generator) for n, w in [(4, 10), (5, 7)])
    seen = torch.rand(2, 4, 5, generator=generator) < 0.5
    seen[0, 0] = False
    return hidden, media, seen


def test_it_equals_loops(roughen, scene):
    hidden, media, seen = scene
    block = roughen(FlamingoBlock(10, 7, heads=3, head_dim=4, ff_mult=2))
    expected = reference(block, hidden, media, seen)
    with torch.no_grad():
        assert (block(hidden, block.remember(media), seen) - expected).abs().max() < 1e-5
        # The reference would see a normalised medium, swapped keys and values, and gates swapped.
        normed = block(hidden, block.remember(F.layer_norm(media, (7,))), seen)
        keys, values = block.remember(media)
        swapped = block(hidden, (values, keys), seen)
        block.attn_gate, block.ff_gate = block.ff_gate, block.attn_gate
        gates = block(hidden, block.remember(media), seen)
    for mistaken in (normed, swapped, gates):
        assert (mistaken - expected).abs().max() > 1e-2


def test_blind_text_gets_the_feed_forward_layer_alone(roughen, scene):
    hidden, media, seen = scene
    block = roughen(FlamingoBlock(10, 7, heads=3, head_dim=4, ff_mult=2))
    alone = hidden + block.ff_gate.tanh() * block.ff(hidden)
    given = block(hidden, block.remember(media), torch.zeros_like(seen))
    assert torch.equal(given, alone) and (given - hidden).abs().max() > 1e-2


def test_only_the_norms_have_biases():
    names = {n for n, _ in GatedCrossAttention([6], 8, 2, resampler="none").blocks.named_parameters()}
    assert {n for n in names if n.endswith("bias")} == {
        f"{layer}.{norm}.bias" for layer in (0, 1) for norm in ("attn.norm", "ff.0")
    }
