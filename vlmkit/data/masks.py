"""Attention masks of packed rows.

Shapes: B rows, L tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor


def branch_mask(branches_BL: Tensor) -> Tensor:
    """Which token may look at which: (B, 1, L, L), True = may attend; rows of the last two axes are queries.

    Token i sees token j iff j <= i and branch[j] is 0 or branch[i]. Padding sees itself only, so that its
    softmax is finite, and nothing else sees padding.

    Args:
        branches_BL: 0 for the prefix, k >= 1 for a branch, -1 for padding.
    """
    length = branches_BL.shape[1]
    query_BL1, key_B1L = branches_BL.unsqueeze(2), branches_BL.unsqueeze(1)
    causal_LL = torch.ones(length, length, dtype=torch.bool, device=branches_BL.device).tril()
    seen_BLL = causal_LL & (query_BL1 >= 0) & ((key_B1L == 0) | (key_B1L == query_BL1))
    itself_LL = torch.eye(length, dtype=torch.bool, device=branches_BL.device)
    return (seen_BLL | itself_LL).unsqueeze(1)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask as one to add to scores: 0 where True, the type's most negative number elsewhere.

    Eager attention in transformers adds what it is given, and reads a boolean mask silently wrong.
    """
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
