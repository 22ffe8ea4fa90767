"""Views of any grids through a function that takes views of one grid.

Shapes: I views of one grid, R C its rows and columns, V vision width, N tokens of a view, D their width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

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


def map_padded(
    features: VisionFeatures, run: Callable[[list[int], Tensor, Tensor | None], Tensor]
) -> ImageTokens:
    """Tokens of all views, for attention, which needs no grid; views of similar length go together.

    16 views of 16 grids of about 256 patches take three quarters of the time of `map_grids`. A view is padded
    by no more than half its length, so that a large one does not cost its whole batch.

    Args:
        features: What the encoder saw.
        run: Maps the numbers of I views, their patches (I, P, V) and a mask (I, P), True where a patch is
            one, to (I, N, D). The mask is None where nothing is padded. Tokens must not depend on padding.
    """
    views = features.views()
    tokens: list[Tensor] = list(views)
    waiting = sorted(range(len(views)), key=lambda i: len(views[i]))
    while waiting:
        longest = len(views[waiting[0]]) * 3 // 2
        own = [i for i in waiting if len(views[i]) <= longest]
        waiting = waiting[len(own) :]
        padded_IPV, mask_IP = pad([views[i] for i in own])
        for i, tokens_ND in zip(own, run(own, padded_IPV, mask_IP), strict=True):
            tokens[i] = tokens_ND
    return ImageTokens(torch.cat(tokens), tuple(map(len, tokens)))


def pad(rows: list[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Rows (P, V) in one tensor (I, P, V), zeros at the end, and its mask (I, P): True where not padded.

    The mask is None where all rows are of one length.
    """
    lengths = list(map(len, rows))
    if len(set(lengths)) == 1:
        return torch.stack(rows), None
    lengths_I = torch.tensor(lengths, device=rows[0].device)
    mask_IP = torch.arange(max(lengths), device=rows[0].device) < lengths_I.unsqueeze(1)
    return pad_sequence(rows, batch_first=True), mask_IP
