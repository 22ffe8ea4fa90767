"""Interpolation of grids, kept right where torch's is not.

Shapes: I pictures, V channels, R C rows and columns.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from vlmkit_connectors.base import Grid


def interpolate(
    picture_IVRC: Tensor,
    grid: Grid,
    mode: Literal["bilinear", "bicubic"],
    align_corners: bool = False,
    antialias: bool = False,
) -> Tensor:
    """As torch's, also for grids of one column: (I, V, rows, columns).

    Antialiased to one column, torch 2.13 on a CPU repeats the first row, for most ways in which a picture can
    be stored.
    """
    # One row is right: rows and columns change places on the way there and back.
    turned = antialias and grid[1] == 1
    picture = picture_IVRC.mT if turned else picture_IVRC
    size = (1, grid[0]) if turned else grid
    resized = F.interpolate(picture, size, mode=mode, align_corners=align_corners, antialias=antialias)
    return resized.mT if turned else resized
