"""Attention masks of packed rows.

Shapes: B rows, L tokens.
"""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor


def branch_mask(branches_BL: Tensor, segments_BL: Tensor | None = None) -> Tensor:
    """Which token may look at which: (B, 1, L, L), True = may attend; rows of the last two axes are queries.

    Token i sees token j iff j <= i, both are of one segment, and branch[j] is 0 or branch[i]. Padding sees
    itself only, so that its softmax is finite, and nothing else sees padding.

    Args:
        branches_BL: 0 for the prefix, k >= 1 for a branch, -1 for padding.
        segments_BL: Which sample's row a token belongs to; None where each row is one sample's.
    """
    length = branches_BL.shape[1]
    query_BL1, key_B1L = branches_BL.unsqueeze(2), branches_BL.unsqueeze(1)
    causal_LL = torch.ones(length, length, dtype=torch.bool, device=branches_BL.device).tril()
    seen_BLL = causal_LL & (query_BL1 >= 0) & ((key_B1L == 0) | (key_B1L == query_BL1))
    if segments_BL is not None:
        seen_BLL &= segments_BL.unsqueeze(2) == segments_BL.unsqueeze(1)
    itself_LL = torch.eye(length, dtype=torch.bool, device=branches_BL.device)
    return (seen_BLL | itself_LL).unsqueeze(1)


def segment_bounds(segments_BL: Tensor) -> list[list[tuple[int, int]]]:
    """Where each row's segments start, and where they stop; padding behind them is none."""
    rows: list[list[tuple[int, int]]] = []
    for row_L in segments_BL:
        lengths = torch.unique_consecutive(row_L[row_L >= 0], return_counts=True)[1].tolist()
        stops = list(accumulate(lengths))
        rows.append(list(zip([0, *stops], stops)))
    return rows


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask as one to add to scores: 0 where True, the type's most negative number elsewhere.

    Eager attention in transformers adds what it is given, and reads a boolean mask silently wrong.
    """
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
