"""Every layout against the preprocessing that it is named after, and its counts against its pictures."""

import random

import numpy as np
import pytest
import transformers
from packaging.version import Version
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from vlmkit.encoders.clip import CLIP_MEAN, CLIP_STD
from vlmkit.encoders.processors import stated_crop
from vlmkit.encoders.spec import VisionSpec
from vlmkit.layouts import LAYOUTS

# Transformers that do not lay transparent pictures over white.
OLD = Version(transformers.__version__) < Version("5.20")
SIZES = [(640, 480), (480, 640), (333, 500), (64, 64), (224, 224), (225, 224), (100, 1600), (1, 3), (7, 5)]


def spec(layout, side=224, **changes):
    stated = {"mean": CLIP_MEAN, "std": CLIP_STD, "max_patches": 20, **changes}
    return VisionSpec(side, 16 if side % 16 == 0 else 1, 8, layout=layout, **stated)


def processed(image, side=224, **options):
    crop = {"height": side, "width": side}
    sizes = {"size": {"shortest_edge": side}, "crop_size": crop, **options}
    return CLIPImageProcessorPil(**sizes)(image, return_tensors="np")["pixel_values"][0]


def expand2square(image):
    """LLaVA's (llava/mm_utils.py), as published."""
    background_color = tuple(int(x * 255) for x in CLIP_MEAN)
    width, height = image.size
    if width == height:
        return image
    if width > height:
        result = Image.new(image.mode, (width, width), background_color)
        result.paste(image, (0, (width - height) // 2))
        return result
    result = Image.new(image.mode, (height, height), background_color)
    result.paste(image, ((height - width) // 2, 0))
    return result


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("side", [224, 33])
def test_crop_is_the_clip_processor(picture, size, side):
    image = picture(size)
    (ours,) = spec("crop", side).preprocess(image)
    assert ours.dtype == np.float32
    assert np.array_equal(ours, processed(image, side))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("side", "edge"), [(224, 256), (33, 40)])
def test_crop_out_of_a_larger_picture_is_dinov2s_processor(picture, size, side, edge):
    image = picture(size)
    (ours,) = spec("crop", side, shortest_edge=edge).preprocess(image)
    assert np.array_equal(ours, processed(image, side, size={"shortest_edge": edge}))


@pytest.mark.parametrize("size", SIZES)
def test_pad_is_llavas_expand2square_and_the_clip_processor(picture, size):
    image = picture(size)
    (ours,) = spec("pad").preprocess(image)
    assert np.array_equal(ours, processed(expand2square(image)))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("name", "number"), [("bilinear", 2), ("bicubic", 3), ("lanczos", 1)])
def test_square_is_the_clip_processor_with_a_fixed_size(picture, size, name, number):
    image = picture(size)
    (ours,) = spec("square", resample=name).preprocess(image)
    theirs = processed(image, size={"height": 224, "width": 224}, resample=number)
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1"])
def test_every_kind_of_picture_is_read_as_transformers_reads_it(picture, mode):
    """Transparency over white, as new ones do; older ones drop it and show the colours behind it."""
    image = picture((50, 40), mode=mode if mode in ("L", "LA", "RGBA") else "RGB")
    image = image.convert(mode)
    if mode == "P":
        image.info["transparency"] = 3
    ours, seen = spec("crop").preprocess(image)[0], image
    if mode in ("LA", "RGBA") and OLD:
        seen = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    assert np.array_equal(ours, processed(seen.convert("RGB") if seen is not image else image))


@pytest.mark.parametrize(
    "change", [{"layout": "pad"}, {"layout": "square"}, {"resample": "bilinear"}, {"mean": (0.5, 0.5, 0.5)}]
)
def test_another_preprocessing_is_seen(picture, change):
    image = picture((333, 500))
    (ours,) = VisionSpec(
        224, 16, 8, **{"mean": CLIP_MEAN, "std": CLIP_STD, "layout": "crop", **change}
    ).preprocess(image)
    assert np.abs(ours - processed(image)).max() > 0.1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_views_agree_with_pictures_for_any_size(picture, layout):
    draw = random.Random(layout)
    for _ in range(25):
        image = picture((draw.randint(1, 200), draw.randint(1, 200)))
        stated = spec(layout, side=draw.choice([32, 48, 64]))
        views, pixels = stated.views(image.size), stated.preprocess(image)
        assert len(views) == len(pixels)
        for view, array in zip(views, pixels):
            rows, cols = view.rows * stated.patch_size, view.cols * stated.patch_size
            assert array.shape == (3, rows, cols)


def test_padding_is_the_mean_colour_and_normalises_to_about_zero(picture):
    (pixels,) = spec("pad").preprocess(picture((100, 50)))
    assert np.abs(pixels[:, :50]).max() < 1 / 255 / min(CLIP_STD)
    assert np.abs(pixels[:, 112]).mean() > 0.1


@pytest.mark.parametrize("size", SIZES[:7])
def test_crop_that_stretches_is_deit_s_processor(picture, size):
    from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil

    sizes = {"size": {"height": 40, "width": 40}, "crop_size": {"height": 33, "width": 33}}
    stored = DeiTImageProcessorPil(**sizes)
    stated = stated_crop(stored.to_dict())
    assert stated == {
        "layout": {"type": "crop", "stretch": True},
        "image_size": 33,
        "shortest_edge": 40,
    }
    image = picture(size)
    mean, std = tuple(stored.image_mean), tuple(stored.image_std)
    encoder = VisionSpec(33, 11, 8, layout=stated["layout"], shortest_edge=40, mean=mean, std=std)
    assert np.array_equal(encoder.preprocess(image)[0], stored(image, return_tensors="np")["pixel_values"][0])
