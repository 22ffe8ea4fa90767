"""What holds for every connector of learned latents: perceivers and Q-Formers."""

import pytest
import torch

from vlmkit_connectors import PerceiverConnector, QFormerConnector, VisionFeatures
from vlmkit_connectors.views import map_padded

# Lengths 16 15 7 5 4 72 and 16 again: some go together, padded or not, others apart.
GRIDS = [(4, 4), (3, 5), (1, 7), (5, 1), (2, 2), (9, 8), (2, 8)]
D = 16
KINDS = {
    "flamingo": (PerceiverConnector, {"num_latents": 3, "depth": 2}),
    "idefics2": (PerceiverConnector, {"num_latents": 3, "depth": 2, "variant": "idefics2", "kv_heads": 1}),
    "qformer": (QFormerConnector, {"num_queries": 3, "depth": 3}),
    "question": (QFormerConnector, {"num_queries": 3, "depth": 3, "question": True}),
}


@pytest.fixture(params=KINDS)
def build(request, rough):
    """A function: vision widths to a connector with rough weights."""
    kind, options = KINDS[request.param]
    return lambda widths=(6,): rough(kind(list(widths), D, heads=2, **options))


def questions(count):
    return [torch.randn(1 + 3 * i % 5, D, generator=torch.Generator().manual_seed(i)) for i in range(count)]


def pick(seen, numbers):
    """Some views, as images of their own."""
    views = seen.views()
    patches = torch.cat([views[i] for i in numbers])
    return VisionFeatures(patches, seen.grids_I2[numbers], torch.arange(len(numbers)))


def test_counts_are_known_before(build, features):
    connector = build()
    assert connector([features(GRIDS)], questions(len(GRIDS))).counts == (3,) * len(GRIDS)
    assert {connector.num_tokens(grid) for grid in GRIDS} == {3}
    assert connector.token_grid((4, 4)) is None


@torch.no_grad()
@pytest.mark.parametrize(
    "numbers", [*([i] for i in range(7)), [6, 5, 4, 3, 2, 1, 0], [2, 5], [0, 6, 0]], ids=str
)
def test_views_do_not_depend_on_each_other(numbers, build, features):
    connector, seen, asked = build(), features(GRIDS), questions(len(GRIDS))
    together = connector([seen], asked).tokens_ND.view(len(GRIDS), 3, D)
    own = connector([pick(seen, numbers)], [asked[i] for i in numbers]).tokens_ND.view(-1, 3, D)
    assert (own - together[numbers]).abs().max() < 1e-6 * max(1, together.abs().max())
    assert (together[0] - together[6]).abs().max() > 1e-2


@torch.no_grad()
def test_padded_equals_packed(build, features):
    connector, seen = build(), features(GRIDS)
    views = seen.views()
    padded = torch.nn.utils.rnn.pad_sequence(views, batch_first=True, padding_value=7.0)
    mask = torch.arange(padded.shape[1]) < torch.tensor([[len(view)] for view in views])
    again = VisionFeatures.from_padded(padded, mask, seen.grids_I2, seen.image_of_view_I)
    asked = questions(len(GRIDS))
    assert torch.equal(connector([again], asked).tokens_ND, connector([seen], asked).tokens_ND)


def test_gradients_reach_every_parameter(build, features):
    connector = build()
    connector([features(GRIDS)], questions(len(GRIDS))).tokens_ND.square().sum().backward()
    assert not [name for name, p in connector.named_parameters() if p.grad is None or not p.grad.any()]


def test_it_is_built_without_memory_and_loaded(build, features, rough):
    connector = build()
    with torch.device("meta"):
        empty = build()
    assert not list(connector.buffers())
    empty.load_state_dict(connector.state_dict(), assign=True)
    asked = questions(len(GRIDS))
    given, loaded = (c([features(GRIDS)], asked).tokens_ND for c in (connector, empty))
    assert torch.equal(given, loaded)


@pytest.mark.parametrize("kind", KINDS)
def test_learned_latents_begin_with_a_small_deviation(kind):
    build, options = KINDS[kind]
    connector = build(
        [64], D, **{**options, "num_latents" if build is PerceiverConnector else "num_queries": 200}
    )
    own = connector.resampler.latents if build is PerceiverConnector else connector.queries
    assert own.std().item() == pytest.approx(0.02, rel=0.05)
    if kind == "question":
        assert connector.places.std().item() == pytest.approx(0.02, rel=0.05)


@torch.no_grad()
def test_several_encoders_are_concatenated(build, features):
    connector = build((4, 2))
    one, other = features(GRIDS, 4), features(GRIDS, 2, seed=1)
    asked = questions(len(GRIDS))
    joined = VisionFeatures(
        torch.cat([one.patches_TV, other.patches_TV], 1), one.grids_I2, one.image_of_view_I
    )
    given = connector([one, other], asked).tokens_ND
    assert torch.equal(given, connector([joined], asked).tokens_ND)
    assert (given - connector([one, features(GRIDS, 2, seed=2)], asked).tokens_ND).abs().max() > 1e-2


def test_bfloat16_stays_near(build, features):
    connector, seen, asked = build(), features(GRIDS), questions(len(GRIDS))
    full = connector([seen], asked).tokens_ND
    half = VisionFeatures(seen.patches_TV.bfloat16(), seen.grids_I2, seen.image_of_view_I)
    rounded = connector.bfloat16()([half], [own.bfloat16() for own in asked]).tokens_ND
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - full).norm() < 0.1 * full.norm()


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
