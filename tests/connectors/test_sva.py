"""The Spatial Vision Aggregator against loops over places, heads and encoders, and with numbers."""

import math

import pytest
import torch

from vlmkit_connectors import SVAConnector, VisionFeatures
from vlmkit_connectors.sva_group import attend_own, cut_windows

WIDTHS = [6, 10, 8]
# Per encoder, three views: finer and coarser than the tokens, not divisible, upright; the first encoder's
# second and third grids are equal, the others' are not.
FIRST, FINE, COARSE = [(4, 4), (3, 5), (3, 5)], [(8, 8), (6, 10), (7, 4)], [(2, 2), (1, 1), (3, 2)]


def normed(linear, patch):
    """LayerNorm and a linear layer, written out."""
    norm, project = linear
    spread = ((patch - patch.mean()) ** 2).mean()
    return project.weight @ ((patch - patch.mean()) / (spread + 1e-5).sqrt() * norm.weight + norm.bias)


def shares(size, wanted):
    """(wanted, size): what each old place gives to a new one, a tent as wide as the larger of their steps."""
    step = size / wanted
    tents = [
        [max(0, 1 - abs(old + 0.5 - (new + 0.5) * step) / max(1, step)) for old in range(size)]
        for new in range(wanted)
    ]
    return torch.tensor([[share / sum(tent) for share in tent] for tent in tents])


def shown(picture_RCV, rows, cols):
    tall, wide, _ = picture_RCV.shape
    return torch.einsum("Rr,Cc,rcv->RCv", shares(tall, rows), shares(wide, cols), picture_RCV)


def look(layer, token, context, windows):
    """One layer for one token; `windows` are (h, w, W), one an encoder."""
    asking = layer.enter.weight @ torch.cat([token, layer.context.weight @ context])
    keys, values = [], []
    for i, window in enumerate(windows):
        table = shown(layer.positions_SSW[i], *window.shape[:2])
        for row, marks in zip(window, table):
            for patch, mark in zip(row, marks):
                seen = patch if window.shape[:2] == (1, 1) else patch + mark
                keys.append(normed(layer.keys[i], seen))
                values.append(normed(layer.values[i], seen))
    found = []
    heads = [torch.stack(t).chunk(layer.heads, dim=1) for t in (keys, values)]
    for query, key, value in zip(normed(layer.query, asking).chunk(layer.heads), *heads):
        weights = torch.exp(key @ query / math.sqrt(len(query)))
        found.append(weights / weights.sum() @ value)
    return token + layer.leave(layer.norm(asking + layer.attended.weight @ torch.cat(found)))


def by_hand(connector, features):
    """Tokens of all views, place by place; of the connector only its token grids and weights are taken."""
    tokens = []
    for views, grids in zip(zip(*[f.views() for f in features]), zip(*[f.grids for f in features])):
        rows, cols = connector.token_grid(grids[0])
        pictures = []
        for project, view, (r, c) in zip(connector.projections, views, grids):
            h, w = max(1, math.floor(r / rows + 0.5)), max(1, math.floor(c / cols + 0.5))
            pictures.append(project(shown(view.view(r, c, -1), rows * h, cols * w)))
        context = pictures[0].mean(dim=(0, 1))
        for r in range(rows):
            for c in range(cols):
                windows = [p.chunk(rows)[r].chunk(cols, dim=1)[c] for p in pictures]
                groups = []
                for group in connector.groups:
                    token = group.query_W
                    for layer in group.layers:
                        token = look(layer, token, context, windows)
                    groups.append(token)
                tokens.append(connector.output(torch.cat(groups)))
    return torch.stack(tokens)


def far(found, expected):
    """The largest difference as a part of the largest value: rough weights make tokens of about 30."""
    return (found - expected).abs().max() / expected.abs().max()


@pytest.fixture
def build(roughen):
    def make(widths=WIDTHS, tokens=16, **options):
        return roughen(SVAConnector(widths, 12, tokens=tokens, width=8, heads=2, window=3, **options))

    return make


@pytest.fixture
def seen(features):
    """Features of three encoders on the same three views."""
    return [features(g, w, seed=i) for i, (g, w) in enumerate(zip([FIRST, FINE, COARSE], WIDTHS))]


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"tokens": 4, "groups": 2, "depth": 2}, {"tokens": 1, "depth": 1}])
def test_it_equals_loops_over_places(build, seen, options):
    connector = build(**options)
    found = connector(seen)
    assert far(found.tokens_ND, by_hand(connector, seen)) < 1e-6
    assert found.counts == tuple(map(connector.num_tokens, FIRST))


@torch.no_grad()
def test_one_encoder_is_enough(build, features):
    connector, alone = build([6], tokens=4), [features([(4, 6), (5, 3), (1, 7)])]
    assert far(connector(alone).tokens_ND, by_hand(connector, alone)) < 1e-6


def flip_positions(layer):
    layer.positions_SSW[1].copy_(layer.positions_SSW[1].transpose(0, 1).clone())


def swap_encoders(layer):
    layer.keys[0], layer.keys[1] = layer.keys[1], layer.keys[0]


def forget_context(layer):
    layer.context.weight.zero_()


def one_head(layer):
    layer.heads = 1


@torch.no_grad()
@pytest.mark.parametrize("mistake", [flip_positions, swap_encoders, forget_context, one_head])
def test_a_mistake_in_one_layer_is_seen(build, seen, mistake):
    connector = build()
    expected = by_hand(connector, seen)
    mistake(connector.groups[0].layers[1])
    assert far(connector(seen).tokens_ND, expected) > 1e-3


def test_windows_with_numbers():
    """0..15 in four squares; a row of three shared by six places; shrinking to the nearest multiple."""
    square = torch.arange(16.0).view(1, 4, 4, 1)
    assert cut_windows(square, (2, 2)).flatten(2).tolist() == [
        [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    ]
    assert cut_windows(square, (4, 2)).flatten(2)[0, :3].tolist() == [[0, 1], [2, 3], [4, 5]]
    row = torch.tensor([5.0, 6.0, 7.0]).view(1, 1, 3, 1)
    assert cut_windows(row, (2, 3)).flatten().tolist() == [5, 6, 7, 5, 6, 7]
    sides = {size: cut_windows(torch.zeros(1, size, 1, 1), (24, 1)).shape[2] for size in (12, 27, 35, 36, 64)}
    assert sides == {12: 1, 27: 1, 35: 1, 36: 2, 64: 3}


def test_attention_with_numbers():
    """Keys 0 and 1 for a query of ln 3: weights of 1/4 and 3/4; the other token looks elsewhere."""
    query = torch.tensor([math.log(3), 0.0]).view(1, 2, 1)
    keys, values = torch.tensor([0.0, 1, 5, 9]), torch.tensor([0.0, 4, 1, 3])
    found = attend_own(query, keys.view(1, 2, 2, 1), values.view(1, 2, 2, 1), heads=1)
    assert found.flatten().tolist() == pytest.approx([3.0, 2.0])


def changed_tokens(connector, features, encoder, patch):
    """Numbers of the tokens that change with one patch of one encoder."""
    before = connector(features).tokens_ND
    patches_TV = features[encoder].patches_TV.clone()
    patches_TV[patch] += torch.randn(patches_TV.shape[1], generator=torch.Generator().manual_seed(5))
    other = list(features)
    other[encoder] = VisionFeatures(patches_TV, *[getattr(features[encoder], n) for n in OWN])
    moved = (connector(other).tokens_ND - before).abs().amax(dim=1)
    return [i for i, amount in enumerate(moved.tolist()) if amount > 1e-4], moved


OWN = ("grids_I2", "image_of_view_I")


@torch.no_grad()
@pytest.mark.parametrize(("encoder", "side"), [(0, 8), (1, 12), (2, 4)])
def test_a_token_sees_its_windows_only(build, features, encoder, side):
    """Four by four tokens over windows of 2, 3 and 1 patches; the context is the one way around them."""
    connector = build()
    grids = [[(n, n)] for n in (8, 12, 4)]
    given = [features(g, w, seed=i) for i, (g, w) in enumerate(zip(grids, WIDTHS))]
    row, col = side // 2, side - 1
    place = [2 * 4 + 3]
    reached, _ = changed_tokens(connector, given, encoder, row * side + col)
    assert reached == (list(range(16)) if encoder == 0 else place)
    for layer in connector.groups[0].layers:
        forget_context(layer)
    reached, moved = changed_tokens(connector, given, encoder, row * side + col)
    assert reached == place and moved.count_nonzero() == 1


def test_tokens_stand_in_a_grid_whatever_the_groups(build):
    connector = build(tokens=16, groups=3)
    grids = {(24, 24): (4, 4), (4, 16): (2, 8), (13, 3): (8, 1), (1, 30): (1, 16), (1, 1): (1, 1)}
    assert {grid: connector.token_grid(grid) for grid in grids} == grids
    assert [connector.num_tokens(grid) for grid in grids] == [16, 16, 8, 16, 1]
    assert SVAConnector([8], 8).num_tokens((27, 27)) == 576


def test_encoders_have_to_see_the_same_views(build, features):
    connector = build([6, 8])
    with pytest.raises(ValueError, match=r"need the same views, found 2 views .* and 1 views .*groups"):
        connector([features([(2, 2), (3, 3)], 6), features([(2, 2)], 8)])
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        connector([features([(2, 2)], 6)])


def test_the_published_shape():
    """Cambrian-1 8B's connector before the language model: four encoders, 576 queries, three layers."""
    with torch.device("meta"):
        connector = SVAConnector([1152, 1024, 1536, 3072], 4096, heads=16, width=1024)
    layer = connector.groups[0].layers[0]
    assert len(connector.groups) == 1 and len(connector.groups[0].layers) == 3
    assert [tuple(p.shape) for p in layer.positions_SSW] == [(4, 4, 1024)] * 4
    assert connector.num_tokens((27, 27)) == 576 and layer.heads == 16
