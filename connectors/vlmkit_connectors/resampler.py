"""The perceiver resampler: learned latents that look at the patches of a view and at each other.

Shapes: I views, N patches of the longest, P latents, M patches and latents, W width, K width of the heads of
keys and values.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlmkit_connectors.attention import attend, split_heads
from vlmkit_connectors.base import ImageTokens, VisionFeatures
from vlmkit_connectors.checks import check_divides, check_one_of, check_sizes
from vlmkit_connectors.layers import GatedMLP, RMSNorm, mlp_layers
from vlmkit_connectors.views import map_padded

Variant = Literal["flamingo", "idefics2"]
INIT_STD = 0.02
RMS_EPS = 1e-6


class PerceiverResampler(nn.Module):
    """`depth` layers in which latents look at a view, then a norm: (I, N, W) to (I, P, W).

    The parts and their sources are those of `PerceiverConnector`, which adds what is before and after.

    Args:
        width: Width W of patches and latents.
        num_latents: Latents a view.
        depth: Layers.
        heads: Attention heads.
        head_dim: Width of a head; absent, `width / heads`.
        ff_mult: Feed-forward layers are this many times as wide.
        kv_heads: Heads of keys and values; absent, as many as heads.
        variant: `flamingo` (layer norms, GELU) or `idefics2` (RMS norms, gated MLPs).

    Raises:
        ValueError: A size is below 1 or does not divide as it must, or there is no such variant.
    """

    def __init__(
        self,
        width: int,
        num_latents: int = 64,
        depth: int = 6,
        heads: int = 8,
        head_dim: int | None = None,
        ff_mult: int = 4,
        kv_heads: int | None = None,
        variant: Variant = "flamingo",
    ) -> None:
        super().__init__()
        check_one_of("perceiver", "variant", variant, get_args(Variant))
        check_sizes("perceiver", num_latents=num_latents, depth=depth, heads=heads, kv_heads=kv_heads)
        check_sizes("perceiver", width=width, ff_mult=ff_mult, head_dim=head_dim)
        kv_heads = heads if kv_heads is None else kv_heads
        check_divides("perceiver", "kv_heads", "heads", kv_heads=kv_heads, heads=heads)
        if head_dim is None:
            check_divides("perceiver", "heads", "width", heads=heads, width=width)
            head_dim = width // heads
        sizes = (width, heads, head_dim, kv_heads, ff_mult * width)
        self.latents = nn.Parameter(torch.empty(num_latents, width))
        self.layers = nn.ModuleList(PerceiverLayer(*sizes, variant) for _ in range(depth))
        self.norm = _norm(variant, width)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Latents from a normal distribution of deviation 0.02."""
        self.latents.normal_(std=INIT_STD)

    def forward(self, media_INW: Tensor, mask_IN: Tensor | None = None) -> Tensor:
        """Latents of each view, (I, P, W).

        Args:
            media_INW: Patches, padded to one length.
            mask_IN: bool; True for a patch, False for padding. Absent, all are patches.
        """
        if mask_IN is not None:
            mask_IN = F.pad(mask_IN, (0, len(self.latents)), value=True)
        latents_IPW = self.latents.expand(len(media_INW), -1, -1)
        for layer in self.layers:
            latents_IPW = layer(latents_IPW, media_INW, mask_IN)
        normed_IPW: Tensor = self.norm(latents_IPW)
        return normed_IPW

    def of_views(self, features: VisionFeatures) -> ImageTokens:
        """The latents of views of any grids, as wide as their patches."""
        return map_padded(features, lambda views, media_INW, mask_IN: self(media_INW, mask_IN))


class PerceiverLayer(nn.Module):
    """Latents look at patches and latents, then a feed-forward layer; pre-norm, no biases."""

    def __init__(
        self, width: int, heads: int, head_dim: int, kv_heads: int, hidden: int, variant: Variant
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads = heads, kv_heads
        self.norm_media, self.norm_latents = _norm(variant, width), _norm(variant, width)
        self.q = nn.Linear(width, heads * head_dim, bias=False)
        self.kv = nn.Linear(width, 2 * kv_heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, width, bias=False)
        self.norm_ff = _norm(variant, width)
        self.ff: nn.Module = GatedMLP(width, hidden, width)
        if variant == "flamingo":
            self.ff = mlp_layers([width, hidden, width], bias=False)

    def forward(self, latents_IPW: Tensor, media_INW: Tensor, mask_IM: Tensor | None) -> Tensor:
        """New latents; `mask_IM` is of the N patches and then of the latents."""
        normed_IPW = self.norm_latents(latents_IPW)
        both_IMW = torch.cat([self.norm_media(media_INW), normed_IPW], 1)
        keys, values = (split_heads(x_IMK, self.kv_heads) for x_IMK in self.kv(both_IMW).chunk(2, -1))
        mask_I1M = None if mask_IM is None else mask_IM.unsqueeze(1)
        seen = attend(split_heads(self.q(normed_IPW), self.heads), (keys, values), mask_I1M)
        latents_IPW = latents_IPW + self.out(seen)
        updated_IPW: Tensor = latents_IPW + self.ff(self.norm_ff(latents_IPW))
        return updated_IPW


def _norm(variant: Variant, width: int) -> nn.Module:
    return nn.LayerNorm(width) if variant == "flamingo" else RMSNorm(width, RMS_EPS)
