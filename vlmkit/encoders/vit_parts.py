"""The parts of our Vision Transformer.

The convolutional stem follows Xiao et al. 2021 (https://arxiv.org/abs/2106.14881) with group norm for batch
norm, so that a loss does not depend on how a batch is split; MAP pooling is the attention head of Zhai et al.
2022 (https://arxiv.org/abs/2106.04560).

Shapes: I views, B images, N patches, P prefix + patches of a view, T those of all views, V width, D width of
a head, C H W a view's pixels. Blocks take (I, P, V), or (T, V) for views of several sizes.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INIT_STD = 0.02
GROUP = 16


class PatchStem(nn.Module):
    """One convolution of patch size and stride: (I, 3, H, W) to (I, N, V)."""

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, width, patch_size, patch_size)

    def forward(self, pixels_ICHW: Tensor) -> Tensor:
        """Row-major patches."""
        patches_IVN: Tensor = self.projection(pixels_ICHW).flatten(2)
        return patches_IVN.transpose(1, 2)


class ConvStem(nn.Module):
    """3x3 stride-2 convolutions with group norm and GELU, channels doubled: (I, 3, H, W) to (I, N, V)."""

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        steps = int(math.log2(patch_size))
        channels = [3] + [max(width >> (steps - 1 - i), 16) for i in range(steps - 1)] + [width]
        layers: list[nn.Module] = []
        for before, after in pairwise(channels):
            conv = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
            layers += [conv, nn.GroupNorm(max(1, after // GROUP), after), nn.GELU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, pixels_ICHW: Tensor) -> Tensor:
        """Row-major patches."""
        patches_IVN: Tensor = self.layers(pixels_ICHW).flatten(2)
        return patches_IVN.transpose(1, 2)


def norm_layer(kind: str, width: int, eps: float) -> nn.Module:
    """Layer norm, or with `rms` the norm without mean and bias of Zhang & Sennrich 2019."""
    return nn.RMSNorm(width, eps) if kind == "rms" else nn.LayerNorm(width, eps)


class Gate(nn.Module):
    """The gate of SwiGLU (Shazeer 2020, https://arxiv.org/abs/2002.05202): (..., 2 H) to (..., H).

    The first half, through SiLU, weighs the second one.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Halves of the last dimension."""
        gate, up = x.chunk(2, -1)
        return F.silu(gate) * up


def mlp_layers(kind: str, width: int, hidden: int) -> nn.Sequential:
    """An MLP of `hidden` channels, with exact GELU or as SwiGLU."""
    if kind == "swiglu":
        return nn.Sequential(nn.Linear(width, 2 * hidden), Gate(), nn.Linear(hidden, width))
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class MapHead(nn.Module):
    """Multi-head attention pooling: one learned query looks at all patches, then an MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.empty(1, 1, width))
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The query from a normal distribution of deviation 0.02."""
        nn.init.trunc_normal_(self.query, std=INIT_STD)

    def forward(self, patches_BNV: Tensor) -> Tensor:
        """(B, N, V) to (B, V)."""
        batch, patches, width = patches_BNV.shape
        q = self.q(self.query).expand(batch, -1, -1).view(batch, 1, self.heads, -1).transpose(1, 2)
        k, v = self.kv(patches_BNV).view(batch, patches, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        pooled = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, width))
        pooled_BV: Tensor = pooled + self.mlp(self.norm(pooled))
        return pooled_BV
