"""Merged tokens: a slow reference in loops, cases by hand, nothing lost."""

import pytest
import torch

from vlmkit_connectors import TokenMergeConnector, token_merge
from vlmkit_connectors.token_merge import match, merge_tokens


def noise(views, patches, width=5, seed=0):
    return torch.randn(views, patches, width, generator=torch.Generator().manual_seed(seed))


def cosine(one, other):
    return round(float(one @ other / (one.norm() * other.norm())), 9)


def slow_merge(view_PV, number):
    """The same by lists: a token is the list of its patches; a round's pairs come from the round's start."""
    view = view_PV.double()
    groups = [[i] for i in range(len(view))]
    while len(groups) > number:
        means = [view[group].mean(0) for group in groups]
        edges = []
        for a in range(0, len(groups), 2):
            others = range(1, len(groups), 2)
            b = min(others, key=lambda other: (-cosine(means[a], means[other]), other))
            edges.append((-cosine(means[a], means[b]), a, b))
        for _, a, b in sorted(edges)[: min(len(groups) // 2, len(groups) - number)]:
            groups[b] = groups[b] + groups[a]
            groups[a] = []
        groups = sorted((group for group in groups if group), key=min)
    return torch.stack([view[group].mean(0) for group in groups]).float(), [len(group) for group in groups]


@pytest.mark.parametrize("number", [1, 2, 3, 6, 7, 12, 13, 20, 24, 25])
def test_it_equals_the_slow_reference(number):
    patches = noise(3, 25)
    patches[1, 7:19] = patches[1, 3]
    patches[2] = patches[2].round()
    tokens, sizes = merge_tokens(patches, number)
    for view, ours, held in zip(patches, tokens, sizes):
        theirs, expected = slow_merge(view, number)
        assert held.tolist() == expected
        assert (ours - theirs).abs().max() < 1e-6


@pytest.mark.parametrize("number", [1, 5, 16, 30])
def test_nothing_is_lost(number):
    patches = noise(4, 30)
    tokens, sizes = merge_tokens(patches, number)
    assert sizes.sum(1).tolist() == [30] * 4 and sizes.min() >= 1
    assert ((sizes.unsqueeze(2) * tokens).sum(1) - patches.sum(1)).abs().max() < 1e-4


def test_equal_patches_merge_first():
    """Four directions, each twice: four tokens without a difference, in the order of their first patch."""
    north, east, south, west = ([1.0, 0], [0, 1.0], [-1.0, 0], [0, -1.0])
    patches = torch.tensor([[south, south, west, north, east, west, north, east]])
    tokens, sizes = merge_tokens(patches, 4)
    assert tokens[0].tolist() == [south, west, north, east] and sizes[0].tolist() == [2] * 4


def test_lengths_do_not_count_for_alikeness_but_for_the_average():
    patches = torch.tensor([[[1.0, 0], [0, 1.0], [0, 5.0], [-1.0, 0]]])
    tokens, sizes = merge_tokens(patches, 3)
    assert tokens[0].tolist() == [[1, 0], [0, 3], [-1, 0]] and sizes[0].tolist() == [1, 2, 1]


def test_ties_go_to_the_first():
    """All alike: in each round every even token has the first odd one as partner, the first ones go."""
    numbers = torch.arange(1.0, 7).view(1, 6, 1)
    tokens, sizes = merge_tokens(numbers, 5)
    assert tokens.flatten().tolist() == [1.5, 3, 4, 5, 6] and sizes.tolist() == [[2, 1, 1, 1, 1]]
    tokens, sizes = merge_tokens(numbers, 3)
    assert tokens.flatten().tolist() == [(1 + 2 + 3 + 5) / 4, 4, 6] and sizes.tolist() == [[4, 1, 1]]


def test_ties_are_ties_in_spite_of_rounding():
    """200 patches of one direction in seven channels: the first 50 even ones join the first odd one."""
    lengths = torch.arange(1.0, 201)
    patches = lengths.view(1, 200, 1) * noise(1, 1, 7)
    tokens, sizes = merge_tokens(patches, 150)
    assert sizes[0].tolist() == [51] + [1] * 149
    group = torch.cat([lengths[0:100:2], lengths[1:2]])
    expected = torch.cat([group.mean().view(1), lengths[3:100:2], lengths[100:]])
    assert (tokens[0] / noise(1, 1, 7)[0] - expected.unsqueeze(1)).abs().max() < 1e-4


def test_long_sums_are_not_rounded_to_the_features_type():
    """Counting in bfloat16 stops at 256."""
    tokens, sizes = merge_tokens(torch.full((1, 1000, 3), 1.25, dtype=torch.bfloat16), 1)
    assert tokens.tolist() == [[[1.25] * 3]] and tokens.dtype == torch.bfloat16 and sizes.item() == 1000


def test_averages_weigh_by_size():
    """Seven alike patches to one: their mean, whatever the rounds were; not the mean of means."""
    numbers = torch.tensor([1.0, 1, 1, 1, 1, 1, 64]).view(1, 7, 1)
    assert merge_tokens(numbers, 1)[0].item() == 10.0


@pytest.mark.parametrize(
    ("keep", "expected"), [(0.25, 6), (0.01, 1), (1.0, 25), (0.5, 12), (0.3, 8), (0.29, 7)]
)
def test_a_share_of_the_grid(keep, expected):
    connector = TokenMergeConnector([6], 8, keep=keep)
    assert connector.num_tokens((5, 5)) == expected and connector.token_grid((5, 5)) is None


def test_a_number_of_tokens_or_all_patches(features):
    connector = TokenMergeConnector([6], 8, tokens=10)
    assert connector.num_tokens((5, 5)) == 10
    seen = features([(3, 3)])
    assert torch.equal(connector([seen]).tokens_ND, connector.layers(seen.patches_TV))


def test_the_reduction_has_no_parameters():
    connector = TokenMergeConnector([6], 8)
    assert [name.split(".")[0] for name, _ in connector.named_parameters()] == ["layers"] * 4


def test_neither_autocast_nor_the_batch_changes_the_matching():
    patches = noise(8, 64).to(torch.bfloat16)
    patches[:, 10:50] = patches[:, 9:10]
    with torch.autocast("cpu", torch.bfloat16):
        together, sizes = merge_tokens(patches, 20)
    assert together.dtype == torch.bfloat16
    for i in range(8):
        alone, held = merge_tokens(patches[i : i + 1], 20)
        assert torch.equal(alone[0], together[i]) and torch.equal(held[0], sizes[i])


def test_views_go_a_few_at_a_time(monkeypatch):
    """In order, and as all together; a view that is too large goes alone."""
    patches = noise(7, 30)
    together = merge_tokens(patches, 8)
    few, plain = [], token_merge._assign

    def watched(own_IPV, number):
        few.append(len(own_IPV))
        return plain(own_IPV, number)

    monkeypatch.setattr(token_merge, "_assign", watched)
    for numbers, expected in ((2 * 30 * 5, [2, 2, 2, 1]), (1, [1] * 7)):
        monkeypatch.setattr(token_merge, "MOST_NUMBERS", numbers)
        few.clear()
        for found, whole in zip(merge_tokens(patches, 8), together):
            assert torch.equal(found, whole)
        assert few == expected


@pytest.mark.parametrize("merges", [5, 20, 30])
def test_in_float32_ties_are_ties_too(merges):
    """As on Apple's GPUs. Each view is of one direction in 64 channels and of 60 lengths: all are equal."""
    patches = torch.arange(1.0, 61).view(1, 60, 1) * noise(8, 1, 64)
    found = match(patches, merges)
    assert torch.equal(found, match(patches.double(), merges))
    assert all(torch.equal(match(view[None], merges)[0], own) for view, own in zip(patches, found))
    mixed = torch.cat([patches[:, :30], noise(8, 30, 64, seed=1)], dim=1)
    together = match(mixed, merges)
    assert all(torch.equal(match(view[None], merges)[0], own) for view, own in zip(mixed, together))


def test_matching_has_no_gradient_but_averages_have():
    patches = noise(1, 9).requires_grad_()
    tokens, sizes = merge_tokens(patches, 4)
    tokens.sum().backward()
    assert sorted(patches.grad[0, :, 0].tolist()) == pytest.approx(
        sorted(1 / size for size in sizes[0].tolist() for _ in range(int(size)))
    )
