"""A token budget is kept by smaller layouts: for every layout and size."""

from itertools import pairwise

import pytest

from vlmkit.layouts import Frame, build_layout

# Layout, frame, rows and columns of tokens of a view, number of smaller layouts.
CASES = {
    "anyres": ({"type": "anyres"}, Frame(336, 14), 24, 4),
    "anyres pixels": ({"type": "anyres", "pinpoints": [[672, 336]], "unit": "pixels"}, Frame(336, 14), 24, 2),
    "anyres_max": ({"type": "anyres_max"}, Frame(384, 14), 27, 10),
    "tiles": ({"type": "tiles"}, Frame(448, 14), 16, 11),
    "tiles from 6": ({"type": "tiles", "min_tiles": 6}, Frame(448, 14), 16, 11),
    "tiles alone": ({"type": "tiles", "thumbnail": False}, Frame(448, 14), 16, 11),
    "split": ({"type": "split"}, Frame(364, 14), 13, 3),
    "split 5000": ({"type": "split", "longest_edge": 5000}, Frame(364, 14), 13, 11),
    "split 1000": ({"type": "split", "longest_edge": 1000}, Frame(364, 14), 13, 2),
    "scales": ({"type": "scales"}, Frame(224, 14), 16, 0),
    "letterbox": ({"type": "letterbox"}, Frame(224, 14), 16, 0),
}


def chain(layout, frame):
    found = [layout]
    while (smaller := found[-1].smaller(frame)) is not None:
        assert len(found) < 100
        found.append(smaller)
    return found


def patches(layout, size, frame):
    return sum(view.rows * view.cols for view in layout.views(size, frame))


@pytest.mark.parametrize("name", CASES)
def test_smaller_layouts_never_make_more(sizes, tokens, name):
    stated, frame, tile, steps = CASES[name]
    layouts = chain(build_layout(stated), frame)
    assert len(layouts) == steps + 1
    for size in sizes[::3]:
        made = [patches(layout, size, frame) for layout in layouts]
        assert made == sorted(made, reverse=True)
        # A scaled grid may end in a few rows more, so that there are a few newlines more.
        counts = [tokens(layout, size, frame, (tile, tile)) for layout in layouts]
        assert all(after <= before + tile + 1 for before, after in pairwise(counts))


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name][3]])
def test_the_last_takes_one_view_of_any_image(sizes, tokens, name):
    stated, frame, tile, _ = CASES[name]
    last = chain(build_layout(stated), frame)[-1]
    assert all(tokens(last, size, frame, (tile, tile)) - tile * tile in (0, 1) for size in sizes)
    assert all(len(last.views(size, frame)) == 1 for size in sizes)


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name][3]])
def test_each_takes_fewer_tokens_of_some_image(sizes, tokens, name):
    stated, frame, tile, _ = CASES[name]
    layouts = chain(build_layout(stated), frame)
    for before, after in pairwise(layouts):
        assert any(
            tokens(after, size, frame, (tile, tile)) < tokens(before, size, frame, (tile, tile))
            for size in sizes
        )


def test_pixels_of_a_level_are_those_of_its_layout(noise, spec):
    image = noise(1, (100, 70))
    for layout in ("anyres", "anyres_max", "tiles", "split"):
        stated = spec(layout)
        for level in range(3):
            views, pixels = stated.views(image.size, level), stated.preprocess(image, level)
            assert [(3, view.height, view.width) for view in views] == [array.shape for array in pixels]
