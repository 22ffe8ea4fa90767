"""Attention over rows of several samples, a sample at a time.

One call with a mask computes all L x L scores of a row and throws most of them away: with eight samples a row
seven of eight. A call for each sample computes what is kept (benchmarks/long_rows.py has both).

Shapes: B rows, H heads, L tokens, E width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

# Its name among transformers' implementations of attention.
SEGMENTED = "vlmkit_segments"


def attend_in_segments(language_model: Any, on: bool) -> None:
    """Let a language model's attention run a segment at a time where rows have several, or as before.

    Without it rows are right as well, by their mask alone. So stay what was loaded with eager attention, and
    families that do not call transformers' attention functions.
    """
    config = language_model.config
    if not on:
        if config._attn_implementation == SEGMENTED:
            config._attn_implementation = "sdpa"
        return
    if config._attn_implementation == "sdpa" and type(language_model)._can_set_attn_implementation():
        AttentionInterface.register(SEGMENTED, segment_attention)
        AttentionMaskInterface.register(SEGMENTED, sdpa_mask)
        config._attn_implementation = SEGMENTED


def segment_attention(
    module: nn.Module,
    query_BHLE: Tensor,
    key_BHLE: Tensor,
    value_BHLE: Tensor,
    attention_mask: Tensor | None,
    segment_bounds: Sequence[Sequence[tuple[int, int]]] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """An attention function of transformers: (B, L, H, E), and no weights; padding gets zeros.

    Args:
        module: The layer.
        query_BHLE: Queries; keys and values may have fewer heads.
        key_BHLE: Keys.
        value_BHLE: Values.
        attention_mask: (B, 1 or H, L, L), by which no segment sees another.
        segment_bounds: Start and stop of each segment of each row; None for one call over all.
        **kwargs: For transformers' function.
    """
    given = (query_BHLE, key_BHLE, value_BHLE)
    if segment_bounds is None:
        found: tuple[Tensor, None] = sdpa_attention_forward(module, *given, attention_mask, **kwargs)
        return found
    assert attention_mask is not None
    # Split once, not sliced: the backward pass of a slice fills the whole tensor with zeros for each.
    own_rows = zip(*(torch.split(tensor, 1) for tensor in given), strict=True)
    rows, length = [], query_BHLE.shape[2]
    for row, (own, bounds) in enumerate(zip(own_rows, segment_bounds, strict=True)):
        lengths = [stop - start for start, stop in bounds]
        lengths.append(length - sum(lengths))
        split = zip(*(torch.split(tensor, lengths, 2) for tensor in own), strict=True)
        parts = []
        for (start, stop), segment in zip(bounds, split):
            mask = attention_mask[row : row + 1, :, start:stop, start:stop]
            parts.append(sdpa_attention_forward(module, *segment, mask, **kwargs)[0])
        _, _, heads, width = parts[0].shape
        parts.append(parts[0].new_zeros(1, length - bounds[-1][1], heads, width))
        rows.append(torch.cat(parts, dim=1))
    return torch.cat(rows), None
