"""Views of any grids through a function that takes views of one grid.

No views give no tokens, of the right width: the functions are then called with I = 0.

Shapes: I views of one grid, R C its rows and columns, P patches of the longest, V vision width, N tokens of a
view, D their width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vlmkit_connectors.base import Grid, ImageTokens, VisionFeatures


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
    if len(numbers) <= 1:
        shapes = grids[0] if grids else [(1, 1)] * len(features)
        tokens_IND = run([_stack(own.patches_TV, len(grids), *s) for own, s in zip(features, shapes)])
        return ImageTokens(tokens_IND.flatten(0, 1), (tokens_IND.shape[1],) * len(grids))
    views = [own.views() for own in features]

    def stack(chosen: list[int], shapes: Sequence[Grid]) -> list[Tensor]:
        pairs = zip(views, shapes, strict=True)
        return [_stack(torch.stack([own[i] for i in chosen]), len(chosen), *shape) for own, shape in pairs]

    return _join((chosen, run(stack(chosen, shapes))) for shapes, chosen in numbers.items())


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
    if not views:
        return ImageTokens(run([], features.patches_TV.unsqueeze(1), None).flatten(0, 1), ())
    return _join((own, run(own, *pad([views[i] for i in own]))) for own in _similar(list(map(len, views))))


def shrink(grid: Grid, factor: int) -> Grid:
    """The grid of squares of factor x factor patches: ceil(rows / factor) by ceil(columns / factor)."""
    return math.ceil(grid[0] / factor), math.ceil(grid[1] / factor)


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


def _similar(lengths: list[int]) -> list[list[int]]:
    """Numbers of views in groups; the longest of a group is at most half longer than its shortest."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if not groups or lengths[i] > lengths[groups[-1][0]] * 3 // 2:
            groups.append([])
        groups[-1].append(i)
    return groups


def _stack(patches: Tensor, views: int, rows: int, cols: int) -> Tensor:
    """Patches of views of one grid, (I * R * C, V) or (I, R * C, V), to (I, R, C, V)."""
    return patches.view(views, rows, cols, patches.shape[-1])


def _join(groups: Iterable[tuple[list[int], Tensor]]) -> ImageTokens:
    """Tokens (I, N, D) of views with their numbers, to tokens of all views in order."""
    tokens = {i: own_ND for chosen, own_IND in groups for i, own_ND in zip(chosen, own_IND, strict=True)}
    ordered = [tokens[i] for i in range(len(tokens))]
    return ImageTokens(torch.cat(ordered), tuple(map(len, ordered)))
