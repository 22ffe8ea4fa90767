"""General packing: which rows come together, and what the longer rows say of themselves."""

import random

import pytest
import torch

from vlmkit.data.batch import text_tensors
from vlmkit.data.long_rows import group_rows, join_rows
from vlmkit.data.masks import branch_mask, segment_bounds
from vlmkit.data.pack import PackedRow, pack_prefix
from vlmkit.data.tokens import TokenRow


def test_groups_by_hand():
    """Three groups are needed: 9, 6 and 4 start them, 3 goes to the 4, 1 to the 6; 30 is too long."""
    assert group_rows([3, 9, 4, 1, 6, 30], 10) == [[0, 2], [1], [3, 4], [5]]
    assert group_rows([5, 5, 5], 10) == [[0, 2], [1]]
    # Dealt out, the second one would get 5 + 3 + 3: it stays with first fit.
    assert group_rows([5, 5, 4, 3, 3], 10) == [[0, 1], [2, 3, 4]]
    assert group_rows([], 10) == []


@pytest.mark.parametrize("seed", range(20))
def test_every_row_is_in_one_group_that_has_room(seed):
    draw = random.Random(seed)
    lengths = [draw.randint(1, 120) for _ in range(draw.randint(1, 60))]
    groups = group_rows(lengths, 100)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    loads = [sum(lengths[i] for i in group) for group in groups]
    assert all(load <= 100 or len(group) == 1 for load, group in zip(loads, groups, strict=True))
    fitting = [load for load in loads if load <= 100]
    assert len(fitting) <= 11 / 9 * -(-sum(fitting) // 100) + 1 + sum(length > 50 for length in lengths)
    assert groups == group_rows(lengths, 100)


def test_rows_are_about_equal_so_that_little_is_padding():
    draw = random.Random(0)
    share = []
    for _ in range(50):
        lengths = [min(800, int(draw.lognormvariate(5, 0.9)) + 20) for _ in range(16)]
        loads = [sum(lengths[i] for i in group) for group in group_rows(lengths, 2048)]
        share.append(1 - sum(lengths) / (len(loads) * max(loads)))
    assert sum(share) / len(share) < 0.02


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
