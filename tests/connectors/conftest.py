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
