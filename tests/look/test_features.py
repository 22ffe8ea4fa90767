"""Numbers of the panels on features whose structure is known."""

import numpy as np
import pytest

from vlmkit.encoders.spec import VisionSpec
from vlmkit.errors import UsageError
from vlmkit.look.features import cosine_to, principal_colours
from vlmkit.look.panel import Options
from vlmkit.look.panels import similarity_panel
from vlmkit.look.place import Place, place_of
from vlmkit.look.positions import position_table, similarity_maps
from vlmkit.look.scene import NotPossible, observe


def test_two_regions_have_two_colours():
    """Left half one direction, right half another: one component, and nothing else to see."""
    features = np.zeros((4, 6, 8), np.float32)
    features[:, :3, 2], features[:, 3:, 5] = 1, 3
    found = principal_colours(features.reshape(24, 8))
    colours = found.colours_TC.reshape(4, 6, 3)
    assert (colours[:, :3] == colours[0, 0]).all() and (colours[:, 3:] == colours[0, 5]).all()
    # The larger weight is that of channel 5, so the right half is the positive end.
    assert colours[0, 0].tolist() == [0, 0.5, 0.5] and colours[0, 5].tolist() == [1, 0.5, 0.5]
    assert found.shares == pytest.approx((1, 0, 0), abs=1e-6)


def test_components_by_hand():
    """Three uncorrelated waves of falling strength on three rotated axes come back, in this order."""
    t = np.arange(64) * 2 * np.pi / 64
    waves = np.stack([5 * np.sin(t), 3 * np.sin(2 * t), np.sin(3 * t)], -1)
    axes, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(9, 9)))
    axes = axes[:3] * np.sign(np.take_along_axis(axes[:3], np.abs(axes[:3]).argmax(1)[:, None], 1))
    found = principal_colours((waves @ axes + 7).astype(np.float32))
    low, high = np.percentile(waves, [1, 99], axis=0)
    assert np.abs(found.colours_TC - np.clip((waves - low) / (high - low), 0, 1)).max() < 1e-4
    assert found.shares == pytest.approx((25 / 35, 9 / 35, 1 / 35), abs=1e-5)


def test_colours_do_not_depend_on_the_order_of_patches():
    features = np.random.default_rng(0).normal(size=(50, 12)).astype(np.float32)
    order = np.random.default_rng(1).permutation(50)
    one, other = principal_colours(features).colours_TC, principal_colours(features[order]).colours_TC
    assert np.abs(one[order] - other).max() < 1e-4


@pytest.mark.parametrize("patches", [1, 2, 30])
def test_features_without_a_difference_are_grey(patches):
    found = principal_colours(np.full((patches, 4), 3.3, np.float32))
    assert (found.colours_TC == 0.5).all()


def test_one_patch_of_many_that_differs_is_seen():
    features = np.zeros((400, 4), np.float32)
    features[7, 1] = 1
    red = principal_colours(features).colours_TC[:, 0]
    assert red[7] == 1 and np.delete(red, 7).max() == 0


def test_cosine_by_hand():
    rows = np.array([[3, 4], [-3, -4], [4, -3], [0, 0]], np.float32)
    assert cosine_to(rows, rows[0]).tolist() == pytest.approx([1, -1, 0, 0])


SPECS = {
    "square": VisionSpec(64, 8, 4),
    "crop": VisionSpec(64, 8, 4, layout="crop", shortest_edge=72),
    "pad": VisionSpec(64, 8, 4, layout="pad"),
    "native": VisionSpec(64, 8, 4, layout="native", max_patches=50),
}


def seen_at(name, spec, size, row, col, grid):
    """By hand: the point of the original that the centre of a patch shows."""
    width, height = size
    x, y = (col + 0.5) * 8, (row + 0.5) * 8
    if name == "crop":
        scale = min(size) / 72
        return (x - 32) * scale + width / 2, (y - 32) * scale + height / 2
    if name == "pad":
        scale = max(size) / 64
        return (x - 32) * scale + width / 2, (y - 32) * scale + height / 2
    return x * width / (8 * grid[1]), y * height / (8 * grid[0])


@pytest.mark.parametrize("size", [(300, 150), (90, 200), (128, 128), (40, 31)])
@pytest.mark.parametrize("name", SPECS)
def test_a_point_of_the_image_is_found_in_the_views(name, size):
    spec = SPECS[name]
    (view,) = spec.views(size)
    inside = 0
    for row in range(view.rows):
        for col in range(view.cols):
            x, y = seen_at(name, spec, size, row, col, (view.rows, view.cols))
            if 0 <= x < size[0] and 0 <= y < size[1]:
                assert place_of(spec, size, (x, y)) == Place(0, row, col)
                inside += 1
    assert inside >= 0.4 * view.rows * view.cols


def test_a_point_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match="300,20 is not in the image of 300 x 150"):
        place_of(SPECS["square"], (300, 150), (300, 20))
    with pytest.raises(UsageError, match="'crop' cuts it off"):
        place_of(SPECS["crop"], (300, 150), (10, 75))


@pytest.mark.parametrize("at", [(150, 20), (20, 70), (110, 50)])
def test_a_patch_is_like_itself_where_it_lies(tower, gradient, at):
    """Twice as wide as high: rows and columns that are exchanged would miss the place."""
    scene = observe(tower("naflex"), gradient((160, 80)))
    (panel,) = similarity_panel(scene, Options(at=at), None)
    (tile,) = panel.tiles
    assert tile.shape == scene.grids[0] == (4, 8)
    place = (at[1] * 4 // 80, at[0] * 8 // 160)
    assert (panel.mark.row, panel.mark.col) == place
    assert tile[place] == pytest.approx(1, abs=1e-5)
    others = np.delete(tile.flatten(), place[0] * 8 + place[1])
    assert others.max() < 0.9999
    assert f"row {place[0] + 1}, column {place[1] + 1}" in panel.title


@pytest.mark.parametrize("name", ["vit", "vit cls", "clip", "siglip", "naflex", "dinov2"])
def test_every_table_of_positions_is_found(tower, name):
    table, side = position_table(tower(name))
    assert table.shape == (36, 32) and side == 6


def test_small_maps_lie_at_their_positions():
    table = np.eye(9, dtype=np.float32)
    picture, chosen = similarity_maps(table, 3)
    assert chosen == [0, 1, 2] and picture.shape == (11, 11)
    assert np.isnan(picture[3]).all() and np.isnan(picture[:, 7]).all()
    for row in range(3):
        for col in range(3):
            small = picture[4 * row : 4 * row + 3, 4 * col : 4 * col + 3]
            assert np.argwhere(small == 1).tolist() == [[row, col]]


def test_a_tower_without_a_table_says_so(tower):
    encoder = tower("vit")
    del encoder.positions
    with pytest.raises(NotPossible, match=r"no single learned table of positions: .*RoPE"):
        position_table(encoder)
