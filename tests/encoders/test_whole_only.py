"""Vectors come from the view of the whole image: no other is cut or encoded for them."""

import numpy as np
import pytest

from vlmkit.encoders.base import pixel_batch
from vlmkit.encoders.stream import embed_files
from vlmkit.encoders.vit import ViT
from vlmkit.layouts import LAYOUTS

SIZES = [(100, 50), (32, 32), (31, 90)]
OF_SQUARES = ["anyres", "anyres_max", "tiles", "scales"]


@pytest.fixture(scope="module")
def encoder(shake):
    return shake(ViT(image_size=32, patch_size=8, width=32, depth=2, heads=4, embed_dim=12)).eval()


@pytest.fixture
def encoded(monkeypatch):
    """Number of views of each pass through the tower."""
    counts, forward = [], ViT.forward

    def counted(self, batch):
        counts.append(len(batch.grids_I2))
        return forward(self, batch)

    monkeypatch.setattr(ViT, "forward", counted)
    return counts


@pytest.mark.parametrize("layout", OF_SQUARES)
def test_one_view_an_image_is_encoded_and_its_vector_is_that_of_the_square(
    encoder, changed, picture, encoded, layout
):
    images = [picture(size, i) for i, size in enumerate(SIZES)]
    vectors = changed(encoder, layout=layout).embed_images(images)
    assert encoded == [3]
    assert np.array_equal(vectors, encoder.embed_images(images))


def test_files_too(encoder, changed, picture, encoded, tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    images = [picture(size, i) for i, size in enumerate(SIZES)]
    for path, image in zip(paths, images, strict=True):
        image.save(path)
    (batch,) = embed_files(changed(encoder, layout="tiles"), paths)
    assert encoded == [3]
    assert np.array_equal(batch.vectors_BE, encoder.embed_images(images))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_is_the_vector_of_all_views(encoder, changed, picture, layout):
    stated = {"type": layout, "max_patches": 20} if layout == "native" else layout
    tower = changed(encoder, layout=stated)
    images = [picture(size, i) for i, size in enumerate(SIZES)]
    whole = pixel_batch(tower.spec, images, whole_only=True)
    assert len(whole.grids_I2) == 3
    for image, view in zip(images, whole.views(), strict=True):
        assert np.array_equal(view.numpy(), tower.spec.preprocess(image)[0])
    every = tower.embed_batch(pixel_batch(tower.spec, images))
    assert np.abs(tower.embed_images(images) - every).max() <= 1e-6


@pytest.mark.parametrize("layout", OF_SQUARES)
def test_tiles_are_not_cut(encoder, changed, picture, monkeypatch, layout):
    def refuse(*_):
        raise AssertionError("a tile was cut")

    monkeypatch.setattr(f"vlmkit.layouts.{layout.removesuffix('_max')}.cut", refuse)
    spec = changed(encoder, layout=layout).spec
    pixel_batch(spec, [picture((100, 50))], whole_only=True)
    with pytest.raises(AssertionError, match="a tile was cut"):
        pixel_batch(spec, [picture((100, 50))])
