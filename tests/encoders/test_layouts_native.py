"""The layouts that keep an image's proportions, against the reference processors, and their budgets."""

import random

import numpy as np
import pytest
from transformers.models.pixtral.image_processing_pil_pixtral import (
    PixtralImageProcessorPil,
    get_resize_output_image_size,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from vlmkit.encoders.clip import CLIP_MEAN, CLIP_STD
from vlmkit.encoders.spec import VisionSpec
from vlmkit.errors import UsageError, VlmkitError
from vlmkit.layouts import Frame, build_layout

SIZES = [
    (640, 480), (480, 640), (56, 56), (64, 64), (30, 31), (27, 300), (300, 27), (1, 3), (7, 5), (3, 200),
    (112, 84), (431, 97),
]  # fmt: skip


def spec(patch, **layout):
    return VisionSpec(96, patch, 8, mean=CLIP_MEAN, std=CLIP_STD, layout=layout)


def sizes(seed, ratio=1000):
    draw = random.Random(seed)
    while True:
        size = tuple(int(2 ** draw.uniform(0, 13)) for _ in range(2))
        if max(size) <= ratio * min(size):
            yield size


@pytest.mark.parametrize(
    ("patch", "merge", "least", "most"),
    [(14, 2, 56 * 56, 12_845_056), (16, 2, 65536, 16_777_216), (14, 2, 1, 40_000), (8, 3, 5000, 5000)],
)
def test_qwen_grids_equal_the_reference(patch, merge, least, most):
    stated = spec(patch, type="qwen", merge=merge, min_pixels=least, max_pixels=most)
    for (width, height), _ in zip(sizes(patch, ratio=200), range(1000)):
        wanted = smart_resize(height, width, patch * merge, least, most)
        (view,) = stated.views((width, height))
        assert (view.height, view.width) == (view.rows * patch, view.cols * patch) == wanted


@pytest.mark.parametrize(("patch", "merge", "edge"), [(16, 1, 1024), (14, 2, 1540), (16, 1, 96), (5, 3, 333)])
def test_longest_grids_equal_the_reference(patch, merge, edge):
    stated = spec(patch, type="longest", longest_edge=edge, merge=merge)
    for (width, height), _ in zip(sizes(patch), range(1000)):
        pixels = np.broadcast_to(np.uint8(0), (3, height, width))
        wanted = get_resize_output_image_size(pixels, edge, patch * merge, "channels_first")
        (view,) = stated.views((width, height))
        assert (view.height, view.width) == (view.rows * patch, view.cols * patch)
        # Scaling may make an edge 0, of which the reference makes no patch: it fails on such an image.
        assert (view.height, view.width) == tuple(max(x, patch * merge) for x in wanted)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("most", [12_845_056, 20_000])
def test_qwen_pixels_equal_the_reference(picture, size, most):
    image = picture(size)
    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": most})
    theirs = processor(image, return_tensors="np")
    (ours,) = spec(14, type="qwen", max_pixels=most).preprocess(image)
    _, rows, cols = theirs["image_grid_thw"][0]
    assert ours.shape == (3, rows * 14, cols * 14)
    patches = theirs["pixel_values"].reshape(rows // 2, cols // 2, 2, 2, 3, 2, 14, 14)
    for frame in (0, 1):
        whole = patches[..., frame, :, :].transpose(4, 0, 2, 5, 1, 3, 6)
        assert np.array_equal(whole.reshape(ours.shape), ours)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("patch", "edge"), [(16, 1024), (8, 100)])
def test_longest_pixels_equal_the_reference(picture, size, patch, edge):
    image = picture(size)
    sizes = {"size": {"longest_edge": edge}, "patch_size": {"height": patch, "width": patch}}
    theirs = PixtralImageProcessorPil(**sizes)(image, return_tensors="np")["pixel_values"][0]
    (ours,) = spec(patch, type="longest", longest_edge=edge).preprocess(image)
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("size", "change"),
    [
        ((300, 70), {"merge": 1}),
        ((60, 60), {"min_pixels": 10_000}),
        ((300, 77), {"max_pixels": 20_000}),
        ((310, 60), {"type": "longest", "longest_edge": 500}),
    ],
)
def test_another_qwen_layout_is_seen(size, change):
    assert spec(14, **{"type": "qwen", **change}).views(size) != spec(14, type="qwen").views(size)


@pytest.mark.parametrize(
    "layout",
    [
        {"type": "native", "max_patches": 1000},
        {"type": "longest", "longest_edge": 1024},
        {"type": "longest", "merge": 2},
        {"type": "qwen", "max_pixels": 1_000_000},
        {"type": "qwen", "min_pixels": 500_000, "max_pixels": 500_000},
    ],
)
def test_smaller_takes_fewer_patches_until_it_ends(layout):
    frame, rule, counts = Frame(side=512, patch=16), build_layout(layout), []
    while rule is not None and len(counts) < 50:
        (view,) = rule.views((2000, 1500), frame)
        counts.append(view.rows * view.cols)
        rule = rule.smaller(frame)
    assert rule is None
    assert len(counts) > 5
    # Edges are rounded up to whole groups, so that one step may change nothing; two steps always do.
    assert counts == sorted(counts, reverse=True)
    assert all(below < 0.95 * above for above, below in zip(counts, counts[2:]))
    assert counts[-1] <= 100


@pytest.mark.parametrize("layout", [{"type": "longest"}, {"type": "longest", "merge": 3}, {"type": "qwen"}])
def test_smaller_never_makes_more_patches(layout):
    frame, rule = Frame(side=512, patch=16), build_layout(layout)
    # Of an image thinner than a group, smart_resize rounds the thin edge up: there a step of qwen may add.
    least = 32 if layout["type"] == "qwen" else 1
    chosen = [size for size, _ in zip(sizes(1, ratio=200), range(300)) if min(size) >= least]
    before = [float("inf")] * len(chosen)
    while rule is not None:
        after = [view.rows * view.cols for size in chosen for view in rule.views(size, frame)]
        assert all(fewer <= more for fewer, more in zip(after, before, strict=True))
        before, rule = after, rule.smaller(frame)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"type": "qwen", "merge": 0}, "qwen merge is 0; it needs a whole number of 1 or more"),
        ({"type": "qwen", "merge": 1.5}, "qwen merge is 1.5; "),
        ({"type": "qwen", "min_pixels": 100, "max_pixels": 50}, "min_pixels 100, more than max_pixels 50"),
        ({"type": "qwen", "min_pixels": 0}, "qwen min_pixels is 0; "),
        ({"type": "qwen", "max_pixels": 1e6}, "qwen max_pixels is 1000000.0; "),
        ({"type": "longest", "longest_edge": -1}, "longest_edge is -1; it needs a whole number of 0 or more"),
        ({"type": "longest", "longest_edge": "1024"}, "longest longest_edge is '1024'; "),
        ({"type": "longest", "merge": 0}, "longest merge is 0; "),
        ({"type": "native", "max_patches": True}, "native max_patches is True; "),
        ({"type": "native", "max_patches": "256"}, "native max_patches is '256'; "),
        ({"type": "crop", "stretch": "no"}, "crop stretch is 'no'; it needs true or false"),
        ({"type": "crop", "rounded": 1}, "crop rounded is 1; "),
    ],
)
def test_wrong_options_are_explained(layout, message):
    with pytest.raises(UsageError, match=message):
        build_layout(layout)


def test_an_image_that_is_too_long_is_refused_as_in_the_reference():
    with pytest.raises(ValueError, match="must be smaller than 200"):
        smart_resize(1, 201, 28)
    with pytest.raises(VlmkitError, match="found an image of 201 x 1 pixels; "):
        spec(14, type="qwen").views((201, 1))
    assert spec(14, type="qwen").views((200, 1))
