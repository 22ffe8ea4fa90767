"""What each layer of a language model may see of what a row's mask allows: all of it, or what is near.

transformers limits layers only where it makes the mask itself; a mask of four dimensions is taken as it is.

Shapes: B rows, L tokens.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"


def layer_masks(config: Any, mask_B1LL: Tensor, positions_BL: Tensor) -> Tensor | dict[str, Tensor]:
    """The mask of a language model, or those of its kinds of layers by their names in `config.layer_types`.

    Distances are those of positions: in a packed row a conversation's neighbours may be far from it.

    Args:
        config: Of the language model.
        mask_B1LL: bool, True = may attend, as if no layer had a limit.
        positions_BL: Position of each token in its own conversation.
    """
    kinds = getattr(config, "layer_types", None) or [_only_kind(config)]
    masks = {kind: _limited(kind, config, mask_B1LL, positions_BL) for kind in dict.fromkeys(kinds)}
    first = next(iter(masks.values()))
    return first if all(mask is first for mask in masks.values()) else masks


def _only_kind(config: Any) -> str:
    """Of a family without `layer_types`: as Mistral, each layer has the window, if there is one."""
    return FULL if getattr(config, "sliding_window", None) is None else SLIDING


def _limited(kind: str, config: Any, mask_B1LL: Tensor, positions_BL: Tensor) -> Tensor:
    """The mask itself where the limit is beyond the longest conversation."""
    span = {SLIDING: "sliding_window", CHUNKED: "attention_chunk_size"}.get(kind, "")
    most: int | None = getattr(config, span, None)
    if most is None or int(positions_BL.max()) < most:
        return mask_B1LL
    query_BL1, key_B1L = positions_BL.unsqueeze(2), positions_BL.unsqueeze(1)
    near_BLL = query_BL1 - key_B1L < most
    if kind == CHUNKED:
        near_BLL = query_BL1 // most == key_B1L // most
    return mask_B1LL & near_BLL.unsqueeze(1)
