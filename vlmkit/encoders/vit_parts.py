"""The parts of our Vision Transformer.

The convolutional stem follows Xiao et al. 2021 (https://arxiv.org/abs/2106.14881) with group norm for batch
norm, so that a loss does not depend on how a batch is split; MAP pooling is the attention head of Zhai et al.
2022 (https://arxiv.org/abs/2106.04560).

Shapes: I views, B images, N patches, P prefix + patches, V width, C H W a view's pixels.
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


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        hidden = int(width * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x_IPV: Tensor) -> Tensor:
        """Shape is kept."""
        x_IPV = x_IPV + self._attend(self.norm1(x_IPV))
        x_IPV = x_IPV + self.mlp(self.norm2(x_IPV))
        return x_IPV

    def _attend(self, x_IPV: Tensor) -> Tensor:
        views, tokens, width = x_IPV.shape
        q, k, v = self.qkv(x_IPV).view(views, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(views, tokens, width)
        attended: Tensor = self.proj(mixed)
        return attended


class MapHead(nn.Module):
    """Multi-head attention pooling: one learned query looks at all tokens, then an MLP."""

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

    def forward(self, tokens_BPV: Tensor) -> Tensor:
        """(B, P, V) to (B, V)."""
        batch, tokens, width = tokens_BPV.shape
        q = self.q(self.query).expand(batch, -1, -1).view(batch, 1, self.heads, -1).transpose(1, 2)
        k, v = self.kv(tokens_BPV).view(batch, tokens, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        pooled = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, width))
        pooled_BV: Tensor = pooled + self.mlp(self.norm(pooled))
        return pooled_BV
