"""Views of any grids: which of them go together, and that each keeps its place."""

import pytest
import torch

from vlmkit_connectors.views import map_grids, map_padded, shrink

# Lengths 16 15 7 5 4 72 and 16 again: some go together, padded or not, others apart.
GRIDS = [(4, 4), (3, 5), (1, 7), (5, 1), (2, 2), (9, 8), (2, 8)]


def test_views_of_similar_length_go_together(features):
    """At most half of a view's length is padding; each comes once, in the order it was given in."""
    calls = []

    def first_patch_and_sum(views, patches_IPV, mask_IP):
        calls.append((views, tuple(patches_IPV.shape), mask_IP))
        return torch.stack([patches_IPV[:, 0], patches_IPV.sum(1)], 1)

    seen = features(GRIDS)
    given = map_padded(seen, first_patch_and_sum)
    expected = torch.cat([torch.stack([view[0], view.sum(0)]) for view in seen.views()])
    assert given.counts == (2,) * len(GRIDS) and torch.allclose(given.tokens_ND, expected, atol=1e-5)
    assert [(views, shape) for views, shape, _ in calls] == [
        ([4, 3], (2, 5, 6)), ([2], (1, 7, 6)), ([1, 0, 6], (3, 16, 6)), ([5], (1, 72, 6)),
    ]  # fmt: skip
    assert [None if mask is None else mask.sum(1).tolist() for *_, mask in calls] == [
        [4, 5],
        None,
        [15, 16, 16],
        None,
    ]


@pytest.mark.parametrize("grids", [[(2, 3), (4, 1), (2, 3), (3, 2)], [(2, 3)] * 3])
def test_views_of_one_grid_go_together(features, grids):
    """One call a grid, none where all are of one; a view's tokens are its corners, by row and column."""
    calls = []

    def corners(views_IRCV):
        calls.append(tuple(views_IRCV.shape[:3]))
        return torch.stack([views_IRCV[:, 0, -1], views_IRCV[:, -1, 0]], 1)

    seen = features(grids)
    given = map_grids(seen, corners)
    expected = [view[[c - 1, (r - 1) * c]] for view, (r, c) in zip(seen.views(), grids)]
    assert given.counts == (2,) * len(grids) and torch.equal(given.tokens_ND, torch.cat(expected))
    assert calls == [(grids.count(grid), *grid) for grid in dict.fromkeys(grids)]


def test_squares_at_the_edge_count():
    assert [shrink((5, 4), n) for n in (1, 2, 3, 9)] == [(5, 4), (3, 2), (2, 2), (1, 1)]
