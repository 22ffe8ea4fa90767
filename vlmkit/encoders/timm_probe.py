"""Finding out what a model of timm gives, by real forward passes of the model with random weights.

Nothing is concluded from a name: each fact is a statement of the model that its own outputs confirm.

Shapes: S side of a view in pixels, N 5 pictures (one, and it with one corner changed), V width, R C rows and
columns, P prefix + patches.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vlmkit.encoders.timm_order import corner_pictures, count_prefix, in_order
from vlmkit.errors import UsageError

# From three rows on, a shift by one position or a transposition moves a corner beyond its neighbours.
SMALLEST = 3


@torch.no_grad()
def prove(name: str, tower: Any, side: int, projection: int) -> dict[str, Any]:
    """What is true of a model for views of `side` pixels.

    Returns:
        As plain values: `kind` (`blocks` for a plain tower, `stages` for one that shrinks the grid); `depth`,
        how many of them; `levels`, (width, stride) of each stage, or the reason why it is not proved, and one
        entry for all blocks; `prefix_tokens` in front of the patches at the input of block 1; `embed_dim` of
        the pooled vector, or the reason why there is none; `sizes`, (height, width) where grids are proved.

    Raises:
        UsageError: The model does not state what it must, or its outputs contradict it.
    """
    stated = stated_levels(name, tower)
    plain = len({(width, stride) for _, width, stride in stated}) == 1
    pixels_NCHW = corner_pictures(side, stated[-1][2])
    final, states = _run(name, tower, pixels_NCHW if not plain else pixels_NCHW[:1])
    levels = [_level(state, w, s, side) for state, (_, w, s) in zip(states, stated, strict=True)]
    reasons = [level for level in levels if isinstance(level, str)]
    if len(reasons) == len(levels) or (plain and reasons):
        listed = "; ".join(dict.fromkeys(reasons))
        raise UsageError(f"timm's {name} gives no grid of patches at {side} x {side} pixels: {listed}")
    found: dict[str, Any] = {
        "kind": "blocks" if plain else "stages",
        "depth": len(levels),
        "prefix_tokens": 0,
    }
    found["levels"] = levels[:1] if plain else levels
    if plain:
        found["prefix_tokens"] = count_prefix(name, tower, stated[0][0], pixels_NCHW, side // stated[0][2])
    found["embed_dim"] = _pooled(tower, final, pixels_NCHW[: len(final)], projection)
    found["sizes"] = [[side, side], *_second_size(tower, stated, levels, side)]
    return found


def stated_levels(name: str, tower: Any) -> list[tuple[str, int, int]]:
    """(module, width, stride) of each feature level that the model states.

    Raises:
        UsageError: It states none, or does not give them.
    """
    info = getattr(tower, "feature_info", None)
    if not info or not hasattr(tower, "forward_intermediates"):
        raise UsageError(
            f"timm's {name} has no forward_intermediates or feature_info, so its grids cannot be read; "
            "use a model that has both, such as vit_small_patch16_224.augreg_in21k or convnext_tiny.fb_in22k"
        )
    entries = getattr(info, "info", info)
    return [(str(e["module"]), int(e["num_chs"]), int(e["reduction"])) for e in entries]


def _run(name: str, tower: Any, pixels_NCHW: Tensor) -> tuple[Any, list[Tensor]]:
    """Final features and all levels, twice the same."""
    side = pixels_NCHW.shape[-1]
    try:
        final, states = tower.forward_intermediates(pixels_NCHW, norm=False, output_fmt="NCHW")
        again = tower.forward_features(pixels_NCHW)
    except Exception as error:  # Models refuse a size in many ways.
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UsageError(f"timm's {name} does not take {side} x {side} pixels: {reason}") from error
    if not isinstance(final, Tensor) or not torch.allclose(final, again, rtol=1e-4, atol=1e-5):
        raise UsageError(
            f"timm's {name}: forward_intermediates and forward_features do not give the same final features, "
            "so levels and pooled vector would not belong together; use another model"
        )
    return final, states


def _level(state: Tensor, width: int, stride: int, side: int) -> list[int] | str:
    """[width, stride] of a level, or why it is not one."""
    rows, odd = divmod(side, stride)
    found, expected = tuple(state.shape[1:]), (width, rows, rows)
    if odd:
        return (
            f"image_size {side} is not a multiple of stride {stride}; found {found[1]} x {found[2]} positions"
        )
    if found != expected:
        return f"width, rows, columns are {found}, stated are {expected}"
    if rows < SMALLEST:
        return f"{rows} x {rows} positions are too few to prove their order; give a larger image_size"
    if len(state) > 1:
        moved_NRC = (state - state[:1]).abs().amax(1)[1:]
        if not in_order(moved_NRC):
            return "a changed corner does not move its own position most"
    return [width, stride]


def _pooled(tower: Any, final: Tensor, pixels_NCHW: Tensor, projection: int) -> int | str:
    """Width of the pooled vector, or why there is none."""
    try:
        pooled = tower.forward_head(final, pre_logits=not projection)
    except Exception as error:
        return f"forward_head fails: {str(error).strip().partition(chr(10))[0] or type(error).__name__}"
    if not isinstance(pooled, Tensor) or pooled.ndim != 2 or len(pooled) != len(pixels_NCHW):
        return "forward_head does not give one vector an image"
    return int(pooled.shape[1])


def _second_size(
    tower: Any, stated: list[tuple[str, int, int]], levels: list[list[int] | str], side: int
) -> list[list[int]]:
    """A taller picture, where the model takes one and gives a row more of each proved level."""
    extra = max(stride for _, _, stride in stated)
    try:
        states = tower.forward_intermediates(
            torch.zeros(1, 3, side + extra, side), norm=False, output_fmt="NCHW", intermediates_only=True
        )
    except Exception:  # It has a table of positions for one size.
        return []
    shapes = [tuple(state.shape[2:]) for state in states]
    grids = [((side + extra) // stride, side // stride) for _, _, stride in stated]
    proved = (s == g for s, g, level in zip(shapes, grids, levels, strict=True) if not isinstance(level, str))
    return [[side + extra, side]] if all(proved) else []
