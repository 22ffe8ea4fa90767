"""`transformers` layers run packed: their attention is replaced by one that calls the same projections.

The layers stay those of transformers: norms, MLPs and gradient checkpointing. Parameters keep their names.
LoRA and quantized linear layers work, because modules are called and no weight is read.

Shapes: T patches of all views, V width, H heads, D width of a head.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlmkit.encoders.packed import packed_attention

Rope = tuple[Tensor, Tensor]
QKV = tuple[Tensor, Tensor, Tensor]


def rotate(x_THD: Tensor, rope: Rope) -> Tensor:
    """Turn channel i and channel i + D / 2 of each head by the i-th angle; computed in float32."""
    cos, sin = rope
    first, second = x_THD.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x_THD.dtype)


class PackedAttention(nn.Module, ABC):
    """Takes the place of a `transformers` attention, whose projections it takes over by their names.

    Args:
        theirs: The attention that it replaces.
        dropout: Share of the attention weights that is dropped in training.
    """

    def __init__(self, theirs: nn.Module, dropout: float = 0.0) -> None:
        super().__init__()
        for name, projection in theirs.named_children():
            self.add_module(name, projection)
        self.heads: Any = theirs.num_heads
        self.dropout = dropout

    @abstractmethod
    def project(self, hidden_TV: Tensor) -> QKV:
        """Queries, keys and values, (T, V) each."""

    def attend(self, hidden_TV: Tensor, lengths: Sequence[int], rope: Rope | None) -> Tensor:
        """What the output projection gets: (T, V)."""
        q_THD, k_THD, v_THD = (x_TV.unflatten(1, (self.heads, -1)) for x_TV in self.project(hidden_TV))  # type: ignore[no-untyped-call]
        if rope is not None:
            q_THD, k_THD = rotate(q_THD, rope), rotate(k_THD, rope)
        dropout = self.dropout if self.training else 0.0
        return packed_attention(q_THD, k_THD, v_THD, lengths, dropout=dropout).flatten(1)


class SplitAttention(PackedAttention):
    """With a projection each for queries, keys and values."""

    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module

    def __init__(self, theirs: nn.Module, output: str, dropout: float) -> None:
        super().__init__(theirs, dropout)
        self.output = output

    def project(self, hidden_TV: Tensor) -> QKV:
        """See `PackedAttention.project`."""
        return self.q_proj(hidden_TV), self.k_proj(hidden_TV), self.v_proj(hidden_TV)

    def forward(
        self,
        hidden_states: Tensor,
        lengths: Sequence[int],
        position_embeddings: Rope | None = None,
        attention_mask: None = None,
    ) -> tuple[Tensor, None]:
        """The output and, in the place of the weights, None; the names are those that a layer passes."""
        return getattr(self, self.output)(self.attend(hidden_states, lengths, position_embeddings)), None


class FusedAttention(PackedAttention):
    """With one projection for queries, keys and values."""

    qkv: nn.Module
    proj: nn.Module

    def project(self, hidden_TV: Tensor) -> QKV:
        """See `PackedAttention.project`."""
        q_TV, k_TV, v_TV = self.qkv(hidden_TV).chunk(3, dim=-1)
        return q_TV, k_TV, v_TV

    def forward(
        self,
        hidden_states: Tensor,
        lengths: Sequence[int],
        position_embeddings: Rope | None = None,
        cu_seqlens: None = None,
    ) -> Tensor:
        """The output; the names are those that a layer passes."""
        out_TV: Tensor = self.proj(self.attend(hidden_states, lengths, position_embeddings))
        return out_TV


def shortened(config: Any, blocks: int, field: str = "num_hidden_layers") -> Any:
    """A copy of a configuration with the first `blocks` layers only; `field` holds their number."""
    short = copy.deepcopy(config)
    setattr(short, field, blocks)
    return short


def blocks_above(name: str, first: int, depth: int) -> str:
    """Regular expression of the tensors of the blocks `first` and above in a list called `name`."""
    numbers = "|".join(map(str, range(first, depth)))
    return rf"(^|\.){name}\.({numbers})\." if numbers else "^$"
