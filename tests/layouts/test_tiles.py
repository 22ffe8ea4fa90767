"""InternVL's dynamic tiles against transformers and the published rule: grids, counts and pixels."""

import numpy as np
import pytest
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from vlmkit.errors import UsageError
from vlmkit.layouts import Alone, Frame, build_layout

INTERNVL = Frame(448, 14)


def published(size, side, least, most):
    """Across and down as OpenGVLab/InternVL's train/dataset.py finds them (`find_closest_aspect_ratio`)."""
    width, height = size
    numbers = range(1, most + 1)
    grids = sorted((a * d, a, d) for a in numbers for d in numbers if least <= a * d <= most)
    gaps = [abs(width / height - across / down) for _, across, down in grids]
    equal = [grid for grid, gap in zip(grids, gaps) if gap == min(gaps)]
    larger = [grid for grid in equal[1:] if width * height > 0.5 * side * side * grid[0]]
    return (larger or equal)[-1 if larger else 0][1:]


def reference(least=1, most=12, side=448):
    size = {"height": side, "width": side}
    return GotOcr2ImageProcessorPil(size=size, min_patches=least, max_patches=most, crop_to_patches=True)


@pytest.mark.parametrize(("least", "most"), [(1, 12), (1, 6), (1, 1), (2, 5), (4, 12), (1, 40)])
def test_grids_and_counts_equal_the_references(sizes, least, most):
    layout = build_layout({"type": "tiles", "min_tiles": least, "max_tiles": most})
    theirs = reference(least, most)
    for size in sizes:
        assert layout.grid(size, INTERNVL) == published(size, 448, least, most)
        counted = theirs.get_number_of_image_patches(size[1], size[0])
        assert len(layout.views(size, INTERNVL)) == len(layout.pieces(size, INTERNVL)) == counted


@pytest.mark.parametrize(
    ("size", "most_12", "most_6"),
    [
        ((640, 480), 3328, 1792), ((1024, 768), 3328, 1792), ((1920, 1080), 2304, 768),
        ((1700, 2200), 3328, 1792), ((448, 448), 256, 256),
    ],
)  # fmt: skip
def test_counts_of_common_sizes(tokens, size, most_12, most_6):
    """A tile has 256 tokens after the pixel shuffle."""
    assert tokens(build_layout("tiles"), size, INTERNVL, (16, 16)) == most_12
    assert tokens(build_layout({"type": "tiles", "max_tiles": 6}), size, INTERNVL, (16, 16)) == most_6


@pytest.mark.parametrize(("least", "most"), [(1, 12), (3, 6)])
def test_pixels_equal_transformers(awkward, spec, in_sequence, least, most):
    stated = spec({"type": "tiles", "min_tiles": least, "max_tiles": most})
    theirs = reference(least, most, 24)(
        awkward, image_mean=stated.mean, image_std=stated.std, input_data_format="channels_last"
    )["pixel_values"]
    assert np.array_equal(in_sequence(stated, awkward), np.stack(theirs))


@pytest.mark.parametrize("mistake", ["rows for columns", "no tie rule", "every tie"])
def test_a_mistake_in_the_grid_is_seen(sizes, mistake):
    layout = build_layout("tiles")
    # With a side so large no image is large enough for a tie, with one so small each is.
    frame = {"no tie rule": Frame(10**6, 1), "every tie": Frame(1, 1)}.get(mistake, INTERNVL)
    turn = -1 if mistake == "rows for columns" else 1
    differ = [s for s in sizes if layout.grid(s, frame)[::turn] != published(s, 448, 1, 12)]
    assert len(differ) > 50


def test_the_thumbnail_is_the_last_in_the_sequence_and_the_first_view(noise, spec):
    stated = spec("tiles")
    assert stated.pieces((48, 24)) == (Alone(1), Alone(2), Alone(0))
    assert [view.role for view in stated.views((48, 24))] == ["thumbnail", "tile", "tile"]
    whole = stated.preprocess(noise(1, (48, 24)))[0]
    assert np.array_equal(whole, spec("square").preprocess(noise(1, (48, 24)))[0])
    assert stated.pieces((24, 24)) == (Alone(0),)


def test_a_thumbnail_that_is_not_last_is_seen(noise, spec, in_sequence):
    image = noise(2, (48, 24))
    stated = spec("tiles")
    theirs = reference(side=24)(image, image_mean=stated.mean, image_std=stated.std)["pixel_values"]
    assert np.abs(np.stack(stated.preprocess(image)) - np.stack(theirs)).max() > 0.1


def test_without_thumbnail_its_view_stays_for_the_index(spec):
    stated = spec({"type": "tiles", "thumbnail": False})
    assert stated.pieces((48, 24)) == (Alone(1), Alone(2))
    assert [view.role for view in stated.views((48, 24))] == ["thumbnail", "tile", "tile"]
    assert stated.pieces((24, 24)) == (Alone(0),)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tiles": 0}, "tiles max_tiles is 0; it needs a whole number of 1 or more"),
        ({"max_tiles": True}, "tiles max_tiles is True; it needs a whole number"),
        ({"min_tiles": 3, "max_tiles": 2}, "has min_tiles 3, more than max_tiles 2"),
        ({"thumbnail": 1}, "tiles thumbnail is 1; it needs true or false"),
    ],
)
def test_wrong_options_are_explained(options, message):
    with pytest.raises(UsageError, match=message):
        build_layout({"type": "tiles", **options})
