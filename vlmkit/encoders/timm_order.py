"""Whether positions of a model's outputs are patches row by row: changed pixels must show where they are.

Shapes: S side of a view in pixels, N 5 pictures (one, and it with one corner changed), P prefix + patches,
V width, R C rows and columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from vlmkit.errors import UsageError

Corner = tuple[int, int]


@contextmanager
def block_input(tower: Any, module: str) -> Iterator[list[Tensor]]:
    """The list gets what enters the module at each forward pass inside the context."""
    seen: list[Tensor] = []
    handle = tower.get_submodule(module).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        handle.remove()


def corner_pictures(side: int, stride: int) -> Tensor:
    """(5, 3, S, S): noise, and the same with the pixels of one corner patch changed."""
    generator = torch.Generator().manual_seed(0)
    pixels_NCHW = torch.randn(1, 3, side, side, generator=generator).repeat(5, 1, 1, 1)
    low, high = slice(0, stride), slice(side - stride, side)
    for i, (rows, cols) in enumerate(((low, low), (low, high), (high, low), (high, high)), start=1):
        pixels_NCHW[i, :, rows, cols] = 2 * torch.randn(3, stride, stride, generator=generator)
    return pixels_NCHW


def _corners(rows: int) -> list[Corner]:
    return [(0, 0), (0, rows - 1), (rows - 1, 0), (rows - 1, rows - 1)]


def in_order(moved_NRC: Tensor) -> bool:
    """Whether each changed corner moves its own position more than other corners', and than they move it."""
    corners = _corners(moved_NRC.shape[-1])
    moved_44 = torch.stack([moved_NRC[:, r, c] for r, c in corners], dim=1)
    own = torch.arange(4)
    return bool((moved_44.argmax(0) == own).all() and (moved_44.argmax(1) == own).all())


def count_prefix(name: str, tower: Any, module: str, pixels_NCHW: Tensor, rows: int) -> int:
    """Tokens in front of the patches at the input of block 1, where tokens have not yet seen each other.

    Args:
        name: Of the model, for messages.
        tower: The model, a plain tower.
        module: Name of block 1.
        pixels_NCHW: Of `corner_pictures`.
        rows: Rows, and columns, of patches.

    Raises:
        UsageError: The other tokens are not the patches row by row.
    """
    with block_input(tower, module) as seen:
        (after_NVRC,) = tower.forward_intermediates(
            pixels_NCHW, indices=[0], norm=False, stop_early=True, output_fmt="NCHW", intermediates_only=True
        )
    tokens_NPV = seen[0].flatten(1, -2)
    prefix, most = tokens_NPV.shape[1] - rows * rows, int(getattr(tower, "num_prefix_tokens", 0))
    if not 0 <= prefix <= most:
        raise UsageError(
            f"timm's {name}: {tokens_NPV.shape[1]} tokens enter block 1, for {rows} x {rows} patches and "
            f"num_prefix_tokens {most}; use a model whose tokens are counted right"
        )
    moved_NP = (tokens_NPV - tokens_NPV[:1]).abs().amax(-1)[1:]
    for moved_P, (row, col) in zip(moved_NP, _corners(rows), strict=True):
        at, alone = int(moved_P.argmax()) - prefix, int((moved_P > 0).sum()) == 1
        off = max(abs(at // rows - row), abs(at % rows - col))
        # A stem of overlapping convolutions moves neighbours as well, and may centre on one.
        if at < 0 or off > (0 if alone else 1):
            raise _disorder(name, (row, col), at + prefix)
    if not in_order((after_NVRC - after_NVRC[:1]).abs().amax(1)[1:]):
        raise _disorder(name, (0, 0), -1)
    return prefix


def _disorder(name: str, corner: Corner, token: int) -> UsageError:
    where = f"token {token} at the input of block 1" if token >= 0 else "another position after block 1"
    return UsageError(
        f"timm's {name}: changing the patch at row {corner[0]}, column {corner[1]} moves {where} most; its "
        "tokens are not the patches row by row behind prefix tokens, so it cannot be read"
    )
