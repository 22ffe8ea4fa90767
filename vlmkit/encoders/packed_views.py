"""What towers of native resolution make of a batch: patches and positions of all views, one after the other.

Shapes: T patches of all views, V width, D width of a head, S side of a position table, C H W a view's pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vlmkit.encoders.batch import PixelBatch
from vlmkit_connectors.interpolate import interpolate

Grids = Sequence[tuple[int, int]]


def patch_grids(batch: PixelBatch, side: int) -> list[tuple[int, int]]:
    """Whole patches of `side` pixels of each view: rows and columns."""
    return [(height // side, width // side) for height, width in batch.sizes_I2.tolist()]


def cut_patches(batch: PixelBatch, side: int) -> Tensor:
    """The patches of all views, row-major: (T, C, side, side); what makes no whole patch is left out."""
    views = zip(batch.views(), patch_grids(batch, side), strict=True)
    return torch.cat([_cut(pixels_CHW, rows, cols, side) for pixels_CHW, (rows, cols) in views])


def _cut(pixels_CHW: Tensor, rows: int, cols: int, side: int) -> Tensor:
    whole_CHW = pixels_CHW[:, : rows * side, : cols * side]
    return whole_CHW.reshape(-1, rows, side, cols, side).permute(1, 3, 0, 2, 4).flatten(0, 1)


def convolve(batch: PixelBatch, stem: Callable[[Tensor], Tensor], frames: int = 0) -> Tensor:
    """The views through a convolution whose kernel is a patch, row-major: (T, V).

    Called with whole views: a convolution of single patches is some four times as slow on a CPU.

    Args:
        batch: The views.
        stem: The convolution; what makes no whole patch at the right and lower edge is left out by it.
        frames: How often a view is repeated as a frame of a video, for 3-D kernels of that depth; 0 for 2-D.
    """
    out = []
    for pixels_CHW in batch.views():
        video = pixels_CHW[:, None].expand(-1, frames, -1, -1) if frames else pixels_CHW
        out.append(stem(video[None])[0].flatten(1).T)
    return torch.cat(out)


def resized_positions(
    table_SSV: Tensor, grids: Grids, align_corners: bool = False, antialias: bool = False
) -> Tensor:
    """A learned square table of positions at the size of each grid: (T, V).

    Each distinct grid is interpolated once, bilinearly and in float32.
    """
    source_1VSS = table_SSV.permute(2, 0, 1)[None].float()
    of_grid = {
        grid: interpolate(source_1VSS, grid, "bilinear", align_corners, antialias)[0]
        .flatten(1).T.to(table_SSV.dtype)
        for grid in dict.fromkeys(grids)
    }  # fmt: skip
    return torch.cat([of_grid[grid] for grid in grids])


def axial_rope(grids: Grids, row_frequencies: Tensor, col_frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angles of 2-D rotary positions, both (T, 1, D / 2) in float32.

    The angle of a channel is the patch's row or its column times a frequency; rows come first.

    Args:
        grids: Of the views; patches are row-major.
        row_frequencies, col_frequencies: Each D / 4 numbers.
    """
    of_grid = {}
    for rows, cols in dict.fromkeys(grids):
        place_T = torch.arange(rows * cols, device=row_frequencies.device)
        down_Td = (place_T // cols)[:, None] * row_frequencies
        right_Td = (place_T % cols)[:, None] * col_frequencies
        of_grid[rows, cols] = torch.cat([down_Td, right_Td], dim=1)
    angles_T1d = torch.cat([of_grid[grid] for grid in grids])[:, None]
    return angles_T1d.cos(), angles_T1d.sin()
