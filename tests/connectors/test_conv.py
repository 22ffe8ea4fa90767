"""What holds for convolutional connectors alone: rows are not columns, and no batch is remembered."""

import pytest
import torch

from vlmkit_connectors import CAbstractorConnector, LDPConnector, VisionFeatures
from vlmkit_connectors.conv import LayerNorm2d

BUILDS = {
    "c_abstractor": lambda: CAbstractorConnector([6], 8, tokens=9, depth=2, width=10, positions=4),
    "ldp v1": lambda: LDPConnector([6], 8, variant="v1"),
    "ldp v2": lambda: LDPConnector([6], 8, variant="v2"),
}


@pytest.fixture(params=BUILDS)
def connector(request, roughen):
    return roughen(BUILDS[request.param]())


@pytest.mark.parametrize("grid", [(3, 5), (1, 7)])
def test_a_turned_view_is_another(connector, features, grid):
    """Rows are not columns, though a grid of one row has no other neighbours than one of one column."""
    seen = features([grid])
    turned = seen.patches_TV.view(*grid, 6).transpose(0, 1).reshape(-1, 6)
    other = VisionFeatures(turned, torch.tensor([grid[::-1]]), torch.tensor([0]))
    rows, cols = connector.token_grid(grid)
    assert connector.token_grid(grid[::-1]) == (cols, rows)
    back = connector([other]).tokens_ND.view(cols, rows, 8).transpose(0, 1).flatten(0, 1)
    assert (back - connector([seen]).tokens_ND).abs().max() > 0.01


def test_training_mode_changes_nothing(connector, features):
    """No batch norm: neither statistics nor buffers."""
    assert list(connector.buffers()) == []
    norms = [m for m in connector.modules() if "Norm" in type(m).__name__]
    assert all(type(m) is LayerNorm2d for m in norms)
    seen = features([(4, 4), (3, 5), (1, 7)])
    assert torch.equal(connector.train()([seen]).tokens_ND, connector.eval()([seen]).tokens_ND)


def test_the_norm_is_over_channels(features):
    picture = features([(3, 5)]).patches_TV.view(1, 3, 5, 6).permute(0, 3, 1, 2)
    mean, variance = picture.mean(1, keepdim=True), picture.var(1, keepdim=True, correction=0)
    by_hand = (picture - mean) / (variance + 1e-5).sqrt()
    assert torch.allclose(LayerNorm2d(6)(picture), by_hand, atol=1e-6)
