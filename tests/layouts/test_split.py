"""Idefics3's and SmolVLM's split against transformers: grids, counts and pixels."""

import numpy as np
import pytest
from transformers.image_utils import SizeDict
from transformers.models.idefics3.image_processing_pil_idefics3 import (
    Idefics3ImageProcessorPil,
    get_resize_output_image_size,
)
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from vlmkit.errors import UsageError
from vlmkit.layouts import Alone, Frame, build_layout
from vlmkit.layouts.split import _with_longest, shrunk, whole_tiles

IDEFICS3, SMOLVLM = Frame(364, 14), Frame(512, 16)
FAMILIES = {"idefics3": Idefics3ImageProcessorPil, "smolvlm": SmolVLMImageProcessorPil}


class Sizes(Idefics3ImageProcessorPil):
    """The reference's own steps on pictures without pixels: only sizes are computed."""

    def resize(self, image, size, resample=None, **_):
        edge = size.longest_edge
        return blank(*(get_resize_output_image_size(image, edge) if edge else (size.height, size.width)))


def blank(height, width):
    return np.broadcast_to(np.uint8(0), (3, height, width))


def steps(size, edge, side):
    """The reference's views, rows and columns."""
    processor = Sizes()
    image = processor.resize(blank(size[1], size[0]), SizeDict(longest_edge=edge))
    image = processor.resize_for_vision_encoder(image, side)
    return processor.split_images(image, {"longest_edge": side})


@pytest.mark.parametrize(
    ("frame", "edge"), [(IDEFICS3, 1456), (SMOLVLM, 2048), (IDEFICS3, 364), (IDEFICS3, 1000), (SMOLVLM, 5000)]
)
def test_grids_and_counts_equal_transformers(sizes, frame, edge):
    layout = build_layout({"type": "split", "longest_edge": edge})
    for size in sizes:
        frames, rows, cols = steps(size, edge, frame.side)
        assert layout.grid(size, frame) == ((cols, rows) if rows else (1, 1))
        assert len(layout.views(size, frame)) == len(layout.pieces(size, frame)) == len(frames)


@pytest.mark.parametrize(("frame", "edge"), [(IDEFICS3, 1456), (SMOLVLM, 2048)])
def test_counts_equal_the_processors_own(sizes, frame, edge):
    options = {"size": {"longest_edge": edge}, "max_image_size": {"longest_edge": frame.side}}
    layout, processor = build_layout("split"), Idefics3ImageProcessorPil(**options)
    for size in sizes:
        stated = processor.get_number_of_image_patches(size[1], size[0], options)[0]
        assert len(layout.views(size, frame)) == max(1, stated), size


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("edge", [96, 24, 60])
def test_pixels_equal_transformers(awkward, spec, in_sequence, family, edge):
    stated = spec({"type": "split", "longest_edge": edge}, resample="lanczos")
    processor = FAMILIES[family](
        size={"longest_edge": edge}, max_image_size={"longest_edge": 24}, image_mean=stated.mean,
        image_std=stated.std,
    )  # fmt: skip
    theirs = processor(awkward, input_data_format="channels_last", return_tensors="np")["pixel_values"]
    assert np.array_equal(in_sequence(stated, awkward), theirs[0])


def test_hand_computed():
    """640 x 480 to 1456 x 1092, which is 4 x 3 tiles of 364; to 500 x 375, made even, in 2 x 2 tiles."""
    assert shrunk((640, 480), 1456) == (1456, 1092)
    assert build_layout("split").grid((640, 480), IDEFICS3) == (4, 3)
    assert shrunk((640, 480), 500) == (500, 376)
    assert whole_tiles((500, 376), 364) == (728, 728)
    assert shrunk((100, 1), 1456) == (1456, 14)
    assert shrunk((10, 10), 9000) == (4096, 4096)


def test_rounding_instead_of_truncating_is_seen(sizes, monkeypatch):
    monkeypatch.setattr("vlmkit.layouts.split.int", round, raising=False)
    layout = build_layout({"type": "split", "longest_edge": 1000})
    grids = [(layout.grid(size, IDEFICS3), steps(size, 1000, 364)[1:]) for size in sizes]
    assert [(ours, theirs) for ours, theirs in grids if ours[::-1] != (theirs if theirs[0] else (1, 1))]


@pytest.mark.parametrize("mistake", ["not even", "resized once", "global view from the picture"])
def test_a_mistake_in_the_pixels_is_seen(noise, spec, in_sequence, monkeypatch, mistake):
    image = noise(5, (97, 41))
    stated = {"type": "split", "longest_edge": 60}
    right = in_sequence(spec(stated), image)
    if mistake == "not even":
        monkeypatch.setattr("vlmkit.layouts.split.shrunk", _with_longest)
    if mistake == "resized once":
        monkeypatch.setattr("vlmkit.layouts.split.shrunk", lambda size, _: size)
        monkeypatch.setattr("vlmkit.layouts.split.whole_tiles", lambda size, side: (72, 48))
    wrong = in_sequence(spec(stated), image)
    if mistake == "global view from the picture":
        wrong = np.stack([*right[:-1], *spec("square").preprocess(image)])
    assert wrong.shape == right.shape
    assert np.abs(wrong[-1] - right[-1]).max() > 0.1


def test_the_global_view_is_the_last_in_the_sequence_and_the_first_view(spec):
    stated = spec({"type": "split", "longest_edge": 48})
    assert stated.pieces((60, 30)) == (Alone(1), Alone(2), Alone(0))
    assert [view.role for view in stated.views((60, 30))] == ["thumbnail", "tile", "tile"]
    assert spec({"type": "split", "longest_edge": 24}).pieces((60, 30)) == (Alone(0),)


def test_wrong_options_are_explained():
    with pytest.raises(UsageError, match="split longest_edge is '4k'; it needs a whole number of 0 or more"):
        build_layout({"type": "split", "longest_edge": "4k"})
