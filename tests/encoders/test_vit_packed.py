"""Views of several sizes in one batch: equal to each view on its own, and to views that are not packed."""

from dataclasses import replace

import pytest
import torch

from vlmkit.encoders.base import PixelBatch, pixel_batch
from vlmkit.encoders.vit import ViT
from vlmkit.layouts import View

NATIVE = {"type": "native", "max_patches": 20}
TINY = {"image_size": 32, "patch_size": 8, "width": 32, "depth": 3, "heads": 4, "embed_dim": 12}
EVERYTHING = {
    "registers": 2, "class_token": True, "norm": "rms", "mlp": "swiglu", "qk_norm": True, "layer_scale": 0.5,
}  # fmt: skip
SIZES = [(60, 20), (20, 60), (33, 33), (60, 20), (9, 90)]
OPTIONS = [
    {},
    {"pool": "cls", "layer": -2},
    {"pool": "map", "stem": "conv", "layer": 0},
    {**EVERYTHING, "positions": "rope_2d"},
    {**EVERYTHING, "positions": "learned_2d", "pool": "map"},
    {"positions": "sincos_2d", "pool": "cls", "registers": 1},
]


@pytest.fixture
def images(picture):
    return [picture(size, i) for i, size in enumerate(SIZES)]


@pytest.mark.parametrize("options", OPTIONS)
def test_packed_views_are_those_one_at_a_time(shake, images, see, gap, options):
    encoder = shake(ViT(**{**TINY, "layout": NATIVE, **options})).eval()
    together = see(encoder, images)
    assert len(set(together.grids)) == 4
    alone = [see(encoder, [image]) for image in images]
    assert gap(together.patches_TV, torch.cat([one.patches_TV for one in alone])) < 1e-5
    assert gap(together.pooled_BE, torch.cat([one.pooled_BE for one in alone])) < 1e-5
    mixed = see(encoder, images[::-1])
    assert gap(mixed.pooled_BE.flip(0), together.pooled_BE) < 1e-5


BAD = {
    "all tokens as one view": lambda place: replace(place, lengths=(sum(place.lengths),)),
    "lengths in another order": lambda place: replace(place, lengths=place.lengths[::-1]),
    "tables turned round": lambda place: replace(place, rope=tuple(table.flip(0) for table in place.rope)),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_mistake_in_packing_is_seen(shake, images, see, gap, monkeypatch, bad):
    encoder = shake(ViT(**{**TINY, "layout": NATIVE, **EVERYTHING, "positions": "rope_2d"})).eval()
    right, run = see(encoder, images).patches_TV, encoder._run
    monkeypatch.setattr(encoder, "_run", lambda block, place, x: run(block, BAD[bad](place), x))
    assert gap(see(encoder, images).patches_TV, right) > 1e-2


@pytest.mark.parametrize("options", OPTIONS)
def test_gradients_of_packed_views_are_the_sum_of_each(shake, images, options):
    encoder = shake(ViT(**{**TINY, "layout": NATIVE, **options}))

    def gradients(groups):
        encoder.zero_grad()
        for group in groups:
            features = encoder(pixel_batch(encoder.spec, group))
            (features.patches_TV.square().sum() + features.pooled_BE.square().sum()).backward()
        return [p.grad.clone() for p in encoder.parameters() if p.grad is not None]

    for ours, theirs in zip(gradients([images]), gradients([[image] for image in images]), strict=True):
        assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max().clamp(min=1)


def test_pixels_that_make_no_whole_patch_are_not_seen(shake):
    """In a view of one size and in packed ones; the vector is of the first view of each image."""
    encoder = shake(ViT(**TINY, stem="conv")).eval()
    draw = torch.Generator().manual_seed(0)
    views = [View(2, 3, 19, 29), View(2, 3, 16, 24), View(4, 4, 32, 32)]
    pixels = [torch.randn(3, v.height, v.width, generator=draw) for v in views]
    pixels[1] = pixels[0][:, :16, :24]
    flat = lambda some: torch.cat([p.flatten() for p in some])  # noqa: E731
    with torch.no_grad():
        packed = encoder(PixelBatch.of(flat(pixels), views, [0, 1, 1]))
        alone = encoder(PixelBatch.of(flat(pixels[:1]), views[:1], [0]))
    first, second, _ = packed.views()
    assert torch.allclose(first, second, atol=1e-5)
    assert torch.allclose(first, alone.patches_TV, atol=1e-5)
    assert packed.pooled_BE.shape == (2, 12)
    assert torch.allclose(packed.pooled_BE, alone.pooled_BE.expand(2, -1), atol=1e-5)
