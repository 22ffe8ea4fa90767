"""What adapters of native-resolution towers share: patches, positions, and `transformers` layers run packed.

The layers stay those of transformers, norms, MLPs and gradient checkpointing too; only the attention in them
is replaced, by one that calls the same projections. So parameters keep their names, and LoRA and quantized
linear layers work.

Shapes: T patches of all views, V width, H heads, D width of a head, S side of a position table,
C H W a view's pixels.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlmkit.encoders.batch import PixelBatch
from vlmkit.encoders.packed import packed_attention

Grids = Sequence[tuple[int, int]]
Rope = tuple[Tensor, Tensor]
QKV = tuple[Tensor, Tensor, Tensor]


def patch_grids(batch: PixelBatch, side: int) -> list[tuple[int, int]]:
    """Whole patches of `side` pixels of each view: rows and columns."""
    return [(height // side, width // side) for height, width in batch.sizes_I2.tolist()]


def cut_patches(batch: PixelBatch, side: int) -> Tensor:
    """The patches of all views, row-major: (T, C, side, side); what makes no whole patch is left out."""
    views = zip(batch.views(), patch_grids(batch, side), strict=True)
    return torch.cat([_cut(pixels_CHW, rows, cols, side) for pixels_CHW, (rows, cols) in views])


def _cut(pixels_CHW: Tensor, rows: int, cols: int, side: int) -> Tensor:
    whole_CHW = pixels_CHW[:, : rows * side, : cols * side]
    return whole_CHW.reshape(-1, rows, side, cols, side).permute(1, 3, 0, 2, 4).flatten(0, 1)


def resized_positions(
    table_SSV: Tensor, grids: Grids, align_corners: bool = False, antialias: bool = False
) -> Tensor:
    """A learned square table of positions at the size of each grid: (T, V).

    Each distinct grid is interpolated once, bilinearly and in float32.
    """
    source_1VSS = table_SSV.permute(2, 0, 1)[None].float()
    of_grid = {
        grid: nn.functional.interpolate(
            source_1VSS, grid, mode="bilinear", align_corners=align_corners, antialias=antialias
        )[0].flatten(1).T.to(table_SSV.dtype)
        for grid in dict.fromkeys(grids)
    }  # fmt: skip
    return torch.cat([of_grid[grid] for grid in grids])


def axial_rope(grids: Grids, row_frequencies: Tensor, col_frequencies: Tensor) -> Rope:
    """Cosine and sine of the angles of 2-D rotary positions, both (T, 1, D / 2) in float32.

    The angle of a channel is the patch's row or its column times a frequency; rows come first.

    Args:
        grids: Of the views; patches are row-major.
        row_frequencies, col_frequencies: Each D / 4 numbers.
    """
    of_grid = {}
    for rows, cols in dict.fromkeys(grids):
        place_T = torch.arange(rows * cols, device=row_frequencies.device)
        down_Td = (place_T // cols)[:, None] * row_frequencies
        right_Td = (place_T % cols)[:, None] * col_frequencies
        of_grid[rows, cols] = torch.cat([down_Td, right_Td], dim=1)
    angles_T1d = torch.cat([of_grid[grid] for grid in grids])[:, None]
    return angles_T1d.cos(), angles_T1d.sin()


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


def shortened(config: Any, blocks: int) -> Any:
    """A copy of a configuration with the first `blocks` layers only."""
    short = copy.deepcopy(config)
    short.num_hidden_layers = blocks
    return short


def blocks_above(name: str, first: int, depth: int) -> str:
    """Regular expression of the tensors of the blocks `first` and above in a list called `name`."""
    numbers = "|".join(map(str, range(first, depth)))
    return rf"(^|\.){name}\.({numbers})\." if numbers else "^$"
