"""Random changes of images: what moves where, and what the draws depend on."""

import numpy as np
import pytest
from PIL import Image

from vlmkit.data.augment import Augmenter
from vlmkit.errors import UsageError
from vlmkit.recipe import load_recipe

RECIPE = "stages.contrastive.augment="


@pytest.fixture
def dot():
    """A black square of 8 pixels in the middle of white."""
    image = Image.new("RGB", (64, 64), "white")
    image.paste("black", (28, 28, 36, 36))
    return image


def middle(image):
    """Where the dark pixels lie on average (x, y), and how many they are."""
    dark = 255.0 - np.asarray(image.convert("L"), float)
    rows, columns = np.indices(dark.shape)
    total = dark.sum()
    return (columns * dark).sum() / total, (rows * dark).sum() / total, total / 255


def changed(image, epochs=40, **options):
    augment = Augmenter(fill="white", **options)
    return [augment([image], "a", epoch)[0] for epoch in range(epochs)]


def test_a_shift_moves_by_at_most_its_share_and_keeps_what_is_drawn(dot):
    found = np.array([middle(image) for image in changed(dot, shift=0.25)])
    offsets = found[:, :2] - 31.5
    assert np.abs(offsets).max() < 16.1 and np.abs(offsets).max(0).min() > 12
    assert offsets.min(0).max() < -10 and np.abs(found[:, 2] - 64).max() < 1


def test_a_zoom_is_about_the_centre_and_by_at_most_its_factor(dot):
    found = np.array([middle(image) for image in changed(dot, zoom=0.5)])
    sides = np.sqrt(found[:, 2]) / 8
    assert np.abs(found[:, :2] - 31.5).max() < 0.1
    assert 1.3 < sides.max() < 1.55 and 1 / 1.55 < sides.min() < 0.8


def test_a_turn_is_about_the_centre(dot):
    far = Image.new("RGB", (64, 64), "white")
    far.paste("black", (28, 8, 36, 16))
    found = np.array([middle(image) for image in changed(far, turn=30)])
    offsets = found[:, :2] - 31.5
    radii, angles = np.hypot(*offsets.T), np.degrees(np.arctan2(offsets[:, 0], -offsets[:, 1]))
    assert np.abs(radii - 20).max() < 0.3
    assert 20 < angles.max() < 30.5 and -30.5 < angles.min() < -20
    assert np.abs(np.array([middle(image) for image in changed(dot, turn=30)])[:, :2] - 31.5).max() < 0.1


def test_width_and_height_have_shares_of_their_own():
    wide = Image.new("RGB", (100, 20), "white")
    wide.paste("black", (48, 8, 52, 12))
    images = changed(wide, shift=0.2)
    offsets = np.array([middle(image)[:2] for image in images]) - (49.5, 9.5)
    assert {image.size for image in images} == {(100, 20)}
    assert 12 < np.abs(offsets[:, 0]).max() < 20.1 and 2.5 < np.abs(offsets[:, 1]).max() < 4.1


def test_a_colour_scales_the_distance_to_the_fill_of_each_channel():
    image = Image.new("RGB", (2, 1), "white")
    image.putpixel((0, 0), (155, 55, 255))
    pixels = np.array([np.asarray(own)[0] for own in changed(image, epochs=200, colour=0.5)], int)
    assert (pixels[:, 1] == 255).all() and (pixels[:, 0, 2] == 255).all()
    ink = 255 - pixels[:, 0, :2]
    assert ink.min(0).tolist() == pytest.approx([50, 100], abs=4)
    assert ink.max(0).tolist() == pytest.approx([150, 255], abs=4)
    assert abs(np.corrcoef(ink.T)[0, 1]) < 0.3


def test_draws_depend_on_seed_epoch_and_sample_alone(dot):
    def drawn(seed=0, sample="a", epoch=0):
        return Augmenter(shift=0.2, zoom=0.2, turn=9, fill="white", seed=seed)([dot], sample, epoch)[0]

    assert drawn() == drawn()
    assert all(drawn() != other for other in (drawn(seed=1), drawn(sample="b"), drawn(epoch=1)))
    both = Augmenter(shift=0.2, colour=0.5)([dot, dot], "a", 0)
    assert both[0] == both[1] != dot


def test_nothing_asked_changes_nothing(dot):
    assert Augmenter()([dot], "a", 0) == [dot]


@pytest.mark.parametrize(
    ("stated", "says"),
    [
        ("{fill: blurple}", "augment.fill: a colour is needed, e.g. white or #808080; found 'blurple'"),
        ("{shift: 2}", r"augment.shift: .* less than or equal to 1; found 2"),
        ("{zoomm: 1}", r"augment.zoomm: unknown key.*did you mean 'zoom'"),
    ],
)
def test_a_recipe_says_what_is_wrong_with_it(stated, says):
    with pytest.raises(UsageError, match=says):
        load_recipe("quickstart", [RECIPE + stated])
