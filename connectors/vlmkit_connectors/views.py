"""Views of any grids through a function that takes views of one grid.

Shapes: I views of one grid, R C its rows and columns, V vision width, N tokens of a view, D their width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vlmkit_connectors.base import ImageTokens, VisionFeatures


def map_grids(features: VisionFeatures, run: Callable[[Tensor], Tensor]) -> ImageTokens:
    """Tokens of all views, where `run` maps (I, R, C, V) to (I, N, D).

    Views of the same grid go together, and none is padded. Their order is that of the features.
    """
    return map_views([features], lambda views: run(views[0]))


def map_views(features: Sequence[VisionFeatures], run: Callable[[Sequence[Tensor]], Tensor]) -> ImageTokens:
    """The same for several encoders on the same views: `run` gets one (I, R, C, V) an encoder.

    Views go together whose grids are the same in every encoder.
    """
    grids = list(zip(*(own.grids for own in features), strict=True))
    numbers = {grid: [i for i, own in enumerate(grids) if own == grid] for grid in dict.fromkeys(grids)}
    if len(numbers) == 1:
        stacked = [own.patches_TV.view(len(grids), *grid, -1) for own, grid in zip(features, grids[0])]
        tokens_IND = run(stacked)
        return ImageTokens(tokens_IND.flatten(0, 1), (tokens_IND.shape[1],) * len(grids))
    views = [own.views() for own in features]
    tokens: list[Tensor] = [features[0].patches_TV] * len(grids)
    for shapes, numbered in numbers.items():
        pairs = zip(views, shapes, strict=True)
        stacked = [
            torch.stack([own[i] for i in numbered]).view(-1, *grid, own[0].shape[1]) for own, grid in pairs
        ]
        for i, tokens_ND in zip(numbered, run(stacked), strict=True):
            tokens[i] = tokens_ND
    return ImageTokens(torch.cat(tokens), tuple(map(len, tokens)))
