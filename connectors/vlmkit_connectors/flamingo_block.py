"""The gated cross-attention block of Flamingo: attention over image tokens, a feed-forward layer, two gates.

The parameter names are those of OpenFlamingo.

Shapes: W width of image tokens, D of the language model, B rows, L text tokens, M most image tokens of a row,
H heads, d width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlmkit_connectors.attention import attend, split_heads
from vlmkit_connectors.base import InjectedBlock, Memory
from vlmkit_connectors.cross_attention import add_gated
from vlmkit_connectors.layers import mlp_layers


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
