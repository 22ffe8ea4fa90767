"""A layer of the Q-Former: BERT's, with cross-attention and a feed-forward layer of their own for queries.

Shapes: I views, N patches of the longest, V vision width, Q queries, S queries and question, W width, M
tokens that are looked at, E their width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlmkit_connectors.attention import attend, split_heads
from vlmkit_connectors.layers import mlp_layers

# BERT's, which BLIP-2 starts from.
EPS = 1e-12


class QFormerLayer(nn.Module):
    """Queries and question look at each other, queries at patches; each part is followed by a norm.

    Args:
        width: Width W.
        heads: Attention heads.
        hidden: Width inside feed-forward layers.
        looks: Vision width V; absent, the layer does not look at patches.
        text: Whether the question goes on to the next layer; if not, only queries come out.
    """

    def __init__(self, width: int, heads: int, hidden: int, looks: int | None, text: bool) -> None:
        super().__init__()
        self.attention = NormedAttention(width, width, heads)
        self.cross = NormedAttention(width, looks, heads) if looks else None
        self.ff_queries = NormedFeedForward(width, hidden)
        self.ff_text = NormedFeedForward(width, hidden) if text else None

    def forward(
        self,
        hidden_ISW: Tensor,
        mask_IS: Tensor | None,
        patches_INV: Tensor,
        mask_IN: Tensor | None,
        queries: int,
    ) -> Tensor:
        """(I, S, W), or (I, Q, W) where the question ends here.

        Args:
            hidden_ISW: Queries and then the question.
            mask_IS: bool; False where the question is padded, None if it is nowhere.
            patches_INV: Patches of the view.
            mask_IN: bool; False where patches are padded, None if they are nowhere.
            queries: Q, how many of `hidden_ISW` are queries.
        """
        hidden_ISW = self.attention(hidden_ISW, hidden_ISW, mask_IS)
        queries_IQW: Tensor = hidden_ISW[:, :queries]
        if self.cross is not None:
            queries_IQW = self.cross(queries_IQW, patches_INV, mask_IN)
        queries_IQW = self.ff_queries(queries_IQW)
        if self.ff_text is None:
            return queries_IQW
        return torch.cat([queries_IQW, self.ff_text(hidden_ISW[:, queries:])], 1)


class NormedAttention(nn.Module):
    """Attention, residual, norm."""

    def __init__(self, width: int, looks: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(looks, 2 * width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, EPS)

    def forward(self, x_IQW: Tensor, looked_IME: Tensor, mask_IM: Tensor | None) -> Tensor:
        """(I, Q, W); `mask_IM` is False where `looked_IME` is padded."""
        keys, values = (split_heads(x_IMW, self.heads) for x_IMW in self.kv(looked_IME).chunk(2, -1))
        mask_I1M = None if mask_IM is None else mask_IM.unsqueeze(1)
        seen_IQW = attend(split_heads(self.q(x_IQW), self.heads), (keys, values), mask_I1M)
        normed_IQW: Tensor = self.norm(x_IQW + self.out(seen_IQW))
        return normed_IQW


class NormedFeedForward(nn.Module):
    """Two linear layers with exact GELU between, residual, norm."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.layers = mlp_layers([width, hidden, width])
        self.norm = nn.LayerNorm(width, EPS)

    def forward(self, x_IQW: Tensor) -> Tensor:
        """(I, Q, W)."""
        normed_IQW: Tensor = self.norm(x_IQW + self.layers(x_IQW))
        return normed_IQW
