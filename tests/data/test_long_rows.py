"""General packing: which rows come together, and what the longer rows say of themselves."""

import random

import pytest
import torch

from vlmkit.data.batch import text_tensors
from vlmkit.data.long_rows import first_fit, join_rows
from vlmkit.data.masks import branch_mask, segment_bounds
from vlmkit.data.pack import PackedRow, pack_prefix
from vlmkit.data.tokens import TokenRow


def test_groups_by_hand():
    """9 and 6 open groups, 4 joins the 6, 3 finds no room, 1 joins the 9; a row that is too long is alone."""
    assert first_fit([3, 9, 4, 1, 6, 30], 10) == [[0], [1, 3], [2, 4], [5]]
    assert first_fit([5, 5, 5], 10) == [[0, 1], [2]]
    assert first_fit([], 10) == []


@pytest.mark.parametrize("seed", range(20))
def test_every_row_is_in_one_group_that_has_room(seed):
    draw = random.Random(seed)
    lengths = [draw.randint(1, 120) for _ in range(draw.randint(1, 60))]
    groups = first_fit(lengths, 100)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    loads = [sum(lengths[i] for i in group) for group in groups]
    assert all(load <= 100 or len(group) == 1 for load, group in zip(loads, groups, strict=True))
    # No two groups would fit together, so fewer than half of the tokens' room is left.
    fitting = sorted(load for load in loads if load <= 100)
    assert len(fitting) < 2 or fitting[0] + fitting[1] > 100
    assert groups == first_fit(lengths, 100)


def rows():
    one = pack_prefix([TokenRow((1, 9, 20, 2), (0.5, 0.0, 1.0, 0.25))])
    two = pack_prefix(
        [TokenRow((1, 9, 21, 30, 2), (0, 0, 0, 1, 1)), TokenRow((1, 9, 22, 31, 2), (0, 0, 0, 1, 1))]
    )
    return one, two


def test_a_joined_row_by_hand():
    one, two = rows()
    assert join_rows([one]) is one and one.segments == ()
    assert join_rows([one, two, one]) == PackedRow(
        ids=(1, 9, 20, 2, 1, 9, 21, 30, 2, 22, 31, 2, 1, 9, 20, 2),
        weights=(0, 0, 1, 0.25, 0, 0, 0, 1, 1, 0, 1, 1, 0, 0, 1, 0.25),
        positions=(0, 1, 2, 3, 0, 1, 2, 3, 4, 2, 3, 4, 0, 1, 2, 3),
        branches=(0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0, 0),
        segments=(0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2),
    )


def test_segments_are_in_a_batch_where_a_row_has_several():
    one, two = rows()
    assert "segments_BL" not in text_tensors([one, two], 0)
    segments_BL = text_tensors([two, join_rows([one, one])], 0)["segments_BL"]
    assert segments_BL.tolist() == [[0] * 8, [0] * 4 + [1] * 4]
    wider_BL = text_tensors([join_rows([two, one]), one], 0)["segments_BL"]
    assert wider_BL[1].tolist() == [0] * 4 + [-1] * 8
    assert segment_bounds(wider_BL) == [[(0, 8), (8, 12)], [(0, 4)]]


def test_mask_by_hand():
    """A prefix is its own segment's alone; padding sees itself."""
    branches_BL, segments_BL = torch.tensor([[0, 1, 2, 0, 1, -1]]), torch.tensor([[0, 0, 0, 1, 1, -1]])
    assert branch_mask(branches_BL, segments_BL)[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 0, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
