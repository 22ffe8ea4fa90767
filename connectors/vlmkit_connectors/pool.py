"""Average pooling, by a factor or to a number of tokens, then an MLP: DeCo.

Shapes: I views of one grid, R C its rows and columns, N tokens of a view, V vision width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from vlmkit_connectors.base import Connector, Grid, ImageTokens, Questions, VisionFeatures
from vlmkit_connectors.checks import check_sizes
from vlmkit_connectors.fuse import concat_encoders
from vlmkit_connectors.layers import mlp_layers
from vlmkit_connectors.mlp import pool_grid
from vlmkit_connectors.views import map_grids, shrink


class PoolConnector(Connector):
    """Patches are averaged to fewer tokens, by a factor or to a number of tokens, then go through an MLP.

    With `tokens` it is DeCo (Yao et al. 2024, https://arxiv.org/abs/2405.20985): adaptive average pooling in
    two dimensions. Its encoder's grid is square, and so is that of its tokens; here it has the shape of the
    view's grid, see `fitting_grid`. Where the tokens of a side do not divide its patches, windows overlap by
    at most one patch.

    With `factor`, squares of patches are averaged; at the right and lower edge of a grid that it does not
    divide, the average is over the patches that are there.

    Args:
        vision_widths: Width of each encoder; several are concatenated.
        text_width: Width of the language model's embeddings.
        tokens: Most tokens of a view. A smaller grid stays as it is. Without `factor`, 144 as in DeCo.
        factor: Side of the averaged square, in patches; instead of `tokens`.
        depth: Number of linear layers, GELU between them; at least 1.
    """

    source = "DeCo, https://arxiv.org/abs/2405.20985"

    def __init__(
        self,
        vision_widths: Sequence[int],
        text_width: int,
        tokens: int | None = None,
        factor: int | None = None,
        depth: int = 2,
    ) -> None:
        super().__init__()
        check_sizes("pool", tokens=tokens, factor=factor, depth=depth)
        if tokens is not None and factor is not None:
            raise ValueError(
                f"pool connector: found tokens={tokens} and factor={factor}; give one of them, not both"
            )
        self.factor = factor
        self.tokens = 144 if tokens is None else tokens
        self.layers = mlp_layers([sum(vision_widths)] + [text_width] * depth)

    def num_tokens(self, grid: Grid) -> int:
        """See `Connector.num_tokens`."""
        return math.prod(self.token_grid(grid))

    def token_grid(self, grid: Grid) -> Grid:
        """See `Connector.token_grid`: `fitting_grid`, or ceil(rows / factor) by ceil(columns / factor)."""
        if self.factor is None:
            return fitting_grid(grid, self.tokens)
        return shrink(grid, self.factor)

    def forward(self, features: Sequence[VisionFeatures], text: Questions | None = None) -> ImageTokens:
        """See `Connector.forward`; the question is not looked at."""
        pooled = map_grids(concat_encoders(features), self._pool)
        return ImageTokens(self.layers(pooled.tokens_ND), pooled.counts)

    def _pool(self, patches_IRCV: Tensor) -> Tensor:
        if self.factor is not None:
            return pool_grid(patches_IRCV, self.factor)
        _, rows, cols, _ = patches_IRCV.shape
        wanted = fitting_grid((rows, cols), self.tokens)
        pooled_IVrc = F.adaptive_avg_pool2d(patches_IRCV.permute(0, 3, 1, 2), wanted)
        return pooled_IVrc.flatten(2).transpose(1, 2)


def fitting_grid(grid: Grid, tokens: int) -> Grid:
    """The grid itself if it has at most `tokens` places, else the largest of its shape that has not more.

    Both sides shrink by the root of tokens / (rows * columns) and are rounded down, to 1 or more; the other
    side of a single row or column is at most `tokens`. Computed in integers: no machine rounds differently.
    """
    rows, cols = grid
    if rows * cols <= tokens:
        return grid
    # rows * sqrt(tokens / (rows * cols)) = sqrt(tokens * rows / cols)
    shrunk = math.isqrt(tokens * rows // cols), math.isqrt(tokens * cols // rows)
    return min(max(shrunk[0], 1), tokens), min(max(shrunk[1], 1), tokens)
