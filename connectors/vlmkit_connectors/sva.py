"""Cambrian-1's Spatial Vision Aggregator: a token asks every encoder what it sees at the token's place.

Shapes: I views, R C rows and columns of an encoder's grid, V its width, N tokens of a view, h w rows and
columns of a window, W inner width, D width of the language model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlmkit_connectors.base import Connector, Grid, ImageTokens, Questions, VisionFeatures
from vlmkit_connectors.checks import check_divides, check_sizes
from vlmkit_connectors.fuse import same_views
from vlmkit_connectors.layers import mlp_layers
from vlmkit_connectors.pool import fitting_grid
from vlmkit_connectors.sva_group import SVAGroup, cut_windows
from vlmkit_connectors.views import map_views


class SVAConnector(Connector):
    """Queries in a grid; each attends to the window at its place in the features of every encoder.

    Tong et al. 2024 (https://arxiv.org/abs/2406.16860), as in the released code: a query is one vector that
    all places share, its context the mean of the first encoder's features. Groups run side by side, each
    with a query and layers of its own; their channels are joined, so more groups are not more tokens.

    Any grids: tokens form a grid of at most `tokens` places, of the shape of the first encoder's, see
    `fitting_grid`. Each encoder's features are resampled (see `resize`) to the multiple of the token grid
    nearest to their own grid, at least the token grid itself, and cut into equal windows.

    What differs: there the token grid is always the same square, and the multiples are set by hand; windows
    are squares of one size; shrinking is not antialiased; padding around a picture is masked, here views
    have none. Applying the aggregator again inside the language model is not built.

    Args:
        vision_widths: Width of each encoder; their features stay apart. The first one's grid counts.
        text_width: Width of the language model's embeddings.
        tokens: Most tokens of a view; with no more patches than that, each window is one patch of an encoder,
            and one encoder alone leaves attention nothing to choose from.
        groups: Groups of queries.
        depth: Layers of a group.
        heads: Attention heads; 16 as published.
        width: Inner width, absent that of the widest encoder; 1024 as published.
        window: Side of the learned tables of positions in a window, one a layer and encoder; 4 as published
            for the finest encoder. Windows of other shapes resize them, windows of one patch take none.
    """

    source = "Cambrian-1, https://arxiv.org/abs/2406.16860"

    def __init__(
        self,
        vision_widths: Sequence[int],
        text_width: int,
        tokens: int = 576,
        groups: int = 1,
        depth: int = 3,
        heads: int = 8,
        width: int | None = None,
        window: int = 4,
    ) -> None:
        super().__init__()
        inner = max(vision_widths) if width is None else width
        check_sizes("sva", tokens=tokens, groups=groups, depth=depth, heads=heads, width=inner)
        check_sizes("sva", window=window)
        check_divides("sva", "heads", "width", heads=heads, width=inner)
        self.tokens = tokens
        self.projections = nn.ModuleList(
            nn.Sequential(*mlp_layers([own, inner, inner]), nn.LayerNorm(inner)) for own in vision_widths
        )
        encoders = len(vision_widths)
        self.groups = nn.ModuleList(SVAGroup(inner, depth, heads, encoders, window) for _ in range(groups))
        self.output = mlp_layers([groups * inner, text_width, text_width])

    @classmethod
    def tiny_options(cls) -> dict[str, Any]:
        """See `Connector.tiny_options`."""
        return {"tokens": 4, "depth": 1, "heads": 2, "width": 16}

    def num_tokens(self, grid: Grid) -> int:
        """See `Connector.num_tokens`; the grid is the first encoder's."""
        return math.prod(self.token_grid(grid))

    def token_grid(self, grid: Grid) -> Grid:
        """See `Connector.token_grid`: `fitting_grid`."""
        return fitting_grid(grid, self.tokens)

    def forward(self, features: Sequence[VisionFeatures], text: Questions | None = None) -> ImageTokens:
        """See `Connector.forward`; the question is not looked at.

        Raises:
            ValueError: The encoders see different views, or are not as many as `vision_widths`.
        """
        for other in features[1:]:
            same_views(other, features[0])
        return map_views(features, self._aggregate)

    def _aggregate(self, views: Sequence[Tensor]) -> Tensor:
        """Patches (I, R, C, V) of each encoder to tokens (I, N, D)."""
        grid = self.token_grid((views[0].shape[1], views[0].shape[2]))
        windows_INhwW = [
            project(cut_windows(view_IRCV, grid))
            for project, view_IRCV in zip(self.projections, views, strict=True)
        ]
        tokens = [group(windows_INhwW) for group in self.groups]
        tokens_IND: Tensor = self.output(torch.cat(tokens, dim=-1))
        return tokens_IND
