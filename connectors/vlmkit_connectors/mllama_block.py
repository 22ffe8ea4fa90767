"""The cross-attention layer of Llama 3.2 Vision: grouped queries over image tokens, an MLP, two gates.

The parameter names are those of transformers' `MllamaCrossAttentionDecoderLayer`.

Shapes: D width of the language model and of image tokens, B rows, L text tokens, M most image tokens of a
row, H heads, K heads of keys and values, d width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlmkit_connectors.attention import attend, split_heads
from vlmkit_connectors.base import InjectedBlock, Memory
from vlmkit_connectors.cross_attention import add_gated
from vlmkit_connectors.layers import GatedMLP, RMSNorm

EPS = 1e-5  # of the published normalisations


class MllamaBlock(InjectedBlock):
    """Cross-attention, then a SiLU-gated MLP, each behind a tanh gate, for text that sees an image.

    Computes in its own data type and gives that of the hidden states.

    Args:
        width: Width D of text and image tokens.
        heads: Heads H.
        kv_heads: Heads K of keys and values.
        intermediate: Width inside the MLP.
    """

    def __init__(self, width: int, heads: int, kv_heads: int, intermediate: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(width, EPS)
        self.cross_attn = GroupedCrossAttention(width, heads, kv_heads)
        self.cross_attn_attn_gate = nn.Parameter(torch.empty(1))
        self.post_attention_layernorm = RMSNorm(width, EPS)
        self.mlp = GatedMLP(width, intermediate, width)
        self.cross_attn_mlp_gate = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Both gates to zero: the language model is as it was."""
        self.cross_attn_attn_gate.zero_()
        self.cross_attn_mlp_gate.zero_()

    def remember(self, tokens_BMW: Tensor) -> Memory:
        """See `InjectedBlock.remember`: normalised keys, and values, (B, K, M, d) each."""
        attn = self.cross_attn
        keys = attn.k_norm(split_heads(attn.k_proj(tokens_BMW), attn.kv_heads))
        return keys, split_heads(attn.v_proj(tokens_BMW), attn.kv_heads)

    def forward(self, hidden_BLD: Tensor, memory: Memory, seen_BLM: Tensor) -> Tensor:
        """See `InjectedBlock.forward`; a text token that sees no image leaves as it came."""
        own = self.input_layernorm.weight.dtype
        looked_BLD = self.cross_attn(self.input_layernorm(hidden_BLD.to(own)), memory, seen_BLM)
        hidden_BLD = add_gated(hidden_BLD, self.cross_attn_attn_gate, looked_BLD)
        update_BLD = self.mlp(self.post_attention_layernorm(hidden_BLD.to(own)))
        blind_BL1 = ~seen_BLM.any(dim=-1, keepdim=True)
        return add_gated(hidden_BLD, self.cross_attn_mlp_gate, update_BLD.masked_fill(blind_BL1, 0))


class GroupedCrossAttention(nn.Module):
    """Several query heads share a head of keys and values; queries and keys are normalised a head."""

    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads = heads, kv_heads
        head_dim = width // heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.q_norm = RMSNorm(head_dim, EPS)
        self.k_norm = RMSNorm(head_dim, EPS)

    def forward(self, hidden_BLD: Tensor, memory: Memory, seen_BLM: Tensor) -> Tensor:
        """What each text token sees, (B, L, D)."""
        queries = self.q_norm(split_heads(self.q_proj(hidden_BLD), self.heads))
        looked_BLD: Tensor = self.o_proj(attend(queries, memory, seen_BLM))
        return looked_BLD
