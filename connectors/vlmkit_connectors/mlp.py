"""The LLaVA 1.5 projector: linear layers with GELU between them, optionally after average pooling."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlmkit_connectors.base import Connector, Grid, ImageTokens, VisionFeatures
from vlmkit_connectors.fuse import concat_encoders


class MLPConnector(Connector):
    """`depth` linear layers with exact GELU between them, applied to every patch.

    `depth=2, pool=1` is LLaVA 1.5's `mlp2x_gelu` (Liu et al. 2023, https://arxiv.org/abs/2310.03744),
    `depth=1` LLaVA's single linear layer, `depth=3, expansion=4` Prismatic's projector of fused encoders
    (Karamcheti et al. 2024, https://arxiv.org/abs/2402.07865). `pool=p` first averages p x p patches; at the
    right and lower edge of a grid that p does not divide, the average is over the patches that are there.

    Args:
        vision_widths: Width of each encoder; several are concatenated.
        text_width: Width of the language model's embeddings.
        depth: Number of linear layers, at least 1.
        pool: Side of the averaged square, in patches.
        expansion: The first hidden layer is this many times as wide as the patches; absent, all hidden
            layers are as wide as `text_width`.
    """

    def __init__(
        self,
        vision_widths: Sequence[int],
        text_width: int,
        depth: int = 2,
        pool: int = 1,
        expansion: int | None = None,
    ) -> None:
        super().__init__()
        if depth < 1 or pool < 1 or (expansion is not None and expansion < 1):
            raise ValueError(
                f"mlp connector: found depth={depth}, pool={pool}, expansion={expansion}; "
                "each must be 1 or more"
            )
        if expansion and depth < 2:
            raise ValueError("mlp connector: expansion is of a hidden layer; give depth of 2 or more")
        self.pool = pool
        seen = sum(vision_widths)
        widths = [seen] + [text_width] * depth
        if expansion:
            widths[1] = expansion * seen
        layers: list[nn.Module] = []
        for i in range(depth):
            layers += [nn.GELU()] * (i > 0) + [nn.Linear(widths[i], widths[i + 1])]
        self.layers = nn.Sequential(*layers)

    def num_tokens(self, grid: Grid) -> int:
        """See `Connector.num_tokens`."""
        return math.prod(self.token_grid(grid))

    def token_grid(self, grid: Grid) -> Grid:
        """See `Connector.token_grid`: ceil(rows / pool) by ceil(columns / pool)."""
        return math.ceil(grid[0] / self.pool), math.ceil(grid[1] / self.pool)

    def forward(self, features: Sequence[VisionFeatures], text: Tensor | None = None) -> ImageTokens:
        """See `Connector.forward`; the question is not looked at."""
        fused = concat_encoders(features)
        counts = tuple(self.num_tokens(g) for g in fused.grids)
        patches_NV = fused.patches_TV if self.pool == 1 else _pool_views(fused, self.pool)
        return ImageTokens(self.layers(patches_NV), counts)


def _pool_views(features: VisionFeatures, pool: int) -> Tensor:
    """Average pool x pool patches of each view; views of one grid go together."""
    grids = features.grids
    if len(set(grids)) == 1:
        rows, cols = grids[0]
        return _pool_grid(features.patches_TV.view(len(grids), rows, cols, -1), pool)
    views = zip(features.views(), grids, strict=True)
    return torch.cat([_pool_grid(v.view(1, rows, cols, -1), pool) for v, (rows, cols) in views])


def _pool_grid(patches_IRCV: Tensor, pool: int) -> Tensor:
    """(I, rows, cols, V) to (I * pooled rows * pooled cols, V)."""
    channels_first = patches_IRCV.permute(0, 3, 1, 2)
    pooled = F.avg_pool2d(channels_first, pool, ceil_mode=True)
    return pooled.flatten(2).transpose(1, 2).flatten(0, 1)
