"""Our ViT: what its options mean, checked against the same steps written out."""

import json
import random
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from vlmkit.encoders.base import PixelBatch, pixel_batch
from vlmkit.encoders.vit import ViT
from vlmkit.encoders.vit_block import Block
from vlmkit.encoders.vit_parts import ConvStem
from vlmkit.errors import UsageError, VlmkitError
from vlmkit.layouts import LAYOUTS

TINY = {"image_size": 32, "patch_size": 8, "width": 32, "depth": 3, "heads": 4, "embed_dim": 12}


@pytest.fixture
def build(shake):
    return lambda **options: shake(ViT(**{**TINY, **options})).eval()


@pytest.fixture
def batch(picture):
    return lambda encoder, count=3: pixel_batch(
        encoder.spec, [picture((40 + i, 30), i) for i in range(count)]
    )


def run(encoder, pixels):
    with torch.no_grad():
        return encoder(pixels)


@torch.no_grad()
def states(encoder, pixels_ICHW):
    """All hidden states as stated in `VisionSpec.layer`, the last one normalised."""
    hidden = encoder.stem(pixels_ICHW) + encoder.positions
    if encoder.cls is not None:
        hidden = torch.cat([encoder.cls.repeat(len(hidden), 1, 1), hidden], 1)
    found = [hidden]
    for block in encoder.blocks:
        found.append(block(found[-1]))
    return [*found[:-1], encoder.norm(found[-1])]


@pytest.mark.parametrize("stem", ["patch", "conv"])
@pytest.mark.parametrize("pool", ["cls", "mean", "map"])
def test_every_stem_and_pool_gives_patches_and_a_vector(build, batch, stem, pool):
    encoder = build(stem=stem, pool=pool)
    features = run(encoder, batch(encoder))
    assert features.patches_TV.shape == (3 * 16, 32)
    assert features.pooled_BE.shape == (3, 12)
    assert features.grids == [(4, 4)] * 3
    alone = run(encoder, batch(encoder, 1))
    assert torch.allclose(features.patches_TV[:16], alone.patches_TV, atol=1e-5)
    assert torch.allclose(features.pooled_BE[:1], alone.pooled_BE, atol=1e-5)
    assert features.patches_TV.std() > 0.1
    assert (features.pooled_BE[0] - features.pooled_BE[1]).abs().max() > 0.01


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_pooling_by_hand(build, batch, pool):
    encoder = build(pool=pool)
    pixels = batch(encoder)
    last = states(encoder, pixels.pixels_ICHW)[-1]
    expected = encoder.head(last[:, 0] if pool == "cls" else last.mean(1))
    assert torch.allclose(run(encoder, pixels).pooled_BE, expected, atol=1e-6)


def test_map_pooling_by_hand(build, batch):
    """One query a head: softmax of its products with the keys weighs the values."""
    encoder = build(pool="map")
    pixels = batch(encoder, 1)
    tokens, head = states(encoder, pixels.pixels_ICHW)[-1][0], encoder.map_head
    query = head.q(head.query)[0, 0].view(4, 8)
    keys, values = head.kv(tokens).split(32, dim=-1)
    mixed = [
        F.softmax(keys[:, h * 8 : h * 8 + 8] @ query[h] / 8**0.5, 0) @ values[:, h * 8 : h * 8 + 8]
        for h in range(4)
    ]
    pooled = head.proj(torch.cat(mixed))
    expected = encoder.head(pooled + head.mlp(head.norm(pooled)))
    assert torch.allclose(run(encoder, pixels).pooled_BE[0], expected, atol=1e-5)


def test_attention_by_hand(shake):
    block = shake(Block(8, heads=2, mlp_width=16)).eval()
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    q, k, v = block.qkv(block.norm1(x)).split(8, dim=-1)
    heads = [F.softmax(q[:, s] @ k[:, s].T / 2, -1) @ v[:, s] for s in (slice(0, 4), slice(4, 8))]
    attended = x + block.proj(torch.cat(heads, -1))
    expected = attended + block.mlp(block.norm2(attended))
    assert torch.allclose(block(x[None])[0], expected, atol=1e-5)


@pytest.mark.parametrize("embed_dim", [0, 12])
@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("layer", [-4, -3, -2, -1, 0, 1, 2, 3])
def test_the_layer_that_is_read(build, batch, layer, pool, embed_dim):
    encoder = build(layer=layer, pool=pool, embed_dim=embed_dim)
    pixels = batch(encoder)
    expected = states(encoder, pixels.pixels_ICHW)
    drop = 1 if pool == "cls" else 0
    features = run(encoder, pixels)
    assert torch.equal(features.patches_TV, expected[layer][:, drop:].flatten(0, 1))
    assert (features.pooled_BE is None) == (embed_dim == 0)
    other = expected[layer - 1 if layer not in (0, -4) else layer + 1]
    assert (features.patches_TV - other[:, drop:].flatten(0, 1)).abs().max() > 0.1


@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_patches_are_row_major(build, stem):
    """A change in the picture's upper right corner moves the token of row 0, column 3, the most."""
    encoder = build(stem=stem)
    pixels = torch.zeros(1, 3, 32, 32)
    moved = pixels.clone()
    moved[:, :, 0:8, 24:32] = 1.0
    with torch.no_grad():
        change = (encoder.stem(moved) - encoder.stem(pixels)).abs().sum(-1)[0]
    assert change.argmax() == 3


@pytest.mark.parametrize("patch_size", [2, 4, 8, 16])
def test_the_convolutional_stem_reaches_the_patch_size(patch_size):
    assert ConvStem(patch_size, 48)(torch.zeros(2, 3, 32, 32)).shape == (2, (32 // patch_size) ** 2, 48)


def test_the_first_view_gives_the_retrieval_vector(build, batch):
    encoder = build()
    plain = batch(encoder)
    shared = replace(plain, image_of_view_I=torch.tensor([0, 0, 1]))
    assert torch.equal(run(encoder, shared).pooled_BE, run(encoder, plain).pooled_BE[[0, 2]])


@pytest.mark.parametrize("layout", sorted(set(LAYOUTS) - {"native", "longest", "qwen"}))
def test_views_state_the_tokens_of_any_image(build, picture, layout):
    draw = random.Random(layout)
    encoder = build(layout=layout, depth=1)
    for _ in range(10):
        images = [picture((draw.randint(1, 90), draw.randint(1, 90))) for _ in range(draw.randint(1, 4))]
        features = run(encoder, pixel_batch(encoder.spec, images))
        views = [encoder.spec.views(image.size) for image in images]
        assert features.grids == [(v.rows, v.cols) for of_image in views for v in of_image]
        assert len(features.patches_TV) == sum(v.rows * v.cols for of_image in views for v in of_image)
        assert features.image_of_view_I.bincount().tolist() == [len(of_image) for of_image in views]


@pytest.mark.parametrize("options", [{}, {"stem": "conv", "pool": "map"}, {"pool": "cls", "layer": -2}])
def test_round_trip(build, batch, options):
    encoder = build(**options)
    twin = ViT(**json.loads(json.dumps(encoder.config))).eval()
    twin.load_state_dict(encoder.state_dict())
    pixels = batch(encoder)
    assert torch.equal(run(twin, pixels).patches_TV, run(encoder, pixels).patches_TV)
    assert twin.fingerprint == encoder.fingerprint


def test_every_parameter_is_initialised_and_gets_a_gradient():
    encoder = ViT(**{**TINY, "pool": "map", "stem": "conv"})
    assert all(torch.isfinite(p).all() for p in encoder.parameters())
    assert 0.01 < encoder.positions.std() < 0.03
    views = [view for _ in range(2) for view in encoder.spec.views((32, 32))]
    features = encoder(PixelBatch.of(torch.randn(2 * 3 * 32 * 32), views, [0, 1]))
    (features.pooled_BE.square().sum() + features.patches_TV.square().sum()).backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_without_a_retrieval_space_or_a_text_tower(build, picture):
    with pytest.raises(VlmkitError, match="no retrieval space"):
        build(embed_dim=0).embed_images([picture((32, 32))])
    with pytest.raises(VlmkitError, match=r"no text tower.*use clip"):
        build().embed_text(["a cat"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 30}, "image_size 30 is not a multiple of patch_size 8"),
        ({"patch_size": 0}, "found patch_size 0; give a whole number of 1 or more"),
        ({"heads": 5}, "width 32 is not a multiple of heads 5"),
        ({"layer": 4}, "no layer 4; with depth 3: -4 to 3"),
        ({"layer": -5}, "no layer -5"),
        ({"stem": "conv", "patch_size": 1}, "give 2, 4, 8"),
        ({"stem": "conv", "image_size": 36, "patch_size": 12}, "give 2, 4, 8"),
        ({"stem": "convolution"}, "unknown vit stem 'convolution'"),
        ({"pool": "avg"}, "unknown vit pool 'avg'"),
        ({"layout": "native"}, "needs max_patches of 1 or more, found 0"),
        ({"layout": "Pad"}, "unknown layout 'Pad'; did you mean 'pad'"),
        ({"dpeth": 2}, "unknown option of encoder 'vit': 'dpeth'; did you mean 'depth'"),
    ],
)
def test_wrong_options_are_explained(options, message):
    with pytest.raises(UsageError, match=message):
        ViT.from_options(**{**TINY, **options})
