"""Packed attention against padded and masked attention, and against each view alone."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence

from vlmkit.encoders import packed
from vlmkit.encoders.packed import inverse, packed_attention, windows

LENGTHS = [
    [7], [5, 5, 5], [3, 9, 3, 1, 9, 9, 4], [1, 1, 2], list(range(1, 12)), [4] * 6 + [2, 1] + [4] * 3,
]  # fmt: skip


def draw(lengths, heads=3, width=8):
    generator = torch.Generator().manual_seed(sum(lengths))
    shape = (sum(lengths), heads, width)
    return tuple(torch.randn(shape, generator=generator).requires_grad_() for _ in range(3))


def padded(tensors, lengths, scale=None):
    """What a model without packing does: pad to the longest, mask, drop the padding."""
    q, k, v = (pad_sequence(x.split(lengths), batch_first=True).transpose(1, 2) for x in tensors)
    there = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    out = scaled_dot_product_attention(q, k, v, attn_mask=there[:, None, None], scale=scale)
    return out.transpose(1, 2)[there]


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("scale", [None, 0.7])
def test_it_is_padded_attention_with_a_mask(lengths, scale):
    tensors = draw(lengths)
    ours, theirs = packed_attention(*tensors, lengths, scale), padded(tensors, lengths, scale)
    assert (ours - theirs).abs().max() < 1e-6
    ours_by, theirs_by = (torch.autograd.grad(out.square().sum(), tensors) for out in (ours, theirs))
    for ours_grad, theirs_grad in zip(ours_by, theirs_by):
        assert (ours_grad - theirs_grad).abs().max() < 1e-5


@pytest.mark.parametrize("lengths", LENGTHS)
def test_each_view_alone_is_the_same(lengths):
    tensors = draw(lengths)
    alone = [packed_attention(*view, [len(view[0])]) for view in zip(*(x.split(lengths) for x in tensors))]
    assert (packed_attention(*tensors, lengths) - torch.cat(alone)).abs().max() < 1e-6


def test_the_tests_see_other_lengths():
    tensors = draw([3, 9])
    assert (packed_attention(*tensors, [9, 3]) - padded(tensors, [3, 9])).abs().max() > 0.1
    assert (packed_attention(*tensors, [12]) - padded(tensors, [3, 9])).abs().max() > 0.1


@pytest.mark.parametrize("lengths", LENGTHS)
def test_there_is_one_call_a_distinct_length_and_no_padding(lengths, monkeypatch):
    seen = []

    def count(q, *rest, **options):
        seen.append(q.shape)
        return scaled_dot_product_attention(q, *rest, **options)

    monkeypatch.setattr(packed, "scaled_dot_product_attention", count)
    packed_attention(*draw(lengths), lengths)
    assert len(seen) == len(set(lengths))
    assert sum(shape[0] * shape[2] for shape in seen) == sum(lengths)


def test_lengths_that_do_not_fit_are_an_error():
    with pytest.raises(RuntimeError, match="sum exactly to 12"):
        packed_attention(*draw([12]), [5, 5])


def test_dropout_drops():
    tensors = draw([6, 6, 3])
    kept = packed_attention(*tensors, [6, 6, 3])
    assert (packed_attention(*tensors, [6, 6, 3], dropout=0.5) - kept).abs().max() > 0.1


@pytest.mark.parametrize(("rows", "cols", "side"), [(4, 6, 2), (5, 7, 3), (1, 9, 4), (2, 3, 8), (6, 6, 1)])
def test_windows_hold_what_lies_together(rows, cols, side):
    order, lengths = windows(rows, cols, side)
    assert sorted(order.tolist()) == list(range(rows * cols))
    assert order[inverse(order)].tolist() == list(range(rows * cols))
    for i, window in enumerate(order.split(lengths)):
        down, right = divmod(i, -(-cols // side))
        wanted = [
            r * cols + c
            for r in range(down * side, min(rows, (down + 1) * side))
            for c in range(right * side, min(cols, (right + 1) * side))
        ]
        assert window.tolist() == wanted
