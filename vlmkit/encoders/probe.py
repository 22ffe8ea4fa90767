"""Finding out by real forwards how a vision model lays out its tokens; what cannot be shown is refused.

Pixels of one cell of a supposed grid are replaced, and the token that changes most is looked at: the grid is
proved if, cell by cell, these tokens follow each other row by row behind a number of tokens in front.

Shapes: I pictures, N tokens, V width, C H W a picture's pixels.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vlmkit.errors import VlmkitError

Form = Literal["tokens", "channels_first", "channels_last"]
# Tokens beside the patches (CLS, registers, queries of a detector) that are reckoned with.
MOST_OTHERS = 128
# Cells that are tried in a large grid beside its corners; pictures for each, and again where that is too few.
CELLS, DRAWS = 12, (2, 16)
HINT = "use an encoder of its own family, or one of yours (package.module:Class)"


@dataclass(frozen=True)
class Found:
    """What was proved.

    Attributes:
        form: How a hidden state is stored: (I, N, V), (I, V, H, W) or (I, H, W, V).
        prefix: Tokens in front of the patches; those behind them are dropped as well.
        grid: Rows, and columns, of patches of a square view.
        width: Width of the tokens.
        vector: Width of the model's own pooled vector; 0 for none.
    """

    form: Form
    prefix: int
    grid: int
    width: int
    vector: int


@dataclass(frozen=True)
class Look:
    """What one layout is looked for with: the tokens of a picture, read by a form."""

    model: Any
    layer: int
    form: Form
    picture_1CHW: Tensor
    base_1NV: Tensor
    draws: int


def hidden_state(model: Any, pixels_ICHW: Tensor, layer: int) -> tuple[Tensor, Tensor | None]:
    """The hidden state `layer` as the model has it, and its pooled vector (I, E) if there is one."""
    out = model(pixel_values=pixels_ICHW, output_hidden_states=True)
    pooled = out.get("pooler_output")
    return out["hidden_states"][layer], pooled if pooled is None else pooled.flatten(1)


def _run(model: Any, pixels_ICHW: Tensor, layer: int) -> tuple[Tensor, Tensor | None]:
    """As `hidden_state`, of a model of which nothing is known.

    Raises:
        VlmkitError: It does not take pixels alone, or gives no such state of each picture.
    """
    name = model.config.model_type
    try:
        state, pooled = hidden_state(model, pixels_ICHW, layer)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        message = f"{name}: gives no hidden state {layer} for pixels alone ({reason}); {HINT}"
        raise VlmkitError(message) from error
    if state.ndim not in (3, 4) or len(state) != len(pixels_ICHW):
        raise VlmkitError(
            f"{name}: hidden state {layer} has shape {tuple(state.shape)} for {len(pixels_ICHW)} pictures, "
            f"which is neither tokens nor a map of each; {HINT}"
        )
    return state, pooled


def as_tokens(state: Tensor, form: Form) -> Tensor:
    """A hidden state as (I, N, V), a map row by row."""
    if form == "tokens":
        return state
    return state.flatten(2).transpose(1, 2) if form == "channels_first" else state.flatten(1, 2)


@torch.no_grad()
def probe(model: Any, side: int, layer: int) -> Found:
    """Prove the layout of `layer` for views of `side` x `side` pixels.

    Args:
        model: In evaluation mode, with random weights of its own initialisation.
        side: In pixels.
        layer: An index into the model's hidden states.

    Raises:
        VlmkitError: Nothing, or more than one layout, could be shown.
    """
    name = model.config.model_type
    picture_1CHW = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    state, pooled = _run(model, picture_1CHW, layer)
    _check_steady(model, picture_1CHW, layer, state)
    vector = 0 if pooled is None else pooled.shape[1]
    layouts: list[Found] = []
    for draws in DRAWS:
        looks = [Look(model, layer, f, picture_1CHW, as_tokens(state, f), draws) for f in _forms(state)]
        layouts = [found for look in looks for found in _layouts(look, vector)]
        if layouts:
            break
    if len(layouts) != 1:
        kind = "no layout of its tokens could be proved" if not layouts else f"several fit: {layouts}"
        raise VlmkitError(
            f"{name}: hidden state {layer} has shape {tuple(state.shape)} for a view of {side} x {side} "
            f"pixels; {kind}. Try another layer or image_size, or {HINT}"
        )
    return layouts[0]


def _layouts(look: Look, vector: int) -> Iterator[Found]:
    """The layouts that are shown for one way to read a state."""
    tokens, width = look.base_1NV.shape[1:]
    for grid in _grids(tokens, look.picture_1CHW.shape[-1], look.form):
        prefix = _prefix(look, grid)
        if prefix is not None:
            yield Found(look.form, prefix, grid, width, vector)


def _check_steady(model: Any, picture_1CHW: Tensor, layer: int, state: Tensor) -> None:
    """The same picture gives the same tokens, alone and beside another one."""
    pair = torch.cat([picture_1CHW, picture_1CHW.flip(-1)])
    again, _ = _run(model, pair, layer)
    if again[:1].shape != state.shape or not torch.allclose(again[:1], state, atol=1e-4, rtol=1e-3):
        raise VlmkitError(
            f"{model.config.model_type}: two runs on one picture differ, as where patches are masked or "
            f"shuffled at random; {HINT}"
        )


def _forms(state: Tensor) -> Iterator[Form]:
    """How a state may be stored, by its shape."""
    if state.ndim == 3:
        yield "tokens"
        return
    if state.shape[2] == state.shape[3]:
        yield "channels_first"
    if state.shape[1] == state.shape[2]:
        yield "channels_last"


def _grids(tokens: int, side: int, form: Form) -> Iterator[int]:
    """Square grids that the number of tokens allows."""
    for grid in range(int(tokens**0.5), 1, -1):
        others = tokens - grid * grid
        if others <= (MOST_OTHERS if form == "tokens" else 0) and side // grid > 0:
            yield grid


def _prefix(look: Look, grid: int) -> int | None:
    """Tokens in front of a grid, if the tokens that follow cells are those of this grid; else None."""
    prefix = None
    for row, col in _cells(grid):
        changed_N = _changed(look, (row, col), grid)
        found = int(changed_N.argmax())
        if look.form != "tokens":
            if not _beside(divmod(found, grid), (row, col), grid):
                return None
            prefix = 0
            continue
        found -= row * grid + col
        if found < 0 or found + grid * grid > len(changed_N) or prefix not in (None, found):
            return None
        prefix = found
    return prefix


def _beside(found: tuple[int, int], cell: tuple[int, int], grid: int) -> bool:
    """Whether a place of a map is the cell, or one beside it.

    Convolutions that overlap may be centred half a cell off. Of a map only its two axes are in question, and
    from four rows on a neighbour is told from the place that it has with the axes exchanged.
    """
    reach = 1 if grid >= 4 else 0
    return max(abs(found[0] - cell[0]), abs(found[1] - cell[1])) <= reach


def _cells(grid: int) -> list[tuple[int, int]]:
    """All cells of a small grid, else some: with the corners, and off the diagonal."""
    every = [(row, col) for row in range(grid) for col in range(grid)]
    corners = [every[0], every[grid - 1], every[-grid], every[-1]]
    rest = [cell for cell in every if cell not in corners]
    return corners + random.Random(0).sample(rest, min(CELLS, len(rest)))


def _changed(look: Look, cell: tuple[int, int], grid: int) -> Tensor:
    """How much each token changes, (N,), where the pixels of a cell are others."""
    (row, col), step = cell, look.picture_1CHW.shape[-1] // grid
    pictures = look.picture_1CHW.repeat(look.draws, 1, 1, 1)
    generator = torch.Generator().manual_seed(1 + row * grid + col)
    new = 2 * torch.randn(look.draws, 3, step, step, generator=generator)
    pictures[:, :, row * step : (row + 1) * step, col * step : (col + 1) * step] = new
    tokens = as_tokens(_run(look.model, pictures, look.layer)[0], look.form)
    changed_N: Tensor = (tokens - look.base_1NV).norm(dim=-1).mean(0)
    return changed_N
