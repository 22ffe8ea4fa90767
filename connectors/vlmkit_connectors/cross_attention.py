"""What cross-attention connectors share: places of blocks, masked attention, the tokens that blocks look at.

Shapes: I views, P patches of the longest, N latents, V width of all encoders, B rows of the language model,
L text tokens, M most image tokens of a row, D width of the language model, H heads, d width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlmkit_connectors.attention import check_sizes
from vlmkit_connectors.base import Grid, ImageTokens, Memory, VisionFeatures
from vlmkit_connectors.fuse import concat_encoders
from vlmkit_connectors.resampler import PerceiverResampler
from vlmkit_connectors.views import map_padded

Resampler = Literal["perceiver", "none"]


class Media(nn.Module):
    """The tokens that blocks look at: patches of all encoders, or a few latents a view in their place.

    Args:
        width: Width V of the patches, of all encoders together.
        resampler: `perceiver` (Flamingo's) or `none`: the patches as they are.
        num_latents: Latents a view.
        depth: Layers of the resampler.
        heads: Heads of the resampler.
        head_dim: Width of one of its heads.
        ff_mult: Its feed-forward layers are this many times as wide as the patches.

    Raises:
        ValueError: There is no such resampler.
    """

    def __init__(
        self,
        width: int,
        resampler: Resampler,
        num_latents: int = 64,
        depth: int = 6,
        heads: int = 8,
        head_dim: int = 64,
        ff_mult: int = 4,
    ) -> None:
        super().__init__()
        if resampler not in ("perceiver", "none"):
            raise ValueError(
                f"cross-attention connector: found resampler {resampler!r}; give perceiver or none"
            )
        check_sizes("cross-attention", num_latents=num_latents, depth=depth)
        self.num_latents = num_latents
        self.resampler = None
        if resampler == "perceiver":
            self.resampler = PerceiverResampler(width, num_latents, depth, heads, head_dim, ff_mult)

    def num_tokens(self, grid: Grid) -> int:
        """Tokens for a view of `grid`."""
        return math.prod(grid) if self.resampler is None else self.num_latents

    def token_grid(self, grid: Grid) -> Grid | None:
        """See `Connector.token_grid`; latents form no grid."""
        return grid if self.resampler is None else None

    def forward(self, features: Sequence[VisionFeatures]) -> ImageTokens:
        """Tokens of width V; several encoders are joined on the grid of the first."""
        fused = concat_encoders(features)
        if self.resampler is None:
            return ImageTokens(fused.patches_TV, tuple(r * c for r, c in fused.grids))
        return map_padded(fused, self._resample)

    def _resample(self, views: list[int], patches_IPV: Tensor, mask_IP: Tensor | None) -> Tensor:
        """Latents of padded views, (I, N, V)."""
        assert self.resampler is not None
        latents_INV: Tensor = self.resampler(patches_IPV, mask_IP)
        return latents_INV


def places(text_layers: int, every: int, start: int | None = None) -> range:
    """Decoder layers that a block stands before: every `every`-th, from `start` on (absent: `every - 1`).

    Raises:
        ValueError: There is no such layer.
    """
    check_sizes("cross-attention", every=every)
    first = every - 1 if start is None else start
    if not 0 <= first < text_layers:
        raise ValueError(
            f"cross-attention connector: found every={every}, start={start} for a language model of "
            f"{text_layers} decoder layers: the first block would stand before layer {first}, from 0; "
            f"possible are 0 to {text_layers - 1}: give a smaller `every` or another `start`"
        )
    return range(first, text_layers, every)


def split_heads(x_BLW: Tensor, heads: int) -> Tensor:
    """(B, L, H * d) to (B, H, L, d)."""
    # No -1 in the shape: it is ambiguous for no tokens.
    return x_BLW.view(*x_BLW.shape[:2], heads, x_BLW.shape[2] // heads).transpose(1, 2)


def look(queries_BHLd: Tensor, memory: Memory, seen_BLM: Tensor) -> Tensor:
    """Attention of each text token over the image tokens it may see, (B, L, H * d); zero where there is none.

    Args:
        queries_BHLd: Queries.
        memory: Keys and values, (B, heads, M, d); of fewer heads, each serves as many query heads in turn.
        seen_BLM: bool; which image tokens each text token may look at.
    """
    keys, values = memory
    if keys.shape[2] == 0:
        return torch.zeros_like(queries_BHLd).transpose(1, 2).flatten(2)
    if keys.shape[1] != queries_BHLd.shape[1]:
        # Repeated here, not by `enable_gqa`: with a mask that has no fused kernel on a GPU.
        shared = queries_BHLd.shape[1] // keys.shape[1]
        keys, values = keys.repeat_interleave(shared, 1), values.repeat_interleave(shared, 1)
    seen_B1LM = seen_BLM.unsqueeze(1)
    blind_B1L1 = ~seen_B1LM.any(dim=-1, keepdim=True)
    # A softmax over nothing is NaN in some kernels: such a token looks at everything and then gets zero.
    looked = F.scaled_dot_product_attention(queries_BHLd, keys, values, attn_mask=seen_B1LM | blind_B1L1)
    return looked.masked_fill(blind_B1L1, 0).transpose(1, 2).flatten(2)


def add_gated(hidden_BLD: Tensor, gate: Tensor, update_BLD: Tensor) -> Tensor:
    """`hidden_BLD` plus the update scaled by tanh(gate), in the data type of `hidden_BLD`."""
    # A gate in float32 would promote the hidden states of a bfloat16 model, and all layers after it.
    return hidden_BLD + (gate.tanh() * update_BLD).to(hidden_BLD.dtype)
