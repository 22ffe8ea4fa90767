"""The pool connector: DeCo's grid, fitting grids, averages by hand."""

import math

import pytest
import torch

from vlmkit_connectors import MLPConnector, PoolConnector, VisionFeatures
from vlmkit_connectors.pool import fitting_grid

GRIDS = [(r, c) for r in range(1, 30, 2) for c in range(1, 40, 3)] + [(24, 24), (27, 27), (1, 576), (64, 2)]


def averages(view_TV, grid, wanted):
    """Window i of n covers the places from floor(i * side / n) to before ceil((i + 1) * side / n)."""
    image, means = view_TV.view(*grid, -1), []
    for i in range(wanted[0]):
        for j in range(wanted[1]):
            top, bottom = i * grid[0] // wanted[0], math.ceil((i + 1) * grid[0] / wanted[0])
            left, right = j * grid[1] // wanted[1], math.ceil((j + 1) * grid[1] / wanted[1])
            means.append(image[top:bottom, left:right].flatten(0, 1).mean(0))
    return torch.stack(means)


def test_decos_own_case():
    """CLIP-L/336 has 24 x 24 patches, DeCo 12 x 12 tokens: windows of 2 x 2."""
    connector = PoolConnector([6], 8)
    assert connector.token_grid((24, 24)) == (12, 12)
    assert connector.token_grid((27, 27)) == (12, 12)
    assert connector.token_grid((16, 32)) == (8, 16)


@pytest.mark.parametrize("tokens", [1, 2, 7, 16, 64, 144, 1000])
def test_a_fitting_grid_is_never_too_large_and_hardly_too_small(tokens):
    for grid in GRIDS:
        rows, cols = fitting_grid(grid, tokens)
        assert 1 <= rows <= grid[0] and 1 <= cols <= grid[1] and rows * cols <= tokens
        assert fitting_grid(grid[::-1], tokens) == (cols, rows)
        if math.prod(grid) <= tokens:
            assert (rows, cols) == grid
            continue
        exact = math.sqrt(tokens / math.prod(grid))
        for side, of in ((rows, grid[0]), (cols, grid[1])):
            assert side == min(max(1, math.floor(of * exact + 1e-9)), tokens)


def test_fitting_grids_by_hand():
    """A fourth of the places: half of each side. A single row keeps as many columns as there are tokens."""
    assert fitting_grid((6, 10), 15) == (3, 5)
    assert fitting_grid((6, 10), 14) == (2, 4)
    assert fitting_grid((1, 50), 7) == (1, 7) and fitting_grid((2, 50), 10) == (1, 10)
    assert fitting_grid((3, 4), 12) == (3, 4)


def test_averages_by_hand():
    """Five patches in a row to two tokens: windows 0 1 2 and 2 3 4 share the middle one."""
    connector = PoolConnector([1], 1, tokens=2, depth=1)
    connector.layers[0].weight.data.fill_(1.0)
    connector.layers[0].bias.data.zero_()
    row = VisionFeatures(torch.tensor([[0.0], [1], [2], [3], [7]]), torch.tensor([[1, 5]]), torch.tensor([0]))
    assert connector([row]).tokens_ND.flatten().tolist() == [1.0, 4.0]


@pytest.mark.parametrize("tokens", [1, 4, 9, 20])
def test_tokens_of_any_grids(tokens, features):
    grids = [(4, 4), (3, 5), (1, 7), (7, 6), (2, 2), (4, 4)]
    connector, seen = PoolConnector([6], 8, tokens=tokens), features(grids)
    by_hand = [averages(view, g, connector.token_grid(g)) for view, g in zip(seen.views(), grids)]
    assert connector([seen]).counts == tuple(map(len, by_hand))
    assert (connector([seen]).tokens_ND - connector.layers(torch.cat(by_hand))).abs().max() < 1e-6


def test_a_factor_is_the_pool_of_mlp(features):
    grids = [(4, 4), (3, 5), (1, 7)]
    ours, theirs = PoolConnector([6], 8, factor=2), MLPConnector([6], 8, pool=2)
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(ours([features(grids)]).tokens_ND, theirs([features(grids)]).tokens_ND)
    assert all(ours.token_grid(grid) == theirs.token_grid(grid) for grid in GRIDS)
