"""Fast preprocessing against the plain formula, and one image's pixels in a batch of many."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from vlmkit.encoders.batch import join_batches, pixel_batch
from vlmkit.encoders.clip import CLIP_MEAN, CLIP_STD
from vlmkit.encoders.spec import UNIT, VisionSpec
from vlmkit_retrieval.images import as_rgb, decode_image, to_rgb

SPEC = VisionSpec(32, 8, 16, mean=CLIP_MEAN, std=CLIP_STD, layout="crop")
NATIVE = VisionSpec(32, 8, 16, mean=CLIP_MEAN, std=CLIP_STD, layout="native", max_patches=20)


def plain(picture, spec):
    """The formula of the reference processors, written out."""
    mean, std = np.asarray(spec.mean, np.float32), np.asarray(spec.std, np.float32)
    return ((UNIT[np.asarray(picture)] - mean) / std).transpose(2, 0, 1)


def encoded(image, format="JPEG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def test_every_byte_of_every_channel_is_the_plain_formula():
    every = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    picture = Image.fromarray(np.concatenate([every, every[::-1], every.transpose(1, 0, 2)], axis=2))
    spec = VisionSpec(16, 8, 16, mean=CLIP_MEAN, std=CLIP_STD)
    (ours,) = spec.preprocess(picture)
    assert ours.flags["C_CONTIGUOUS"]
    assert np.array_equal(ours, plain(picture, spec))


@pytest.mark.parametrize("spec", [SPEC, NATIVE], ids=["crop", "native"])
def test_a_batch_holds_what_each_image_gives(picture, spec):
    images = [picture((50, 40)), picture((32, 32), 1, "L"), picture((20, 90), 2, "RGBA")]
    batch = pixel_batch(spec, images)
    alone = [torch.from_numpy(view) for image in images for view in spec.preprocess(image)]
    assert batch.image_of_view_I.tolist() == [0, 1, 2]
    assert all(torch.equal(a, b) for a, b in zip(batch.views(), alone, strict=True))
    flat = np.full(batch.pixels_N.numel(), np.nan, np.float32)
    starts = np.cumsum([0, *(view.numel() for view in alone)])
    for image, start, stop in zip(images, starts, starts[1:]):
        spec.preprocess_into(flat[start:stop], image)
    assert np.array_equal(flat, batch.pixels_N.numpy())


@pytest.mark.parametrize("spec", [SPEC, NATIVE], ids=["crop", "native"])
def test_joined_batches_are_one_batch(picture, spec):
    images = [picture((50, 40)), picture((32, 32), 1), picture((20, 90), 2)]
    whole = pixel_batch(spec, images)
    joined = join_batches([pixel_batch(spec, images[:2]), pixel_batch(spec, images[2:])])
    for name in ("pixels_N", "sizes_I2", "grids_I2", "image_of_view_I"):
        assert torch.equal(getattr(whole, name), getattr(joined, name)), name


def test_a_buffer_of_another_size_is_refused(picture):
    with pytest.raises((AssertionError, ValueError)):
        SPEC.preprocess_into(np.zeros(3 * 32 * 33, np.float32), picture((50, 40)))
    with pytest.raises((AssertionError, ValueError)):
        SPEC.preprocess_into(np.zeros(3 * 32 * 31, np.float32), picture((50, 40)))


def test_preprocessing_leaves_the_image_as_it_was(picture):
    for size in ((50, 40), (32, 32)):
        image = picture(size)
        before = image.tobytes()
        for array in VisionSpec(32, 8, 16).preprocess(image):
            array[:] = 0
        assert image.tobytes() == before


def test_only_reading_needs_no_copy_and_keeping_does(picture):
    image = picture((50, 40))
    assert as_rgb(image) is image
    kept = to_rgb(image)
    image.paste((0, 0, 0), (0, 0, 50, 40))
    assert np.asarray(kept).any()


def test_a_lazy_image_outlives_its_file(picture, tmp_path):
    picture((50, 40)).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as lazy:
        rgb = as_rgb(lazy)
    assert np.array_equal(np.asarray(rgb), np.asarray(picture((50, 40))))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_upright_picture_is_not_turned_again(picture, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode_image(encoded(picture((50, 40)), "PNG", exif=exif))
    assert image.size == ((50, 40) if orientation < 5 else (40, 50))
    assert ImageOps.exif_transpose(image).tobytes() == image.tobytes()


@pytest.mark.parametrize(
    ("size", "shorter_edge", "found"),
    [
        ((1000, 808), 0, (1000, 808)),
        ((1000, 808), 405, (1000, 808)),
        ((1000, 808), 404, (500, 404)),
        ((1000, 808), 9, (125, 101)),
        ((1004, 808), 9, (251, 202)),  # an eighth of 1004 is no whole number
        ((1001, 808), 9, (1001, 808)),
    ],
)
def test_a_jpeg_is_decoded_smaller_in_its_exact_proportions(picture, size, shorter_edge, found):
    smooth = picture((100, 80)).resize(size)
    image = decode_image(encoded(smooth, quality=95), shorter_edge)
    assert image.size == found
    shown, seen = (np.asarray(x.resize((20, 16), Image.Resampling.BOX)).astype(int) for x in (smooth, image))
    assert np.abs(shown - seen).max() <= 12


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_other_formats_are_decoded_whole(picture, format):
    data = encoded(picture((100, 80)), format)
    assert decode_image(data, 10).tobytes() == decode_image(data).tobytes()
