"""Attention with a mask: of latents over patches, of queries over each other, of text over image tokens.

Shapes: B views or rows, N tokens that look, M tokens they look at, H heads, K heads of keys and values,
d width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vlmkit_connectors.base import Memory


def attend(queries_BHNd: Tensor, memory: Memory, seen_BNM: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention, (B, N, H * d); zero for a token that sees nothing.

    Args:
        queries_BHNd: Queries.
        memory: Keys and values, (B, K, M, d); of fewer heads, each serves as many query heads in turn
            (Ainslie et al. 2023, https://arxiv.org/abs/2305.13245). M may be 0.
        seen_BNM: bool; which tokens each may look at, with N = 1 for all alike. Absent, it is all of them.
    """
    keys, values = memory
    if keys.shape[2] == 0:
        return _side_by_side(torch.zeros_like(queries_BHNd))
    shared = queries_BHNd.shape[1] // keys.shape[1]
    if shared > 1:
        # Repeated here, not by `enable_gqa`: with a mask that has no fused kernel on a GPU.
        keys, values = keys.repeat_interleave(shared, 1), values.repeat_interleave(shared, 1)
    if seen_BNM is None:
        return _side_by_side(F.scaled_dot_product_attention(queries_BHNd, keys, values))
    seen_B1NM = seen_BNM.unsqueeze(1)
    blind_B1N1 = ~seen_B1NM.any(dim=-1, keepdim=True)
    # A softmax over nothing is NaN in some kernels: such a token looks at everything and then gets zero.
    found = F.scaled_dot_product_attention(queries_BHNd, keys, values, attn_mask=seen_B1NM | blind_B1N1)
    return _side_by_side(found.masked_fill(blind_B1N1, 0))


def split_heads(x_BNW: Tensor, heads: int) -> Tensor:
    """(B, N, H * d) to (B, H, N, d)."""
    # No -1 in the shape: it is ambiguous for no tokens.
    return x_BNW.view(*x_BNW.shape[:2], heads, x_BNW.shape[2] // heads).transpose(1, 2)


def _side_by_side(x_BHNd: Tensor) -> Tensor:
    """(B, H, N, d) to (B, N, H * d)."""
    return x_BHNd.transpose(1, 2).flatten(2)
