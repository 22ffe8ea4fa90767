"""Flamingo's gated cross-attention: blocks inside the language model look at the latest image.

Shapes: V width of all encoders, W of image tokens (here V), D of the language model, B rows, L text tokens,
M most image tokens of a row, H heads, d width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlmkit_connectors.attention import attend, split_heads
from vlmkit_connectors.base import (
    Grid,
    ImageTokens,
    InjectedBlock,
    LayerInjection,
    Memory,
    Questions,
    VisionFeatures,
)
from vlmkit_connectors.checks import check_sizes
from vlmkit_connectors.cross_attention import Media, Resampler, add_gated, places
from vlmkit_connectors.layers import mlp_layers


class GatedCrossAttention(LayerInjection):
    """Gated blocks before every `every`-th decoder layer, over latents of a perceiver resampler.

    Flamingo (Alayrac et al. 2022, https://arxiv.org/abs/2204.14198): a text token sees only the image whose
    marker is the last one before it. Published: `every=1` for 3B, 4 for 9B, 7 for 80B; `depth=6`. Blocks have
    OpenFlamingo's parameter names. What differs: the latents are of a view, so an image of several tiles has
    several times 64; there are no time embeddings of video frames.

    Args:
        vision_widths: Width of each encoder; several are concatenated.
        text_width: Width of the language model's embeddings.
        text_layers: Number of its decoder layers.
        every: Blocks stand before layers n (from 0) where `every` divides n + 1.
        resampler: `perceiver`, or `none`: blocks look at all patches.
        num_latents: Latents of the resampler, a view.
        depth: Layers of the resampler.
        heads: Heads, of blocks and resampler.
        head_dim: Width of a head; `heads * head_dim` need not be the width of anything else.
        ff_mult: Feed-forward layers are this many times as wide as their input.
    """

    source = "Flamingo, https://arxiv.org/abs/2204.14198"

    def __init__(
        self,
        vision_widths: Sequence[int],
        text_width: int,
        text_layers: int,
        every: int = 1,
        resampler: Resampler = "perceiver",
        num_latents: int = 64,
        depth: int = 6,
        heads: int = 8,
        head_dim: int = 64,
        ff_mult: int = 4,
    ) -> None:
        seen, name = sum(vision_widths), "gated_cross_attention"
        super().__init__(text_width, seen)
        check_sizes(name, heads=heads, head_dim=head_dim, ff_mult=ff_mult)
        self.media = Media(name, seen, resampler, num_latents, depth, heads, head_dim, ff_mult)
        for layer in places(name, text_layers, every):
            self.blocks[str(layer)] = FlamingoBlock(text_width, seen, heads, head_dim, ff_mult)

    @classmethod
    def tiny_options(cls) -> dict[str, Any]:
        """See `Connector.tiny_options`."""
        return {"every": 1, "num_latents": 4, "depth": 1, "heads": 2, "head_dim": 8}

    def num_tokens(self, grid: Grid) -> int:
        """See `Connector.num_tokens`: tokens that the blocks look at, not of the sequence."""
        return self.media.num_tokens(grid)

    def token_grid(self, grid: Grid) -> Grid | None:
        """See `Connector.token_grid`."""
        return self.media.token_grid(grid)

    def forward(self, features: Sequence[VisionFeatures], text: Questions | None = None) -> ImageTokens:
        """See `LayerInjection`; tokens are as wide as the encoders. The question is not looked at."""
        tokens: ImageTokens = self.media(features)
        return tokens


class FlamingoBlock(InjectedBlock):
    """Cross-attention, then a feed-forward layer for all tokens, each behind a tanh gate.

    Computes in its own data type and gives that of the hidden states.

    Args:
        text_width: Width D.
        media_width: Width W.
        heads: Heads H.
        head_dim: Width d of a head.
        ff_mult: The feed-forward layer is this many times as wide as D.
    """

    def __init__(self, text_width: int, media_width: int, heads: int, head_dim: int, ff_mult: int) -> None:
        super().__init__()
        self.attn = MaskedCrossAttention(text_width, media_width, heads, head_dim)
        self.attn_gate = nn.Parameter(torch.empty(1))
        inside = mlp_layers([text_width, ff_mult * text_width, text_width], bias=False)
        self.ff = nn.Sequential(nn.LayerNorm(text_width), *inside)
        self.ff_gate = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Both gates to zero: the language model is as it was."""
        self.attn_gate.zero_()
        self.ff_gate.zero_()

    def remember(self, tokens_BMW: Tensor) -> Memory:
        """See `InjectedBlock.remember`: keys and values, (B, H, M, d) each."""
        keys, values = self.attn.to_kv(tokens_BMW).chunk(2, dim=-1)
        return split_heads(keys, self.attn.heads), split_heads(values, self.attn.heads)

    def forward(self, hidden_BLD: Tensor, memory: Memory, seen_BLM: Tensor) -> Tensor:
        """See `InjectedBlock.forward`."""
        own = self.attn.norm.weight.dtype
        hidden_BLD = add_gated(hidden_BLD, self.attn_gate, self.attn(hidden_BLD.to(own), memory, seen_BLM))
        return add_gated(hidden_BLD, self.ff_gate, self.ff(hidden_BLD.to(own)))


class MaskedCrossAttention(nn.Module):
    """Queries of normalised text, keys and values of image tokens as they are; no biases."""

    def __init__(self, text_width: int, media_width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        inner = heads * head_dim
        self.norm = nn.LayerNorm(text_width)
        self.to_q = nn.Linear(text_width, inner, bias=False)
        self.to_kv = nn.Linear(media_width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, text_width, bias=False)

    def forward(self, hidden_BLD: Tensor, memory: Memory, seen_BLM: Tensor) -> Tensor:
        """What each text token sees, (B, L, D)."""
        queries = split_heads(self.to_q(self.norm(hidden_BLD)), self.heads)
        looked_BLD: Tensor = self.to_out(attend(queries, memory, seen_BLM))
        return looked_BLD
