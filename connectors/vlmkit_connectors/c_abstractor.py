"""Honeybee's C-Abstractor: convolutions, average pooling to a small grid, convolutions, MLP.

Shapes: I views of one grid, R C its rows and columns, V vision width, W width of the convolutions, S side of
the table of positions, N tokens of a view.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlmkit_connectors.base import Connector, Grid, ImageTokens, Questions, VisionFeatures
from vlmkit_connectors.checks import check_sizes
from vlmkit_connectors.conv import SqueezeExcite, depthwise, pointwise
from vlmkit_connectors.fuse import concat_encoders, resize
from vlmkit_connectors.layers import mlp_layers
from vlmkit_connectors.pool import fitting_grid
from vlmkit_connectors.views import map_grids


class CAbstractorConnector(Connector):
    """Convolutions, average pooling to a small grid, convolutions, then an MLP.

    Honeybee's C-Abstractor (Cha et al. 2023, https://arxiv.org/abs/2312.06742): `depth` RegNet blocks,
    adaptive average pooling to a grid of at most `tokens` places, `depth` blocks, and an MLP with SiLU. The
    defaults are those published with CLIP ViT-L/14 at 224 pixels: 16 x 16 patches and `width` 1024, its own,
    become 144 tokens.

    Differs from the original: Honeybee takes square grids of one size, and makes a square of tokens. Here a
    grid may be any; that of the tokens has its shape, see `fitting_grid`, and one that is small enough stays
    as it is, so that no token is made twice of the same patches. The learned positions are resized (bilinear,
    antialiased where they shrink, in float32) for a grid that is not `positions` by `positions`; Honeybee
    also has one for CLS, which is dropped before it could matter.

    Args:
        vision_widths: Width of each encoder; several are concatenated.
        text_width: Width of the language model's embeddings.
        tokens: Most tokens of a view.
        depth: RegNet blocks before the pooling, and as many after it.
        width: Width of the convolutions; absent, that of the patches.
        mlp_depth: Linear layers of the MLP.
        positions: Side of the table of positions that is added to the patches; absent (null), none is added.
    """

    source = "Honeybee, https://arxiv.org/abs/2312.06742"

    def __init__(
        self,
        vision_widths: Sequence[int],
        text_width: int,
        tokens: int = 144,
        depth: int = 3,
        width: int | None = None,
        mlp_depth: int = 2,
        positions: int | None = 16,
    ) -> None:
        super().__init__()
        seen = sum(vision_widths)
        width = seen if width is None else width
        check_sizes("c_abstractor", tokens=tokens, depth=depth, width=width, mlp_depth=mlp_depth)
        check_sizes("c_abstractor", positions=positions)
        self.tokens = tokens
        self.positions_SSV = (
            None if positions is None else nn.Parameter(torch.empty(positions, positions, seen))
        )
        self.before = _stage(depth, seen, width)
        self.after = _stage(depth, width, width)
        self.readout = mlp_layers([width] + [text_width] * mlp_depth, nn.SiLU)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Positions from a normal distribution of deviation 0.02, as Honeybee's."""
        if self.positions_SSV is not None:
            nn.init.trunc_normal_(self.positions_SSV, std=0.02)

    @classmethod
    def tiny_options(cls) -> dict[str, Any]:
        """See `Connector.tiny_options`."""
        return {"tokens": 4, "depth": 1, "width": 16}

    def num_tokens(self, grid: Grid) -> int:
        """See `Connector.num_tokens`."""
        return math.prod(self.token_grid(grid))

    def token_grid(self, grid: Grid) -> Grid:
        """See `Connector.token_grid`: `fitting_grid`."""
        return fitting_grid(grid, self.tokens)

    def forward(self, features: Sequence[VisionFeatures], text: Questions | None = None) -> ImageTokens:
        """See `Connector.forward`; the question is not looked at."""
        abstracted = map_grids(concat_encoders(features), self._abstract)
        return ImageTokens(self.readout(abstracted.tokens_ND), abstracted.counts)

    def _abstract(self, patches_IRCV: Tensor) -> Tensor:
        """All but the MLP: (I, R, C, V) to (I, N, W)."""
        rows, cols = patches_IRCV.shape[1:3]
        if self.positions_SSV is not None:
            patches_IRCV = patches_IRCV + resize(self.positions_SSV[None], (rows, cols))
        fine_IWRC = self.before(patches_IRCV.movedim(-1, 1))
        coarse_IWRC = F.adaptive_avg_pool2d(fine_IWRC, self.token_grid((rows, cols)))
        tokens_INW: Tensor = self.after(coarse_IWRC).flatten(2).transpose(1, 2)
        return tokens_INW


class RegNetBlock(nn.Module):
    """RegNet's bottleneck block as Honeybee sets it up: layer norms, SiLU, depthwise 3 x 3, no narrow middle.

    RegNet is Radosavovic et al. 2020 (https://arxiv.org/abs/2003.13678); its own blocks have batch norms.
    """

    def __init__(self, seen: int, width: int) -> None:
        super().__init__()
        self.enter = pointwise(seen, width, nn.SiLU())
        self.spatial = depthwise(width, nn.SiLU())
        # A quarter of what enters the block, not of its own width.
        self.weigh = SqueezeExcite(width, max(round(seen / 4), 1), nn.SiLU(), nn.Sigmoid())
        self.leave = pointwise(width, width)
        self.shortcut = nn.Identity() if seen == width else pointwise(seen, width)

    def forward(self, picture_IVRC: Tensor) -> Tensor:
        """(I, V, R, C) to (I, W, R, C)."""
        inner_IWRC = self.leave(self.weigh(self.spatial(self.enter(picture_IVRC))))
        return F.silu(inner_IWRC + self.shortcut(picture_IVRC))


def _stage(depth: int, seen: int, width: int) -> nn.Sequential:
    return nn.Sequential(*(RegNetBlock(seen if i == 0 else width, width) for i in range(depth)))
