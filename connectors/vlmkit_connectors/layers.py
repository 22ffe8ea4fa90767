"""Layers that several connectors are made of."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def mlp_layers(widths: Sequence[int], act: type[nn.Module] = nn.GELU, bias: bool = True) -> nn.Sequential:
    """Linear layers from each of `widths` to the next, with `act` (exact GELU) between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [act()] * bool(layers) + [nn.Linear(before, after, bias=bias)]
    return nn.Sequential(*layers)


class GatedMLP(nn.Module):
    """SwiGLU (Shazeer 2020, https://arxiv.org/abs/2002.05202) without biases, under Llama's names.

    Args:
        seen: Width of what goes in.
        hidden: Width inside.
        width: Width of what comes out.
    """

    def __init__(self, seen: int, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(seen, hidden, bias=False)
        self.up_proj = nn.Linear(seen, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., seen) to (..., width): one linear layer, through SiLU, weighs another."""
        gated: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return gated


class RMSNorm(nn.Module):
    """Root mean square norm as Llama rounds it: computed in float32, scaled in the data type of the input.

    torch's own scales in float32, too, and differs in the last digits of bfloat16.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """All ones."""
        self.weight.fill_(1)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * (wide * scale).to(x.dtype)
