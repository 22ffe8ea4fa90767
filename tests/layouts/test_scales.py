"""Scales: the views' pixels, and the joining of features against S2's published steps."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vlmkit.encoders.base import pixel_batch
from vlmkit.encoders.scales import join_scales
from vlmkit.errors import UsageError, VlmkitError
from vlmkit.layouts import Alone, Frame, View, build_layout
from vlmkit_connectors import VisionFeatures

ROWS, COLS, WIDTH = 3, 3, 5


def published(views, scales):
    """One image by bfshi/scaling_on_scales' steps: (views, R * C, V) to (R * C, scales * V)."""
    outputs, start = [], 0
    for scale in scales:
        tiles = views[start : start + scale**2].unflatten(1, (ROWS, COLS)).permute(0, 3, 1, 2)
        start += scale**2
        rows = [torch.cat(list(tiles[row * scale : (row + 1) * scale]), dim=-1) for row in range(scale)]
        merged = torch.cat(rows, dim=-2)[None]
        outputs.append(F.interpolate(merged, size=(ROWS, COLS), mode="area"))
    return torch.cat(outputs, dim=1)[0].flatten(1).T


def features(images, scales, seed=0):
    views = sum(scale**2 for scale in scales)
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn(images * views * ROWS * COLS, WIDTH, generator=generator)
    grids = torch.tensor([[ROWS, COLS]] * (images * views))
    owners = torch.arange(images).repeat_interleave(views)
    return VisionFeatures(patches, grids, owners, torch.randn(images, 4, generator=generator))


@pytest.mark.parametrize("scales", [(1,), (1, 2), (1, 2, 3), (1, 3)])
def test_joining_equals_the_published_steps(scales):
    given = features(2, scales)
    joined = join_scales(given, scales)
    views = given.patches_TV.view(2, -1, ROWS * COLS, WIDTH)
    wanted = torch.cat([published(image, scales) for image in views])
    assert joined.patches_TV.shape == (2 * ROWS * COLS, WIDTH * len(scales))
    assert torch.allclose(joined.patches_TV, wanted, atol=1e-6, rtol=0)
    assert joined.grids == [(ROWS, COLS)] * 2
    assert joined.image_of_view_I.tolist() == [0, 1]
    assert joined.pooled_BE is given.pooled_BE


def test_hand_computed():
    """Features that say where in the joined 6 x 6 grid they stand: each mean is that of its 2 x 2 block."""
    places = torch.cartesian_prod(torch.arange(6.0), torch.arange(6.0)).view(2, 3, 2, 3, 2).transpose(1, 2)
    whole = torch.zeros(ROWS * COLS, 2)
    given = VisionFeatures(
        torch.cat([whole, places.reshape(-1, 2)]), torch.tensor([[3, 3]] * 5), torch.zeros(5).long()
    )
    joined = join_scales(given, (1, 2)).patches_TV
    blocks = torch.cartesian_prod(torch.tensor([0.5, 2.5, 4.5]), torch.tensor([0.5, 2.5, 4.5]))
    assert torch.equal(joined, torch.cat([whole, blocks], dim=1))


def test_the_order_of_tiles_is_seen():
    given = features(1, (1, 2))
    wanted = published(given.patches_TV.view(5, -1, WIDTH), (1, 2))
    turned = given.patches_TV.view(5, -1, WIDTH)[[0, 1, 3, 2, 4]].flatten(0, 1)
    mixed = VisionFeatures(turned, given.grids_I2, given.image_of_view_I)
    assert (join_scales(mixed, (1, 2)).patches_TV - wanted).abs().max() > 0.1


def test_gradients_reach_every_view():
    given = features(1, (1, 2))
    given.patches_TV.requires_grad_()
    join_scales(given, (1, 2)).patches_TV.square().sum().backward()
    assert bool((given.patches_TV.grad != 0).all())


def test_half_precision_is_kept():
    given = features(1, (1, 2))
    half = VisionFeatures(given.patches_TV.bfloat16(), given.grids_I2, given.image_of_view_I)
    assert join_scales(half, (1, 2)).patches_TV.dtype == torch.bfloat16


@pytest.mark.parametrize("scales", [(1, 3), (1,)])
def test_other_views_are_refused(scales):
    with pytest.raises(VlmkitError, match=r"need .* views of one grid for each image; found 10 views"):
        join_scales(features(2, (1, 2)), scales)


def test_views_and_features():
    layout = build_layout({"type": "scales", "scales": [1, 2, 3]})
    frame = Frame(24, 8)
    views = layout.views((100, 50), frame)
    assert [view.role for view in views] == ["full"] + ["tile"] * 13
    assert set(views[1:]) == {View(3, 3, 24, 24, "tile")}
    assert layout.features((100, 50), frame) == (View(3, 3, 24, 24),)
    assert layout.pieces((100, 50), frame) == (Alone(0),)
    assert layout.smaller(frame) is None


def test_pixels_are_squares_cut_row_by_row(noise, spec):
    image = noise(6, (100, 50))
    stated = spec({"type": "scales", "scales": [1, 2]})
    ours = stated.preprocess(image)
    assert np.array_equal(ours[0], spec("square").preprocess(image)[0])
    large = spec("square", side=48).preprocess(image)[0]
    corners = [(0, 0), (0, 24), (24, 0), (24, 24)]
    assert all(
        np.array_equal(own, large[:, y : y + 24, x : x + 24]) for own, (y, x) in zip(ours[1:], corners)
    )


def test_from_pictures_to_joined_features(noise, spec):
    """With the mean colour of each patch for features, both scales of a smooth picture say the same."""
    stated = spec({"type": "scales", "scales": [1, 2, 3]})
    smooth = [noise(seed, (3, 3)).resize((144, 144)) for seed in range(2)]
    batch = pixel_batch(stated, smooth)
    patches = F.avg_pool2d(batch.pixels_ICHW, stated.patch_size).flatten(2).transpose(1, 2).flatten(0, 1)
    joined = join_scales(VisionFeatures(patches, batch.grids_I2, batch.image_of_view_I), (1, 2, 3))
    assert joined.patches_TV.shape[-1] == 3 * len(stated.rule.scales)
    first, second, third = joined.patches_TV.split(3, dim=-1)
    assert first.std() > 0.3
    assert (second - first).abs().max() < 0.05
    assert (third - first).abs().max() < 0.05


@pytest.mark.parametrize("scales", [[2, 3], [], [1, 1], [1, 3, 2], [1, 2.5], 2, [0, 1]])
def test_wrong_options_are_explained(scales):
    with pytest.raises(UsageError, match="layout scales"):
        build_layout({"type": "scales", "scales": scales})
