"""What the connectors without attention have in common: views on their own, counts, loading, gradients."""

import pytest
import torch

from vlmkit_connectors import CONNECTORS, VisionFeatures

MIXED = [(4, 4), (3, 5), (1, 7), (4, 4), (5, 1), (2, 2), (1, 1)]
CASES = [
    ("linear", {}), ("linear", {"bias": False}),
    ("pixel_shuffle", {}), ("pixel_shuffle", {"factor": 3}), ("pixel_shuffle", {"projector": "idefics3"}),
    ("pool", {}), ("pool", {"tokens": 5}), ("pool", {"factor": 2, "depth": 1}),
    ("token_merge", {}), ("token_merge", {"tokens": 3, "depth": 3}), ("token_merge", {"keep": 0.7}),
]  # fmt: skip


@pytest.fixture(params=CASES, ids=str)
def connector(request):
    name, options = request.param
    torch.manual_seed(0)
    return CONNECTORS[name](vision_widths=[6], text_width=8, **options)


def by_view(connector, features):
    given = connector([features])
    return given.tokens_ND.split(given.counts)


def test_counts_are_stated_beforehand(connector, features):
    given = connector([features(MIXED)])
    assert given.counts == tuple(map(connector.num_tokens, MIXED))
    assert given.tokens_ND.shape == (sum(given.counts), 8)
    for grid in MIXED:
        tokens = connector.token_grid(grid)
        assert tokens is None or tokens[0] * tokens[1] == connector.num_tokens(grid)


def test_a_view_is_the_same_alone_and_in_another_order(connector, features):
    seen = features(MIXED)
    together, order = by_view(connector, seen), [6, 3, 0, 5, 1, 4, 2]
    views = seen.views()
    turned = VisionFeatures(
        torch.cat([views[i] for i in order]), seen.grids_I2[order], torch.arange(len(order))
    )
    for i, tokens in zip(order, by_view(connector, turned)):
        assert (tokens - together[i]).abs().max() < 1e-6
    for i, grid in enumerate(MIXED):
        alone = VisionFeatures(views[i], torch.tensor([grid]), torch.tensor([0]))
        assert (connector([alone]).tokens_ND - together[i]).abs().max() < 1e-6


def test_padding_is_not_seen(connector, features):
    """Views padded to one length with huge values, at other places in each view."""
    seen = features(MIXED)
    padded, mask = torch.full((len(MIXED), 20, 6), 1e9), torch.zeros(len(MIXED), 20)
    for i, view in enumerate(seen.views()):
        padded[i, i % 4 : i % 4 + len(view)] = view
        mask[i, i % 4 : i % 4 + len(view)] = 1
    given = connector([VisionFeatures.from_padded(padded, mask, seen.grids_I2, seen.image_of_view_I)])
    assert torch.equal(given.tokens_ND, connector([seen]).tokens_ND)


def test_gradients_reach_all_parameters_and_all_patches(connector, features):
    seen = features(MIXED)
    seen.patches_TV.requires_grad_()
    connector([seen]).tokens_ND.square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in connector.parameters())
    assert (seen.patches_TV.grad.abs().amax(1) > 0).all()


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_built_on_meta_and_loaded_it_is_the_same(name, options, features):
    built = CONNECTORS[name](vision_widths=[6], text_width=8, **options)
    with torch.device("meta"):
        loaded = CONNECTORS[name](vision_widths=[6], text_width=8, **options)
    assert list(map(loaded.num_tokens, MIXED)) == list(map(built.num_tokens, MIXED))
    loaded = loaded.to_empty(device="cpu")
    for parameter in loaded.parameters():
        parameter.data.fill_(float("nan"))
    loaded.load_state_dict(built.state_dict())
    assert torch.equal(loaded([features(MIXED)]).tokens_ND, built([features(MIXED)]).tokens_ND)


def test_several_encoders_on_the_first_one_s_grid(features):
    for name in ("linear", "pixel_shuffle", "pool", "token_merge"):
        connector = CONNECTORS[name](vision_widths=[6, 4], text_width=8)
        given = connector([features([(4, 4), (3, 5)]), features([(4, 4), (6, 9)], 4, seed=1)])
        assert given.counts == (connector.num_tokens((4, 4)), connector.num_tokens((3, 5)))


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("pixel_shuffle", {"factor": 0}, "found factor=0; give 1 or more"),
        ("pixel_shuffle", {"projector": "mlp"}, "found projector='mlp'; give internvl or idefics3"),
        ("pool", {"tokens": 9, "factor": 2}, "found tokens=9, factor=2, depth=2; give tokens or factor"),
        ("pool", {"tokens": 0}, "found tokens=0, .* must be 1 or more"),
        ("pool", {"factor": 0}, "factor=0, .* must be 1 or more"),
        ("pool", {"depth": 0}, "depth=0; each must be 1 or more"),
        ("token_merge", {"keep": 0.5, "tokens": 4}, "found keep=0.5, tokens=4, .* give keep or tokens"),
        ("token_merge", {"keep": 0.0}, "found keep=0.0, .* above 0 and at most 1"),
        ("token_merge", {"keep": 1.5}, "found keep=1.5, .* above 0 and at most 1"),
        ("token_merge", {"tokens": 0}, "tokens=0, .* must be 1 or more"),
        ("token_merge", {"depth": 0}, "depth=0; .* must be 1 or more"),
    ],
)
def test_wrong_options_are_refused(name, wrong, message):
    with pytest.raises(ValueError, match=f"{name} connector: .*{message}"):
        CONNECTORS[name](vision_widths=[6], text_width=8, **wrong)
