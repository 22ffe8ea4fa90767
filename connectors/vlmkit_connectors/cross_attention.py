"""What cross-attention connectors share: the tokens that blocks look at, places of blocks, gates.

Shapes: V width of all encoders, B rows of the language model, L text tokens, D width of the language model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor, nn

from vlmkit_connectors.base import Grid, ImageTokens, LayerInjection, VisionFeatures
from vlmkit_connectors.checks import check_one_of, check_sizes, check_unused
from vlmkit_connectors.fuse import concat_encoders
from vlmkit_connectors.resampler import PerceiverResampler

Resampler = Literal["perceiver", "none"]
# Flamingo's.
NUM_LATENTS, DEPTH = 64, 6


class Media(nn.Module):
    """The tokens that blocks look at: patches of all encoders, or a few latents a view in their place.

    Args:
        connector: Its name, for messages.
        width: Width V of the patches, of all encoders together.
        resampler: `perceiver` (Flamingo's) or `none`: the patches as they are.
        num_latents: Latents a view; absent, 64. Of the resampler, as `depth` is.
        depth: Its layers; absent, 6.
        heads: Heads of the resampler.
        head_dim: Width of one of its heads.
        ff_mult: Its feed-forward layers are this many times as wide as the patches.

    Raises:
        ValueError: There is no such resampler, or a size is below 1 or of a resampler that is not there.
    """

    def __init__(
        self,
        connector: str,
        width: int,
        resampler: Resampler,
        num_latents: int | None = None,
        depth: int | None = None,
        heads: int = 8,
        head_dim: int = 64,
        ff_mult: int = 4,
    ) -> None:
        super().__init__()
        check_one_of(connector, "resampler", resampler, get_args(Resampler))
        check_sizes(connector, num_latents=num_latents, depth=depth)
        self.num_latents = NUM_LATENTS if num_latents is None else num_latents
        self.resampler = None
        if resampler == "none":
            check_unused(connector, "resampler='perceiver'", num_latents=num_latents, depth=depth)
            return
        depth = DEPTH if depth is None else depth
        self.resampler = PerceiverResampler(width, self.num_latents, depth, heads, head_dim, ff_mult)

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
        return self.resampler.of_views(fused)


class CrossAttention(LayerInjection):
    """A `LayerInjection` whose blocks look at what its `media` makes of the patches.

    Attributes:
        media: Set by the subclass.
    """

    media: Media

    def num_tokens(self, grid: Grid) -> int:
        """See `Connector.num_tokens`: tokens that the blocks look at, not of the sequence."""
        return self.media.num_tokens(grid)

    def token_grid(self, grid: Grid) -> Grid | None:
        """See `Connector.token_grid`."""
        return self.media.token_grid(grid)


def places(connector: str, text_layers: int, every: int, start: int | None = None) -> range:
    """Decoder layers that a block stands before: every `every`-th, from `start` on (absent: `every - 1`).

    Raises:
        ValueError: There is no such layer.
    """
    check_sizes(connector, every=every)
    first = every - 1 if start is None else start
    if not 0 <= first < text_layers:
        raise ValueError(
            f"{connector} connector: found every={every}, start={start}, which puts the first block before "
            f"layer {first}, from 0, of {text_layers} decoder layers; give a smaller every, or a start from "
            f"0 to {text_layers - 1}"
        )
    return range(first, text_layers, every)


def add_gated(hidden_BLD: Tensor, gate: Tensor, update_BLD: Tensor) -> Tensor:
    """`hidden_BLD` plus the update scaled by tanh(gate), in the data type of `hidden_BLD`."""
    # A gate in float32 would promote the hidden states of a bfloat16 model, and all layers after it.
    return hidden_BLD + (gate.tanh() * update_BLD).to(hidden_BLD.dtype)
