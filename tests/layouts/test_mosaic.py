"""The box of a mosaic against transformers' own joining of tiles: which tokens are kept, and how many."""

import pytest
import torch
from torch.nn import functional as F
from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, LlavaOnevisionConfig
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

from vlmkit.layouts import Frame, Mosaic, build_layout
from vlmkit.layouts.mosaic import Box, mosaic_box

TILE, SIDE = 6, 24
FRAME = Frame(SIDE, SIDE // TILE)
VISION = {
    "image_size": SIDE, "patch_size": SIDE // TILE, "hidden_size": 8, "intermediate_size": 8,
    "num_hidden_layers": 1, "num_attention_heads": 1,
}  # fmt: skip
TEXT = {
    "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
    "num_key_value_heads": 1, "vocab_size": 8,
}  # fmt: skip
NEWLINE = -1.0


def model(kind, config, pinpoints):
    there = [[h * SIDE, w * SIDE] for w, h in pinpoints]
    vision, text = CLIPVisionConfig(**VISION), LlamaConfig(**TEXT)
    stated = config(
        vision_config=vision,
        text_config=text,
        image_grid_pinpoints=there,
        image_token_index=7,
        image_token_id=7,
    )
    return kind(stated)


@pytest.fixture(scope="module")
def next_model():
    return model(LlavaNextModel, LlavaNextConfig, build_layout("anyres").pinpoints)


@pytest.fixture(scope="module")
def onevision_model():
    return model(LlavaOnevisionModel, LlavaOnevisionConfig, build_layout("anyres_max").pinpoints)


def numbered(views):
    """Tokens that are told apart by two numbers: where they stand in the batch, and its square root."""
    index = torch.arange(views * TILE * TILE, dtype=torch.float32)
    return torch.stack([index, index.sqrt()], dim=-1).view(views, TILE * TILE, 2)


def joined(tiles, mosaic, box):
    """What the box says, written out: the tiles' grid, the part, the scaling, a newline after each row."""
    rows = [torch.cat(list(row), dim=1) for row in tiles.view(mosaic.rows, mosaic.cols, TILE, TILE, 2)]
    grid = torch.cat(rows)[box.top : box.top + box.rows, box.left : box.left + box.cols]
    if (box.out_rows, box.out_cols) != (box.rows, box.cols):
        size = (box.out_rows, box.out_cols)
        grid = F.interpolate(grid.permute(2, 0, 1)[None], size=size, mode="bilinear")[0].permute(1, 2, 0)
    if box.newline:
        grid = torch.cat([grid, torch.full((box.out_rows, 1, 2), NEWLINE)], dim=1)
    return grid.flatten(0, 1)


def compare(layout, size, pack):
    base, mosaic = layout.pieces(size, FRAME)
    tokens = numbered(1 + mosaic.rows * mosaic.cols)
    newline = torch.full((2,), NEWLINE) if mosaic.newline else None
    box = mosaic_box(mosaic, (TILE, TILE))
    ours = torch.cat([tokens[base.view], joined(tokens[1:], mosaic, box)])
    theirs, lengths = pack([tokens], torch.tensor([size[::-1]]), image_newline=newline)
    assert lengths.tolist() == [TILE * TILE + box.tokens]
    return ours.shape == theirs[0].shape and torch.equal(ours, theirs[0])


@pytest.mark.parametrize("newline", [True, False])
def test_tokens_equal_llava_next(sizes, next_model, newline):
    layout = build_layout({"type": "anyres", "newline": newline})
    pack = lambda *args, **given: next_model.pack_image_features(  # noqa: E731
        *args, vision_feature_select_strategy="full", **given
    )
    assert all(compare(layout, size, pack) for size in sizes[::4])


@pytest.mark.parametrize("most", [1, 4, 9])
def test_tokens_equal_onevision(sizes, onevision_model, most):
    layout = build_layout({"type": "anyres_max", "max_tiles": most})
    pack = lambda *args, **given: onevision_model.pack_image_features(  # noqa: E731
        *args, vision_aspect_ratio=f"anyres_max_{most}", **given
    )
    assert all(compare(layout, size, pack) for size in sizes[::4])


def test_another_part_is_seen(sizes, next_model):
    layout = build_layout({"type": "anyres", "unpad": False})
    pack = lambda *args, **given: next_model.pack_image_features(  # noqa: E731
        *args, vision_feature_select_strategy="full", **given
    )
    with pytest.raises(AssertionError):
        compare(layout, (40, 10), pack)


def test_hand_computed():
    """Two tiles of 4 x 4 tokens beside each other show 40 x 10 pixels in 2 of 4 rows."""
    wide = Mosaic(first=1, rows=1, cols=2, image_size=(40, 10))
    assert mosaic_box(wide, (4, 4)) == Box(1, 0, 2, 8, 2, 8, True)
    assert mosaic_box(wide, (4, 4)).tokens == 2 * (8 + 1)
    high = Mosaic(first=1, rows=2, cols=1, image_size=(10, 40), newline=False)
    assert mosaic_box(high, (4, 4)) == Box(0, 1, 8, 2, 8, 2, False)
    assert mosaic_box(high, (4, 4)).tokens == 8 * 2


def test_scaling_down():
    """4 x 4 tiles of 4 x 4 tokens are 256; four tiles have 64, the ratio is 2."""
    large = Mosaic(first=1, rows=4, cols=4, image_size=(10, 10), max_tiles=4)
    assert mosaic_box(large, (4, 4)) == Box(0, 0, 16, 16, 8, 8, True)
    # 256 tokens are at most 1.1 times as wide and high as those of 14 tiles, 224.
    at_most = Mosaic(first=1, rows=4, cols=4, image_size=(10, 10), max_tiles=14)
    assert mosaic_box(at_most, (4, 4)).out_rows == 16
    # The reference fails where a row would be left out; one stays.
    flat = Mosaic(first=1, rows=1, cols=12, image_size=(12, 1), max_tiles=1)
    assert (mosaic_box(flat, (2, 2)).out_rows, mosaic_box(flat, (2, 2)).out_cols) == (1, 6)


def test_extreme_proportions_leave_no_rows():
    flat = Mosaic(first=1, rows=1, cols=3, image_size=(10000, 10))
    assert mosaic_box(flat, (24, 24)) == Box(12, 0, 0, 72, 0, 72, True)
    assert mosaic_box(flat, (24, 24)).tokens == 0
