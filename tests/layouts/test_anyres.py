"""AnyRes against transformers: canvases, token counts and pixels; pinpoints are (width, height) here."""

from types import SimpleNamespace

import numpy as np
import pytest
from transformers import LlavaNextProcessor, LlavaOnevisionProcessor
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)

from vlmkit.encoders.spec import VisionSpec
from vlmkit.errors import UsageError
from vlmkit.layouts import Alone, Frame, Mosaic, build_layout, mosaic
from vlmkit.layouts.anyres import LLAVA_NEXT, ONEVISION, best_canvas

CLIP, SIGLIP = Frame(336, 14), Frame(384, 14)
# More wide canvases than high ones: a swap of width and height is seen.
WIDE = ((2, 1), (1, 2), (3, 1), (5, 2), (4, 3))
SETS = {"llava": LLAVA_NEXT, "llava read by transformers": tuple((h, w) for w, h in LLAVA_NEXT), "wide": WIDE}


def in_pixels(pinpoints, side):
    """As transformers states them: (height, width)."""
    return [[h * side, w * side] for w, h in pinpoints]


def llava_next(pinpoints, side=336):
    """transformers' processor without its tokenizer: only its counting is used."""
    processor = LlavaNextProcessor.__new__(LlavaNextProcessor)
    images = SimpleNamespace(image_grid_pinpoints=in_pixels(pinpoints, side))
    vars(processor).update(image_processor=images, patch_size=14, num_additional_image_tokens=0)
    return lambda size: processor._get_number_of_features(size[1], size[0], side, side)


def onevision(pinpoints, most, tile=27, side=384):
    processor = LlavaOnevisionProcessor.__new__(LlavaOnevisionProcessor)
    images = SimpleNamespace(image_grid_pinpoints=in_pixels(pinpoints, side))
    own = {"num_image_tokens": tile * tile, "vision_aspect_ratio": f"anyres_max_{most}"}
    vars(processor).update(image_processor=images, **own)
    return lambda size: processor._get_number_of_features(size[1], size[0], side, side)


def wrong(sizes, ours, theirs):
    """The sizes with which two functions differ."""
    return [size for size in sizes if ours(size) != theirs(size)]


@pytest.mark.parametrize("name", SETS)
def test_canvas_and_count_equal_transformers(sizes, tokens, name):
    layout = build_layout({"type": "anyres", "pinpoints": SETS[name]})
    there = in_pixels(SETS[name], 336)
    canvas = lambda size: tuple(336 * edge for edge in layout.canvas(size, CLIP))  # noqa: E731
    assert not wrong(sizes, canvas, lambda size: select_best_resolution(size[::-1], there)[::-1])
    assert not wrong(sizes, lambda size: tokens(layout, size, CLIP, (24, 24)), llava_next(SETS[name]))


@pytest.mark.parametrize("most", [1, 4, 9, 20])
@pytest.mark.parametrize("pinpoints", [ONEVISION, WIDE])
def test_count_equals_transformers_onevision(sizes, tokens, pinpoints, most):
    layout = build_layout({"type": "anyres_max", "pinpoints": pinpoints, "max_tiles": most})
    assert not wrong(sizes, lambda size: tokens(layout, size, SIGLIP, (27, 27)), onevision(pinpoints, most))


def test_defaults_are_those_of_the_papers():
    assert build_layout("anyres").pinpoints == ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
    assert build_layout("anyres").max_tiles == 0
    assert build_layout("anyres_max").pinpoints[:3] == ((1, 1), (1, 2), (1, 3))
    assert len(build_layout("anyres_max").pinpoints) == 36
    assert build_layout("anyres_max").max_tiles == 9


@pytest.mark.parametrize(
    ("size", "count"),
    [
        ((640, 480), 2340), ((1024, 768), 2340), ((1920, 1080), 1948), ((1080, 1920), 1968),
        ((1700, 2200), 2448), ((336, 336), 1176), ((1600, 100), 868), ((672, 672), 576 + 2304 + 48),
    ],
)  # fmt: skip
def test_counts_of_common_sizes(tokens, size, count):
    assert tokens(build_layout("anyres"), size, CLIP, (24, 24)) == count


@pytest.mark.parametrize("mistake", ["swapped", "other order", "rounded", "least padding only"])
def test_a_mistake_in_the_canvas_is_seen(sizes, tokens, monkeypatch, mistake):
    stated = WIDE
    if mistake == "swapped":
        stated = tuple((h, w) for w, h in WIDE)
    if mistake == "other order":
        stated = WIDE[::-1]
    if mistake == "rounded":
        monkeypatch.setattr("vlmkit.layouts.anyres.int", round, raising=False)
    if mistake == "least padding only":
        monkeypatch.setattr("vlmkit.layouts.anyres.min", lambda *edges: edges[0], raising=False)
    layout = build_layout({"type": "anyres", "pinpoints": stated})
    seen = wrong(sizes, lambda size: layout.canvas(size, CLIP), expected)
    assert seen


def expected(size):
    high, wide = select_best_resolution(size[::-1], in_pixels(WIDE, 336))
    return wide // 336, high // 336


@pytest.mark.parametrize("mistake", ["rounded", "truncated twice", "swapped"])
def test_a_mistake_in_the_cut_is_seen(sizes, tokens, monkeypatch, mistake):
    layout = build_layout("anyres")
    if mistake == "rounded":
        monkeypatch.setattr("vlmkit.layouts.mosaic.int", round, raising=False)
    if mistake == "truncated twice":
        monkeypatch.setattr("vlmkit.layouts.mosaic.round", lambda edge, _: int(edge), raising=False)
    if mistake == "swapped":
        right = mosaic._padding
        monkeypatch.setattr(mosaic, "_padding", lambda size, high, wide: right(size[::-1], high, wide))
    assert wrong(sizes, lambda size: tokens(layout, size, CLIP, (24, 24)), llava_next(LLAVA_NEXT))


def test_equal_canvases_are_decided_by_their_order():
    """A small wide picture fits each canvas of LLaVA's list: the first, a high one, is taken, as in LLaVA."""
    assert build_layout("anyres").canvas((300, 200), CLIP) == (1, 2)
    read_by_transformers = [[2, 1], [1, 2], [2, 2], [1, 3], [3, 1]]
    assert build_layout({"type": "anyres", "pinpoints": read_by_transformers}).canvas((300, 200), CLIP) == (
        2,
        1,
    )
    assert best_canvas((300, 200), []) == (0, 0)


@pytest.mark.parametrize("pinpoints", [WIDE, LLAVA_NEXT])
def test_pixels_equal_llava_next(awkward, spec, in_sequence, pinpoints):
    stated = spec({"type": "anyres", "pinpoints": pinpoints})
    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}, image_mean=stated.mean,
        image_std=stated.std, image_grid_pinpoints=in_pixels(pinpoints, 24),
    )  # fmt: skip
    theirs = processor(awkward, input_data_format="channels_last", return_tensors="np")["pixel_values"][0]
    assert np.array_equal(in_sequence(stated, awkward), theirs)


def test_pixels_equal_onevision(awkward, spec, in_sequence):
    stated = spec("anyres_max")
    processor = LlavaOnevisionImageProcessorPil(
        size={"height": 24, "width": 24}, image_mean=stated.mean, image_std=stated.std,
        image_grid_pinpoints=in_pixels(ONEVISION, 24),
    )  # fmt: skip
    theirs = processor(awkward, input_data_format="channels_last", return_tensors="np")["pixel_values"][0]
    assert np.array_equal(in_sequence(stated, awkward), theirs)


def test_pixels_at_the_published_size(noise):
    image = noise(1, (1000, 333))
    stated = VisionSpec(336, 14, 8, layout="anyres")
    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}, image_mean=stated.mean,
        image_std=stated.std, image_grid_pinpoints=in_pixels(LLAVA_NEXT, 336),
    )  # fmt: skip
    theirs = processor(image, return_tensors="np")["pixel_values"][0]
    assert np.array_equal(np.stack(stated.preprocess(image)), theirs)


@pytest.mark.parametrize("mistake", ["mean colour", "floor", "corner", "columns first"])
def test_a_mistake_in_the_pixels_is_seen(noise, spec, in_sequence, monkeypatch, mistake):
    image = noise(3, (97, 41))
    right = in_sequence(spec("anyres"), image)
    if mistake == "mean colour":
        monkeypatch.setattr("vlmkit.layouts.anyres.BLACK", (122, 116, 104))
    if mistake == "floor":
        monkeypatch.setattr("vlmkit.layouts.anyres.math.ceil", int)
    if mistake == "corner":
        monkeypatch.setattr("vlmkit.layouts.anyres.fit", lambda size, canvas: canvas)
    if mistake == "columns first":
        from vlmkit.layouts.cut import cut

        turned = lambda canvas, side: cut(canvas, side)[::-1]  # noqa: E731
        monkeypatch.setattr("vlmkit.layouts.anyres.cut", turned)
    assert np.abs(in_sequence(spec("anyres"), image) - right).max() > 0.1


def test_the_base_comes_first_and_shows_everything(noise, spec):
    image = noise(4, (90, 30))
    views = spec("anyres").views(image.size)
    assert [view.role for view in views] == ["thumbnail", "tile", "tile", "tile"]
    assert spec("anyres").pieces(image.size) == (Alone(0), Mosaic(1, 1, 3, (90, 30)))
    assert np.array_equal(spec("anyres").preprocess(image)[0], spec("square").preprocess(image)[0])


def test_options_reach_the_mosaic(noise, spec, tokens):
    frame = Frame(24, 8)
    stated = {"type": "anyres", "newline": False, "unpad": False, "max_tiles": 3}
    base, joined = build_layout(stated).pieces((90, 10), frame)
    assert base == Alone(0)
    assert (joined.newline, joined.max_tiles) == (False, 3)
    # Three tiles of 3 x 3 tokens, none cut away and no newlines; the limit is not passed.
    assert tokens(build_layout(stated), (90, 10), frame, (3, 3)) == 9 + 27
    assert tokens(build_layout({"type": "anyres", "unpad": False}), (90, 10), frame, (3, 3)) == 9 + 27 + 3


def test_without_pinpoints_the_whole_image_is_alone(noise, spec):
    alone = spec({"type": "anyres", "pinpoints": []})
    assert alone.pieces((90, 30)) == (Alone(0, newline=True),)
    assert len(alone.preprocess(noise(1, (90, 30)))) == 1


def test_pinpoints_in_pixels_are_those_in_tiles():
    stated = {"type": "anyres", "pinpoints": [[336, 672], [672, 336]], "unit": "pixels"}
    assert build_layout(stated).canvases(CLIP) == ((1, 2), (2, 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pinpoints": [[336, 672]]}, "if they are in pixels, state unit: pixels"),
        ({"pinpoints": [[336, 600]], "unit": "pixels"}, "no multiples of the side of the encoder, 336"),
        ({"pinpoints": [[1, 0]]}, "edge is 0; it needs a whole number of 1 or more"),
        ({"pinpoints": [[1, 2, 3]]}, r"pinpoint is \[1, 2, 3\]; it needs \[width, height\]"),
        ({"pinpoints": "2x2"}, r"it needs a list like \[\[1, 2\], \[2, 1\]\]"),
        ({"unit": "metres"}, "unit is 'metres'; it needs one of tiles, pixels"),
        ({"newline": "no"}, "newline is 'no'; it needs true or false"),
        ({"max_tiles": -1}, "max_tiles is -1; it needs a whole number of 0 or more"),
        ({"max_patches": 9}, "unknown option of layout 'anyres': 'max_patches'"),
    ],
)
def test_wrong_options_are_explained(options, message):
    with pytest.raises(UsageError, match=message):
        VisionSpec(336, 14, 8, layout={"type": "anyres", **options})
