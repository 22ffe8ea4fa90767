"""Of the hidden states of a deep tower, the selected one is kept; elsewhere all of them are, to read one."""

import weakref

import pytest
from torch import nn

from vlmkit.encoders import encoder_class

DEPTH, LAYER = 8, -6
SIZE = {"hidden_size": 16, "num_attention_heads": 2, "patch_size": 4, "num_hidden_layers": DEPTH}
CONFIG = {**SIZE, "intermediate_size": 32, "image_size": 16}
NAFLEX = {k: v for k, v in CONFIG.items() if k != "image_size"} | {"num_patches": 16}
OPTIONS = {
    "clip": {"vision_config": CONFIG},
    "siglip": {"vision_config": CONFIG},
    "siglip2_naflex": {"vision_config": NAFLEX},
    "dinov2": {"vision_config": {**SIZE, "image_size": 16}},
    "vit": {"image_size": 16, "patch_size": 4, "width": 16, "depth": DEPTH, "heads": 2, "embed_dim": 8},
}


@pytest.mark.parametrize("family", OPTIONS)
def test_a_frozen_tower_keeps_the_selected_state_and_the_one_under_way(picture, see, family):
    """With a block's own input that makes three at a time, whatever the depth."""
    encoder = encoder_class(family)(**OPTIONS[family], layer=LAYER).eval().requires_grad_(False)
    blocks = max((m for m in encoder.modules() if isinstance(m, nn.ModuleList)), key=len)
    made, alive = [], []

    def count(module, args, out):
        made.append(weakref.ref(out[0] if isinstance(out, tuple) else out))
        alive.append(sum(ref() is not None for ref in made))

    for block in blocks:
        block.register_forward_hook(count)
    see(encoder, [picture((20, 16), 1)])
    assert len(alive) == DEPTH, "the retrieval vector needs all blocks"
    assert max(alive) <= 3
