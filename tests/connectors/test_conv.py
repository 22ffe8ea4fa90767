"""What holds for every convolutional connector: each view on its own, counts, edges, loading."""

import math

import pytest
import torch

from vlmkit_connectors import CAbstractorConnector, LDPConnector, VisionFeatures
from vlmkit_connectors.conv import LayerNorm2d
from vlmkit_connectors.fuse import resample

MIXED = [(4, 4), (3, 5), (1, 7), (5, 1), (4, 4), (1, 1), (2, 2)]
BUILDS = {
    "c_abstractor": lambda widths, text: CAbstractorConnector(
        widths, text, tokens=9, depth=2, width=10, positions=4
    ),
    "ldp v1": lambda widths, text: LDPConnector(widths, text, version="v1"),
    "ldp v2": lambda widths, text: LDPConnector(widths, text, version="v2"),
}


@pytest.fixture(params=BUILDS)
def build(request):
    return BUILDS[request.param]


@pytest.fixture
def connector(build, roughen):
    return roughen(build([6], 8))


def some(seen, chosen):
    """Only the chosen views, in that order."""
    views = seen.views()
    patches = torch.cat([views[i] for i in chosen])
    return VisionFeatures(patches, seen.grids_I2[list(chosen)], torch.arange(len(chosen)))


def tokens_of_views(connector, seen):
    output = connector([seen])
    return output.tokens_ND.split(output.counts)


def test_counts_are_stated(connector, features):
    output = connector([features(MIXED)])
    assert output.counts == tuple(map(connector.num_tokens, MIXED))
    assert output.counts == tuple(math.prod(connector.token_grid(grid)) for grid in MIXED)
    assert output.tokens_ND.shape == (sum(output.counts), 8)
    assert output.tokens_ND.isfinite().all()


def test_views_are_the_same_alone_and_in_another_order(connector, features):
    seen = features(MIXED)
    together = tokens_of_views(connector, seen)
    for i in range(len(MIXED)):
        alone = tokens_of_views(connector, some(seen, [i]))[0]
        assert torch.allclose(alone, together[i], atol=1e-5)
    order = [6, 0, 3, 4, 2, 5, 1]
    for i, moved in zip(order, tokens_of_views(connector, some(seen, order))):
        assert torch.allclose(moved, together[i], atol=1e-5)


def test_other_views_are_not_seen(connector, features):
    """Of the same grid, or of another: whatever they hold. Its own patches are."""
    seen = features(MIXED)
    other = VisionFeatures(seen.patches_TV.clone(), seen.grids_I2, seen.image_of_view_I)
    other.views()[4].mul_(100)
    pairs = zip(tokens_of_views(connector, seen), tokens_of_views(connector, other))
    changed = [not torch.equal(before, after) for before, after in pairs]
    assert changed == [i == 4 for i in range(len(MIXED))]


def test_padding_is_not_seen(connector, features):
    seen = features(MIXED)
    longest = max(r * c for r, c in MIXED)
    padded, mask = torch.full((len(MIXED), longest, 6), 50.0), torch.zeros(len(MIXED), longest)
    for i, view in enumerate(seen.views()):
        padded[i, : len(view)], mask[i, : len(view)] = view, 1
    unpadded = VisionFeatures.from_padded(padded, mask, seen.grids_I2, seen.image_of_view_I)
    assert torch.equal(connector([unpadded]).tokens_ND, connector([seen]).tokens_ND)


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


@pytest.mark.parametrize("grids", [MIXED, [(4, 4)]])
def test_gradients_reach_every_parameter_and_patch(connector, features, grids):
    seen = features(grids)
    seen.patches_TV.requires_grad_()
    output = connector([seen]).tokens_ND
    (output * torch.randn(output.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    flat = [n for n, p in connector.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert flat == []
    assert (seen.patches_TV.grad.abs().amax(1) > 0).all()


def test_it_builds_on_meta_and_loads(build, connector, features):
    with torch.device("meta"):
        empty = build([6], 8)
    assert {p.device.type for p in [*empty.parameters(), *empty.buffers()]} == {"meta"}
    loaded = empty.to_empty(device="cpu")
    loaded.load_state_dict(connector.state_dict())
    loaded.reset_buffers()
    seen = features(MIXED)
    assert torch.equal(loaded([seen]).tokens_ND, connector([seen]).tokens_ND)


def test_training_mode_changes_nothing(connector, features):
    """No batch norm: neither statistics nor buffers."""
    assert list(connector.buffers()) == []
    norms = [m for m in connector.modules() if "Norm" in type(m).__name__]
    assert all(type(m) is LayerNorm2d for m in norms)
    seen = features(MIXED)
    assert torch.equal(connector.train()([seen]).tokens_ND, connector.eval()([seen]).tokens_ND)


def test_several_encoders(build, roughen, features):
    one, other = features([(4, 4), (2, 3)]), features([(2, 2), (3, 2)], width=4, seed=1)
    connector = roughen(build([6, 4], 8))
    fused = torch.cat([one.patches_TV, resample(other, one).patches_TV], dim=1)
    together = VisionFeatures(fused, one.grids_I2, one.image_of_view_I)
    assert torch.equal(connector([one, other]).tokens_ND, connector([together]).tokens_ND)


def test_the_norm_is_over_channels(features):
    picture = features([(3, 5)]).patches_TV.view(1, 3, 5, 6).permute(0, 3, 1, 2)
    mean, variance = picture.mean(1, keepdim=True), picture.var(1, keepdim=True, correction=0)
    by_hand = (picture - mean) / (variance + 1e-5).sqrt()
    assert torch.allclose(LayerNorm2d(6)(picture), by_hand, atol=1e-6)
