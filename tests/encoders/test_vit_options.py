"""The options of our ViT, one by one, against the same steps written out."""

import inspect
import itertools

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn
from torch.nn import functional as F

from vlmkit.encoders.base import pixel_batch
from vlmkit.encoders.vit import ALWAYS, ViT
from vlmkit.encoders.vit_block import Block, Place
from vlmkit.encoders.vit_options import SIZES, shape_of
from vlmkit.encoders.vit_parts import INIT_STD, ConvStem, mlp_layers
from vlmkit.errors import UsageError

TINY = {"image_size": 32, "patch_size": 8, "width": 32, "depth": 3, "heads": 4, "embed_dim": 12}
NATIVE = {"layout": {"type": "native", "max_patches": 20}}
EVERYTHING = {
    "registers": 2, "class_token": True, "norm": "rms", "mlp": "swiglu", "qk_norm": True, "layer_scale": 0.5,
}  # fmt: skip


@pytest.fixture
def build(shake):
    return lambda **options: shake(ViT(**{**TINY, **options})).eval()


def test_an_encoder_of_the_first_options_starts_as_ever():
    """Order and number of random draws, names and stored configuration: those of before there were more.

    A run that was made then has the same weights from the same seed, and the same fingerprint.
    """
    torch.manual_seed(7)
    options = {"image_size": 64, "patch_size": 8, "width": 64, "depth": 2, "heads": 4, "stem": "conv"}
    options |= {"pool": "cls", "embed_dim": 48}
    encoder, after = ViT(**options), torch.rand(1)
    torch.manual_seed(7)
    blocks = lambda: [  # noqa: E731
        nn.LayerNorm(64), nn.Linear(64, 192), nn.Linear(64, 64), nn.LayerNorm(64), nn.Linear(64, 256),
        nn.Linear(256, 64),
    ]  # fmt: skip
    parts = nn.ModuleList([ConvStem(8, 64), *blocks(), *blocks(), nn.LayerNorm(64)])
    parts.append(nn.Linear(64, 48, bias=False))
    tokens = [nn.init.trunc_normal_(torch.empty(1, count, 64), std=INIT_STD) for count in (64, 1)]
    assert torch.equal(after, torch.rand(1))
    stored = encoder.state_dict()
    assert torch.equal(stored.pop("positions"), tokens[0]) and torch.equal(stored.pop("cls"), tokens[1])
    for ours, theirs in zip(stored.values(), parts.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    first = ["norm1", "qkv", "proj", "norm2", "mlp.0", "mlp.2"]
    named = [f"blocks.{i}.{n}.{w}" for i in range(2) for n in first for w in ("weight", "bias")]
    assert [n for n in stored if n.startswith("blocks")] == named
    rest = {"mlp_ratio": 4.0, "layer": -1, "layout": "square", "text_tower": None}
    assert encoder.config == {**options, **rest}
    assert set(encoder.config) == set(ALWAYS)


@pytest.mark.parametrize("option", ["registers", "mlp", "positions", "norm_eps", "mean"])
def test_what_is_not_as_by_default_is_stored(option):
    values = {
        "registers": 1,
        "mlp": "swiglu",
        "positions": "rope_2d",
        "norm_eps": 1e-6,
        "mean": (0.1, 0.2, 0.3),
    }
    encoder = ViT(**TINY, **{option: values[option]})
    assert set(encoder.config) - set(ALWAYS) == {option}
    twin = ViT(**encoder.config)
    assert (twin.spec, twin.config) == (encoder.spec, encoder.config)


# Parameters in millions as the papers print them, with a classifier of 1000 classes.
PARAMETERS = {"Ti": 5.7, "S": 22, "B": 86, "L": 304, "H": 631, "g": 1011}


@pytest.mark.parametrize("size", SIZES)
def test_a_named_size_is_the_published_one(size):
    with torch.device("meta"):
        encoder = ViT(size=size, patch_size=14, pool="cls", embed_dim=1000)
    millions = sum(p.numel() for p in encoder.parameters()) / 1e6
    assert millions == pytest.approx(PARAMETERS[size], rel=0.02)
    assert encoder.config["width"] == SIZES[size].width


def test_numbers_that_are_given_replace_those_of_the_size():
    assert ViT.from_options(**TINY, size="g").config == ViT(**TINY, mlp_ratio=48 / 11).config
    encoder = ViT(size="Ti", depth=1, patch_size=32)
    assert (len(encoder.blocks), encoder.spec.width) == (1, 192)
    assert shape_of("S", None, None, None, None) == SIZES["S"]


@pytest.mark.parametrize("pool", ["cls", "mean", "map"])
@pytest.mark.parametrize("registers", [0, 3])
@pytest.mark.parametrize("class_token", [None, True, False])
def test_prefix_and_pooling(build, picture, see, pool, registers, class_token):
    """Patches are what follows the prefix; `mean` and `map` read patches, `cls` the first token."""
    if pool == "cls" and class_token is False:
        with pytest.raises(UsageError, match="drop one of them"):
            build(pool=pool, class_token=False)
        return
    encoder = build(pool=pool, registers=registers, class_token=class_token)
    has_cls = class_token if class_token is not None else pool == "cls"
    assert encoder.spec.prefix_tokens == registers + has_cls
    images = [picture((40, 30))]
    with torch.no_grad():
        tokens = encoder.stem(pixel_batch(encoder.spec, images).pixels_ICHW) + encoder.positions
        prefix = [t for t in (encoder.cls, encoder.registers) if t is not None]
        tokens = torch.cat([*prefix, tokens], 1)
        for block in encoder.blocks:
            tokens = block(tokens)
        tokens = encoder.norm(tokens)
        patches = tokens[:, -16:]
        vector = {"cls": lambda: tokens[:, 0], "mean": lambda: patches.mean(1)}
        expected = encoder.head(vector.get(pool, lambda: encoder.map_head(patches))())
    features = see(encoder, images)
    assert torch.equal(features.patches_TV, patches[0])
    assert torch.allclose(features.pooled_BE, expected, atol=1e-6)


def test_without_a_projection_the_vector_is_the_pooled_token(build, picture, see):
    encoder = build(embed_dim=0, projection=False, pool="cls")
    assert encoder.spec.embed_dim == 32 and encoder.head is None
    assert see(encoder, [picture((32, 32))]).pooled_BE.shape == (1, 32)


def test_swiglu_by_hand(shake):
    mlp = shake(mlp_layers("swiglu", 6, 10))
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    gate, up = mlp[0](x).split(10, -1)
    assert torch.allclose(mlp(x), mlp[2](gate * torch.sigmoid(gate) * up), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "hidden"),
    [
        ({}, 128), ({"mlp_ratio": 2.5}, 80), ({"mlp_width": 50}, 50),
        ({"mlp": "swiglu"}, 88), ({"mlp": "swiglu", "mlp_width": 50}, 50),
    ],
)  # fmt: skip
def test_hidden_width(options, hidden):
    """SwiGLU: 4 x 32 x 2/3 = 85.3, rounded up to 88; for DINOv2's giant 1536 this rule gives 4096."""
    assert ViT(**TINY, **options).blocks[0].mlp[2].in_features == hidden


@torch.no_grad()
def test_a_block_with_everything_by_hand(shake):
    options = {"mlp": "swiglu", "norm": "rms", "norm_eps": 1e-3, "qk_norm": True, "layer_scale": 0.5}
    block = shake(Block(8, heads=2, mlp_width=12, **options)).eval()
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    rms = lambda y, n: y / (y.square().mean(-1, keepdim=True) + 1e-3).sqrt() * n.weight  # noqa: E731
    q, k, v = (y.view(5, 2, 4).transpose(0, 1) for y in block.qkv(rms(x, block.norm1)).split(8, -1))
    scores = rms(q, block.q_norm) @ rms(k, block.k_norm).transpose(1, 2) / 2
    mixed = (F.softmax(scores, -1) @ v).transpose(0, 1).flatten(1)
    attended = x + block.proj(mixed) * block.layer_scale1
    expected = attended + block.mlp(rms(attended, block.norm2)) * block.layer_scale2
    assert torch.allclose(block(x[None])[0], expected, atol=1e-5)
    assert torch.allclose(block(x, Place((5,))), expected, atol=1e-5)


def test_layer_scale_starts_at_its_value():
    encoder = ViT(**TINY, layer_scale=1e-4)
    assert torch.equal(encoder.blocks[2].layer_scale2, torch.full((32,), 1e-4))
    assert ViT(**TINY).blocks[0].layer_scale1 is None


@pytest.mark.parametrize("layout", [{}, NATIVE])
def test_drop_path_drops_whole_views_in_training_only(build, picture, see, layout):
    encoder = build(drop_path=0.6, depth=3, **layout)
    images = [picture((40 + 20 * (i % 2), 40), i) for i in range(40)]
    plain = build(**layout)
    assert torch.equal(see(encoder, images).patches_TV, see(plain, images).patches_TV)
    assert [block.drop_path for block in encoder.blocks] == pytest.approx([0, 0.3, 0.6])
    block = encoder.blocks[2].train()
    lengths = tuple([4] * 1500 + [7] * 1500)
    for place, x in ((Place(), torch.zeros(3000, 4, 32)), (Place(lengths), torch.zeros(sum(lengths), 32))):
        torch.manual_seed(0)
        kept = place.survivors(x, 0.6)
        views = kept if place.lengths is None else kept.split(lengths)
        ones = torch.stack([view.flatten()[0] for view in views])
        assert ones.unique().tolist() == [0.0, pytest.approx(2.5)]
        assert ones.mean() == pytest.approx(1, abs=0.1)
        assert all(len(view.unique()) == 1 for view in views)
        torch.manual_seed(1)
        assert block(x + 1, place).shape == x.shape
    torch.manual_seed(0)
    dropped = block(torch.ones(200, 4, 32), Place())
    assert 10 < int((dropped == 1).all(-1).all(-1).sum()) < 150  # both branches: 0.36 of 200


@pytest.mark.parametrize("layer", [-4, -2, -1, 1])
@pytest.mark.parametrize("layout", [{}, NATIVE])
def test_without_a_vector_only_the_blocks_below_are_built(build, picture, see, layer, layout):
    whole = build(layer=layer, pool="map", **layout)
    lower = ViT(**{**whole.config, "pooled": False}).eval()
    stored = {n: t for n, t in whole.state_dict().items() if n in lower.state_dict()}
    lower.load_state_dict(stored)
    assert len(lower.blocks) == lower.blocks_run
    assert not any(n.startswith(("head", "map_head")) for n in lower.state_dict())
    assert (lower.norm is None) == (layer != -1)
    images = [picture((50, 20)), picture((20, 60))]
    features = see(lower, images)
    assert torch.equal(features.patches_TV, see(whole, images).patches_TV)
    assert features.pooled_BE is None and lower.embed_dim == 0


@pytest.mark.parametrize("embed_dim", [0, 12])
def test_blocks_above_the_layer_run_for_the_vector_only(build, picture, see, embed_dim):
    encoder, run = build(layer=-3, embed_dim=embed_dim), []
    for block in encoder.blocks:
        block.register_forward_hook(lambda *_: run.append(1))
    see(encoder, [picture((32, 32))])
    assert len(run) == (3 if embed_dim else 1)


@pytest.mark.parametrize("options", [{}, {**EVERYTHING, **NATIVE, "positions": "rope_2d", "drop_path": 0.5}])
def test_checkpointing_changes_no_gradient(build, picture, options):
    """Blocks are computed twice, with the same views dropped; the methods are named as transformers' are."""
    encoder = build(**options).train()
    batch = pixel_batch(encoder.spec, [picture((50, 20)), picture((20, 60)), picture((33, 32))])

    def gradients():
        torch.manual_seed(0)
        encoder.zero_grad()
        count = []
        hooks = [b.register_forward_pre_hook(lambda *_: count.append(1)) for b in encoder.blocks]
        features = encoder(batch)
        (features.patches_TV.square().sum() + features.pooled_BE.square().sum()).backward()
        for hook in hooks:
            hook.remove()
        return [p.grad.clone() for p in encoder.parameters()], len(count)

    plain, once = gradients()
    encoder.gradient_checkpointing_enable({"use_reentrant": False})
    again, twice = gradients()
    encoder.gradient_checkpointing_disable()
    assert (once, twice, gradients()[1]) == (3, 6, 3)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_every_parameter_of_every_option_gets_a_gradient(picture):
    kinds = ["learned", "learned_2d", "sincos_2d", "rope_2d"]
    for kind, pool in itertools.product(kinds, ["cls", "mean", "map"]):
        encoder = ViT(**{**TINY, **EVERYTHING}, positions=kind, pool=pool)
        assert all(torch.isfinite(p).all() for p in encoder.parameters())
        features = encoder(pixel_batch(encoder.spec, [picture((32, 32)), picture((32, 32), 1)]))
        (features.pooled_BE.square().sum() + features.patches_TV.square().sum()).backward()
        assert [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_autocast_takes_every_option(build, picture):
    """Norms and tables are float32 there and products are not: attention must still get one type."""
    for layout in ({}, NATIVE):
        encoder = build(**EVERYTHING, **layout, positions="rope_2d")
        batch = pixel_batch(encoder.spec, [picture((50, 20)), picture((20, 60))])
        with torch.no_grad():
            exact = encoder(batch).patches_TV
            with torch.autocast("cpu", torch.bfloat16):
                rounded = encoder(batch).patches_TV
        assert (rounded.float() - exact).abs().max() / exact.abs().max() < 0.05


def test_a_tiny_twin_is_small_and_runs(picture, see):
    encoder = ViT(**ViT.tiny_options())
    assert sum(p.numel() for p in encoder.parameters()) < 100_000
    assert see(encoder, [picture((32, 32))]).patches_TV.shape == (16, 32)


def test_a_run_states_the_options_of_its_encoder(build, tmp_path):
    """What is not given comes from its configuration."""
    import json

    from safetensors.torch import save_file

    encoder = build(stem="conv", registers=2, layer=-2)
    (tmp_path / "config.json").write_text(json.dumps({"encoders": [{"type": "vit", **encoder.config}]}))
    tensors = {f"encoders.0.{n}": t for n, t in encoder.state_dict().items()}
    save_file(tensors, tmp_path / "model.safetensors")
    assert ViT.from_options(weights=str(tmp_path)).fingerprint == encoder.fingerprint
    assert ViT.from_options(weights=str(tmp_path), layer=-1).spec.layer == -1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "XL"}, "unknown vit size 'XL'.*known: B, H, L, S, Ti, g"),
        ({"positions": "rope"}, "unknown vit positions 'rope'; did you mean 'rope_2d'"),
        ({"mlp": "relu"}, "unknown vit mlp 'relu'.*gelu, swiglu"),
        ({"norm": "batch"}, "unknown vit norm 'batch'"),
        ({"registers": -1}, "found registers -1; give 0 or more"),
        ({"drop_path": 1.0}, "found drop_path 1.0; give a share from 0 to below 1"),
        ({"mlp_width": 0}, "the MLP would be 0 wide"),
        ({"positions": "rope_2d", "heads": 16}, "need a head's width to be a multiple of 4, found 2"),
        ({"positions": "sincos_2d", "width": 30, "heads": 2}, "need width to be a multiple of 4, found 30"),
        ({"projection": False}, "the vector has width 32, found embed_dim 12"),
        ({"mean": [0.5]}, "mean has 1 values; give three"),
    ],
)
def test_wrong_options_are_explained(options, message):
    with pytest.raises(UsageError, match=message):
        ViT.from_options(**{**TINY, **options})


@pytest.mark.parametrize(
    ("option", "value"), [("size", "XL"), ("mlp", "relu"), ("registers", "two"), ("drop_path", "a lot")]
)
def test_annotations_say_what_a_recipe_may_write(option, value):
    """By them a recipe is checked before anything is built."""
    parameter = inspect.signature(ViT, eval_str=True).parameters[option]
    adapter = TypeAdapter(parameter.annotation)
    adapter.validate_python(parameter.default)
    with pytest.raises(ValidationError):
        adapter.validate_python(value)


def test_every_option_is_explained():
    described = inspect.getdoc(ViT).split("Args:")[1]
    for name in inspect.signature(ViT).parameters:
        assert name in described
