"""Layers are found, laid out in the right order, and rolled out as in the paper."""

import pytest
import torch
from torch import nn

from vlmkit.look.attention import _match, layer_maps, rollout, view_layers
from vlmkit.look.capture import Attended
from vlmkit.look.scene import NotPossible, observe

TOWERS = ("vit", "vit cls", "vit conv map", "clip", "siglip", "naflex", "dinov2")


def stochastic(seed, size=5):
    return torch.randn(size, size, generator=torch.Generator().manual_seed(seed)).softmax(-1)


def test_rollout_of_identity_is_identity():
    assert torch.equal(rollout([torch.eye(4)] * 3), torch.eye(4))


def test_rollout_by_hand():
    """The last layer stands on the left: it looks at what the earlier ones made."""
    first, last, eye = stochastic(0), stochastic(1), torch.eye(5)
    expected = (last @ first + last + first + eye) / 4
    assert torch.allclose(rollout([first, last]), expected, atol=1e-6)
    assert not torch.allclose(rollout([last, first]), expected, atol=1e-2)
    assert torch.allclose(rollout([stochastic(i) for i in range(9)]).sum(-1), torch.ones(5), atol=1e-5)


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("size", [(60, 40), (17, 90)])
def test_every_tower_has_its_layers(tower, gradient, name, size):
    scene = observe(tower(name), gradient(size))
    (layers,) = view_layers(scene)
    rows, cols = scene.grids[0]
    tokens = scene.encoder.spec.prefix_tokens + rows * cols
    assert len(layers) == 3
    assert all(own.shape == (tokens, tokens) for own in layer_maps(layers))
    one, other = (next(layer_maps(layers, head)) for head in (0, 3))
    assert (one - other).abs().max() > 0.01


class Shuffled(nn.Module):
    """A stem whose tokens come in another order."""

    def __init__(self, stem, order):
        super().__init__()
        self.stem, self.order = stem, order

    def forward(self, pixels):
        return self.stem(pixels)[:, self.order]


GRID = torch.arange(36).view(6, 6)
ORDERS = {
    "blocks of 2": GRID.view(3, 2, 3, 2).transpose(1, 2).flatten(),
    "windows of 3": GRID.view(2, 3, 2, 3).transpose(1, 2).flatten(),
    "columns first": GRID.T.flatten(),
    "shifted": GRID.flatten().roll(1),
    "from below": GRID.flip(0).flatten(),
}


@pytest.mark.parametrize("stem", ["patch", "conv"])
@pytest.mark.parametrize("order", ORDERS)
def test_tokens_in_another_order_are_refused(tower, gradient, order, stem):
    encoder = tower("vit", stem=stem)
    assert view_layers(observe(encoder, gradient((50, 40))))
    encoder.stem = Shuffled(encoder.stem, ORDERS[order])
    with pytest.raises(NotPossible, match="another order"):
        view_layers(observe(encoder, gradient((50, 40))))


def test_attention_of_another_kind_is_refused(tower, gradient):
    encoder = tower("clip")
    encoder.vision.config._attn_implementation = "eager"
    with pytest.raises(NotPossible, match=r"no attention over all 37 tokens.*'clip'"):
        view_layers(observe(encoder, gradient((50, 40))))


def call(views, queries, keys):
    q, k = (torch.zeros(views, 2, n, 4) for n in (queries, keys))
    return Attended(q, k, k, None, False, None, q)


def test_views_of_several_lengths_are_found_together_and_by_length():
    pool, window = call(3, 1, 6), call(9, 2, 2)
    together = [call(3, 6, 6) for _ in range(2)]
    found = _match([window, together[0], window, together[1], pool], [4, 6, 4])
    assert [[(c is together[i], row) for i, (c, row) in enumerate(own)] for own in found] == [
        [(True, view)] * 2 for view in range(3)
    ]
    fours, sixes = [call(2, 4, 4) for _ in range(2)], [call(1, 6, 6) for _ in range(2)]
    found = _match([fours[0], sixes[0], window, fours[1], sixes[1], pool], [4, 6, 4])
    assert [[row for _, row in own] for own in found] == [[0, 0], [0, 0], [1, 1]]
    assert [own[1][0] for own in found] == [fours[1], sixes[1], fours[1]]
    assert _match([fours[0], window, pool], [4, 6, 4]) == []
