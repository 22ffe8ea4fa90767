"""Squares of patches side by side in one token: InternVL's and Idefics3's connectors.

Shapes: I views of one grid, R C its rows and columns, r c those of the tokens, f the factor, V vision width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from vlmkit_connectors.base import Connector, Grid, ImageTokens, Questions, VisionFeatures
from vlmkit_connectors.checks import check_one_of, check_sizes
from vlmkit_connectors.fuse import concat_encoders
from vlmkit_connectors.layers import mlp_layers
from vlmkit_connectors.views import map_grids, shrink

Variant = Literal["internvl", "idefics3"]


class PixelShuffleConnector(Connector):
    """The channels of factor x factor patches become one token, then a projector.

    The patches of a square lie in the token row by row, each with all its channels. This is the order of
    InternVL since version 2 (`ps_version: v2`; v1 leaves the grid transposed), of Idefics3 and of SmolVLM:
    they differ in the projector alone.

    Where the factor does not divide a grid, its last row and column are repeated, as often as needed. The
    originals refuse such grids. Zeros would be values that no encoder gives, and would shift what the layer
    norm makes of the real patches beside them.

    Args:
        vision_widths: Width of each encoder; several are concatenated.
        text_width: Width of the language model's embeddings.
        factor: Side of the square, in patches.
        variant: `internvl` (layer norm, linear, GELU, linear) or `idefics3` (one linear layer, no bias).
    """

    source = "InternVL 1.5, https://arxiv.org/abs/2404.16821"

    def __init__(
        self,
        vision_widths: Sequence[int],
        text_width: int,
        factor: int = 2,
        variant: Variant = "internvl",
    ) -> None:
        super().__init__()
        check_sizes("pixel_shuffle", factor=factor)
        check_one_of("pixel_shuffle", "variant", variant, get_args(Variant))
        self.factor = factor
        width = factor * factor * sum(vision_widths)
        self.projector: nn.Module = nn.Linear(width, text_width, bias=False)
        if variant == "internvl":
            self.projector = nn.Sequential(nn.LayerNorm(width), *mlp_layers([width, text_width, text_width]))

    def num_tokens(self, grid: Grid) -> int:
        """See `Connector.num_tokens`."""
        return math.prod(self.token_grid(grid))

    def token_grid(self, grid: Grid) -> Grid:
        """See `Connector.token_grid`: ceil(rows / factor) by ceil(columns / factor)."""
        return shrink(grid, self.factor)

    def forward(self, features: Sequence[VisionFeatures], text: Questions | None = None) -> ImageTokens:
        """See `Connector.forward`; the question is not looked at."""
        shuffled = map_grids(concat_encoders(features), partial(pixel_shuffle, factor=self.factor))
        return ImageTokens(self.projector(shuffled.tokens_ND), shuffled.counts)


def pixel_shuffle(patches_IRCV: Tensor, factor: int) -> Tensor:
    """Join the channels of factor x factor patches: (I, R, C, V) to (I, r * c, f * f * V)."""
    whole = repeat_edge(repeat_edge(patches_IRCV, 1, factor), 2, factor)
    views, rows, cols, width = whole.shape
    squares_IrfcfV = whole.reshape(views, rows // factor, factor, cols // factor, factor, width)
    return squares_IrfcfV.transpose(2, 3).flatten(3).flatten(1, 2)


def repeat_edge(patches_IRCV: Tensor, dim: int, factor: int) -> Tensor:
    """Repeat the last row (`dim` 1) or column (2) until `factor` divides their number."""
    missing = -patches_IRCV.shape[dim] % factor
    if missing == 0:
        return patches_IRCV
    last = patches_IRCV.narrow(dim, -1, 1)
    return torch.cat([patches_IRCV] + [last] * missing, dim)
