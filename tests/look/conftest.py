"""Tiny towers of every kind with weights that matter, and pictures that are not symmetric."""

import numpy as np
import pytest
from PIL import Image

from vlmkit.encoders import encoder_class

TOWER = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "patch_size": 8}
MLP = {**TOWER, "intermediate_size": 48}
VIT = {"image_size": 48, "patch_size": 8, "width": 32, "depth": 3, "heads": 4, "embed_dim": 8}
# Family and options; each has three blocks of four heads.
TOWERS = {
    "vit": ("vit", VIT),
    "vit cls": ("vit", {**VIT, "pool": "cls"}),
    "vit conv map": ("vit", {**VIT, "pool": "map", "stem": "conv"}),
    "clip": ("clip", {"vision_config": {**MLP, "image_size": 48, "projection_dim": 8}}),
    "siglip": ("siglip", {"vision_config": {**MLP, "image_size": 48}}),
    "naflex": ("siglip2_naflex", {"vision_config": {**MLP, "num_patches": 36}, "max_num_patches": 32}),
    "dinov2": ("dinov2", {"vision_config": {**TOWER, "image_size": 48, "num_register_tokens": 2}}),
}


@pytest.fixture(scope="session")
def tower(roughen):
    """A function: name from `TOWERS` to an encoder in evaluation mode."""

    def build(name, **changes):
        family, options = TOWERS[name]
        return roughen(encoder_class(family).from_options(**{**options, **changes})).eval()

    return build


@pytest.fixture(scope="session")
def gradient():
    """A function: (width, height) to an image whose colours say where in it they are, with some noise."""

    def draw(size, seed=0):
        width, height = size
        y, x = np.mgrid[:height, :width]
        colours = np.stack([200 * x / width, 200 * y / height, np.full_like(x, 90)], -1)
        noise = np.random.default_rng(seed).integers(0, 55, (height, width, 3))
        return Image.fromarray((colours + noise).astype(np.uint8))

    return draw
