"""Patch tokens as vectors of an index."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vlmkit.encoders.batch import pixel_batch
from vlmkit.encoders.patches import PatchEncoder
from vlmkit.encoders.vit import ViT
from vlmkit.errors import UsageError
from vlmkit_retrieval.encoders import kind_of
from vlmkit_retrieval.engines.vectors import MULTI_LIMIT


@pytest.fixture(scope="module")
def vit():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ViT(20, 4, 16, depth=1, heads=2, embed_dim=12).eval()


@pytest.fixture
def pictures():
    numbers = np.random.default_rng(0)
    return [Image.fromarray(numbers.integers(0, 255, (30, 22, 3), np.uint8)) for _ in range(3)]


def test_they_are_the_towers_own_tokens_at_unit_length(vit, pictures):
    encoder = PatchEncoder(vit)
    assert (encoder.name, encoder.embed_dim, kind_of(encoder)) == ("vit-patches", 16, "patches")
    with torch.no_grad():
        seen = vit(pixel_batch(vit.spec, pictures, whole_only=True))
    for found, tokens in zip(encoder.embed_patches(pictures), seen.views(), strict=True):
        assert found.shape == (25, 16) and found.dtype == np.float32
        expected = nn.functional.normalize(tokens, dim=-1).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert encoder.embed_patches([]) == []


def test_a_window_is_the_mean_of_its_patches_also_at_the_edge(vit, pictures):
    found = PatchEncoder(vit, window=2).embed_patches(pictures[:1])[0]
    with torch.no_grad():
        tokens = vit(pixel_batch(vit.spec, pictures[:1], whole_only=True)).patches_TV.reshape(5, 5, 16)
    rows = [tokens[r : r + 2, c : c + 2].reshape(-1, 16).mean(0) for r in (0, 2, 4) for c in (0, 2, 4)]
    np.testing.assert_allclose(found, nn.functional.normalize(torch.stack(rows), dim=-1).numpy(), atol=1e-6)


def test_what_engines_do_not_take_is_pooled(vit):
    many = torch.randn(200 * 200, 64)
    found = PatchEncoder(vit)._vectors(many, (200, 200))
    assert len(found) == 100 * 100 and found.size <= MULTI_LIMIT


def test_its_fingerprint_is_its_own(vit):
    found = {vit.fingerprint, PatchEncoder(vit).fingerprint, PatchEncoder(vit, 2).fingerprint}
    assert len(found) == 3
    with pytest.raises(UsageError, match="window is 0"):
        PatchEncoder(vit, 0)
