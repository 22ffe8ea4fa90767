"""The LLaVA 1.5 projector: linear layers with GELU between them, optionally after average pooling.

Shapes: I views of one grid, R C its rows and columns, V vision width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from torch import Tensor
from torch.nn import functional as F

from vlmkit_connectors.base import Connector, Grid, ImageTokens, Questions, VisionFeatures
from vlmkit_connectors.checks import check_sizes
from vlmkit_connectors.fuse import concat_encoders
from vlmkit_connectors.layers import mlp_layers
from vlmkit_connectors.views import map_grids, shrink


class MLPConnector(Connector):
    """Linear layers with exact GELU between them, applied to every patch.

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

    source = "LLaVA 1.5, https://arxiv.org/abs/2310.03744"

    def __init__(
        self,
        vision_widths: Sequence[int],
        text_width: int,
        depth: int = 2,
        pool: int = 1,
        expansion: int | None = None,
    ) -> None:
        super().__init__()
        check_sizes("mlp", depth=depth, pool=pool, expansion=expansion)
        if expansion and depth < 2:
            raise ValueError(
                f"mlp connector: found expansion={expansion} with depth={depth}, which has no hidden layer; "
                "leave it out, or give a depth of 2 or more"
            )
        self.pool = pool
        seen = sum(vision_widths)
        widths = [seen] + [text_width] * depth
        if expansion:
            widths[1] = expansion * seen
        self.layers = mlp_layers(widths)

    def num_tokens(self, grid: Grid) -> int:
        """See `Connector.num_tokens`."""
        return math.prod(self.token_grid(grid))

    def token_grid(self, grid: Grid) -> Grid:
        """See `Connector.token_grid`: ceil(rows / pool) by ceil(columns / pool)."""
        return shrink(grid, self.pool)

    def forward(self, features: Sequence[VisionFeatures], text: Questions | None = None) -> ImageTokens:
        """See `Connector.forward`; the question is not looked at."""
        fused = concat_encoders(features)
        if self.pool == 1:
            return ImageTokens(self.layers(fused.patches_TV), tuple(r * c for r, c in fused.grids))
        pooled = map_grids(fused, partial(pool_grid, pool=self.pool))
        return ImageTokens(self.layers(pooled.tokens_ND), pooled.counts)


def pool_grid(patches_IRCV: Tensor, pool: int) -> Tensor:
    """Average pool x pool patches: (I, R, C, V) to (I, pooled rows * pooled columns, V)."""
    pooled = F.avg_pool2d(patches_IRCV.permute(0, 3, 1, 2), pool, ceil_mode=True)
    return pooled.flatten(2).transpose(1, 2)
