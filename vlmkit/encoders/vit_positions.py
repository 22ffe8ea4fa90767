"""Where a patch is: stored tables brought to any grid, sine-cosine tables, and rotary embedding.

What is computed is computed in float32 for each distinct grid: no buffer that a change of type could round,
and nothing that a checkpoint would have to store.

Shapes: R rows, C columns, N = R * C patches, P prefix + patches, V width, D width of a head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from vlmkit_connectors import Grid
from vlmkit_connectors.interpolate import interpolate

Rope = tuple[Tensor, Tensor]
# Base of the wavelengths of the sine-cosine table, as in the sequence model of Vaswani et al. 2017.
SINCOS_BASE = 10_000.0


def resized(table_RCV: Tensor, grid: Grid, antialias: bool) -> Tensor:
    """A table of positions for a grid of (rows, columns): as it is if it fits, else interpolated (bicubic).

    The table is stretched over the view whatever the proportions: its corners are those of the view.

    Args:
        table_RCV: One row a patch, as a grid.
        grid: Rows and columns of the view.
        antialias: Whether a table that is made smaller is smoothed, as in timm and in DINOv2 with registers;
            ViT, DeiT and DINOv2 of transformers do not.

    Returns:
        (rows * columns, V), row-major.
    """
    if tuple(table_RCV.shape[:2]) == grid:
        return table_RCV.flatten(0, 1)
    table_1VRC = table_RCV.float().permute(2, 0, 1)[None]
    fitted = interpolate(table_1VRC, grid, "bicubic", antialias=antialias)
    return fitted[0].permute(1, 2, 0).flatten(0, 1).to(table_RCV.dtype)


def sincos_2d(grid: Grid, width: int, device: torch.device | None = None) -> Tensor:
    """The fixed table of MoCo v3 for any grid: (rows * columns, width), float32.

    Chen et al. 2021 (https://arxiv.org/abs/2104.02057). A quarter of the width each: sine and cosine of the
    row, sine and cosine of the column, counted in patches; the published code of MAE has the column first.
    Another grid is computed and not interpolated: a patch has one position whatever the size of its view.
    """
    quarter = width // 4
    frequencies = 1 / SINCOS_BASE ** (torch.arange(quarter, dtype=torch.float32, device=device) / quarter)
    rows, cols = grid
    row_R1 = torch.arange(rows, dtype=torch.float32, device=device)[:, None] * frequencies
    col_C1 = torch.arange(cols, dtype=torch.float32, device=device)[:, None] * frequencies
    row_RCV = torch.cat([row_R1.sin(), row_R1.cos()], -1)[:, None].expand(-1, cols, -1)
    col_RCV = torch.cat([col_C1.sin(), col_C1.cos()], -1)[None].expand(rows, -1, -1)
    return torch.cat([row_RCV, col_RCV], -1).flatten(0, 1)


def rope_2d(
    grid: Grid, prefix: int, head_width: int, base: float, device: torch.device | None = None
) -> Rope:
    """Cosines and sines of axial rotary embedding, in the convention of DINOv3; each (P, D), float32.

    Siméoni et al. 2025 (https://arxiv.org/abs/2508.10104); rotary embedding is of Su et al. 2021
    (https://arxiv.org/abs/2104.09864). The centre of a patch has coordinates in [-1, 1] along each axis
    whatever the size of the view; they are multiplied by 2 pi / base ** (4 i / D) for i of D / 4. The first
    quarter of a head's channels is turned by the row, the second by the column, each together with the
    channel that lies D / 2 further on. The prefix is turned by nothing: cosine 1, sine 0.
    """
    frequencies = 1 / base ** torch.arange(0, 1, 4 / head_width, dtype=torch.float32, device=device)
    row_R, col_C = (_centres(count, device) for count in grid)
    centres_N2 = torch.stack(torch.meshgrid(row_R, col_C, indexing="ij"), -1).flatten(0, 1)
    angles_ND = (2 * math.pi * centres_N2[:, :, None] * frequencies).flatten(1).tile(2)
    angles_PD = F.pad(angles_ND, (0, 0, prefix, 0))
    return angles_PD.cos(), angles_PD.sin()


def _centres(count: int, device: torch.device | None) -> Tensor:
    """Centres of patches on a line from -1 to 1."""
    middles = torch.arange(0.5, count, dtype=torch.float32, device=device)
    return 2.0 * (middles / count) - 1.0


def rotated(x: Tensor, rope: Rope) -> Tensor:
    """Queries or keys turned by `rope_2d`; the tables broadcast to the shape of `x` (..., D)."""
    cos, sin = (part.to(x.dtype) for part in rope)
    front, back = x.chunk(2, -1)
    turned: Tensor = x * cos + torch.cat([-back, front], -1) * sin
    return turned
