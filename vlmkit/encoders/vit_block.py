"""A block of our Vision Transformer, for views of one size and for views of several.

Shapes: I views, P prefix + patches of a view, T those of all views, V width, H heads, D width of a head.
A block takes (I, P, V), or (T, V) for views of several sizes, one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlmkit.encoders.batch import first_indices, first_patches, first_views
from vlmkit.encoders.packed import packed_attention
from vlmkit.encoders.vit_parts import mlp_layers, norm_layer
from vlmkit.encoders.vit_positions import Rope, rotated


@dataclass(frozen=True)
class Place:
    """What a block must know of its tokens.

    Attributes:
        lengths: Tokens of each view, prefix included, where views of several sizes are packed; else None.
        rope: Cosines and sines of all tokens, each (P, D) or packed (T, 1, D); None for no rotary embedding.
    """

    lengths: tuple[int, ...] | None = None
    rope: Rope | None = None

    def survivors(self, x: Tensor, rate: float) -> Tensor:
        """0 for a share `rate` of the views and 1 / (1 - rate) for the others: (I, 1, 1) or packed (T, 1)."""
        views = len(x) if self.lengths is None else len(self.lengths)
        kept_I = (torch.rand(views, device=x.device) >= rate).to(x.dtype) / (1 - rate)
        if self.lengths is None:
            return kept_I[:, None, None]
        lengths_I = torch.tensor(self.lengths, device=x.device)
        return kept_I.repeat_interleave(lengths_I, output_size=len(x))[:, None]

    def patches(self, x: Tensor, prefix: int) -> Tensor:
        """The patches of all views without the prefix of each: (T, V)."""
        if self.lengths is None:
            return first_patches(x, prefix)
        return torch.cat([view_PV[prefix:] for view_PV in _split(x, self.lengths)])

    def first(self, x: Tensor, image_of_view_I: Tensor) -> list[Tensor]:
        """Tokens of each image's first view, as batches (I, P, V) of one view or more, in order."""
        if self.lengths is None:
            return [first_views(x, image_of_view_I)]
        views = _split(x, self.lengths)
        return [views[i][None] for i in first_indices(image_of_view_I)]


ONE_SIZE = Place()


def _split(x: Tensor, lengths: tuple[int, ...]) -> tuple[Tensor, ...]:
    views: tuple[Tensor, ...] = x.split(lengths)  # type: ignore[no-untyped-call]
    return views


def joined(ropes: Sequence[Rope | None]) -> Rope | None:
    """The tables of each view, one after the other, each (T, 1, D); None where there are none."""
    there = [rope for rope in ropes if rope is not None]
    if not there:
        return None
    cos_TD, sin_TD = (torch.cat(parts) for parts in zip(*there, strict=True))
    return cos_TD[:, None], sin_TD[:, None]


class Block(nn.Module):
    """Pre-norm attention and MLP.

    Args:
        width: Width of the tokens.
        heads: Attention heads.
        mlp_width: Hidden width of the MLP.
        mlp: `gelu` or `swiglu`.
        norm: `layer` or `rms`.
        norm_eps: Epsilon of every norm.
        qk_norm: Whether queries and keys are normalised in each head (Dehghani et al. 2023,
            https://arxiv.org/abs/2302.05442).
        layer_scale: First value of a learned factor on each channel of both branches (Touvron et al. 2021,
            https://arxiv.org/abs/2103.17239); None for no such factor.
        drop_path: Share of the views that skip a branch in training (Huang et al. 2016,
            https://arxiv.org/abs/1603.09382).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_width: int,
        mlp: str = "gelu",
        norm: str = "layer",
        norm_eps: float = 1e-5,
        qk_norm: bool = False,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.drop_path = drop_path
        self.norm1 = norm_layer(norm, width, norm_eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = norm_layer(norm, width, norm_eps)
        self.mlp = mlp_layers(mlp, width, mlp_width)
        self.q_norm = norm_layer(norm, width // heads, norm_eps) if qk_norm else None
        self.k_norm = norm_layer(norm, width // heads, norm_eps) if qk_norm else None
        self.layer_scale1 = None if layer_scale is None else nn.Parameter(torch.full((width,), layer_scale))
        self.layer_scale2 = None if layer_scale is None else nn.Parameter(torch.full((width,), layer_scale))

    def forward(self, x: Tensor, place: Place = ONE_SIZE) -> Tensor:
        """Shape is kept."""
        x = self._add(x, self._attend(self.norm1(x), place), self.layer_scale1, place)
        return self._add(x, self.mlp(self.norm2(x)), self.layer_scale2, place)

    def _add(self, x: Tensor, branch: Tensor, scale: Tensor | None, place: Place) -> Tensor:
        branch = branch if scale is None else branch * scale
        if self.training and self.drop_path:
            branch = branch * place.survivors(branch, self.drop_path)
        return x + branch

    def _attend(self, x: Tensor, place: Place) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        if place.lengths is None:
            q_IHPD, k_IHPD, v_IHPD = qkv.permute(2, 0, 3, 1, 4)
            q_IHPD, k_IHPD = self._placed(q_IHPD, k_IHPD, place.rope)
            mixed = F.scaled_dot_product_attention(q_IHPD, k_IHPD, v_IHPD).transpose(1, 2)
        else:
            q_THD, k_THD, v_THD = qkv.unbind(1)
            q_THD, k_THD = self._placed(q_THD, k_THD, place.rope)
            mixed = packed_attention(q_THD, k_THD, v_THD, place.lengths)
        attended: Tensor = self.proj(mixed.flatten(-2))
        return attended

    def _placed(self, q: Tensor, k: Tensor, rope: Rope | None) -> tuple[Tensor, Tensor]:
        """Queries and keys, normalised and turned as far as the options say."""
        if self.q_norm is not None and self.k_norm is not None:
            # Under autocast the products are rounded and the norms are not; attention takes one type.
            exact = self.proj.weight.dtype
            q, k = self.q_norm(q.to(exact)).to(q.dtype), self.k_norm(k.to(exact)).to(k.dtype)
        return (q, k) if rope is None else (rotated(q, rope), rotated(k, rope))
