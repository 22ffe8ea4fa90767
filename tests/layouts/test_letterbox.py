"""Prismatic's letterbox against its published steps, and where it differs from LLaVA 1.5's `pad`."""

import numpy as np
import pytest
from PIL import Image, ImageOps


def prismatic(image, side, fill):
    """TRI-ML/prismatic-vlms' `LetterboxPad`, then torchvision's Resize(side) and CenterCrop(side)."""
    width, height = image.size
    longest = max(width, height)
    right, down = int((longest - width) / 2), int((longest - height) / 2)
    image = ImageOps.expand(image, border=(right, down, right, down), fill=fill)
    width, height = image.size
    if width <= height:
        image = image.resize((side, int(side * height / width)), Image.Resampling.BICUBIC)
    else:
        image = image.resize((int(side * width / height), side), Image.Resampling.BICUBIC)
    top, left = round((image.height - side) / 2.0), round((image.width - side) / 2.0)
    return image.crop((left, top, left + side, top + side))


def pixels(stated, image):
    fill = tuple(int(mean * 255) for mean in stated.mean)
    out_CHW = np.empty((3, stated.image_size, stated.image_size), np.float32)
    stated._normalise(prismatic(image, stated.image_size, fill), out_CHW)
    return out_CHW


@pytest.mark.parametrize("side", [24, 25, 224])
def test_pixels_equal_the_published_steps(awkward, side, spec):
    stated = spec("letterbox", side=side)
    assert np.array_equal(stated.preprocess(awkward)[0], pixels(stated, awkward))


@pytest.mark.parametrize("size", [(300, 200), (201, 333), (10, 10), (1, 3)])
def test_an_even_difference_is_pad(noise, spec, size):
    image = noise(1, size)
    assert np.array_equal(spec("letterbox").preprocess(image)[0], spec("pad").preprocess(image)[0])


@pytest.mark.parametrize("size", [(300, 201), (20, 31), (2, 1)])
def test_an_odd_difference_is_not(noise, spec, size):
    image = noise(1, size)
    ours, other = (spec(name, side=224).preprocess(image)[0] for name in ("letterbox", "pad"))
    assert np.abs(ours - other).max() > 0.1


def test_the_rounding_of_the_crop_is_seen(noise, spec, monkeypatch):
    """A canvas of 7 x 8 becomes 25 x 28 pixels: 1.5 are cut above, rounded to 2."""
    image, stated = noise(2, (7, 8)), spec("letterbox", side=25)
    right = stated.preprocess(image)[0]
    monkeypatch.setattr("vlmkit.layouts.one_view.round", int, raising=False)
    assert np.abs(stated.preprocess(image)[0] - right).max() > 0.1
