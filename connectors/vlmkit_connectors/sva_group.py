"""What a group of the Spatial Vision Aggregator's queries does with the windows of every encoder.

Shapes: I views, R C rows and columns of an encoder's grid, V its width, N tokens of a view, h w rows and
columns of a window, K patches of a token's windows in all encoders, W inner width, S side of a table.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vlmkit_connectors.base import Grid
from vlmkit_connectors.fuse import resize
from vlmkit_connectors.layers import mlp_layers


class SVAGroup(nn.Module):
    """A query for all places, and the layers that it goes through.

    Args:
        width: Inner width W.
        depth: Number of layers.
        heads: Attention heads.
        encoders: Number of encoders.
        window: Side S of the tables of positions.
    """

    def __init__(self, width: int, depth: int, heads: int, encoders: int, window: int) -> None:
        super().__init__()
        self.query_W = nn.Parameter(torch.empty(width))
        self.layers = nn.ModuleList(SVALayer(width, heads, encoders, window) for _ in range(depth))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The query from a normal distribution of deviation 1 / sqrt(W); there W is the language model's."""
        self.query_W.normal_(std=len(self.query_W) ** -0.5)

    def forward(self, windows_INhwW: Sequence[Tensor]) -> Tensor:
        """Tokens (I, N, W) from the windows of each encoder."""
        first = windows_INhwW[0]
        context_I1W = first.mean(dim=(1, 2, 3)).unsqueeze(1)
        tokens_INW = self.query_W.expand(len(first), first.shape[1], -1)
        for layer in self.layers:
            tokens_INW = layer(tokens_INW, context_I1W, windows_INhwW)
        return tokens_INW


class SVALayer(nn.Module):
    """The query takes the context in, looks at its windows, and an MLP changes the token.

    One softmax goes over the windows of all encoders.

    Args: see `SVAGroup`.
    """

    def __init__(self, width: int, heads: int, encoders: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.context = nn.Linear(width, width, bias=False)
        self.enter = nn.Linear(2 * width, width, bias=False)
        self.query = _normed(width)
        self.keys = nn.ModuleList(_normed(width) for _ in range(encoders))
        self.values = nn.ModuleList(_normed(width) for _ in range(encoders))
        tables = (nn.Parameter(torch.empty(window, window, width)) for _ in range(encoders))
        self.positions_SSW = nn.ParameterList(tables)
        self.attended = nn.Linear(width, width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.leave = mlp_layers([width, width, width], bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Positions from a normal distribution of deviation 1: as large as the features they mark."""
        for table in self.positions_SSW:
            table.normal_()

    def forward(self, tokens_INW: Tensor, context_I1W: Tensor, windows_INhwW: Sequence[Tensor]) -> Tensor:
        """The tokens after this layer."""
        context_INW = self.context(context_I1W).expand_as(tokens_INW)
        asking_INW = self.enter(torch.cat([tokens_INW, context_INW], dim=-1))
        seen = [_marked(own, table) for own, table in zip(windows_INhwW, self.positions_SSW, strict=True)]
        keys_INKW = torch.cat([key(own) for key, own in zip(self.keys, seen, strict=True)], dim=2)
        values_INKW = torch.cat([value(own) for value, own in zip(self.values, seen, strict=True)], dim=2)
        found_INW = self.attended(attend_own(self.query(asking_INW), keys_INKW, values_INKW, self.heads))
        changed_INW: Tensor = self.leave(self.norm(asking_INW + found_INW))
        return tokens_INW + changed_INW


def attend_own(query_INW: Tensor, keys_INKW: Tensor, values_INKW: Tensor, heads: int) -> Tensor:
    """Attention of each token over its own K patches, (I, N, W)."""
    # Plain products: fused kernels are made for long sequences, and here are many of one query each.
    views, tokens, patches, width = keys_INKW.shape
    query = query_INW.view(views, tokens, heads, 1, width // heads)
    keys, values = (
        t.view(views, tokens, patches, heads, width // heads).transpose(2, 3)
        for t in (keys_INKW, values_INKW)
    )
    scores = query @ keys.transpose(-1, -2) * query.shape[-1] ** -0.5
    weights = scores.float().softmax(dim=-1).to(values.dtype)
    return torch.matmul(weights, values).flatten(2)


def cut_windows(patches_IRCV: Tensor, grid: Grid) -> Tensor:
    """Windows (I, N, h, w, V) of one encoder, one for each place of the token grid, row by row.

    The features are resampled to the multiple of `grid` nearest to their own grid, at least `grid` itself.
    """
    rows, cols = (max(1, (2 * own + n) // (2 * n)) for own, n in zip(patches_IRCV.shape[1:3], grid))
    whole = resize(patches_IRCV, (grid[0] * rows, grid[1] * cols))
    apart = whole.view(len(whole), grid[0], rows, grid[1], cols, whole.shape[-1])
    return apart.transpose(2, 3).flatten(1, 2)


def _marked(windows_INhwW: Tensor, table_SSW: Tensor) -> Tensor:
    """Patches (I, N, h * w, W) with their position in the window; a window of one patch has none."""
    rows, cols = windows_INhwW.shape[2:4]
    if rows * cols > 1:
        return (windows_INhwW + resize(table_SSW.unsqueeze(0), (rows, cols))).flatten(2, 3)
    # Without a gradient, even of zeros, training on several GPUs stops: another one may see larger windows.
    return windows_INhwW.flatten(2, 3) + 0.0 * table_SSW.sum()


def _normed(width: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width, bias=False))
