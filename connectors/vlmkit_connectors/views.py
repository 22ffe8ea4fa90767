"""Views of any grids through a function that takes views of one grid.

Shapes: I views of one grid, R C its rows and columns, V vision width, N tokens of a view, D their width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vlmkit_connectors.base import ImageTokens, VisionFeatures


def map_grids(features: VisionFeatures, run: Callable[[Tensor], Tensor]) -> ImageTokens:
    """Tokens of all views, where `run` maps (I, R, C, V) to (I, N, D).

    Views of the same grid go together, and none is padded. Their order is that of the features.
    """
    grids, views = features.grids, features.views()
    numbers = {grid: [i for i, own in enumerate(grids) if own == grid] for grid in dict.fromkeys(grids)}
    if len(numbers) == 1:
        tokens_IND = run(features.patches_TV.view(len(grids), *grids[0], -1))
        return ImageTokens(tokens_IND.flatten(0, 1), (tokens_IND.shape[1],) * len(grids))
    tokens: list[Tensor] = [features.patches_TV] * len(grids)
    for grid, own in numbers.items():
        stacked = torch.stack([views[i] for i in own]).view(len(own), *grid, -1)
        for i, tokens_ND in zip(own, run(stacked), strict=True):
            tokens[i] = tokens_ND
    return ImageTokens(torch.cat(tokens), tuple(map(len, tokens)))
