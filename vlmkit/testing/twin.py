"""What encoders are checked with: pictures without symmetry, and random weights that matter."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Noise over a gradient, of (width, height) pixels: nowhere flat, nowhere symmetric, always the same."""
    width, height = size
    noise = np.random.default_rng(seed).integers(0, 128, (height, width, 3))
    ramp = np.linspace(0, 127, width * height).reshape(height, width, 1)
    return Image.fromarray((noise + ramp).astype(np.uint8))


def sizes(number: int, seed: int = 0) -> list[tuple[int, int]]:
    """Random (width, height): from one pixel to a few hundred, from very wide to very high."""
    draw = np.random.default_rng(seed)
    edges = np.exp(draw.uniform(0, math.log(300), (number, 2))).astype(int)
    return [(max(1, int(w)), max(1, int(h))) for w, h in edges]


@torch.no_grad()
def make_weights_matter(module: nn.Module, seed: int = 0, gain: float = 1.5, moved: float = 0.3) -> None:
    """Replace an initialisation by weights with which a mistake in any part is seen.

    Freshly built towers are nearly the identity: biases are zero, positions small, residual branches scaled
    down. Here every matrix gives outputs larger than its inputs, and every vector (bias, norm, token,
    position) is moved away from where it was initialised.
    """
    generator = torch.Generator().manual_seed(seed)
    tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator).to(parameter)
        if parameter.ndim > 1 and len(parameter) > 1 and id(parameter) not in tables:
            parameter.copy_(noise * gain * parameter[0].numel() ** -0.5)
        else:
            parameter.add_(noise * moved)


def gap(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference over the largest value of the second; infinite for other shapes."""
    if ours.shape != theirs.shape:
        return math.inf
    if not ours.numel():
        return 0.0
    ours, theirs = ours.double(), theirs.double()
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-6))
