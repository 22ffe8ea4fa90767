"""Attention over views that lie one after the other: none sees another one, and nothing is padded.

The views of NaViT's "patch n' pack" (Dehghani et al. 2023, https://arxiv.org/abs/2307.06304), without a mask:
views of one length go together through torch's `scaled_dot_product_attention`. The variable-length kernels
that some GPUs have are not used: the result is the same, and this runs everywhere.

Shapes: T patches of all views, I views (or windows), H heads, D width of a head, N patches of one view.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def packed_attention(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    lengths: Sequence[int],
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention in which the patches of a view see those of the same view only.

    Equal to attention over padded views with a mask, up to the order of sums. There is one call of
    `scaled_dot_product_attention` for each distinct length.

    Args:
        q_THD, k_THD, v_THD: Of all views, one after the other.
        lengths: Patches of each view, or of each window of it (see `windows`); their sum is T.
        scale: Of the scores; 1 / sqrt(D) if None.
        dropout: Share of the attention weights that is dropped.

    Returns:
        (T, H, D), in the order of the arguments.
    """
    runs = [(length, len(list(equal))) for length, equal in groupby(lengths)]
    spans = [length * count for length, count in runs]
    q_spans, k_spans, v_spans = (torch.split(x_THD, spans) for x_THD in (q_THD, k_THD, v_THD))
    out_spans: dict[int, Tensor] = {}
    for length, members in by_length([length for length, _ in runs]).items():
        q_IHND, k_IHND, v_IHND = (_batch(x, members, length) for x in (q_spans, k_spans, v_spans))
        out_IHND = scaled_dot_product_attention(q_IHND, k_IHND, v_IHND, dropout_p=dropout, scale=scale)
        out_THD = out_IHND.transpose(1, 2).flatten(0, 1)
        own = torch.split(out_THD, [spans[i] for i in members])
        out_spans.update(zip(members, own, strict=True))
    return _join([out_spans[i] for i in range(len(runs))])


def _batch(spans: Sequence[Tensor], members: Sequence[int], length: int) -> Tensor:
    """Views of one length as a batch: (I, H, N, D)."""
    joined_THD = _join([spans[i] for i in members])
    return joined_THD.view(-1, length, *joined_THD.shape[1:]).transpose(1, 2)


def _join(spans: list[Tensor]) -> Tensor:
    """One after the other; views that are all of one length are not copied."""
    return spans[0] if len(spans) == 1 else torch.cat(spans)


def by_length(lengths: Sequence[int]) -> dict[int, list[int]]:
    """Each distinct length, and where it stands in the list."""
    members: dict[int, list[int]] = defaultdict(list)
    for i, length in enumerate(lengths):
        members[length].append(i)
    return dict(members)


def windows(rows: int, cols: int, side: int) -> tuple[Tensor, list[int]]:
    """Cut a grid into windows of `side` x `side` patches, for attention that stays within them.

    Windows follow row by row, and so do the patches of each; those at the right and lower edge are smaller.
    With patches in this order, window attention is `packed_attention` with other lengths.

    Returns:
        The row-major index of each patch in the new order (rows * cols; int64), and the patches of each
        window.
    """
    beside = -(-cols // side)
    window_RC = torch.arange(rows)[:, None] // side * beside + torch.arange(cols) // side
    window_N = window_RC.flatten()
    return window_N.argsort(stable=True), window_N.bincount().tolist()


def inverse(order_T: Tensor) -> Tensor:
    """The order that undoes an order."""
    return order_T.argsort()
