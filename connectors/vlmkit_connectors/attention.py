"""Attention with a mask of keys, and the checks of the sizes it needs.

Shapes: I views, N tokens that look, M tokens they look at, W width of all heads, K width of the heads of keys
and values, H heads, d width of a head.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def attend(
    queries_INW: Tensor, keys_IMK: Tensor, values_IMK: Tensor, heads: int, mask_IM: Tensor | None = None
) -> Tensor:
    """Scaled dot-product attention, (I, N, W); each query sees at least one key.

    Args:
        queries_INW: Queries of all heads, side by side.
        keys_IMK: Keys. Fewer heads than those of the queries each serve as many of them in turn (Ainslie et
            al. 2023, https://arxiv.org/abs/2305.13245).
        values_IMK: Values, of as many heads as the keys.
        heads: Heads of the queries.
        mask_IM: bool; True for a token, False for padding. Absent, all are tokens.
    """
    head_dim = queries_INW.shape[2] // heads
    queries, keys, values = (_split(x, head_dim) for x in (queries_INW, keys_IMK, values_IMK))
    shared = heads // keys.shape[1]
    if shared > 1:
        # Repeated here, not by `enable_gqa`: with a mask that has no fused kernel on a GPU.
        keys, values = keys.repeat_interleave(shared, 1), values.repeat_interleave(shared, 1)
    mask_I11M = None if mask_IM is None else mask_IM[:, None, None]
    seen_IHNd = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask_I11M)
    return seen_IHNd.transpose(1, 2).flatten(2)


def _split(x_INW: Tensor, head_dim: int) -> Tensor:
    """(I, N, H * d) to (I, H, N, d)."""
    return x_INW.view(*x_INW.shape[:2], -1, head_dim).transpose(1, 2)


def check_sizes(connector: str, **sizes: int) -> None:
    """Refuse sizes below 1.

    Raises:
        ValueError: One is; the message names it.
    """
    wrong = [f"{name}={size}" for name, size in sizes.items() if size < 1]
    if wrong:
        raise ValueError(f"{connector} connector: found {', '.join(wrong)}; give 1 or more")


def check_divides(connector: str, part: str, whole: str, **sizes: int) -> None:
    """Refuse a size `part` that does not divide the size `whole`.

    Raises:
        ValueError: It does not; the message lists those that do.
    """
    total = sizes[whole]
    if total % sizes[part]:
        possible = ", ".join(str(n) for n in range(1, total + 1) if total % n == 0)
        raise ValueError(
            f"{connector} connector: found {part}={sizes[part]}, which does not divide {whole}={total}; "
            f"possible are {possible}: give one of them as {part}, or another {whole}"
        )
