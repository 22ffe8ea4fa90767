"""The C-Abstractor against timm's RegStage, put together as Honeybee does."""

import pytest
import torch
from torch import nn

from vlmkit_connectors import CAbstractorConnector, VisionFeatures

# Our names to timm's, in a block and in its layers.
RENAMED = {
    "enter": "conv1", "spatial": "conv2", "weigh": "se", "leave": "conv3", "shortcut": "downsample",
    "norm": "bn", "squeeze": "fc1", "excite": "fc2",
}  # fmt: skip


def timms_names(state):
    """The state of a stage as timm's RegStage names it; its blocks count from 1."""
    renamed = {}
    for name, tensor in state.items():
        number, *parts = name.split(".")
        renamed[".".join([f"b{int(number) + 1}", *(RENAMED.get(part, part) for part in parts)])] = tensor
    return renamed


@pytest.fixture
def reg_stage(timm):
    """A function: one of our stages to timm's with Honeybee's arguments and our weights."""
    from timm.layers import LayerNorm2d
    from timm.models.regnet import RegStage

    def make(ours, seen, width):
        options = {"stride": 1, "dilation": 1, "act_layer": nn.SiLU, "norm_layer": LayerNorm2d}
        stage = RegStage(len(ours), seen, width, **options)
        stage.load_state_dict(timms_names(ours.state_dict()))
        return stage.eval()

    return make


def picture(grid, width=6, scale=1.0):
    return scale * torch.randn(2, width, *grid, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(("seen", "width"), [(6, 10), (10, 10), (13, 16)])
@pytest.mark.parametrize("grid", [(5, 5), (3, 7), (1, 4), (1, 1)])
def test_a_stage_equals_timms(reg_stage, roughen, grid, seen, width):
    """Also of faint features, where the norm's epsilon matters."""
    ours = roughen(CAbstractorConnector([seen], 8, width=width)).before
    theirs = reg_stage(ours, seen, width)
    assert len(ours) == 3
    for scale in (1.0, 1e-2):
        x = picture(grid, seen, scale)
        assert (ours(x) - theirs(x)).abs().max() <= 1e-5


def turn(kernel):
    kernel.data = kernel.data.mT.clone()


MISTAKES = {
    "an activation": lambda block: setattr(block.enter, "act", nn.GELU()),
    "another activation": lambda block: setattr(block.spatial, "act", nn.ReLU()),
    "no weighing of channels": lambda block: setattr(block, "weigh", nn.Identity()),
    "its activation": lambda block: setattr(block.weigh, "act", nn.ReLU()),
    "its gate": lambda block: setattr(block.weigh, "gate", nn.Hardsigmoid()),
    "no shortcut's norm": lambda block: setattr(block.shortcut, "norm", nn.Identity()),
    "epsilon": lambda block: setattr(block.leave.norm, "eps", 1e-3),
    "a turned kernel": lambda block: turn(block.spatial.conv.weight),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_block_is_seen(reg_stage, roughen, mistake):
    ours = roughen(CAbstractorConnector([6], 8, width=10)).before
    theirs = reg_stage(ours, 6, 10)
    MISTAKES[mistake](ours[0])
    x = picture((5, 4))
    assert (ours(x) - theirs(x)).abs().max() > 1e-4


def honeybee(connector, reg_stage, patches_INV, side, tokens_side):
    """Its forward pass of square grids, the stages by timm."""
    seen, width = patches_INV.shape[-1], connector.readout[0].in_features
    x = patches_INV + connector.positions_SSV.flatten(0, 1)
    x = x.transpose(1, 2).reshape(len(x), seen, side, side)
    x = reg_stage(connector.before, seen, width)(x)
    x = nn.AdaptiveAvgPool2d((tokens_side, tokens_side))(x)
    x = reg_stage(connector.after, width, width)(x).reshape(len(x), width, -1).mT
    first, _, second = connector.readout
    x = nn.functional.linear(x, first.weight, first.bias)
    x = x * torch.sigmoid(x)
    return nn.functional.linear(x, second.weight, second.bias)


@pytest.mark.parametrize(("side", "tokens"), [(4, 9), (6, 9), (5, 16), (3, 9)])
def test_it_equals_honeybees(reg_stage, roughen, features, side, tokens):
    """Windows that overlap (4 to 3, 5 to 4), that do not (6 to 3), and none."""
    connector = roughen(CAbstractorConnector([6], 8, tokens=tokens, depth=2, width=10, positions=side))
    seen = features([(side, side)] * 2)
    output = connector([seen])
    theirs = honeybee(connector, reg_stage, seen.patches_TV.view(2, -1, 6), side, int(tokens**0.5))
    assert output.counts == (tokens, tokens)
    assert (output.tokens_ND - theirs.flatten(0, 1)).abs().max() <= 1e-5


@pytest.mark.parametrize("part", ["positions", "readout", "order"])
def test_a_mistake_around_the_stages_is_seen(reg_stage, roughen, features, part):
    connector = roughen(CAbstractorConnector([6], 8, tokens=9, depth=1, width=6, positions=4))
    seen = features([(4, 4)])
    theirs = honeybee(connector, reg_stage, seen.patches_TV.view(1, -1, 6), 4, 3)[0]
    if part == "positions":
        connector.positions_SSV.data = connector.positions_SSV.data.transpose(0, 1).clone()
    elif part == "readout":
        connector.readout[1] = nn.GELU()
    else:
        connector.before, connector.after = connector.after, connector.before
    assert (connector([seen]).tokens_ND - theirs).abs().max() > 1e-4


def test_grids_of_tokens():
    """Of the shape of the patches' grid, which stays as it is if it is small enough."""
    connector = CAbstractorConnector([6], 8)
    grids = {(16, 16): (12, 12), (24, 24): (12, 12), (4, 64): (3, 48), (40, 3): (40, 3), (1, 256): (1, 144)}
    assert {grid: connector.token_grid(grid) for grid in grids} == grids
    assert all(connector.num_tokens(grid) <= 144 for grid in grids)


def test_published_sizes():
    """CLIP ViT-L/14 and Vicuna 7B: counted layer by layer."""
    with torch.device("meta"):
        connector = CAbstractorConnector([1024], 4096)
    w = 1024
    block = 2 * w * w + 9 * w + 6 * w + 2 * w * (w // 4) + w + w // 4
    expected = {
        "positions_SSV": 256 * w,
        "before": 3 * block,
        "after": 3 * block,
        "readout": (w + 1) * 4096 + 4097 * 4096,
    }
    counted = dict.fromkeys(expected, 0)
    for name, parameter in connector.named_parameters():
        counted[name.partition(".")[0]] += parameter.numel()
    assert counted == expected


@pytest.mark.parametrize(
    ("grid", "rows"),
    [
        ((8, 2), [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]),
        ((8, 1), [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]),
        ((2, 1), [5 / 7, 16 / 7]),
        ((2, 3), [5 / 7, 16 / 7]),
    ],
)
def test_positions_are_resized_for_other_grids(roughen, features, grid, rows):
    """A slope stays one between the outermost centres, two places see tents; rows are not columns."""
    connector = roughen(CAbstractorConnector([6], 8, tokens=4, depth=1, positions=4))
    slope = torch.arange(4.0).view(4, 1, 1).expand(4, 4, 6)
    connector.positions_SSV.data.copy_(slope)
    seen = features([grid])
    moved = (seen.patches_TV.view(*grid, 6) + torch.tensor(rows)[:, None, None]).flatten(0, 1)
    without = CAbstractorConnector([6], 8, tokens=4, depth=1, positions=None)
    misfits = without.load_state_dict(connector.state_dict(), strict=False)
    assert misfits.unexpected_keys == ["positions_SSV"] and misfits.missing_keys == []
    by_hand = without([VisionFeatures(moved, seen.grids_I2, seen.image_of_view_I)]).tokens_ND
    assert torch.allclose(connector([seen]).tokens_ND, by_hand, atol=1e-5)
    assert (without([seen]).tokens_ND - by_hand).abs().max() > 1e-3


def test_positions_start_small_and_are_not_zero():
    torch.manual_seed(0)
    assert CAbstractorConnector([6], 8).positions_SSV.std().item() == pytest.approx(0.02, rel=0.1)
