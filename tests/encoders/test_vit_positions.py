"""Positions of our ViT: published tables, rotary embedding, and interpolation to any grid."""

import pytest
import torch
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

from vlmkit.encoders.vit import ViT
from vlmkit.encoders.vit_positions import resized, rope_2d, rotated, sincos_2d

TINY = {"image_size": 32, "patch_size": 8, "width": 32, "depth": 2, "heads": 4}
KINDS = ["learned", "learned_2d", "sincos_2d", "rope_2d"]


@pytest.mark.parametrize("grid", [(4, 4), (14, 14), (3, 37)])
def test_the_fixed_table_is_that_of_transformers(gap, grid):
    assert gap(sincos_2d(grid, 48), build_2d_sinusoidal_position_embedding(*grid, 48)) < 5e-6


def test_the_fixed_table_of_a_part_is_part_of_the_table():
    """Patches are counted: a smaller view has the positions of the upper left corner of a larger one."""
    large = sincos_2d((6, 9), 32).view(6, 9, 32)
    assert torch.equal(sincos_2d((3, 5), 32).view(3, 5, 32), large[:3, :5])
    assert not torch.allclose(large[2, 3], large[3, 2])


def test_rotation_keeps_length_and_sees_only_differences():
    """The product of two turned vectors depends on how far their patches lie apart, along each axis."""
    cos, sin = rope_2d((5, 5), 2, 16, 100.0)
    assert torch.equal(cos[:2], torch.ones(2, 16)) and torch.equal(sin[:2], torch.zeros(2, 16))
    draw = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 16, generator=draw)
    turned_q, turned_k = (rotated(x.expand(27, 16), (cos, sin)) for x in (q, k))
    assert torch.allclose(turned_q.norm(dim=-1), q.norm().expand(27), atol=1e-5)
    assert torch.equal(turned_q[:2], q.expand(2, 16))
    products = (turned_q[2:] @ turned_k[2:].T).view(5, 5, 5, 5)
    assert torch.allclose(products[0, 0, 1, 2], products[3, 2, 4, 4], atol=1e-5)
    assert (products[0, 0, 1, 2] - products[0, 0, 2, 1]).abs() > 1e-2


def test_a_table_that_fits_is_not_touched():
    table = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(resized(table, (4, 6), True), table.flatten(0, 1))


@pytest.mark.parametrize("antialias", [True, False])
def test_interpolation_keeps_what_is_constant_and_linear(antialias):
    """A ramp stays a ramp away from the edges; smoothing or not, a constant stays constant."""
    ramp = torch.arange(24.0)[:, None].expand(24, 24)
    table = torch.stack([torch.ones(24, 24), ramp], -1)
    flat, sloped = resized(table, (12, 48), antialias).view(12, 48, 2).unbind(-1)
    assert torch.allclose(flat, torch.ones(12, 48), atol=1e-5)
    inner = sloped[3:-3, 10]
    assert torch.allclose(inner.diff(), torch.full((5,), 2.0), atol=1e-4)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("width", [1, 3])
def test_one_column_is_one_row_turned(antialias, width):
    """A ramp of four rows at eight places, at two, and as it was; however wide its table is."""
    ramp = torch.arange(4.0)[:, None, None].expand(4, 4, width)
    for places in (8, 2, 4):
        column = resized(ramp, (places, 1), antialias)
        row = resized(ramp.transpose(0, 1), (1, places), antialias)
        assert torch.allclose(column, row) and (column.diff(dim=0) > 0).all()


def test_rows_and_columns_interpolate_as_their_sum(shake):
    encoder = shake(ViT(**TINY, positions="learned_2d"))
    rows, cols = encoder.row_positions[0], encoder.col_positions[0]
    one = lambda table, n: resized(table[:, None].expand(-1, 4, -1), (n, 4), True).view(n, 4, 32)[:, 0]  # noqa: E731
    expected = one(rows, 3)[:, None] + one(cols, 7)
    assert torch.allclose(encoder._table((3, 7)), expected.flatten(0, 1), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_positions_matter_and_are_stored_as_stated(shake, picture, see, kind):
    """The same picture, turned by half: other tokens than the same tokens in another order."""
    encoder = shake(ViT(**TINY, positions=kind)).eval()
    stored = {n for n in encoder.state_dict() if "positions" in n}
    named = {"learned": {"positions"}, "learned_2d": {"row_positions", "col_positions"}}
    assert stored == named.get(kind, set())
    assert not list(encoder.buffers())
    image = picture((32, 32))
    with torch.no_grad():
        patch = encoder.stem.projection.weight
        # A stem that does not see a turn by half of the pixels in a patch.
        patch.copy_((patch + patch.flip(-1, -2)) / 2)
    plain, turned = see(encoder, [image]).patches_TV, see(encoder, [image.rotate(180)]).patches_TV
    assert (plain - turned.flip(0)).abs().max() > 0.1
    for vectors in (encoder.positions, encoder.row_positions, encoder.col_positions):
        if vectors is not None:
            torch.nn.init.zeros_(vectors)
    encoder.kind = "none"
    plain, turned = see(encoder, [image]).patches_TV, see(encoder, [image.rotate(180)]).patches_TV
    assert torch.allclose(plain, turned.flip(0), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_computed_positions_do_not_lose_what_a_type_cannot_hold(picture, see, kind):
    """In bfloat16 a table is computed in float32 first, so that a large one differs by rounding only."""
    torch.manual_seed(0)
    encoder = ViT(**{**TINY, "image_size": 256}, positions=kind).eval()
    images = [picture((256, 256))]
    exact = see(encoder, images).patches_TV
    from vlmkit.encoders.base import pixel_batch

    encoder.bfloat16()
    with torch.no_grad():
        rounded = encoder(encoder.move(pixel_batch(encoder.spec, images))).patches_TV
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).abs().max() < 0.06


def test_an_image_of_another_size_than_the_table(shake, picture, see):
    """As when a model is taken to a higher resolution: the table stays, `position_grid` says its size."""
    small = shake(ViT(**TINY)).eval()
    large = ViT(**{**TINY, "image_size": 48}, position_grid=4).eval()
    large.load_state_dict(small.state_dict())
    assert see(large, [picture((48, 48))]).grids == [(6, 6)]
    same = ViT(**TINY, position_grid=4).eval()
    same.load_state_dict(small.state_dict())
    image = [picture((32, 32))]
    assert torch.equal(see(same, image).patches_TV, see(small, image).patches_TV)
