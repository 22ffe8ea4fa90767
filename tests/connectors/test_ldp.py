"""LDP against torchvision's blocks, LDPv2 against sums by hand."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from vlmkit_connectors import LDPConnector, VisionFeatures

# Our names to torchvision's: layers of a block, then what they hold.
RENAMED = {
    "spatial": "block.0", "weigh": "block.1", "leave": "block.2", "conv": "0", "norm": "1",
    "squeeze": "fc1", "excite": "fc2",
}  # fmt: skip


@pytest.fixture
def torchvisions(timm):
    """A function: our two blocks to torchvision's as MobileVLM sets them up, with our weights."""
    from timm.layers import LayerNormAct2d
    from torchvision.models.mobilenetv3 import InvertedResidual, InvertedResidualConfig

    def make(ours, width):
        norm = partial(LayerNormAct2d, act_layer=None)
        sizes = [
            InvertedResidualConfig(width, 3, width, width, True, "HS", stride, 1, 1) for stride in (1, 2)
        ]
        theirs = nn.Sequential(*(InvertedResidual(size, norm) for size in sizes))
        state = ours.state_dict()
        theirs.load_state_dict(
            {".".join(RENAMED.get(part, part) for part in name.split(".")): state[name] for name in state}
        )
        return theirs.eval()

    return make


def picture(grid, width, scale=1.0):
    return scale * torch.randn(2, width, *grid, generator=torch.Generator().manual_seed(3))


# Squeezed to 8 (the least; a quarter is 4), 16 (of 12) and 24.
@pytest.mark.parametrize("width", [16, 48, 96])
@pytest.mark.parametrize("grid", [(6, 6), (5, 3), (1, 4), (1, 1)])
def test_v1s_blocks_equal_torchvisions(torchvisions, roughen, grid, width):
    ours = roughen(LDPConnector([6], width, variant="v1")).down
    theirs = torchvisions(ours, width)
    for scale in (1.0, 1e-2):
        # The original adds in place.
        x = picture(grid, width, scale)
        assert (ours(x) - theirs(x.clone())).abs().max() <= 1e-5
        assert ours(x).shape[2:] == tuple(math.ceil(n / 2) for n in grid)


def test_v1_squeezes_as_torchvision(timm):
    from torchvision.models._utils import _make_divisible

    for width in [*range(8, 200), 896, 1536, 2048, 2560, 3584]:
        with torch.device("meta"):
            squeeze = LDPConnector([6], width, variant="v1").down[0].weigh.squeeze
        assert squeeze.out_channels == _make_divisible(width // 4, 8)


MISTAKES = {
    "activation": lambda block: setattr(block.spatial, "act", nn.SiLU()),
    "no weighing of channels": lambda block: setattr(block, "weigh", nn.Identity()),
    "its activation": lambda block: setattr(block.weigh, "act", nn.Hardswish()),
    "its gate": lambda block: setattr(block.weigh, "gate", nn.Sigmoid()),
    "no residual": lambda block: setattr(block, "residual", False),
    "epsilon": lambda block: setattr(block.leave.norm, "eps", 1e-3),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_v1s_blocks_is_seen(torchvisions, roughen, mistake):
    ours = roughen(LDPConnector([6], 16, variant="v1")).down
    theirs = torchvisions(ours, 16)
    MISTAKES[mistake](ours[0])
    x = picture((5, 4), 16)
    assert (ours(x) - theirs(x.clone())).abs().max() > 1e-4


def mlp(connector, patches):
    first, _, second = connector.mlp
    hidden = patches @ first.weight.T + first.bias
    return (0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))) @ second.weight.T + second.bias


def test_v1_is_the_mlp_and_then_the_blocks(torchvisions, roughen, features):
    connector = roughen(LDPConnector([6], 16, variant="v1"))
    seen = features([(5, 3)] * 2)
    image = mlp(connector, seen.patches_TV).view(2, 5, 3, 16).permute(0, 3, 1, 2)
    theirs = torchvisions(connector.down, 16)(image).flatten(2).mT.flatten(0, 1)
    assert (connector([seen]).tokens_ND - theirs).abs().max() <= 1e-5


def positional(image_RCD, conv):
    """PEG by its sum: nine shifted copies, each weighed channel by channel, on zeros."""
    rows, cols, width = image_RCD.shape
    padded = torch.zeros(rows + 2, cols + 2, width)
    padded[1:-1, 1:-1] = image_RCD
    total = image_RCD + conv.bias
    for r in range(3):
        for c in range(3):
            total = total + padded[r : r + rows, c : c + cols] * conv.weight[:, 0, r, c]
    return total


def test_v2_equals_mobilevlms(roughen, features):
    """24 x 24 patches to 12 x 12, pooled as there."""
    connector = roughen(LDPConnector([6], 10))
    seen = features([(24, 24)])
    image = mlp(connector, seen.patches_TV).T.view(10, 24, 24)
    pooled = nn.AdaptiveAvgPool2d((12, 12))(image).permute(1, 2, 0)
    theirs = positional(pooled, connector.down[1].conv).flatten(0, 1)
    assert connector.num_tokens((24, 24)) == 144
    assert (connector([seen]).tokens_ND - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize("grid", [(3, 5), (4, 7), (1, 5), (2, 1), (1, 1)])
def test_v2_of_odd_grids(roughen, features, grid):
    """At the edge the average is over the patches that are there."""
    connector = roughen(LDPConnector([6], 10))
    seen = features([grid])
    image = mlp(connector, seen.patches_TV).view(*grid, 10)
    starts = [range(0, n, 2) for n in grid]
    rows = [[image[r : r + 2, c : c + 2].mean((0, 1)) for c in starts[1]] for r in starts[0]]
    pooled = torch.stack([torch.stack(row) for row in rows])
    theirs = positional(pooled, connector.down[1].conv).flatten(0, 1)
    assert (connector([seen]).tokens_ND - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize("mistake", ["activation", "pool", "no residual", "turned"])
def test_a_mistake_in_v2_is_seen(roughen, features, mistake):
    connector = roughen(LDPConnector([6], 10))
    seen = features([(3, 5)])
    right = connector([seen]).tokens_ND
    peg = connector.down[1]
    if mistake == "activation":
        connector.mlp[1] = nn.GELU("tanh")
    elif mistake == "pool":
        connector.down[0] = nn.AdaptiveAvgPool2d((2, 3))
    elif mistake == "no residual":
        connector.down[1] = peg.conv
    else:
        peg.conv.weight.data = peg.conv.weight.data.mT.clone()
    assert (connector([seen]).tokens_ND - right).abs().max() > 1e-4


def test_v2_by_numbers():
    """One channel, an MLP that doubles, a grid of ones: the place shows in how many neighbours there are."""
    connector = LDPConnector([1], 1)
    with torch.no_grad():
        for layer, weight, bias in [(connector.mlp[0], 1.0, 99.0), (connector.mlp[2], 2.0, -198.0)]:
            layer.weight.fill_(weight)
            layer.bias.fill_(bias)
        connector.down[1].conv.weight.fill_(1.0)
        connector.down[1].conv.bias.fill_(0.5)
    ones = VisionFeatures(torch.ones(36, 1), torch.tensor([[6, 6]]), torch.tensor([0]))
    # At 99 and more GELU changes nothing. 2 of its own, 2 for each place around that is on the grid and for
    # its own, 0.5 of the bias.
    expected = [10.5, 14.5, 10.5, 14.5, 20.5, 14.5, 10.5, 14.5, 10.5]
    assert connector([ones]).tokens_ND.flatten().tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("variant", ["v1", "v2"])
def test_a_quarter_of_the_tokens_rounded_up(variant):
    connector = LDPConnector([6], 8, variant=variant)
    grids = {(24, 24): (12, 12), (5, 4): (3, 2), (1, 7): (1, 4), (1, 1): (1, 1)}
    assert {grid: connector.token_grid(grid) for grid in grids} == grids
