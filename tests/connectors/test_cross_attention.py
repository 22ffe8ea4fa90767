"""What blocks inside the language model promise: identity, no leak, nothing from padding, memory kept."""

import pytest
import torch

from vlmkit_connectors import GatedCrossAttention, MllamaCrossAttention
from vlmkit_connectors.cross_attention import places

WIDTH, ROWS, TEXT, MOST = 8, 4, 5, 6
# Image tokens of each row; the rest up to MOST is padding.
COUNTS = [6, 3, 1, 0]
CONNECTORS = [
    lambda **o: GatedCrossAttention([WIDTH], WIDTH, 4, heads=2, head_dim=3, num_latents=2, depth=1, **o),
    lambda **o: MllamaCrossAttention([WIDTH], WIDTH, 4, heads=4, kv_heads=2, **o),
]


@pytest.fixture(params=CONNECTORS, ids=["gated", "mllama"])
def connector(request):
    torch.manual_seed(0)
    return request.param()


@pytest.fixture
def block(connector, roughen):
    return roughen(connector.each().get(3))


@pytest.fixture
def scene():
    """Hidden states, image tokens and who sees what: text token 0 of each row sees nothing."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(ROWS, TEXT, WIDTH, generator=generator)
    tokens = torch.randn(ROWS, MOST, WIDTH, generator=generator)
    seen = torch.rand(ROWS, TEXT, MOST, generator=generator) < 0.6
    seen[0, 1], seen[:, 0] = True, False
    for row, count in enumerate(COUNTS):
        seen[row, :, count:] = False
    return hidden, tokens, seen


def run(block, hidden, tokens, seen):
    with torch.no_grad():
        return block(hidden, block.remember(tokens), seen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("text_dtype", [torch.float32, torch.bfloat16])
def test_it_changes_nothing_at_first(connector, scene, dtype, text_dtype):
    """Whatever the data types of block and language model, hidden states stay what they are."""
    hidden, tokens, seen = scene
    hidden = hidden.to(text_dtype)
    given = run(connector.to(dtype).each().get(3), hidden, tokens.to(dtype), seen)
    assert given.dtype == text_dtype and torch.equal(given, hidden)
    assert connector.marker_D.abs().max() == 0


def test_it_changes_nothing_at_first_under_autocast(connector, scene):
    hidden, tokens, seen = scene
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for own in (hidden, hidden.bfloat16()):
            given = run(connector.each().get(3), own, tokens, seen)
            assert given.dtype == own.dtype and torch.equal(given, own)


def test_at_first_only_the_gate_learns(connector, scene):
    """tanh(0) keeps gradients from all but the gates."""
    hidden, tokens, seen = scene
    block = connector.each().get(3)
    tokens.requires_grad_()
    block(hidden, block.remember(tokens), seen).square().sum().backward()
    gates = {name for name, p in block.named_parameters() if p.grad.abs().max() > 0}
    assert gates == {name for name, _ in block.named_parameters() if name.endswith("gate")}
    assert len(gates) == 2 and tokens.grad.abs().max() == 0


def test_later_everything_learns(connector, block, scene, features):
    """Gradients reach each parameter, the resampler or projector too."""
    hidden, _, seen = scene
    given = connector([features([(2, 3)] * ROWS, WIDTH)])
    tokens = given.tokens_ND.view(ROWS, -1, WIDTH)
    seen = seen[:, :, : tokens.shape[1]]
    block(hidden, block.remember(tokens), seen).square().sum().backward()
    parts = [block, connector.media, getattr(connector, "multi_modal_projector", block)]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for part in parts for p in part.parameters())


@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
def test_padding_changes_nothing(block, scene, scale):
    hidden, tokens, seen = scene
    changed = tokens.clone()
    for row, count in enumerate(COUNTS):
        changed[row, count:] = scale * torch.randn(MOST - count, WIDTH)
    assert torch.equal(run(block, hidden, changed, seen), run(block, hidden, tokens, seen))


def test_padded_rows_equal_rows_alone(block, scene):
    hidden, tokens, seen = scene
    together = run(block, hidden, tokens, seen)
    for row, count in enumerate(COUNTS):
        own = slice(row, row + 1)
        alone = run(block, hidden[own], tokens[own, :count], seen[own, :, :count])
        assert (alone - together[own]).abs().max() < 1e-5


def test_each_text_token_sees_just_its_image_tokens(block, scene):
    """Changing one image token changes exactly the text tokens that may look at it."""
    hidden, tokens, seen = scene
    before = run(block, hidden, tokens, seen)
    for row, count in enumerate(COUNTS):
        for m in range(count):
            changed = tokens.clone()
            changed[row, m] += torch.randn(WIDTH)
            moved = (run(block, hidden, changed, seen) - before).abs().amax(-1)
            expected = torch.zeros(ROWS, TEXT, dtype=torch.bool)
            expected[row] = seen[row, :, m]
            # Alone in sight, a token's key does not matter, but its value does.
            assert torch.equal(moved > 1e-6, expected) and moved[~expected].eq(0).all()


def test_text_tokens_do_not_see_each_other(block, scene):
    hidden, tokens, seen = scene
    before = run(block, hidden, tokens, seen)
    changed = hidden.clone()
    changed[0, 2] += 1
    moved = (run(block, changed, tokens, seen) - before).abs().amax(-1)
    assert moved[0, 2] > 1e-3 and moved.count_nonzero() == 1


def test_no_images_at_all_is_as_none_in_sight(block, scene):
    hidden, tokens, seen = scene
    none = run(block, hidden, tokens[:, :0], seen[:, :, :0])
    assert torch.equal(none, run(block, hidden, tokens, torch.zeros_like(seen)))
    assert none.isfinite().all()


def test_blind_text_gives_finite_gradients(block, scene):
    hidden, tokens, seen = scene
    hidden.requires_grad_()
    tokens.requires_grad_()
    block(hidden, block.remember(tokens), torch.zeros_like(seen)).sum().backward()
    assert hidden.grad.isfinite().all() and tokens.grad.eq(0).all()


def test_memory_is_kept_while_text_comes_token_by_token(block, scene):
    hidden, tokens, seen = scene
    at_once = run(block, hidden, tokens, seen)
    with torch.no_grad():
        memory = block.remember(tokens)
        steps = [block(hidden[:, i : i + 1], memory, seen[:, i : i + 1]) for i in range(TEXT)]
    assert (torch.cat(steps, 1) - at_once).abs().max() < 1e-5
    assert all(part.shape[0] == ROWS and part.shape[2] == MOST for part in memory)


def test_memory_holds_all_that_tokens_give(block, scene):
    """A forward pass reads no token: with the weights of keys and values gone it gives the same."""
    hidden, tokens, seen = scene
    memory = block.remember(tokens)
    before = block(hidden, memory, seen)
    for name, parameter in block.named_parameters():
        if any(part in name for part in ("to_kv", "k_proj", "v_proj", "k_norm")):
            parameter.data.zero_()
    assert torch.equal(block(hidden, memory, seen), before)


def test_it_builds_without_memory_and_starts_from_reset(connector):
    """On the meta device there are shapes only; `reset_parameters` sets gates and scales."""
    make = CONNECTORS[0 if isinstance(connector, GatedCrossAttention) else 1]
    with torch.device("meta"):
        built = make()
    assert all(p.is_meta for p in built.parameters())
    assert {n: p.shape for n, p in built.named_parameters()} == {
        n: p.shape for n, p in connector.named_parameters()
    }
    real = built.to_empty(device="cpu").each().get(3)
    for parameter in real.parameters():
        parameter.data.fill_(7)
    for module in real.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    own = dict(connector.each().get(3).named_parameters())
    vectors = {name: p for name, p in real.named_parameters() if p.ndim == 1}
    assert len(vectors) > 3 and all(torch.equal(p, own[name]) for name, p in vectors.items())


@pytest.mark.parametrize(
    ("layers", "every", "start", "expected"),
    [
        (4, 1, None, [0, 1, 2, 3]),
        (8, 4, None, [3, 7]),
        (9, 2, 0, [0, 2, 4, 6, 8]),
        (32, 4, 3, [3, 7, 11, 15, 19, 23, 27, 31]),
    ],
)
def test_places_of_blocks(layers, every, start, expected):
    assert list(places("some", layers, every, start)) == expected


def test_blocks_are_found_by_layer():
    gated = GatedCrossAttention([WIDTH], WIDTH, 6, every=3, resampler="none")
    assert [n for n in range(6) if gated.each().get(n)] == [2, 5] and not gated.sees_run
    mllama = MllamaCrossAttention([WIDTH], WIDTH, 6, every=2, start=0)
    assert [n for n in range(6) if mllama.each().get(n)] == [0, 2, 4] and mllama.sees_run


@pytest.mark.parametrize("kind", [GatedCrossAttention, MllamaCrossAttention])
@pytest.mark.parametrize("resampler", ["perceiver", "none"])
def test_tokens_of_any_views_and_several_encoders(kind, resampler, features, roughen):
    """A view's tokens do not depend on the others, and are as many as stated."""
    grids = [(2, 3), (4, 1), (2, 3), (1, 1)]
    few = {"num_latents": 3, "depth": 1} if resampler == "perceiver" else {}
    connector = roughen(kind([6, 4], WIDTH, 4, resampler=resampler, **few))
    one, other = features(grids, 6), features(grids, 4, seed=1)
    given = connector([one, other])
    assert given.counts == tuple(map(connector.num_tokens, grids))
    assert given.counts == ((3,) * 4 if resampler == "perceiver" else (6, 4, 6, 1))
    assert connector.token_grid((2, 3)) == (None if resampler == "perceiver" else (2, 3))
    joined = torch.cat([one.patches_TV, other.patches_TV], -1).split([r * c for r, c in grids])
    for tokens, patches in zip(given.tokens_ND.split(given.counts), joined):
        resample = connector.media.resampler
        expected = patches if resample is None else resample(patches[None])[0]
        if kind is MllamaCrossAttention:
            expected = connector.multi_modal_projector(expected)
        assert (tokens - expected).abs().max() < 1e-5
    assert connector.each().get(3).remember(given.tokens_ND[None])[0].shape[2] == sum(given.counts)
