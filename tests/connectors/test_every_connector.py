"""What every entry of the table keeps: counts, independence of views, gradients, loading, types.

An option that an entry needs to be small and to have something to do stands in `OPTIONS`; an entry that is
several things by its options has its other forms in `ALSO`.
"""

import math
import re

import pytest
import torch

from vlmkit_connectors import CONNECTORS, LayerInjection, VisionFeatures, concat_encoders

WIDTH, TEXT, LAYERS = 16, 32, 4
# Equal grids, a row and a column; padded together are views of 5 and 7 patches, and of 15 and 16.
MIXED = [(8, 8), (3, 5), (1, 1), (1, 7), (3, 5), (4, 4), (5, 1), (4, 6)]
OWNERS = [0, 0, 0, 1, 1, 1, 1, 1]
# With fewer queries than patches a query has something to choose from.
OPTIONS = {"sva": {"tokens": 4}}
ALSO = [
    ("linear", {"bias": False}),
    ("mlp", {"pool": 2}),
    ("pixel_shuffle", {"factor": 3, "variant": "idefics3"}),
    ("pool", {"tokens": 5}),
    ("pool", {"factor": 2, "depth": 1}),
    ("c_abstractor", {"tokens": 9, "depth": 2, "width": 10, "positions": 4}),
    ("ldp", {"variant": "v1"}),
    ("perceiver", {"variant": "idefics2", "num_latents": 3, "kv_heads": 2}),
    ("qformer", {"question": True, "num_queries": 3, "depth": 3}),
    ("token_merge", {"tokens": 3, "depth": 3}),
    ("token_merge", {"keep": 0.7}),
    ("sva", {"tokens": 4, "groups": 2}),
    ("mllama", {"resampler": "perceiver"}),
]
CASES = [(name, OPTIONS.get(name, {})) for name in CONNECTORS] + ALSO
# These keep the features of several encoders apart; all others join their channels.
APART = {"sva"}


@pytest.fixture(params=CASES, ids=lambda case: "-".join([case[0], *map(str, case[1].values())]))
def bare(request):
    """A function: widths of the encoders to the connector as it is built, in evaluation mode."""
    name, own = request.param
    inside = {"text_layers": LAYERS} if issubclass(CONNECTORS[name], LayerInjection) else {}

    def make(widths=(WIDTH,)):
        return CONNECTORS[name](vision_widths=list(widths), text_width=TEXT, **own | inside).eval()

    return make


@pytest.fixture
def build(bare, roughen):
    """The same with rough weights."""
    return lambda *widths: roughen(bare(*widths))


def pick(features, order):
    """The views `order` of the features, in that order."""
    views, grids, owners = features.views(), features.grids_I2[order], features.image_of_view_I[order]
    return VisionFeatures(torch.cat([views[i] for i in order]), grids, owners)


def questions(count):
    """One an image, of different lengths; a connector that reads no text does not look at them."""
    generator = torch.Generator().manual_seed(9)
    return [torch.randn(3 + i, TEXT, generator=generator) for i in range(count)]


def run(connector, *seen, text=None):
    text = questions(len(seen[0].image_of_view_I.unique())) if text is None else text
    return connector(list(seen), text)


def by_view(connector, *seen):
    given = run(connector, *seen)
    return given.tokens_ND.split(given.counts)


def furthest(found, expected):
    assert [t.shape for t in found] == [t.shape for t in expected]
    return max((a - b).abs().max().item() for a, b in zip(found, expected))


def near(found, expected):
    """Rough weights make tokens of some tens: 1e-5 of what they are, or of one."""
    return furthest(found, expected) <= 1e-5 * max(1, *(t.abs().max().item() for t in expected))


@pytest.mark.parametrize("name", CONNECTORS)
def test_the_table_builds_with_widths_alone_and_names_its_source(name):
    cls = CONNECTORS[name]
    inside = {"text_layers": LAYERS} if issubclass(cls, LayerInjection) else {}
    assert cls(vision_widths=[64], text_width=128, **inside).num_tokens((8, 8)) >= 1
    assert re.fullmatch(r".+, https://\S+", cls.source)


@torch.no_grad()
def test_counts_are_those_it_states(build, features):
    connector = build()
    given = run(connector, features(MIXED, WIDTH))
    assert given.counts == tuple(map(connector.num_tokens, MIXED))
    assert len(given.tokens_ND) == sum(given.counts) and min(given.counts) > 0
    if not isinstance(connector, LayerInjection):
        assert given.tokens_ND.shape[1] == TEXT
    for grid in MIXED:
        shape = connector.token_grid(grid)
        assert shape is None or math.prod(shape) == connector.num_tokens(grid)


@torch.no_grad()
def test_a_view_alone_or_among_others_in_any_order(build, features):
    connector, seen = build(), features(MIXED, WIDTH)
    text = questions(len(MIXED))
    together = by_view(connector, seen)
    for i, grid in enumerate(MIXED):
        own = VisionFeatures(seen.views()[i], torch.tensor([grid]), torch.tensor([0]))
        assert near([run(connector, own, text=[text[i]]).tokens_ND], [together[i]])
    order = [3, 0, 7, 5, 4, 6, 2, 1]
    # Images in the order of their views, as the contract wants them.
    moved = pick(seen, order)
    moved = VisionFeatures(moved.patches_TV, moved.grids_I2, torch.arange(len(order)))
    given = run(connector, moved, text=[text[i] for i in order])
    assert near(given.tokens_ND.split(given.counts), [together[i] for i in order])


@torch.no_grad()
def test_several_views_of_one_image(build, features):
    """Which image a view belongs to matters for the question only."""
    connector, seen = build(), features(MIXED, WIDTH)
    tiled = VisionFeatures(seen.patches_TV, seen.grids_I2, torch.tensor(OWNERS))
    text = questions(2)
    each = run(connector, seen, text=[text[i] for i in OWNERS])
    assert near([run(connector, tiled, text=text).tokens_ND], [each.tokens_ND])


@torch.no_grad()
def test_padded_equals_packed(build, features):
    """Padding in the middle and at both ends, full of numbers that must not matter."""
    connector, seen = build(), features(MIXED, WIDTH)
    longest = max(r * c for r, c in MIXED) + 5
    padded = torch.full((len(MIXED), longest, WIDTH), 1e4)
    mask = torch.zeros(len(MIXED), longest, dtype=torch.bool)
    for i, view in enumerate(seen.views()):
        places = torch.arange(len(view)) + 1
        places[len(view) // 2 :] += 3
        padded[i, places], mask[i, places] = view, True
    again = VisionFeatures.from_padded(padded, mask, seen.grids_I2, seen.image_of_view_I)
    assert furthest(by_view(connector, again), by_view(connector, seen)) == 0


@torch.no_grad()
def test_a_patch_matters_in_its_own_view_only(build, features):
    connector, seen = build(), features(MIXED, WIDTH)
    patches_TV = seen.patches_TV.clone()
    patches_TV[64 + 2] = patches_TV[64 + 2].flip(0)  # in the second view; a norm would take a shift away
    other = VisionFeatures(patches_TV, seen.grids_I2, seen.image_of_view_I)
    found, before = by_view(connector, other), by_view(connector, seen)
    changed = [i for i, (a, b) in enumerate(zip(found, before)) if (a - b).abs().max() > 1e-5]
    assert changed == [1]


@torch.no_grad()
def test_two_encoders(build, features):
    """Both matter, on grids of their own; the counts are those of the first one's grids."""
    connector = build([WIDTH, 8])
    one, other = features(MIXED, WIDTH), features([(2 * r, c) for r, c in MIXED], 8, seed=1)
    given = run(connector, one, other)
    assert given.counts == tuple(map(connector.num_tokens, MIXED))
    for seen in (one, other):
        changed = VisionFeatures(seen.patches_TV.flip(1), seen.grids_I2, seen.image_of_view_I)
        moved = run(connector, *(changed if s is seen else s for s in (one, other)))
        assert (moved.tokens_ND - given.tokens_ND).abs().max() > 1e-3


@torch.no_grad()
def test_several_encoders_are_one_with_all_their_channels(request, bare, build, features):
    if request.node.callspec.params["bare"][0] in APART:
        with pytest.raises(ValueError, match="argument 2 is shorter"):
            run(build([WIDTH, 8]), features(MIXED, WIDTH))
        return
    connector, seen = build([WIDTH, 8]), [features(MIXED, WIDTH), features(MIXED[::-1], 8, seed=1)]
    seen[1] = VisionFeatures(seen[1].patches_TV, seen[0].grids_I2, seen[0].image_of_view_I)
    joined = concat_encoders(seen)
    assert joined.patches_TV.shape[1] == WIDTH + 8
    assert furthest(by_view(connector, *seen), by_view(connector, joined)) == 0


@torch.no_grad()
def test_no_view_gives_no_token(build, features):
    connector = build([WIDTH, 8])
    some = run(connector, features(MIXED, WIDTH), features(MIXED, 8)).tokens_ND
    none = [
        VisionFeatures(torch.zeros(0, w), torch.zeros(0, 2).long(), torch.zeros(0).long()) for w in (WIDTH, 8)
    ]
    given = run(connector, *none)
    assert given.tokens_ND.shape == (0, some.shape[1]) and given.counts == ()


@torch.no_grad()
def test_text_matters_to_those_that_read_it(build, features):
    connector, seen = build(), features(MIXED, WIDTH)
    text = questions(len(MIXED))
    moved = run(connector, seen, text=[t.flip(0) + 1 for t in text]).tokens_ND
    assert torch.equal(moved, run(connector, seen, text=text).tokens_ND) is not connector.reads_text
    if not connector.reads_text:
        assert torch.equal(moved, connector([seen]).tokens_ND)


def test_every_parameter_and_patch_gets_a_gradient(build, features):
    """Of two encoders, so that attention over one patch of each has something to choose from."""
    connector, seen = build([WIDTH, 8]), [features(MIXED, WIDTH), features(MIXED, 8, seed=1)]
    for own in seen:
        own.patches_TV.requires_grad_()
    tokens_ND = run(connector, *seen).tokens_ND
    wanted = torch.randn(tokens_ND.shape, generator=torch.Generator().manual_seed(3))
    (tokens_ND * wanted).sum().backward()
    # Blocks and the marker are of the language model's side.
    after = ("blocks.", "marker_D") if isinstance(connector, LayerInjection) else ()
    for path, parameter in connector.named_parameters():
        if not path.startswith(after):
            assert parameter.grad is not None, path
            assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, path
    assert all((own.patches_TV.grad.abs().amax(1) > 0).all() for own in seen)


GRADIENTS = {
    "one large view": [[(24, 24)]],
    "one patch": [[(1, 1), (1, 1)]],
    "one row, one column": [[(1, 5), (5, 1)]],
    "two encoders": [[(6, 6), (3, 5)], [(4, 4), (7, 2)]],
    "two encoders of one patch": [[(1, 1)], [(1, 1)]],
}


@pytest.mark.parametrize("grids", GRADIENTS.values(), ids=GRADIENTS)
@pytest.mark.parametrize(("name", "own"), [*((name, {}) for name in CONNECTORS), *ALSO], ids=str)
def test_no_parameter_is_left_without_a_gradient(name, own, grids, features):
    """With the defaults and any grids, if only zeros: training on several GPUs waits for each of them."""
    inside = {"text_layers": LAYERS} if issubclass(CONNECTORS[name], LayerInjection) else {}
    widths = [WIDTH, 8][: len(grids)]
    connector = CONNECTORS[name](vision_widths=widths, text_width=TEXT, **own | inside)
    seen = [features(own, width, seed=width) for own, width in zip(grids, widths, strict=True)]
    tokens_ND = run(connector, *seen).tokens_ND
    loss = tokens_ND.sum()
    if inside:
        hidden_BLD = connector.marker_D.expand(1, 2, -1)
        for block in connector.each().values():
            sees = torch.ones(1, 2, len(tokens_ND), dtype=torch.bool)
            hidden_BLD = block(hidden_BLD, block.remember(tokens_ND[None]), sees)
        loss = loss + hidden_BLD.sum()
    loss.backward()
    assert [path for path, parameter in connector.named_parameters() if parameter.grad is None] == []


@torch.no_grad()
def test_loading_through_the_meta_device(build, bare, features):
    """As checkpoints are loaded: memory that holds anything, then stored tensors, then computed tables."""
    connector, seen = build(), features(MIXED, WIDTH)
    with torch.device("meta"):
        loaded = bare()
    loaded = loaded.to_empty(device="cpu")
    for tensor in (*loaded.parameters(), *loaded.buffers()):
        tensor.fill_(77)
    loaded.load_state_dict(connector.state_dict())
    for module in loaded.modules():
        if hasattr(module, "reset_buffers"):
            module.reset_buffers()
    assert furthest(by_view(loaded, seen), by_view(connector, seen)) == 0


def test_nothing_is_left_as_memory_had_it(bare):
    """Under torch's deterministic algorithms memory that nothing was written to is not a number."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        tensors = [*bare().named_parameters(), *bare().named_buffers()]
    finally:
        torch.use_deterministic_algorithms(False)
    wrong = [path for path, tensor in tensors if not tensor.isfinite().all() or tensor.abs().max() > 10]
    assert not wrong


@torch.no_grad()
def test_bfloat16_stays_near(build, features):
    connector, seen = build(), features(MIXED, WIDTH)
    # Values that bfloat16 has, so that what is decided by them stays.
    half = VisionFeatures(seen.patches_TV.bfloat16(), seen.grids_I2, seen.image_of_view_I)
    exact = VisionFeatures(half.patches_TV.float(), seen.grids_I2, seen.image_of_view_I)
    text = questions(len(MIXED))
    full = run(connector, exact, text=text)
    given = run(connector.bfloat16(), half, text=[t.bfloat16() for t in text])
    assert given.tokens_ND.dtype == torch.bfloat16 and given.counts == full.counts
    assert (given.tokens_ND.float() - full.tokens_ND).norm() < 0.1 * full.tokens_ND.norm()
