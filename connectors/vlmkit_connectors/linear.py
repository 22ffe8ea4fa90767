"""One linear layer a patch: the projectors of LLaVA and PaliGemma."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from vlmkit_connectors.base import Connector, Grid, ImageTokens, Questions, VisionFeatures
from vlmkit_connectors.fuse import concat_encoders


class LinearConnector(Connector):
    """One linear layer, applied to every patch.

    With its bias it is the projector of the first LLaVA (Liu et al. 2023, https://arxiv.org/abs/2304.08485)
    and of PaliGemma (Beyer et al. 2024, https://arxiv.org/abs/2407.07726). Gemma multiplies the embeddings of
    words by the root of their width; in PaliGemma image tokens enter as the layer gives them, and so here.

    Args:
        vision_widths: Width of each encoder; several are concatenated.
        text_width: Width of the language model's embeddings.
        bias: Whether the layer has a bias.
    """

    source = "LLaVA, https://arxiv.org/abs/2304.08485"

    def __init__(self, vision_widths: Sequence[int], text_width: int, bias: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(sum(vision_widths), text_width, bias=bias)

    def num_tokens(self, grid: Grid) -> int:
        """See `Connector.num_tokens`: one a patch."""
        return math.prod(grid)

    def token_grid(self, grid: Grid) -> Grid:
        """See `Connector.token_grid`: that of the patches."""
        return grid

    def forward(self, features: Sequence[VisionFeatures], text: Questions | None = None) -> ImageTokens:
        """See `Connector.forward`; the question is not looked at."""
        fused = concat_encoders(features)
        return ImageTokens(self.linear(fused.patches_TV), tuple(map(self.num_tokens, fused.grids)))
