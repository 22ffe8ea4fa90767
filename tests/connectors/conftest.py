"""Features of any grids."""

import pytest
import torch

from vlmkit_connectors import VisionFeatures


@pytest.fixture(scope="session")
def features():
    """A function: grids to features of noise, one view an image."""

    def make(grids, width=6, seed=0):
        generator = torch.Generator().manual_seed(seed)
        patches = torch.randn(sum(r * c for r, c in grids), width, generator=generator)
        return VisionFeatures(patches, torch.tensor(grids), torch.arange(len(grids)))

    return make


@pytest.fixture(scope="session")
def rough():
    """A function that gives a module random weights with which each part matters; no gate is zero."""

    @torch.no_grad()
    def fill(module, seed=0):
        generator = torch.Generator().manual_seed(seed)
        for parameter in module.parameters():
            random = torch.randn(parameter.shape, generator=generator)
            matrix = parameter.ndim > 1
            parameter.copy_(random * 1.5 * parameter.shape[-1] ** -0.5 if matrix else 0.5 + random.abs())
        return module

    return fill
